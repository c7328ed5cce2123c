"""Statistics of repeated runs: means with intervals, and the differences of configs that share their seeds.

The analysis is fixed before it is seen. Seeds are blocks, every config of a study adds to one estimate of the spread
between seeds, and all differences have simultaneous intervals (Dunnett, 1955, doi:10.1080/01621459.1955.10501294). A
verdict is read off its interval, so that the two never contradict. Who looks again spends more of the same 5 %
(alpha spending: Lan and DeMets, 1983, doi:10.1093/biomet/70.3.659), by Bonferroni's inequality, which holds for any
number of looks at any numbers of seeds. docs/method.md has the simulations.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

ALPHA = 0.05
POWER = 0.8
# The smallest difference of interest: 0.1 percentage points.
MARGIN = 0.001
_MAX_SEEDS = 10_000
# A spread that is nothing but rounding, and a t statistic beyond which none matters.
_SMALLEST = 1e-9
_MAX_T = 1000.0

Verdict = Literal["better", "worse", "equivalent", "undecided"]
# The accuracies of each config by its seeds; the first config is the one that the others are compared with.
Accuracies = Mapping[str, Mapping[int, float]]


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
class Contrast:
    """A difference of configs over the n seeds that they share, and the verdict on it.

    `low` and `high` are simultaneous for all differences of an analysis, `p` is corrected for them and for the looks:
    it is below 0.05 where the interval excludes 0. `superiority` is the probability that a run of the one config is
    better than a run of the other with the same seed. With a power of 80 %, differences of `detectable` are found with
    these seeds, and `seeds_needed` show that one is within the margin where there is none (None: over 10,000).
    """

    n: int
    difference: float
    low: float
    high: float
    p: float
    superiority: float
    superiority_low: float
    superiority_high: float
    detectable: float
    seeds_needed: int | None
    verdict: Verdict


def summarize(values: Sequence[float], resolution: float = 0.0) -> Summary:
    """Return the summary of at least one value; the interval assumes no smaller spread than the resolution."""
    from scipy import stats

    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Summary(n, mean, float("nan"), float("nan"), float("nan"))
    sd = float(np.std(values, ddof=1))
    low, high = stats.t.interval(1 - ALPHA, n - 1, mean, max(sd, resolution, _SMALLEST) / n**0.5)
    return Summary(n, mean, sd, float(low), float(high))


def standard_error(accuracy: float, images: int) -> float:
    """Return the binomial standard error of an accuracy (a fraction) that was measured once on this many images."""
    return float((accuracy * (1 - accuracy) / images) ** 0.5)


def level_of_look(look: int) -> float:
    """Return the share of the 5 % that a look spends: 1/2, 1/6, 1/12, ... of it; 0 is the only look, which has all."""
    return ALPHA / (look * (look + 1)) if look else ALPHA


@dataclass(frozen=True)
class Estimate:
    """Differences of means (m,), seeds (m,), standard errors (m,), the errors' correlation and degrees of freedom."""

    differences: NDArray[np.float64]
    n: NDArray[np.float64]
    errors: NDArray[np.float64]
    correlation: tuple[tuple[float, ...], ...]
    freedom: int


def spread_between_seeds(values: Accuracies, resolution: float = 0.0) -> tuple[float, int]:
    """Return the standard deviation between seeds, pooled over all configs, with its degrees of freedom."""
    return _spread(pd.DataFrame(values).to_numpy(float), resolution)


def _spread(table: NDArray[np.float64], resolution: float) -> tuple[float, int]:
    """Return the standard deviation of the residuals of accuracy = config + seed, with its degrees of freedom.

    By least squares, so that a config may lack seeds. A spread of differences below `resolution` (1 / images) cannot be
    seen, and is not assumed.
    """
    known = ~np.isnan(table)
    seeds, configs = np.nonzero(known)
    design = np.hstack([np.eye(table.shape[0])[seeds], np.eye(table.shape[1])[configs]])
    fitted, _, rank, _ = np.linalg.lstsq(design, table[known], rcond=None)
    freedom = len(seeds) - int(rank)
    squares = float(((table[known] - design @ fitted) ** 2).sum())
    return max((squares / max(freedom, 1)) ** 0.5, resolution / 2**0.5, _SMALLEST), freedom


def estimate(table: NDArray[np.float64], weights: NDArray[np.float64], resolution: float = 0.0) -> Estimate:
    """Estimate differences from accuracies (seeds, configs), NaN where one is missing, and weights (configs, m).

    Each difference has the seeds that all of its configs have, and all have the error that the configs share.
    """
    spread, freedom = _spread(table, resolution)
    shared = (np.isnan(table) @ (weights != 0) == 0).astype(float)
    n = shared.sum(axis=0)
    differences = (np.nan_to_num(table) @ weights * shared).sum(axis=0) / n
    # Two means have in common the seeds that both have.
    covariance = weights.T @ weights * (shared.T @ shared) / np.outer(n, n)
    scales = np.sqrt(np.diag(covariance))
    correlation = np.round(covariance / np.outer(scales, scales), 9)
    return Estimate(differences, n, spread * scales, tuple(map(tuple, correlation.tolist())), freedom)


def compare(
    values: Accuracies,
    contrasts: Mapping[str, Mapping[str, float]] | None = None,
    *,
    look: int = 0,
    margin: float = MARGIN,
    resolution: float = 0.0,
) -> dict[str, Contrast]:
    """Compare configs over their seeds; return the differences by name.

    `contrasts` holds the weights of the configs in each difference, which add up to 0; without it each config is
    compared with the first. `look` counts the looks at one study, from 1; 0 is an analysis that is made once.
    """
    from scipy import stats

    table = pd.DataFrame(values).sort_index()
    first, *others = table.columns
    contrasts = contrasts or {name: {name: 1.0, first: -1.0} for name in others}
    weights = pd.DataFrame(contrasts).reindex(table.columns).fillna(0.0)
    found = estimate(table.to_numpy(float), weights.to_numpy(), resolution)
    if not contrasts or found.freedom == 0:
        return {name: _untold(found, index) for index, name in enumerate(contrasts)}
    share = level_of_look(look)
    bound = critical_value(found.correlation, found.freedom, share)
    # The level of each difference alone, on each side.
    alone = float(stats.t.sf(bound, found.freedom))
    # More seeds are those of a later look.
    later = alone * level_of_look(look + 1) / share if look else alone
    compared = {}
    for name, difference, n, error in zip(contrasts, found.differences, found.n, found.errors, strict=True):
        t = float(difference / error)
        low, high = float(difference - bound * error), float(difference + bound * error)
        least, most = (_noncentrality(t, found.freedom, level) for level in (1 - alone, alone))
        chance, at_least, at_most = stats.norm.cdf(np.array([t, least, most]) / n**0.5).tolist()
        compared[name] = Contrast(
            int(n),
            float(difference),
            low,
            high,
            min(1.0, max(0.0, ALPHA / share * _chance(abs(t), found.correlation, found.freedom))),
            chance,
            at_least,
            at_most,
            float(_noncentrality(bound, found.freedom, 1 - POWER) * error),
            _seeds_needed(later, margin, table.shape[1], float(error * n**0.5)),
            decide(low, high, margin),
        )
    return compared


def race(table: NDArray[np.float64], resolution: float = 0.0) -> NDArray[np.int64]:
    """Return after how many seeds each config is out of a race, 0 for those in it and for the first, which stays.

    After n seeds, from 3 on, one is out whose interval of the difference to the best, that of look n, lies below 0.
    """
    out, seen = np.zeros(table.shape[1], dtype=np.int64), table.copy()
    for n in range(3, len(table) + 1):
        (inside,) = np.nonzero((out == 0) & ~np.isnan(table[:n]).any(axis=0))
        if len(inside) > 1:
            best = inside[np.argmax(table[:n, inside].mean(axis=0))]
            others = inside[inside != best]
            each = np.eye(table.shape[1])
            found = estimate(seen[:n], each[:, others] - each[:, [best]], resolution)
            half = critical_value(found.correlation, found.freedom, level_of_look(n)) * found.errors
            beaten = others[(found.differences + half < 0) & (others > 0)]
            out[beaten], seen[n:, beaten] = n, np.nan
    return out


def detectable_difference(spread: float, candidates: int, seeds: int, look: int) -> float:
    """Return the difference to the baseline that a look finds with a power of 80 %.

    `spread` is the standard deviation between seeds, of which there are at least two.
    """
    # Differences to one baseline share half of their variance.
    correlation = tuple(map(tuple, (0.5 * (np.eye(candidates) + 1)).tolist()))
    freedom = candidates * (seeds - 1)
    bound = critical_value(correlation, freedom, level_of_look(look))
    return float(_noncentrality(bound, freedom, 1 - POWER) * spread * (2 / seeds) ** 0.5)


def decide(low: float, high: float, margin: float) -> Verdict:
    """Return the verdict on a difference by its interval; `margin` is the smallest difference of interest."""
    if low > 0:
        return "better"
    if high < 0:
        return "worse"
    return "equivalent" if -margin < low and high < margin else "undecided"


def _untold(found: Estimate, index: int) -> Contrast:
    """Return a difference of which one seed tells nothing."""
    n, difference = int(found.n[index]), float(found.differences[index])
    return Contrast(n, difference, -math.inf, math.inf, 1.0, 0.5, 0.0, 1.0, math.inf, None, "undecided")


def _chance(bound: float, correlation: tuple[tuple[float, ...], ...], freedom: int) -> float:
    """Return the probability that pure chance takes one of several t statistics beyond -bound to bound."""
    from scipy import stats

    if len(correlation) == 1:
        return float(2 * stats.t.sf(bound, freedom))
    bounds, shape = np.full(len(correlation), min(bound, _MAX_T)), np.array(correlation)
    if np.linalg.matrix_rank(shape, tol=1e-6) < len(shape):
        # Of differences that follow from each other: SciPy's integration is wrong if their matrix is singular.
        shape = 0.999 * shape + 0.001 * np.eye(len(shape))
    # Its integration draws points: with a seed the same ones each time.
    distribution = stats.multivariate_t(shape=shape, df=freedom, allow_singular=True, seed=0)
    return float(1 - distribution.cdf(bounds, lower_limit=-bounds))


@functools.cache
def critical_value(correlation: tuple[tuple[float, ...], ...], freedom: int, level: float) -> float:
    """Return the bound that chance takes one of several t statistics beyond with the probability `level`."""
    from scipy import optimize, stats

    # One of them alone would have the lower limit; the upper one is that of Bonferroni's inequality.
    low, high = (float(stats.t.isf(level / 2 / each, freedom)) for each in (1, len(correlation)))
    if len(correlation) == 1:
        return low
    return float(
        optimize.brentq(lambda bound: _chance(bound, correlation, freedom) - level, 0.9 * low, 1.1 * high, xtol=1e-6)
    )


def _noncentrality(t: float, freedom: int, chance: float) -> float:
    """Return the noncentrality with which a t statistic is at most `t` with that chance."""
    from scipy import optimize, stats

    if t < 0:
        return -_noncentrality(-t, freedom, 1 - chance)
    t = min(t, _MAX_T)

    def excess(shift: float) -> float:
        # Far from t, where the chance is 0 or 1, SciPy has no value.
        return float(np.nan_to_num(stats.nct.cdf(t, freedom, shift), nan=float(shift < t))) - chance

    return float(optimize.brentq(excess, -20 - 3 * t, 20 + 3 * t))


def _seeds_needed(alone: float, margin: float, configs: int, error: float) -> int | None:
    """Return the seeds with which an interval around 0 lies within the margin, with a power of 80 %.

    `alone` is the level of each difference on each side, `error` its standard error with one seed.
    """
    from scipy import stats

    seeds = np.arange(2, _MAX_SEEDS + 1)
    freedom = (configs - 1) * (seeds - 1)
    half = stats.t.isf(alone, freedom) + stats.t.isf((1 - POWER) / 2, freedom)
    enough = seeds[half * error / np.sqrt(seeds) < margin]
    return int(enough[0]) if len(enough) else None
