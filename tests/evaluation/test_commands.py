"""Confirm and reproduce as a person runs them: real sweeps, real training."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient

from digitcnn.config import DataConfig
from digitcnn.errors import ConfigError
from digitcnn.training import load_splits
from tests.conftest import command_line
from tests.support.processes import run_forked

# The study is made once.
pytestmark = pytest.mark.xdist_group("confirmed")


def _run(name: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    return run_forked(command_line(name, *overrides), Path.cwd(), timeout=600)


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
        *("study.name=small", "study.trials=3", "study.pruner=none", "workers.count=1"),
        *("study.space.training.batch_size=[20,50]", "study.space.training.epochs=null"),
        *("study.space.model.conv1_filters={low: 2, high: 8}", "study.space.model.conv2_filters=null"),
    )
    assert swept.returncode == 0, swept.stderr
    ended = _run("confirm", "study=small", f"tracking.root={root}", "confirm.top=1", "confirm.seeds=2")
    assert ended.returncode == 0, ended.stderr
    assert "the baseline has " in ended.stdout
    return root


def _client(root: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{root}/mlflow.db")


def test_confirm_judges_every_config_with_the_same_seeds(confirmed: Path) -> None:
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


def test_confirm_trains_only_the_seeds_that_are_missing(confirmed: Path) -> None:
    before = pd.read_csv(confirmed / "reports" / "small" / "confirmation_runs.csv")
    ended = _run("confirm", "study=small", f"tracking.root={confirmed}", "confirm.top=1", "confirm.seeds=3")
    assert ended.returncode == 0, ended.stderr
    assert "6 runs, 4 recorded before" in ended.stdout
    after = pd.read_csv(confirmed / "reports" / "small" / "confirmation_runs.csv")
    assert set(before["run_id"]) < set(after["run_id"])
    assert after["seed"].tolist() == [1, 2, 3] * 2
    versions = _client(confirmed).search_model_versions("name = 'digitcnn'")
    assert len({version.run_id for version in versions}) == len(versions)


def test_confirm_gives_no_more_seeds_to_a_candidate_that_is_plainly_behind(small_npz: Path, tmp_path: Path) -> None:
    """Given a trial that learns nothing, some seeds show it, and further ones are the baseline's alone."""
    root, table = f"tracking.root={tmp_path}/records", tmp_path / "records" / "reports" / "small" / "confirmation.csv"
    swept = _run(
        "sweep",
        *(root, f"data.path={small_npz}", "data.validation_size=100", "workers.count=1", "study.name=small"),
        *("training.epochs=2", "training.batch_size=20", "training.learning_rate=0.005", "study.sampler=grid"),
        *("model.conv1_filters=4", "model.conv2_filters=6", "model.dense_units=16", "study.trials=2"),
        "study.space={training: {learning_rate: [0.0000001]}}",
    )
    assert swept.returncode == 0, swept.stderr
    seeds = {}
    for asked in (6, 7):
        ended = _run("confirm", "study=small", root, f"confirm.seeds={asked}", "confirm.top=1", "workers.count=1")
        assert ended.returncode == 0, ended.stderr
        baseline, candidate = pd.read_csv(table).to_dict("records")
        seeds[asked] = candidate["n"]
        assert (baseline["n"], candidate["verdict"]) == (asked, "worse")
        assert candidate["raced_out"] == candidate["n"]
        assert f"; no more seeds, as it was behind the best after {candidate['n']}" in ended.stdout
    assert seeds[6] == seeds[7] < 6


def test_report_gives_the_commands_that_make_its_table_again(confirmed: Path, tmp_path: Path) -> None:
    """Given another folder for the records, the commands below "Doing it again" lead to the same verdicts there."""
    assert _run("report", "study=small", f"tracking.root={confirmed}").returncode == 0
    text = (confirmed / "reports" / "small" / "report.md").read_text()
    *commands, last = text.partition("```bash\n")[2].partition("\n```")[0].splitlines()
    for command in commands:
        program, name, *words = shlex.split(command.replace(str(confirmed), str(tmp_path)))
        ended = _run(name, *words)
        assert (program, ended.returncode) == ("digitcnn", 0), ended.stderr
    assert last.startswith("digitcnn reproduce run=")
    shown, again = (
        pd.read_csv(root / "reports" / "small" / "confirmation.csv").drop(columns="cpu_seconds")
        for root in (confirmed, tmp_path)
    )
    chosen = ["as_good_as_best", "champion"]  # by the time they took
    pd.testing.assert_frame_equal(again.drop(columns=chosen), shown.drop(columns=chosen))


def test_reproduce_repeats_the_champion_from_its_file_alone(confirmed: Path, tmp_path: Path) -> None:
    champion = confirmed / "reports" / "small" / "champion.yaml"
    ended = _run("reproduce", f"run={champion}", f"tracking.root={tmp_path}/empty")
    assert ended.returncode == 0, ended.stderr
    assert "IDENTICAL" in ended.stdout
    original = yaml.safe_load(champion.read_text())["run_id"]
    client = _client(tmp_path / "empty")
    (run,) = client.search_runs([client.get_experiment_by_name("digitcnn").experiment_id])
    assert run.data.tags["reproduces"] == original


def test_reproduce_names_other_threads_and_finds_an_edited_metric(confirmed: Path, tmp_path: Path) -> None:
    champion = confirmed / "reports" / "small" / "champion.yaml"
    content = yaml.safe_load(champion.read_text())
    other = 3 - content["config"]["training"]["threads"]
    ended = _run("reproduce", "run=champion", f"tracking.root={confirmed}", f"threads={other}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "EQUIVALENT" in ended.stdout
    assert f"threads: {content['config']['training']['threads']} recorded, {other} now" in ended.stdout
    content["epochs"][0]["train_loss"] *= 1.01
    edited = tmp_path / "edited champion.yaml"
    edited.write_text(yaml.safe_dump(content))
    ended = _run("reproduce", f"run={edited}", f"tracking.root={tmp_path}/empty")
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "DIFFERENT" in ended.stdout
    assert "train_loss of epoch 1: " in ended.stdout
    assert "stopped after epoch 1 of 2: it could not be equivalent any more" in ended.stdout


@pytest.mark.parametrize(
    ("name", "overrides", "line"),
    [
        ("confirm", ["study=nowhere"], "study.name=nowhere: no such study is recorded in"),
        ("reproduce", ["run=1234e567"], "run=1234e567: nothing is recorded in"),
        ("reproduce", ["run=no such, file=1.yaml"], "run=no such, file=1.yaml: cannot be read: No such file"),
        ("reproduce", ["run=champion"], "run=champion: nothing is recorded in"),
    ],
)
def test_confirm_and_reproduce_refuse_unknown_names(name: str, overrides: list[str], line: str, tmp_path: Path) -> None:
    ended = _run(name, *overrides, f"tracking.root={tmp_path}/records")
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert ended.stderr.startswith(f"error: {line}")
    assert len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "records").exists()


def test_sweep_never_reads_the_test_set(small_npz: Path, tmp_path: Path) -> None:
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
