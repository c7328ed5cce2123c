"""Answers: the text says of small tables what can be computed by hand."""

from __future__ import annotations

import pandas as pd
import pytest

from digitcnn import evaluation
from experiments.article import answers, contrasts, headlines, results
from tests.support.published import provenance_row


def test_networks_are_reported_with_their_intervals() -> None:
    # Given
    accuracies = {"cnn": (0.991, 0.992, 0.993), "mlp": (0.976, 0.978, 0.980)}
    rows = [
        {"network": name, "seed": seed, "test_accuracy": value, "best_test_accuracy": value + 0.001}
        for name, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    # When
    text = results.render_text({"article": pd.DataFrame(rows), "provenance": provenance_row()})
    # Then, with t = 4.302653 and differences of 1.5, 1.4 and 1.3 points
    assert "| CNN | 3 | 99.20 | 0.10 | 98.95 to 99.45 | 0.09 | 98.70 to 99.70 | 99.30 | 99.29 (n = 1) |\n" in text
    assert "| MLP | 3 | 97.80 | 0.20 | 97.30 to 98.30 | 0.15 | 96.81 to 98.79 | 97.90 | 98.01 (n = 1) |\n" in text
    # t = 2 sqrt(3), one-sided
    assert "\nYes: the mean of the CNN lies above 99 % (p 0.037, one-sided t-test), as do 3 of its 3 runs. " in text
    assert (
        "The article's 98.01 % of its fully connected network is reproduced: the mean is 97.80 % (n = 3, 95 %" in text
    )
    assert "better than the fully connected network by +1.40 points (+1.15 to +1.65, p 0.0017)." in text
    assert "\ndigitcnn x    # 6 runs (compiled engine, 2 thread(s) each), 2 min, 3 CPU min, 2026-11-24\n" in text


def test_backends_are_compared_with_tensorflows_fit() -> None:
    # Given
    measured = {("tensorflow", "keras"): ((0.96, 100), (0.97, 300)), ("jax", "keras"): ((0.97, 1000), (1.0, 3000))}
    rows = [
        {"backend": backend, "engine": engine, "seed": seed, "validation_accuracy": value, "images_per_second": speed}
        for (backend, engine), values in measured.items()
        for seed, (value, speed) in enumerate(values)
    ]
    # When
    text = results.render_text({"backends": pd.DataFrame(rows), "provenance": provenance_row()})
    # Then, with t = 12.7062: differences of 1 and 3 points, so that t is 2 and p = 1 - 2 arctan(2) / pi. The margin
    # takes (1.96 + 1.28)^2 * 2 / 0.1^2 seeds.
    assert "| tensorflow | keras | 2 | 96.50 | 0.71 | 90.15 to 102.85 | 200 (100 to 300) |  |  |  |\n" in text
    assert (
        "| jax | keras | 2 | 98.50 | 2.12 | 79.44 to 117.56 | 2,000 (1,000 to 3,000) "
        "| +2.00 (-10.71 to +14.71) | 0.3 | undecided; 0.1 points take about 2,104 seeds |\n"
    ) in text
    assert (
        "Not decided: no backend's accuracy differs measurably from TensorFlow's. "
        "The intervals leave room for differences of up to 14.71 points."
    ) in text


def _confirmed(**of_candidate: object) -> pd.DataFrame:
    """The baseline and one candidate, which is better unless `of_candidate` says otherwise."""
    measured = {"n": 5, "mean": 0.99, "sd": 0.001, "low": 0.989, "high": 0.991, "cpu_seconds": 100.0, "parameters": 9}
    analysis = {"spread": 0.001, "margin": 0.001, "look": 1, "images_error": 0.0009, "seeds_needed": 30}
    baseline = {"config": "baseline", "trial": 0, "training.epochs": 10, **measured, **analysis, "verdict": ""}
    baseline |= {"champion": False, "as_good_as_best": False, "diverged_seed": None, "feasible": True}
    better = {"mean": 0.995, "difference": 0.005, "difference_low": 0.004, "difference_high": 0.006, "p": 0.001}
    better |= {"superiority": 0.99, "superiority_low": 0.8, "superiority_high": 1.0, "detectable": 0.003}
    said = {"verdict": "better", "champion": True, "as_good_as_best": True}
    images = {"only_candidate_right": 60, "only_baseline_right": 10}
    candidate = {**baseline, "config": "trial 3", "trial": 3, "training.epochs": 12, **better, **images, **said}
    candidate |= of_candidate
    baseline["champion"] = baseline["as_good_as_best"] = not candidate["champion"]
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
            "A trial of the default study (epochs 12) is better than the article's settings (epochs 10): it gains 0.50 "
            "points on the test set (+0.40 to +0.60, n = 5; better).",
            "The champion is trial 3, which is better than the baseline (epochs 12).",
        ),
        (
            {"champion": False, "as_good_as_best": False, "verdict": "undecided"},
            "The confirmed trial of the default study could not be shown to beat the article's settings (epochs 10); "
            "it (epochs 12) gains 0.50 points on the test set (+0.40 to +0.60, n = 5; undecided; 0.1 points take about "
            "30 seeds).",
            "The champion is the baseline, as no candidate could be shown to be better (epochs 10).",
        ),
        (
            {"champion": False, "as_good_as_best": False, "verdict": "equivalent"},
            "The confirmed trial of the default study could not be shown to beat the article's settings (epochs 10); "
            "it (epochs 12) gains 0.50 points on the test set (+0.40 to +0.60, n = 5; equivalent within 0.1 points).",
            "The champion is the baseline, as no candidate could be shown to be better (epochs 10).",
        ),
        (
            {"champion": False, "as_good_as_best": False, "n": 0, "mean": None}
            | {"verdict": "diverged", "diverged_seed": 6},
            "The confirmed trial of the default study could not be shown to beat the article's settings (epochs 10): "
            "diverged with seed 6.",
            "The champion is the baseline, as no candidate could be shown to be better (epochs 10).",
        ),
    ],
)
def test_default_study_is_reported_with_its_champion(of_candidate: dict[str, object], line: str, champion: str) -> None:
    # Given
    tables = {
        "leaderboard": _searched(),
        "confirmation": _confirmed(**of_candidate),
        "confirmation_runs": pd.DataFrame(),
        "provenance": provenance_row(part="around_article"),
    }
    # When
    text = results.render_text(tables)
    # Then
    assert results.headline(tables) == [f"- {line}"]
    assert champion in text
    assert "3 trials (2 complete, 1 pruned)" in text
    assert "| 9 | 1 | 11 | 97.10 % | 9 | 7 | pruned |  |\n" in text
    assert "In the search, best: trial 3, validation_accuracy 97.90 %; baseline: trial 0, 97.80 %" in text
    assert text.count("| epochs 12 |") == 1


def test_headline_claims_nothing_of_a_cheaper_champion_that_holds_for_a_better_one() -> None:
    """Given a trial and a cheaper one that is equivalent to the best, which makes it the champion."""
    baseline, best = (row for _, row in _confirmed(champion=False).iterrows())
    baseline["champion"] = False
    undecided = {"mean": 0.993, "difference": 0.003, "difference_low": -0.001, "verdict": "undecided"}
    cheaper = pd.Series({**best, "config": "trial 4", "training.epochs": 9, "champion": True, **undecided})
    line = headlines.line_of_confirmed(pd.DataFrame([baseline, best, cheaper]), "default study")
    assert line == (
        "A trial of the default study (epochs 12) is better than the article's settings (epochs 10): it gains 0.50 "
        "points on the test set (+0.40 to +0.60, n = 5; better)."
    )
    best["verdict"] = "undecided"
    line = headlines.line_of_confirmed(pd.DataFrame([baseline, best, cheaper]), "default study")
    assert "; the better one (epochs 12) gains 0.50 points on the test set" in line


_NONE = "No cheaper configuration could be shown to lose less than 0.1 points against the article's settings"


@pytest.mark.parametrize(
    ("of_candidate", "line"),
    [
        (
            {"cpu_seconds": 40.0, "difference": 0.0001, "difference_low": -0.0008, "difference_high": 0.001},
            "40 % of the CPU seconds of the article's settings are enough to lose less than 0.1 points (epochs 12): "
            "+0.01 points on the test set (-0.08 to +0.10, n = 5; undecided; 0.1 points take about 30 seeds).",
        ),
        (
            {"cpu_seconds": 40.0, "difference": -0.003, "difference_low": -0.004, "difference_high": -0.002}
            | {"verdict": "worse", "feasible": True, "champion": True},
            f"{_NONE}; the best of those that are takes 40 % of the CPU seconds (epochs 12): -0.30 points on the test "
            "set (-0.40 to -0.20, n = 5; worse).",
        ),
        (
            {"cpu_seconds": 12.0, "verdict": "better", "champion": True},
            "12 % of the CPU seconds of the article's settings are enough to do better (epochs 12): +0.50 points on "
            "the test set (+0.40 to +0.60, n = 5; better).",
        ),
        ({"cpu_seconds": 140.0, "verdict": "better", "champion": True}, f"{_NONE}."),
        ({"cpu_seconds": None, "n": 0, "verdict": "diverged", "diverged_seed": 6}, f"{_NONE}."),
    ],
)
def test_cheapest_config_is_named_only_if_it_is_as_good(of_candidate: dict[str, object], line: str) -> None:
    undecided = {"champion": False, "as_good_as_best": False, "verdict": "undecided"}
    assert headlines.line_of_cheapest(_confirmed(**undecided | of_candidate)) == line


def test_trials_that_were_taken_over_are_counted() -> None:
    searched = _searched().assign(note=["from run 1a2b3c4d", "baseline; from trial 3 of quick", "goes on from here"])
    said = answers.confirmed(searched, _confirmed(), pd.DataFrame(), pd.DataFrame(), "validation_accuracy")
    assert said["trials"] == "3 trials (2 complete, 1 pruned), 2 of them from runs recorded before"


def test_prediction_interval_is_that_of_students_t() -> None:
    # Mean 2, sd 1, t = 4.302653 with two degrees of freedom: 2 -+ 4.302653 * sqrt(1 + 1 / 3).
    assert contrasts.prediction_interval([1, 2, 3]) == pytest.approx((-2.968276, 6.968276), abs=1e-6)


def test_leading_row_is_the_champion_or_the_best_that_did_not_diverge() -> None:
    rows = pd.concat([_confirmed(champion=False), _confirmed(champion=False, mean=0.997).iloc[1:]])
    diverged = _confirmed(champion=False, n=0, mean=None).iloc[1:]
    several = pd.concat([rows, diverged], ignore_index=True)
    assert evaluation.leading_row(several) == 2
    several.loc[1, "champion"] = True
    assert evaluation.leading_row(several) == 1


@pytest.mark.parametrize(("low", "said"), [(0.0002, "epochs 10 to 12, alone"), (-0.001, "none")])
def test_ablation_says_which_changes_are_told_apart_from_none(low: float, said: str) -> None:
    steps = [("epochs 10 to 12, alone", 3, 0.002, low, 0.004, 0.02), ("shift 0 to 0.1, alone", 3, 0.0, -0.1, 0.1, 1.0)]
    names = ["config", "n", "difference", "difference_low", "difference_high", "p"]
    ablation = pd.DataFrame(steps, columns=names)
    answer = answers.confirmed(_searched(), _confirmed(), pd.DataFrame(), ablation, "validation_accuracy")
    assert answer["ablation"].endswith(f"\n\nIntervals without 0: {said}.")
