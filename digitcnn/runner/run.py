"""One recorded run: trained by a worker, or in this process, and recorded by the process that owns it."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from digitcnn import study, tracking, training
from digitcnn.config import Backend, RunConfig
from digitcnn.errors import ConfigError, MachineError, TrainingDiverged
from digitcnn.records import Artifact, EnvironmentKey, Tag
from digitcnn.runner.pool import Job, RunDiverged, RunFailed, Trainer, Worker, WorkerDied, answer_events
from digitcnn.training import Checkpoints, SavedTraining, StoredCheckpoint, build_model, samples_per_epoch, train
from digitcnn.values import Checkpoint, Decision, EpochMetrics, Event, Events, RunFinished, RunStarted, Splits

logger = logging.getLogger(__name__)

# Kept for the next run of this process: a sweep's trials share them.
_load_once = functools.lru_cache(maxsize=1)(training.load_splits)
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

    Raises ConfigError, and MachineError if its model could not be packaged; creates nothing, and imports neither the
    backend nor MLflow.
    """
    training.check_installed(config.backend)
    splits = _load_once(config.data)
    height, width = splits.image_shape
    training.check_fits(config.model, height, width, splits.classes)
    training.check_temporary_folder(training.count_parameters(config.model, height, width, splits.classes))
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


def tell_doubts(config: RunConfig) -> Splits:
    """Check a run and return its splits as check_run does, and log what makes results on its data doubtful."""
    splits = check_run(config)
    for doubt in splits.doubts:
        logger.warning(f"data.path={config.data.path}: {doubt}")
    return splits


@dataclass(frozen=True)
class KerasTrainer:
    """The trainer of every study: Keras on a backend."""

    backend: Backend = "tensorflow"

    def prepare(self, threads: int) -> None:
        """Import Keras with that many threads."""
        training.import_keras(threads, self.backend)

    def run(self, job: Job, on_progress: Callable[[int, float], None]) -> Events:
        """Train as a job says; yield the events of the run."""
        config = job.config
        splits = check_run(config)
        import keras

        # Frees the layers of earlier runs in this process.
        keras.backend.clear_session()
        environment = training.describe_environment(training.thread_count(config.training), config.backend)
        identity = training.identify_training(config, splits.sha256, environment)
        saved, refused = saved_training(job, identity)
        yield RunStarted(environment, splits.sha256, refused)
        height, width = splits.image_shape
        model = build_model(config.model, height, width, splits.classes, config.training.seed)
        save = functools.partial(training.write_checkpoint, training=identity) if job.saves else None
        result = yield from train(model, splits, config, on_progress, save, saved)
        yield tracking.package_result(config, result, model, environment[EnvironmentKey.PACKAGES])


def saved_training(job: Job, identity: Mapping[str, Any]) -> tuple[SavedTraining | None, str]:
    """Return the training that a job goes on from, if there is one, or else why its checkpoint is refused."""
    if job.checkpoint is None:
        return None, ""
    try:
        return training.read_checkpoint(job.checkpoint, identity, job.config.training.epochs), ""
    except training.CheckpointRefused as error:
        return None, str(error)


class ThisProcess:
    """This process as a worker: for a command that trains one run, or for what is not trained."""

    index = 0

    def __init__(self, trainer: Trainer, on_progress: Callable[[int, float], None]) -> None:
        self.trainer, self.on_progress = trainer, on_progress

    def wait_ready(self) -> bool:
        """Return True: this process is here."""
        return True

    def run(self, job: Job, on_event: Callable[[Event], Decision], stop: threading.Event) -> RunFinished:
        """Do a job; see Worker. Raises what the training raises, but for RunDiverged."""
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
    saves: bool = False,
    continues: str | None = None,
) -> FinishedRun:
    """Train as the config says in this process, and record it as a new run.

    `on_epoch` is called when an epoch has been recorded and decides if the training goes on. With `saves` it goes on at
    the last checkpoint of the run `continues`, or of one with the same config that was not finished, and leaves its own
    last one. Raises ConfigError before anything is recorded; TrainingDiverged, and any failure of the machine, when the
    run has been closed as FAILED.
    """
    threads = training.thread_count(config.training)
    # What is recorded is what was used.
    config = config.replace({"training.threads": threads})
    splits = tell_doubts(config)
    trainer = trainer or KerasTrainer(config.backend)
    trainer.prepare(threads)
    epochs: list[EpochMetrics] = []

    def keep(metrics: EpochMetrics) -> Decision:
        epochs.append(metrics)
        return on_epoch(metrics)

    store = tracking.open_store(config.tracking)
    with tracking.store_errors(config.tracking):
        tracking.with_retries(store, lambda: tracking.close_abandoned_runs(store))
        checkpoints = training.checkpoints_of(config.tracking.checkpoints("train"), config, splits.sha256)
        start = _start(store, config, checkpoints, continues) if saves else None
        name = f"{config.model.name}-{time.strftime('%m%d-%H%M%S')}"
        name = ", ".join(filter(None, (name, study.differences_in_words(config, config.defaults))))
        run_id = tracking.create_training_run(store, config, name, tags)
        try:
            worker = ThisProcess(trainer, on_progress)
            result = record_training(
                store, worker, config, run_id, keep, threading.Event(), checkpoints if saves else None, start
            )
        except RunDiverged as error:
            raise TrainingDiverged(str(error)) from None
        if saves:
            checkpoints.finish(config.training.epochs)
        # The end of a command, which cannot wait.
        with tracking.suppress_away():
            tracking.deliver(store)
    return FinishedRun(run_id, tuple(epochs), result)


def _start(
    store: tracking.Store, config: RunConfig, checkpoints: Checkpoints, continues: str | None
) -> StoredCheckpoint | None:
    """Return the checkpoint that a training goes on from, if there is one; say so."""
    epochs = config.training.epochs
    if continues is not None:
        start = training.checkpoint_of_run(config.tracking.checkpoints(), continues, epochs)
        if start is None:
            logger.warning(f"run {continues} has no checkpoint of {epochs} epochs or fewer: trained from the start")
    else:
        start = checkpoints.find(epochs)
        if start is not None and tracking.is_running(store, start.run_id):
            # Of another process, which still needs it.
            start = None
    if start is not None:
        logger.info(f"goes on after epoch {start.epoch} of run {start.run_id}")
    return start


def record_training(
    store: tracking.Store,
    worker: Worker,
    config: RunConfig,
    run_id: str,
    on_epoch: Callable[[EpochMetrics], Decision],
    stop: threading.Event,
    checkpoints: Checkpoints | None = None,
    start: StoredCheckpoint | None = None,
    close: bool = True,
) -> RunFinished:
    """Have a worker train a config, and record the events of the run; close it however it ends.

    What the store does not take for now is queued. `on_epoch` is called when an epoch has been recorded. The run's
    checkpoints are kept in `checkpoints`, and it goes on from `start`. Without `close` a completed run is left open.
    Raises Interrupted if the worker was ended because of `stop`, otherwise as the worker and `on_epoch` do.
    """
    run = tracking.Run(store, run_id, config)

    def record(event: Event) -> Decision:
        if isinstance(event, RunStarted):
            # The worker is a process of this command, on whatever machine.
            environment, splits = {**event.environment, Tag.COMMAND: training.command_line()}, check_run(config)
            if event.data_sha256 != splits.sha256:
                raise MachineError(f"data.path={config.data.path}: the file was changed, or is another one on a node")
            run.log_start(RunStarted(environment, event.data_sha256), splits)
            if environment.get(EnvironmentKey.GIT, {}).get(EnvironmentKey.DIRTY):
                tracking.put_files(store, run_id, {Artifact.CHANGES: training.uncommitted_changes()})
            if start is not None and event.refused:
                logger.warning(f"checkpoint {start.path.name} {event.refused}: trained from the start")
                if checkpoints is not None and start.path.parent == checkpoints.folder:
                    # Not that of a finished run, which may be of use elsewhere.
                    start.path.unlink(missing_ok=True)
            elif start is not None:
                tracking.put(store, run_id, tracking.tags({Tag.CONTINUES: start.run_id}))
        elif isinstance(event, EpochMetrics):
            run.log_epoch(event)
            return on_epoch(event)
        elif isinstance(event, Checkpoint) and checkpoints is not None:
            checkpoints.keep(run_id, event)
        return "continue"

    job = Job(config, checkpoints is not None, None if start is None else start.read())
    try:
        finished = worker.run(job, record, stop)
        run.log_finish(finished, close)
    except BaseException as error:
        if isinstance(error, RunFailed) and checkpoints is not None:
            # It would fail again from there, or there is something wrong with the checkpoint.
            checkpoints.drop()
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
