"""Where studies are stored: the address, the connection to it, and what its failures mean."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import optuna
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from digitcnn import locks
from digitcnn.addresses import without_credentials
from digitcnn.embedded import LOCK_SECONDS, check, create, sqlite_path
from digitcnn.embedded import sqlite_url as sqlite_url
from digitcnn.errors import ConfigError, MachineError, StoreAway
from digitcnn.hosts import SharedStorage, is_away

_threads = threading.Lock()

Result = TypeVar("Result")


def address(given: str | None, folder: Path) -> str:
    """Where a study is stored: the address that was given, or the embedded store in the records folder."""
    return given or sqlite_url(folder / "optuna.db")


def is_shared(url: str) -> bool:
    """Whether several processes and hosts can work in a store at the same time."""
    return not url.startswith("sqlite:")


def is_missing(url: str) -> bool:
    """Whether this is an embedded store whose file is not there, or a database without any study."""
    if is_shared(url):
        return not SharedStorage.has_studies(url)
    return not sqlite_path(url).exists()


def connect(url: str) -> optuna.storages.RDBStorage:
    """Opens a store, and creates what is missing of it.

    Raises MachineError if an embedded one's file is another program's, another version's or torn: it is not changed.
    """
    if is_shared(url):
        return SharedStorage(url)
    path = sqlite_path(url)
    check(path, "Optuna", frozenset({"studies", "version_info"}))
    create(path, lambda new: optuna.storages.RDBStorage(sqlite_url(new)).engine.dispose())
    try:
        return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}})
    except RuntimeError as error:
        # This is how Optuna says that the tables are those of another version.
        raise MachineError(f"{path} cannot be used, and has been left as it is: {error}") from None


@contextlib.contextmanager
def only_process(url: str, folder: Path, study: str) -> Iterator[None]:
    """Holds the locks of a study in an embedded store: of the folder of its records, and of that of its file.

    Raises ConfigError, naming who holds it, if another process does.
    """
    with contextlib.ExitStack() as held:
        for each in sorted({folder.resolve(), sqlite_path(url).resolve().parent}):
            held.enter_context(locks.only_one(each, study))
        yield


@contextlib.contextmanager
def exclusively(store: optuna.storages.RDBStorage, study: str) -> Iterator[None]:
    """Holds the lock of a study: among the threads of this process, and on a shared store among all hosts.

    Raises LockLost at its end if a shared store took the lock away.
    """
    with _threads, store.lock(study) if isinstance(store, SharedStorage) else contextlib.nullcontext():
        yield


def decide(store: optuna.storages.RDBStorage, study: str, work: Callable[[], Result]) -> Result:
    """What some work returns that is done under the lock of a study, `exclusively`.

    It is done again if a shared store went away in it, or took the lock away. No other store is to be waited for in it:
    one who says nothing to the server for long loses the lock.
    """

    def locked() -> Result:
        with exclusively(store, study):
            return work()

    return store.patiently(locked) if isinstance(store, SharedStorage) else locked()


def hurry(store: optuna.storages.RDBStorage, stop: threading.Event) -> None:
    """From when `stop` is set, a shared store that is away is waited for no longer."""
    if isinstance(store, SharedStorage):
        store.hurried = stop


@contextlib.contextmanager
def alone(store: optuna.storages.RDBStorage, study: str, folder: Path) -> Iterator[Callable[[], None]]:
    """Makes this the only process that does on a study what several cannot do at once, as confirming it.

    Gives a function that makes sure that it still is. Both raise ConfigError, naming the other process, if it is not.
    """
    if isinstance(store, SharedStorage):
        with store.alone(study) as make_sure:
            yield make_sure
    else:
        with only_process(store.url, folder, study):
            yield lambda: None


@contextlib.contextmanager
def errors(url: str) -> Iterator[None]:
    """Turns a failure of the study's store inside the body into a MachineError of one line, StoreAway if it is away."""
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        cause = without_credentials(str(error.__cause__ or error)).splitlines()[0]
        place = without_credentials(url)
        away = is_away(error) if is_shared(url) else "database is locked" in cause
        kind = StoreAway if away else MachineError
        raise kind(f"the study's store {place} failed: {cause}; what had been recorded is safe") from None
    except ImportError as error:
        raise ConfigError(f"study.storage: needs a database driver: {str(error).splitlines()[0]}") from None
