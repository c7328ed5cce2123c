"""Training one model on one data set: epochs, their metrics, and what the whole came to."""

from __future__ import annotations

import contextlib
import math
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from digitcnn.config import TrainingConfig
from digitcnn.data import Splits
from digitcnn.engines import Evaluation, engine_for
from digitcnn.errors import TrainingDiverged
from digitcnn.model import weights_sha256

if TYPE_CHECKING:
    import keras

Decision = Literal["continue", "prune", "stop"]


@dataclass(frozen=True)
class EpochMetrics:
    """One epoch. Losses are mean cross-entropies in nats, accuracies fractions.

    The training metrics are means over the epoch's samples at the weights of each update, the validation metrics
    those at the epoch's end; none where the examples are judged once. `epoch_seconds` covers training and validation,
    `images_per_second` training alone.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float | None
    validation_accuracy: float | None
    epoch_seconds: float
    images_per_second: float

    def metrics(self) -> dict[str, float]:
        """The metrics by name, without the epoch's number and what was not measured."""
        return {name: value for name, value in vars(self).items() if name != "epoch" and value is not None}


@dataclass(frozen=True)
class TrainingResult:
    """A training that ended by itself (`completed`) or was ended at an epoch (`pruned`, `stopped`).

    `final` is how the final model did on the examples that judge the run, `labels` (n,) what they are; `judged_once`
    says that they are the test set, read for this alone. `confusion[i, j]` counts those of class i that the model
    takes for class j.
    """

    ending: Literal["completed", "pruned", "stopped"]
    epochs: tuple[EpochMetrics, ...]
    final: Evaluation
    labels: NDArray[np.int64]
    judged_once: bool
    confusion: NDArray[np.int64]
    training_seconds: float
    cpu_seconds: float
    peak_memory_mb: float
    samples_seen: int
    updates: int
    parameters: int
    weights_sha256: str
    engine: str

    def summary(self) -> dict[str, float]:
        """The final metrics by name: the last and the best validation, or the test; and the cost."""
        if self.judged_once:
            judged = {"test_loss": self.final.loss, "test_accuracy": self.final.accuracy}
        else:
            best = max(self.epochs, key=lambda epoch: epoch.validation_accuracy or 0.0)
            judged = {
                "validation_loss": self.final.loss,
                "validation_accuracy": self.final.accuracy,
                "best_validation_accuracy": best.validation_accuracy or 0.0,
                "best_epoch": best.epoch,
            }
        return judged | {
            "training_seconds": self.training_seconds,
            "cpu_seconds": self.cpu_seconds,
            "peak_memory_mb": self.peak_memory_mb,
            "samples_seen": self.samples_seen,
            "updates": self.updates,
            "parameters": self.parameters,
        }


def batches_per_epoch(config: TrainingConfig, examples: int) -> int:
    """How many updates an epoch makes; a full pass ends with a partial batch if the sizes do not divide."""
    if config.steps_per_epoch is None:
        return math.ceil(examples / config.batch_size)
    return config.batch_size if config.steps_per_epoch == "batch_size" else config.steps_per_epoch


def samples_per_epoch(config: TrainingConfig, examples: int) -> int:
    """How many images an epoch sees, repeated ones counted each time."""
    return examples if config.steps_per_epoch is None else batches_per_epoch(config, examples) * config.batch_size


def epoch_orders(config: TrainingConfig, examples: int) -> Iterator[NDArray[np.int64]]:
    """For each epoch the indices of its samples, in order; consecutive `batch_size` of them are a batch.

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
    on_epoch: Callable[[EpochMetrics], Decision],
    on_progress: Callable[[int, float], None] | None = None,
) -> TrainingResult:
    """Trains the model in place with Adam on cross-entropy and judges it after every epoch, or after the last alone.

    `on_epoch` sees each epoch's metrics as they come and decides whether to go on. `on_progress(epoch, fraction)`
    is called within an epoch. Raises TrainingDiverged when a loss is no longer a finite number.
    """
    engine = engine_for(model, splits.train, config)
    epochs: list[EpochMetrics] = []
    ending: Literal["completed", "pruned", "stopped"] = "completed"
    samples_seen = 0
    final: Evaluation | None = None
    _reset_peak_memory()
    began, cpu_began = time.perf_counter(), time.process_time()
    for epoch, order in enumerate(epoch_orders(config, len(splits.train)), start=1):
        epoch_began = time.perf_counter()
        progress = None if on_progress is None else lambda fraction, epoch=epoch: on_progress(epoch, fraction)
        train_loss, train_accuracy = engine.train_epoch(order, progress)
        trained = time.perf_counter()
        if not splits.judged_once:
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
        decision = on_epoch(metrics)
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
        judged_once=splits.judged_once,
        confusion=confusion,
        training_seconds=time.perf_counter() - began,
        cpu_seconds=time.process_time() - cpu_began,
        peak_memory_mb=peak_memory_mb(),
        samples_seen=samples_seen,
        updates=len(epochs) * batches_per_epoch(config, len(splits.train)),
        parameters=model.count_params(),
        weights_sha256=weights_sha256(model),
        engine=engine.name,
    )


def _reset_peak_memory() -> None:
    """Begins a new high-water mark, where the system can: a warm worker's earlier trials are not this run's."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> float:
    """The most memory (resident, MB) that this process has held since the mark was reset, or ever."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
