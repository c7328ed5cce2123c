"""The messages that the library logs, as texts."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator


class _Listener(logging.Handler):
    def __init__(self, hear: Callable[[str], None]) -> None:
        super().__init__()
        self.hear, self.process = hear, os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        # A real worker is spawned and shows nothing; those that tests fork inherit this listener.
        if os.getpid() == self.process:
            self.hear(record.getMessage())


def hear_messages(hear: Callable[[str], None]) -> Callable[[], None]:
    """Give every message of the library and of the experiments to a function; return what ends that."""
    listener, loggers = _Listener(hear), [logging.getLogger(name) for name in ("digitcnn", "experiments")]
    for logger in loggers:
        logger.addHandler(listener)
        logger.setLevel(logging.INFO)

    def end() -> None:
        for logger in loggers:
            logger.removeHandler(listener)
            logger.setLevel(logging.NOTSET)

    return end


@contextlib.contextmanager
def logged_messages() -> Iterator[list[str]]:
    """Collect the messages while the body lasts."""
    texts: list[str] = []
    end = hear_messages(texts.append)
    try:
        yield texts
    finally:
        end()
