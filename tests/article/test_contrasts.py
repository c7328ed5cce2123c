"""Contrasts: known effects in small tables are found, seed by seed."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest

from experiments.article import contrasts


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
    assert article.difference.mean == pytest.approx(-0.03)
    assert article.difference.n == 4
    assert article.verdict == "worse"
    assert equal.difference.mean == pytest.approx(0.01)
    assert equal.verdict == "better"
    assert {size: each.difference.mean for size, each in budget.items()} == pytest.approx({50: -0.02, 250: 0.02})
    # -3 points by the article's counting, +1 at an equal number of images.
    with_the_images = contrasts.budget_effects(tables)
    assert {size: each.difference.mean for size, each in with_the_images.items()} == pytest.approx({50: -0.04})
    assert with_the_images[50].verdict == "worse"


def test_batch_size_comparisons_pair_by_seed_and_not_by_position() -> None:
    # Given
    table = _batch_sizes()
    shuffled = table.sample(frac=1, random_state=0)
    fewer = table[(table["seed"] > 0) | (table["training.batch_size"] == 250)]
    # Then
    article = contrasts.batch_size_comparisons({"batch_size": shuffled}, "batch_size_article")[50]
    assert article.difference.sd == pytest.approx(0)
    with pytest.raises(KeyError):
        contrasts.batch_size_comparisons({"batch_size": fewer[fewer["seed"] < 3]}, "batch_size_article")


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


def test_variance_shares_are_those_of_an_additive_grid() -> None:
    # An effect of size a on two levels contributes a squared; here 4, 1 and 1.
    shares = contrasts.variance_shares({"filters": _filters(effect_of_seed=0.01)})
    assert list(shares) == ["first layer", "second layer", "seed", "their interplay and chance"]
    assert [share for share, _ in shares.values()] == pytest.approx([4 / 6, 1 / 6, 1 / 6, 0], abs=1e-9)
    # Seven degrees of freedom, one of them each factor's.
    assert [chance for _, chance in shares.values()] == pytest.approx([1 / 7, 1 / 7, 1 / 7, 4 / 7])


def test_filter_summaries_mark_the_front() -> None:
    summaries = contrasts.filter_summaries({"filters": _filters(effect_of_seed=0.0)})
    front = {(row["model.conv1_filters"], row["model.conv2_filters"]): row["front"] for _, row in summaries.iterrows()}
    # 16-64 is dearer than 32-32 and worse.
    assert front == {(16, 32): True, (16, 64): False, (32, 32): True, (32, 64): True}
