"""The champion rule and the words of a confirmation."""

from __future__ import annotations

import pandas as pd
import pytest

from digitcnn.config import DataConfig
from digitcnn.evaluation import PairedComparison, leading_row, summarize, verdict_sentences
from digitcnn.evaluation.champion import champion_of, model_card, verdict_in_words

# Accuracies of three seeds.
BASELINE, GOOD, ALIKE, BEST = [0.90, 0.91, 0.92], [0.94, 0.95, 0.96], [0.969, 0.982, 0.987], [0.97, 0.98, 0.99]


def _table(configs: dict[str, tuple[list[float], str, float]]) -> pd.DataFrame:
    """A confirmation's table of configs with accuracies, verdict and CPU seconds."""
    rows = [
        {"config": name, "trial": number, "training.batch_size": 50 * (number + 1)}
        | vars(summarize(values))
        | {"difference": 0.05, "difference_low": 0.04, "difference_high": 0.06, "p_holm": 0.0123, "mcnemar_p": 0.5}
        | {"only_candidate_right": 7, "only_baseline_right": 2, "cpu_seconds": seconds, "verdict": verdict}
        for number, (name, (values, verdict, seconds)) in enumerate(configs.items())
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("candidates", "champion"),
    [
        # Not better than the baseline, however good the mean.
        ({"trial 1": (BEST, "not distinguishable: needs about 2 more seeds", 1.0)}, "baseline"),
        ({"trial 1": (GOOD, "worse than the baseline", 1.0)}, "baseline"),
        # The best, where the others are distinguishable from it however cheap they are.
        ({"trial 1": (GOOD, "better", 1.0), "trial 2": (BEST, "better", 9.0)}, "trial 2"),
        # The cheapest of those that are not distinguishable from the best.
        ({"trial 1": (ALIKE, "better", 2.0), "trial 2": (BEST, "better", 9.0)}, "trial 1"),
        ({"trial 1": (ALIKE, "better", 9.0), "trial 2": (BEST, "better", 2.0)}, "trial 2"),
        ({"trial 1": (ALIKE, "not distinguishable", 2.0), "trial 2": (BEST, "better", 9.0)}, "trial 2"),
    ],
)
def test_champion_is_the_cheapest_of_the_best(
    candidates: dict[str, tuple[list[float], str, float]], champion: str
) -> None:
    configs = {"baseline": (BASELINE, "", 5.0)} | candidates
    values = {name: accuracies for name, (accuracies, _, _) in configs.items()}
    assert champion_of(_table(configs), values, 0.0001) == champion


def test_leading_row_is_the_champions_or_the_best_means() -> None:
    table = _table({"baseline": (BASELINE, "", 5.0), "trial 1": (GOOD, "", 1.0), "trial 2": (BEST, "", 1.0)})
    assert leading_row(table.assign(champion=table["config"] == "baseline")) == 2
    assert leading_row(table.assign(champion=table["config"] == "trial 1")) == 1


def test_verdict_sentences_give_every_number_with_its_uncertainty() -> None:
    table = _table({"baseline": (BASELINE, "", 5.0), "trial 1": (GOOD, "better than the baseline", 1.0)})
    assert verdict_sentences(table.assign(champion=table["config"] == "trial 1")) == [
        "baseline: test accuracy 91.00 % (n = 3, sd 1.00, 95 % interval 88.52 to 93.48)",
        "trial 1: test accuracy 95.00 % (n = 3, sd 1.00, 95 % interval 92.52 to 97.48); +5.00 points (+4.00 to +6.00), "
        "p 0.0123 (Holm); right alone on 7 images, wrong alone on 2 (McNemar p 0.5): better than the baseline",
        "champion: trial 1 (better than the baseline), registered as models:/digitcnn@champion",
    ]


def test_model_card_says_how_the_champion_was_found() -> None:
    table = _table({"baseline": (BASELINE, "", 5.0), "trial 1": (GOOD, "better than the baseline", 1.0)})
    diverged = pd.DataFrame(
        [{"config": "trial 2", "training.batch_size": 150, "n": 0, "verdict": "diverged with seed 1"}]
    )
    table = pd.concat([table, diverged], ignore_index=True)
    card = model_card(
        "small", DataConfig(), [1, 2, 3], table.assign(champion=table["config"] == "trial 1"), "a1b2c3"
    ).splitlines()
    assert card[0] == "Champion of the study small: trial 1 (training.batch_size=100)."
    assert card[1].endswith("95 % interval 88.52 to 93.48): better than the baseline.")
    assert card[4:7] == [
        "Left out: trial 2 diverged with seed 1.",
        "1 candidates, paired t-tests corrected by Holm,",
        "seeds 1 to 3; this is the model of the first, chosen beforehand.",
    ]
    assert card[-1] == "Reproduce: digitcnn reproduce run=a1b2c3, or run=THIS_FILE"


@pytest.mark.parametrize(
    ("more_seeds", "words"),
    [
        (None, "not distinguishable: more than 1,000 seeds would not settle it"),
        (1, "not distinguishable: needs about 1 more seed"),
        (12, "not distinguishable: needs about 12 more seeds"),
    ],
)
def test_verdict_in_words_names_the_seeds_that_would_settle_it(more_seeds: int | None, words: str) -> None:
    comparison = PairedComparison(summarize([0.0, 0.1]), 0.5, 0.5, "not distinguishable", more_seeds)
    assert verdict_in_words(comparison) == words
