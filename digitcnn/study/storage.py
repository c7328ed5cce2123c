"""Where studies are stored: the address, the connection to it, and what its failures mean."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import optuna
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from digitcnn.errors import MachineError, StoreAway
from digitcnn.files import LOCK_SECONDS, check_database, create_database, sqlite_path, sqlite_url
from digitcnn.study import locks


def storage_url(folder: Path) -> str:
    """Return the address of the store of studies in a records folder."""
    return sqlite_url(folder / "optuna.db")


def is_missing(url: str) -> bool:
    """Return True if a store's file is not there."""
    return not sqlite_path(url).exists()


def connect(url: str) -> optuna.storages.RDBStorage:
    """Opens a store, and creates what is missing of it.

    Raises MachineError if its file is another program's, another version's or torn: it is not changed.
    """
    path = sqlite_path(url)
    check_database(path, "Optuna", frozenset({"studies", "version_info"}))
    create_database(path, lambda new: optuna.storages.RDBStorage(sqlite_url(new)).engine.dispose())
    try:
        return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}})
    except RuntimeError as error:
        # This is how Optuna says that the tables are those of another version.
        raise MachineError(f"{path} cannot be used, and has been left as it is: {error}") from None


@contextlib.contextmanager
def only_process(folder: Path, study: str) -> Iterator[None]:
    """Hold the lock of a study that one process at a time sweeps or confirms.

    If optuna.db is a link, also the one beside the file that it leads to: other folders may have that file too. Raises
    ConfigError, naming who holds it, if another process does.
    """
    with contextlib.ExitStack() as held:
        for each in sorted({folder.resolve(), (folder / "optuna.db").resolve().parent}):
            held.enter_context(locks.only_one(each, study))
        yield


@contextlib.contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turns a failure of the study's store inside the body into a MachineError of one line, StoreAway if it is away."""
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        kind = StoreAway if "database is locked" in cause else MachineError
        raise kind(f"the study's store {url} failed: {cause}; what had been recorded is safe") from None
