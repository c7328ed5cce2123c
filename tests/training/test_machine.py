"""Cores and memory that a process may use: affinity, and the limits of cgroups, of both versions and of all parents."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from digitcnn import training
from digitcnn.errors import MachineError
from digitcnn.training.machine import oom_kills, room_for_trainings, usable_cores, usable_memory_mb

MB = 2**20
# Lines of /proc/self/mountinfo, as Linux writes them.
SECOND = "31 24 0:27 {part} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
FIRST_CPU = "33 25 0:29 {part} /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:11 - cgroup cgroup rw,cpu,cpuacct"
FIRST_MEMORY = "34 25 0:30 {part} /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory"
MEMINFO = "MemTotal: 33554432 kB\nMemFree: 1024 kB\nMemAvailable: 16777216 kB\n"


def _second(part: str = "/", path: str = "/a.slice/b.scope") -> dict[str, str]:
    """Return the files of a machine with cgroups of version 2, of which this process is in one."""
    return {"proc/self/mountinfo": SECOND.format(part=part), "proc/self/cgroup": f"0::{path}\n"}


def _first(part: str = "/", path: str = "/docker/1f") -> dict[str, str]:
    """Return the files of a machine with cgroups of version 1, of which this process is in one."""
    mounts = "\n".join([FIRST_CPU.format(part=part), FIRST_MEMORY.format(part=part)])
    return {"proc/self/mountinfo": mounts, "proc/self/cgroup": f"5:cpu,cpuacct:{path}\n4:memory:{path}\n0::/\n"}


def _written(root: Path, files: Mapping[str, str]) -> Path:
    """Write files below a folder, which stands for the root of a machine of 16 GB; return it."""
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def _limit(folder: str, quota: str, period: str = "100000") -> dict[str, str]:
    """Return the files of a CPU quota of version 1."""
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": f"{period}\n"}


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process run on eight cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4, 5, 6, 9}, raising=False)


V2 = "sys/fs/cgroup"
CPU, MEMORY = "sys/fs/cgroup/cpu,cpuacct", "sys/fs/cgroup/memory"
CORES: list[tuple[dict[str, str], tuple[int, ...]]] = [
    ({}, (0, 1, 2, 3, 4, 5, 6, 9)),
    (_second(), (0, 1, 2, 3, 4, 5, 6, 9)),
    (_second() | {f"{V2}/a.slice/b.scope/cpu.max": "max 100000\n"}, (0, 1, 2, 3, 4, 5, 6, 9)),
    (_second() | {f"{V2}/a.slice/b.scope/cpu.max": "300000 100000\n"}, (0, 1, 2)),
    (_second() | {f"{V2}/a.slice/b.scope/cpu.max": "290000 100000\n"}, (0, 1)),
    (_second() | {f"{V2}/a.slice/b.scope/cpu.max": "50000 100000\n"}, (0,)),
    (_second() | {f"{V2}/a.slice/b.scope/cpu.max": "1600000 100000\n"}, (0, 1, 2, 3, 4, 5, 6, 9)),
    # A parent's limit counts too.
    (
        _second()
        | {f"{V2}/a.slice/b.scope/cpu.max": "400000 100000\n", f"{V2}/a.slice/cpu.max": "200000 100000\n"}
        | {f"{V2}/cpu.max": "700000 100000\n"},
        (0, 1),
    ),
    # In a container: its own part is what is mounted.
    (_second(path="/") | {f"{V2}/cpu.max": "200000 100000\n"}, (0, 1)),
    (_second(path="/../other") | {f"{V2}/cpu.max": "200000 100000\n"}, (0, 1)),
    (_second(part="/a.slice") | {f"{V2}/b.scope/cpu.max": "200000 100000\n"}, (0, 1)),
    (_second(path="/with a:colon") | {f"{V2}/with a:colon/cpu.max": "200000 100000\n"}, (0, 1)),
    (_first() | _limit(f"{CPU}/docker/1f", "-1"), (0, 1, 2, 3, 4, 5, 6, 9)),
    (_first() | _limit(f"{CPU}/docker/1f", "100000", "50000"), (0, 1)),
    (_first() | _limit(f"{CPU}/docker/1f", "-1") | _limit(f"{CPU}/docker", "350000"), (0, 1, 2)),
    # Docker's usual view: the path is the machine's, the container's part is mounted.
    (_first(part="/docker/1f") | _limit(CPU, "100000"), (0,)),
    # Of no use: no numbers, no files.
    (_second() | {f"{V2}/a.slice/b.scope/cpu.max": "many few\n"}, (0, 1, 2, 3, 4, 5, 6, 9)),
    ({"proc/self/mountinfo": "?\n", "proc/self/cgroup": "?\n"}, (0, 1, 2, 3, 4, 5, 6, 9)),
]


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(("files", "cores"), CORES)
def test_usable_cores_are_those_of_affinity_and_quotas(
    files: dict[str, str], cores: tuple[int, ...], tmp_path: Path
) -> None:
    assert usable_cores(_written(tmp_path, files)) == cores


def _memory(folder: str, limit: str, used: int, inactive: int) -> dict[str, str]:
    """Return the files of a memory limit of version 2; sizes in MB."""
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{used * MB}\n",
        f"{folder}/memory.stat": f"anon 1\ninactive_file {inactive * MB}\nactive_file {7 * MB}\n",
    }


def _memory_first(folder: str, limit: int, used: int, inactive: int) -> dict[str, str]:
    """Return the files of a memory limit of version 1; sizes in MB."""
    return {
        f"{folder}/memory.limit_in_bytes": f"{limit * MB}\n",
        f"{folder}/memory.usage_in_bytes": f"{used * MB}\n",
        f"{folder}/memory.stat": f"inactive_file {MB}\ntotal_inactive_file {inactive * MB}\n",
    }


OWN = f"{V2}/a.slice/b.scope"
MEMORIES: list[tuple[dict[str, str], float]] = [
    ({}, 16_384),
    (_second() | _memory(OWN, "max", 5000, 10), 16_384),
    (_second() | _memory(OWN, str(3072 * MB), 1000, 200), 2272),
    (_second() | _memory(OWN, str(3072 * MB), 3000, 0) | _memory(f"{V2}/a.slice", str(9000 * MB), 9100, 20), 0),
    (_second() | _memory(OWN, "max", 1000, 0) | _memory(f"{V2}/a.slice", str(4000 * MB), 1500, 500), 3000),
    (_second() | _memory(OWN, str(99_999 * MB), 0, 0), 16_384),
    (_first() | _memory_first(f"{MEMORY}/docker/1f", 3072, 1000, 200), 2272),
    (_first(part="/docker/1f") | _memory_first(MEMORY, 2048, 1000, 0), 1048),
    (_first() | _memory_first(f"{MEMORY}/docker/1f", 2**43, 1000, 0), 16_384),
]


@pytest.mark.parametrize(("files", "left"), MEMORIES)
def test_usable_memory_is_what_machine_and_limits_leave(files: dict[str, str], left: float, tmp_path: Path) -> None:
    assert usable_memory_mb(_written(tmp_path, files)) == left


@pytest.mark.parametrize(
    ("files", "kills"),
    [
        ({}, 0),
        ({"proc/vmstat": "nr_free_pages 5\noom_kill 4\n"}, 4),
        (_second() | {"proc/vmstat": "oom_kill 4\n", f"{OWN}/memory.events": "low 0\noom 3\noom_kill 2\n"}, 2),
        (_second(path="/") | {f"{V2}/memory.events": "oom_kill 6\n"}, 6),
        (
            _first()
            | {"proc/vmstat": "oom_kill 4\n"}
            | {f"{MEMORY}/docker/1f/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"},
            1,
        ),
        # Older than Linux 4.13, which counts none there.
        (_first() | {"proc/vmstat": "oom_kill 4\n", f"{MEMORY}/memory.oom_control": "under_oom 0\n"}, 4),
    ],
)
def test_oom_kills_are_those_of_the_own_cgroup_before_the_machines(
    files: dict[str, str], kills: int, tmp_path: Path
) -> None:
    assert oom_kills(_written(tmp_path, files)) == kills


PRINT = "from digitcnn import training; print(training.usable_cores(), training.available_cores())"


@pytest.mark.skipif(shutil.which("taskset") is None, reason="needs taskset")
def test_usable_cores_follow_the_affinity_of_a_real_process() -> None:
    last = max(os.sched_getaffinity(0))
    command = ["taskset", "-c", str(last), sys.executable, "-c", PRINT]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"({last},) 1\n"


@pytest.fixture
def quota_of_one_core() -> Iterator[Path]:
    """A real cgroup whose processes have the time of one core and a half."""
    tree = Path("/sys/fs/cgroup")
    first = (tree / "cpu/cpu.cfs_quota_us").exists() or (tree / "cpu/cpu.shares").exists()
    folder = (tree / "cpu" if first else tree) / f"digitcnn-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("needs a place where cgroups can be made")
    try:
        try:
            if first:
                (folder / "cpu.cfs_period_us").write_text("100000")
                (folder / "cpu.cfs_quota_us").write_text("150000")
            else:
                (folder / "cpu.max").write_text("150000 100000")
        except OSError:
            pytest.skip("needs the cpu controller")
        yield folder
    finally:
        folder.rmdir()


@pytest.mark.skipif(training.available_cores() < 2, reason="needs two cores")
def test_usable_cores_follow_the_quota_of_a_real_cgroup(quota_of_one_core: Path) -> None:
    program = f"import os; open('{quota_of_one_core}/cgroup.procs', 'w').write(str(os.getpid())); {PRINT}"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout == f"({min(os.sched_getaffinity(0))},) 1\n"


def test_usable_memory_of_this_machine_is_no_more_than_it_has() -> None:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / MB
    assert 0 < usable_memory_mb() < physical


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(
    ("files", "room"),
    [
        ({}, (8, "8 cores")),
        (_second() | {f"{OWN}/cpu.max": "200000 100000\n"}, (2, "2 cores")),
        (_second() | _memory(OWN, str(4096 * MB), 1024, 0), (2, "3,072 MB free memory, 1,100 MB a worker")),
        (_second() | _memory(OWN, str(2000 * MB), 1000, 0), (1, "1,000 MB free memory, 1,100 MB a worker")),
        # docker run --cpus=1 --memory=3g
        (
            _second(path="/") | {f"{V2}/cpu.max": "100000 100000\n"} | _memory(V2, str(3072 * MB), 300, 0),
            (1, "1 core"),
        ),
    ],
)
def test_room_for_trainings_is_what_cores_and_memory_allow(
    files: dict[str, str], room: tuple[int, str], tmp_path: Path
) -> None:
    assert room_for_trainings(_written(tmp_path, files)) == room


LIMITED = """
import resource, psutil, digitcnn.training
limit = psutil.Process().memory_info().vms + {room} * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
digitcnn.training.check_limits({processes}, 1)
"""


@pytest.mark.parametrize(
    ("room", "processes", "line"),
    [
        (3000, 1, ""),
        (1000, 1, "MachineError: cannot have the 2,200 MB of address space that training takes: ulimit -v allows less"),
        # There is no room for their stacks.
        (
            100,
            64,
            "MachineError: cannot start the 576 threads that training takes: ulimit -u, or a cgroup's pids.max, ",
        ),
    ],
)
def test_check_limits_tries_what_training_takes(room: int, processes: int, line: str) -> None:
    program = LIMITED.format(room=room, processes=processes)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == (1 if line else 0), ended.stderr
    assert line in ended.stderr


def test_folder_of_temporary_files_must_hold_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a real file system of 64 kB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system can be mounted only by root")
    try:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        line = f"{tmp_path} has 0.06 MB left, and the trained model is packaged there, which takes 5 MB; set TMPDIR to"
        with pytest.raises(MachineError, match=line):
            training.check_temporary_folder(1_000_000)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
    training.check_temporary_folder(1_000_000)
