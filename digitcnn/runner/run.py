"""One recorded run: trained in this process, or by a worker as the job of a trial or a confirmation."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from digitcnn import tracking, training
from digitcnn.config import Backend, DataConfig, RunConfig
from digitcnn.errors import ConfigError, MachineError
from digitcnn.records import Tag
from digitcnn.runner.workers import Job, Outcome, Pool, RunFailed, Worker, WorkerDied
from digitcnn.training import build_model, samples_per_epoch, train
from digitcnn.values import Decision, EpochMetrics, Splits, TrainingResult

# An epoch's order of images is held in memory: 8 bytes each.
_MAX_SAMPLES = 100_000_000


@dataclass(frozen=True)
class FinishedRun:
    """A finished run: its MLflow run id and its result."""

    run_id: str
    result: TrainingResult


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


def record_run(
    config: RunConfig,
    *,
    tags: Mapping[str, str],
    run_id: str | None = None,
    on_epoch: Callable[[EpochMetrics], Decision] = lambda _: "continue",
    on_progress: Callable[[int, float], None] | None = None,
) -> FinishedRun:
    """Train as the config says and record it, in a new run or in one that was created for it.

    `on_epoch` is called when an epoch has been recorded and decides if the training goes on. Raises ConfigError before
    anything is recorded; TrainingDiverged, and any failure of the machine, after the run was closed as FAILED.
    """
    threads = training.thread_count(config.training)
    # What is recorded is what was used.
    config = config.replace({"training.threads": threads})
    splits = check_run(config)
    training.import_keras(threads, config.backend)
    import keras

    # Frees the layers of earlier runs in this process.
    keras.backend.clear_session()
    environment = training.describe_environment(threads, config.backend)
    with tracking.start_run(config, tags, environment, run_id) as run:
        run.log_data(splits)
        height, width = splits.image_shape
        model = build_model(config.model, height, width, splits.classes, config.training.seed)

        def record_epoch(metrics: EpochMetrics) -> Decision:
            run.log_epoch(metrics)
            return on_epoch(metrics)

        result = train(model, splits, config.training, record_epoch, on_progress)
        run.log_result(result, model)
    return FinishedRun(run.run_id, result)


@functools.lru_cache(maxsize=1)
def _load_once(config: DataConfig) -> Splits:
    """Return the splits of a data config, kept for the next run of this process: a sweep's trials share them."""
    return training.load_splits(config)


@dataclass(frozen=True)
class RecordedTraining:
    """The trainer of every study: real Keras on a backend, recorded in MLflow."""

    backend: Backend = "tensorflow"

    def prepare(self, threads: int) -> None:
        """Import Keras with that many threads."""
        training.import_keras(threads, self.backend)

    def run(self, job: Job, on_epoch: Callable[[EpochMetrics], Decision]) -> Outcome:
        """Train and record a job's run."""
        result = record_run(job.config, tags=job.tags, run_id=job.run_id, on_epoch=on_epoch).result
        return Outcome(result.ending, len(result.epochs), result.summary())


class SweepDisplay(Protocol):
    """The display of a sweep or a confirmation, told of its trials by number and of confirming runs by name."""

    def began(self, name: str, total: int, finished: int, workers: int, metric: str) -> None: ...

    def trial_began(self, worker: int, trial: int | str, parameters: dict[str, Any], epochs: int) -> None: ...

    def epoch(self, worker: int, trial: int | str, metrics: EpochMetrics) -> None: ...

    def trial_ended(
        self, worker: int | None, trial: int | str, ending: str, value: float | None, best: str
    ) -> None: ...


class Interrupted(Exception):
    """The run was ended because its pool is to stop."""


@contextlib.contextmanager
def run_job(
    store: tracking.Store,
    pool: Pool,
    job: Job,
    shown: SweepDisplay,
    label: int | str,
    parameters: dict[str, Any],
    decide: Callable[[EpochMetrics], Decision] = lambda _: "continue",
    best: Callable[[], str] = lambda: "",
) -> Iterator[tuple[int, Outcome]]:
    """Have the next idle worker do a job; yield the worker's number and the outcome while it is still held.

    `decide` is asked after each epoch, `best` gives the display the best result so far. A run without an outcome is
    closed, and shown as ended, before the error is raised: Interrupted, WorkerDied, RunFailed or MachineError, or
    whatever `decide` raised.
    """
    with pool.worker() as (index, worker):
        shown.trial_began(index, label, parameters, job.config.training.epochs)

        def on_epoch(metrics: EpochMetrics) -> Decision:
            shown.epoch(index, label, metrics)
            return decide(metrics)

        try:
            outcome = _run(store, worker, job, on_epoch, pool.stop)
        except (WorkerDied, RunFailed, MachineError) as error:
            interrupted = isinstance(error, WorkerDied) and pool.stop.is_set()
            cause = "interrupted" if interrupted else str(error)
            tracking.close_run(store, job.run_id, "KILLED" if interrupted else "FAILED", cause)
            kind = "failed: " if isinstance(error, RunFailed) else "" if interrupted else "lost: "
            shown.trial_ended(index, label, f"{kind}{cause}", None, best())
            raise (Interrupted(cause) if interrupted else error) from None
        except Exception as error:
            tracking.close_run(store, job.run_id, "FAILED", f"{type(error).__name__}: {error}")
            raise
        yield index, outcome


def _run(
    store: tracking.Store,
    worker: Worker,
    job: Job,
    on_epoch: Callable[[EpochMetrics], Decision],
    stop: threading.Event,
) -> Outcome:
    """Return the outcome of a job, also if its worker died when all was recorded but before it could say so."""
    try:
        return worker.run(job, on_epoch, stop)
    except WorkerDied as death:
        try:
            outcome = recorded_outcome(store, job.run_id)
        except Exception as error:
            if not (stop.is_set() and tracking.is_away(error)):
                raise
            # The worker was killed because the sweep is to stop: that does not wait for a store that is away.
            raise death from None
        if outcome is None:
            raise
        return outcome


def recorded_outcome(store: tracking.Store, run_id: str) -> Outcome | None:
    """Return the outcome of a run that FINISHED or was pruned although its process could not say so; None of others.

    Its status is the last that is recorded of a run, so that its metrics and its model are complete by then.
    """

    def read() -> Sequence[Any]:
        # How it ended may be among what is still kept for the store.
        tracking.deliver_run(store, run_id)
        return tracking.search_runs(store, f"attributes.run_id = '{run_id}' and attributes.status != 'RUNNING'")

    found = tracking.with_retries(store, read)
    if not found:
        return None
    data, status = found[0].data, found[0].info.status
    if status == "FINISHED":
        return Outcome("completed", int(data.params["training.epochs"]), dict(data.metrics))
    if status == "KILLED" and Tag.PRUNED_AFTER in data.tags:
        return Outcome("pruned", int(data.tags[Tag.PRUNED_AFTER]), dict(data.metrics))
    return None
