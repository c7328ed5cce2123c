"""Environment variables that Keras and its backends read: few have an effect, and those are recorded with a run."""

import os
import re
import sys
from collections.abc import Mapping
from typing import Any

from digitcnn.config import Backend
from digitcnn.drawing import settle_matplotlib
from digitcnn.processor import instruction_sets

# The variables that change the arithmetic of a run, or the threads that its order depends on; read by NumPy's libraries
# (OpenBLAS), oneDNN, OpenMP, MKL and PyTorch. By name: other programs' variables, secrets among them, begin alike. The
# thread variables are set here and recorded as `threads`, the backend as `backend`.
_FLAGS = (
    *("OMP_DYNAMIC", "OMP_MAX_ACTIVE_LEVELS", "OMP_NESTED", "OMP_PLACES", "OMP_PROC_BIND", "OMP_SCHEDULE"),
    *("OMP_THREAD_LIMIT", "OMP_WAIT_POLICY", "KMP_AFFINITY", "KMP_BLOCKTIME", "KMP_DETERMINISTIC_REDUCTION"),
    *("KMP_DYNAMIC_MODE", "KMP_FORCE_REDUCTION", "MKL_CBWR", "MKL_DEBUG_CPU_TYPE", "MKL_DYNAMIC"),
    *("MKL_DOMAIN_NUM_THREADS", "MKL_ENABLE_INSTRUCTIONS", "MKL_NUM_THREADS", "MKL_THREADING_LAYER"),
    *("OPENBLAS_CORETYPE", "OPENBLAS_NUM_THREADS", "NPY_DISABLE_CPU_FEATURES", "NPY_ENABLE_CPU_FEATURES"),
    *("ONEDNN_CPU_ISA_HINTS", "ONEDNN_DEFAULT_FPMATH_MODE", "ONEDNN_MAX_CPU_ISA"),
    *("DNNL_CPU_ISA_HINTS", "DNNL_DEFAULT_FPMATH_MODE", "DNNL_MAX_CPU_ISA"),
)
_BACKENDS_FLAGS: dict[str, tuple[str, ...]] = {
    "tensorflow": ("TF_ENABLE_ONEDNN_OPTS",),
    "torch": ("ATEN_CPU_CAPABILITY",),
}
# Recorded by earlier versions, which obeyed them.
_FORMER_FLAGS = ("XLA_FLAGS", "TF_XLA_FLAGS", "TF_DETERMINISTIC_OPS", "JAX_ENABLE_X64", "KERAS_MAX_STEPS_PER_EPOCH")
# What the libraries' own variables begin with. Hundreds of them choose other kernels, cut a fit short, load plug-ins,
# or end the process where they are spelt wrong.
_LIBRARIES = (
    *("KERAS_", "TF_", "TENSORFLOW_", "AUTOGRAPH_", "XLA_", "ONEDNN_", "DNNL_", "PJRT_", "JAX_", "JAXLIB_"),
    *("TORCH", "PYTORCH_", "ATEN_", "HDF5_DRIVER", "HDF5_VOL_", "HDF5_PLUGIN_", "HDF5_EXT", "HDF5_VDS_"),
)
# What they say of their work, on standard error.
_LOGS = "TF_CPP_"
# The last one is read by JAX alone.
_THREADS = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS", "PJRT_NPROC")

# Of the flags, the ones that a run of somebody else may set here, and their form.
_REPEATABLE_FLAGS = (
    *("OMP_DYNAMIC", "OMP_PROC_BIND", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "KMP_AFFINITY", "MKL_CBWR", "MKL_DYNAMIC"),
    *("MKL_NUM_THREADS", "ATEN_CPU_CAPABILITY", "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE", "DNNL_MAX_CPU_ISA"),
    *("ONEDNN_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "TF_ENABLE_ONEDNN_OPTS"),
)
_REPEATABLE_VALUE = re.compile(r"[\w,=]+")


def settle_variables(backend: Backend, threads: int) -> None:
    """Set the variables that a backend reads when it is imported; remove those that have no effect here.

    Of KERAS_HOME nothing is read, keras.json above all, and nothing is written to it.
    """
    # Keras imports it.
    settle_matplotlib()
    kept = _obeyed(backend)
    for name in [each for each in os.environ if each.startswith(_LIBRARIES) and not each.startswith(_LOGS)]:
        if name not in kept:
            del os.environ[name]
    os.environ |= {"KERAS_BACKEND": backend, "KERAS_HOME": os.devnull, "CUDA_VISIBLE_DEVICES": "-1"}
    os.environ |= dict.fromkeys(_THREADS, str(threads))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if backend == "tensorflow" and "avx2" in instruction_sets() and "tensorflow" not in sys.modules:
        # TensorFlow uses oneDNN unasked only with AVX-512 VNNI and its like. With AVX2 alone it trains the article's
        # network 1.6 times as fast too: docs/performance.md. It reads this when it is imported.
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    if backend == "jax":
        os.environ["JAX_PLATFORMS"] = "cpu"
    if backend == "torch":
        os.environ["KERAS_TORCH_DEVICE"] = "cpu"
        # Its threads would spin while they wait: 13 s of processor time instead of 6 for 5,100 images, measured.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _obeyed(backend: str) -> set[str]:
    return {*_FLAGS, *_BACKENDS_FLAGS.get(backend, ())}


def flags_in_effect(backend: str) -> dict[str, str]:
    """Return the variables of this process, by name, that change the arithmetic of a run on a backend."""
    return {name: os.environ[name] for name in sorted(_obeyed(backend)) if name in os.environ}


def arithmetic_flags(recorded: Mapping[str, str], backend: str) -> dict[str, str]:
    """Return those of some recorded variables, by name, that changed the arithmetic of a run on a backend."""
    names = {*_obeyed(backend), *_FORMER_FLAGS}
    return {name: recorded[name] for name in sorted(names) if name in recorded}


def repeatable_flags(recorded: Mapping[str, Any]) -> dict[str, str]:
    """Return the recorded flags that a repetition sets again; others stay as they are here and count as differences."""
    flags = {name: str(value) for name, value in recorded.items()}
    return {
        name: value for name, value in flags.items() if name in _REPEATABLE_FLAGS and _REPEATABLE_VALUE.fullmatch(value)
    }
