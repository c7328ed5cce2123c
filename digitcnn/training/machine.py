"""Machine: the cores and the memory that this process may use, the memory that it holds."""

import contextlib
import mmap
import os
import resource
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

from digitcnn.errors import MachineError
from digitcnn.formatting import format_count

_ROOT = Path("/")
_MB = 2**20
# What a process that trains holds at its peak (MB). Two workers of the default study, with batches of 250, one thread
# and TensorFlow 2.21 on an Intel Xeon with AMX, held 1,094 and 1,057; of these 611 and 574 were their own memory, the
# rest TensorFlow's files.
TRAINING_MB = 1100
# What such a process takes beside Python's own: address space (MB), threads for each that computes, and other threads.
# Measured with the default network: 2,000 to 2,150 MB, 3 and up to 4.
_ADDRESS_SPACE_MB, _THREADS_EACH, _OTHER_THREADS = 2200, 3, 6
# What a packaged model has beside its weights, generously: 0.1 MB, measured.
_PACKAGE_MB = 1


def usable_cores(root: Path = _ROOT) -> tuple[int, ...]:
    """Return the numbers of the cores that this process may keep busy, at least one.

    They are those of its affinity, but no more than the CPU quotas of its cgroup and of that one's parents pay for.
    `root` is the folder that /proc and /sys/fs/cgroup are read in.
    """
    quota = min((cores for folder in _cgroups(root, "cpu") if (cores := _quota(folder)) is not None), default=None)
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return tuple(allowed if quota is None else allowed[: max(int(quota), 1)])


def available_cores() -> int:
    """Return the number of cores that this process may keep busy."""
    return len(usable_cores())


def usable_memory_mb(root: Path = _ROOT) -> float:
    """Return the memory (MB) that this process and its children can still take without swapping or being killed.

    That is the machine's, but no more than the limits of its cgroup and of that one's parents leave; what they hold of
    files that are not in use counts as free.
    """
    left = [_memory_left(folder) for folder in _cgroups(root, "memory")]
    available = _table(root / "proc/meminfo").get("MemAvailable", psutil.virtual_memory().available / 1024) / 1024
    return min([available, *(max(mb, 0.0) for mb in left if mb is not None)])


def room_for_trainings(root: Path = _ROOT) -> tuple[int, str]:
    """Return the number of processes that this machine can train in side by side, at least one, and what limits it."""
    cores, memory = len(usable_cores(root)), usable_memory_mb(root)
    if cores * TRAINING_MB <= memory:
        return cores, format_count(cores, "core")
    return max(int(memory / TRAINING_MB), 1), f"{memory:,.0f} MB free memory, {TRAINING_MB:,} MB a worker"


def check_limits(processes: int, threads: int) -> None:
    """Raise MachineError unless so many processes can train here, each with that many threads that compute.

    TensorFlow would end its process with its stack. What limits there are, is tried: a shell's and a cgroup's.
    """
    number, ended = processes * (_THREADS_EACH * threads + _OTHER_THREADS), threading.Event()
    try:
        for _ in range(number):
            threading.Thread(target=ended.wait, daemon=True).start()
    except RuntimeError:
        raise MachineError(
            f"cannot start the {number} threads that training takes: ulimit -u, or a cgroup's pids.max, allows fewer; "
            "take fewer with workers.count or training.threads"
        ) from None
    finally:
        ended.set()
    try:
        mmap.mmap(-1, _ADDRESS_SPACE_MB * _MB, flags=mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)).close()
    except OSError:
        raise MachineError(
            f"cannot have the {_ADDRESS_SPACE_MB:,} MB of address space that training takes: ulimit -v allows less"
        ) from None


def check_temporary_folder(parameters: int) -> None:
    """Raise MachineError unless a network of so many parameters can be packaged in the folder of temporary files."""
    folder, needed = tempfile.gettempdir(), 4 * parameters / _MB + _PACKAGE_MB
    free = shutil.disk_usage(folder).free / _MB
    if free < needed:
        raise MachineError(
            f"{folder} has {free:.2f} MB left, and the trained model is packaged there, which takes {needed:.0f} MB; "
            "set TMPDIR to another folder"
        )


def oom_kills(root: Path = _ROOT) -> int:
    """Return how many processes the system has killed for want of memory, in this process's cgroup if it counts them.

    The number grows from the machine's start, or the cgroup's: compare it with an earlier one.
    """
    for folder in _cgroups(root, "memory"):
        for name in ("memory.events", "memory.oom_control"):
            counted = _table(folder / name).get("oom_kill")
            if counted is not None:
                return counted
    return _table(root / "proc/vmstat").get("oom_kill", 0)


def resident_memory_mb() -> float:
    """Return the resident memory (MB) that this process holds now."""
    return psutil.Process().memory_info().rss / _MB


def reset_peak_memory() -> None:
    """Begin a new high-water mark, where the system can: a warm worker's earlier trials are not this run's."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> float:
    """Return the most resident memory (MB) that this process has held since the mark was reset, or ever."""
    ever = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _table(Path("/proc/self/status")).get("VmHWM", ever) / 1024


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's cgroup with a controller and of its parents, of version 1 or 2.

    A container may see its own part of the tree alone; a cgroup that is not below what is mounted is the mounted one.
    """
    with contextlib.suppress(OSError, ValueError):
        mounts = [_mount(line) for line in (root / "proc/self/mountinfo").read_text().splitlines()]
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            for kind, options, part, mounted in mounts:
                if kind != ("cgroup" if controllers else "cgroup2") or (controllers and controller not in options):
                    continue
                cgroup = PurePosixPath(path)
                inside = cgroup.is_relative_to(part) and ".." not in cgroup.parts
                below = cgroup.relative_to(part) if inside else PurePosixPath()
                yield from (root / mounted.lstrip("/") / each for each in (below, *below.parents))


def _mount(line: str) -> tuple[str, list[str], str, str]:
    """Return the kind, the options, the mounted part and the place of a line of /proc/self/mountinfo."""
    before, _, after = line.partition(" - ")
    fields, (kind, _, options) = before.split(" "), after.split(" ", 2)
    # Spaces, tabs, line ends and backslashes are written as octal numbers there.
    part, place = (text.encode().decode("unicode_escape").encode("latin-1").decode() for text in fields[3:5])
    return kind, options.split(","), part, place


def _quota(cgroup: Path) -> float | None:
    """Return the cores whose time a cgroup may use; None without a limit."""
    with contextlib.suppress(OSError, ValueError):
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota, period = ((cgroup / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None
    return None


def _memory_left(cgroup: Path) -> float | None:
    """Return the memory (MB) that a cgroup's limit leaves; None without a limit."""
    second = (cgroup / "memory.max").exists()
    names = ("memory.max", "memory.current") if second else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    # Version 1 counts those of a cgroup's children apart.
    inactive = _table(cgroup / "memory.stat").get("inactive_file" if second else "total_inactive_file", 0)
    with contextlib.suppress(OSError, ValueError):
        limit, used = (int((cgroup / name).read_text()) for name in names)
        return (limit - used + inactive) / _MB
    return None


def _table(path: Path) -> dict[str, int]:
    """Return the numbers of a file with a name and a number a line; empty if there is no such file."""
    try:
        words = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {each[0].rstrip(":"): int(each[1]) for each in words if len(each) > 1 and each[1].isdigit()}
