"""A sweep: planned without creating anything, then run by the one process that owns its study."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from digitcnn import study, tracking, training
from digitcnn.config import RunConfig, SweepConfig, parse_duration
from digitcnn.errors import ConfigError, MachineError
from digitcnn.files import write_atomically
from digitcnn.records import Artifact, Metric, Tag, TrialRecord
from digitcnn.runner import parent_run, recovery
from digitcnn.runner.run import Interrupted, RecordedTraining, SweepDisplay, check_run, run_job
from digitcnn.runner.workers import (
    Job,
    Outcome,
    Pool,
    RunDiverged,
    RunFailed,
    Trainer,
    WorkerDied,
    local_workers,
    threads_per_worker,
    worker_count,
)
from digitcnn.study import Space, parse_space, space_corners
from digitcnn.values import Decision, EpochMetrics

logger = logging.getLogger(__name__)

# After so many different trials in a row with the same cause, the cause is not in the trials.
_MAX_SAME_FAILURES = 3


@dataclass(frozen=True)
class SweepPlan:
    """A checked sweep; nothing has been created yet."""

    config: SweepConfig
    data_sha256: str
    space: Space
    total: int
    workers: int
    threads: int

    @property
    def baseline(self) -> RunConfig:
        """The baseline with the threads of a worker."""
        return self.config.baseline.replace({"training.threads": self.threads})


@dataclass(frozen=True)
class SweepResult:
    """An ended sweep: its leaderboard, its counts, and the signal of its interruption, if there was one."""

    leaderboard: pd.DataFrame
    leaderboard_path: Path
    finished: int
    total: int
    parent_run_id: str
    interrupted: signal.Signals | None


def plan_sweep(config: SweepConfig) -> SweepPlan:
    """Return the plan of a sweep, with all checked that can be wrong. Raises ConfigError; creates nothing."""
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
            study.refuse_another(existing, study.study_identity(config.study, space, baseline, splits.sha256))
            missing -= study.count_finished(existing)
    workers = worker_count(local_workers(config.workers).count, missing)
    return SweepPlan(
        config=config,
        data_sha256=splits.sha256,
        space=space,
        total=total,
        workers=workers,
        threads=baseline.training.threads or threads_per_worker(workers),
    )


def run_sweep(plan: SweepPlan, shown: SweepDisplay, trainer: Trainer | None = None) -> SweepResult:
    """Create or resume the study and work on it until its total is finished, time is up or it is interrupted.

    Raises ConfigError if another process is at work on it, MachineError if the machine fails. A signal ends the process
    if the MLflow store is away then.
    """
    config, folder = plan.config, plan.config.tracking.folder
    trainer = trainer or RecordedTraining(config.backend)
    with (
        study.only_process(folder, config.study.name),
        contextlib.closing(Pool(trainer, plan.workers, plan.threads)) as pool,
        pool.stopped_by_signals() as received,
    ):
        store = tracking.open_store(config.tracking, pool.stop.is_set)
        opened = study.open_study(folder, config.study, plan.space, config.baseline, plan.data_sha256)
        with study.storage_errors(folder), tracking.store_errors(config.tracking):
            tracking.close_abandoned_runs(store)
            return _Sweep(plan, shown, pool, store, opened, received).work()


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
    reusable: dict[str, study.EndedTrial] = field(default_factory=dict)
    best: study.EndedTrial | None = None
    comparing: threading.Lock = field(default_factory=threading.Lock)
    failures: dict[str, str] = field(default_factory=dict)

    def work(self) -> SweepResult:
        """Repair the records of an earlier sweep, then run trials and record the leaderboard."""
        config, total = self.plan.config.study, self.plan.total
        repaired = recovery.repair_records(self.opened, self.store)
        if repaired:
            logger.warning(repaired)
        # Both are kept here from now on: finding them in the study at every trial's end costs more with each trial.
        self.reusable = study.reusable_trials(study.ended_trials(self.opened))
        self.best = study.best_trial(self.opened)
        finished = study.count_finished(self.opened)
        self.parent = parent_run.begin_study_run(self.opened, self.store, self.plan.config)
        workers, stop = self.plan.workers, self.pool.stop
        status: tracking.Status = "FAILED"
        try:
            self.shown.began(config.name, total, finished, workers, config.objective[0])
            deadline = None if config.timeout is None else time.monotonic() + parse_duration(config.timeout)
            study.run_trials(
                self.opened, self.plan.space, self._objective, total, deadline, workers, config.retries, stop
            )
            status = "FINISHED"
        finally:
            try:
                path, table = self._write_leaderboard()
            finally:
                status = "FAILED" if self.abort else "KILLED" if self.signals else status
                parent_run.end_study_run(self.opened, self.store, self.parent, status)
        if self.abort is not None:
            raise self.abort
        finished = study.count_finished(self.opened)
        return SweepResult(table, path, finished, total, self.parent, self.signals[0] if self.signals else None)

    def _objective(self, trial: study.Trial) -> list[float]:
        """Return the objectives' values of a trial. Raises as `study.run_trials` expects it."""
        key = study.parameters_key(trial.params)
        with self.same_parameters[key]:
            if self.pool.stop.is_set():
                raise study.Lost("interrupted")
            config, name = self.plan.baseline.replace(trial.params), self.plan.config.study.name
            tags = {Tag.STUDY: name, Tag.TRIAL: str(trial.number)}
            run_id = tracking.create_training_run(self.store, config, f"{name}-{trial.number}", tags, self.parent)
            self._record(trial, TrialRecord(run_id=run_id))
            original = self.reusable.get(key)
            # A result whose run was deleted cannot be copied.
            if original is not None and tracking.has_run(self.store, str(original.record.run_id)):
                return self._reuse(trial, run_id, original)

            def decide(metrics: EpochMetrics) -> Decision:
                self._record(trial, TrialRecord(epochs_run=metrics.epoch))
                objective = self.plan.config.study.objective[0]
                prune = study.report_epoch(trial, objective, metrics.metrics(), metrics.epoch)
                return "prune" if prune else "continue"

            job = Job(config, tags, run_id)
            try:
                with run_job(
                    self.store, self.pool, job, self.shown, trial.number, trial.params, decide, self._best_so_far
                ) as (index, outcome):
                    return self._ended(trial, index, outcome)
            except Interrupted:
                raise study.Lost("interrupted") from None
            except (WorkerDied, RunFailed, MachineError) as error:
                raise self._failed(trial, error) from None

    def _record(self, trial: study.Trial, record: TrialRecord) -> None:
        study.record_trial(self.opened, trial, record)

    def _ended(self, trial: study.Trial, index: int, outcome: Outcome) -> list[float]:
        """Return the values of a trial that completed. Raises Pruned or Lost for any other."""
        names = self.plan.config.study.objective
        values = [outcome.summary[name] for name in names]
        completed = outcome.ending == "completed"
        self._record(trial, study.outcome_record(outcome.epochs, outcome.summary))
        if not completed:
            reached: dict[str, float] = dict(zip(names, values, strict=True))
            self._record(trial, TrialRecord(reached=reached))
        self.failures.clear()
        if outcome.ending == "stopped":
            self.shown.trial_ended(index, trial.number, "interrupted", None, self._best_so_far())
            raise study.Lost("interrupted")
        ended = self._add_result(trial, values if completed else None)
        self.reusable[study.parameters_key(trial.params)] = ended
        ending = "complete" if completed else "pruned"
        self.shown.trial_ended(index, trial.number, ending, values[0], self._best_so_far())
        if not completed:
            raise study.Pruned
        return values

    def _failed(self, trial: study.Trial, error: Exception) -> Exception:
        """Return what the objective raises for a trial without a result."""
        cause = str(error)
        if isinstance(error, MachineError):
            self._abort(error)
        elif not isinstance(error, RunDiverged) and not (isinstance(error, WorkerDied) and error.killed):
            self._count_failure(study.parameters_key(trial.params), cause)
        if isinstance(error, RunFailed):
            return study.Failed(cause)
        if isinstance(error, WorkerDied):
            self._record(trial, TrialRecord(deaths=study.read_trial(trial).deaths + 1))
        return study.Lost(cause)

    def _count_failure(self, parameters: str, cause: str) -> None:
        """End the sweep when different parameters have failed one after the other for the same cause."""
        if cause not in self.failures.values():
            self.failures.clear()
        self.failures[parameters] = cause
        if len(self.failures) >= _MAX_SAME_FAILURES:
            self._abort(MachineError(f"{len(self.failures)} trials failed in a row: {cause}; what had run is recorded"))

    def _abort(self, error: MachineError) -> None:
        self.abort = error
        self.pool.stop.set()

    def _reuse(self, trial: study.Trial, run_id: str, original: study.EndedTrial) -> list[float]:
        """Give a duplicate the recorded result of an earlier trial with the same parameters."""
        values, result = original.values, original.record
        self._record(
            trial,
            TrialRecord(
                same_as=original.number,
                reached=result.reached,
                epochs_run=result.epochs_run,
                validation_accuracy=result.validation_accuracy,
                cpu_seconds=result.cpu_seconds,
            ),
        )
        tracking.copy_run(self.store, str(result.run_id), run_id, "KILLED" if values is None else "FINISHED")
        for epoch, reported in original.reports.items():
            trial.report(reported, epoch)
        self._add_result(trial, values)
        value = None if values is None else values[0]
        self.shown.trial_ended(None, trial.number, f"same as trial {original.number}", value, self._best_so_far())
        if values is None:
            raise study.Pruned
        return values

    def _add_result(self, trial: study.Trial, values: list[float] | None) -> study.EndedTrial:
        """Return a trial with its result (None: it was pruned), which is the best from now on if it is better."""
        ended = study.ended_trial(self.opened.get_trials(deepcopy=False)[trial.number], values)
        with self.comparing:
            self.best = next(iter(study.best_first(self.opened, filter(None, (self.best, ended)))), None)
        return ended

    def _best_so_far(self) -> str:
        """Return the value and the number of the best trial so far; empty before there is one."""
        best = self.best
        return f"{best.values[0]:.4f} (trial {best.number})" if best is not None and best.values else ""

    def _write_leaderboard(self) -> tuple[Path, pd.DataFrame]:
        """Write the leaderboard as CSV, record it with the best trial's values; return its path and the table."""
        config, table = self.plan.config, study.rank_trials(self.opened)
        text = table.to_csv(index=False)
        path = config.tracking.folder / "reports" / config.study.name / Artifact.LEADERBOARD
        write_atomically(path, text, "the trials are recorded")
        best = study.best_trial(self.opened)
        values = [] if best is None else best.values or []
        names = [f"{Metric.BEST_TRIAL_PREFIX}{name}" for name in config.study.objective]
        metrics = dict(zip(names, values, strict=False))
        parent_run.log_study_run(self.store, self.parent, text, metrics)
        return path, table
