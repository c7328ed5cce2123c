"""Statistics against known answers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from digitcnn.evaluation import summarize
from digitcnn.evaluation.statistics import compare_to_baseline, holm, mcnemar, verdict_in_words

SIMULATIONS = 1000


def _simulated(shifts: list[float], generator: np.random.Generator) -> tuple[list[float], list[list[float]]]:
    """Accuracies of a baseline and candidates over 5 seeds, each with a standard deviation of 0.001."""
    baseline = generator.normal(0.99, 0.001, 5).tolist()
    return baseline, [generator.normal(0.99 + 0.001 * shift, 0.001, 5).tolist() for shift in shifts]


def test_no_difference_is_called_better_in_at_most_one_study_of_twenty() -> None:
    generator = np.random.default_rng(1)
    false_alarms = sum(
        any(found.verdict == "better" for found in compare_to_baseline(*_simulated([0.0] * 3, generator)))
        for _ in range(SIMULATIONS)
    )
    assert false_alarms <= 0.05 * SIMULATIONS


def test_a_difference_of_four_standard_deviations_is_found_nine_times_in_ten() -> None:
    generator = np.random.default_rng(2)
    hits = sum(
        compare_to_baseline(*_simulated([4.0, 0.0, 0.0], generator))[0].verdict == "better" for _ in range(SIMULATIONS)
    )
    assert hits >= 0.9 * SIMULATIONS


def test_the_paired_test_is_scipys() -> None:
    baseline, (candidate,) = _simulated([1.0], np.random.default_rng(3))
    (found,) = compare_to_baseline(baseline, [candidate])
    expected = stats.ttest_rel(candidate, baseline)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.p_holm == found.p
    interval = expected.confidence_interval()
    assert (found.difference.low, found.difference.high) == pytest.approx((interval.low, interval.high))


def test_seeds_that_are_said_to_be_needed_would_do() -> None:
    """Given the effect that a first study saw, studies of the size it asks for find it four times in five."""
    baseline, candidate = [0.0] * 5, [-0.2, 0.3, 0.9, 1.4, 0.6]
    (first,) = compare_to_baseline(baseline, [candidate])
    assert first.verdict == "not distinguishable"
    assert first.more_seeds is not None
    n, generator = 5 + first.more_seeds, np.random.default_rng(4)
    mean, sd = first.difference.mean, first.difference.sd
    found = [
        compare_to_baseline([0.0] * n, [generator.normal(mean, sd, n).tolist()])[0].verdict == "better"
        for _ in range(SIMULATIONS)
    ]
    assert np.mean(found) == pytest.approx(0.8, abs=0.06)
    assert verdict_in_words(first) == f"not distinguishable: needs about {first.more_seeds} more seeds"


def test_holm_steps_down() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_one_seed_proves_nothing_and_a_step_of_the_scale_is_no_spread() -> None:
    (single,) = compare_to_baseline([0.98], [[0.99]])
    assert (single.verdict, single.p, single.more_seeds) == ("not distinguishable", 1.0, None)
    # One image of 10,000 more with both seeds: a difference without any spread, which the scale cannot resolve.
    (step,) = compare_to_baseline([0.99, 0.99], [[0.9901, 0.9901]], resolution=0.0001)
    assert step.verdict == "not distinguishable"
    (same,) = compare_to_baseline([0.99, 0.98], [[0.99, 0.98]])
    assert (same.p, same.verdict) == (1.0, "not distinguishable")


def test_summaries_carry_n_mean_spread_and_interval() -> None:
    summary = summarize([0.98, 0.99, 1.0])
    assert (summary.n, summary.mean, summary.sd) == (3, pytest.approx(0.99), pytest.approx(0.01))
    assert summary.high - summary.mean == pytest.approx(4.302653 * 0.01 / 3**0.5)
    assert np.isnan(summarize([0.5]).low)


def test_mcnemar_counts_an_image_once_however_many_seeds_saw_it() -> None:
    candidate = np.array([[1, 1, 1, 0, 1, 1, 1, 1], [1, 1, 1, 0, 1, 1, 1, 0]], dtype=bool)
    baseline = np.array([[0, 0, 0, 1, 0, 0, 1, 0], [0, 0, 1, 1, 0, 0, 1, 1]], dtype=bool)
    found = mcnemar(candidate, baseline)
    assert (found.only_candidate_right, found.only_baseline_right) == (5, 1)
    assert found.p == pytest.approx(stats.binomtest(5, 6).pvalue)
    assert mcnemar(baseline, baseline).p == 1.0
