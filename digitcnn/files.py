"""Files that are written whole or not at all, lock files, and the SQLite files of the local stores."""

import contextlib
import fcntl
import functools
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

from digitcnn.errors import RECORDS_SAFE, MachineError

# How long a command waits for another process that holds a file.
LOCK_SECONDS = 60


def write_atomically(path: Path, content: str | bytes, safe: str) -> None:
    """Write a file beside its place and move it there; create its folder if it is missing.

    Readers see the old file or the new one, also on a full disk or after a power cut. A link of that name is replaced,
    not followed. Raises MachineError, which ends with `safe`: what is not lost.
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
            # It is still there only if something failed.
            with contextlib.suppress(OSError):
                beside.unlink()
    except OSError as error:
        raise MachineError(f"{path} cannot be written: {error.strerror}; {safe}") from None


# Device and number of the lock files that this process holds.
_HELD: set[tuple[int, int]] = set()


@contextlib.contextmanager
def lock_file(path: Path) -> Iterator[str | None]:
    """Hold a lock file while the body runs and yield None; yield its holder, not waiting for it, if there is another.

    The system releases it when the process ends, in whatever way. Raises MachineError if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # O_NOFOLLOW: through a link of that name any file could be emptied.
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "r+")
    except OSError as error:
        raise MachineError(f"the records folder {path.parent.parent} cannot be used: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield file.read().strip() or "another process"
            return
        file.truncate(0)
        file.write(f"process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')},")
        file.flush()
        held = _identity(file.fileno())
        _HELD.add(held)
        try:
            yield None
        finally:
            _HELD.discard(held)
            file.truncate(0)


def other_holder(folder: Path) -> str | None:
    """Return the holder of a lock file in the folder, if one is held by another process than this."""
    return next(filter(None, map(holder_of, sorted(folder.glob("*.lock")))), None)


def holder_of(path: Path) -> str | None:
    """Return the holder of a lock file, if another process than this holds it. To read the file is enough."""
    with contextlib.suppress(OSError), os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW)) as file:
        if _identity(file.fileno()) in _HELD:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read().strip() or "another process"
    return None


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def size_of(folder: Path) -> int:
    """Return the bytes of the files in a folder and those below it; 0 if there is none."""
    # A command that is at work may remove some meanwhile.
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            size += path.lstat().st_size
    return size


def sqlite_url(path: Path) -> str:
    """Return the address of the local store in a file."""
    # SQLAlchemy decodes %41 as a letter and takes what follows a question mark for options; Optuna fills in {braces}.
    # MLflow creates the folder in the address without decoding it: with its slashes quoted too there is none.
    return f"sqlite:///{quote(str(path), safe='') if set('%?{}') & set(str(path)) else path}"


@functools.cache
def check_database(path: Path, program: str, tables: frozenset[str], version: tuple[str, str] | None = None) -> None:
    """Raise MachineError, with the file untouched, if it exists and is not the program's database.

    `tables` are some that it must have; `version` is a query for its schema's version and the version it must return.
    The libraries would create their tables in any database. Reads the whole file, once in a process.
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
        raise MachineError(f"{path} cannot be used: {error}; {RECORDS_SAFE}") from None
    except sqlite3.DatabaseError as error:
        cause = " ".join(str(error).split())
        raise MachineError(f"{path} is corrupt or truncated, or not a database ({cause}); {remedy}") from None


def create_database(path: Path, create_tables: Callable[[Path], None]) -> None:
    """Create a database, if it is missing, with a function that creates its tables in a file.

    A process that is killed meanwhile leaves a file of another name and no incomplete database. Raises MachineError if
    the folder cannot be written.
    """
    if path.exists():
        return
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            new = Path(folder) / path.name
            create_tables(new)
            # Unlike a renaming, a link never replaces the file of a process that was faster.
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(new)
    except OSError as error:
        raise MachineError(f"{path} cannot be created: {error.strerror or error}") from None


@contextlib.contextmanager
def connect_database(path: Path) -> Iterator[sqlite3.Connection]:
    """Connect to an existing file, in transactions that the caller begins. Never creates the file."""
    address = f"file:{quote(str(path.absolute()))}?mode=rw"
    with contextlib.closing(
        sqlite3.connect(address, uri=True, timeout=LOCK_SECONDS, isolation_level=None)
    ) as connection:
        yield connection
