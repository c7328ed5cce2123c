"""The published text says what its tables say, and the tables in the repository are the ones it was written from."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from digitcnn import evaluation
from experiments.article import contrasts, figures, provenance, results
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


def test_accuracies_are_paired_by_seed_and_not_by_position() -> None:
    # Given
    table = _batch_sizes()
    shuffled = table.sample(frac=1, random_state=0)
    fewer = table[(table["seed"] > 0) | (table["training.batch_size"] == 250)]
    # Then
    article = contrasts.batch_size_comparisons({"batch_size": shuffled}, "batch_size_article")[50]
    assert article.difference.sd == pytest.approx(0)
    with pytest.raises(KeyError):
        contrasts.batch_size_comparisons({"batch_size": fewer[fewer["seed"] < 3]}, "batch_size_article")


def test_a_prediction_interval_is_that_of_students_t() -> None:
    # Mean 2, sd 1, t = 4.302653 with two degrees of freedom: 2 -+ 4.302653 * sqrt(1 + 1 / 3).
    assert evaluation.prediction_interval([1, 2, 3]) == pytest.approx((-2.968276, 6.968276), abs=1e-6)


def _made(**values: str) -> pd.DataFrame:
    row = {
        "part": "article",
        "command": "python x",
        "runs": 6,
        "wall_seconds": 90,
        "cpu_seconds": 180,
        "threads": "2",
        "engine": "compiled",
        "date": "2026-11-24",
    }
    return pd.DataFrame([row | values], columns=list(provenance.COLUMNS)).fillna("")


def test_the_articles_networks_are_said_to_give_what_they_gave() -> None:
    # Given
    accuracies = {"cnn": (0.991, 0.992, 0.993), "mlp": (0.976, 0.978, 0.980)}
    rows = [
        {"network": name, "seed": seed, "validation_accuracy": value, "best_validation_accuracy": value + 0.001}
        for name, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    # When
    text = results.text({"article": pd.DataFrame(rows), "provenance": _made()})
    # Then, with t = 4.302653 and differences of 1.5, 1.4 and 1.3 points
    assert "| CNN | 3 | 99.20 | 0.10 | 98.95 to 99.45 | 98.70 to 99.70 | 99.30 | 99.29 (n = 1) |\n" in text
    assert "| MLP | 3 | 97.80 | 0.20 | 97.30 to 98.30 | 96.81 to 98.79 | 97.90 | 98.01 (n = 1) |\n" in text
    assert (
        "3 of 3 runs of the CNN exceed 99 %, but the interval of their mean does not lie above it. The article's"
        in text
    )
    assert "+1.40 points (n = 3, 95 % interval +1.15 to +1.65), p = 0.0017." in text
    assert "\ndigitcnn x    # 6 runs (compiled engine, 2 thread(s) each), 2 min, 3 CPU min, 2026-11-24\n" in text


def test_the_backends_are_compared_with_tensorflows_fit() -> None:
    # Given
    measured = {("tensorflow", "keras"): ((0.96, 100), (0.97, 300)), ("jax", "keras"): ((0.97, 1000), (1.0, 3000))}
    rows = [
        {"backend": backend, "engine": engine, "seed": seed, "validation_accuracy": value, "images_per_second": speed}
        for (backend, engine), values in measured.items()
        for seed, (value, speed) in enumerate(values)
    ]
    # When
    text = results.text({"backends": pd.DataFrame(rows), "provenance": _made()})
    # Then, with t = 12.7062: differences of 1 and 3 points, so that t is 2 and p = 1 - 2 arctan(2) / pi
    assert "| tensorflow | keras | 2 | 96.50 | 0.71 | 90.15 to 102.85 | 200 (100 to 300) |  |  |  |\n" in text
    assert (
        "| jax | keras | 2 | 98.50 | 2.12 | 79.44 to 117.56 | 2,000 (1,000 to 3,000) "
        "| +2.00 (-10.71 to +14.71) | 0.3 | not distinguishable |\n"
    ) in text
    assert (
        "None can be told from TensorFlow's fit by its accuracy. "
        "The intervals leave room for differences of up to 14.71 points."
    ) in text


def test_every_version_and_commit_is_named_that_the_runs_had() -> None:
    # Given
    first = {"cores": "2", "cpu": "Fast", "python": "3.11.7", "version.keras": "3.15.1", "git.dirty": "false"}
    tensorflow = {**first, "version.tensorflow": "2.21.0", "git.commit": "a" * 40}
    torch = {**first, "version.torch": "2.13.0", "git.commit": f"{'a' * 40}; {'b' * 40}"}
    clean = results.text({"provenance": pd.concat([_made(**tensorflow), _made(**torch)])})
    dirty = results.text({"provenance": _made(**torch | {"git.dirty": "false; true", "cpu": "Fast; Slow"})})
    # Then
    assert "On 2 cores of Fast.\n" in clean
    assert (
        "\nPython 3.11.7, Keras 3.15.1, TensorFlow 2.21.0, PyTorch 2.13.0; commits aaaaaaaaaa, bbbbbbbbbb.\n" in clean
    )
    assert "On 2 cores of Fast; Slow.\n" in dirty
    assert "; commits aaaaaaaaaa, bbbbbbbbbb, and code that differed from its commit.\n" in dirty


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
    shares = contrasts.variance_shares({"filters": _filters(effect_of_seed=0.01)})
    assert list(shares) == ["first layer", "second layer", "seed", "their interplay and chance"]
    assert [share for share, _ in shares.values()] == pytest.approx([4 / 6, 1 / 6, 1 / 6, 0], abs=1e-9)
    # Seven degrees of freedom, one of them each factor's.
    assert [chance for _, chance in shares.values()] == pytest.approx([1 / 7, 1 / 7, 1 / 7, 4 / 7])


def test_the_front_holds_what_no_other_beats_in_both() -> None:
    summaries = contrasts.filter_summaries({"filters": _filters(effect_of_seed=0.0)})
    front = {(row["model.conv1_filters"], row["model.conv2_filters"]): row["front"] for _, row in summaries.iterrows()}
    # 16-64 is dearer than 32-32 and worse.
    assert front == {(16, 32): True, (16, 64): False, (32, 32): True, (32, 64): True}


def _confirmed(**of_candidate: object) -> pd.DataFrame:
    """The baseline and one candidate, which is better unless `of_candidate` says otherwise."""
    measured = {"n": 5, "mean": 0.99, "sd": 0.001, "low": 0.989, "high": 0.991, "cpu_seconds": 100.0, "parameters": 9}
    baseline = {"config": "baseline", "trial": 0, "training.epochs": 10, **measured, "verdict": "", "champion": False}
    better = {"mean": 0.995, "difference": 0.005, "difference_low": 0.004, "difference_high": 0.006, "p_holm": 0.001}
    images = {"only_candidate_right": 60, "only_baseline_right": 10, "mcnemar_p": 0.002}
    said = {"verdict": "better than the baseline", "champion": True}
    candidate = {**baseline, "config": "trial 3", "trial": 3, "training.epochs": 12, **better, **images, **said}
    candidate |= of_candidate
    baseline["champion"] = not candidate["champion"]
    return pd.DataFrame([baseline, candidate])


def _searched() -> pd.DataFrame:
    rows = [
        {"rank": rank, "trial": trial, "training.epochs": 12 - trial, "validation_accuracy": 0.98 - rank / 1000}
        | {"cpu_seconds": 9.0, "epochs_run": 7, "state": state, "note": "baseline" if trial == 0 else ""}
        for rank, trial, state in ((1, 3, "complete"), (2, 0, "complete"), (None, 1, "pruned"))
        for rank in [rank or 9]
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("of_candidate", "line", "champion"),
    [
        (
            {},
            "The champion of the default study (epochs 12) against the article's settings (epochs 10): +0.50 points "
            "(n = 5, 95 % interval +0.40 to +0.60) on the test set, better than the baseline (p 0.001).",
            "The champion is trial 3 (epochs 12): better than the baseline.",
        ),
        (
            {"champion": False, "verdict": "not distinguishable: needs about 3 more seeds"},
            "None of the 1 trials of the default study that were confirmed is better than the article's settings "
            "(epochs 10); the best of them "
            "(epochs 12): +0.50 points (n = 5, 95 % interval +0.40 to +0.60) on the test set, not distinguishable: "
            "needs about 3 more seeds (p 0.001).",
            "The champion is the baseline (epochs 10): nothing was better.",
        ),
        (
            {"champion": False, "n": 0, "mean": None, "verdict": "diverged with seed 6"},
            "None of the 1 trials of the default study that were confirmed is better than the article's settings "
            "(epochs 10): "
            "diverged with seed 6.",
            "The champion is the baseline (epochs 10): nothing was better.",
        ),
    ],
)
def test_the_default_study_is_told_as_it_ended(of_candidate: dict[str, object], line: str, champion: str) -> None:
    # Given
    tables = {
        "leaderboard": _searched(),
        "confirmation": _confirmed(**of_candidate),
        "confirmation_runs": pd.DataFrame(),
        "provenance": _made(part="around_article"),
    }
    # When
    text = results.text(tables)
    # Then
    assert results.headline(tables) == [f"- {line}"]
    assert champion in text
    assert "3 trials (2 complete, 1 pruned)" in text
    assert "| 9 | 1 | 11 | 97.10 % | 9 | 7 | pruned |  |\n" in text
    assert "In the search, best: trial 3, validation_accuracy 97.90 %; baseline: trial 0, 97.80 %" in text
    assert text.count("| epochs 12 |") == 1


def test_the_leading_candidate_is_the_champion_or_the_best_of_those_that_did_not_diverge() -> None:
    rows = pd.concat([_confirmed(champion=False), _confirmed(champion=False, mean=0.997).iloc[1:]])
    diverged = _confirmed(champion=False, n=0, mean=None).iloc[1:]
    several = pd.concat([rows, diverged], ignore_index=True)
    assert evaluation.leading_row(several) == 2
    several.loc[1, "champion"] = True
    assert evaluation.leading_row(several) == 1


def test_the_published_text_is_that_of_the_published_tables() -> None:
    assert (PUBLISHED / "RESULTS.md").read_text() == results.text(results.read(PUBLISHED))


def test_readme_begins_with_the_published_result() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    assert "\n".join(results.headline(results.read(PUBLISHED))) in readme


def _points(axes: Axes) -> list[tuple[float, float]]:
    """The middles of the error bars."""
    return sorted(tuple(map(float, middle)) for bars in axes.containers for middle in bars[0].get_xydata())


def test_the_figure_draws_the_published_tables() -> None:
    tables = results.read(PUBLISHED)
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
    figures.confirmation(tables, confirmed)
    drawn = [
        tuple(line.get_xdata()) for line in confirmed.lines if line.get_marker() == "|" and len(line.get_xdata()) > 1
    ]
    runs = tables["confirmation_runs"].groupby("config", sort=False)["test_accuracy"]
    assert sorted(drawn) == sorted(tuple(100 * values) for _, values in runs)
    assert (figures.drawn(tables) or b"").startswith(b"\x89PNG")
