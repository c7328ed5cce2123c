"""A sweep, run by the one process that owns its study."""

from __future__ import annotations

import contextlib
import logging
import shutil
import signal
import threading
import time
from collections import defaultdict

from digitcnn import study, tracking, training
from digitcnn.config import LocalWorkers, RunConfig, parse_duration
from digitcnn.errors import MachineError
from digitcnn.records import Metric, Tag, TrialRecord
from digitcnn.runner import study_run
from digitcnn.runner.plan import SweepPlan, parameters_of
from digitcnn.runner.pool import (
    Job,
    Pool,
    RunDiverged,
    RunFailed,
    Trainer,
    Worker,
    WorkerDied,
    run_workers,
    stopped_by_signals,
)
from digitcnn.runner.run import Interrupted, KerasTrainer, SweepDisplay
from digitcnn.runner.study_run import SweepResult
from digitcnn.runner.trial import Trainings
from digitcnn.runner.workers import make_pool
from digitcnn.values import RunFinished

logger = logging.getLogger(__name__)


def run_sweep(plan: SweepPlan, shown: SweepDisplay, trainer: Trainer | None = None) -> SweepResult:
    """Create or resume the study and work on it until its total is finished, time is up or it is interrupted.

    Raises ConfigError if another process is at work on it, MachineError if the machine fails. A signal ends the process
    if the MLflow store is away then.
    """
    config, folder = plan.config, plan.config.tracking.folder
    trainer = trainer or KerasTrainer(config.backend)
    with (
        study.only_process(folder, config.study.name),
        contextlib.closing(make_pool(config.workers, trainer, plan.baseline, plan.workers, plan.threads)) as pool,
        stopped_by_signals(pool, study.stop_file(folder, config.study.name)) as received,
    ):
        store = tracking.open_store(config.tracking, pool.stop.is_set)
        with study.storage_errors(folder), tracking.store_errors(config.tracking):
            for trial in plan.taken.trials:
                link = {f"{Tag.TAKEN_BY_PREFIX}{config.study.name}": str(trial.record.taken_from)}
                tracking.put(store, str(trial.record.run_id), tracking.tags(link))
            opened = study.open_study(
                folder, config.study, plan.space, config.baseline, plan.data_sha256, plan.taken.trials
            )
            tracking.close_abandoned_runs(store)
            return _Sweep(plan, shown, pool, store, opened, received).work()


class _Sweep:
    """A sweep at work."""

    def __init__(
        self,
        plan: SweepPlan,
        shown: SweepDisplay,
        pool: Pool,
        store: tracking.Store,
        opened: study.OpenStudy,
        received: list[signal.Signals],
    ) -> None:
        self.plan, self.shown, self.pool, self.store, self.opened = plan, shown, pool, store, opened
        self.signals, self.stop = received, pool.stop
        repaired = study_run.repair_records(opened, store)
        if repaired:
            logger.warning(repaired)
        config = plan.config.study
        deadline = None if config.timeout is None else time.monotonic() + parse_duration(config.timeout)
        self.queue = study.TrialQueue(opened, config, plan.space, plan.total, deadline, self.stop)
        # They are kept here from now on: finding them in the study at every trial's end costs more with each trial.
        ended = study.ended_trials(opened)
        failed = [] if config.retry_failed else study.failed_trials(opened)
        self.reusable, self.longest = study.reusable_trials([*ended, *failed]), study.longest_trials(ended)
        self.best = study.best_trial(opened)
        self.parent = study_run.begin_study_run(opened, store, plan.config, plan.total)
        self.trainings = Trainings(plan, shown, store, opened, self.parent, self.longest, self.stop)
        self.lock = threading.Lock()
        self.same_beginning: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def work(self) -> SweepResult:
        """Run trials until the study is over, then record the leaderboard and close the study's run."""
        config, queue, failed = self.plan.config.study, self.queue, False
        try:
            workers = self.plan.workers if isinstance(self.plan.config.workers, LocalWorkers) else None
            self.shown.began(config.name, queue.total, queue.finished, workers, config.objective[0])
            run_workers(self.pool, self._loop)
            overtime = queue.overtime()
        except Exception:
            failed = True
            raise
        finally:
            try:
                if queue.finished >= queue.total and config.checkpoints == "delete":
                    shutil.rmtree(self.trainings.folder, ignore_errors=True)
                path, table = study_run.record_leaderboard(self.opened, self.store, self.parent, self.plan.config)
            finally:
                ending = study_run.sweep_ending(queue, failed, bool(self.signals))
                study_run.end_study_run(self.opened, self.store, self.parent, *ending)
        return SweepResult(
            leaderboard=table,
            leaderboard_path=path,
            finished=queue.finished,
            completed=queue.completed,
            total=queue.total,
            parent_run_id=self.parent,
            interrupted=self.signals[0] if self.signals else None,
            failure=study.frequent_failure(self.opened),
            overtime=overtime,
            epochs=study.epochs_in_words(self.opened),
        )

    def _loop(self, worker: Worker) -> None:
        """Run one trial after the other on a worker."""
        while worker.wait_ready() and (trial := self.queue.next()) is not None:
            self._run(trial, worker)

    def _run(self, trial: study.Trial, worker: Worker) -> None:
        """Bring a trial to its end."""
        try:
            config = self.plan.baseline.replace(trial.params)
            # Where only the epochs differ, one of two can take its first ones from the other.
            key = study.parameters_key if training.depends_on_length(config.training) else study.beginning_key
            with self.same_beginning[key(trial.params)]:
                if self.stop.is_set():
                    self.queue.lose(trial, "interrupted")
                else:
                    self._train(trial, config, worker)
        except (*study.STORAGE_FAILURES, MachineError):
            # The run may have finished: the next start then gives the trial its result.
            raise
        except BaseException as error:
            self.stop.set()
            # A store that fails here too leaves the trial running: the next start ends it.
            with contextlib.suppress(*study.STORAGE_FAILURES):
                self.queue.lose(trial, type(error).__name__)
            raise

    def _train(self, trial: study.Trial, config: RunConfig, worker: Worker) -> None:
        name = self.plan.config.study.name
        tags = {Tag.STUDY: name, Tag.TRIAL: str(trial.number), Tag.SEEDS: str(self.plan.config.study.seeds)}
        differing = study.differences_in_words(config, self.plan.baseline) or "baseline"
        run_name = f"{trial.number}: {differing}"
        run_id = tracking.create_training_run(self.store, config, run_name, tags, self.parent)
        study.record_trial(self.opened, trial, TrialRecord(run_id=run_id))
        original = self.reusable.get(study.parameters_key(trial.params))
        # A result whose run was deleted cannot be copied.
        if original is not None and tracking.has_run(self.store, str(original.record.run_id)):
            self._reuse(trial, run_id, original)
            return
        if self._breaks_constraints(trial, run_id, config):
            return
        try:
            finished = self.trainings.train(trial, worker, config, run_id)
        except Interrupted:
            self.queue.lose(trial, "interrupted")
            self._show(worker, trial, "interrupted")
        except (RunFailed, WorkerDied) as error:
            self._failed(trial, worker, error)
        except MachineError as error:
            self.queue.lose(trial, str(error))
            self._show(worker, trial, f"lost: {error}")
            raise
        else:
            if finished.ending != "stopped":
                self.trainings.drop_checkpoints(config)
            self._ended(trial, worker, finished)

    def _breaks_constraints(self, trial: study.Trial, run_id: str, config: RunConfig) -> bool:
        """End a trial whose network is known to break a constraint before it is trained; the baseline is trained."""
        size = {Metric.PARAMETERS: float(parameters_of(config))}
        values = study.constraint_values(self.plan.config.study.bounds(), size)
        if study.read_trial(trial).baseline or not study.broken(values):
            return False
        study.record_constraints(self.opened, trial, values)
        tracking.put(self.store, run_id, tracking.metrics(size, step=0))
        tracking.close_run(self.store, run_id, "KILLED", "breaks study.constraints, and was not trained")
        self._finish(trial, None)
        self.shown.trial_ended(None, trial.number, "infeasible, not trained", None, self._best_so_far())
        return True

    def _ended(self, trial: study.Trial, worker: Worker, finished: RunFinished) -> None:
        """End a trial as its run ended."""
        objectives = self.plan.config.study.objective
        values = [finished.summary[name] for name in objectives]
        study.record_trial(self.opened, trial, study.outcome_record(finished.epochs, finished.summary))
        if finished.ending != "completed":
            study.record_trial(self.opened, trial, TrialRecord(reached=dict(zip(objectives, values, strict=True))))
        if finished.ending == "stopped":
            self.queue.lose(trial, "interrupted")
            self._show(worker, trial, "interrupted")
            return
        bounds = self.plan.config.study.bounds()
        study.record_constraints(self.opened, trial, study.constraint_values(bounds, finished.summary))
        if finished.epochs_before < finished.epochs:
            self.queue.note_success()
        ended = self._finish(trial, values if finished.ending == "completed" else None)
        self.reusable[study.parameters_key(trial.params)] = ended
        self.longest |= study.longest_trials(filter(None, (self.longest.get(study.beginning_key(trial.params)), ended)))
        self._show(worker, trial, "pruned" if finished.ending == "pruned" else "complete", values[0])

    def _failed(self, trial: study.Trial, worker: Worker, error: RunFailed | WorkerDied) -> None:
        """End a trial whose run failed or whose worker died. Raises MachineError if the machine is to blame."""
        cause, killed, own = str(error), isinstance(error, WorkerDied) and error.killed, isinstance(error, RunDiverged)
        try:
            if own:
                self.queue.fail(trial, cause)
            own = own or self.queue.end_failed(trial, cause, killed, lambda: self._baseline_works(worker))
        except MachineError:
            self._show(worker, trial, f"lost: {cause}")
            raise
        if own:
            self.reusable.setdefault(study.parameters_key(trial.params), study.ended_trial(self.opened, trial, None))
        self._show(worker, trial, f"{'failed' if own else 'lost'}: {cause}")

    def _baseline_works(self, worker: Worker) -> bool:
        """Return True if a worker can train the baseline for an epoch, of which nothing is recorded."""
        probe = Job(self.plan.baseline.replace({"training.epochs": 1}))
        try:
            return worker.wait_ready() and bool(worker.run(probe, lambda event: "continue", self.stop))
        except (RunFailed, WorkerDied):
            return False

    def _reuse(self, trial: study.Trial, run_id: str, original: study.EndedTrial) -> None:
        """Give a duplicate the recorded result of an earlier trial with the same parameters."""
        values, failure = original.values, original.record.failure
        study.copy_result(self.opened, trial, original)
        status: tracking.Status = "FAILED" if failure else "KILLED" if values is None else "FINISHED"
        tracking.copy_run(self.store, str(original.record.run_id), run_id, status)
        if failure:
            self.queue.fail(trial, failure)
        else:
            self._finish(trial, values)
        value = None if values is None else values[0]
        self.shown.trial_ended(None, trial.number, f"same as trial {original.number}", value, self._best_so_far())

    def _finish(self, trial: study.Trial, values: list[float] | None) -> study.EndedTrial:
        """Tell the study of a trial's result (None: it was pruned); return it, the best from now on if it is better."""
        ended = study.ended_trial(self.opened, trial, values)
        self.queue.tell(trial, values)
        with self.lock:
            self.best = next(iter(study.best_first(self.opened, filter(None, (self.best, ended)))), None)
        return ended

    def _show(self, worker: Worker, trial: study.Trial, ending: str, value: float | None = None) -> None:
        self.shown.trial_ended(worker.index, trial.number, ending, value, self._best_so_far())

    def _best_so_far(self) -> str:
        """Return the value and the number of the best trial so far; empty before there is one."""
        best = self.best
        return f"{best.values[0]:.4f} (trial {best.number})" if best is not None and best.values else ""
