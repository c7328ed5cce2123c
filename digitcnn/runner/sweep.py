"""A sweep, top to bottom: stores, workers, study, leaderboard."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from digitcnn import study, tracking, training
from digitcnn.config import RunConfig, SweepConfig, parse_duration
from digitcnn.errors import ConfigError, MachineError
from digitcnn.files import write_atomically
from digitcnn.records import Artifact, Tag, TrialRecord
from digitcnn.runner import parent_run, recovery
from digitcnn.runner.run import check_run
from digitcnn.runner.workers import (
    Job,
    Outcome,
    Pool,
    RecordedTraining,
    RunDiverged,
    RunFailed,
    Trainer,
    WorkerDied,
    core_shares,
)
from digitcnn.study import Space, parse_space, space_corners
from digitcnn.tracking import close_abandoned_runs
from digitcnn.values import Decision, EpochMetrics

logger = logging.getLogger(__name__)

# So many different trials failing one after the other for the same cause mean that the cause is not in the trials.
_MOST_SAME_FAILURES = 3


class SweepDisplay(Protocol):
    """Told of everything that happens in a sweep: a trial by its number, or a confirming run by its name."""

    def began(self, name: str, total: int, finished: int, workers: int, metric: str) -> None: ...

    def trial_began(self, worker: int, trial: int | str, parameters: dict[str, Any], epochs: int) -> None: ...

    def epoch(self, worker: int, trial: int | str, metrics: EpochMetrics) -> None: ...

    def trial_ended(
        self, worker: int | None, trial: int | str, ending: str, value: float | None, best: str
    ) -> None: ...


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep is going to do, checked: nothing has been created yet."""

    config: SweepConfig
    space: Space
    total: int
    workers: int
    threads: int

    @property
    def baseline(self) -> RunConfig:
        """The baseline with the threads that each worker has."""
        return self.config.baseline.replace({"training.threads": self.threads})


@dataclass(frozen=True)
class SweepResult:
    """A sweep that ended: its leaderboard, and by which signal it was interrupted, if it was."""

    leaderboard: pd.DataFrame
    leaderboard_path: Path
    finished: int
    total: int
    parent_run_id: str
    interrupted: signal.Signals | None


def plan_sweep(config: SweepConfig) -> SweepPlan:
    """Checks everything that a sweep needs and that can be wrong. Raises ConfigError; creates nothing."""
    if config.data.validation != "holdout":
        raise ConfigError(f"data.validation={config.data.validation}: a search must not see the test set; use holdout")
    baseline = config.baseline
    splits = check_run(baseline)
    space = parse_space(config.study.space, baseline)
    height, width = splits.image_shape
    for point in space_corners(space):
        try:
            training.check_fits(baseline.replace(point).model, height, width, splits.classes)
        except ConfigError as error:
            raise ConfigError(f"study.space: at {point}: {error}") from None
    study.check_sampler(config.study, space)
    existing = study.existing_study(config.tracking.folder, config.study.name)
    total = missing = study.total_trials(config.study, space, baseline)
    if existing is not None:
        with study.storage_errors(config.tracking.folder):
            study.refuse_another(existing, study.study_identity(config.study, space, baseline))
            missing -= study.count_finished(existing)
    workers = min(config.study.workers or len(core_shares(1)[0]), max(missing, 1))
    return SweepPlan(
        config=config,
        space=space,
        total=total,
        workers=workers,
        threads=baseline.training.threads or len(core_shares(workers)[-1]),
    )


def run_sweep(plan: SweepPlan, shown: SweepDisplay, trainer: Trainer | None = None) -> SweepResult:
    """Creates or resumes the study and works on it until its total is finished, time is up or it is interrupted.

    Raises ConfigError if another process is at work on it, MachineError if the machine fails. A signal ends the process
    if the MLflow store is away then.
    """
    config = plan.config
    with study.only_process(config.tracking.folder, config.study.name):
        pool = Pool(trainer or RecordedTraining(config.backend), plan.workers, plan.threads)
        try:
            with pool.stopped_by_signals() as received:
                store = tracking.open_store(config.tracking, pool.stop.is_set)
                opened = study.open_study(config.tracking.folder, config.study, plan.space, config.baseline)
                with study.storage_errors(config.tracking.folder), tracking.store_errors(config.tracking):
                    close_abandoned_runs(store)
                    return _Sweep(plan, shown, pool, store, opened, received).work()
        finally:
            pool.close()


@dataclass
class _Sweep:
    """The state of a sweep at work."""

    plan: SweepPlan
    shown: SweepDisplay
    pool: Pool
    store: tracking.Store
    opened: study.OpenStudy
    signals: list[signal.Signals]
    parent: str = ""
    abort: MachineError | None = None
    same_parameters: defaultdict[str, threading.Lock] = field(default_factory=lambda: defaultdict(threading.Lock))
    ended: dict[str, study.EndedTrial] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def work(self) -> SweepResult:
        config = self.plan.config
        repaired = recovery.repair_records(self.opened, self.store)
        if repaired:
            logger.warning(repaired)
        # Kept here from now on: looking them up in the study at every trial's end costs more with each trial.
        self.ended = study.ended_trials(self.opened)
        self.parent = parent_run.begin_study_run(self.opened, self.store, config)
        finished = study.count_finished(self.opened)
        self.shown.began(config.study.name, self.plan.total, finished, self.plan.workers, config.study.objective[0])
        deadline = None if config.study.timeout is None else time.monotonic() + parse_duration(config.study.timeout)
        status: tracking.Status = "FAILED"
        try:
            study.run_trials(
                self.opened,
                self.plan.space,
                self._objective,
                self.plan.total,
                deadline,
                self.plan.workers,
                config.study.retries,
                self.pool.stop,
            )
            status = "FINISHED"
        finally:
            try:
                path, table = self._write_leaderboard()
            finally:
                status = "FAILED" if self.abort else "KILLED" if self.signals else status
                parent_run.end_study_run(self.store, self.parent, status)
                with tracking.suppress_away():
                    tracking.deliver(self.store)
        if self.abort is not None:
            raise self.abort
        finished = study.count_finished(self.opened)
        interrupted = self.signals[0] if self.signals else None
        return SweepResult(table, path, finished, self.plan.total, self.parent, interrupted)

    def _objective(self, trial: study.Trial) -> list[float]:
        parameters = trial.params
        key = study.parameters_key(parameters)
        with self.same_parameters[key]:
            if self.pool.stop.is_set():
                raise study.Lost("interrupted")
            config = self.plan.baseline.replace(parameters)
            name = f"{self.plan.config.study.name}-{trial.number}"
            tags = {Tag.STUDY: self.plan.config.study.name, Tag.TRIAL: str(trial.number)}
            run_id = tracking.create_training_run(self.store, config, name, tags, self.parent)
            study.record_trial(self.opened, trial, TrialRecord(run_id=run_id))
            twin = self.ended.get(key)
            # A result whose run was deleted cannot be copied.
            if twin is not None and recovery.has_run(self.store, str(twin.record.run_id)):
                return self._reuse(trial, run_id, twin)
            with self.pool.worker() as (index, worker):
                self.shown.trial_began(index, trial.number, parameters, config.training.epochs)
                objective = self.plan.config.study.objective[0]

                def on_epoch(metrics: EpochMetrics) -> Decision:
                    self.shown.epoch(index, trial.number, metrics)
                    study.record_trial(self.opened, trial, TrialRecord(epochs_run=metrics.epoch))
                    return (
                        "prune"
                        if study.report_epoch(trial, objective, metrics.metrics(), metrics.epoch)
                        else "continue"
                    )

                try:
                    job = Job(config, tags, run_id)
                    outcome = recovery.run_job(self.store, worker, job, on_epoch, self.pool.stop)
                except (WorkerDied, RunFailed, MachineError) as error:
                    raise self._failed(trial, index, run_id, error) from None
                return self._ended(trial, index, outcome, key)

    def _ended(self, trial: study.Trial, index: int, outcome: Outcome, key: str) -> list[float]:
        values = study.objective_values(self.plan.config.study, outcome.summary)
        study.record_trial(self.opened, trial, study.outcome_record(outcome.epochs, outcome.summary))
        self.failures.clear()
        if outcome.ending == "completed":
            self._remember(trial, values)
            self._show_end(trial, index, "complete", values[0])
            return values
        reached: dict[str, float] = dict(zip(self.plan.config.study.objective, values, strict=True))
        study.record_trial(self.opened, trial, TrialRecord(reached=reached))
        if outcome.ending == "pruned":
            self._remember(trial, None)
            self._show_end(trial, index, "pruned", values[0])
            raise study.Pruned
        self._show_end(trial, index, "interrupted", None)
        raise study.Lost("interrupted")

    def _failed(self, trial: study.Trial, index: int, run_id: str, error: Exception) -> Exception:
        """Records a trial without a result in both stores and returns what its objective raises."""
        cause = str(error)
        if isinstance(error, WorkerDied) and self.pool.stop.is_set():
            tracking.close_run(self.store, run_id, "KILLED", "interrupted")
            self._show_end(trial, index, "interrupted", None)
            return study.Lost("interrupted")
        tracking.close_run(self.store, run_id, "FAILED", cause)
        self._show_end(trial, index, f"{'failed' if isinstance(error, RunFailed) else 'lost'}: {cause}", None)
        if isinstance(error, MachineError):
            self._abort(error)
        elif not isinstance(error, RunDiverged) and not (isinstance(error, WorkerDied) and error.killed):
            self._count_failure(study.parameters_key(trial.params), cause)
        if isinstance(error, RunFailed):
            return study.Failed(cause)
        if isinstance(error, WorkerDied):
            study.record_trial(self.opened, trial, TrialRecord(deaths=study.read_trial(trial).deaths + 1))
        return study.Lost(cause)

    def _count_failure(self, parameters: str, cause: str) -> None:
        """Ends the sweep when different parameters have failed one after the other for the same cause."""
        if cause not in self.failures.values():
            self.failures.clear()
        self.failures[parameters] = cause
        if len(self.failures) >= _MOST_SAME_FAILURES:
            self._abort(MachineError(f"{len(self.failures)} trials failed in a row: {cause}; what had run is recorded"))

    def _abort(self, error: MachineError) -> None:
        self.abort = error
        self.pool.stop.set()

    def _reuse(self, trial: study.Trial, run_id: str, twin: study.EndedTrial) -> list[float]:
        """Gives a trial the recorded result of an earlier one with the same parameters."""
        record = TrialRecord(
            same_as=twin.number,
            reached=twin.record.reached,
            epochs_run=twin.record.epochs_run,
            validation_accuracy=twin.record.validation_accuracy,
            cpu_seconds=twin.record.cpu_seconds,
        )
        study.record_trial(self.opened, trial, record)
        status: tracking.Status = "KILLED" if twin.values is None else "FINISHED"
        tracking.copy_run(self.store, str(twin.record.run_id), run_id, status)
        for epoch, value in twin.reports.items():
            trial.report(value, epoch)
        self._show_end(trial, None, f"same as trial {twin.number}", None if twin.values is None else twin.values[0])
        if twin.values is None:
            raise study.Pruned
        return twin.values

    def _show_end(self, trial: study.Trial, index: int | None, ending: str, value: float | None) -> None:
        # A list at once: other threads add to it.
        best = study.best_first(self.opened, list(self.ended.values()))
        text = f"{best[0].values[0]:.4f} (trial {best[0].number})" if best and best[0].values else ""
        self.shown.trial_ended(index, trial.number, ending, value, text)

    def _remember(self, trial: study.Trial, values: list[float] | None) -> None:
        """Keep the result of a trial for those that are drawn with its parameters."""
        recorded = self.opened.get_trials(deepcopy=False)[trial.number]
        self.ended[study.parameters_key(trial.params)] = study.ended_trial(recorded, values)

    def _write_leaderboard(self) -> tuple[Path, pd.DataFrame]:
        config = self.plan.config
        table = study.rank_trials(self.opened)
        path = config.tracking.folder / "reports" / config.study.name / Artifact.LEADERBOARD
        write_atomically(path, table.to_csv(index=False), "the trials are recorded")
        parent_run.log_study_run(self.store, self.parent, table.to_csv(index=False), _best_metrics(self.opened))
        return path, table


def _best_metrics(opened: study.Study) -> dict[str, float]:
    best = study.best_trial(opened)
    if best is None or best.values is None:
        return {}
    names = opened.metric_names or ["value"]
    return {f"best_trial.{name}": value for name, value in zip(names, best.values, strict=True)}
