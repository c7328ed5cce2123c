"""Recovery: Optuna's and MLflow's records of a study that disagree after a kill, or when one store is gone."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from digitcnn import report, runner, study, tracking
from digitcnn.config import StudyReference, SweepConfig, load_config
from digitcnn.errors import ConfigError
from digitcnn.records import TrialRecord
from digitcnn.runner.study_run import recorded_outcome
from digitcnn.study.space import distributions
from digitcnn.tracking import operations, outbox
from digitcnn.values import EpochMetrics, RunFinished
from tests.conftest import with_study
from tests.support.recorded import epoch
from tests.support.sweeps import (
    Quiet,
    assert_nothing_runs,
    assert_whole,
    confirm,
    open_records,
    work,
)
from tests.support.trainers import InstantTrainer


def _unfinish(root: Path, number: int) -> None:
    """Makes a trial of which the study was never told the result."""
    with closing(sqlite3.connect(root / "optuna.db")) as database, database:
        (trial,) = database.execute("select trial_id from trials where number = ?", (number,)).fetchone()
        database.execute("update trials set state = 'RUNNING', datetime_complete = null where trial_id = ?", (trial,))
        database.execute("delete from trial_values where trial_id = ?", (trial,))
        database.execute(
            "delete from trial_user_attributes where trial_id = ? and key not in ('run_id', 'baseline')",
            (trial,),
        )


def test_repair_counts_a_result_that_the_study_was_never_told(copied: SweepConfig, store: tracking.Store) -> None:
    root = copied.tracking.folder
    before = study.existing_study(root, "small").trials  # type: ignore[union-attr]
    for number in (0, 2):
        _unfinish(root, number)
    opened = study.existing_study(root, "small")
    assert opened is not None
    assert runner.repair_records(opened, store) == "trials 0, 2 had finished unnoticed; their results count"
    for trial, was in zip(opened.trials, before, strict=True):
        assert (trial.state, trial.values, trial.user_attrs) == (was.state, was.values, was.user_attrs)
    assert runner.repair_records(opened, store) == ""
    assert_whole(root, 3)


def test_recorded_outcome_delivers_a_queued_end_first(opened: study.OpenStudy, store: tracking.Store) -> None:
    """Given a worker that was killed after its run FINISHED, which a store that was away did not take."""
    trial = opened.trials[0]
    run_id = trial.user_attrs["run_id"]
    store.client.update_run(run_id, status="RUNNING")
    assert recorded_outcome(store, run_id) is None
    outbox.enqueue(store.outbox, store.name, run_id, operations.ended("FINISHED"))
    outcome = recorded_outcome(store, run_id)
    assert outcome is not None
    assert outcome.summary["validation_accuracy"] == trial.values[0]


def test_repair_prunes_a_trial_whose_run_was_pruned(copied: SweepConfig, store: tracking.Store) -> None:
    """Given a trial that was pruned after its second epoch, in whose place another would be trained."""
    root = copied.tracking.folder
    _unfinish(root, 2)
    opened = study.existing_study(root, "small")
    assert opened is not None
    trial = opened.trials[2]
    tags = {"study": "small", "trial": "2"}
    run_id = tracking.create_training_run(store, copied.baseline, "small-2", tags, opened.user_attrs["parent_run_id"])
    study.record_trial(opened, trial, TrialRecord(run_id=run_id))
    run = tracking.Run(store, run_id, copied.baseline)
    for number in (1, 2):
        run.log_epoch(epoch(number))
    run.log_finish(RunFinished("pruned", 2, {"cpu_seconds": 2.0}, "a" * 64, "keras", {}, {}))
    assert runner.repair_records(opened, store) == "trials 2 had finished unnoticed; their results count"
    told = opened.trials[2]
    assert told.state == TrialState.PRUNED
    assert told.user_attrs["epochs_run"] == 2
    assert told.user_attrs["reached"] == {"validation_accuracy": epoch(2).validation_accuracy}
    assert study.count_finished(opened, "tpe") == 3


def test_repair_ends_runs_as_their_trials_ended(
    copied: SweepConfig, opened: study.OpenStudy, store: tracking.Store
) -> None:
    runs = [trial.user_attrs["run_id"] for trial in opened.trials]
    store.client.update_run(runs[0], status="RUNNING")
    store.client.set_terminated(runs[1], "FAILED")
    store.client.set_tag(runs[1], "failure", "cut off")
    said = runner.repair_records(opened, store)
    assert said == "2 runs were marked as finished, as their trials are"
    assert "failure" not in store.client.get_run(runs[1]).data.tags
    assert_whole(copied.tracking.folder, 3)


def test_repair_ends_a_trial_without_a_run_and_runs_without_a_trial(
    copied: SweepConfig, opened: study.OpenStudy, store: tracking.Store
) -> None:
    space = runner.plan_sweep(copied).space
    opened.enqueue_trial({"training.batch_size": 150})
    opened.ask(distributions(space))
    noted = opened.ask()
    parent = opened.user_attrs["parent_run_id"]
    unnoted = tracking.create_training_run(store, copied.baseline, "small-4", {"study": "small", "trial": "4"}, parent)
    nobody = tracking.create_training_run(store, copied.baseline, "small-99", {"study": "small", "trial": "99"}, parent)
    store.client.update_run(parent, status="RUNNING")
    # Of a study of the same name in another folder, which records in the same MLflow store.
    other = tracking.create_training_run(
        store, copied.baseline, "small-0", {"study": "small", "trial": "0"}, "another's run"
    )
    said = runner.repair_records(opened, store)
    assert said == "trials 3, 4 had been cut off; their parameters are queued again; 3 open runs were closed"
    assert [store.client.get_run(run).info.status for run in (unnoted, nobody, parent)] == ["KILLED"] * 3
    assert store.client.get_run(other).info.status == "RUNNING"
    assert opened.trials[noted.number].user_attrs["run_id"] == unnoted
    store.client.delete_run(nobody)
    # The first had parameters, and is repeated with them; the other had none.
    result = work(with_study(copied, trials=4), InstantTrainer())
    assert store.client.get_run(other).info.status == "RUNNING"
    store.client.delete_run(other)
    assert result.finished == 4
    repeated = [trial for trial in open_records(copied.tracking.folder)[0].trials if "repeats" in trial.user_attrs]
    assert [(each.user_attrs["repeats"], each.params) for each in repeated] == [(3, {"training.batch_size": 150})]
    assert_whole(copied.tracking.folder, 4)


def test_sweep_goes_on_when_the_mlflow_records_were_deleted(
    copied: SweepConfig, opened: study.OpenStudy, messages: list[str]
) -> None:
    root = copied.tracking.folder
    opened.enqueue_trial(opened.trials[1].params)
    (root / "mlflow.db").unlink()
    with pytest.raises(ConfigError, match="MLflow's records of it are gone; sweep it again"):
        confirm(copied)
    messages.clear()
    assert work(with_study(copied, trials=4), InstantTrainer()).finished == 4
    assert messages == ["MLflow's records of it are gone; its trials count without them"]
    # What could have been taken over from a run that is gone was trained again.
    again = open_records(root)[0].trials[3]
    assert "same_as" not in again.user_attrs
    assert_nothing_runs(root)
    messages.clear()
    work(with_study(copied, trials=4), InstantTrainer())
    assert messages == []


class _Deleting(Quiet):
    """A display at which a person deletes the study's experiment, and later a trial's run while it is trained."""

    def __init__(self, store: tracking.Store) -> None:
        super().__init__()
        self.store = store

    def trial_ended(self, worker: int | None, trial: int, ending: str, value: float | None, best: str) -> None:
        super().trial_ended(worker, trial, ending, value, best)
        if trial == 1:
            self.store.client.delete_experiment(self.store.experiment_id)

    def epoch(self, worker: int, trial: int, metrics: EpochMetrics) -> None:
        if (trial, metrics.epoch) == (3, 1):
            (run,) = tracking.find_runs(self.store, "tags.trial = '3'")
            self.store.client.delete_run(run.info.run_id)


def test_sweep_restores_what_is_deleted_in_mlflow_while_it_runs(
    root: Path, sweep_config: SweepConfig, messages: list[str]
) -> None:
    store = tracking.open_store(sweep_config.tracking)
    shown = _Deleting(store)
    assert work(with_study(sweep_config, workers=1, trials=4), InstantTrainer(), shown).finished == 4
    assert shown.endings == ["complete"] * 4
    (run,) = tracking.find_runs(store, "tags.trial = '3'")
    restored = "was deleted in MLflow while this command records in it: it is restored"
    assert messages == [f"the experiment {restored}, with all of its runs", f"run {run.info.run_id} {restored}"]
    assert_whole(root, 4)
    assert tracking.queued_records(sweep_config.tracking) == []


def test_study_is_whole_when_another_experiment_is_asked_for(
    copied: SweepConfig, opened: study.OpenStudy, store: tracking.Store, messages: list[str]
) -> None:
    """Given a sweep that was killed in the first experiment, and a duplicate of a trial there."""
    parent = opened.user_attrs["parent_run_id"]
    tags = {"study": "small", "trial": "99"}
    run_id = tracking.create_training_run(store, copied.baseline, "small-99", tags, parent)
    opened.enqueue_trial(opened.trials[1].params)
    place = {"root": copied.tracking.root, "experiment": "other"}
    other = load_config(SweepConfig, {**copied.model_dump(), "tracking": place})
    shown = Quiet()
    result = work(with_study(other, trials=4), InstantTrainer(), shown)
    assert (result.finished, result.parent_run_id) == (4, parent)
    assert messages == ["1 open run was closed"]
    assert store.client.get_run(run_id).info.status == "KILLED"
    assert shown.endings == ["same as trial 1"]
    elsewhere = tracking.open_store(other.tracking)
    assert elsewhere.experiment_id != store.experiment_id
    for each in (store, elsewhere):
        found = report.read_study(each, StudyReference(name="small"), copied.tracking)
        assert (found.status, found.total, found.finished) == ("FINISHED", 4, 4)
        assert found.environment["threads"] == {"1": 3}


def test_sweep_begins_anew_when_the_optuna_study_was_deleted(
    copied: SweepConfig, store: tracking.Store, messages: list[str]
) -> None:
    root = copied.tracking.folder
    before = {run.info.run_id: run.info.status for run in _children(store)}
    (root / "optuna.db").unlink()
    assert work(copied, InstantTrainer()).finished == 3
    assert messages == ["MLflow also has the runs of another study of this name"]
    after = {run.info.run_id: run.info.status for run in _children(store)}
    assert before.items() <= after.items()
    assert len(after) == 6
    assert {trial.user_attrs["run_id"] for trial in open_records(root)[0].trials} == set(after) - set(before)


def _children(store: tracking.Store) -> list[Any]:
    runs = store.client.search_runs([store.experiment_id])
    return [run for run in runs if "trial" in run.data.tags]
