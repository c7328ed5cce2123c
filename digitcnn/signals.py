"""Ctrl-C, SIGTERM and SIGHUP (a closed terminal): the first ends work in order, the next at once."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end_process(number: signal.Signals) -> NoReturn:
    """End the process as such a signal does, with every `finally` on the way: exit status 128 and the number."""
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


@contextlib.contextmanager
def capture_signals(first: Callable[[], None], again: Callable[[], None]) -> Iterator[list[signal.Signals]]:
    """Collect the ending signals that arrive inside the body instead of ending with them; yield their list.

    The first one calls `first`, in a thread: the handler may have interrupted anything, a print included. The second
    calls `again` where the body is, and a third ends the body there.
    """
    received: list[signal.Signals] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))
        if len(received) == 1:
            threading.Thread(target=first, daemon=True).start()
        elif len(received) == 2:
            again()
        else:
            end_process(received[0])

    # Ignored from the start (nohup) stays ignored.
    numbers = [number for number in ENDING if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_in_order() -> None:
    """Make SIGTERM and SIGHUP end this process with every `finally` on the way, as Ctrl-C does."""

    def handle(number: int, frame: FrameType | None) -> None:
        end_process(signal.Signals(number))

    signal.signal(signal.SIGTERM, handle)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, handle)
