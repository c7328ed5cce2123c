"""Durable queues of operations that a store did not take: one SQLite file a process, in order, until delivered.

OUTBOX/NAME.db belongs to the process that holds the lock of OUTBOX/NAME.lock. When it is gone, whoever delivers takes
it over. An operation may be delivered twice: writing it again must change nothing.
"""

import contextlib
import fcntl
import functools
import json
import logging
import os
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from digitcnn.errors import MachineError
from digitcnn.files import LOCK_SECONDS, lock_file

logger = logging.getLogger(__name__)

_TABLES = """
CREATE TABLE IF NOT EXISTS operations (
    id INTEGER PRIMARY KEY AUTOINCREMENT, store TEXT, run_id TEXT, kind TEXT, content TEXT, refused TEXT);
CREATE TABLE IF NOT EXISTS files (operation INTEGER, path TEXT, data BLOB);
"""
_WITHOUT_OPERATION = "DELETE FROM files WHERE operation NOT IN (SELECT id FROM operations)"

# Another thread must not write to a queue that is being removed.
_CONNECTING = threading.RLock()


@dataclass(frozen=True)
class Operation:
    """One write to a run: its kind, its content as JSON, and files by their relative paths."""

    kind: str
    content: dict[str, Any]
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Queued:
    """A queued operation as it is listed: `refused` says why a store did not take it, if it never will."""

    id: str
    store: str
    run_id: str
    kind: str
    size: int
    refused: str | None


@functools.cache
def _own_name(process: int) -> str:
    """Return the name of a process's queue: other machines may have the same folder and the same process number."""
    return f"{process}-{uuid.uuid4().hex[:12]}"


@functools.cache
def _own_lock(folder: Path, process: int) -> int:
    """Hold the lock of this process's queue until it ends; return the file's descriptor."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / f"{_own_name(process)}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


@contextlib.contextmanager
def _connect(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a queue in a transaction: all of the body or nothing, also if the machine stops."""
    with _CONNECTING, contextlib.closing(sqlite3.connect(path, timeout=LOCK_SECONDS)) as connection:
        connection.executescript(_TABLES)
        with connection:
            yield connection


def enqueue(outbox: Path, store: str, run_id: str, operation: Operation, refused: str | None = None) -> None:
    """Append an operation to this process's queue, or set it aside at once with the reason of a refusal."""
    try:
        _own_lock(outbox, os.getpid())
        with _connect(outbox / f"{_own_name(os.getpid())}.db") as connection:
            content = json.dumps(operation.content)
            row = connection.execute(
                "INSERT INTO operations (store, run_id, kind, content, refused) VALUES (?, ?, ?, ?, ?)",
                (store, run_id, operation.kind, content, refused),
            )
            files = [(row.lastrowid, path, data) for path, data in operation.files.items()]
            connection.executemany("INSERT INTO files VALUES (?, ?, ?)", files)
    except (sqlite3.Error, OSError) as error:
        raise MachineError(f"the queue of records in {outbox} cannot be written: {error}") from None


def _queues(outbox: Path) -> list[Path]:
    """Return the files of all queues, the oldest first; set one that is corrupt aside."""
    found = []
    for path in outbox.glob("*.db"):
        with contextlib.suppress(FileNotFoundError):
            changed = path.stat().st_ctime
            try:
                with _connect(path) as connection:
                    connection.execute("SELECT 1 FROM operations JOIN files LIMIT 1").fetchone()
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                aside = path.rename(path.with_suffix(".corrupt"))
                logger.warning(f"a queue of records is corrupt or truncated ({error}): it is set aside as {aside}")
                continue
            found.append((changed, path))
    return [path for _, path in sorted(found)]


@contextlib.contextmanager
def _taken_over(path: Path) -> Iterator[bool]:
    """Hold the lock of a queue while the body lasts; yield False if another process that is at work has it."""
    if path.stem == _own_name(os.getpid()):
        yield True
    else:
        with lock_file(path.with_suffix(".lock")) as holder:
            yield holder is None and path.exists()


def listed(outbox: Path) -> list[Queued]:
    """Return everything that is queued or set aside, in the order of its queues."""
    found = []
    for path in _queues(outbox):
        with _connect(path) as connection:
            rows = connection.execute(
                "SELECT id, store, run_id, kind, length(content) + coalesce((SELECT sum(length(data)) FROM files"
                " WHERE operation = operations.id), 0), refused FROM operations ORDER BY id"
            ).fetchall()
        found += [Queued(f"{path.stem}:{number}", *values) for number, *values in rows]
    return found


def pending_runs(outbox: Path, store: str) -> list[str]:
    """Return the runs with operations for a store that are still to be delivered, in their order."""
    waiting = (each for each in listed(outbox) if each.store.rstrip("/") == store and not each.refused)
    return list(dict.fromkeys(each.run_id for each in waiting))


def has_pending(outbox: Path, run_id: str) -> bool:
    """Return True if operations of a run wait in this process's queue: later ones must follow them."""
    path = outbox / f"{_own_name(os.getpid())}.db"
    if not path.exists():
        return False
    with _connect(path) as connection:
        query = "SELECT 1 FROM operations WHERE run_id = ? AND refused IS NULL LIMIT 1"
        return connection.execute(query, (run_id,)).fetchone() is not None


def flush(
    outbox: Path,
    store: str,
    write: Callable[[str, Operation], str | None],
    is_unreachable: Callable[[Exception], bool],
    run_id: str | None = None,
) -> dict[str, int]:
    """Write what is queued for a store, of one run or of all; return the number of operations by run.

    `write` returns the reason of a refusal, with which the operation is set aside, or None if it was taken. Where it
    raises, the rest of that run stays queued, and the next run is tried unless the store is unreachable; the first
    error is raised at the end. Only queues of this process and of those that are gone are touched.
    """
    delivered: dict[str, int] = {}
    errors: dict[str, Exception] = {}
    for path in _queues(outbox):
        with _taken_over(path) as free:
            while free and (found := _first(path, store, run_id, errors)) is not None:
                number, of_run, operation = found
                try:
                    refused = "cannot be read" if operation is None else write(of_run, operation)
                except Exception as error:
                    if is_unreachable(error):
                        raise
                    errors[of_run] = error
                    continue
                with _connect(path) as connection:
                    # What was refused stays, with the reason.
                    connection.execute("UPDATE operations SET refused = ? WHERE id = ?", (refused, number))
                    connection.execute("DELETE FROM operations WHERE id = ? AND refused IS NULL", (number,))
                    connection.execute(_WITHOUT_OPERATION)
                delivered[of_run] = delivered.get(of_run, 0) + (refused is None)
            if free:
                _remove_if_empty(path)
    if errors:
        raise next(iter(errors.values()))
    return delivered


def _first(
    path: Path, store: str, run_id: str | None, failed: dict[str, Exception]
) -> tuple[int, str, Operation | None] | None:
    """Return the first operation that is to be delivered, None if its content cannot be parsed; its id and its run."""
    without = ", ".join("?" * len(failed))
    query = (
        # Some were queued for an address as it was typed, with a slash at its end.
        "SELECT id, run_id, kind, content FROM operations WHERE rtrim(store, '/') = ? AND refused IS NULL"
        f" AND run_id NOT IN ({without}) AND coalesce(?, run_id) = run_id ORDER BY id LIMIT 1"
    )
    with _connect(path) as connection:
        found = connection.execute(query, (store, *failed, run_id)).fetchone()
        if found is None:
            return None
        number, of_run, kind, content = found
        files = connection.execute("SELECT path, data FROM files WHERE operation = ?", (number,)).fetchall()
    try:
        return number, of_run, Operation(kind, json.loads(content), dict(files))
    except ValueError:
        return number, of_run, None


def change(outbox: Path, wanted: str, retry: bool) -> int:
    """Queue refused operations again, or with `retry=False` discard them; return their number.

    `wanted` is an id of `listed` or the id of a run; empty: all that were refused.
    """
    changed = 0
    for path in _queues(outbox):
        with _connect(path) as connection:
            name, _, number = wanted.rpartition(":")
            condition = "refused IS NOT NULL AND (? = '' OR run_id = ? OR (? = ? AND id = ?))"
            values = (wanted, wanted, name, path.stem, number)
            action = "UPDATE operations SET refused = NULL" if retry else "DELETE FROM operations"
            changed += connection.execute(f"{action} WHERE {condition}", values).rowcount
            connection.execute(_WITHOUT_OPERATION)
        with _taken_over(path) as free:
            if free:
                _remove_if_empty(path)
    return changed


def _remove_if_empty(path: Path) -> None:
    """Remove a queue's files if nothing is in it; its owner makes new ones when it needs them."""
    with _CONNECTING:
        with _connect(path) as connection:
            if connection.execute("SELECT 1 FROM operations LIMIT 1").fetchone() is not None:
                return
        path.unlink(missing_ok=True)
    if path.stem != _own_name(os.getpid()):
        path.with_suffix(".lock").unlink(missing_ok=True)
