"""Schemas: their defaults are those that conf/ states and explains, and values keep their checks."""

from __future__ import annotations

from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from digitcnn.config import (
    Config,
    ConfirmConfig,
    MlpConfig,
    PredictConfig,
    RayWorkers,
    ReportConfig,
    ReproduceConfig,
    RunConfig,
    StudyConfig,
    SweepConfig,
    TrainConfig,
    flatten,
    load_config,
    parse_duration,
)
from digitcnn.errors import ConfigError
from tests.conftest import REPOSITORY

CONF = REPOSITORY / "conf"
STUDY: dict[str, Any] = {"name": "s", "objective": ["validation_accuracy"], "space": {}}
NAMED = {"study": {"name": "around_article"}}
# Without a file of conf/study/, what is left of a sweep are the keys that all studies share.
COMMANDS: list[tuple[str, list[str], Config]] = [
    ("train", [], TrainConfig()),
    ("train", ["model=mlp"], TrainConfig(model=MlpConfig())),
    ("sweep", ["~study"], SweepConfig(study=StudyConfig(**STUDY))),
    ("sweep", ["~study", "workers=ray"], SweepConfig(study=StudyConfig(**STUDY), workers=RayWorkers())),
    ("confirm", [], load_config(ConfirmConfig, NAMED)),
    ("reproduce", [], load_config(ReproduceConfig, NAMED)),
    ("report", [], load_config(ReportConfig, NAMED)),
    ("predict", [], load_config(PredictConfig, NAMED)),
]


@pytest.mark.parametrize(("name", "overrides", "defaults"), COMMANDS)
def test_schema_and_conf_state_the_same_defaults(name: str, overrides: list[str], defaults: Config) -> None:
    with initialize_config_dir(version_base=None, config_dir=str(CONF)):
        tree: Any = OmegaConf.to_container(compose(name, overrides))
    tree.pop("experiment", None)
    wanted = flatten(defaults.model_dump())
    if name == "sweep":
        assert [wanted.pop(f"study.{key}") for key in STUDY if key != "space"] == ["s", ["validation_accuracy"]]
    assert flatten(tree) == wanted


def test_schema_chooses_the_network_by_its_name() -> None:
    assert isinstance(load_config(RunConfig, {"model": {"name": "mlp"}}).model, MlpConfig)


def test_sweep_keeps_its_workers_out_of_what_a_run_depends_on() -> None:
    ray = load_config(SweepConfig, {"study": STUDY, "workers": {"name": "ray", "count": 4, "max": 4}})
    local = load_config(SweepConfig, {"study": STUDY})
    assert ray.baseline == local.baseline
    assert not any(name.startswith("workers") for name in ray.baseline.parameters())
    assert ray.study == local.study


@pytest.mark.parametrize("address", ["auto", "10.0.0.1:6379", "head.local:1", "ray://h-1:10001", "ray://[::1]:65535"])
def test_workers_address_is_that_of_a_cluster(address: str) -> None:
    workers = {"name": "ray", "address": address}
    assert load_config(SweepConfig, {"study": STUDY, "workers": workers}).workers == RayWorkers(address=address)


def test_run_parameters_are_dotted_and_without_the_place_of_records() -> None:
    parameters = RunConfig().parameters()
    assert parameters["training.batch_size"] == 250
    assert parameters["model.conv2_filters"] == 64
    assert not any(name.startswith("tracking.") for name in parameters)


def test_run_replace_checks_as_load_config_does() -> None:
    assert RunConfig().replace({"training.batch_size": 7}).training.batch_size == 7
    # A value that a range with steps of a fraction gives is the baseline's own.
    baseline = RunConfig().replace({"augmentation.shift": 0.3})
    assert (
        baseline.replace({"augmentation.shift": 3 * 0.1}) == baseline != baseline.replace({"augmentation.shift": 0.2})
    )
    with pytest.raises(ConfigError, match="training.batch_size=0"):
        RunConfig().replace({"training.batch_size": 0})


def test_study_objective_may_be_written_as_a_word() -> None:
    config = load_config(SweepConfig, {"study": {**STUDY, "objective": "validation_loss"}})
    assert config.study.objective == ["validation_loss"]


def test_parse_duration_reads_seconds_minutes_and_hours() -> None:
    assert [parse_duration(text) for text in ("90s", "15m", "2h", "1.5h")] == [90, 900, 7200, 5400]
