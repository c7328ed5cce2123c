"""The embedded stores' SQLite files: their addresses, whether a file is what it should be, and records that were moved.

`python -m digitcnn.embedded FOLDER` brings a records folder up to date and prints its MLflow store's address.
"""

from __future__ import annotations

import contextlib
import functools
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from digitcnn.errors import MachineError

# How long a command waits for another process that holds a file.
LOCK_SECONDS = 60
# Where MLflow keeps the places of artifacts and models, all absolute: it knows no others.
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def sqlite_url(path: Path) -> str:
    """The address of an embedded store in a file."""
    # SQLAlchemy takes %41 for a letter and what follows a question mark for options. MLflow creates the folder that
    # the address names as it stands: with its slashes quoted too it names none.
    return f"sqlite:///{quote(str(path), safe='') if set('%?') & set(str(path)) else path}"


def sqlite_path(url: str) -> Path:
    """The file that an embedded store's address names."""
    return Path(unquote(url.removeprefix("sqlite:///")))


@functools.cache
def check(path: Path, program: str, tables: frozenset[str], version: tuple[str, str] | None = None) -> None:
    """Raises MachineError, with the file untouched, if it is there and is not the program's database.

    `tables` are some that it must have; `version` is a query for its schema's version and what that must be. The
    libraries would create their tables in any database they are pointed at. Reads the whole file, once in a process.
    """
    if not path.exists() or path.stat().st_size == 0:
        return
    remedy = "it has been left as it is; move it away, or give another tracking.root"
    try:
        with _connected(path) as connection:
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


def create(path: Path, tables: Callable[[Path], None]) -> None:
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
def _connected(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a file that is there, in transactions that the caller begins. Never creates the file."""
    address = f"file:{quote(str(path.absolute()))}?mode=rw"
    with contextlib.closing(
        sqlite3.connect(address, uri=True, timeout=LOCK_SECONDS, isolation_level=None)
    ) as connection:
        yield connection


def bring_up_to_date(folder: Path) -> str | None:
    """Makes an MLflow store name the artifacts in its own folder, and returns where they had been; None if there.

    A folder that was moved, renamed or copied still names its old place, since MLflow records absolute ones. The
    store of a copy names the copy's files from then on; the original is not touched. One transaction: all or nothing.
    """
    path = folder / "mlflow.db"
    if not path.exists() or path.stat().st_size == 0:
        return None
    here = folder.absolute().as_uri()
    with _connected(path) as connection:
        moved = [old for old in _recorded_folders(connection) if old != here and not _same(old, folder)]
        if not moved:
            return None
        connection.execute("BEGIN IMMEDIATE")
        for old in moved:
            for table, column in _PLACES:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                    (here, len(old) + 1, len(f"{old}/artifacts/"), f"{old}/artifacts/"),
                )
        connection.execute("COMMIT")
    return unquote(urlsplit(moved[0]).path)


def _recorded_folders(connection: sqlite3.Connection) -> list[str]:
    """The records folders, as addresses, that our experiments' artifacts are recorded to be in."""
    rows = connection.execute("SELECT name, artifact_location FROM experiments").fetchall()
    ours = [(str(place), f"/artifacts/{quote(str(name))}") for name, place in rows if str(place).startswith("file:///")]
    return list(dict.fromkeys(place.removesuffix(end) for place, end in ours if place.endswith(end)))


def _same(recorded: str, folder: Path) -> bool:
    """Whether a recorded place is this folder under another name, such as a link."""
    with contextlib.suppress(OSError):
        return Path(unquote(urlsplit(recorded).path)).samefile(folder)
    return False


if __name__ == "__main__":
    try:
        bring_up_to_date(Path(sys.argv[1]))
    except sqlite3.Error as error:
        sys.exit(f"error: {sys.argv[1]}/mlflow.db cannot be used: {error}")
    print(sqlite_url(Path(sys.argv[1]).absolute() / "mlflow.db"))
