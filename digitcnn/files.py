"""Files that are written whole or not at all: reports, tables, pictures and manifests."""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, unquote

from digitcnn.errors import MachineError


def write_atomically(path: Path, content: str | bytes, safe: str) -> None:
    """Writes a file beside its place and moves it there; its folder is made if it is missing.

    Whoever reads it, whenever the disk is full or the machine stops: it is the old file or the new one. A link of that
    name is replaced, not written through. Raises MachineError, which ends with what is `safe`.
    """
    # Several processes may share the folder.
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.unlink(missing_ok=True)
        try:
            with beside.open("xb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            # There is one only if something failed.
            with contextlib.suppress(OSError):
                beside.unlink()
    except OSError as error:
        raise MachineError(f"{path} cannot be written: {error.strerror}; {safe}") from None


# How long a command waits for another process that holds a file.
LOCK_SECONDS = 60


def sqlite_url(path: Path) -> str:
    """The address of an embedded store in a file."""
    # SQLAlchemy takes %41 for a letter and what follows a question mark for options. MLflow creates the folder that
    # the address names as it stands: with its slashes quoted too it names none.
    return f"sqlite:///{quote(str(path), safe='') if set('%?') & set(str(path)) else path}"


def sqlite_path(url: str) -> Path:
    """The file that an embedded store's address names."""
    return Path(unquote(url.removeprefix("sqlite:///")))


@functools.cache
def check_database(path: Path, program: str, tables: frozenset[str], version: tuple[str, str] | None = None) -> None:
    """Raises MachineError, with the file untouched, if it is there and is not the program's database.

    `tables` are some that it must have; `version` is a query for its schema's version and what that must be. The
    libraries would create their tables in any database they are pointed at. Reads the whole file, once in a process.
    """
    if not path.exists() or path.stat().st_size == 0:
        return
    remedy = "it has been left as it is; move it away, or give another tracking.root"
    try:
        with connect_database(path) as connection:
            found = {str(name) for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if found and not tables <= found:
                raise MachineError(f"{path} is another program's database, not {program}'s; {remedy}")
            damage = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if damage != "ok":
                raise sqlite3.DatabaseError(damage)
            if found and version is not None:
                (recorded,) = connection.execute(version[0]).fetchone() or ("none",)
                if str(recorded) != version[1]:
                    raise MachineError(
                        f"{path} was made by another version of {program} (schema {recorded}, not {version[1]}); "
                        "it has been left as it is; use that version, or keep a copy and run: "
                        f"{program.lower()} db upgrade '{sqlite_url(path)}'"
                    )
    except sqlite3.OperationalError as error:
        raise MachineError(f"{path} cannot be used: {error}; what had been recorded is safe") from None
    except sqlite3.DatabaseError as error:
        cause = " ".join(str(error).split())
        raise MachineError(f"{path} is torn, or no database at all ({cause}); {remedy}") from None


def create_database(path: Path, tables: Callable[[Path], None]) -> None:
    """Creates a database that is missing: whole, by a function that makes its tables in a file, or not at all.

    A process that is killed in between leaves a file of another name, and not half a database. Raises MachineError if
    the folder cannot be written.
    """
    if path.exists():
        return
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            new = Path(folder) / path.name
            tables(new)
            # Unlike a renaming, a link never takes the place of the file of a process that was faster.
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(new)
    except OSError as error:
        raise MachineError(f"{path} cannot be created: {error.strerror or error}") from None


@contextlib.contextmanager
def connect_database(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a file that is there, in transactions that the caller begins. Never creates the file."""
    address = f"file:{quote(str(path.absolute()))}?mode=rw"
    with contextlib.closing(
        sqlite3.connect(address, uri=True, timeout=LOCK_SECONDS, isolation_level=None)
    ) as connection:
        yield connection
