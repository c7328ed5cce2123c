"""The frameworks that Keras computes with: what each needs installed, how its threads are set, and exact repetition."""

from __future__ import annotations

import importlib.util
import os

from digitcnn.config import Backend
from digitcnn.errors import ConfigError

# What decides a backend's arithmetic, and must be installed for it.
BACKEND_PACKAGES: dict[Backend, tuple[str, ...]] = {
    "tensorflow": ("tensorflow",),
    "jax": ("jax", "jaxlib"),
    "torch": ("torch",),
}
# For the compiled engine, measured on its network: XLA's own threads lose against a share of the batch per thread; its
# concurrent scheduler spills the cache (2,100 against 3,400 images/s); its new emitters compile up to twice as long.
_XLA_FLAGS = (
    "--xla_cpu_multi_thread_eigen=false",
    "--xla_cpu_enable_concurrency_optimized_scheduler=false",
    "--xla_cpu_use_fusion_emitters=false",
)
# The last one is read by JAX alone.
THREAD_VARIABLES = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS", "PJRT_NPROC")


def check_installed(backend: Backend) -> None:
    """Raises ConfigError, and imports nothing, if a package that the backend needs is not installed."""
    missing = [package for package in BACKEND_PACKAGES[backend] if importlib.util.find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"backend={backend}: needs {missing[0]}, which is not installed; .venv/bin/pip install -e '.[{backend}]'"
        )


def load_backend(backend: Backend, threads: int) -> None:
    """Imports Keras on a backend, with its threads and flags and without a GPU, into a process that has not yet.

    Flags that a person set stay; those of TensorFlow that a parent process set here do not.
    """
    os.environ |= {"KERAS_BACKEND": backend, "CUDA_VISIBLE_DEVICES": "-1"}
    os.environ |= dict.fromkeys(THREAD_VARIABLES, str(threads))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if backend == "jax":
        os.environ["JAX_PLATFORMS"] = "cpu"
    # JAX's compiler is XLA too, which ends the process at a flag that its version does not know. Ours are TensorFlow's.
    flags = [flag for flag in os.environ.pop("XLA_FLAGS", "").split() if flag not in _XLA_FLAGS]
    flags += _XLA_FLAGS if backend == "tensorflow" else ()
    if flags:
        os.environ["XLA_FLAGS"] = " ".join(flags)
    if backend == "torch":
        # Its threads would spin while they wait: 13 s of processor time instead of 6 for 5,100 images, measured.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        import torch

        # MKL_NUM_THREADS would win over OMP_NUM_THREADS.
        torch.set_num_threads(threads)
    from keras.src.utils import module_utils

    if backend != "tensorflow":
        # Keras would import it, to set seeds and to save models, wherever it is installed: 8 s and 480 MB a process.
        module_utils.tensorflow._available = False


def repeat_exactly(backend: Backend) -> None:
    """Has the imported backend give the same bits whenever it computes the same. JAX does so on a processor."""
    if backend == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    elif backend == "torch":
        import torch

        torch.use_deterministic_algorithms(True)
