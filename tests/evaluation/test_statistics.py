"""Statistics against known answers, and verdicts against simulated studies."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from digitcnn.evaluation import (
    Contrast,
    compare,
    critical_value,
    decide,
    level_of_look,
    race,
    spread_between_seeds,
    standard_error,
    summarize,
)
from digitcnn.evaluation.statistics import detectable_difference

PAIR = ((1.0,),)


def _values(generator: np.random.Generator, shifts: list[float], seeds: int) -> dict[str, dict[int, float]]:
    """Accuracies of configs whose runs have a standard deviation of 0.001, each config shifted by some of those."""
    return {
        f"config {index}": dict(enumerate(generator.normal(0.99 + 0.001 * shift, 0.001, seeds), start=1))
        for index, shift in enumerate(shifts)
    }


def _one(candidate: list[float], baseline: list[float], look: int = 0, resolution: float = 0.0) -> Contrast:
    values = {"baseline": dict(enumerate(baseline)), "trial 1": dict(enumerate(candidate))}
    return compare(values, look=look, resolution=resolution)["trial 1"]


def test_comparison_of_a_pair_is_scipys_paired_t_test() -> None:
    baseline, candidate = np.random.default_rng(3).normal(0.99, 0.001, (2, 5))
    found, expected = _one(candidate.tolist(), baseline.tolist()), stats.ttest_rel(candidate, baseline)
    interval = expected.confidence_interval()
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_comparison_of_independent_groups_has_dunnetts_critical_value() -> None:
    # Table of Dunnett (1955), two-sided, 5 %: 3 treatments and 12 degrees of freedom, 8 and 16.
    for treatments, freedom, tabled in ((3, 12, 2.68), (8, 16, 2.97)):
        correlation = 0.5 * (np.eye(treatments) + 1)
        bound = critical_value(tuple(map(tuple, correlation.tolist())), freedom, 0.05)
        assert bound == pytest.approx(tabled, abs=0.01)


def test_critical_value_holds_for_differences_that_follow_from_each_other() -> None:
    """Given two changes, each alone and beside the other: of 200,000 simulated studies 5 % are beyond the bound."""
    weights = np.array([[-1, 0, -1, 0], [0, 1, 0, 1], [1, 0, 0, -1], [0, -1, 1, 0]]) / 2**0.5
    correlation = tuple(map(tuple, np.round(weights.T @ weights, 9).tolist()))
    generator = np.random.default_rng(0)
    spread = np.sqrt(generator.chisquare(9, (200_000, 1)) / 9)
    t = np.abs(generator.normal(size=(200_000, 4)) @ weights / spread).max(axis=1)
    assert (t > critical_value(correlation, 9, 0.05)).mean() == pytest.approx(0.05, abs=0.002)


def test_spread_is_the_residual_of_a_two_way_analysis_of_variance() -> None:
    from statsmodels.formula.api import ols

    values = _values(np.random.default_rng(4), [0.0, 1.0, 2.0], 4)
    del values["config 2"][4], values["config 1"][1]
    rows = [(name, seed, value) for name, its in values.items() for seed, value in its.items()]
    table = pd.DataFrame(rows, columns=["config", "seed", "accuracy"])
    fitted = ols("accuracy ~ C(config) + C(seed)", table).fit()
    assert spread_between_seeds(values) == (pytest.approx(fitted.mse_resid**0.5), int(fitted.df_resid))


def test_contrasts_weigh_configs_and_use_the_seeds_that_all_have() -> None:
    values = {"a": {1: 0.9, 2: 0.8}, "b": {1: 0.7, 2: 0.7, 3: 0.1}, "c": {1: 0.5, 2: 0.6}}
    found = compare(values, {"of means": {"a": 1.0, "b": -0.5, "c": -0.5}})["of means"]
    assert (found.n, found.difference) == (2, pytest.approx(0.225))


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.0001, 0.0002, "better"),
        (-0.2, -0.0001, "worse"),
        (-0.0009, 0.0009, "equivalent"),
        (0.0, 0.0009, "equivalent"),
        (-0.0009, 0.0011, "undecided"),
        (-math.inf, math.inf, "undecided"),
    ],
)
def test_decide_reads_the_verdict_off_the_interval(low: float, high: float, verdict: str) -> None:
    assert decide(low, high, 0.001) == verdict


def test_intervals_p_values_and_superiority_never_contradict_the_verdict() -> None:
    generator, seen = np.random.default_rng(5), set()
    for look in (0, 1, 3):
        for shift in (0.0, 1.5, 3.0, -3.0):
            for each in compare(_values(generator, [0.0, shift, 0.0], 6), look=look).values():
                differs = each.verdict in ("better", "worse")
                assert differs == (each.low > 0 or each.high < 0)
                assert differs == (each.p < 0.05)
                assert differs == (each.superiority_low > 0.5 or each.superiority_high < 0.5)
                assert each.superiority_low < each.superiority < each.superiority_high
                seen.add(each.verdict)
    assert seen == {"better", "worse", "undecided"}


def test_equivalence_is_two_one_sided_tests_within_the_margin() -> None:
    generator = np.random.default_rng(6)
    found = compare(_values(generator, [0.0, 0.0], 400), margin=0.001)["config 1"]
    assert found.verdict == "equivalent"
    assert max(abs(found.low), abs(found.high)) < 0.001


def test_looks_share_five_percent_and_never_use_it_up() -> None:
    assert level_of_look(0) == 0.05
    spent = [level_of_look(look) for look in range(1, 1000)]
    assert spent[:3] == pytest.approx([0.025, 0.05 / 6, 0.05 / 12])
    assert 0.0499 < sum(spent) < 0.05
    first, third = (_one([0.99, 0.992, 0.994], [0.98, 0.983, 0.984], look=look) for look in (1, 3))
    assert third.p == pytest.approx(6 * first.p)
    assert third.high - third.low > first.high - first.low


def test_detectable_difference_is_found_four_times_in_five() -> None:
    generator, seeds = np.random.default_rng(7), 5
    shift = 1000 * detectable_difference(0.001, 2, seeds, look=1)
    found = [compare(_values(generator, [0.0, shift, 0.0], seeds), look=1)["config 1"] for _ in range(200)]
    assert np.mean([each.verdict == "better" for each in found]) == pytest.approx(0.8, abs=0.08)


def test_seeds_needed_show_equivalence_four_times_in_five() -> None:
    generator = np.random.default_rng(8)
    needed = compare(_values(generator, [0.0, 0.0, 0.0], 200))["config 1"].seeds_needed
    assert needed is not None
    # From the spread alone: not from the difference that was seen.
    assert needed == pytest.approx(compare(_values(generator, [0.0, 2.0, 0.0], 200))["config 1"].seeds_needed, rel=0.2)
    found = [compare(_values(generator, [0.0, 0.0, 0.0], needed))["config 1"] for _ in range(100)]
    assert np.mean([each.verdict == "equivalent" for each in found]) == pytest.approx(0.8, abs=0.12)


def test_one_seed_tells_nothing() -> None:
    single = _one([0.99], [0.98])
    assert (single.verdict, single.p, single.low, single.high) == ("undecided", 1.0, -math.inf, math.inf)
    assert single.seeds_needed is None


def test_a_step_of_the_scale_is_the_least_spread_also_of_intervals() -> None:
    # One image of 10,000 more with both seeds: a difference without any spread, which the scale cannot resolve.
    step = _one([0.9901, 0.9901], [0.99, 0.99], look=1, resolution=0.0001)
    assert step.verdict == "undecided"
    assert step.low < 0 < step.high
    same = _one([0.99, 0.98], [0.99, 0.98])
    assert (same.p, same.difference) == (1.0, 0.0)
    assert summarize([0.99, 0.99], 0.0001).low < 0.99


def test_summarize_returns_n_mean_spread_and_interval() -> None:
    summary = summarize([0.98, 0.99, 1.0])
    assert (summary.n, summary.mean, summary.sd) == (3, pytest.approx(0.99), pytest.approx(0.01))
    assert summary.high - summary.mean == pytest.approx(4.302653 * 0.01 / 3**0.5)
    assert np.isnan(summarize([0.5]).low)


def test_standard_error_is_binomial() -> None:
    assert standard_error(0.9, 100) == pytest.approx(0.03)


def test_race_excludes_who_is_clearly_behind_but_never_the_first() -> None:
    noise = np.array([0.0004, -0.0003, 0.0, 0.0002, -0.0003, 0.0001])
    equal = np.stack([0.98 + noise, 0.98 + noise[::-1], 0.98 + np.roll(noise, 2)], axis=1)
    assert race(equal).tolist() == [0, 0, 0]
    behind = equal + np.array([0.0, 0.01, -0.01])
    # The first is behind the second too, and stays.
    assert race(behind).tolist() == [0, 0, 3]
    # What was not trained any more, or not yet, changes nothing.
    behind[3:, 2] = np.nan
    late = np.column_stack([behind, np.full(6, np.nan)])
    late[:2, 3] = 0.9
    assert race(late).tolist() == [0, 0, 3, 0]
    assert race(late[:0]).tolist() == [0, 0, 0, 0]
