"""Standard output and error of a process: their reader may go at any time, and the work goes on.

A pipe is closed (`| head -2`, `less` and q), a terminal dies, a disk is full, or the streams were closed from the start
(`>&-`): from then on what is printed is discarded.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import select
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from digitcnn.formatting import format_duration, printable

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# How often a start that takes long is said to go on (s).
START_SECONDS = 20.0
# The reader has gone, and wants no more: nothing is lost.
_GONE = (errno.EPIPE, errno.EIO)


class _Stream(io.FileIO):
    """A file descriptor to print to, which is led to nowhere at its first error."""

    lost: OSError | None = None

    def write(self, content: ReadableBuffer, /) -> int:
        """Write bytes, or discard them; return their number."""
        try:
            # None: the descriptor was set not to wait, by another program that shares it, and its reader is behind.
            while (written := super().write(content)) is None:
                select.select([], [self.fileno()], [])
            return written
        except OSError as error:
            self.lost = self.lost or error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return memoryview(content).nbytes


def survive_readers() -> None:
    """Let this process outlive the readers of its standard output and error.

    Lines are written at once, and so stand in a common file in the order in which they were printed. Characters that
    the encoding has not are written as \\x... A stream that was replaced, as in a notebook or a test, stays as it is.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Else the next file that is opened, a database perhaps, would be printed to.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name, number in (("stdout", 1), ("stderr", 2)):
        before = getattr(sys, name)
        if before is not getattr(sys, f"__{name}__"):
            continue
        encoding, errors = ("utf-8", "strict") if before is None else (before.encoding, before.errors)
        raw = _Stream(number, "w", closefd=False)
        raw.name = f"<{name}>"
        errors = "backslashreplace" if errors == "strict" else errors
        setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=True))


def lost_output() -> OSError | None:
    """Return why standard output could not be written though somebody wants it, as on a full disk."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    lost = raw.lost if isinstance(raw, _Stream) else None
    return None if lost is None or lost.errno in _GONE else lost


class _MessageHandler(logging.Handler):
    """A line for every message: on standard error for an error, on standard output for all else.

    A live picture redirects both, and shows the line above itself.
    """

    def emit(self, record: logging.LogRecord) -> None:
        text = printable(record.getMessage())
        if record.levelno >= logging.ERROR:
            print(f"error: {text}", file=sys.stderr, flush=True)
        else:
            print(text, flush=True)


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Discard what native code writes to standard error while the body lasts; exceptions still reach the caller."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextlib.contextmanager
def messages(package: str = "digitcnn") -> Iterator[None]:
    """Print what a package logs while the body lasts."""
    logger, handler = logging.getLogger(package), _MessageHandler()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    # Hydra's own handler, at the root, would print each a second time.
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = propagate
        logger.setLevel(level)
        logger.removeHandler(handler)


class StartLines:
    """Says every 20 s that a start goes on, "starting 2 workers (TensorFlow): 20 s", until it is ended."""

    def __init__(self, what: str, *, on_error_stream: bool = False) -> None:
        self._text, self._on_error_stream, self._began = f"starting {what}", on_error_stream, time.monotonic()
        self._ended = threading.Event()
        threading.Thread(target=self._say, daemon=True).start()

    def _say(self) -> None:
        while not self._ended.wait(START_SECONDS):
            file = sys.stderr if self._on_error_stream else sys.stdout
            print(f"{self._text}: {format_duration(time.monotonic() - self._began)}", file=file, flush=True)

    def close(self) -> None:
        """Say no more."""
        self._ended.set()
