"""Environment of a run: versions, processor, flags and the commit of the code."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from digitcnn.config import Backend, without_credentials
from digitcnn.processor import cpu_model, instruction_sets
from digitcnn.records import EnvironmentKey, Tag
from digitcnn.training.backends import BACKEND_PACKAGES

_PACKAGES = ("keras", "numpy", "mlflow", "optuna", "hydra-core")
# The variables that change the arithmetic of a run, or the threads that its order depends on; read by NumPy's libraries
# (OpenBLAS), oneDNN, OpenMP, MKL and Keras. By name: other programs' variables, secrets among them, begin alike. The
# thread variables are set here and recorded as `threads`, the backend as `backend`.
_FLAGS = (
    *("OMP_DYNAMIC", "OMP_MAX_ACTIVE_LEVELS", "OMP_NESTED", "OMP_PLACES", "OMP_PROC_BIND", "OMP_SCHEDULE"),
    *("OMP_THREAD_LIMIT", "OMP_WAIT_POLICY", "KMP_AFFINITY", "KMP_BLOCKTIME", "KMP_DETERMINISTIC_REDUCTION"),
    *("KMP_DYNAMIC_MODE", "KMP_FORCE_REDUCTION", "MKL_CBWR", "MKL_DEBUG_CPU_TYPE", "MKL_DYNAMIC"),
    *("MKL_DOMAIN_NUM_THREADS", "MKL_ENABLE_INSTRUCTIONS", "MKL_NUM_THREADS", "MKL_THREADING_LAYER"),
    *("OPENBLAS_CORETYPE", "OPENBLAS_NUM_THREADS", "NPY_DISABLE_CPU_FEATURES", "NPY_ENABLE_CPU_FEATURES"),
    *("ONEDNN_CPU_ISA_HINTS", "ONEDNN_DEFAULT_FPMATH_MODE", "ONEDNN_MAX_CPU_ISA"),
    *("DNNL_CPU_ISA_HINTS", "DNNL_DEFAULT_FPMATH_MODE", "DNNL_MAX_CPU_ISA"),
    # Both cut Keras's own fit short.
    *("KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH"),
)
_BACKENDS_FLAGS: dict[str, tuple[str, ...]] = {
    "tensorflow": (
        *("XLA_FLAGS", "TF_XLA_FLAGS", "TF_ENABLE_ONEDNN_OPTS", "TF_DETERMINISTIC_OPS", "TF_SET_ONEDNN_FPMATH_MODE"),
        *("TF_ENABLE_ONEDNN_SPMM", "TF_ENABLE_ZENDNN_OPTS", "TF_ONEDNN_ASSUME_FROZEN_WEIGHTS", "TF_USE_DEEP_CONV2D"),
        *("TF_ENABLE_MAXPOOL_NANPROP", "TF_AUTO_MIXED_PRECISION_GRAPH_REWRITE_LEVEL", "TF_OVERRIDE_GLOBAL_THREADPOOL"),
        *("TF_USE_EIGEN_PARALLEL_FOR_IN_WORK_SHARDER", "TENSORFLOW_USE_CUSTOM_CONTRACTION_KERNEL"),
    ),
    "jax": (
        *("XLA_FLAGS", "JAX_ALLOW_F16_REDUCTIONS", "JAX_COMPILER_ENABLE_REMAT_PASS", "JAX_DEFAULT_MATMUL_PRECISION"),
        *("JAX_DEFAULT_PRNG_IMPL", "JAX_DISABLE_JIT", "JAX_ENABLE_CUSTOM_PRNG", "JAX_ENABLE_X64"),
        *("JAX_EXEC_TIME_OPTIMIZATION_EFFORT", "JAX_EXPLICIT_X64_DTYPES", "JAX_NUMPY_DTYPE_PROMOTION"),
        *("JAX_OPTIMIZATION_LEVEL", "JAX_RANDOM_SEED_OFFSET", "JAX_SOFTMAX_CUSTOM_JVP", "JAX_THREEFRY_PARTITIONABLE"),
        *("JAX_USE_DIRECT_LINEARIZE", "KERAS_NNX_ENABLED"),
    ),
    "torch": (
        *("ATEN_CPU_CAPABILITY", "KERAS_TORCH_DEVICE", "TORCH_MKLDNN_MATMUL_MIN_DIM", "TORCH_MKLDNN_MATMUL_MIN_SIZE"),
    ),
}

# Of those, the ones that a run of somebody else may set here, and their form. TF_XLA_FLAGS and XLA_FLAGS can also load
# libraries and write files, and XLA ends the process at a flag it does not know.
_REPEATABLE_FLAGS = {
    **dict.fromkeys(("TF_ENABLE_ONEDNN_OPTS", "TF_DETERMINISTIC_OPS"), r"[0-9]|true|false"),
    **dict.fromkeys(("OMP_DYNAMIC", "OMP_PROC_BIND", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "KMP_AFFINITY"), r"[\w,=]+"),
    **dict.fromkeys(
        ("MKL_CBWR", "MKL_DYNAMIC", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE"), r"\w+"
    ),
    **dict.fromkeys(
        ("ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE"), r"\w+"
    ),
}
_REPEATABLE_XLA_FLAG = re.compile(
    r"--xla_cpu_(multi_thread_eigen|enable_concurrency_optimized_scheduler|use_fusion_emitters|enable_fast_math"
    r"|enable_fast_min_max)=(true|false)|--xla_cpu_prefer_vector_width=(128|256|512)"
    r"|--xla_cpu_max_isa=(SSE4_2|AVX|AVX2|AVX512|AVX512_VNNI|AVX512_BF16|AMX|AMX_FP16)"
)


def describe_environment(threads: int, backend: Backend = "tensorflow") -> dict[str, Any]:
    """Return the environment of a run as plain values, which environment.json holds."""
    return {
        Tag.PYTHON: platform.python_version(),
        EnvironmentKey.PACKAGES: package_versions(backend),
        Tag.PLATFORM: platform.platform(),
        Tag.CPU: cpu_model(),
        Tag.CPU_FLAGS: " ".join(instruction_sets()),
        Tag.CORES: os.cpu_count(),
        Tag.THREADS: threads,
        Tag.BACKEND: backend,
        EnvironmentKey.FLAGS: {
            name: without_credentials(value) for name, value in arithmetic_flags(os.environ, backend).items()
        },
        EnvironmentKey.GIT: git_state(),
        Tag.COMMAND: command_line(),
    }


def command_line() -> str:
    """Return the command line of this process without credentials; that of a script begins with python."""
    words = [without_credentials(word) for word in sys.argv]
    return shlex.join(words if words[:1] == ["digitcnn"] else ["python", *words])


def arithmetic_flags(variables: Mapping[str, str], backend: str) -> dict[str, str]:
    """Return those of some environment variables, by name, that change the arithmetic of a run on a backend."""
    names = {*_FLAGS, *_BACKENDS_FLAGS.get(backend, ())}
    return {name: variables[name] for name in sorted(names) if name in variables}


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
