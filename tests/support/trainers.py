"""Trainers for tests of studies and faults: real worker processes and real records, without Keras."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from digitcnn import runner, tracking
from digitcnn.errors import TrainingDiverged
from digitcnn.records import Artifact
from digitcnn.runner import Job, Outcome
from digitcnn.tracking import operations, recorder
from digitcnn.training import available_cores, describe_environment
from digitcnn.values import Decision, EpochMetrics
from tests.support.recorded import saved_model


def _environment(job: Job) -> dict[str, Any]:
    return describe_environment(job.config.training.threads or available_cores(), job.config.backend)


@dataclass(frozen=True)
class InstantTrainer:
    """Records epochs whose accuracy follows from the parameters; each takes `seconds`.

    `variables` are those of the worker process's environment, names and values.
    """

    seconds: float = 0.0
    variables: tuple[tuple[str, str], ...] = ()

    def prepare(self, threads: int) -> None:
        os.environ.update(self.variables)

    def run(self, job: Job, on_epoch: Callable[[EpochMetrics], Decision]) -> Outcome:
        training = job.config.training
        kind = "test" if job.config.data.validation == "test_once" else "validation"
        with tracking.start_run(job.config, job.tags, _environment(job), job.run_id) as run:
            for epoch in range(1, training.epochs + 1):
                time.sleep(self.seconds)
                accuracy = 0.5 + 0.001 * training.batch_size + 0.01 * epoch
                judged = (None, None) if kind == "test" else (1 - accuracy, accuracy)
                metrics = EpochMetrics(epoch, 1.0, 0.5, *judged, 1.0, 100.0)
                run.log_epoch(metrics)
                self.after_epoch(job, metrics)
                decision = on_epoch(metrics)
                if decision != "continue" and epoch < training.epochs:
                    run.ending = "pruned" if decision == "prune" else "stopped"
                    break
            else:
                run.ending = "completed"
            summary = {f"{kind}_accuracy": accuracy, f"{kind}_loss": 1 - accuracy, "cpu_seconds": float(epoch)}
            tracking.put(run.store, run.run_id, tracking.metrics(summary, epoch))
            self.at_the_end(job, run)
        return Outcome(run.ending, epoch, summary)

    def after_epoch(self, job: Job, metrics: EpochMetrics) -> None:
        """Do nothing: a hook for trainers that fail on purpose."""

    def at_the_end(self, job: Job, run: recorder.Run) -> None:
        """Do nothing: a hook for failures when all has been recorded but how the run ended."""


@dataclass(frozen=True)
class ConfirmingTrainer(InstantTrainer):
    """Records all that a confirmation needs of a run, without Keras.

    One image in ten is predicted wrongly by the baseline; a larger batch has fewer wrong. Runs of a batch size diverge
    in their second epoch with the seeds that `diverging` has for it.
    """

    diverging: tuple[tuple[int, int], ...] = ()

    def run(self, job: Job, on_epoch: Callable[[EpochMetrics], Decision]) -> Outcome:
        training, splits = job.config.training, runner.check_run(job.config)
        with tracking.start_run(job.config, job.tags, _environment(job), job.run_id) as run:
            run.log_data(splits)
            for epoch in range(1, training.epochs + 1):
                time.sleep(self.seconds)
                metrics = EpochMetrics(epoch, 1.0, 0.5, None, None, 1.0, 100.0)
                if epoch == 2 and (training.batch_size, training.seed) in self.diverging:
                    raise TrainingDiverged("the loss became nan in epoch 2")
                run.log_epoch(metrics)
                if on_epoch(metrics) != "continue" and epoch < training.epochs:
                    return Outcome("stopped", epoch, {})
            labels = splits.validation.labels
            wrong = (np.arange(len(labels)) + training.seed) % (10 + training.batch_size) == 0
            predicted = np.where(wrong, (labels + 1) % 10, labels)
            rows = [
                f"{index},{label},{taken},0.9"
                for index, (label, taken) in enumerate(zip(labels, predicted, strict=True))
            ]
            text = "\n".join(["image,label,predicted,probability", *rows, ""])
            tracking.put_files(run.store, run.run_id, {Artifact.PREDICTIONS: text})
            summary = {"test_accuracy": 1 - float(wrong.mean()), "test_loss": 0.1, "cpu_seconds": 1.0, "parameters": 9}
            tracking.put(run.store, run.run_id, tracking.metrics(summary, training.epochs))
            tracking.put(run.store, run.run_id, tracking.tags({"weights_sha256": "a" * 64, "engine": "keras"}))
            with tempfile.TemporaryDirectory() as folder:
                tracking.put(run.store, run.run_id, operations.model(saved_model(Path(folder) / "model"), {}))
            run.ending = "completed"
        return Outcome("completed", training.epochs, summary)


@dataclass(frozen=True)
class SuicidalTrainer(InstantTrainer):
    """Kills its own process once, in the first epoch of each trial whose number is in `trials`."""

    folder: Path = Path()
    trials: tuple[int, ...] = ()

    def after_epoch(self, job: Job, metrics: EpochMetrics) -> None:
        number = int(job.tags["trial"])
        mark = self.folder / f"killed-{number}"
        if number in self.trials and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class BrokenTrainer(InstantTrainer):
    """Raises the same error in every trial."""

    def after_epoch(self, job: Job, metrics: EpochMetrics) -> None:
        raise RuntimeError("the matrix is singular")
