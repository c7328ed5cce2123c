"""The champion rule and the words of a confirmation."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest

from digitcnn.config import DataConfig
from digitcnn.evaluation import (
    format_verdict,
    leading_row,
    mixed_runs,
    read_confirmation,
    verdict_sentences,
)
from digitcnn.evaluation.comparison import judge_runs
from digitcnn.evaluation.verdicts import best_of, champion_sentence, model_card
from tests.support.published import PUBLISHED

# Accuracies of five seeds; the noise is the same for all that are compared within it.
NOISE = [-0.0004, 0.0003, 0.0, 0.0005, -0.0004]


def _runs(configs: dict[str, tuple[float, float]]) -> pd.DataFrame:
    """The runs of configs with a mean accuracy and CPU seconds each."""
    rows = [
        {"config": name, "trial": number, "seed": seed, "run_id": f"{number}{seed}", "cpu_seconds": seconds}
        | {"test_accuracy": round(mean + noise * (-1) ** number, 4)}
        for number, (name, (mean, seconds)) in enumerate(configs.items())
        for seed, noise in enumerate(NOISE, start=1)
    ]
    return pd.DataFrame(rows)


def _judged(
    configs: dict[str, tuple[float, float]], look: int = 1, margin: float = 0.01, infeasible: str = ""
) -> pd.DataFrame:
    """The table of a confirmation of these configs, of which one may be infeasible."""
    rows = [
        {"config": name, "trial": number, "training.batch_size": 50 * (number + 1), "diverged_seed": None}
        | {"parameters": 9, "only_candidate_right": 7, "only_baseline_right": 2, "feasible": name != infeasible}
        for number, name in enumerate(configs)
    ]
    return judge_runs(pd.DataFrame(rows), _runs(configs), look, margin, 10_000)


@pytest.mark.parametrize(
    ("candidates", "best", "champion"),
    [
        # Worse, however cheap.
        ({"trial 1": (0.96, 1.0)}, "baseline", "baseline"),
        # Better than the baseline by more than the margin.
        ({"trial 1": (0.995, 9.0)}, "trial 1", "trial 1"),
        # The best, where the others are not equivalent to it however cheap they are.
        ({"trial 1": (0.98, 1.0), "trial 2": (0.997, 9.0)}, "trial 2", "trial 2"),
        # The cheapest of those that are equivalent to the best.
        ({"trial 1": (0.995, 2.0), "trial 2": (0.996, 9.0)}, "trial 2", "trial 1"),
        ({"trial 1": (0.995, 9.0), "trial 2": (0.996, 2.0)}, "trial 2", "trial 2"),
        # A cheaper equal of a baseline that nothing beats.
        ({"trial 1": (0.9702, 1.0)}, "baseline", "trial 1"),
    ],
)
def test_champion_is_the_cheapest_of_those_equivalent_to_the_best(
    candidates: dict[str, tuple[float, float]], best: str, champion: str
) -> None:
    table = _judged({"baseline": (0.97, 5.0)} | candidates)
    assert best_of(table) == best
    assert table[table["champion"]]["config"].tolist() == [champion]


@pytest.mark.parametrize(
    ("candidates", "said"),
    [
        ({"trial 1": (0.96, 9.0), "trial 2": (0.93, 5.0)}, "trial 1, the best of those that keep study.constraints"),
        ({"trial 1": (0.96, 9.0), "trial 2": (0.9598, 5.0)}, "trial 2, the cheapest of 2 that are equivalent within"),
        ({"trial 1": (0.995, 9.0), "trial 2": (0.93, 5.0)}, "trial 1, which is better than the baseline"),
        ({}, "the baseline, as no candidate"),
    ],
)
def test_champion_is_no_baseline_that_breaks_a_constraint(
    candidates: dict[str, tuple[float, float]], said: str
) -> None:
    table = _judged({"baseline": (0.97, 1.0)} | candidates, infeasible="baseline")
    assert champion_sentence(table).startswith(said)


def test_leading_row_is_the_champions_or_the_best_means() -> None:
    table = _judged({"baseline": (0.97, 5.0), "trial 1": (0.95, 1.0), "trial 2": (0.96, 1.0)})
    assert leading_row(table) == 2
    assert leading_row(table.assign(champion=table["config"] == "trial 1")) == 1


def test_verdict_sentences_give_every_number_with_its_uncertainty() -> None:
    baseline, better, champion, basis = verdict_sentences(_judged({"baseline": (0.97, 5.0), "trial 1": (0.995, 9.0)}))
    assert baseline.startswith("the baseline has 97.00 % (n = 5, sd 0.04, 95 % interval 96.95 to 97.05) of the test")
    assert better.startswith("trial 1 is better than the baseline: +2.50 points (+2.")
    assert "; it has 99.50 % (n = 5, sd 0.04, 95 % interval 99.45 to 99.55) right, beats the baseline's run" in better
    assert better.endswith("is right alone on 7 images, wrong alone on 2")
    assert champion == "champion: trial 1, which is better than the baseline; it is models:/digitcnn@champion"
    assert basis.startswith(
        "look 1 at this study: intervals, p and verdicts hold together for 1 candidate and all looks"
    )
    assert "between test images an accuracy has a standard error of 0.17" in basis


def test_table_says_who_was_behind_and_got_no_more_seeds() -> None:
    configs = {"baseline": (0.97, 5.0), "trial 1": (0.995, 9.0), "trial 2": (0.95, 9.0)}
    rows = [{"config": name, "trial": number, "feasible": True} for number, name in enumerate(configs)]
    runs = _runs(configs)
    fewer = runs[(runs["config"] != "trial 2") | (runs["seed"] <= 3)]
    table = judge_runs(pd.DataFrame(rows), fewer, 1, 0.01, 10_000)
    assert table["raced_out"].dropna().to_dict() == {2: 3}
    sentence = verdict_sentences(table)[2]
    assert sentence.endswith("; no more seeds, as it was behind the best after 3")
    assert judge_runs(pd.DataFrame(rows), runs, 1, 0.01, 10_000)["raced_out"].isna().all()


def test_undecided_says_what_could_not_be_shown_and_the_seeds_of_the_margin() -> None:
    table = _judged({"baseline": (0.99, 5.0), "trial 1": (0.9902, 9.0)}, margin=0.0005)
    _, sentence, champion, _ = verdict_sentences(table)
    claim = (
        "trial 1 could not be shown to be better or worse than the baseline, or equivalent within 0.05 points: +0.02"
    )
    assert sentence.startswith(claim)
    needed = table["seeds_needed"][1]
    assert sentence.endswith(f"; 0.05 points take about {needed} seeds")
    assert champion == (
        "champion: the baseline, as no candidate could be shown to be better; it is models:/digitcnn@champion"
    )


@pytest.mark.parametrize(
    ("verdict", "needed", "words"),
    [
        ("better", 4, "better"),
        ("equivalent", 4, "equivalent within 0.1 points"),
        ("undecided", 1234, "undecided; 0.1 points take about 1,234 seeds"),
        ("undecided", 4, "undecided; the difference may be close to 0.1 points"),
        ("undecided", None, "undecided; no number of seeds in reach settles 0.1 points"),
        ("diverged", None, "diverged with seed 7"),
    ],
)
def test_format_verdict_has_words_for_every_verdict(verdict: str, needed: int | None, words: str) -> None:
    assert format_verdict(verdict, 0.001, 5, needed, 7) == words


def test_model_card_says_how_the_champion_was_found() -> None:
    table = _judged({"baseline": (0.97, 5.0), "trial 1": (0.995, 9.0)}, look=2)
    card = model_card("small", DataConfig(), [1, 2, 5], table, "a1b2c3").splitlines()
    assert card[:2] == [
        "Champion of the study small: trial 1 (training.batch_size=100).",
        "Chosen: trial 1, which is better than the baseline.",
    ]
    assert card[5:7] == [
        "Compared: 1 candidate at look 2, by simultaneous intervals with seeds as blocks.",
        "Seeds 1 to 5; this is the model of the first, chosen beforehand.",
    ]
    assert card[-1] == "Reproduce: digitcnn reproduce run=a1b2c3, or run=champion.yaml"


def test_confirmation_table_survives_its_file(tmp_path: Path) -> None:
    table = _judged({"baseline": (0.97, 5.0), "trial 1": (0.9702, 1.0)})
    file = tmp_path / "confirmation.csv"
    file.write_text(table.to_csv(index=False))
    pd.testing.assert_frame_equal(read_confirmation(file, None), table)


# What the first edition recorded of the published confirmation, and of a candidate that diverged.
FIRST_EDITION = """\
config,trial,training.epochs,n,mean,sd,low,high,difference,difference_low,difference_high,p,p_holm,\
only_candidate_right,only_baseline_right,mcnemar_p,cpu_seconds,parameters,verdict,champion
baseline,0,10,8,0.99,0.001,0.98,0.99,,,,,,,,,142.2,843658,,True
trial 8,8,9,8,0.99,0.001,0.98,0.99,0.0004,-0.0006,0.001,0.3,0.6,122,113,0.6,303.4,1718538,\
not distinguishable: needs about 64 more seeds,False
trial 9,9,9,0,,,,,,,,,,,,,,,diverged with seed 3,False
"""


def test_confirmation_of_the_first_edition_is_judged_anew_from_its_runs() -> None:
    runs = pd.read_csv(PUBLISHED / "confirmation_runs.csv", float_precision="round_trip")
    table = read_confirmation(io.StringIO(FIRST_EDITION), runs[runs["config"] != "trial 2"])
    assert table["verdict"].tolist() == ["", "undecided", "diverged"]
    assert table["diverged_seed"].tolist()[2] == 3
    assert table["look"].tolist() == [1, 1, 1]
    assert table["only_candidate_right"].tolist()[1] == 122
    assert not {"p_holm", "mcnemar_p"} & set(table)
    # The smallest step of an accuracy tells the number of images.
    assert table["images_error"][0] == pytest.approx((0.99119 * 0.00881 / 10_000) ** 0.5, rel=1e-3)
    with pytest.raises(ValueError, match="the runs of the confirmation are missing"):
        read_confirmation(io.StringIO(FIRST_EDITION), None)


def test_runs_of_different_origin_are_named() -> None:
    runs = pd.DataFrame({"engine": ["compiled", "compiled", "keras"], "cpu": ["A"] * 3, "versions": ["keras 3"] * 3})
    assert mixed_runs(runs) == ["the runs differ in engine: compiled (2 runs); keras (1 run)"]
    assert mixed_runs(runs[:2]) == []
