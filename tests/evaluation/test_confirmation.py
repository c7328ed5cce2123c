"""Confirming a study and reproducing its champion: real sweeps, real training, the commands as a person runs them."""

from __future__ import annotations

import multiprocessing
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.tracking._tracking_service import utils as mlflow_places

from digitcnn import evaluation, report
from digitcnn.config import ConfirmConfig, DataConfig, ReportConfig, SweepConfig, load_config
from digitcnn.errors import ConfigError, MachineError
from digitcnn.evaluation import ComparedMetric, confirmation
from digitcnn.evaluation.reproduction import judge, tolerance
from digitcnn.tracking import confirmation_runs, open_store
from digitcnn.training import load_splits
from tests.conftest import command_line
from tests.support.processes import FORKS
from tests.support.sweeps import Quiet, work
from tests.support.trainers import ConfirmingTrainer, InstantTrainer

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def _run(name: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command_line(name, *overrides), capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="module")
def confirmed(small_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of a small study that was confirmed with 2 seeds."""
    root = tmp_path_factory.mktemp("confirmed")
    swept = _run(
        "sweep",
        f"tracking.root={root}",
        f"data.path={small_npz}",
        "data.validation_size=100",
        "training.epochs=2",
        "training.batch_size=50",
        *("model.conv1_filters=4", "model.conv2_filters=6", "model.dense_units=16"),
        *("study.name=small", "study.trials=3", "study.pruner=none", "study.workers=1"),
        *("study.space.training.batch_size=[20,50]", "study.space.training.epochs=null"),
        *("study.space.model.conv1_filters={low: 2, high: 8}", "study.space.model.conv2_filters=null"),
    )
    assert swept.returncode == 0, swept.stderr
    ended = _run("confirm", "study=small", f"tracking.root={root}", "confirm.top=1", "confirm.seeds=2")
    assert ended.returncode == 0, ended.stderr
    assert "baseline: test accuracy" in ended.stdout
    return root


@pytest.fixture(scope="module")
def swept(small_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> SweepConfig:
    """A study of 3 trials that was made without Keras, for copies: the baseline has batches of 50."""
    tree = {
        "data": {"path": str(small_npz), "validation_size": 100},
        "training": {"epochs": 2, "batch_size": 50, "threads": 1},
        "tracking": {"root": str(tmp_path_factory.mktemp("swept") / "records")},
        "study": {"name": "small", "objective": "validation_accuracy", "trials": 3, "sampler": "grid", "workers": 1}
        | {"pruner": "none", "space": {"training": {"batch_size": [50, 100, 200]}}},
    }
    config = load_config(SweepConfig, tree)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(multiprocessing, "get_context", lambda _: FORKS)
        work(config, InstantTrainer())
    return config


@pytest.fixture
def config(swept: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ConfirmConfig:
    """A confirmation of a copy of that study, with two candidates and two seeds."""
    root = shutil.copytree(swept.tracking.folder, tmp_path / "records")
    # In one process MLflow remembers where a run's artifacts were, which a copy changes.
    monkeypatch.setattr(mlflow_places, "_artifact_repos_cache", type(mlflow_places._artifact_repos_cache)())
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: FORKS)
    tree = {"study": {"name": "small"}, "tracking": {"root": str(root)}}
    return load_config(ConfirmConfig, {**tree, "confirm": {"top": 2, "seeds": 2, "workers": 1}})


def _confirm(config: ConfirmConfig, *diverging: tuple[int, int]) -> tuple[confirmation.ConfirmationResult, Quiet]:
    shown = Quiet()
    result = evaluation.run_confirmation(
        evaluation.plan_confirmation(config), shown, ConfirmingTrainer(diverging=diverging)
    )
    return result, shown


def _statuses(config: ConfirmConfig) -> Counter[tuple[str, str]]:
    """How many confirming runs there are, by batch size and status."""
    store = open_store(config.tracking)
    found = confirmation_runs(store, "small")
    return Counter((run.data.params["training.batch_size"], run.info.status) for run in found)


def test_a_candidate_that_diverges_is_left_out_and_the_rest_goes_on(config: ConfirmConfig, messages: list[str]) -> None:
    result, _ = _confirm(config, (200, 1))
    table = result.table.set_index("config")
    names = {row.trial: row.Index for row in table.itertuples()}
    diverged = next(name for name in names.values() if table.loc[name, "training.batch_size"] == 200)
    other = next(name for name in names.values() if table.loc[name, "training.batch_size"] == 100)
    assert table.loc[diverged, "verdict"] == "diverged with seed 1"
    assert (table.loc[diverged, "n"], table.loc[other, "n"], table.loc["baseline", "n"]) == (0, 2, 2)
    assert table.loc[other, "p_holm"] == table.loc[other, "p"]
    assert set(result.runs["config"]) == {"baseline", other}
    # Its other seed was not begun.
    expected = {("50", "FINISHED"): 2, ("100", "FINISHED"): 2, ("200", "FAILED"): 1}
    assert _statuses(config) == expected
    assert f"{diverged}: diverged with seed 1; it is left out of the comparison" in evaluation.verdict_sentences(
        result.table
    )
    card = result.champion_path.read_text()
    assert f"# Left out: {diverged} diverged with seed 1." in card
    assert "# 1 candidates, paired" in card
    # The same again trains nothing.
    messages.clear()
    again, shown = _confirm(config, (200, 1))
    assert messages == [f"{diverged} diverged with seed 1: it is left out"]
    assert shown.endings == []
    assert _statuses(config) == expected
    pd.testing.assert_frame_equal(again.table, result.table)
    # With more seeds it is not tried again either, and the report tells of it.
    more = load_config(ConfirmConfig, config.model_dump() | {"confirm": {"top": 2, "seeds": 3, "workers": 1}})
    _confirm(more)
    assert _statuses(config) == {("50", "FINISHED"): 3, ("100", "FINISHED"): 3, ("200", "FAILED"): 1}
    page = report.write_report(ReportConfig(study=config.study, tracking=config.tracking))
    assert "<td>diverged with seed 1</td>" in page.read_text()
    assert f"- {diverged}: diverged with seed 1" in (page.parent / "report.md").read_text()
    assert "diverged with seed 1" in (page.parent / "confirmation.csv").read_text()


def test_if_all_candidates_diverge_the_baseline_is_the_champion(config: ConfirmConfig) -> None:
    result, _ = _confirm(config, (200, 2), (100, 1))
    assert result.champion == "baseline"
    assert result.table["verdict"].tolist()[1:] == ["diverged with seed 2", "diverged with seed 1"]
    page = report.write_report(ReportConfig(study=config.study, tracking=config.tracking))
    assert "<td>diverged with seed 2</td>" in page.read_text()


def test_without_a_baseline_there_is_no_confirmation(config: ConfirmConfig) -> None:
    line = "the baseline diverged with seed 1: there is nothing to compare the others with"
    for _ in range(2):
        with pytest.raises(MachineError, match=line):
            _confirm(config, (50, 1))
        assert _statuses(config)["50", "FAILED"] == 1
    assert not (config.tracking.folder / "reports" / "small" / "champion.yaml").exists()


def test_a_preview_says_what_is_still_missing(config: ConfirmConfig) -> None:
    """Given two seeds' runs and a candidate that diverged, the preview counts one run for each of the others."""
    _confirm(config, (200, 1))
    nothing = evaluation.describe_confirmation(evaluation.plan_confirmation(config))
    assert nothing[-1] == "nothing is missing: confirm compares what is recorded"
    assert [line.rpartition("; ")[2] for line in nothing[1:4]] == [
        "all recorded",
        "diverged with seed 1: left out",
        "all recorded",
    ]
    before = _statuses(config)
    more = load_config(ConfirmConfig, config.model_dump() | {"confirm": {"top": 2, "seeds": 3, "workers": 1}})
    lines = evaluation.describe_confirmation(evaluation.plan_confirmation(more))
    assert lines[0] == "confirmation of study small: 3 configs x 3 seeds"
    assert [line.partition("; ")[2].partition(", ")[0] for line in lines[1:4]] == [
        "1 of 3 runs to come",
        "diverged with seed 1: left out",
        "1 of 3 runs to come",
    ]
    assert re.fullmatch(r"time: about .* for 2 runs by 1 worker", lines[4])
    assert _statuses(config) == before


def _client(root: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{root}/mlflow.db")


def test_the_same_seeds_judge_every_config_once_and_the_champion_is_registered(confirmed: Path) -> None:
    reports = confirmed / "reports" / "small"
    rows, table = pd.read_csv(reports / "confirmation_runs.csv"), pd.read_csv(reports / "confirmation.csv")
    assert rows.groupby("config")["seed"].apply(list).to_dict() == {"baseline": [1, 2], table["config"][1]: [1, 2]}
    for _, config in table.iterrows():
        accuracies = rows[rows["config"] == config["config"]]["test_accuracy"]
        assert (config["n"], config["mean"], config["sd"]) == (2, *(f(accuracies) for f in (np.mean, pd.Series.std)))
    difference = rows["test_accuracy"][2:].to_numpy() - rows["test_accuracy"][:2].to_numpy()
    assert table["difference"][1] == pytest.approx(difference.mean())
    client = _client(confirmed)
    for row in rows.itertuples():
        run = client.get_run(row.run_id)
        assert (run.info.status, run.data.params["data.validation"]) == ("FINISHED", "test_once")
        assert len(client.get_metric_history(row.run_id, "test_accuracy")) == 1
        assert "validation_accuracy" not in run.data.metrics
        predicted = pd.read_csv(client.download_artifacts(row.run_id, "test_predictions.csv"))
        assert (predicted["label"] == predicted["predicted"]).mean() == row.test_accuracy
    champion = client.get_model_version_by_alias("digitcnn", "champion")
    expected = rows[rows["config"] == table[table["champion"]]["config"].iloc[0]].iloc[0]
    assert champion.run_id == expected["run_id"]
    assert "read once per run" in champion.description
    assert "digitcnn reproduce" in champion.description


def test_more_seeds_train_only_what_is_missing(confirmed: Path) -> None:
    before = pd.read_csv(confirmed / "reports" / "small" / "confirmation_runs.csv")
    ended = _run("confirm", "study=small", f"tracking.root={confirmed}", "confirm.top=1", "confirm.seeds=3")
    assert ended.returncode == 0, ended.stderr
    assert "6 runs, 4 recorded before" in ended.stdout
    after = pd.read_csv(confirmed / "reports" / "small" / "confirmation_runs.csv")
    assert set(before["run_id"]) < set(after["run_id"])
    assert after["seed"].tolist() == [1, 2, 3] * 2
    versions = _client(confirmed).search_model_versions("name = 'digitcnn'")
    assert len({version.run_id for version in versions}) == len(versions)


def test_the_champion_is_reproduced_from_its_file_alone(confirmed: Path, tmp_path: Path) -> None:
    champion = confirmed / "reports" / "small" / "champion.yaml"
    ended = _run("reproduce", f"run={champion}", f"tracking.root={tmp_path}/empty")
    assert ended.returncode == 0, ended.stderr
    assert "IDENTICAL" in ended.stdout
    original = yaml.safe_load(champion.read_text())["run_id"]
    client = _client(tmp_path / "empty")
    (run,) = client.search_runs([client.get_experiment_by_name("digitcnn").experiment_id])
    assert run.data.tags["reproduces"] == original


def test_other_threads_are_named_and_an_edited_metric_is_found(confirmed: Path, tmp_path: Path) -> None:
    champion = confirmed / "reports" / "small" / "champion.yaml"
    content = yaml.safe_load(champion.read_text())
    other = 3 - content["config"]["training"]["threads"]
    ended = _run("reproduce", "run=champion", f"tracking.root={confirmed}", f"threads={other}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "EQUIVALENT" in ended.stdout
    assert f"threads: {content['config']['training']['threads']} recorded, {other} now" in ended.stdout
    content["epochs"][0]["train_loss"] += 1e-6
    edited = tmp_path / "edited champion.yaml"
    edited.write_text(yaml.safe_dump(content))
    ended = _run("reproduce", f"run={edited}", f"tracking.root={tmp_path}/empty")
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "DIFFERENT" in ended.stdout


def test_a_verdict_needs_a_reason() -> None:
    near = (ComparedMetric(1, "train_loss", 0.5, 0.5001, tolerance("train_loss", 0.5, 0.9, 1000)),)
    assert judge("a", "b", {"threads": "1 recorded, 2 now"}, near)[0] == "EQUIVALENT"
    assert judge("a", "b", {}, near) == ("DIFFERENT", ("the weights differ in the same environment",))
    far = (ComparedMetric(1, "train_loss", 0.5, 0.9, tolerance("train_loss", 0.5, 0.9, 1000)),)
    verdict, reasons = judge("a", "b", {"threads": "1 recorded, 2 now"}, far)
    assert verdict == "DIFFERENT"
    assert reasons[0].startswith("train_loss of epoch 1: 0.5 recorded, 0.9 repeated, tolerance 0.21")
    nothing = (ComparedMetric(1, "train_loss", 0.5, float("nan"), 1.0),)
    assert judge("a", "b", {"cpu": "x"}, nothing)[0] == "DIFFERENT"


def test_an_accuracys_tolerance_is_three_standard_errors_of_a_difference() -> None:
    assert tolerance("test_accuracy", 0.99, 0.99, 10_000) == pytest.approx(3 * (2 * 0.99 * 0.01 / 10_000) ** 0.5)
    assert tolerance("train_loss", 0.04, 0.99, 10_000) == pytest.approx(3 * 0.04 * (2 / 100) ** 0.5)
    assert tolerance("test_accuracy", 1.0, 1.0, 100) > 0


@pytest.mark.parametrize(
    ("name", "overrides", "line"),
    [
        ("confirm", ["study=nowhere"], "study.name=nowhere: no such study is recorded in"),
        ("reproduce", ["run=1234e567"], "run=1234e567: nothing is recorded in"),
        ("reproduce", ["run=no such, file=1.yaml"], "run=no such, file=1.yaml: cannot be read: No such file"),
        ("reproduce", ["run=champion"], "run=champion: nothing is recorded in"),
    ],
)
def test_a_mistake_is_one_line(name: str, overrides: list[str], line: str, tmp_path: Path) -> None:
    ended = _run(name, *overrides, f"tracking.root={tmp_path}/records")
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert ended.stderr.startswith(f"error: {line}")
    assert len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "records").exists()


def test_a_sweep_never_reads_the_test_set(small_npz: Path, tmp_path: Path) -> None:
    """Given data whose test arrays cannot be read, a sweep runs; what reads them fails."""
    path = tmp_path / "torn.npz"
    with np.load(small_npz) as data:
        np.savez(path, x_train=data["x_train"], y_train=data["y_train"], x_test=np.array(["torn"]), y_test=[0])
    with pytest.raises(ConfigError, match=r"x_test is \(1,\) <U4"):
        load_splits(DataConfig(path=str(path), validation="test_once"))
    swept = _run(
        "sweep",
        f"tracking.root={tmp_path}/records",
        f"data.path={path}",
        *("data.validation_size=100", "training.epochs=1", "study.space.training.epochs=null", "study.trials=1"),
        *("study.name=blind", "model.dense_units=8", "model.conv1_filters=2", "model.conv2_filters=2"),
        *("study.space.model.conv1_filters=null", "study.space.model.conv2_filters=null"),
    )
    assert swept.returncode == 0, swept.stderr
