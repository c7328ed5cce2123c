"""Trainers for tests of studies and faults: real worker processes and real records, without Keras."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from mlflow.models import Model

from digitcnn import runner
from digitcnn.config import RunConfig
from digitcnn.errors import TrainingDiverged
from digitcnn.records import Artifact
from digitcnn.runner import Job
from digitcnn.runner.run import saved_training
from digitcnn.training import (
    SavedTraining,
    available_cores,
    describe_environment,
    identify_training,
    write_checkpoint,
)
from digitcnn.values import Checkpoint, Decision, Ending, EpochMetrics, Events, RunFinished, RunStarted, TrainingResult

Training = Generator[EpochMetrics | Checkpoint, Decision, TrainingResult]

# The files of a model, without Keras.
MODEL = {"MLmodel": Model(run_id="").to_yaml().encode(), "weights": bytes(1000)}


def result_of(
    training: Training, on_epoch: Callable[[EpochMetrics], Decision] = lambda _: "continue"
) -> TrainingResult:
    """Bring a training to its end; return its result."""
    try:
        event = next(training)
        while True:
            event = training.send(on_epoch(event) if isinstance(event, EpochMetrics) else "continue")
    except StopIteration as end:
        result: TrainingResult = end.value
        return result


def started(config: RunConfig) -> RunStarted:
    threads = config.training.threads or available_cores()
    return RunStarted(describe_environment(threads, config.backend), runner.check_run(config).sha256)


@dataclass(frozen=True)
class InstantTrainer:
    """Yields epochs whose accuracy follows from the parameters; each takes `seconds`.

    `variables` are those of the worker process's environment, names and values.
    """

    seconds: float = 0.0
    model: bool = False
    variables: tuple[tuple[str, str], ...] = ()

    def prepare(self, threads: int) -> None:
        os.environ.update(self.variables)

    def run(self, job: Job, on_progress: Callable[[int, float], None]) -> Events:
        yield from self.events(job.config)

    def events(self, job: RunConfig) -> Events:
        """Yield the events of a run."""
        kind = "test" if job.data.validation == "test_once" else "validation"
        ending: Ending = "completed"
        yield started(job)
        for epoch in range(1, job.training.epochs + 1):
            time.sleep(self.seconds)
            accuracy = self.accuracy(job, epoch)
            judged = (None, None) if kind == "test" else (1 - accuracy, accuracy)
            self.before_epoch(job, epoch)
            decision = yield EpochMetrics(epoch, 1.0, 0.5, *judged, 1.0, 100.0)
            if decision != "continue" and epoch < job.training.epochs:
                ending = "pruned" if decision == "prune" else "stopped"
                break
        yield self.result(job, ending, epoch, {f"{kind}_accuracy": accuracy, f"{kind}_loss": 1 - accuracy})

    def accuracy(self, job: RunConfig, epoch: int) -> float:
        """Return the accuracy after an epoch."""
        return 0.5 + 0.001 * job.training.batch_size + 0.01 * epoch

    def before_epoch(self, job: RunConfig, epoch: int) -> None:
        """Do nothing: a hook for trainers that fail on purpose."""

    def result(self, job: RunConfig, ending: Ending, epochs: int, judged: dict[str, float]) -> RunFinished:
        model = MODEL if self.model and ending == "completed" else {}
        return RunFinished(ending, epochs, judged | {"cpu_seconds": float(epochs)}, "a" * 64, "instant", {}, model)


@dataclass(frozen=True)
class StoppingTrainer(InstantTrainer):
    """Stops early, after an epoch for each 50 images of a batch."""

    def events(self, job: RunConfig) -> Events:
        yield from super().events(job.stopped_after(job.training.batch_size // 50))

    def result(self, job: RunConfig, ending: Ending, epochs: int, judged: dict[str, float]) -> RunFinished:
        return replace(super().result(job, ending, epochs, judged | {"epochs_run": float(epochs)}), engine="keras")


@dataclass(frozen=True)
class LuckyTrainer(InstantTrainer):
    """Yields the highest accuracy with one seed of the batch size 200, and the highest on average with 100."""

    def accuracy(self, job: RunConfig, epoch: int) -> float:
        lucky = job.training.batch_size == 200 and job.training.seed == 1
        return 0.99 if lucky else {50: 0.6, 100: 0.9, 200: 0.5}[job.training.batch_size]


@dataclass(frozen=True)
class ConfirmingTrainer(InstantTrainer):
    """Yields all that a confirmation needs of a run, without Keras.

    One image in ten is predicted wrongly by the baseline; a larger batch has fewer wrong. Runs of a batch size diverge
    in their second epoch with the seeds that `diverging` has for it.
    """

    diverging: tuple[tuple[int, int], ...] = ()

    def events(self, job: RunConfig) -> Events:
        training, splits = job.training, runner.check_run(job)
        yield started(job)
        for epoch in range(1, training.epochs + 1):
            time.sleep(self.seconds)
            if epoch == 2 and (training.batch_size, training.seed) in self.diverging:
                raise TrainingDiverged("the loss became nan in epoch 2")
            decision = yield EpochMetrics(epoch, 1.0, 0.5, None, None, 1.0, 100.0)
            if decision != "continue" and epoch < training.epochs:
                yield RunFinished("stopped", epoch, {}, "a" * 64, "keras", {}, {})
        labels = splits.validation.labels
        wrong = (np.arange(len(labels)) + training.seed) % (10 + training.batch_size) == 0
        predicted = np.where(wrong, (labels + 1) % 10, labels)
        rows = [
            f"{index},{label},{taken},0.9" for index, (label, taken) in enumerate(zip(labels, predicted, strict=True))
        ]
        files = {Artifact.PREDICTIONS: "\n".join(["image,label,predicted,probability", *rows, ""]).encode()}
        summary = {"test_accuracy": 1 - float(wrong.mean()), "test_loss": 0.1, "cpu_seconds": 1.0, "parameters": 9}
        yield RunFinished("completed", training.epochs, summary, "a" * 64, "keras", files, MODEL)


@dataclass(frozen=True)
class SavingTrainer(InstantTrainer):
    """Yields a checkpoint after every epoch, goes on from one, and notes in a file each epoch that it trains.

    Once with each batch size it kills its process before epoch `dies`.
    """

    folder: Path = Path()
    dies: int = 0

    def run(self, job: Job, on_progress: Callable[[int, float], None]) -> Events:
        config, length = job.config, job.config.training.epochs
        begun = started(config)
        identity = identify_training(config, begun.data_sha256, begun.environment)
        saved, refused = saved_training(job, identity)
        epochs = list(saved.epochs) if saved else []
        count, epoch = len(epochs), 0
        ending: Ending = "completed"
        yield replace(begun, refused=refused)
        for epoch in range(1, length + 1):
            if epoch > count:
                self.before_epoch(config, epoch)
                accuracy = self.accuracy(config, epoch)
                digest = hashlib.sha256(f"{config.training.batch_size} {epoch}".encode()).hexdigest()
                epochs.append(EpochMetrics(epoch, 1.0, 0.5, 1 - accuracy, accuracy, 1.0, 9.0, epoch, epoch, digest))
            decision = yield epochs[epoch - 1]
            if job.saves and epoch > count:
                content = write_checkpoint(SavedTraining(tuple(epochs[:epoch]), 9.0, [np.arange(epoch)]), identity)
                assert content is not None
                yield Checkpoint(epoch, content)
            if decision != "continue" and count <= epoch < length:
                ending = "pruned" if decision == "prune" else "stopped"
                break
        last = epochs[epoch - 1]
        files = {Artifact.EPOCHS: json.dumps([vars(each) for each in epochs[:epoch]]).encode()}
        metrics = {name: value for name, value in last.metrics().items() if name.startswith("val")}
        metrics |= {"cpu_seconds": last.cpu_seconds, "training_seconds": last.training_seconds}
        cost = {"cpu_spent": float(epoch - count), "samples_seen": 500 * epoch, "updates": 10 * epoch, "parameters": 7}
        model = MODEL if ending == "completed" else {}
        yield RunFinished(ending, epoch, metrics | cost, last.weights_sha256, "instant", files, model, count)

    def before_epoch(self, job: RunConfig, epoch: int) -> None:
        mark = self.folder / f"killed-{job.training.batch_size}"
        if epoch == self.dies and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        with (self.folder / "trained").open("a") as file:
            file.write(f"{job.training.batch_size} {epoch}\n")


@dataclass(frozen=True)
class SeedsTrainer(SavingTrainer):
    """Gets a little more with seed 2 and less with seed 3; notes batch size and seed of each epoch that it trains."""

    def accuracy(self, job: RunConfig, epoch: int) -> float:
        return super().accuracy(job, epoch) + {1: 0.0, 2: 0.001, 3: -0.001}[job.training.seed]

    def before_epoch(self, job: RunConfig, epoch: int) -> None:
        with (self.folder / "trained").open("a") as file:
            file.write(f"{job.training.batch_size} {job.training.seed} {epoch}\n")


@dataclass(frozen=True)
class SuicidalTrainer(InstantTrainer):
    """Kills its own process once with each of the batch sizes, before the first epoch; with `always`, each time."""

    folder: Path = Path()
    batch_sizes: tuple[int, ...] = ()
    always: bool = False

    def before_epoch(self, job: RunConfig, epoch: int) -> None:
        mark = self.folder / f"killed-{job.training.batch_size}"
        if job.training.batch_size in self.batch_sizes and (self.always or not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class DivergingTrainer(InstantTrainer):
    """Diverges in every trial."""

    def before_epoch(self, job: RunConfig, epoch: int) -> None:
        raise TrainingDiverged("the loss became nan in epoch 1")


@dataclass(frozen=True)
class BrokenTrainer(InstantTrainer):
    """Raises the same error in every trial, or in those of some batch sizes, as long as there is no `mend` file."""

    batch_sizes: tuple[int, ...] = ()
    mend: Path = Path("none")

    def before_epoch(self, job: RunConfig, epoch: int) -> None:
        if not self.mend.exists() and (not self.batch_sizes or job.training.batch_size in self.batch_sizes):
            raise RuntimeError("the matrix is singular")
