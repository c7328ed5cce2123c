"""Trials: what is recorded of them, and which is the best."""

from __future__ import annotations

import optuna
from optuna.distributions import IntDistribution
from optuna.trial import TrialState, create_trial

from digitcnn import study
from digitcnn.records import TrialRecord


def _add(opened: optuna.Study, batch_size: int, values: list[float] | None, state: TrialState) -> None:
    opened.add_trial(
        create_trial(
            state=state,
            values=values,
            params={"batch_size": batch_size},
            distributions={"batch_size": IntDistribution(1, 999)},
        )
    )


def test_record_trial_stores_only_the_set_fields_under_their_names() -> None:
    opened = optuna.create_study()
    trial = opened.ask()
    study.record_trial(opened, trial, TrialRecord(run_id="abc", baseline=True))
    study.record_trial(opened, opened.get_trials()[0], TrialRecord(lost="interrupted", failures=1))
    (stored,) = opened.get_trials()
    assert stored.user_attrs == {"run_id": "abc", "baseline": True, "lost": "interrupted", "failures": 1}
    assert study.read_trial(stored) == TrialRecord(run_id="abc", baseline=True, lost="interrupted", failures=1)


def test_read_trial_passes_over_what_others_recorded() -> None:
    opened = optuna.create_study()
    opened.ask().set_user_attr("colour", "blue")
    assert study.read_trial(opened.get_trials()[0]) == TrialRecord()


def test_best_first_orders_by_the_objectives_in_their_order_and_then_the_earliest() -> None:
    opened = optuna.create_study(directions=["maximize", "minimize"])
    opened.set_metric_names(["validation_accuracy", "cpu_seconds"])
    for batch_size, values in ((1, [0.5, 1.0]), (2, [0.9, 3.0]), (3, [0.9, 2.0]), (4, [0.9, 2.0])):
        _add(opened, batch_size, values, TrialState.COMPLETE)
    _add(opened, 5, None, TrialState.FAIL)
    _add(opened, 6, None, TrialState.PRUNED)
    ordered = study.best_first(opened, study.ended_trials(opened))
    assert [trial.number for trial in ordered] == [2, 3, 1, 0]
    best = study.best_trial(opened)
    assert best is not None
    assert best.number == study.rank_trials(opened)["trial"].iloc[0] == 2


def test_best_trial_is_the_leaderboards_first_whatever_ended_before_with_equal_parameters() -> None:
    """Given trials whose runs were deleted: they were trained again, and were pruned or worse the first time."""
    opened = optuna.create_study(direction="maximize")
    opened.set_metric_names(["validation_accuracy"])
    _add(opened, 1, [0.8], TrialState.COMPLETE)
    _add(opened, 2, None, TrialState.PRUNED)
    _add(opened, 2, [0.9], TrialState.COMPLETE)
    best = study.best_trial(opened)
    assert best is not None
    assert best.number == study.rank_trials(opened)["trial"].iloc[0] == 2
    _add(opened, 1, [0.95], TrialState.COMPLETE)
    best = study.best_trial(opened)
    assert best is not None
    assert best.number == study.rank_trials(opened)["trial"].iloc[0] == 3


def test_reusable_trials_prefer_a_completed_one_and_then_the_first() -> None:
    opened = optuna.create_study()
    _add(opened, 1, None, TrialState.PRUNED)
    _add(opened, 2, None, TrialState.PRUNED)
    for values in ([0.5], [0.4]):
        _add(opened, 1, values, TrialState.COMPLETE)
    _add(opened, 2, None, TrialState.PRUNED)
    reusable = study.reusable_trials(study.ended_trials(opened))
    assert {key: trial.number for key, trial in reusable.items()} == {'{"batch_size": 1}': 2, '{"batch_size": 2}': 1}


def test_best_trial_of_a_study_without_results_is_none() -> None:
    assert study.best_trial(optuna.create_study()) is None
