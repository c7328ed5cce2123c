"""A durable queue of operations that a store did not take: in order, a folder a run, until they are delivered.

OUTBOX/RUN_ID/journal.jsonl begins with a line that names the store; a line an operation follows, synchronised to the
disk. OUTBOX/RUN_ID/N/ holds the files of operation N. An operation may be delivered twice: writing it again must change
nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_JOURNAL = "journal.jsonl"


@dataclass(frozen=True)
class Operation:
    """One write to a run: its kind, its content as JSON, and a folder of its files."""

    kind: str
    content: dict[str, Any]
    files: Path | None = None


def has_pending(outbox: Path, run_id: str) -> bool:
    """Return True if operations of a run are queued: later ones must follow them."""
    with contextlib.suppress(FileNotFoundError):
        return (outbox / run_id / _JOURNAL).stat().st_size > 0
    return False


def pending_runs(outbox: Path, store: str) -> list[str]:
    """Return the runs with operations for a store, those that have waited longest first."""
    found = []
    for journal in outbox.glob(f"*/{_JOURNAL}"):
        with contextlib.suppress(FileNotFoundError), journal.open() as file:
            line = file.readline()
            # A line that was being written when the machine stopped names no store.
            if line.endswith("\n") and json.loads(line).get("store") == store:
                found.append((journal.stat().st_ctime, journal.parent.name))
    return [name for _, name in sorted(found)]


def enqueue(outbox: Path, store: str, run_id: str, operation: Operation) -> None:
    """Append an operation to a run's: in full, even if the machine stops, or not at all."""
    with _locked(outbox / run_id) as folder:
        lines = _lines(folder / _JOURNAL)
        number = max(len(lines), 1)
        if operation.files is not None:
            # Files of an interrupted attempt belong to no operation.
            shutil.rmtree(folder / str(number), ignore_errors=True)
            shutil.copytree(operation.files, folder / str(number))
        written = {"kind": operation.kind, "content": operation.content, "files": operation.files is not None}
        added = [json.dumps(line) + "\n" for line in ([] if lines else [{"store": store}]) + [written]]
        _append(folder / _JOURNAL, "".join(lines), "".join(added))


def _append(journal: Path, before: str, added: str) -> None:
    """Write after the complete lines of a journal; remove a line that was, or now is, cut off."""
    with journal.open("a+b") as file:
        file.truncate(len(before.encode()))
        try:
            file.write(added.encode())
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.truncate(journal, len(before.encode()))
            raise


def _lines(journal: Path) -> list[str]:
    """Return the complete lines of a journal, without one that was being written when the machine stopped."""
    if not journal.exists():
        return []
    return [line for line in journal.read_text().splitlines(keepends=True) if line.endswith("\n")]


def flush(outbox: Path, run_id: str, write: Callable[[Operation], None]) -> int:
    """Write all operations of a run, in order, and remove them; return their number.

    Raises as `write` does and then keeps them all: the next call begins with the first again.
    """
    with _locked(outbox / run_id) as folder:
        lines = _lines(folder / _JOURNAL)
        for number, line in enumerate(lines[1:], start=1):
            kept = json.loads(line)
            write(Operation(kept["kind"], kept["content"], folder / str(number) if kept["files"] else None))
        # The journal goes first: files without it belong to no operation.
        (folder / _JOURNAL).unlink(missing_ok=True)
        shutil.rmtree(folder)
        return max(len(lines) - 1, 0)


def quarantine(outbox: Path, run_id: str) -> Path:
    """Move a run's operations out of the queue, for a person to look at; return their folder."""
    aside = outbox / "refused" / run_id
    with _locked(outbox / run_id) as folder:
        aside.parent.mkdir(exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        return folder.rename(aside)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[Path]:
    """Lock a run's folder against other threads and processes; create it."""
    while True:
        # The holder of the lock may remove the folder at any moment before it is locked here.
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is(descriptor, folder):
                yield folder
                return
        finally:
            os.close(descriptor)


def _is(descriptor: int, folder: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(folder.stat(), os.fstat(descriptor))
    return False
