"""The store of studies: optuna.db in a records folder, its lock, and its failures as errors of one line."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.exc import SQLAlchemyError

from digitcnn.errors import RECORDS_SAFE, ConfigError, MachineError, StoreAway
from digitcnn.files import LOCK_SECONDS, check_database, create_database, holder_of, lock_file, sqlite_url

# Raised where the store failed, by Optuna or below it.
STORAGE_FAILURES = (StorageInternalError, SQLAlchemyError)


def storage_path(folder: Path) -> Path:
    """Return the path of the store in a records folder."""
    return folder / "optuna.db"


def connect(folder: Path) -> RDBStorage:
    """Open the store of a records folder; create what is missing of it.

    Raises MachineError, with the file unchanged, if it is another program's, another version's or corrupt.
    """
    path = storage_path(folder)
    check_database(path, "Optuna", frozenset({"studies", "version_info"}))
    create_database(path, lambda new: RDBStorage(sqlite_url(new)).engine.dispose())
    try:
        return RDBStorage(sqlite_url(path), engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}})
    except RuntimeError as error:
        # Optuna's way to say that the tables are those of another version.
        raise MachineError(f"{path} cannot be used, and has been left as it is: {error}") from None


@contextlib.contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Turn a failure of the store inside the body into a MachineError of one line, StoreAway if it is locked."""
    try:
        yield
    except STORAGE_FAILURES as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        kind = StoreAway if "database is locked" in cause else MachineError
        message = f"the study's store {storage_path(folder)} failed: {cause}; {RECORDS_SAFE}"
        raise kind(message) from None


@contextlib.contextmanager
def only_process(folder: Path, study: str) -> Iterator[None]:
    """Hold the lock of a study while the body runs: one process at a time sweeps or confirms it.

    If optuna.db is a link, hold the lock beside the file that it leads to as well: other folders may have that file
    too. Raises ConfigError, naming the process that holds it, if another one does, MachineError if the folder cannot be
    written.
    """
    with contextlib.ExitStack() as held:
        for each in sorted({folder.resolve(), storage_path(folder).resolve().parent}):
            holder = held.enter_context(lock_file(_lock_path(each, study)))
            if holder is not None:
                raise ConfigError(
                    f"study.name={study}: {holder} is at work on this study; wait for it, or end it (digitcnn stop "
                    f"study={study}) and give it more workers.count"
                )
        asked = stop_file(folder, study)
        held.callback(asked.unlink, missing_ok=True)
        # It was meant for an earlier process.
        asked.unlink(missing_ok=True)
        yield


def owner(folder: Path, study: str) -> str | None:
    """Return the process that is at work on a study, in words, if it is another one than this."""
    return holder_of(_lock_path(storage_path(folder).resolve().parent, study))


def stop_file(folder: Path, study: str) -> Path:
    """Return the file that asks the process at work on a study, wherever it runs, to end with its present epochs."""
    return _lock_path(storage_path(folder).resolve().parent, study).with_suffix(".stop")


def _lock_path(folder: Path, study: str) -> Path:
    return folder / "locks" / f"{study}.lock"
