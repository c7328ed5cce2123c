"""Time an epoch of one side or the other, and plain matrix products, in a worker process."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from digitcnn import output, runner, training
from digitcnn.config import RunConfig
from digitcnn.training import build_model, make_engine
from digitcnn.values import Events, RunFinished
from experiments.benchmarks import peers

_PRODUCT_SIZE = 1536
# Epochs of which a round takes the fastest: some of Keras's fit keep one of two cores busy, from beginning to end.
_EPOCHS = 3

# Of `fit`, `torch`, `torch.compile` and `jax`: see peers.py.
Task = Literal["engine", "fit", "torch", "torch.compile", "jax", "product"]


@dataclass(frozen=True)
class TimingJob:
    """One measurement: a config, what is timed of it, and on how many images."""

    config: RunConfig
    task: Task
    images: int


class Timing:
    """A trainer that times instead of training, in a warm process."""

    def prepare(self, threads: int) -> None:
        self.epochs: dict[str, Callable[[], None]] = {}
        self.threads = threads
        # Of the frameworks, each process imports the one that it times.
        os.environ |= {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}

    def run(self, job: TimingJob, on_progress: Callable[[int, float], None]) -> Events:
        yield RunFinished("completed", 0, {"rate": self._rate(job)}, "", "", {}, {})

    def _rate(self, job: TimingJob) -> float:
        """Return images/s, or GFLOP/s of matrix products."""
        if job.task == "fit":
            # With the kernels that TensorFlow takes unasked: it reads the variable that says others at its import.
            with output.silent_stderr():
                importlib.import_module("tensorflow")
        if job.task in ("engine", "fit", "product"):
            training.import_keras(self.threads)
        if job.task == "product":
            return _product_gflops(job.config.training.precision)
        key = f"{job.task} {job.config.model_dump_json()} {job.images}"
        if key not in self.epochs:
            self.epochs.clear()
            self.epochs[key] = _epoch(job, self.threads)
            # The first one compiles.
            self.epochs[key]()
        seconds = []
        for _ in range(_EPOCHS):
            began = time.perf_counter()
            self.epochs[key]()
            seconds.append(time.perf_counter() - began)
        return job.images / min(seconds)


def _epoch(job: TimingJob, threads: int) -> Callable[[], None]:
    """Return a function that trains one epoch on the first images of the data, each time it is called."""
    splits, config = runner.check_run(job.config), job.config
    if job.task != "engine":
        images, labels = splits.train.images[: job.images], splits.train.labels[: job.images]
        peer = {"fit": peers.keras_fit, "jax": peers.jax_loop}.get(job.task, peers.torch_loop)
        return peer(config, images, labels, job.task, threads)
    model = build_model(config.model, *splits.image_shape, splits.classes, config.training.seed)
    engine = make_engine(model, splits.train, config.training)
    order = np.random.default_rng(0).permutation(job.images)
    shape = job.images, *splits.image_shape

    def epoch() -> None:
        engine.train_epoch(order, None, training.draw_transforms(config.augmentation, 0, 1, *shape))

    return epoch


def _product_gflops(precision: str) -> float:
    """Return the speed of TensorFlow's matrix products in this process (GFLOP/s), over half a second."""
    import tensorflow as tf

    left = tf.cast(tf.random.normal((_PRODUCT_SIZE, _PRODUCT_SIZE), seed=0), precision)
    tf.matmul(left, left)
    products, began = 0, time.perf_counter()
    while time.perf_counter() - began < 0.5:
        result = tf.matmul(left, left)
        result.numpy()
        products += 1
    return 2 * _PRODUCT_SIZE**3 * products / (time.perf_counter() - began) / 1e9


def flops_per_image(config: RunConfig) -> float:
    """Return the floating-point operations of training on one image by direct convolution, backward twice forward."""
    splits = runner.check_run(config)
    return 6.0 * training.count_multiplications(config.model, *splits.image_shape, splits.classes)
