"""Trainers for tests of studies and faults: real worker processes and real records, without Keras."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from digitcnn import tracking
from digitcnn.training import Decision, EpochMetrics
from digitcnn.workers import Job, Outcome


@dataclass(frozen=True)
class InstantTrainer:
    """Records epochs whose accuracy follows from the parameters; each takes `seconds`."""

    seconds: float = 0.0

    def prepare(self, threads: int) -> None:
        pass

    def run(self, job: Job, on_epoch: Callable[[EpochMetrics], Decision]) -> Outcome:
        training = job.config.training
        with tracking.run(job.config, job.tags, job.run_id) as run:
            for epoch in range(1, training.epochs + 1):
                time.sleep(self.seconds)
                accuracy = 0.5 + 0.001 * training.batch_size + 0.01 * epoch
                metrics = EpochMetrics(epoch, 1.0, 0.5, 1 - accuracy, accuracy, 1.0, 100.0)
                run.log_epoch(metrics)
                self.after_epoch(job, metrics)
                decision = on_epoch(metrics)
                if decision != "continue" and epoch < training.epochs:
                    run.ending = "pruned" if decision == "prune" else "stopped"
                    break
            else:
                run.ending = "completed"
            summary = {"validation_accuracy": accuracy, "validation_loss": 1 - accuracy, "cpu_seconds": float(epoch)}
            for name, value in summary.items():
                run.store.client.log_metric(run.run_id, name, value, step=epoch)
            self.at_the_end(job, run)
        return Outcome(run.ending, epoch, summary)

    def after_epoch(self, job: Job, metrics: EpochMetrics) -> None:
        """For trainers that fail on purpose."""

    def at_the_end(self, job: Job, run: tracking.Run) -> None:
        """For trainers that fail on purpose when all has been recorded but how the run ended."""


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
