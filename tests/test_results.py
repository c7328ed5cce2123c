"""The published text says what its tables say, and the tables in the repository are the ones it was written from."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest

from digitcnn import figures, results
from tests.conftest import REPOSITORY

PUBLISHED = REPOSITORY / "experiments" / "results"


def _batch_sizes() -> pd.DataFrame:
    """Accuracies such that 50 loses 3 points by the article's counting and wins 1 point at an equal budget."""
    rows = []
    for study, accuracies in (("batch_size_article", {50: 0.95, 250: 0.98}), ("batch_size", {50: 0.97, 250: 0.96})):
        for (size, accuracy), seed in itertools.product(accuracies.items(), range(4)):
            # Seeds differ, but alike for all, so that the paired differences are exact.
            row = {"study": study, "training.batch_size": size, "seed": seed, "samples_seen": 10 * size, "updates": 10}
            rows.append(row | {"validation_accuracy": accuracy + 0.001 * seed})
    return pd.DataFrame(rows)


def test_the_batch_size_is_compared_within_each_study_seed_by_seed() -> None:
    # Given
    tables = {"batch_size": _batch_sizes()}
    # When
    article = results.batch_size_comparisons(tables, "batch_size_article")[50]
    equal = results.batch_size_comparisons(tables, "batch_size")[50]
    budget = results.budget_comparisons(tables)
    # Then
    assert article.difference.mean == pytest.approx(-0.03)
    assert article.difference.n == 4
    assert article.verdict == "worse"
    assert equal.difference.mean == pytest.approx(0.01)
    assert equal.verdict == "better"
    assert {size: each.difference.mean for size, each in budget.items()} == pytest.approx({50: -0.02, 250: 0.02})


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


def test_the_variance_of_a_grid_is_shared_out_among_its_factors() -> None:
    # An effect of size a on two levels contributes a squared; here 4, 1 and 1.
    shares = results.variance_shares({"filters": _filters(effect_of_seed=0.01)})
    assert shares == pytest.approx(
        {"first layer": 4 / 6, "second layer": 1 / 6, "seed": 1 / 6, "their interplay and chance": 0}, abs=1e-9
    )


def test_the_front_holds_what_no_other_beats_in_both() -> None:
    summaries = results.filter_summaries({"filters": _filters(effect_of_seed=0.0)})
    front = {(row["model.conv1_filters"], row["model.conv2_filters"]): row["front"] for _, row in summaries.iterrows()}
    # 16-64 is dearer than 32-32 and worse.
    assert front == {(16, 32): True, (16, 64): False, (32, 32): True, (32, 64): True}


def test_the_published_text_is_that_of_the_published_tables() -> None:
    assert (PUBLISHED / "RESULTS.md").read_text() == results.text(results.read(PUBLISHED))


def test_readme_begins_with_the_published_result() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    assert "\n".join(results.headline(results.read(PUBLISHED))) in readme


@pytest.mark.skipif(
    not results.has(results.read(PUBLISHED), "default"), reason="the default study is not published yet"
)
def test_the_figure_draws_the_published_tables() -> None:
    tables = results.read(PUBLISHED)
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    figures.confirmation(tables, axes)
    drawn = [tuple(line.get_xdata()) for line in axes.lines if line.get_marker() == "|"]
    runs = tables["confirmation_runs"].groupby("config", sort=False)["test_accuracy"]
    assert sorted(drawn) == sorted(tuple(100 * values) for _, values in runs)
    assert (figures.drawn(tables) or b"").startswith(b"\x89PNG")
