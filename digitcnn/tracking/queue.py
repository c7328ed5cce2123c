"""What a store did not take: records kept in files, in order, a folder per run, until they are delivered.

OUTBOX/RUN_ID/journal.jsonl begins with a line that names the store; a line per record follows, written through to the
disk. OUTBOX/RUN_ID/N/ holds the files of record N. A record may be delivered twice, so writing one again must change
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
    """One write to a run: its kind, its content as JSON has it, and a folder of files if it has any."""

    kind: str
    content: dict[str, Any]
    files: Path | None = None


def has_pending(outbox: Path, run_id: str) -> bool:
    """Whether records of a run are kept: later ones must queue behind them."""
    with contextlib.suppress(FileNotFoundError):
        return (outbox / run_id / _JOURNAL).stat().st_size > 0
    return False


def pending_runs(outbox: Path, store: str) -> list[str]:
    """The runs of which records are kept for a store, those that have waited longest first."""
    found = []
    for journal in outbox.glob(f"*/{_JOURNAL}"):
        with contextlib.suppress(FileNotFoundError), journal.open() as file:
            line = file.readline()
            # One that was being written when the machine stopped names no store.
            if line.endswith("\n") and json.loads(line).get("store") == store:
                found.append((journal.stat().st_ctime, journal.parent.name))
    return [name for _, name in sorted(found)]


def enqueue(outbox: Path, store: str, run_id: str, record: Operation) -> None:
    """Adds a record to what is kept for a run. It is there in full, even if the machine stops, or not at all."""
    with _locked(outbox / run_id) as folder:
        lines = _lines(folder / _JOURNAL)
        number = max(len(lines), 1)
        if record.files is not None:
            # What an interrupted attempt left there belongs to no record.
            shutil.rmtree(folder / str(number), ignore_errors=True)
            shutil.copytree(record.files, folder / str(number))
        written = {"kind": record.kind, "content": record.content, "files": record.files is not None}
        added = [json.dumps(line) + "\n" for line in ([] if lines else [{"store": store}]) + [written]]
        _append(folder / _JOURNAL, "".join(lines), "".join(added))


def _append(journal: Path, before: str, added: str) -> None:
    """Writes behind what is whole in a journal; a line that was cut off, or now is, does not stay."""
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
    """The whole lines of a journal: one that was being written when the machine stopped is not counted."""
    if not journal.exists():
        return []
    return [line for line in journal.read_text().splitlines(keepends=True) if line.endswith("\n")]


def flush(outbox: Path, run_id: str, write: Callable[[Operation], None]) -> int:
    """Writes all records of a run, in order, then forgets them; returns how many.

    Raises what `write` raises, and keeps them all: the next delivery begins from the first again.
    """
    with _locked(outbox / run_id) as folder:
        lines = _lines(folder / _JOURNAL)
        for number, line in enumerate(lines[1:], start=1):
            kept = json.loads(line)
            write(Operation(kept["kind"], kept["content"], folder / str(number) if kept["files"] else None))
        # The journal goes first: files without it are no record.
        (folder / _JOURNAL).unlink(missing_ok=True)
        shutil.rmtree(folder)
        return max(len(lines) - 1, 0)


def quarantine(outbox: Path, run_id: str) -> Path:
    """Takes a run out of what is delivered, for a person to look at, and returns where its records are."""
    aside = outbox / "refused" / run_id
    with _locked(outbox / run_id) as folder:
        aside.parent.mkdir(exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        return folder.rename(aside)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[Path]:
    """Holds a run's folder against other threads and processes; creates it."""
    while True:
        # Whoever holds it may deliver all and remove the folder at any moment before it is held here.
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
