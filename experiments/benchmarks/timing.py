"""Time an epoch of one side or the other, and plain matrix products, in a worker process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from digitcnn import runner, training
from digitcnn.config import RunConfig
from digitcnn.training import build_model, make_engine
from digitcnn.values import Events, RunFinished

_SGEMM_SIZE = 1536


Task = Literal["keras", "compiled", "sgemm"]


@dataclass(frozen=True)
class TimingJob:
    """One measurement: a config, what is timed of it, and on how many images."""

    config: RunConfig
    task: Task
    images: int


class Timing:
    """A trainer that times instead of training, in a warm process.

    `keras` is Keras's own fit as its documentation shows it: float images, its own shuffling, no callbacks.
    """

    def prepare(self, threads: int) -> None:
        self.fits: dict[str, Callable[[], None]] = {}
        training.import_keras(threads)

    def run(self, job: TimingJob, on_progress: Callable[[int, float], None]) -> Events:
        yield RunFinished("completed", 0, {"rate": self._rate(job)}, "", "", {}, {})

    def _rate(self, job: TimingJob) -> float:
        if job.task == "sgemm":
            return _sgemm_gflops()
        key = f"{job.task} {job.config.model_dump_json()} {job.images}"
        if key not in self.fits:
            self.fits.clear()
            self.fits[key] = _fit(job.config, job.task, job.images)
            self.fits[key]()
        began = time.perf_counter()
        self.fits[key]()
        return job.images / (time.perf_counter() - began)


def _fit(config: RunConfig, task: str, images: int) -> Callable[[], None]:
    """Return a function that trains one epoch on the first images of the data, each time it is called."""
    splits = runner.check_run(config)
    height, width = splits.image_shape
    model = build_model(config.model, height, width, splits.classes, config.training.seed)
    batch_size = config.training.batch_size
    if task == "keras":
        import keras

        # As the article has it: scaled beforehand to floats with a channel.
        model = keras.Sequential(
            [
                keras.Input((height, width, 1)),
                *[layer for layer in model.layers if layer.name not in ("scale", "channel")],
            ]
        )
        x = splits.train.images[:images, ..., None].astype("float32") / 255
        y = splits.train.labels[:images]
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        return lambda: model.fit(x, y, batch_size=batch_size, verbose=0) and None
    engine = make_engine(model, splits.train, config.training)
    order = np.random.default_rng(0).permutation(images)

    def epoch() -> None:
        engine.train_epoch(order, None)

    return epoch


def _sgemm_gflops() -> float:
    """Return the speed of TensorFlow's float32 matrix products in this process (GFLOP/s), over half a second."""
    import tensorflow as tf

    left = tf.random.normal((_SGEMM_SIZE, _SGEMM_SIZE), seed=0)
    tf.matmul(left, left)
    products, began = 0, time.perf_counter()
    while time.perf_counter() - began < 0.5:
        result = tf.matmul(left, left)
        result.numpy()
        products += 1
    return 2 * _SGEMM_SIZE**3 * products / (time.perf_counter() - began) / 1e9


def flops_per_image(config: RunConfig) -> float:
    """Return the floating-point operations of training on one image by direct convolution, backward twice forward."""
    splits = runner.check_run(config)
    return 6.0 * training.count_multiplications(config.model, *splits.image_shape, splits.classes)
