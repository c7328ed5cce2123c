"""A study's trials at work: which is next, which count, which were lost and are tried again."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import optuna
from optuna.exceptions import StorageInternalError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from digitcnn.records import TrialRecord
from digitcnn.study.study import OpenStudy
from digitcnn.study.trials import parameters_of, read_trial, record_trial

# How often a worker that finds no room for a trial looks whether one that runs was lost.
_POLL_SECONDS = 0.5


class Pruned(optuna.TrialPruned):
    """The pruner ended this trial."""


class Lost(Exception):
    """The trial did not get to its end for a reason outside it: it will be tried again."""


class Failed(Exception):
    """The trial failed in a way that would happen again."""


def end_running_trials(study: OpenStudy) -> list[FrozenTrial]:
    """End the trials that were running when their process ended without a word, as lost; return them.

    Only for the one process that owns the study.
    """
    running = study.get_trials(states=(TrialState.RUNNING,))
    for trial in running:
        record_trial(study, trial, TrialRecord(lost="its process ended"))
        study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    return running


def tell_recorded(study: OpenStudy, trial: FrozenTrial, values: Mapping[str, float], pruned: bool) -> None:
    """Ends a trial whose process is gone with the values of the objectives that its run recorded."""
    if pruned:
        record_trial(study, trial, TrialRecord(reached=dict(values)))
        study.tell(trial.number, state=TrialState.PRUNED)
    else:
        study.tell(trial.number, list(values.values()))


def _requeue_lost(study: OpenStudy, retries: int) -> list[FrozenTrial]:
    """Queues every lost trial's parameters again, unless that was done or its worker has died too often on them.

    Returns all trials as they are then. For one thread at a time: two would queue a trial twice.
    """
    trials = study.get_trials(deepcopy=False)
    lost = 0
    repeated = {read_trial(trial).repeats for trial in trials}
    for trial in trials:
        record = read_trial(trial)
        if trial.state != TrialState.FAIL or record.lost is None or trial.number in repeated:
            continue
        if record.deaths > retries or not parameters_of(trial):
            continue
        again = TrialRecord(repeats=trial.number, deaths=record.deaths, baseline=record.baseline)
        study.enqueue_trial(parameters_of(trial), user_attrs=again.attributes())
        lost += 1
    return study.get_trials(deepcopy=False) if lost else trials


def count_finished(study: Study) -> int:
    """The trials that count: completed, pruned or failed for good. A lost one counts when it is not repeated."""
    return _finished(study.get_trials(deepcopy=False))


def _finished(trials: list[FrozenTrial]) -> int:
    repeated = {read_trial(trial).repeats for trial in trials}
    return sum(
        trial.state != TrialState.FAIL or trial.number not in repeated
        for trial in trials
        # A trial that ended before it had parameters left nothing to count or to repeat.
        if trial.state.is_finished() and parameters_of(trial)
    )


def run_trials(
    study: OpenStudy,
    objective: Callable[[Trial], list[float]],
    total: int,
    deadline: float | None,
    workers: int,
    retries: int,
    stop: threading.Event,
) -> None:
    """Run trials on `workers` threads until the total is finished, time is up or `stop` is set.

    Time is up at `deadline`, in seconds of time.monotonic(). The objective raises Pruned, Lost (tried again) or Failed
    (not tried again) when it has no value; any other error ends the work and is raised. The total is never exceeded: a
    trial begins only if those that are finished and those that are running leave room for it. A thread that finds no
    room waits, in case one of them is lost.
    """
    work = _Work(study, objective, total, deadline, retries, stop)
    with ThreadPoolExecutor(workers) as threads:
        for thread in [threads.submit(work.loop) for _ in range(workers)]:
            thread.result()
    if work.failure is None:
        _requeue_lost(study, retries)
        return
    # Lost trials that are not queued again would count as finished.
    with contextlib.suppress(StorageInternalError, SQLAlchemyError):
        _requeue_lost(study, retries)
    raise work.failure


@dataclass
class _Work:
    """The state of a study at work in this process."""

    study: OpenStudy
    objective: Callable[[Trial], list[float]]
    total: int
    deadline: float | None
    retries: int
    stop: threading.Event
    choosing: threading.Lock = field(default_factory=threading.Lock)
    failure: Exception | None = None

    def fail(self, error: Exception) -> None:
        """Ends the work of all threads because of an error."""
        self.failure = self.failure or error
        self.stop.set()

    def loop(self) -> None:
        """What each thread does: one trial after the other."""
        try:
            while (trial := self._next()) is not None:
                self._run(trial)
        except Exception as error:
            self.fail(error)

    def _next(self) -> Trial | None:
        """The next trial, when there is room for one; None when the study is over."""
        while not self.stop.is_set():
            with self.choosing:
                trials = _requeue_lost(self.study, self.retries)
                done = _finished(trials)
                if done >= self.total or (self.deadline is not None and time.monotonic() >= self.deadline):
                    return None
                if done + sum(trial.state == TrialState.RUNNING for trial in trials) < self.total:
                    return self.study.ask()
            self.stop.wait(_POLL_SECONDS)
        return None

    def _run(self, trial: Trial) -> None:
        values, state = None, TrialState.FAIL
        try:
            values = self.objective(trial)
            state = TrialState.COMPLETE
        except Pruned:
            state = TrialState.PRUNED
        except (Lost, Failed):
            pass
        except Exception as error:
            self.fail(error)
            # Where the study's store fails, the run may have finished: the next start then gives the trial its result.
            if not isinstance(error, StorageInternalError | SQLAlchemyError):
                self._mark_and_tell(trial, type(error).__name__)
            return
        self.study.tell(trial, values, state)
        if self.study._storage.get_trial(trial._trial_id).state != state:
            # Optuna passes over some errors of its store without a word.
            raise StorageInternalError(f"the result of trial {trial.number} was not taken")

    def _mark_and_tell(self, trial: Trial, cause: str) -> None:
        """Ends a trial as lost; one that the store cannot take is found by whoever looks for lost trials next."""
        with contextlib.suppress(StorageInternalError, SQLAlchemyError):
            record_trial(self.study, trial, TrialRecord(lost=cause))
            self.study.tell(trial, state=TrialState.FAIL)
