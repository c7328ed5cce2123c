"""The queue of trials: lost ones again, and none when time is up."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.samplers import RandomSampler
from optuna.trial import TrialState, create_trial

from digitcnn import study
from digitcnn.config import SweepConfig
from digitcnn.records import TrialRecord
from digitcnn.study import queue
from digitcnn.study.space import distributions
from tests.support.studies import open_in, run_all, space_of


def test_queue_repeats_lost_trials_up_to_the_retries(sweep_config: SweepConfig, tmp_path: Path) -> None:
    opened = open_in(sweep_config, tmp_path)
    deaths = []

    def objective(trial: optuna.Trial) -> list[float]:
        if trial.user_attrs.get("baseline"):
            deaths.append(trial.number)
            trial.set_user_attr("deaths", trial.user_attrs.get("deaths", 0) + 1)
            raise study.Lost("its worker process ended (SIGKILL)")
        return [float(trial.params["training.epochs"])]

    study.run_trials(opened, space_of(sweep_config), objective, 6, None, 2, 2, threading.Event())
    # The baseline was tried three times (two retries) and then counts as one failed trial of six.
    assert len(deaths) == 3
    assert study.count_finished(opened) == 6
    states = [trial.state for trial in opened.trials]
    assert (states.count(TrialState.FAIL), states.count(TrialState.COMPLETE)) == (3, 5)


def test_queue_repeats_trials_that_a_killed_sweep_left_running(sweep_config: SweepConfig, tmp_path: Path) -> None:
    opened = open_in(sweep_config, tmp_path)
    drawn = distributions(space_of(sweep_config))
    opened.ask(drawn)
    sampled = opened.ask(drawn)
    opened.ask()  # killed before it had parameters: nothing is lost
    opened = open_in(sweep_config, tmp_path)
    assert [trial.number for trial in study.end_running_trials(opened)] == [0, 1, 2]
    assert study.end_running_trials(opened) == []
    run_all(opened, sweep_config)
    assert study.count_finished(opened) == 6
    repeats = [trial for trial in opened.trials if "repeats" in trial.user_attrs]
    assert [trial.params for trial in repeats] == [opened.trials[0].params, sampled.params]
    assert repeats[0].user_attrs["baseline"]


def test_queue_starts_no_trial_when_time_is_up(sweep_config: SweepConfig, tmp_path: Path) -> None:
    opened = open_in(sweep_config, tmp_path)
    study.run_trials(opened, space_of(sweep_config), lambda _: [0.0], 6, time.monotonic(), 2, 2, threading.Event())
    assert study.count_finished(opened) == 0


class _BrokenSampler(RandomSampler):
    """Raises when it is to draw a trial's parameters; a queued trial's are not drawn."""

    def __init__(self, method: str) -> None:
        super().__init__(seed=0)
        setattr(self, method, self._fail)

    def _fail(self, *_: object) -> None:
        raise ValueError("the matrix is singular")


@pytest.mark.parametrize("method", ["sample_relative", "sample_independent"])
def test_trial_whose_sampler_raises_is_lost_and_the_error_is_raised(
    method: str, sweep_config: SweepConfig, tmp_path: Path
) -> None:
    opened = open_in(sweep_config, tmp_path)
    opened.sampler = _BrokenSampler(method)
    with pytest.raises(ValueError, match="the matrix is singular"):
        run_all(opened, sweep_config)
    failed = opened.get_trials(states=(TrialState.FAIL,))
    assert {trial.user_attrs["lost"] for trial in failed} == {"ValueError"}
    assert not opened.get_trials(states=(TrialState.RUNNING,))
    # The same study with a sampler that works gets to its total.
    opened = open_in(sweep_config, tmp_path)
    run_all(opened, sweep_config)
    assert study.count_finished(opened) == 6
    assert len(opened.get_trials(states=(TrialState.COMPLETE,))) == 6


def test_poll_of_a_waiting_thread_reads_the_records_of_failed_trials_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given 1,000 trials with 10 failed: a thread that waits looks at all of them twice a second."""
    opened = optuna.create_study()
    drawn = {"training.batch_size": IntDistribution(1, 1000)}
    for number in range(1000):
        failed = number % 100 == 0
        state, value = (TrialState.FAIL, None) if failed else (TrialState.COMPLETE, 0.5)
        parameters = {"training.batch_size": number + 1}
        opened.add_trial(create_trial(state=state, value=value, params=parameters, distributions=drawn))
    read: list[int] = []

    def note(trial: optuna.trial.FrozenTrial) -> TrialRecord:
        read.append(trial.number)
        return study.read_trial(trial)

    monkeypatch.setattr(queue, "read_trial", note)
    work = queue._Work(opened, drawn, lambda _: [0.0], 1000, None, 2, threading.Event())  # type: ignore[arg-type]
    assert work._next() is None
    assert read == list(range(0, 1000, 100))
