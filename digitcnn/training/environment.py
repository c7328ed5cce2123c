"""Environment of a run: versions, processor, memory, flags and the commit of the code."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from digitcnn.config import Backend, without_credentials
from digitcnn.records import EnvironmentKey, Tag
from digitcnn.training.backends import BACKEND_PACKAGES, THREAD_VARIABLES

_PACKAGES = ("keras", "numpy", "mlflow", "optuna", "hydra-core")
# Flags that can change the arithmetic of a run. The thread variables are set here and recorded as `threads`.
_FLAG_PREFIXES = ("XLA_", "OMP_", "KMP_", "MKL_", "KERAS_", "OPENBLAS_")
_BACKENDS_FLAG_PREFIXES: dict[Backend, tuple[str, ...]] = {
    "tensorflow": ("TF_",),
    "jax": ("JAX_",),
    "torch": ("TORCH_", "ATEN_"),
}

# Of those, the ones that a run of somebody else may set here, and their form: they change arithmetic and nothing else.
# TF_ and XLA_FLAGS can also load libraries and write files, and XLA ends the process at a flag it does not know.
_REPEATABLE_FLAGS = {
    **dict.fromkeys(("TF_ENABLE_ONEDNN_OPTS", "TF_DETERMINISTIC_OPS", "TF_CPP_MIN_LOG_LEVEL"), r"[0-9]|true|false"),
    **dict.fromkeys(("OMP_DYNAMIC", "OMP_PROC_BIND", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "KMP_AFFINITY"), r"[\w,=]+"),
    **dict.fromkeys(
        ("MKL_CBWR", "MKL_DYNAMIC", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE"), r"\w+"
    ),
}
_REPEATABLE_XLA_FLAG = re.compile(
    r"--xla_cpu_(multi_thread_eigen|enable_concurrency_optimized_scheduler|use_fusion_emitters|enable_fast_math"
    r"|enable_fast_min_max)=(true|false)|--xla_cpu_prefer_vector_width=(128|256|512)"
    r"|--xla_cpu_max_isa=(SSE4_2|AVX|AVX2|AVX512|AVX512_VNNI|AVX512_BF16|AMX|AMX_FP16)"
)


def resident_memory_mb() -> float:
    """Return the resident memory (MB) that this process holds now."""
    return psutil.Process().memory_info().rss / 2**20


def reset_peak_memory() -> None:
    """Begin a new high-water mark, where the system can: a warm worker's earlier trials are not this run's."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> float:
    """Return the most resident memory (MB) that this process has held since the mark was reset, or ever."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def describe_environment(threads: int, backend: Backend = "tensorflow") -> dict[str, Any]:
    """Return the environment of a run as plain values, which environment.json holds."""
    return {
        Tag.PYTHON: platform.python_version(),
        EnvironmentKey.PACKAGES: package_versions(backend),
        Tag.PLATFORM: platform.platform(),
        Tag.CPU: cpu_model(),
        Tag.CORES: os.cpu_count(),
        Tag.THREADS: threads,
        Tag.BACKEND: backend,
        EnvironmentKey.FLAGS: {
            name: without_credentials(value)
            for name, value in sorted(os.environ.items())
            if name.startswith((*_FLAG_PREFIXES, *_BACKENDS_FLAG_PREFIXES[backend]))
            and name not in (*THREAD_VARIABLES, "TF_CLI_CONFIG_FILE")
        },
        EnvironmentKey.GIT: git_state(),
        Tag.COMMAND: shlex.join(_command()),
    }


def _command() -> list[str]:
    """Return the command line of this process without credentials; that of a script begins with python."""
    words = [without_credentials(word) for word in sys.argv]
    return words if words[:1] == ["digitcnn"] else ["python", *words]


def repeatable_flags(recorded: Mapping[str, Any]) -> dict[str, str]:
    """Return the recorded flags that a repetition sets again; others stay as they are here and count as differences."""
    flags = {name: str(value) for name, value in recorded.items()}
    known = {name: value for name, value in flags.items() if re.fullmatch(_REPEATABLE_FLAGS.get(name, "(?!)"), value)}
    words = flags.get("XLA_FLAGS", "").split()
    if words and all(_REPEATABLE_XLA_FLAG.fullmatch(word) for word in words):
        known["XLA_FLAGS"] = " ".join(words)
    return known


def package_versions(backend: Backend = "tensorflow") -> dict[str, str]:
    """Return the installed versions of the packages that a run's numbers or records depend on."""
    versions = {}
    for name in ("digitcnn", *BACKEND_PACKAGES[backend], *_PACKAGES):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def cpu_model() -> str:
    """Return the processor's name, as it gives it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@functools.cache
def git_state() -> dict[str, Any]:
    """Return the `commit` of the running code and whether it is `dirty`; nothing outside a checkout.

    Git is asked once: a process runs the code that it began with.
    """
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        # An installed package may lie in an environment inside another project's checkout.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return {
            EnvironmentKey.COMMIT: git("rev-parse", "HEAD"),
            EnvironmentKey.DIRTY: bool(git("status", "--porcelain")),
        }
    except (OSError, subprocess.SubprocessError):
        return {}
