"""Files that are written whole or not at all: reports, tables, pictures and frozen runs."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from digitcnn.errors import MachineError


def write_whole(path: Path, content: str | bytes, safe: str) -> None:
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
