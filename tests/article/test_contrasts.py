"""Contrasts: known effects in small tables are found, seed by seed."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest

from experiments.article import contrasts
from tests.support.published import PUBLISHED


def _batch_sizes() -> pd.DataFrame:
    """Accuracies such that 50 loses 3 points by the article's counting and wins 1 point at an equal budget."""
    rows = []
    for study, accuracies in (("batch_size_article", {50: 0.95, 250: 0.98}), ("batch_size", {50: 0.97, 250: 0.96})):
        for (size, accuracy), seed in itertools.product(accuracies.items(), range(4)):
            # Seeds differ, but alike for all, so that the paired differences are exact.
            row = {"study": study, "training.batch_size": size, "seed": seed, "samples_seen": 10 * size, "updates": 10}
            rows.append(row | {"validation_accuracy": accuracy + 0.001 * seed})
    return pd.DataFrame(rows)


def test_batch_size_comparisons_pair_seeds_within_each_study() -> None:
    # Given
    tables = {"batch_size": _batch_sizes()}
    # When
    article = contrasts.batch_size_comparisons(tables, "batch_size_article")[50]
    equal = contrasts.batch_size_comparisons(tables, "batch_size")[50]
    budget = contrasts.budget_comparisons(tables)
    # Then
    assert article.difference == pytest.approx(-0.03)
    assert article.n == 4
    assert article.verdict == "worse"
    assert equal.difference == pytest.approx(0.01)
    assert equal.verdict == "better"
    assert {size: each.difference for size, each in budget.items()} == pytest.approx({50: -0.02, 250: 0.02})
    # -3 points by the article's counting, +1 at an equal number of images.
    with_the_images = contrasts.budget_effects(tables)
    assert {size: each.difference for size, each in with_the_images.items()} == pytest.approx({50: -0.04})
    assert with_the_images[50].verdict == "worse"


def test_batch_size_comparisons_pair_by_seed_and_not_by_position() -> None:
    # Given
    table = _batch_sizes()
    shuffled = table.sample(frac=1, random_state=0)
    fewer = table[(table["seed"] > 0) | (table["training.batch_size"] == 250)]
    # Then
    article = contrasts.batch_size_comparisons({"batch_size": shuffled}, "batch_size_article")[50]
    assert article.high - article.low == pytest.approx(0, abs=0.0005)
    # What one batch size lacks is left out of the difference.
    less = contrasts.batch_size_comparisons({"batch_size": fewer}, "batch_size_article")[50]
    assert (less.n, less.difference) == (3, pytest.approx(article.difference))


def _filters(effect_of_seed: float) -> pd.DataFrame:
    """An additive grid: 16 to 32 filters in the first layer bring 2 points, 32 to 64 in the second 1 point."""
    rows = [
        {
            "model.conv1_filters": first,
            "model.conv2_filters": second,
            "seed": seed,
            "parameters": first * second,
            "cpu_seconds": float(first + second),
            "validation_accuracy": 0.9 + 0.02 * (first == 32) + 0.01 * (second == 64) + effect_of_seed * seed,
        }
        for first, second, seed in itertools.product((16, 32), (32, 64), (0, 1))
    ]
    return pd.DataFrame(rows)


def test_variance_table_is_that_of_an_additive_grid() -> None:
    # An effect of size a on two levels contributes a squared; here 4, 1 and 1.
    table = contrasts.variance_table({"filters": _filters(effect_of_seed=0.01)})
    assert list(table.index) == ["first layer", "second layer", "seed", "interaction of the layers", "chance"]
    assert table["share"].tolist() == pytest.approx([4 / 6, 1 / 6, 1 / 6, 0, 0], abs=1e-9)
    assert table["df"].tolist() == [1, 1, 1, 1, 3]
    assert (table["p"][:3] < 1e-9).all()


def test_filter_effects_are_means_over_the_other_layer() -> None:
    effects = contrasts.filter_effects({"filters": _filters(effect_of_seed=0.01)})
    assert {name: each.difference for name, each in effects.items()} == pytest.approx(
        {("model.conv1_filters", 16): -0.02, ("model.conv2_filters", 32): -0.01}
    )


def test_published_filters_have_effects_that_three_seeds_show() -> None:
    """Eight paired t-tests with Holm's correction said of these data, eight times, "not distinguishable"."""
    tables = {"filters": pd.read_csv(PUBLISHED / "filters.csv")}
    verdicts = {pair: each.verdict for pair, each in contrasts.filter_comparisons(tables).items()}
    assert {pair for pair, verdict in verdicts.items() if verdict != "undecided"} == {(16, 32), (32, 32)}
    assert verdicts[16, 32] == verdicts[32, 32] == "worse"
    table = contrasts.variance_table(tables)
    assert (table["p"][["first layer", "second layer"]] < 1e-4).all()
    assert table["F"].iloc[0] == pytest.approx(21.05, abs=0.01)


def test_filter_summaries_mark_the_front() -> None:
    summaries = contrasts.filter_summaries({"filters": _filters(effect_of_seed=0.0)})
    front = {(row["model.conv1_filters"], row["model.conv2_filters"]): row["front"] for _, row in summaries.iterrows()}
    # 16-64 is dearer than 32-32 and worse.
    assert front == {(16, 32): True, (16, 64): False, (32, 32): True, (32, 64): True}
