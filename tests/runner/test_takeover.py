"""Studies that take over what is recorded: trials of another study, and runs by hand."""

from __future__ import annotations

import re

import pytest
from optuna.trial import TrialState

from digitcnn import evaluation, report, runner, study, tracking
from digitcnn.config import ConfirmConfig, ReportConfig, StudyReference, SweepConfig, load_config
from digitcnn.errors import ConfigError
from tests.conftest import with_study
from tests.support.sweeps import open_records, work
from tests.support.trainers import InstantTrainer

SMALL_BATCHES = {"training": {"batch_size": {"low": 1, "high": 100}, "epochs": {"low": 4, "high": 40}}}


def test_study_takes_over_the_trials_that_lie_in_its_space(copied: SweepConfig, opened: study.OpenStudy) -> None:
    """Given a study of batch sizes: another of smaller ones, and of epochs as well, begins with those that fit."""
    sizes = {trial.params["training.batch_size"]: trial for trial in opened.trials}
    fitting = {size: trial for size, trial in sizes.items() if size <= 100}
    assert 50 in fitting
    assert len(fitting) < len(sizes)
    config = with_study(copied, name="wider", extends="small", trials=len(fitting) + 1, space=SMALL_BATCHES)
    plan = runner.plan_sweep(config)
    line = f"study wider takes over {len(fitting)} of 3 recorded trials; left: "
    assert plan.taken.line == f"{line}{3 - len(fitting)} with training.batch_size other than 1 to 100"
    assert study.existing_study(copied.tracking.folder, "wider") is None
    # When
    result = work(config, InstantTrainer())
    # Then
    wider, client, runs = open_records(copied.tracking.folder, "wider")
    assert (result.finished, len(wider.trials)) == (len(fitting) + 1, len(fitting) + 1)
    taken = [trial for trial in wider.trials if "taken_from" in trial.user_attrs]
    assert {trial.params["training.batch_size"] for trial in taken} == set(fitting)
    for trial in taken:
        source = fitting[trial.params["training.batch_size"]]
        assert trial.params["training.epochs"] == 40
        assert (trial.state, trial.values) == (TrialState.COMPLETE, source.values)
        assert trial.user_attrs["run_id"] == source.user_attrs["run_id"]
        assert trial.user_attrs["cpu_seconds"] == source.user_attrs["cpu_seconds"]
        assert trial.intermediate_values == source.intermediate_values
        assert (
            client.get_run(source.user_attrs["run_id"]).data.tags["taken_by.wider"] == f"trial {source.number} of small"
        )
    # Nothing is copied, and trial 0 is the baseline.
    own = [run for run in runs if run.data.tags.get("study") == "wider" and "trial" in run.data.tags]
    assert len(own) == 1
    assert (wider.trials[0].user_attrs["baseline"], wider.trials[0].params["training.batch_size"]) == (True, 50)
    notes = result.leaderboard.set_index("trial")["note"]
    assert notes[0] == "baseline; from trial 0 of small"
    page = report.write_report(ReportConfig(study=StudyReference(name="wider"), tracking=config.tracking))
    curves = (page.parent / "learning_curves.csv").read_text()
    assert all(trial.user_attrs["run_id"] in curves for trial in wider.trials)
    # The same command again has them.
    again = runner.plan_sweep(config)
    assert again.taken.trials == ()
    assert f"takes over 0 of 3 recorded trials, and has {len(fitting)} of them" in again.taken.line


def test_study_takes_over_trials_for_more_objectives(copied: SweepConfig, opened: study.OpenStudy) -> None:
    """Given a trial that was pruned, which has no place in a study of two objectives."""
    config = with_study(copied, name="front", extends="small", objective=["validation_accuracy", "cpu_seconds"])
    pruned = opened.trials[2].user_attrs["run_id"]
    store = tracking.open_store(config.tracking)
    store.client.set_tag(pruned, "pruned_after", "7")
    store.client.set_terminated(pruned, "KILLED")
    taken = runner.plan_sweep(config).taken
    assert [trial.values for trial in taken.trials] == [
        [*trial.values, trial.user_attrs["cpu_seconds"]] for trial in opened.trials[:2]
    ]
    assert taken.line.endswith("; left: 1 pruned before its end")
    # By the same objective it was pruned as this study would have done.
    (*_, last) = runner.plan_sweep(with_study(copied, name="same", extends="small")).taken.trials
    assert (last.values, last.record.epochs_run) == (None, 7)
    assert last.record.reached == {"validation_accuracy": opened.trials[2].value}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"extends": "smal"}, "study.extends=smal: no such study is recorded in"),
        ({"extends": "small"}, "none of its trials fits into new: 3 with model.conv1_filters other than 5"),
        ({"take": "[champion]"}, "study.take=champion: must be a run id, or at least its first 6 characters"),
        ({"take": "123456"}, "study.take=123456: no such run is recorded"),
    ],
)
def test_takeover_is_refused_in_one_line(values: dict[str, object], message: str, copied: SweepConfig) -> None:
    tree = with_study(copied, **{"name": "new", **values}).model_dump()
    # Another value that is not searched.
    tree["model"]["conv1_filters"] = 5
    with pytest.raises(ConfigError, match=re.escape(message)):
        runner.plan_sweep(load_config(SweepConfig, tree))


def test_study_takes_over_runs_by_hand(copied: SweepConfig) -> None:
    by_hand = [
        runner.record_run(copied.baseline.replace({"training.batch_size": size}), tags={}, trainer=InstantTrainer())
        for size in (20, 99)
    ]
    good, other = (run.run_id for run in by_hand)
    taken = runner.plan_sweep(with_study(copied, name="new", take=f"[{good[:8]}]")).taken
    (trial,) = taken.trials
    assert (trial.parameters, trial.values) == (
        {"training.batch_size": 20},
        [by_hand[0].result.summary["validation_accuracy"]],
    )
    assert trial.record.taken_from == f"run {good[:8]}"
    assert len(trial.reports) == 40
    allowed = "one of 20, 50, 100, 150, 200"
    with pytest.raises(
        ConfigError, match=f"^study.take={other[:8]}: is a run with training.batch_size other than {allowed}$"
    ):
        runner.plan_sweep(with_study(copied, name="new", take=f"[{good},{other}]"))
    # Trial 0 is the baseline here too.
    begun = work(with_study(copied, name="new", take=f"[{good}]", trials=2), InstantTrainer()).leaderboard
    assert begun.set_index("trial")["note"].to_dict() == {0: "baseline", 1: f"from run {good[:8]}"}


def test_infeasible_trials_are_neither_best_nor_confirmed(sweep_config: SweepConfig) -> None:
    """Given a grid in which more epochs are better, but cost too much, and the largest network has too many weights."""
    space = {"training": {"epochs": [1, 2, 3]}, "model": {"conv1_filters": [2, 4, 64]}}
    bounds = {"parameters": {"max": 5000}, "cpu_seconds": {"max": 2}}
    config = with_study(sweep_config, workers=1, sampler="grid", space=space, constraints=bounds, trials=9)
    table = work(config, InstantTrainer()).leaderboard
    opened, client, _ = open_records(config.tracking.folder)
    states = table.set_index(["training.epochs", "model.conv1_filters"])["state"].to_dict()
    assert {point for point, state in states.items() if state == "complete"} == {(1, 2), (1, 4), (2, 2), (2, 4)}
    assert sorted({state for point, state in states.items() if point[0] == 3 or point[1] == 64}) == ["infeasible"]
    best = study.best_trial(opened)
    assert best is not None
    assert best.parameters["training.epochs"] == 2
    assert table["rank"].notna().sum() == 4
    assert study.best_trial_number(table) == best.number
    # A network that is known to be too large is not trained.
    large = table[table["model.conv1_filters"] == 64]
    assert large["epochs_run"].isna().all()
    assert large["note"].str.contains("beyond parameters.max; not trained").all()
    run = client.get_run(large["run_id"].iloc[0])
    assert (run.info.status, run.data.metrics["parameters"] > 5000) == ("KILLED", True)
    assert run.data.tags["failure"] == "breaks study.constraints, and was not trained"
    late = table[(table["training.epochs"] == 3) & (table["model.conv1_filters"] != 64)]
    assert late["note"].tolist() == ["1 beyond cpu_seconds.max"] * 2
    settings = {"study": {"name": "small"}, "tracking": {"root": str(config.tracking.folder)}}
    plan = evaluation.plan_confirmation(load_config(ConfirmConfig, settings))
    assert {each.parameters["training.epochs"] for each in (*plan.candidates, *plan.others)} == {1, 2}
    page = report.write_report(ReportConfig(study=StudyReference(name="small"), tracking=config.tracking))
    assert "4 complete, 5 infeasible" in page.read_text() or "5 infeasible, 4 complete" in page.read_text()
    # Other constraints are another study's, which judges what it takes over anew.
    with pytest.raises(ConfigError, match="study.constraints=.* with study.extends=small to take its trials along"):
        runner.plan_sweep(with_study(config, constraints={}))
    stricter = with_study(config, name="stricter", extends="small", constraints={"cpu_seconds": {"max": 1}})
    taken = runner.plan_sweep(stricter).taken.trials
    assert {trial.parameters["training.epochs"]: trial.constraints for trial in taken} == {
        epochs: {"cpu_seconds.max": epochs - 1.0} for epochs in (1, 2, 3)
    }
