"""The replay of searches on a grid, here of made-up runs, and the grid's table."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from digitcnn import study
from digitcnn.config import load_config
from digitcnn.errors import ConfigError
from experiments.search import grid, replay
from experiments.search.grid import EPOCHS, SearchConfig, read_grid
from tests.support.published import REPOSITORY


@pytest.fixture(scope="module")
def config() -> SearchConfig:
    """The published search, shortened."""
    with initialize_config_dir(version_base=None, config_dir=str(REPOSITORY / "experiments" / "search" / "conf")):
        tree = OmegaConf.to_container(
            compose("search", ["study.trials=12", f"hydra.searchpath=[file://{REPOSITORY}/conf]"]), resolve=True
        )
    return load_config(SearchConfig, tree)


@pytest.fixture(scope="module")
def table(config: SearchConfig) -> pd.DataFrame:
    """A whole grid: small batches and many filters are better, an epoch costs its filters, and seeds differ."""
    space = study.parse_space(config.study.space, config.baseline)
    most, generator = space.pop(EPOCHS).extremes[-1], np.random.default_rng(1)
    rows = []
    for *point, seed in itertools.product(*(each.values for each in space.values()), (1, 2, 3)):
        batch, rate, first, second = map(float, point)
        noise = generator.normal(0, 0.001)
        for epoch in range(1, int(most) + 1):
            accuracy = 0.99 - 0.5 / epoch * batch**0.5 / (first + second) - abs(rate - 0.002) + noise
            rows.append([*point, seed, epoch, accuracy, 1 - accuracy, epoch * (first + second) / 10])
    return pd.DataFrame(rows, columns=[*space, "seed", "epoch", *grid.MEASURED])


@pytest.mark.parametrize("method", ["random", "tpe", "tpe, median pruner", "tpe, up to 3 seeds", replay.FIRST])
def test_replay_searches_with_the_study_s_own_code(method: str, config: SearchConfig, table: pd.DataFrame) -> None:
    runs = replay.Grid(table, config.seeds)
    search = replay.replay(config, method, runs, 0)
    assert search == replay.replay(config, method, runs, 0)
    course, trials = search.course, config.study.trials
    assert course[0][1] == runs.quality(config.baseline.parameters()) == search.qualities[0]
    times = [seconds for seconds, _ in course]
    assert times == sorted(times)
    once = runs.curve(config.baseline.parameters(), 1)[config.training.epochs - 1, 1]
    assert times[0] == pytest.approx(once * (3 if "seeds" in method else 1))
    # Each trial has ended or was pruned.
    assert len(course) + len(search.pruned) == trials == len(search.qualities)
    prunes = method in ("tpe, median pruner", replay.FIRST)
    assert bool(search.pruned) == prunes
    assert 0 <= search.lost <= len(search.pruned)
    assert search.chosen == {"random": 0, replay.FIRST: 2}.get(method, trials - 4)
    if method in ("tpe", replay.FIRST):
        assert bool(search.saved) == (method == "tpe")


def test_search_counts_the_pruned_trials_that_would_have_been_among_the_best() -> None:
    qualities = [0.1, 0.9, 0.5, 0.8, 0.4, 0.3, 0.2, 0.1]
    assert replay.Search(qualities=qualities, pruned=[1, 2, 3]).lost == 2
    assert replay.Search(qualities=qualities[:1], pruned=[]).lost == 0


def test_comparison_is_drawn_and_summed_up(config: SearchConfig, table: pd.DataFrame) -> None:
    compared = replay.compare(config, table, 2)
    assert replay.draw(compared).startswith(b"\x89PNG")
    assert list(replay.summarize(compared)["method"])[:3] == ["random", "tpe", "tpe, median pruner"]
    best = replay.at([[(1.0, 0.5), (3.0, 0.7)]], np.array([0.5, 1.0, 2.0, 3.0, 9.0]))
    np.testing.assert_equal(best, [[np.nan, 0.5, 0.5, 0.7, 0.7]])


def test_replay_names_a_run_that_is_not_recorded(config: SearchConfig, table: pd.DataFrame) -> None:
    with pytest.raises(ConfigError, match="has no run of training.batch_size=125, .* with seed 1; grid=true trains"):
        replay.replay(config, "random", replay.Grid(table[table["training.batch_size"] != 125], 3), 0)


def test_grid_is_read_without_a_run_that_was_cut_off(table: pd.DataFrame, tmp_path: Path) -> None:
    table[:-1].to_csv(tmp_path / "grid.csv", index=False)
    assert len(read_grid(tmp_path / "grid.csv")) == len(table) - 12
