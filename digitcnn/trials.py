"""A study's trials at work: which is next, which count, which were lost and are tried again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from digitcnn.errors import MachineError
from digitcnn.hosts import SharedStorage, beating
from digitcnn.processes import this_host
from digitcnn.storage import decide, exclusively
from digitcnn.study import OpenStudy, parameters_of

# How often a worker that has nothing to do looks whether a trial that runs elsewhere was lost.
_POLL_SECONDS, _SHARED_POLL_SECONDS = 0.5, 2.0


class Pruned(optuna.TrialPruned):
    """The pruner ended this trial."""


class Lost(Exception):
    """The trial did not get to its end for a reason outside it: it will be tried again."""


class Failed(Exception):
    """The trial failed in a way that would happen again."""


def recover(study: OpenStudy) -> list[FrozenTrial]:
    """Ends the trials that were running when their process ended without a word, as lost; returns them.

    Only for the one process that owns the study. On a shared store heartbeats tell which trials are lost.
    """
    return [
        trial for trial in study.get_trials(states=(TrialState.RUNNING,)) if _end(study, trial, "its process ended")
    ]


def tell_recorded(study: OpenStudy, trial: FrozenTrial, values: Mapping[str, float], pruned: bool) -> None:
    """Ends a trial whose process is gone with the values of the objectives that its run recorded."""
    if pruned:
        study._storage.set_trial_user_attr(trial._trial_id, "reached", dict(values))
        study.tell(trial.number, state=TrialState.PRUNED)
    else:
        study.tell(trial.number, list(values.values()))


def _end(study: OpenStudy, trial: FrozenTrial, cause: str, deaths: int = 0) -> bool:
    """Ends another process's trial as lost; False if it has just ended by itself."""
    storage = study._storage
    with contextlib.suppress(UpdateFinishedTrialError):
        storage.set_trial_user_attr(trial._trial_id, "lost", cause)
        if deaths:
            storage.set_trial_user_attr(trial._trial_id, "deaths", trial.user_attrs.get("deaths", 0) + deaths)
        storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        return True
    return False


def _end_silent(study: OpenStudy, own: Set[int]) -> list[FrozenTrial]:
    """Ends the trials whose hosts have died or stalled; returns them as they are now. Under the study's lock.

    Not this process's own, by their ids: if it stalled and nobody took them over, they go on. To be silent counts as a
    death: a trial that takes whole hosts down must come to an end too.
    """
    if not isinstance(study.store, SharedStorage):
        return []
    ended = []
    for trial_id in study.store.silent_trials(study._study_id):
        if trial_id in own:
            continue
        trial = study._storage.get_trial(trial_id)
        if _end(study, trial, f"its host fell silent ({trial.user_attrs.get('host', 'unknown')})", deaths=1):
            ended.append(study._storage.get_trial(trial_id))
    return ended


def _requeue_lost(study: OpenStudy, retries: int) -> list[FrozenTrial]:
    """Queues every lost trial's parameters again, unless that was done or its worker has died too often on them.

    Returns all trials as they are then. Under the study's lock: two that do it at once would queue a trial twice.
    """
    trials = study.get_trials(deepcopy=False)
    lost = 0
    repeated = {trial.user_attrs.get("repeats") for trial in trials}
    for trial in trials:
        if trial.state != TrialState.FAIL or "lost" not in trial.user_attrs or trial.number in repeated:
            continue
        deaths = trial.user_attrs.get("deaths", 0)
        if deaths > retries or not parameters_of(trial):
            continue
        attributes = {"repeats": trial.number, "deaths": deaths}
        if trial.user_attrs.get("baseline"):
            attributes["baseline"] = True
        study.enqueue_trial(parameters_of(trial), user_attrs=attributes)
        lost += 1
    return study.get_trials(deepcopy=False) if lost else trials


def finished(study: Study) -> int:
    """The trials that count: completed, pruned or failed for good. A lost one counts when it is not repeated."""
    return _finished(study.get_trials(deepcopy=False))


def _finished(trials: list[FrozenTrial]) -> int:
    repeated = {trial.user_attrs.get("repeats") for trial in trials}
    return sum(
        trial.state != TrialState.FAIL or trial.number not in repeated
        for trial in trials
        # A trial that ended before it had parameters left nothing to count or to repeat.
        if trial.state.is_finished() and parameters_of(trial)
    )


def _standing(trials: list[FrozenTrial]) -> tuple[int, int]:
    """How many trials count as finished and how many are running, on whatever host."""
    return _finished(trials), sum(trial.state == TrialState.RUNNING for trial in trials)


@dataclass(frozen=True)
class Left:
    """How a process left a study: whether it was the last, whether all trials are finished, and which are lost.

    Those are the trials without a result, by their numbers, that no process works on any more. None if others do.
    """

    last: bool
    over: bool
    lost: frozenset[int]


def leave(study: OpenStudy, total: int, run_id: str) -> Left:
    """Ends this process's presence under the run of a shared study.

    Under the study's lock. Whoever is still there when all is finished and nothing runs has nothing left to do.
    """
    if not isinstance(study.store, SharedStorage):
        return Left(last=True, over=False, lost=frozenset())
    others = study.store.others_are_present(run_id)
    study.store.leave()
    trials = study.get_trials(deepcopy=False)
    done, running = _standing(trials)
    over = done >= total and not running
    last = over or not others
    lost = [trial.number for trial in trials if trial.state in (TrialState.RUNNING, TrialState.FAIL)]
    return Left(last, over, frozenset(lost if last else ()))


@dataclass(frozen=True)
class Limits:
    """When a study is over: at a total of finished trials, or after some seconds of this sweep."""

    trials: int
    seconds_left: Callable[[], float | None]


def optimize(
    study: OpenStudy,
    objective: Callable[[Trial], list[float]],
    limits: Limits,
    workers: int,
    retries: int,
    stop: threading.Event,
    taken: Callable[[FrozenTrial], None],
) -> None:
    """Runs trials on `workers` threads until the total is finished, time is up or `stop` is set.

    The objective raises Pruned, Lost (tried again) or Failed (not tried again) when it has no value; any other error
    ends the work and is raised. The total is never exceeded: a trial begins only if those that are finished and those
    that are running, on whatever host, leave room for it. Whoever finds no room waits, in case one of them is lost.

    On a shared store other hosts work on the same study, and take over the trials of one that falls silent. `taken`
    is called for such a trial by the host that ended it, and by its own host, should that come back.
    """
    work = _Work(study, objective, limits, retries, stop, taken)
    pulse: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if isinstance(study.store, SharedStorage):
        pulse = beating(study.store, work.running, work.fail)
    with pulse:
        with ThreadPoolExecutor(workers) as threads:
            for thread in [threads.submit(work.loop) for _ in range(workers)]:
                thread.result()
        if work.failure is not None:
            # Lost trials that are not queued again would count as finished.
            unavailable = contextlib.suppress(StorageInternalError, SQLAlchemyError, MachineError)
            with unavailable, exclusively(study.store, study.study_name):
                _requeue_lost(study, retries)
            raise work.failure
        decide(study.store, study.study_name, lambda: _requeue_lost(study, retries))


@dataclass
class _Work:
    """The state of a study at work in this process."""

    study: OpenStudy
    objective: Callable[[Trial], list[float]]
    limits: Limits
    retries: int
    stop: threading.Event
    taken: Callable[[FrozenTrial], None]
    running: set[int] = field(default_factory=set)
    failure: Exception | None = None

    def fail(self, error: Exception) -> None:
        """Ends the work of all threads because of an error."""
        self.failure = self.failure or error
        self.stop.set()

    def loop(self) -> None:
        """What each thread does: one trial after the other."""
        try:
            while (trial := self._next()) is not None:
                try:
                    self._run(trial)
                finally:
                    self.running.discard(trial._trial_id)
        except Exception as error:
            self.fail(error)

    def _next(self) -> Trial | None:
        """The next trial, when there is room for one; None when the study is over."""
        shared = self.study.store if isinstance(self.study.store, SharedStorage) else None
        while not self.stop.is_set():
            silent: list[FrozenTrial] = []
            found: list[Trial] = []

            def look(silent: list[FrozenTrial] = silent, found: list[Trial] = found) -> bool:
                return self._look(silent, found)

            goes_on = shared.patiently(look) if shared else look()
            for each in silent:
                self.taken(each)
            if found or not goes_on:
                return found[0] if found else None
            if not silent:
                self.stop.wait(_SHARED_POLL_SECONDS if shared else _POLL_SECONDS)
        return None

    def _look(self, silent: list[FrozenTrial], found: list[Trial]) -> bool:
        """Begins a trial if there is room for one, after ending those whose hosts are silent; False at the end."""
        study = self.study
        try:
            with exclusively(study.store, study.study_name):
                silent += _end_silent(study, self.running)
                done, running = _standing(_requeue_lost(study, self.retries))
                seconds = self.limits.seconds_left()
                if done >= self.limits.trials or (seconds is not None and seconds <= 0):
                    return False
                if not silent and done + running < self.limits.trials:
                    found.append(self._begin())
        except Exception:
            # This process stalled, or the store went away. Another may have taken the room that it saw, and this begins
            # anew: a trial that is left in `running` would seem alive, and be waited for without end.
            for trial in found:
                self._mark_and_tell(trial, "its host stalled as it began")
                self.running.discard(trial._trial_id)
            found.clear()
            raise
        return True

    def _begin(self) -> Trial:
        trial = self.study.ask()
        if isinstance(self.study.store, SharedStorage):
            self.study.store.record_heartbeat(trial._trial_id)
            self.running.add(trial._trial_id)
        try:
            trial.set_user_attr("host", this_host())
        except BaseException:
            # Nobody will run it: it must not seem alive.
            self.running.discard(trial._trial_id)
            raise
        return trial

    def _run(self, trial: Trial) -> None:
        values, state = None, TrialState.FAIL
        try:
            values = self.objective(trial)
            state = TrialState.COMPLETE
        except Pruned:
            state = TrialState.PRUNED
        except (Lost, Failed):
            pass
        except UpdateFinishedTrialError:
            self.taken(self.study._storage.get_trial(trial._trial_id))
            return
        except Exception as error:
            self.fail(error)
            # Where the study's store fails, the run may have finished: the next start then gives the trial its result.
            if not isinstance(error, StorageInternalError | SQLAlchemyError):
                self._mark_and_tell(trial, type(error).__name__)
            return
        told = self._tell(trial, values, state)
        if not told.state.is_finished():
            # Optuna passes over some errors of its store without a word.
            raise StorageInternalError(f"the result of trial {trial.number} was not taken")
        if told.state != state:
            self.taken(told)

    def _tell(self, trial: Trial, values: list[float] | None, state: TrialState) -> FrozenTrial:
        """Ends a trial, and returns it as it is then: failed, if others took it over before."""
        with contextlib.suppress(UpdateFinishedTrialError):
            self.study.tell(trial, values, state, skip_if_finished=True)
        return self.study._storage.get_trial(trial._trial_id)

    def _mark_and_tell(self, trial: Trial, cause: str) -> None:
        """Ends a trial as lost; one that the store cannot take is found by whoever looks for lost trials next."""
        with contextlib.suppress(UpdateFinishedTrialError, StorageInternalError, SQLAlchemyError, MachineError):
            trial.set_user_attr("lost", cause)
            self._tell(trial, None, TrialState.FAIL)
