"""The queue of a study's trials: the next one, the total that is never exceeded, and what counts as failed.

A trial without a result is `lost`, and tried again, until it has failed as often as it may while others succeeded
around it: only then the fault is its own, and it is `failed`. Everything is counted here, by the one process that owns
the study; the store is written to, and read only at the start.
"""

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, Trial, TrialState

from digitcnn.config import StudyConfig
from digitcnn.errors import MachineError
from digitcnn.formatting import format_count, format_duration
from digitcnn.records import TrialRecord
from digitcnn.study.space import Scalar, Space, distributions, grid_points
from digitcnn.study.storage import STORAGE_FAILURES
from digitcnn.study.study import OpenStudy
from digitcnn.study.trials import (
    count_finished,
    finished_points,
    parameters_key,
    parameters_of,
    read_trial,
    record_trial,
    repeated_numbers,
)

# How often a thread that finds no room for a trial looks whether there is some.
_POLL_SECONDS = 0.5
# After so many different trials without a success in between, the cause is not in the trials.
_MAX_FAILURES_IN_A_ROW = 3
# A worker that is killed from outside says nothing about its trial, until it was that trial's so often.
_MAX_KILLS = 10


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


@dataclass(frozen=True)
class _Loss:
    """A lost trial that waits to be tried again, and the number of successes before it was lost."""

    trial: FrozenTrial
    successes: int
    killed: bool


class TrialQueue:
    """The trials of a study at work. For several threads.

    `deadline`, in seconds of time.monotonic(), is when no trial begins any more. Raises as Optuna's store does.
    """

    def __init__(
        self,
        study: OpenStudy,
        config: StudyConfig,
        space: Space,
        total: int,
        deadline: float | None,
        stop: threading.Event,
    ) -> None:
        self.study, self.config, self.total, self.deadline, self.stop = study, config, total, deadline, stop
        self.distributions = distributions(space)
        self.successes = self.running = self.late = 0
        self.lost: dict[int, _Loss] = {}
        # By parameters: how often in a row a trial failed with no success in between.
        self.failures: Counter[str] = Counter()
        self.choosing = threading.RLock()
        self._repeat_what_was_lost()
        trials = study.get_trials(deepcopy=False)
        self.finished = count_finished(study, config.sampler)
        self.covered = set(finished_points(study))
        self.completed = sum(trial.state == TrialState.COMPLETE for trial in trials)
        known = {parameters_key(parameters_of(trial)) for trial in trials}
        self.points: Iterator[dict[str, Scalar]] | None = None
        if config.sampler == "grid":
            # Optuna's own grid sampler cannot handle trials that were queued, as a baseline and a retry are.
            points = grid_points(space)
            random.Random(config.seed).shuffle(points)
            self.points = iter([point for point in points if parameters_key(point) not in known])
        self.waiting = sum(trial.state == TrialState.WAITING for trial in trials)

    def _repeat_what_was_lost(self) -> None:
        """Queue again what was lost before, the baseline first; with `retry_failed` what has failed as well."""
        trials = self.study.get_trials(deepcopy=False)
        repeated = repeated_numbers(trials)
        again = [
            trial
            for trial in trials
            if trial.state == TrialState.FAIL and trial.number not in repeated and parameters_of(trial)
            if self.config.retry_failed or read_trial(trial).lost is not None
        ]
        for trial in sorted(again, key=lambda trial: (not read_trial(trial).baseline, trial.number)):
            record = read_trial(trial)
            if record.lost is None:
                record = replace(record, failures=0, kills=0)
            self._queue_again(trial, record)

    def _queue_again(self, trial: FrozenTrial, record: TrialRecord) -> None:
        again = TrialRecord(
            repeats=trial.number, failures=record.failures, kills=record.kills, baseline=record.baseline
        )
        self.study.enqueue_trial(parameters_of(trial), user_attrs=again.attributes())

    def next(self) -> Trial | None:
        """Return the next trial, with its parameters, when there is room for one; None when the work is over."""
        while not self.stop.is_set():
            # One thread at a time: samplers may fail when two threads use them.
            with self.choosing:
                if self.finished >= self.total or self._is_late():
                    return None
                if self._make_room():
                    return self._ask()
            self.stop.wait(_POLL_SECONDS)
        return None

    def _is_late(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def overtime(self) -> str:
        """Return how far past its timeout the study is, and why; empty if it is not."""
        past = 0.0 if self.deadline is None else time.monotonic() - self.deadline
        if past < 1:
            return ""
        begun = f"{format_count(self.late, 'trial')} that had begun went on to the end"
        why = begun if self.late else "it took as long until a worker was ready"
        return f"study.timeout={self.config.timeout}: {format_duration(past)} past it, as {why}"

    def _make_room(self) -> bool:
        """Return True if a trial may begin, a lost one if others have succeeded since, or if no other is left."""
        ready = [number for number, loss in self.lost.items() if self.successes > loss.successes]
        if ready:
            self._repeat(ready[0], counted=True)
            return True
        if self.finished + self.running + len(self.lost) < self.total:
            if self.waiting:
                self.waiting -= 1
            elif self.points is not None:
                point = next(self.points, None)
                if point is None:
                    return False
                self.study.enqueue_trial(point)
            return True
        if self.lost and self.running == 0:
            self._repeat(next(iter(self.lost)), counted=False)
            return True
        return False

    def _repeat(self, number: int, counted: bool) -> None:
        """Queue a lost trial again; `counted` if its failure says something about it, as others have succeeded."""
        loss = self.lost[number]
        record = read_trial(loss.trial)
        if counted and loss.killed:
            record = replace(record, kills=record.kills + 1)
        elif counted:
            record = replace(record, failures=record.failures + 1)
        self._queue_again(loss.trial, record)
        del self.lost[number]

    def _ask(self) -> Trial:
        """Return a new trial; end it as lost if the sampler raises, and raise the same."""
        try:
            trial = self.study.ask(self.distributions)
        except STORAGE_FAILURES:
            raise
        except Exception as error:
            # Optuna has begun the trial, but does not give its number; those that run have their parameters.
            with contextlib.suppress(*STORAGE_FAILURES):
                for begun in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                    if len(begun.params) < len(self.distributions):
                        record_trial(self.study, begun, TrialRecord(lost=type(error).__name__))
                        self.study.tell(begun.number, state=TrialState.FAIL)
            raise
        self.running += 1
        return trial

    def tell(self, trial: Trial, values: list[float] | None) -> None:
        """End a trial with the values of the objectives, or as pruned without."""
        state = TrialState.PRUNED if values is None else TrialState.COMPLETE
        self.study.tell(trial, values, state)
        if self.study._storage.get_trial(trial._trial_id).state != state:
            # Optuna passes over some errors of its store without a word.
            raise StorageInternalError(f"the result of trial {trial.number} was not taken")
        self._leave(trial, counts=True)
        with self.choosing:
            self.completed += values is not None

    def _leave(self, trial: Trial, counts: bool) -> None:
        """Note that a trial has ended; of those that count with equal parameters a grid counts the first."""
        key = parameters_key(trial.params)
        with self.choosing:
            self.running -= 1
            self.late += self._is_late()
            if counts:
                self.finished += self.points is None or key not in self.covered
                self.covered.add(key)

    def note_success(self) -> None:
        """Note that a run was trained to its end: what failed before it did so for a reason of its own."""
        with self.choosing:
            self.successes += 1
            self.failures.clear()

    def fail(self, trial: Trial, cause: str) -> None:
        """End a trial that failed for a reason of its own: it would fail again."""
        record_trial(self.study, trial, TrialRecord(failure=cause))
        self._end(trial, counts=True)

    def lose(self, trial: Trial, cause: str) -> None:
        """End a trial without a result; the next sweep tries it again."""
        record_trial(self.study, trial, TrialRecord(lost=cause))
        self._end(trial, counts=False)

    def _end(self, trial: Trial, counts: bool) -> None:
        self.study.tell(trial, state=TrialState.FAIL)
        self._leave(trial, counts)

    def end_failed(self, trial: Trial, cause: str, killed: bool, machine_works: Callable[[], bool]) -> bool:
        """End a trial whose run failed, or whose worker died; return True if that is its own fault.

        It is if the trial has failed as often as it may, each time after others had succeeded. Where none has, after
        three different trials or again and again, `machine_works` is asked. Raises MachineError, and counts nothing,
        if that says no.
        """
        key, record = parameters_key(trial.params), read_trial(trial)
        limit = _MAX_KILLS if killed else self.config.retries + 1
        before = record.kills if killed else record.failures
        with self.choosing:
            self.failures[key] += 1
            in_a_row, different, successes = self.failures[key], len(self.failures), self.successes
        own = different == 1 and before + 1 >= limit
        # Where others fail beside it, its earlier failures may have been the machine's too.
        too_often = before + in_a_row >= limit if different == 1 else in_a_row > limit
        if not own and (too_often or different >= _MAX_FAILURES_IN_A_ROW):
            if not machine_works():
                self.lose(trial, cause)
                if self.stop.is_set():
                    # What ended the baseline's run.
                    return False
                what = (
                    f"{different} trials failed" if different > 1 else f"trial {trial.number} failed {in_a_row} times"
                )
                raise MachineError(
                    f"{what} in a row: {cause}; none of this counts, and the same command tries again; "
                    "what had run is recorded"
                )
            own = before + in_a_row >= limit
            self.note_success()
        if own:
            self.fail(trial, cause)
            self.note_success()
        else:
            frozen = self.study._storage.get_trial(trial._trial_id)
            with self.choosing:
                # Before it ends, so that no other takes its place.
                self.lost[trial.number] = _Loss(frozen, successes, killed)
            self.lose(trial, cause)
        return own
