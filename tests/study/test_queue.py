"""The queue of trials: lost ones again, and none when time is up."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import optuna
import pytest
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from digitcnn import study
from digitcnn.config import SweepConfig
from digitcnn.study.space import distributions
from tests.conftest import with_study
from tests.support.studies import open_in, run_all, run_trials, space_of


def test_queue_tries_a_failed_trial_again_after_another_has_succeeded(
    sweep_config: SweepConfig, tmp_path: Path
) -> None:
    opened = open_in(sweep_config, tmp_path)
    attempts: list[int] = []

    def objective(trial: optuna.Trial) -> list[float] | None:
        if trial.user_attrs.get("baseline"):
            attempts.append(trial.number)
            return None
        return [float(trial.params["training.epochs"])]

    queue = run_trials(opened, sweep_config, objective, 6)
    # The baseline was tried twice (one retry) and then counts as one failed trial of six.
    assert len(attempts) == 2
    assert (queue.finished, queue.completed, study.count_finished(opened, "tpe")) == (6, 5, 6)
    records = [study.read_trial(opened.trials[number]) for number in attempts]
    assert [(each.lost, each.failure) for each in records] == [("out of luck", None), (None, "out of luck")]
    between = [trial for trial in opened.trials if attempts[0] < trial.number < attempts[1]]
    assert TrialState.COMPLETE in {trial.state for trial in between}


def test_queue_of_one_trial_that_fails_asks_whether_the_machine_works(
    sweep_config: SweepConfig, tmp_path: Path
) -> None:
    """Given nothing beside it that could succeed."""
    opened = open_in(sweep_config, tmp_path)
    assert run_trials(opened, sweep_config, lambda _: None, 1).finished == 1
    assert [trial.state for trial in opened.trials] == [TrialState.FAIL] * 2


def test_queue_that_is_to_stop_blames_no_machine(sweep_config: SweepConfig, tmp_path: Path) -> None:
    """Given a failure for which the baseline was to be trained, which was ended."""
    opened, stop = open_in(sweep_config, tmp_path), threading.Event()
    queue = study.TrialQueue(opened, sweep_config.study, space_of(sweep_config), 3, None, stop)
    for _ in range(2):
        trial = queue.next()
        assert trial is not None
        assert not queue.end_failed(trial, "out of luck", killed=False, machine_works=lambda: False)
    trial = queue.next()
    assert trial is not None
    assert not queue.end_failed(trial, "out of luck", killed=False, machine_works=lambda: bool(stop.set()))
    assert study.count_finished(opened, "tpe") == 0


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
    assert study.count_finished(opened, "tpe") == 6
    repeats = [trial for trial in opened.trials if "repeats" in trial.user_attrs]
    assert [trial.params for trial in repeats] == [opened.trials[0].params, sampled.params]
    assert repeats[0].user_attrs["baseline"]


def test_queue_starts_no_trial_when_time_is_up(sweep_config: SweepConfig, tmp_path: Path) -> None:
    opened = open_in(sweep_config, tmp_path)
    queue = run_trials(opened, sweep_config, lambda _: [0.0], 6, deadline=time.monotonic())
    assert study.count_finished(opened, "tpe") == 0
    assert queue.overtime() == ""


def test_queue_says_how_far_past_its_timeout_it_went(sweep_config: SweepConfig, tmp_path: Path) -> None:
    config = with_study(sweep_config, timeout="1s")

    def objective(_: optuna.Trial) -> list[float]:
        time.sleep(1.7)
        return [0.0]

    queue = run_trials(open_in(config, tmp_path), config, objective, 6, deadline=time.monotonic() + 0.5)
    said = r"study.timeout=1s: \d+ s past it, as [12] trials? that had begun went on to the end"
    assert re.fullmatch(said, queue.overtime())
    queue.late = 0
    assert queue.overtime().endswith("as it took as long until a worker was ready")


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
    assert study.count_finished(opened, "tpe") == 6
    assert len(opened.get_trials(states=(TrialState.COMPLETE,))) == 6
