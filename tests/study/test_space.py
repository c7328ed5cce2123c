"""The search space: parsed from YAML, and its mistakes."""

from __future__ import annotations

from typing import Any

import pytest

from digitcnn.config import RunConfig, load_config
from digitcnn.errors import ConfigError
from digitcnn.study import Choices, Range, parse_space, space_corners, space_size
from digitcnn.study.space import grid_points

BASELINE = load_config(RunConfig, {})


def parse(tree: dict[str, Any]) -> dict[str, Choices | Range]:
    return parse_space(tree, BASELINE)


def test_parse_space_reads_choices_and_ranges() -> None:
    space = parse(
        {
            "training": {"batch_size": [64, 250], "epochs": {"low": 4, "high": 14}, "learning_rate": None},
            "model": {"conv1_filters": {"low": 16, "high": 64, "step": 8}},
        }
    )
    assert space == {
        "training.batch_size": Choices((64, 250)),
        "training.epochs": Range(4, 14, 1, False),
        "model.conv1_filters": Range(16, 64, 8, False),
    }
    assert space_size(space) == 2 * 11 * 7
    assert len(grid_points(space)) == 2 * 11 * 7
    assert len(space_corners(space)) == 2 * 2 * 2


def test_parse_space_adds_the_baselines_value_to_choices() -> None:
    assert parse({"training": {"batch_size": [64, 500]}}) == {"training.batch_size": Choices((64, 250, 500))}


def test_parse_space_holds_choices_as_a_config_does() -> None:
    dropout = parse({"model": {"dropout": [0, 0.5]}})["model.dropout"]
    assert [str(value) for value in dropout.values] == ["0.0", "0.5"]
    assert dropout.parse("0.0") == 0.0
    with pytest.raises(ConfigError, match="must name each value once"):
        parse({"model": {"dropout": [0, 0.0]}})


def test_parse_space_takes_null_for_a_choice() -> None:
    choices = Choices((5, 10, None))
    assert parse({"training": {"steps_per_epoch": [5, 10]}}) == {"training.steps_per_epoch": choices}
    assert parse({"training": {"steps_per_epoch": [5, 10, None]}}) == {"training.steps_per_epoch": choices}
    assert str(choices) == "one of 5, 10, null"


def test_range_ends_at_its_last_step() -> None:
    assert parse({"model": {"conv1_filters": {"low": 10, "high": 64, "step": 20}}})["model.conv1_filters"].extremes == (
        10,
        50,
    )
    learning_rate = parse({"training": {"learning_rate": {"low": 0.1, "high": 0.5, "step": 0.1}}})
    assert space_size(learning_rate) == 5


def test_range_of_any_size_takes_no_memory() -> None:
    space = parse({"training": {"seed": {"low": 0, "high": 2**32 - 1}}})
    assert space["training.seed"].extremes == (0, 2**32 - 1)
    assert space_size(space) == 2**32
    assert space["training.seed"].contains(12345)
    with pytest.raises(ConfigError, match="the space has 4,294,967,296 points; at most 100,000"):
        grid_points(space)


def test_range_contains_the_values_it_reaches() -> None:
    steps = Range(16, 64, 8, False)
    assert [value for value in range(100) if steps.contains(value)] == [16, 24, 32, 40, 48, 56, 64]
    assert not steps.contains("16")
    assert Range(0.1, 0.5, None, False).contains(0.3)
    # Its third step is 0.30000000000000004.
    assert Range(0.0, 0.5, 0.1, False).contains(0.3)
    assert not Range(0.0, 0.5, 0.1, False).contains(0.31)


def test_range_without_steps_has_no_list_of_values() -> None:
    assert Range(0.1, 0.3, 0.1, False).values == (0.1, 0.2, 0.1 + 2 * 0.1)
    with pytest.raises(ValueError, match="a continuous range has no steps"):
        _ = Range(0.1, 0.5, None, False).values


def test_grid_points_refuse_a_continuous_space() -> None:
    space = parse({"training": {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}})
    assert space_size(space) == float("inf")
    with pytest.raises(ConfigError, match="study.space.training.learning_rate is continuous"):
        grid_points(space)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "study.space: is empty"),
        ({"training": {"epochs": None}}, "study.space: is empty"),
        ({"training": {"bach_size": [1]}}, "unknown key; did you mean training.batch_size?"),
        ({"data": {"train_size": [1, 2]}}, "study.space.data.train_size: unknown key"),
        ({"backend": ["tensorflow", "jax"]}, "study.space.backend: cannot be searched, as a process has one"),
        (
            {"training": {"threads": [1, 2]}},
            "study.space.training.threads: cannot be searched, as a worker keeps its own",
        ),
        (
            {"training": {"steps_per_epoch": {"low": 1, "high": 9}}},
            "is not a number in the baseline (null); give choices",
        ),
        ({"training": {"epochs": [3, None]}}, "study.space.training.epochs=null: must be a valid integer"),
        ({"training": {"epochs": 7}}, "study.space.training.epochs=7: must be a list of choices"),
        ({"training": {"epochs": []}}, "must be a list of at least one value"),
        ({"training": {"epochs": [1, 1]}}, "must name each value once"),
        (
            {"training": {"epochs": {"low": 5, "high": 4}}},
            "study.space.training.epochs: is empty: low=5 is above high=4",
        ),
        ({"training": {"epochs": {"low": 5}}}, "study.space.training.epochs.high: missing"),
        ({"training": {"epochs": {"low": 0, "high": 4}}}, "study.space.training.epochs=0: must be greater"),
        ({"training": {"epochs": {"low": 1, "high": 4, "step": 0}}}, "step=0: must be above 0"),
        ({"training": {"epochs": {"low": 1, "high": 4, "stop": 1}}}, "study.space.training.epochs.stop: unknown key"),
        ({"training": {"epochs": {"low": 1.5, "high": 4}}}, "must be whole numbers"),
        ({"training": {"epochs": {"low": 1, "high": 4, "choices": [1]}}}, "has both choices and a range"),
        ({"training": {"epochs": ["ten"]}}, "study.space.training.epochs=ten: must be a valid integer"),
        ({"training": {"learning_rate": {"low": 0, "high": 1, "log": True}}}, "must be above 0 on a logarithmic"),
        ({"training": {"learning_rate": {"low": 0.1, "high": float("nan")}}}, "high=nan: must be a finite number"),
        ({"training": {"engine": {"low": 1, "high": 2}}}, "is not a number in the baseline"),
    ],
)
def test_parse_space_names_a_mistake(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(tree)
    assert message in str(caught.value)
