"""`import digitcnn` as notebooks and programs use it: the committed tour in a real kernel, and a confirmed study."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pandas as pd
import pytest
from optuna_dashboard import get_note

import digitcnn
from digitcnn import tracking
from digitcnn.config import SweepConfig, TrackingConfig, load_config
from digitcnn.errors import ConfigError
from digitcnn.study import existing_study
from tests.conftest import REPOSITORY, with_study
from tests.support.sweeps import confirm, in_folder, work
from tests.support.trainers import ConfirmingTrainer, InstantTrainer


def test_tour_runs_in_a_kernel_and_shows_what_it_promises(tmp_path: Path) -> None:
    notebook = nbformat.read(REPOSITORY / "docs" / "tour.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "committed without outputs"
    # When
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    # Then
    sweep, trials, curves, lines, _, best, run, predicted = (
        {kind: data for output in cell.outputs for kind, data in output.get("data", {}).items()}
        for cell in notebook.cells
        if cell.cell_type == "code" and "import digitcnn\n" not in cell.source
    )
    assert "Study quick: 4 of 4 trials finished" in sweep["text/html"]
    assert trials["text/html"].count("complete") == 4
    assert "validation_accuracy" not in best or curves
    assert lines["application/vnd.plotly.v1+json"]["data"]
    assert "training.batch_size" in best["text/plain"]
    assert run["text/plain"].startswith("{1: 0.")
    assert predicted["text/html"].count("<tr") == 9
    # And the runs have the command that repeats them
    store = tracking.open_store(TrackingConfig(root=str(tmp_path / "tour")))
    commands = {run.data.tags["command"] for run in tracking.search_runs(store, "")}
    expected = "digitcnn train training.batch_size=50 data.train_size=1000 training.epochs=2 tracking.root=tour"
    assert expected in commands


@pytest.mark.usefixtures("quick_workers")
def test_study_has_typed_tables_a_champion_and_figures(finished_study: SweepConfig, tmp_path: Path) -> None:
    config = in_folder(finished_study, tmp_path / "records")
    tree = {**config.model_dump(), "training": {"epochs": 3, "batch_size": 50, "threads": 1}}
    config = with_study(load_config(SweepConfig, tree), sampler="grid")
    work(config, InstantTrainer())
    before = digitcnn.load_study("small", root=config.tracking.root)
    assert (before.confirmation, before.champion) == (None, None)
    with pytest.raises(ConfigError, match="study small: has nothing to draw as intervals"):
        before.plot.intervals()
    confirm(config, ConfirmingTrainer())
    # When
    study = digitcnn.load_study("small", root=tmp_path / "records")
    stored = existing_study(config.tracking.folder, "small")
    # Then
    assert study.trials.dtypes.astype(str).to_dict() | {"rank": "Int64"} == study.trials.dtypes.astype(str).to_dict()
    assert study.trials["training.batch_size"].dtype == study.curves["epoch"].dtype == pd.Int64Dtype()
    assert len(study.curves) == 9
    assert study.best is not None
    assert study.best["trial"] == study.trials["trial"].iloc[0]
    assert study.confirmation is not None
    assert study.champion is not None
    assert study.champion.run_id in set(study.record.confirmation.runs["run_id"])  # type: ignore[union-attr]
    assert "Champion: the baseline, as no candidate could be shown" in study._repr_html_()
    # And Optuna's dashboard has its note
    assert stored is not None
    assert get_note(stored).startswith(f"best: trial {study.best['trial']}, validation_accuracy ")
    for figure in (
        study.plot.learning_curves(),
        study.plot.history(),
        study.plot.tuning_curve(),
        study.plot.slice("training.batch_size"),
        study.plot.parallel_coordinates(),
        study.plot.tradeoff(),
        study.plot.intervals(),
    ):
        assert figure.data


_PROGRAM = """
import os

import hydra
import mlflow
from hydra.core.hydra_config import HydraConfig

import digitcnn


@hydra.main(version_base=None, config_path=None)
def main(config):
    mlflow.set_tracking_uri("sqlite:///theirs.db")
    runs = [digitcnn.train(model="mlp", data__train_size=100, training__epochs=1, tracking__root=config.root)]
    runs.append(digitcnn.load_study("small", root=config.root).trials)
    print("here:", mlflow.get_tracking_uri(), os.environ["MLFLOW_TRACKING_URI"], os.environ["MLFLOW_EXPERIMENT_NAME"])
    print("job:", HydraConfig.get().job.num, HydraConfig.get().runtime.output_dir, len(runs))


main()
"""


def test_program_of_hydra_and_mlflow_keeps_what_it_has_set(copied: SweepConfig, tmp_path: Path) -> None:
    """Given a multirun of a program of its own, of which both jobs train the same."""
    (tmp_path / "program.py").write_text(_PROGRAM)
    line = [
        sys.executable,
        "program.py",
        "--multirun",
        f"+root={copied.tracking.root}",
        "+job=1,2",
        "hydra.sweep.dir=jobs",
    ]
    variables = os.environ | {"PYTHONPATH": str(REPOSITORY), "MLFLOW_EXPERIMENT_NAME": "theirs"}
    # When
    ended = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False, env=variables)
    # Then
    assert ended.returncode == 0, ended.stderr
    said = [each for each in ended.stdout.splitlines() if each.startswith(("here: ", "job: "))]
    here = "here: sqlite:///theirs.db sqlite:///theirs.db theirs"
    assert said == [here, f"job: 0 {tmp_path}/jobs/0 2", here, f"job: 1 {tmp_path}/jobs/1 2"]
    assert ended.stdout.count("recorded as run ") == 2


def test_program_is_refused_what_the_command_line_refuses(tmp_path: Path) -> None:
    place = {"tracking__root": str(tmp_path / "none")}
    for overrides, line in (
        ({"training__epoch": 2}, "training.epoch: unknown key; did you mean training.epochs"),
        ({"training": "quick"}, "training=quick: no such file in conf/training"),
        ({"model__conv1_filters": 0}, "model.conv1_filters=0: "),
        ({"study__space__training__batch_size": {"low": 9, "high": 3}}, "study.space.training.batch_size"),
    ):
        with pytest.raises(ConfigError, match=f"^{line}"):
            (digitcnn.sweep if "study" in str(overrides) else digitcnn.train)(**overrides, **place)
    with pytest.raises(ConfigError, match="nothing is recorded"):
        digitcnn.load_study("small", root=tmp_path / "none")
    with pytest.raises(ConfigError, match="nothing is recorded"):
        digitcnn.predict(np.zeros((1, 28, 28), np.uint8), root=tmp_path / "none")
    assert not (tmp_path / "none").exists()
