"""The training loop: epochs, their order of images, their metrics, and the result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from digitcnn.config import TrainingConfig
from digitcnn.errors import TrainingDiverged
from digitcnn.training.engines import make_engine
from digitcnn.training.machine import peak_memory_mb, reset_peak_memory
from digitcnn.training.network import weights_sha256
from digitcnn.values import Decision, Ending, EpochMetrics, Evaluation, Splits, TrainingResult

if TYPE_CHECKING:
    import keras


def batches_per_epoch(config: TrainingConfig, examples: int) -> int:
    """Return the updates of an epoch; a full pass ends with a partial batch if the sizes do not divide."""
    if config.steps_per_epoch is None:
        return math.ceil(examples / config.batch_size)
    return config.batch_size if config.steps_per_epoch == "batch_size" else config.steps_per_epoch


def samples_per_epoch(config: TrainingConfig, examples: int) -> int:
    """Return the images that an epoch sees, repeated ones counted each time."""
    return examples if config.steps_per_epoch is None else batches_per_epoch(config, examples) * config.batch_size


def epoch_orders(config: TrainingConfig, examples: int) -> Iterator[NDArray[np.int64]]:
    """Yield for each epoch the indices (samples,) of its images, in order; each `batch_size` of them are a batch.

    A full pass is one permutation. With `steps_per_epoch` the epochs are consecutive pieces of an endless stream of
    permutations, so that every image is seen equally often however long an epoch is. Depends on the seed alone.
    """
    generator = np.random.default_rng([config.seed, 1])
    if config.steps_per_epoch is None:
        for _ in range(config.epochs):
            yield generator.permutation(examples)
        return
    samples = samples_per_epoch(config, examples)
    stream = np.empty(0, dtype=np.int64)
    for _ in range(config.epochs):
        passes = math.ceil((samples - len(stream)) / examples)
        stream = np.concatenate([stream, *(generator.permutation(examples) for _ in range(passes))])
        yield stream[:samples]
        stream = stream[samples:]


def train(
    model: keras.Model,
    splits: Splits,
    config: TrainingConfig,
    on_progress: Callable[[int, float], None] | None = None,
) -> Generator[EpochMetrics, Decision, TrainingResult]:
    """Train the model in place with Adam on cross-entropy; judge it after every epoch, or after the last alone.

    Yield each epoch's metrics, to be answered with a decision on whether to go on; return the result.
    `on_progress(epoch, fraction)` is called within an epoch. Raises TrainingDiverged when a loss is no longer a finite
    number.
    """
    began = time.perf_counter()
    engine = make_engine(model, splits.train, config)
    compile_seconds = time.perf_counter() - began
    epochs: list[EpochMetrics] = []
    ending: Ending = "completed"
    samples_seen = 0
    final: Evaluation | None = None
    reset_peak_memory()
    began, cpu_began = time.perf_counter(), time.process_time()
    for epoch, order in enumerate(epoch_orders(config, len(splits.train)), start=1):
        epoch_began = time.perf_counter()
        progress = None if on_progress is None else lambda fraction, epoch=epoch: on_progress(epoch, fraction)
        train_loss, train_accuracy = engine.train_epoch(order, progress)
        trained = time.perf_counter()
        if not splits.final_test_only:
            final = engine.evaluate(splits.validation)
        samples_seen += len(order)
        bad = [loss for loss in (train_loss, 0.0 if final is None else final.loss) if not math.isfinite(loss)]
        if bad:
            raise TrainingDiverged(f"the loss became {bad[0]} in epoch {epoch}")
        metrics = EpochMetrics(
            epoch=epoch,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            validation_loss=None if final is None else final.loss,
            validation_accuracy=None if final is None else final.accuracy,
            epoch_seconds=time.perf_counter() - epoch_began,
            images_per_second=len(order) / (trained - epoch_began),
        )
        epochs.append(metrics)
        decision = yield metrics
        if decision != "continue" and epoch < config.epochs:
            ending = "pruned" if decision == "prune" else "stopped"
            break
    if final is None:
        final = engine.evaluate(splits.validation)
        if not math.isfinite(final.loss):
            raise TrainingDiverged(f"the loss on the test set is {final.loss}")
    engine.finish()
    confusion = np.zeros((splits.classes, splits.classes), dtype=np.int64)
    np.add.at(confusion, (splits.validation.labels, final.predictions), 1)
    return TrainingResult(
        ending=ending,
        epochs=tuple(epochs),
        final=final,
        labels=splits.validation.labels,
        final_test_only=splits.final_test_only,
        confusion=confusion,
        compile_seconds=compile_seconds,
        training_seconds=time.perf_counter() - began,
        cpu_seconds=time.process_time() - cpu_began,
        peak_memory_mb=peak_memory_mb(),
        samples_seen=samples_seen,
        updates=len(epochs) * batches_per_epoch(config, len(splits.train)),
        parameters=model.count_params(),
        weights_sha256=weights_sha256(model),
        engine=engine.name,
    )
