"""Find the epochs that a training begins with, a longer run's or a checkpoint's, and record it from there."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from digitcnn import tracking, training
from digitcnn.config import RunConfig
from digitcnn.records import Artifact, Metric, Tag
from digitcnn.runner.pool import Job, Worker
from digitcnn.runner.run import ThisProcess, record_training
from digitcnn.training import Checkpoints, StoredCheckpoint
from digitcnn.values import Decision, EpochMetrics, Events, RunFinished, RunStarted


@dataclass(frozen=True)
class RecordedEpochs:
    """A trainer that trains nothing: it yields the first epochs of a recorded run as those of a shorter one.

    `summary` are the recorded run's final metrics by name, `environment` and `data_sha256` are its own.
    """

    run_id: str
    epochs: tuple[EpochMetrics, ...]
    summary: Mapping[str, float]
    environment: Mapping[str, Any]
    data_sha256: str
    engine: str

    def prepare(self, threads: int) -> None:
        """Do nothing."""

    def run(self, job: Job, on_progress: Callable[[int, float], None]) -> Events:
        """Yield the events of the shorter run, to which decisions make no difference: it has its result."""
        count = job.config.training.epochs
        epochs, last = self.epochs[:count], self.epochs[count - 1]
        best = max(epochs, key=lambda each: each.validation_accuracy or 0.0)
        yield RunStarted(self.environment, self.data_sha256)
        for each in epochs:  # noqa: UP028 - a tuple takes no decisions
            yield each
        own, whole = last.metrics(), len(self.epochs)
        summary = {
            # Names with a dot are those of several seeds, and of a confirmation; those with a slash are the system's.
            **{
                name: value
                for name, value in self.summary.items()
                if name not in {*own, Metric.SEEDS} and not {".", "/"} & {*name}
            },
            **{name: own[name] for name in (Metric.VALIDATION_LOSS, Metric.VALIDATION_ACCURACY)},
            Metric.BEST_VALIDATION_ACCURACY: best.validation_accuracy or 0.0,
            Metric.BEST_EPOCH: best.epoch,
            Metric.TRAINING_SECONDS: last.training_seconds,
            Metric.CPU_SECONDS: last.cpu_seconds,
            Metric.CPU_SPENT: 0.0,
            Metric.EPOCHS_RUN: count,
            # Whole numbers: each epoch has as many as another.
            Metric.SAMPLES_SEEN: self.summary[Metric.SAMPLES_SEEN] * count / whole,
            Metric.UPDATES: self.summary[Metric.UPDATES] * count / whole,
        }
        yield RunFinished("completed", count, summary, last.weights_sha256, self.engine, {}, {}, epochs_before=count)


def recorded_epochs(store: tracking.Store, run_id: str, config: RunConfig) -> RecordedEpochs | None:
    """Return the epochs of a recorded run if they begin with those of a config, threads included; else None."""
    found = tracking.find_runs(store, f"attributes.run_id = '{run_id}'")
    if not found or training.depends_on_length(config.training):
        return None
    wanted = {name: str(value) for name, value in config.parameters().items() if name != "training.epochs"}
    data, epochs = found[0].data, tracking.read_epochs(store, run_id)
    if len(epochs) < config.training.epochs or not wanted.items() <= data.params.items():
        return None
    environment = json.loads(tracking.read_text(store, run_id, Artifact.ENVIRONMENT))
    tags = data.tags
    return RecordedEpochs(run_id, epochs, data.metrics, environment, tags[Tag.DATA_SHA256], tags[Tag.ENGINE])


@dataclass(frozen=True)
class Start:
    """A training's start: the epochs of a longer run, or a checkpoint, or nothing; and its own checkpoints."""

    config: RunConfig
    checkpoints: Checkpoints
    curve: RecordedEpochs | None
    stored: StoredCheckpoint | None

    @property
    def epochs(self) -> int:
        """The number of epochs that were trained before."""
        return self.config.training.epochs if self.curve else self.stored.epoch if self.stored else 0

    def record(
        self,
        store: tracking.Store,
        worker: Worker,
        run_id: str,
        on_epoch: Callable[[EpochMetrics], Decision],
        stop: threading.Event,
        close: bool,
    ) -> RunFinished:
        """Train from here, and record it as `record_training` does; what is read off a longer run has no model."""
        if self.curve is None:
            return record_training(
                store, worker, self.config, run_id, on_epoch, stop, self.checkpoints, self.stored, close
            )
        tracking.put(store, run_id, tracking.tags({Tag.PREFIX_OF: self.curve.run_id}))
        reader = ThisProcess(self.curve, lambda epoch, fraction: None)
        return record_training(store, reader, self.config, run_id, on_epoch, threading.Event(), close=close)


def find_start(store: tracking.Store, checkpoints: Checkpoints, config: RunConfig, longer: str | None) -> Start:
    """Return what a training begins with, given its own checkpoints, if there are any, and a longer run's id."""
    curve = None if longer is None else recorded_epochs(store, longer, config)
    return Start(config, checkpoints, curve, checkpoints.find(config.training.epochs))
