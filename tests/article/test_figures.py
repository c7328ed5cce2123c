"""The figure shows the values of the published tables."""

from __future__ import annotations

import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.article import figures, results
from tests.support.published import PUBLISHED


def _points(axes: Axes) -> list[tuple[float, float]]:
    """The middles of the error bars."""
    return sorted(tuple(map(float, middle)) for bars in axes.containers for middle in bars[0].get_xydata())


def test_figure_draws_the_published_tables() -> None:
    tables = results.read_tables(PUBLISHED)
    sizes, filters, confirmed = Figure().subplots(1, 3)
    figures.batch_size(tables, sizes)
    ends = tables["batch_size"].groupby(["study", "training.batch_size"])
    means = 100 * ends["validation_accuracy"].mean()
    expected = sorted(zip(ends["samples_seen"].first().astype(float), means, strict=True))
    assert _points(sizes) == [pytest.approx(each) for each in expected]
    figures.filters(tables, filters)
    pairs = tables["filters"].groupby(["model.conv1_filters", "model.conv2_filters"])
    expected = sorted(zip(pairs["cpu_seconds"].mean(), 100 * pairs["validation_accuracy"].mean(), strict=True))
    assert _points(filters) == [pytest.approx(each) for each in expected]
    assert {text.get_text() for text in filters.texts} == {f"{first}-{second}" for first, second in pairs.groups}
    figures.confirmation("default", tables, confirmed)
    drawn = [
        tuple(line.get_xdata()) for line in confirmed.lines if line.get_marker() == "|" and len(line.get_xdata()) > 1
    ]
    runs = tables["confirmation_runs"].groupby("config", sort=False)["test_accuracy"]
    assert sorted(drawn) == sorted(tuple(100 * values) for _, values in runs)
    assert (figures.draw(tables) or b"").startswith(b"\x89PNG")


def test_interval_of_a_config_with_fewer_seeds_is_wider() -> None:
    rows = [("a", seed, 0.99 + 0.001 * (seed % 2)) for seed in range(9)] + [("b", seed, 0.99) for seed in range(4)]
    halves = figures.half_intervals(
        pd.DataFrame(rows, columns=["config", "seed", "test_accuracy"]), "config", "test_accuracy"
    )
    assert halves["b"] / halves["a"] == pytest.approx(1.5)
