"""Statistics against known answers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from digitcnn.evaluation import PairedComparison, compare_pairs, prediction_interval, standard_error, summarize
from digitcnn.evaluation.statistics import holm, mcnemar

SIMULATIONS = 1000


def _simulated(shifts: list[float], generator: np.random.Generator) -> list[PairedComparison]:
    """Comparisons of candidates with a baseline over 5 seeds, each accuracy with a standard deviation of 0.001."""
    baseline = generator.normal(0.99, 0.001, 5).tolist()
    return compare_pairs([(generator.normal(0.99 + 0.001 * shift, 0.001, 5).tolist(), baseline) for shift in shifts])


def test_compare_pairs_raises_at_most_one_false_alarm_in_twenty_studies() -> None:
    generator = np.random.default_rng(1)
    false_alarms = sum(
        any(each.verdict == "better" for each in _simulated([0.0] * 3, generator)) for _ in range(SIMULATIONS)
    )
    assert false_alarms <= 0.05 * SIMULATIONS


def test_compare_pairs_finds_four_standard_deviations_nine_times_in_ten() -> None:
    generator = np.random.default_rng(2)
    hits = sum(_simulated([4.0, 0.0, 0.0], generator)[0].verdict == "better" for _ in range(SIMULATIONS))
    assert hits >= 0.9 * SIMULATIONS


def test_compare_pairs_is_scipys_paired_t_test() -> None:
    baseline, candidate = np.random.default_rng(3).normal(0.99, 0.001, (2, 5))
    (found,) = compare_pairs([(candidate.tolist(), baseline.tolist())])
    expected = stats.ttest_rel(candidate, baseline)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.p_holm == found.p
    interval = expected.confidence_interval()
    assert (found.difference.low, found.difference.high) == pytest.approx((interval.low, interval.high))


def test_more_seeds_have_the_power_they_promise() -> None:
    """Given the effect that a first study saw, studies of the size it asks for find it four times in five."""
    (first,) = compare_pairs([([-0.2, 0.3, 0.9, 1.4, 0.6], [0.0] * 5)])
    assert first.verdict == "not distinguishable"
    assert first.more_seeds is not None
    n, generator = 5 + first.more_seeds, np.random.default_rng(4)
    mean, sd = first.difference.mean, first.difference.sd
    found = [
        compare_pairs([(generator.normal(mean, sd, n).tolist(), [0.0] * n)])[0].verdict == "better"
        for _ in range(SIMULATIONS)
    ]
    assert np.mean(found) == pytest.approx(0.8, abs=0.06)


def test_holm_corrects_in_the_given_order() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_compare_pairs_distinguishes_nothing_with_one_seed() -> None:
    (single,) = compare_pairs([([0.99], [0.98])])
    assert (single.verdict, single.p, single.more_seeds) == ("not distinguishable", 1.0, None)


def test_compare_pairs_takes_a_step_of_the_scale_for_the_least_spread() -> None:
    # One image of 10,000 more with both seeds: a difference without any spread, which the scale cannot resolve.
    (step,) = compare_pairs([([0.9901, 0.9901], [0.99, 0.99])], resolution=0.0001)
    assert step.verdict == "not distinguishable"
    (same,) = compare_pairs([([0.99, 0.98], [0.99, 0.98])])
    assert (same.p, same.verdict) == (1.0, "not distinguishable")


def test_summarize_returns_n_mean_spread_and_interval() -> None:
    summary = summarize([0.98, 0.99, 1.0])
    assert (summary.n, summary.mean, summary.sd) == (3, pytest.approx(0.99), pytest.approx(0.01))
    assert summary.high - summary.mean == pytest.approx(4.302653 * 0.01 / 3**0.5)
    assert np.isnan(summarize([0.5]).low)


def test_prediction_interval_is_wider_than_the_means() -> None:
    low, high = prediction_interval([0.98, 0.99, 1.0])
    assert (low + high) / 2 == pytest.approx(0.99)
    assert high - low == pytest.approx(2 * 4.302653 * 0.01 * (4 / 3) ** 0.5)


def test_standard_error_is_binomial() -> None:
    assert standard_error(0.9, 100) == pytest.approx(0.03)


def test_mcnemar_counts_an_image_once_for_all_seeds() -> None:
    candidate = np.array([[1, 1, 1, 0, 1, 1, 1, 1], [1, 1, 1, 0, 1, 1, 1, 0]], dtype=bool)
    baseline = np.array([[0, 0, 0, 1, 0, 0, 1, 0], [0, 0, 1, 1, 0, 0, 1, 1]], dtype=bool)
    found = mcnemar(candidate, baseline)
    assert (found.only_candidate_right, found.only_baseline_right) == (5, 1)
    assert found.p == pytest.approx(stats.binomtest(5, 6).pvalue)
    assert mcnemar(baseline, baseline).p == 1.0
