"""What a run depends on besides its config: versions, processor, threads, flags, code; and the control of threads."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from digitcnn.config import Backend, without_credentials
from digitcnn.errors import ConfigError
from digitcnn.records import Tag
from digitcnn.training import backends

_PACKAGES = ("keras", "numpy", "mlflow", "optuna", "hydra-core")
# What can change the arithmetic of a run. The thread variables are set here and recorded as `threads`.
_FLAG_PREFIXES = ("XLA_", "OMP_", "KMP_", "MKL_", "KERAS_", "OPENBLAS_")
_BACKENDS_FLAG_PREFIXES: dict[Backend, tuple[str, ...]] = {
    "tensorflow": ("TF_",),
    "jax": ("JAX_",),
    "torch": ("TORCH_", "ATEN_"),
}

# Of those, what a run that somebody else recorded may set here, and how it may look: it changes arithmetic and nothing
# else. TF_ and XLA_FLAGS can also load libraries and write files, and XLA ends the process at a flag it does not know.
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


def available_cores() -> int:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def import_keras(threads: int | None = None, backend: Backend | None = None) -> None:
    """Imports Keras on a backend with this many threads, without the notices that frameworks print.

    Both are settled before the import, as they cannot be changed after it. Without a backend: TensorFlow; without a
    number: one a core; or as this process has begun. Raises ConfigError if it has begun with others.
    """
    if "keras" in sys.modules:
        import keras

        begun, before = keras.backend.backend(), os.environ.get("OMP_NUM_THREADS")
        if backend not in (None, begun):
            raise ConfigError(f"backend={backend}: this process has begun with {begun}; give each a command of its own")
        if threads is not None and before != str(threads):
            raise ConfigError(f"training.threads={threads}: this process has begun with {before or 'other'} threads")
        return
    with _silent_stderr():
        backends.load_backend(backend or "tensorflow", threads or available_cores())


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discards what native code writes to standard error; Python's own exceptions still reach the caller."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def resident_memory_mb() -> float:
    """The memory (MB) that this process holds now."""
    return psutil.Process().memory_info().rss / 2**20


def describe_environment(threads: int, backend: Backend = "tensorflow") -> dict[str, Any]:
    """The environment of a run as plain values: what `environment.json` holds."""
    return {
        Tag.PYTHON: platform.python_version(),
        "packages": package_versions(backend),
        Tag.PLATFORM: platform.platform(),
        Tag.CPU: cpu_model(),
        Tag.CORES: os.cpu_count(),
        Tag.THREADS: threads,
        Tag.BACKEND: backend,
        Tag.FLAGS: {
            name: without_credentials(value)
            for name, value in sorted(os.environ.items())
            if name.startswith((*_FLAG_PREFIXES, *_BACKENDS_FLAG_PREFIXES[backend]))
            and name not in (*backends.THREAD_VARIABLES, "TF_CLI_CONFIG_FILE")
        },
        "git": git_state(),
        Tag.COMMAND: shlex.join(["python", *map(without_credentials, sys.argv)]),
    }


def repeatable_flags(recorded: Mapping[str, Any]) -> dict[str, str]:
    """The recorded flags that a repetition sets again. Any other stays as it is here, and is named as a difference."""
    flags = {name: str(value) for name, value in recorded.items()}
    known = {name: value for name, value in flags.items() if re.fullmatch(_REPEATABLE_FLAGS.get(name, "(?!)"), value)}
    words = flags.get("XLA_FLAGS", "").split()
    if words and all(_REPEATABLE_XLA_FLAG.fullmatch(word) for word in words):
        known["XLA_FLAGS"] = " ".join(words)
    return known


def package_versions(backend: Backend = "tensorflow") -> dict[str, str]:
    """The installed versions of the packages that a run's numbers or records depend on."""
    versions = {}
    for name in ("digitcnn", *backends.BACKEND_PACKAGES[backend], *_PACKAGES):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def cpu_model() -> str:
    """The processor's own name for itself."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@functools.cache
def git_state() -> dict[str, Any]:
    """The commit of the code that is running and whether it differs from that commit; empty outside a checkout.

    Asked once: a process runs the code that it began with.
    """
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {}
