"""The training loop: epochs, their order of images, their metrics, and the result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from digitcnn.config import RunConfig, TrainingConfig
from digitcnn.errors import TrainingDiverged
from digitcnn.records import Metric
from digitcnn.training.engines import make_engine
from digitcnn.training.engines.augmentation import draw_transforms
from digitcnn.training.engines.checkpoint import SavedTraining
from digitcnn.training.engines.optimizers import batches_per_epoch
from digitcnn.training.machine import peak_memory_mb, reset_peak_memory, resident_memory_mb
from digitcnn.training.network import weights_sha256
from digitcnn.values import Checkpoint, Decision, Ending, EpochMetrics, Evaluation, Splits, TrainingResult

if TYPE_CHECKING:
    import keras

# What a kill costs at most, and one epoch.
_CHECKPOINT_SECONDS = 30.0


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


def is_last(epochs: Sequence[EpochMetrics], config: TrainingConfig) -> bool:
    """Return True if a training ends by itself with the last of these epochs.

    It does with the config's last, or early: if the validation losses of the last `early_stopping` epochs are not below
    the least before them. Keras's EarlyStopping does the same; of its patience of 0 it makes 1.
    """
    patience, losses = config.early_stopping, [each.validation_loss or 0.0 for each in epochs]
    early = patience is not None and len(losses) - 1 - losses.index(min(losses)) >= patience
    return early or len(epochs) == config.epochs


def train(
    model: keras.Model,
    splits: Splits,
    run: RunConfig,
    on_progress: Callable[[int, float], None] | None = None,
    save: Callable[[SavedTraining], bytes | None] | None = None,
    saved: SavedTraining | None = None,
) -> Generator[EpochMetrics | Checkpoint, Decision, TrainingResult]:
    """Train the model in place on cross-entropy; judge it after every epoch, or after the last alone.

    Yield each epoch's metrics, to be answered with a decision on whether to go on; return the result. Those of a
    `saved` training, from which it goes on, are yielded first; the decision on the last of them counts. With `save`,
    which returns the bytes of a checkpoint, yield one after an epoch from time to time and at the end.
    `on_progress(epoch, fraction)` is called within an epoch. Raises TrainingDiverged when a loss is no longer a finite
    number.
    """
    config, began = run.training, time.perf_counter()
    engine = make_engine(model, splits.train, config, run.augmentation.augments)
    compile_seconds = time.perf_counter() - began
    epochs: list[EpochMetrics] = []
    before = saved.epochs if saved else ()
    training_before, cpu_before = (before[-1].training_seconds, before[-1].cpu_seconds) if before else (0.0, 0.0)
    ending: Ending = "completed"
    final: Evaluation | None = None
    reset_peak_memory()
    began, cpu_began, saved_at = time.perf_counter(), time.process_time(), time.monotonic()
    if saved:
        engine.restore(saved.state)
        engine.finish()
    for epoch, order in enumerate(epoch_orders(config, len(splits.train)), start=1):
        if epoch <= len(before):
            metrics = before[epoch - 1]
        else:
            epoch_began = time.perf_counter()
            progress = None if on_progress is None else lambda fraction, epoch=epoch: on_progress(epoch, fraction)
            transforms = draw_transforms(run.augmentation, config.seed, epoch, len(order), *splits.image_shape)
            train_loss, train_accuracy = engine.train_epoch(order, progress, transforms)
            trained = time.perf_counter()
            if not splits.final_test_only:
                final = engine.evaluate(splits.validation)
            bad = [loss for loss in (train_loss, 0.0 if final is None else final.loss) if not math.isfinite(loss)]
            if bad:
                raise TrainingDiverged(f"the loss became {bad[0]} in epoch {epoch}")
            engine.finish()
            metrics = EpochMetrics(
                epoch=epoch,
                train_loss=train_loss,
                train_accuracy=train_accuracy,
                validation_loss=None if final is None else final.loss,
                validation_accuracy=None if final is None else final.accuracy,
                epoch_seconds=time.perf_counter() - epoch_began,
                images_per_second=len(order) / (trained - epoch_began),
                training_seconds=training_before + time.perf_counter() - began,
                cpu_seconds=cpu_before + time.process_time() - cpu_began,
                weights_sha256=weights_sha256(model),
                memory_mb=resident_memory_mb(),
            )
        epochs.append(metrics)
        decision = yield metrics
        last = is_last(epochs, config)
        # Before the last saved epoch there are no weights to end with.
        cut = decision != "continue" and not last and epoch >= len(before)
        due = cut or last or time.monotonic() > saved_at + _CHECKPOINT_SECONDS
        if save and due and epoch > len(before):
            content = save(SavedTraining(tuple(epochs), _peak(saved), engine.state()))
            if content and (yield Checkpoint(epoch, content)) == "stop" and not cut:
                decision, cut = "stop", not last
            saved_at = time.monotonic()
        if cut:
            ending = "pruned" if decision == "prune" else "stopped"
        if cut or last:
            break
    if final is None:
        final = engine.evaluate(splits.validation)
        if not math.isfinite(final.loss):
            raise TrainingDiverged(f"the loss on the test set is {final.loss}")
    confusion = np.zeros((splits.classes, splits.classes), dtype=np.int64)
    np.add.at(confusion, (splits.validation.labels, final.predictions), 1)
    cpu_spent = time.process_time() - cpu_began
    return TrainingResult(
        ending=ending,
        epochs=tuple(epochs),
        final=final,
        labels=splits.validation.labels,
        final_test_only=splits.final_test_only,
        confusion=confusion,
        summary=_judged(epochs, final, splits.final_test_only)
        | {
            # Until the engine was ready; all others come after that.
            Metric.COMPILE_SECONDS: compile_seconds,
            Metric.TRAINING_SECONDS: training_before + time.perf_counter() - began,
            Metric.CPU_SECONDS: cpu_before + cpu_spent,
            Metric.CPU_SPENT: cpu_spent,
            Metric.PEAK_MEMORY_MB: _peak(saved),
            Metric.EPOCHS_RUN: len(epochs),
            Metric.SAMPLES_SEEN: len(epochs) * samples_per_epoch(config, len(splits.train)),
            Metric.UPDATES: len(epochs) * batches_per_epoch(config, len(splits.train)),
            Metric.PARAMETERS: model.count_params(),
        },
        weights_sha256=epochs[-1].weights_sha256,
        engine=engine.name,
        epochs_before=len(before),
    )


def _judged(epochs: Sequence[EpochMetrics], final: Evaluation, once: bool) -> dict[str, float]:
    """Return the last and the best validation, or the test of what is judged once, by their names."""
    if once:
        return {Metric.TEST_LOSS: final.loss, Metric.TEST_ACCURACY: final.accuracy}
    best = max(epochs, key=lambda epoch: epoch.validation_accuracy or 0.0)
    return {
        Metric.VALIDATION_LOSS: final.loss,
        Metric.VALIDATION_ACCURACY: final.accuracy,
        Metric.BEST_VALIDATION_ACCURACY: best.validation_accuracy or 0.0,
        Metric.BEST_EPOCH: best.epoch,
    }


def _peak(saved: SavedTraining | None) -> float:
    return max(peak_memory_mb(), saved.peak_memory_mb if saved else 0.0)
