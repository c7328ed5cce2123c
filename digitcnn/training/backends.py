"""Backends that Keras computes with: their packages, threads and flags, and exact repetition."""

import importlib.abc
import importlib.util
import os
import sys
import threading
from typing import Any

from digitcnn import output
from digitcnn.config import Backend, TrainingConfig
from digitcnn.errors import ConfigError, MachineError
from digitcnn.imports import large_imports
from digitcnn.training.machine import available_cores, check_limits
from digitcnn.training.variables import settle_variables

# The packages that decide a backend's arithmetic, and must be installed for it.
BACKEND_PACKAGES: dict[Backend, tuple[str, ...]] = {
    "tensorflow": ("tensorflow",),
    "jax": ("jax", "jaxlib"),
    "torch": ("torch",),
}
# What Keras imports if it is installed, for its plots and its wrappers: a quarter of the time that it takes.
_NOT_NEEDED = ("matplotlib", "sklearn")


def thread_count(config: TrainingConfig) -> int:
    """Return the threads that a training uses: `threads`, or one for each core that this process may keep busy."""
    return config.threads or available_cores()


def check_installed(backend: Backend) -> None:
    """Raise ConfigError, and import nothing, if a package that the backend needs is not installed."""
    missing = [package for package in BACKEND_PACKAGES[backend] if importlib.util.find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"backend={backend}: needs {missing[0]}, which is not installed; pip install 'digitcnn[{backend}]'"
        )


def import_keras(threads: int | None = None, backend: Backend | None = None) -> None:
    """Import Keras on a backend with this many threads, without the notices that frameworks print.

    Both are settled before the import, as they cannot be changed after it. Without a backend: TensorFlow; without a
    number: one a core; or as this process has begun. Raises ConfigError if it has begun with others, MachineError if
    they cannot be imported.
    """
    if "keras" in sys.modules:
        import keras

        begun, before = keras.backend.backend(), os.environ.get("OMP_NUM_THREADS")
        if backend not in (None, begun):
            raise ConfigError(f"backend={backend}: this process has begun with {begun}; give each a command of its own")
        if threads is not None and before != str(threads):
            raise ConfigError(f"training.threads={threads}: this process has begun with {before or 'other'} threads")
        return
    backend, threads = backend or "tensorflow", threads or available_cores()
    check_limits(1, threads)
    try:
        with output.silent_stderr(), large_imports():
            _load(backend, threads)
    except Exception as error:
        cause = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise MachineError(f"Keras cannot be imported on {backend}: {cause}") from error


class _NotImported(importlib.abc.MetaPathFinder):
    """Lets packages seem not to be installed while a block of this thread lasts, unless they are imported already."""

    def __init__(self, *packages: str) -> None:
        self._packages, self._thread = packages, threading.get_ident()

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname in self._packages and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"No module named '{fullname}'", name=fullname)

    def __enter__(self) -> None:
        sys.meta_path.insert(0, self)

    def __exit__(self, *error: object) -> None:
        sys.meta_path.remove(self)


def _load(backend: Backend, threads: int) -> None:
    """Import Keras on a backend, with its threads and without a GPU."""
    settle_variables(backend, threads)
    if backend == "torch":
        import torch

        # Keras imports it, and it asks whether each of many packages is installed.
        import torch._dynamo

        # MKL_NUM_THREADS would win over OMP_NUM_THREADS.
        torch.set_num_threads(threads)
    others = {name for each, names in BACKEND_PACKAGES.items() if each != backend for name in names}
    with _NotImported(*_NOT_NEEDED, *others):
        from keras.src.utils import module_utils

    if backend != "tensorflow":
        # Keras would import it, to set seeds and to save models, wherever it is installed: 8 s and 480 MB a process.
        module_utils.tensorflow._available = False


def repeat_exactly(backend: Backend) -> None:
    """Make the imported backend give the same bits whenever it computes the same. JAX does so on a processor."""
    if backend == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    elif backend == "torch":
        import torch

        torch.use_deterministic_algorithms(True)
