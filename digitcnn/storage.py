"""Where studies are stored: the address, the connection to it, and what its failures mean."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import optuna
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from digitcnn.environment import without_credentials
from digitcnn.errors import ConfigError, MachineError

_SQLITE = "sqlite:///"
# How long a write waits for another process that holds the SQLite file.
_LOCK_SECONDS = 60


def sqlite_url(path: Path) -> str:
    """The address of the embedded store in a file."""
    return f"{_SQLITE}{path}"


def is_missing(url: str) -> bool:
    """Whether this is an embedded store whose file is not there."""
    return url.startswith(_SQLITE) and not Path(url.removeprefix(_SQLITE)).exists()


def connect(url: str) -> optuna.storages.RDBStorage:
    """Opens a store, and creates an embedded one that is missing."""
    arguments = {"connect_args": {"timeout": _LOCK_SECONDS}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    return optuna.storages.RDBStorage(url, engine_kwargs=arguments)


@contextlib.contextmanager
def errors(url: str) -> Iterator[None]:
    """Turns a failure of the study's store inside the body into a MachineError of one line."""
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        cause = without_credentials(str(error.__cause__ or error)).splitlines()[0]
        place = without_credentials(url)
        raise MachineError(f"the study's store {place} failed: {cause}; what had been recorded is safe") from None
    except ImportError as error:
        raise ConfigError(f"study.storage: needs a database driver: {str(error).splitlines()[0]}") from None
