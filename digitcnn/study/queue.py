"""The queue of a study's trials: the next one, the total that is never exceeded, and retries of lost ones."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from digitcnn.records import TrialRecord
from digitcnn.study.space import Space, distributions
from digitcnn.study.storage import STORAGE_FAILURES
from digitcnn.study.study import OpenStudy
from digitcnn.study.trials import parameters_of, read_trial, record_trial, repeated_numbers

# How often a thread that finds no room for a trial looks whether one that runs was lost.
_POLL_SECONDS = 0.5


class Pruned(Exception):
    """The pruner ended this trial."""


class Lost(Exception):
    """The trial got to no result for a reason outside it, the message: it will be tried again."""


class Failed(Exception):
    """The trial failed for its own reason, the message: it would fail again."""


def end_running_trials(study: OpenStudy) -> list[FrozenTrial]:
    """End the trials that a process left running when it was killed, as lost; return them.

    For the one process that owns the study.
    """
    running = study.get_trials(states=(TrialState.RUNNING,))
    for trial in running:
        record_trial(study, trial, TrialRecord(lost="its process ended"))
        study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    return running


def tell_recorded(study: OpenStudy, trial: FrozenTrial, values: Mapping[str, float], pruned: bool) -> None:
    """End a trial whose process is gone with the values of the objectives that its run recorded."""
    if pruned:
        record_trial(study, trial, TrialRecord(reached=dict(values)))
        study.tell(trial.number, state=TrialState.PRUNED)
    else:
        study.tell(trial.number, list(values.values()))


def count_finished(study: Study) -> int:
    """Return the number of trials that count: completed, pruned, failed for good, or lost and not tried again."""
    trials = study.get_trials(deepcopy=False)
    return _count_finished(trials, repeated_numbers(trials))


def _count_finished(trials: list[FrozenTrial], repeated: set[int]) -> int:
    # A trial that ended before it had parameters left nothing to count or to repeat.
    return sum(
        trial.number not in repeated and bool(parameters_of(trial))
        if trial.state == TrialState.FAIL
        else trial.state.is_finished()
        for trial in trials
    )


def _requeue_lost(study: OpenStudy, retries: int) -> tuple[list[FrozenTrial], set[int]]:
    """Queue the parameters of every lost trial again, unless that was done or its worker has died too often on them.

    Returns all trials as they are then, and the numbers of those that were queued again. For one thread at a time: two
    would queue a trial twice.
    """
    trials = study.get_trials(deepcopy=False)
    repeated = repeated_numbers(trials)
    queued = False
    for trial in trials:
        if trial.state != TrialState.FAIL or trial.number in repeated:
            continue
        record, parameters = read_trial(trial), parameters_of(trial)
        if record.lost is not None and record.deaths <= retries and parameters:
            again = TrialRecord(repeats=trial.number, deaths=record.deaths, baseline=record.baseline)
            study.enqueue_trial(parameters, user_attrs=again.attributes())
            repeated.add(trial.number)
            queued = True
    return study.get_trials(deepcopy=False) if queued else trials, repeated


def run_trials(
    study: OpenStudy,
    space: Space,
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
    work = _Work(study, distributions(space), objective, total, deadline, retries, stop)
    with ThreadPoolExecutor(workers) as threads:
        for thread in [threads.submit(work.loop) for _ in range(workers)]:
            thread.result()
    # Lost trials that are not queued again would count as finished.
    with contextlib.suppress(*STORAGE_FAILURES) if work.failure else contextlib.nullcontext():
        _requeue_lost(study, retries)
    if work.failure is not None:
        raise work.failure


@dataclass
class _Work:
    """The state of a study at work in this process."""

    study: OpenStudy
    space: dict[str, BaseDistribution]
    objective: Callable[[Trial], list[float]]
    total: int
    deadline: float | None
    retries: int
    stop: threading.Event
    choosing: threading.Lock = field(default_factory=threading.Lock)
    failure: Exception | None = None

    def loop(self) -> None:
        """Run one trial after the other. An error ends the work of all threads."""
        try:
            while (trial := self._next()) is not None:
                self._run(trial)
        except Exception as error:
            self.failure = self.failure or error
            self.stop.set()

    def _next(self) -> Trial | None:
        """Return the next trial, with its parameters, when there is room for one; None when the study is over."""
        while not self.stop.is_set():
            # One thread at a time: two would queue a lost trial twice, and samplers may fail when two threads use them.
            with self.choosing:
                trials, repeated = _requeue_lost(self.study, self.retries)
                done = _count_finished(trials, repeated)
                if done >= self.total or (self.deadline is not None and time.monotonic() >= self.deadline):
                    return None
                running = {trial.number for trial in trials if trial.state == TrialState.RUNNING}
                if done + len(running) < self.total:
                    return self._ask(running)
            self.stop.wait(_POLL_SECONDS)
        return None

    def _ask(self, running: set[int]) -> Trial:
        """Return a new trial beside those that run; end it as lost if the sampler raises, and raise the same."""
        try:
            return self.study.ask(self.space)
        except STORAGE_FAILURES:
            raise
        except Exception as error:
            # Optuna has begun the trial, but does not give its number.
            with contextlib.suppress(*STORAGE_FAILURES):
                for begun in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                    if begun.number not in running:
                        self._lose(begun, error)
            raise

    def _run(self, trial: Trial) -> None:
        values, state, record = None, TrialState.FAIL, TrialRecord()
        try:
            values = self.objective(trial)
            state = TrialState.COMPLETE
        except Pruned:
            state = TrialState.PRUNED
        except Lost as lost:
            record = TrialRecord(lost=str(lost))
        except Failed as failed:
            record = TrialRecord(failure=str(failed))
        except STORAGE_FAILURES:
            # The run may have finished: the next start then gives the trial its result.
            raise
        except Exception as error:
            self.stop.set()
            # A store that fails here too leaves the trial running: the next start ends it.
            with contextlib.suppress(*STORAGE_FAILURES):
                self._lose(trial, error)
            raise
        record_trial(self.study, trial, record)
        self.study.tell(trial, values, state)
        if self.study._storage.get_trial(trial._trial_id).state != state:
            # Optuna passes over some errors of its store without a word.
            raise StorageInternalError(f"the result of trial {trial.number} was not taken")

    def _lose(self, trial: Trial | FrozenTrial, error: Exception) -> None:
        """End a trial as lost, by an error that nobody expected."""
        record_trial(self.study, trial, TrialRecord(lost=type(error).__name__))
        self.study.tell(trial.number, state=TrialState.FAIL)
