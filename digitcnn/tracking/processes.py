"""Who works on a run: a process by a name under which others know it, and whether it is still there."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import time
import zlib
from pathlib import Path

import psutil

_TIME = "%Y-%m-%d %H:%M:%S"
# A clock that is set, or another offset from UTC, moves the start of a process by as much.
_TOLERANCE_SECONDS = 2 * 3600.0


@functools.cache
def process_id() -> str:
    """Who works on a trial: machine, process and its start, so that a number that is given again is another one."""
    began = time.strftime(_TIME, time.localtime(psutil.Process().create_time()))
    return f"{_machine()}, process {os.getpid()} of {began}"


@functools.cache
def _machine() -> str:
    """The host's name and a number, since many machines and containers have one name: what tells process ids apart."""
    known = b""
    for path in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"):
        with contextlib.suppress(OSError):
            known = known or Path(path).read_bytes().strip()
    with contextlib.suppress(OSError):
        known += str(Path("/proc/self/ns/pid").readlink()).encode()
    return f"{socket.gethostname()}-{zlib.crc32(known):08x}"


def process_is_gone(host: str) -> bool:
    """Whether a process that `this_host` named was one of this machine and is there no more; if in doubt it is not."""
    machine, _, rest = host.rpartition(", process ")
    number, _, began = rest.partition(" of ")
    if machine != _machine():
        return False
    try:
        now = psutil.Process(int(number)).create_time()
        return abs(now - time.mktime(time.strptime(began, _TIME))) > _TOLERANCE_SECONDS
    except psutil.NoSuchProcess:
        return True
    except (ValueError, psutil.Error):
        return False
