"""Statistics of repeated runs: means with intervals, and paired tests of candidates against a baseline.

Each config was trained with the same seeds, so that candidate and baseline are compared seed by seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIGNIFICANCE = 0.05
_POWER = 0.8
_MAX_SEEDS = 1000

Verdict = Literal["better", "worse", "not distinguishable"]


@dataclass(frozen=True)
class Summary:
    """Mean of n values, their standard deviation (n - 1), and the 95 % Student t interval of the mean.

    Of one value there is no spread: sd, low and high are NaN.
    """

    n: int
    mean: float
    sd: float
    low: float
    high: float


@dataclass(frozen=True)
class Disagreement:
    """Numbers of the images that only the candidate, or only the baseline, has right with more of its seeds.

    `p` is the exact two-sided McNemar test on these images.
    """

    only_candidate_right: int
    only_baseline_right: int
    p: float


@dataclass(frozen=True)
class PairedComparison:
    """A candidate against the baseline: the summary of the paired differences and the two-sided paired t-test.

    `p_holm` is corrected for the number of candidates (Holm, 1979). `more_seeds` is the number of further seeds that
    show a difference of this size with a power of 80 %; None if the verdict is clear, or if it takes over 1,000 seeds.
    """

    difference: Summary
    p: float
    p_holm: float
    verdict: Verdict
    more_seeds: int | None


def summarize(values: Sequence[float]) -> Summary:
    """Return the summary of at least one value."""
    from scipy import stats

    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Summary(n, mean, float("nan"), float("nan"), float("nan"))
    sd = float(np.std(values, ddof=1))
    half = float(stats.t.ppf(1 - SIGNIFICANCE / 2, n - 1)) * sd / n**0.5
    return Summary(n, mean, sd, mean - half, mean + half)


def prediction_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the interval of 95 % of further single values, given a sample of at least two normal values."""
    from scipy import stats

    summary = summarize(values)
    half = float(stats.t.ppf(1 - SIGNIFICANCE / 2, summary.n - 1)) * summary.sd * (1 + 1 / summary.n) ** 0.5
    return summary.mean - half, summary.mean + half


def standard_error(accuracy: float, images: int) -> float:
    """Return the binomial standard error of an accuracy (a fraction) that was measured once on this many images."""
    return float((accuracy * (1 - accuracy) / images) ** 0.5)


def compare_pairs(
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]], resolution: float = 0.0
) -> list[PairedComparison]:
    """Compare candidates, each with its baseline, seed by seed: pairs of (candidate's values, baseline's values).

    `resolution` is the smallest step of a value (1 / images for an accuracy): a spread below it cannot be seen, so
    the test does not assume a smaller one. With fewer than two seeds nothing is distinguishable.
    """
    differences = [np.subtract(candidate, baseline) for candidate, baseline in pairs]
    p_values = [_paired_p(each, resolution) for each in differences]
    found = []
    for each, p, p_holm in zip(differences, p_values, holm(p_values), strict=True):
        summary = summarize([float(value) for value in each])
        verdict: Verdict = "not distinguishable"
        if p_holm < SIGNIFICANCE:
            verdict = "better" if summary.mean > 0 else "worse"
        needed = None if verdict != "not distinguishable" else _seeds_needed(summary, resolution, len(pairs))
        more = None if needed is None else max(needed - summary.n, 1)
        found.append(PairedComparison(summary, p, p_holm, verdict, more))
    return found


def _paired_p(differences: NDArray[np.float64], resolution: float) -> float:
    from scipy import stats

    n = len(differences)
    if n < 2:
        return 1.0
    mean, sd = float(differences.mean()), max(float(differences.std(ddof=1)), resolution)
    if sd == 0.0:
        return 1.0 if mean == 0.0 else 0.0
    return float(2 * stats.t.sf(abs(mean) / (sd / n**0.5), n - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values by Holm's step-down procedure (Holm, 1979); return them in the order given."""
    corrected = [1.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def _seeds_needed(difference: Summary, resolution: float, candidates: int) -> int | None:
    """Return the seeds with which a paired t-test at the strictest of Holm's levels has a power of 80 %.

    From the noncentral t distribution; None if it takes over 1,000, or if there is no spread to judge by.
    """
    from scipy import stats

    sd = max(difference.sd, resolution)
    if not sd > 0 or difference.mean == 0:
        return None
    effect, level = abs(difference.mean) / sd, SIGNIFICANCE / candidates
    n = np.arange(2, _MAX_SEEDS + 1)
    power = stats.nct.sf(stats.t.ppf(1 - level / 2, n - 1), n - 1, effect * n**0.5)
    enough = np.flatnonzero(power >= _POWER)
    return int(n[enough[0]]) if len(enough) else None


def mcnemar(candidate: NDArray[np.bool_], baseline: NDArray[np.bool_]) -> Disagreement:
    """Compare the images that two configs have right, (seeds, images) each, by McNemar's exact test.

    The seeds of a config see the same images, so that they are no independent draws: an image counts once, for the
    config that has it right with more of the seeds.
    """
    from scipy import stats

    votes = candidate.sum(axis=0).astype(int) - baseline.sum(axis=0).astype(int)
    ours, theirs = int((votes > 0).sum()), int((votes < 0).sum())
    p = 1.0 if ours + theirs == 0 else float(stats.binomtest(ours, ours + theirs).pvalue)
    return Disagreement(ours, theirs, p)
