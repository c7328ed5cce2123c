"""Studies and runs from the terminal: listed, and deleted from both stores and the disk."""

from __future__ import annotations

import io
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient

from digitcnn import evaluation, report, study, tracking
from digitcnn.cli.commands.delete import main as delete
from digitcnn.cli.commands.runs import main as list_runs
from digitcnn.config import DeleteConfig, RunsConfig, StudyChoice, StudyReference, SweepConfig
from digitcnn.errors import ConfigError
from digitcnn.records import Tag
from tests.conftest import Command
from tests.support.recorded import assert_complete, config_in, record_a_run
from tests.support.studies import space_of


def _runs(config: SweepConfig, **settings: object) -> pd.DataFrame:
    return report.list_runs(RunsConfig(tracking=config.tracking, **settings))


def test_runs_are_filtered_sorted_and_typed(copied: SweepConfig, store: tracking.Store) -> None:
    opened = study.existing_study(copied.tracking.folder, "small")
    assert opened is not None
    ranked = study.best_first(opened, study.ended_trials(opened))
    # When
    table = _runs(copied, study=StudyChoice(name="small"), sort="validation_accuracy", format="csv")
    # Then
    assert table["run_id"].tolist() == [each.record.run_id for each in ranked]
    assert table["training.batch_size"].tolist() == [each.parameters["training.batch_size"] for each in ranked]
    for place, each in enumerate(ranked):
        store.client.log_metric(str(each.record.run_id), "test_accuracy.mean", 0.9 + 0.01 * place)
    confirmed = _runs(copied, sort="test_accuracy.mean")
    assert confirmed["run_id"].tolist() == [each.record.run_id for each in reversed(ranked)]
    best = _runs(copied, filter=f"metrics.validation_accuracy > {ranked[1].values[0]}", columns=["training.epochs"])
    assert best.to_dict("records") == [{"run_id": ranked[0].record.run_id, "training.epochs": 40}]
    for settings, line in (
        ({"filter": "metrics.x <> 1"}, "filter: Invalid comparator '<>'"),
        ({"sort": "validation_acuracy"}, "validation_acuracy: no such column; did you mean validation_accuracy"),
    ):
        with pytest.raises(ConfigError, match=line):
            _runs(copied, **settings)


def test_listing_commands_print_what_is_recorded(copied: SweepConfig, command: Command) -> None:
    place = f"tracking.root={copied.tracking.folder}"
    listed, runs = command("studies", place), command("runs", place, "format=json")
    assert listed.stdout.splitlines()[-1].split()[:6] == ["small", "3", "of", "3", "trial", "1:"]
    assert pd.read_json(io.StringIO(runs.stdout))["study"].tolist() == ["small"] * 3
    empty = command("studies", f"tracking.root={copied.tracking.folder}/none")
    assert (empty.returncode, empty.stderr.count("nothing is recorded in")) == (2, 1)


def test_runs_that_match_nothing_are_said_in_one_line(
    copied: SweepConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def listed(**settings: object) -> str:
        assert list_runs(RunsConfig(tracking=copied.tracking, **settings)) == 0
        return capsys.readouterr().out

    nothing, small = {"filter": "metrics.validation_accuracy > 2"}, StudyChoice(name="small")
    line = "is recorded that passes filter=metrics.validation_accuracy > 2\n"
    assert listed(**nothing) == f"no run {line}"
    assert listed(**nothing, study=small, sort="validation_accuracy") == f"no run of study small {line}"
    assert json.loads(listed(**nothing, format="json", columns=["validation_accuracy"])) == []
    assert listed(**nothing, format="csv", columns=["validation_accuracy"]) == "run_id,validation_accuracy\n"
    with pytest.raises(ConfigError, match="study.name=typo: no such study is recorded in .*; there are small"):
        listed(study=StudyChoice(name="typo"))
    empty = copied.tracking.model_copy(update={"root": str(tmp_path / "empty")})
    tracking.open_store(empty)
    assert list_runs(RunsConfig(tracking=empty)) == 0
    assert capsys.readouterr().out == "no run is recorded\n"


def test_delete_takes_a_study_from_both_stores_and_the_disk(
    copied: SweepConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given a study, one run of which claims files outside of the records, and is the champion's; and another run
    root, client = copied.tracking.folder, MlflowClient(copied.tracking.store_uri)
    kept = record_a_run(config_in(root), tags={})
    opened = study.existing_study(root, "small")
    assert opened is not None
    first, *others = [str(study.read_trial(trial).run_id) for trial in opened.trials]
    precious = tmp_path / "precious" / first / "artifacts"
    precious.mkdir(parents=True)
    with closing(sqlite3.connect(root / "mlflow.db")) as database, database:
        database.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (precious.as_uri(), first))
    client.create_registered_model("digitcnn")
    client.create_model_version("digitcnn", (root / "artifacts").as_uri(), others[0])
    client.set_registered_model_alias("digitcnn", "champion", "1")
    client.set_experiment_tag("1", f"{Tag.VIEW_PREFIX}small-trials", "{}")
    checkpoints = [_checkpoint(root, place, first) for place in ("sweep/small", "confirm/small", "finished")]
    of_others = [_checkpoint(root, place, kept) for place in ("sweep/other", "finished")]
    config = DeleteConfig(study=StudyChoice(name="small"), tracking=copied.tracking)
    # When the champion's is to go, or nobody can be asked
    with pytest.raises(ConfigError, match=f"study.name=small: run {others[0]} is the champion's"):
        delete(config)
    client.delete_registered_model_alias("digitcnn", "champion")
    with pytest.raises(ConfigError, match=r"yes=true deletes without asking, .* study small: its trials, 4 runs, "):
        delete(config)
    assert study.existing_study(root, "small") is not None
    # Then it is all there until it may go
    assert delete(config.model_copy(update={"yes": True})) == 0
    assert capsys.readouterr().out.startswith("deleted: study small: its trials, 4 runs, 0 models, ")
    assert study.existing_study(root, "small") is None
    store = tracking.open_store(copied.tracking)
    assert [run.info.run_id for run in tracking.search_runs(store, "")] == [kept]
    assert not any((root / "artifacts" / "digitcnn" / run_id).exists() for run_id in others)
    assert not (root / "reports" / "small").exists()
    assert not any(path.exists() for path in checkpoints)
    assert all(path.exists() for path in of_others)
    assert precious.exists()
    assert client.search_model_versions("name = 'digitcnn'") == []
    assert not [name for name in client.get_experiment("1").tags if "sharedViewState" in name]
    assert_complete(config_in(root), kept)


def _checkpoint(root: Path, place: str, run_id: str) -> Path:
    """Write a large file where a run's checkpoint is kept; return its path."""
    path = root / "checkpoints" / place / f"{'0' * 32}-{run_id}-4.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(20_000_000))
    return path


def test_delete_takes_no_run_of_another_study_of_that_name(copied: SweepConfig, opened: study.OpenStudy) -> None:
    """Given a study that was cut off before it had a run of its own, and the runs of another one in the same store."""
    store = tracking.open_store(copied.tracking)
    of_another = {opened.parent_run_id, *(study.read_trial(trial).run_id for trial in opened.trials)}
    study.delete_study(copied.tracking.folder, "small")
    other = study.open_study(copied.tracking.folder, copied.study, space_of(copied), copied.baseline, "a" * 64)
    created = tracking.create_run(store, "small", {Tag.STUDY: "small", Tag.STUDY_KEY: other.key}, {})
    assert other.parent_run_id is None
    # When
    config = DeleteConfig(study=StudyChoice(name="small"), yes=True, tracking=copied.tracking)
    assert delete(config) == 0
    # Then
    assert created not in of_another
    assert {run.info.run_id for run in tracking.search_runs(store, "")} == of_another


def test_delete_takes_a_run_that_belongs_to_no_study(copied: SweepConfig, capsys: pytest.CaptureFixture[str]) -> None:
    root = copied.tracking.folder
    run_id = record_a_run(config_in(root), tags={})
    checkpoints = [_checkpoint(root, place, run_id) for place in ("train", "finished")]
    (trial, *_) = [each for each in _runs(copied)["run_id"] if each != run_id]
    with pytest.raises(ConfigError, match=f"run={trial}: belongs to study small"):
        delete(DeleteConfig(run=trial, yes=True, tracking=copied.tracking))
    assert delete(DeleteConfig(run=run_id[:8], yes=True, tracking=copied.tracking)) == 0
    assert capsys.readouterr().out == f"deleted: run {run_id}, 1 model, 40.0 MB of files\n"
    assert not any(path.exists() for path in checkpoints)
    assert run_id not in set(_runs(copied)["run_id"])
    assert not (root / "artifacts" / "digitcnn" / run_id).exists()
    assert not list((root / "artifacts" / "digitcnn" / "models").glob("*"))


def test_what_was_deleted_in_mlflow_is_named_with_the_remedy(copied: SweepConfig, store: tracking.Store) -> None:
    # Given a study whose best trial was deleted, and then removed by `mlflow gc`
    opened = study.existing_study(copied.tracking.folder, "small")
    assert opened is not None
    first, second, *_ = study.best_first(opened, study.ended_trials(opened))
    reference = StudyReference(name="small")
    store.client.delete_run(str(first.record.run_id))
    assert evaluation.find_run(store, "best", reference, copied.tracking) == first.record.run_id
    store.client.restore_run(str(first.record.run_id))
    tracking.delete_runs(store, [str(first.record.run_id)], [])
    line = f"run=best: the run of trial {first.number} was deleted from MLflow for good; the next best is trial "
    with pytest.raises(ConfigError, match=f"{line}{second.number}: run={second.record.run_id}"):
        evaluation.find_run(store, "best", reference, copied.tracking)
    # And an experiment that was deleted
    store.client.delete_experiment(store.experiment_id)
    line = f"mlflow experiments restore --experiment-id {store.experiment_id}; or choose another tracking.experiment"
    with pytest.raises(ConfigError, match=line):
        tracking.open_store(copied.tracking)
    assert tracking.open_store(copied.tracking, reading=True).experiment_id == store.experiment_id
