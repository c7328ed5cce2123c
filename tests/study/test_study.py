"""Studies: resumed, and refused if they are others."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from digitcnn import study
from digitcnn.config import SweepConfig, load_config
from digitcnn.errors import ConfigError
from digitcnn.files import sqlite_url
from tests.conftest import with_study
from tests.support.recorded import STRANGE
from tests.support.studies import open_in, run_all


def test_open_study_resumes_to_its_total_with_new_parameters(sweep_config: SweepConfig, tmp_path: Path) -> None:
    config = with_study(sweep_config, sampler="random", space={"training": {"batch_size": {"low": 1, "high": 10**6}}})
    for total in (5, 5, 9):
        opened = open_in(with_study(config, trials=total), tmp_path)
        run_all(opened, config, total)
        assert study.count_finished(opened, "tpe") == len(opened.trials) == total
    # The same seed goes on where it left off: nothing is drawn twice.
    assert len({trial.params["training.batch_size"] for trial in opened.trials}) == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"study": {"space": {"training": {"epochs": [1, 2]}}}}, "study.space.training.batch_size is left out: study"),
        ({"study": {"objective": ["validation_loss"]}}, "study.objective=['validation_loss']"),
        ({"training": {"learning_rate": 0.5}}, "training.learning_rate=0.5: study small was begun with 0.001"),
        ({"data": {"split_seed": 3}}, "data.split_seed=3"),
    ],
)
def test_open_study_refuses_another_study_of_that_name(
    change: dict[str, dict[str, object]], message: str, sweep_config: SweepConfig, tmp_path: Path
) -> None:
    open_in(sweep_config, tmp_path)
    tree = sweep_config.model_dump()
    changed = SweepConfig.model_validate({**tree, **{group: {**tree[group], **new} for group, new in change.items()}})
    with pytest.raises(ConfigError) as caught:
        open_in(changed, tmp_path)
    assert message in str(caught.value)
    assert "choose another study.name" in str(caught.value)
    # Other trials do not fit where another value is not searched.
    assert ("with study.extends=small to take" in str(caught.value)) == ("study" in change)


def _moved(config: SweepConfig) -> SweepConfig:
    return load_config(SweepConfig, {**config.model_dump(), "data": {**config.data.model_dump(), "path": "/else.npz"}})


def test_open_study_goes_on_with_the_same_data_in_another_place(sweep_config: SweepConfig, tmp_path: Path) -> None:
    open_in(sweep_config, tmp_path)
    moved = open_in(_moved(sweep_config), tmp_path)
    assert moved.identity["baseline"]["data.path"] == "/else.npz"
    assert len(moved.trials) == 1


def test_open_study_refuses_other_data(sweep_config: SweepConfig, tmp_path: Path) -> None:
    open_in(sweep_config, tmp_path)
    path = sweep_config.data.path
    begun, end = "than study small was begun with", "; choose another study.name for a new study"
    drawn = r", or its holdout was drawn before holdouts held each class in proportion \(its own commit goes on\)"
    with pytest.raises(ConfigError, match=f"^data.path={path}: holds other images now {begun}{drawn}{end}$"):
        open_in(sweep_config, tmp_path, "b" * 64)
    with pytest.raises(ConfigError, match=f"^data.path=/else.npz: holds other images {begun}{end}$"):
        open_in(_moved(sweep_config), tmp_path, "b" * 64)


def test_open_study_goes_on_with_one_that_was_begun_without_a_digest(sweep_config: SweepConfig, tmp_path: Path) -> None:
    """Given a study of an earlier version, which knows its data by their path alone."""
    begun = open_in(sweep_config, tmp_path)
    identity = begun.identity
    del identity["data_sha256"]
    begun.set_user_attr("identity", identity)
    with pytest.raises(ConfigError, match="data.path=/else.npz: study small was begun with"):
        open_in(_moved(sweep_config), tmp_path)
    # From its next sweep on it knows them by their digest.
    assert open_in(sweep_config, tmp_path).identity["data_sha256"] == "a" * 64


def test_open_study_goes_on_with_one_that_was_begun_before_a_key_was_there(
    sweep_config: SweepConfig, tmp_path: Path
) -> None:
    """Its value is then the default; names of earlier versions mean what they mean in a config."""
    begun = open_in(sweep_config, tmp_path)
    identity = begun.identity
    del identity["baseline"]["model.dropout"]
    identity["baseline"]["training.engine"] = "auto"
    begun.set_user_attr("identity", identity)
    open_in(sweep_config, tmp_path)
    other = sweep_config.model_copy(update={"model": sweep_config.model.model_copy(update={"dropout": 0.5})})
    begun.set_user_attr("identity", identity)
    with pytest.raises(ConfigError, match="model.dropout=0.5: study small was begun with 0.0; choose another"):
        open_in(other, tmp_path)


def test_open_study_refuses_a_foreign_study(sweep_config: SweepConfig, tmp_path: Path) -> None:
    optuna.create_study(study_name="small", storage=sqlite_url(tmp_path / "optuna.db")).ask()
    with pytest.raises(ConfigError, match="was not made by digitcnn"):
        open_in(sweep_config, tmp_path)


@pytest.mark.parametrize("name", ["{0}", "a{b}", "c}", STRANGE])
def test_existing_study_is_found_in_a_folder_of_any_name(name: str, sweep_config: SweepConfig, tmp_path: Path) -> None:
    """Optuna fills in what stands in braces in an address."""
    folder = tmp_path / name
    folder.mkdir()
    assert study.existing_study(folder, "small") is None
    opened = open_in(sweep_config, folder)
    found = study.existing_study(folder, "small")
    assert found is not None
    assert found.key == opened.key
    assert [path.name for path in folder.iterdir()] == ["optuna.db"]
    assert study.existing_study(folder, "another") is None


def test_snapshot_takes_a_baseline_off_the_grid() -> None:
    """Optuna's own copy of a trial refuses values that its distribution does not hold."""
    begun = optuna.create_study()
    begun.enqueue_trial({"training.epochs": 2})
    begun.tell(begun.ask({"training.epochs": optuna.distributions.IntDistribution(4, 12)}), 0.5)
    copied = study.snapshot_study(begun)
    assert [(trial.number, trial.params, trial.value) for trial in copied.trials] == [(0, {"training.epochs": 2}, 0.5)]
