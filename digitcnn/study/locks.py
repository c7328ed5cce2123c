"""The lock of a study: one process at a time works on it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from digitcnn.errors import ConfigError, MachineError


@contextlib.contextmanager
def only_one(folder: Path, name: str) -> Iterator[None]:
    """Holds the study's lock: SQLite is for one writing process.

    The system releases it when the process ends, however that is; the file that is left is no obstacle. Raises
    ConfigError, naming who holds it, if another process does.
    """
    try:
        locks = folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        # A link of that name could have any file emptied.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        file = os.fdopen(os.open(locks / f"{name}.lock", flags, 0o644), "r+")
    except OSError as error:
        raise MachineError(f"the records folder {folder} cannot be used: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = file.read().strip() or "another process"
            raise ConfigError(
                f"study.name={name}: {holder} is at work on this study; wait for it, or end it and give it more "
                "study.workers"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')},")
        file.flush()
        yield
        file.truncate(0)
