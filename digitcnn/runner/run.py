"""One recorded run: trained by a worker, or in this process, and recorded by the process that owns it."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from digitcnn import tracking, training
from digitcnn.config import Backend, DataConfig, RunConfig
from digitcnn.errors import ConfigError, MachineError, TrainingDiverged
from digitcnn.records import EnvironmentKey, Tag
from digitcnn.runner.pool import RunDiverged, Trainer, Worker, WorkerDied, answer_events
from digitcnn.training import build_model, samples_per_epoch, train
from digitcnn.values import Decision, EpochMetrics, Event, Events, RunFinished, RunStarted, Splits

# An epoch's order of images is held in memory: 8 bytes each.
_MAX_SAMPLES = 100_000_000


@dataclass(frozen=True)
class FinishedRun:
    """A finished run: its MLflow run id, its epochs and its result."""

    run_id: str
    epochs: tuple[EpochMetrics, ...]
    result: RunFinished


def check_run(config: RunConfig) -> Splits:
    """Return the data of a run, checked: its backend is installed, and its network fits the images.

    Raises ConfigError; creates nothing, and imports neither the backend nor MLflow.
    """
    training.check_installed(config.backend)
    splits = _load_once(config.data)
    height, width = splits.image_shape
    training.check_fits(config.model, height, width, splits.classes)
    samples = samples_per_epoch(config.training, len(splits.train))
    if samples > _MAX_SAMPLES:
        raise ConfigError(f"training.steps_per_epoch: makes epochs of {samples:,} images; at most {_MAX_SAMPLES:,}")
    return splits


def recorded_before(config: RunConfig) -> str | None:
    """Return the id of a finished run that was trained as the config says, or None. Raises as `check_run` does."""
    splits = check_run(config)
    store = tracking.open_store(config.tracking)
    with tracking.store_errors(config.tracking):
        return tracking.same_training(store, config, splits.sha256)


@functools.lru_cache(maxsize=1)
def _load_once(config: DataConfig) -> Splits:
    """Return the splits of a data config, kept for the next run of this process: a sweep's trials share them."""
    return training.load_splits(config)


@dataclass(frozen=True)
class KerasTrainer:
    """The trainer of every study: Keras on a backend."""

    backend: Backend = "tensorflow"

    def prepare(self, threads: int) -> None:
        """Import Keras with that many threads."""
        training.import_keras(threads, self.backend)

    def run(self, job: RunConfig, on_progress: Callable[[int, float], None]) -> Events:
        """Train as a config says; yield the events of the run."""
        splits = check_run(job)
        import keras

        # Frees the layers of earlier runs in this process.
        keras.backend.clear_session()
        environment = training.describe_environment(training.thread_count(job.training), job.backend)
        yield RunStarted(environment, splits.sha256)
        height, width = splits.image_shape
        model = build_model(job.model, height, width, splits.classes, job.training.seed)
        result = yield from train(model, splits, job.training, on_progress)
        yield tracking.package_result(job, result, model, environment[EnvironmentKey.PACKAGES])


class _ThisProcess:
    """This process as a worker: for a command that trains one run."""

    index = 0

    def __init__(self, trainer: Trainer, on_progress: Callable[[int, float], None]) -> None:
        self.trainer, self.on_progress = trainer, on_progress

    def wait_ready(self) -> bool:
        """Return True: this process is here."""
        return True

    def run(self, job: RunConfig, on_event: Callable[[Event], Decision], stop: threading.Event) -> RunFinished:
        """Train a config; see Worker. Raises what the training raises, but for RunDiverged."""
        try:
            return answer_events(self.trainer.run(job, self.on_progress), on_event)
        except TrainingDiverged as error:
            raise RunDiverged(str(error)) from error


def record_run(
    config: RunConfig,
    *,
    tags: Mapping[str, str],
    on_epoch: Callable[[EpochMetrics], Decision] = lambda _: "continue",
    on_progress: Callable[[int, float], None] = lambda epoch, fraction: None,
    trainer: Trainer | None = None,
) -> FinishedRun:
    """Train as the config says in this process, and record it as a new run.

    `on_epoch` is called when an epoch has been recorded and decides if the training goes on. Raises ConfigError before
    anything is recorded; TrainingDiverged, and any failure of the machine, after the run was closed as FAILED.
    """
    threads = training.thread_count(config.training)
    # What is recorded is what was used.
    config = config.replace({"training.threads": threads})
    check_run(config)
    trainer = trainer or KerasTrainer(config.backend)
    trainer.prepare(threads)
    epochs: list[EpochMetrics] = []

    def keep(metrics: EpochMetrics) -> Decision:
        epochs.append(metrics)
        return on_epoch(metrics)

    store = tracking.open_store(config.tracking)
    with tracking.store_errors(config.tracking):
        tracking.with_retries(store, lambda: tracking.close_abandoned_runs(store))
        name = f"{config.model.name}-{time.strftime('%m%d-%H%M%S')}"
        run_id = tracking.create_training_run(store, config, name, tags)
        try:
            result = record_training(store, _ThisProcess(trainer, on_progress), config, run_id, keep, threading.Event())
        except RunDiverged as error:
            raise TrainingDiverged(str(error)) from None
        # The end of a command, which cannot wait.
        with tracking.suppress_away():
            tracking.deliver(store)
    return FinishedRun(run_id, tuple(epochs), result)


def record_training(
    store: tracking.Store,
    worker: Worker,
    config: RunConfig,
    run_id: str,
    on_epoch: Callable[[EpochMetrics], Decision],
    stop: threading.Event,
) -> RunFinished:
    """Have a worker train a config, and record the events of the run; close it however it ends.

    What the store does not take for now is queued. `on_epoch` is called when an epoch has been recorded. Raises
    Interrupted if the worker was ended because of `stop`, otherwise as the worker and `on_epoch` do.
    """
    run = tracking.Run(store, run_id, config)

    def record(event: Event) -> Decision:
        if isinstance(event, RunStarted):
            # The worker is a process of this command, on whatever machine.
            environment, splits = {**event.environment, Tag.COMMAND: training.command_line()}, check_run(config)
            if event.data_sha256 != splits.sha256:
                raise MachineError(f"data.path={config.data.path}: the file was changed, or is another one on a node")
            run.log_start(RunStarted(environment, event.data_sha256), splits)
        elif isinstance(event, EpochMetrics):
            run.log_epoch(event)
            return on_epoch(event)
        return "continue"

    try:
        finished = worker.run(config, record, stop)
        run.log_finish(finished)
    except BaseException as error:
        if isinstance(error, WorkerDied) and stop.is_set():
            tracking.close_run(store, run_id, "KILLED", "interrupted")
            raise Interrupted("interrupted") from None
        if isinstance(error, KeyboardInterrupt | SystemExit):
            tracking.close_run(store, run_id, "KILLED")
        else:
            kind = "" if type(error).__module__.startswith("digitcnn") else f"{type(error).__name__}: "
            if isinstance(error, RunDiverged):
                tracking.put(store, run_id, tracking.tags({Tag.DIVERGED: "true"}))
            tracking.close_run(store, run_id, "FAILED", f"{kind}{error}")
        raise
    return finished


class SweepDisplay(Protocol):
    """The display of a sweep or a confirmation, told of its trials by number and of confirming runs by name.

    `workers` is None where their number is not known before: on a cluster.
    """

    def began(self, name: str, total: int, finished: int, workers: int | None, metric: str) -> None: ...

    def trial_began(self, worker: int, trial: int | str, parameters: dict[str, Any], epochs: int) -> None: ...

    def epoch(self, worker: int, trial: int | str, metrics: EpochMetrics) -> None: ...

    def trial_ended(
        self, worker: int | None, trial: int | str, ending: str, value: float | None, best: str
    ) -> None: ...


class Interrupted(Exception):
    """The run was ended because its pool is to stop."""
