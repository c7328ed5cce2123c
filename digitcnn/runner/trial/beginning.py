"""Read the epochs of a training off those of a longer run that is recorded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from digitcnn import tracking, training
from digitcnn.config import RunConfig
from digitcnn.records import Artifact, Metric, Tag
from digitcnn.runner.pool import Job
from digitcnn.values import EpochMetrics, Events, RunFinished, RunStarted


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
