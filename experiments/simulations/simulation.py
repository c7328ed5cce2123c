"""Studies with a known truth and the spread of real seeds, judged by several rules in several ways of asking."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from digitcnn.evaluation import MARGIN, Verdict, critical_value, decide, estimate, level_of_look, race
from digitcnn.records import Column, Metric
from digitcnn.report import markdown_table

# Accuracies (seeds, configs) of a study, the baseline's in the first column; NaN is a run that was not made.
Runs = NDArray[np.float64]
# A rule's verdicts on the candidates, from the runs and the number of the look at them.
Rule = Callable[[Runs, int], list[Verdict]]
# The looks that a person takes at a study: runs, number of the look, and whether all recorded runs are asked for.
Use = Callable[[Runs, Rule, np.random.Generator], Iterator[tuple[Runs, int]]]

RESULTS = Path(__file__).parents[1] / "results"
MOST_SEEDS = 60
_MEAN, _IMAGES, _LEVEL = 0.991, 10_000, 0.05
# The effect size that the mixture of the always-valid rule is centred on: small, which suits few seeds.
_PRECISION = 0.3


@dataclass(frozen=True)
class Spread:
    """The spread of real seeds: the standard deviations of published configs, and the standardized errors of runs."""

    deviations: NDArray[np.float64]
    errors: NDArray[np.float64]

    def draw(self, shifts: tuple[float, ...], generator: np.random.Generator) -> Runs:
        """Return the runs of a study: a baseline and candidates that are better by some shifts."""
        size = (MOST_SEEDS, 1 + len(shifts))
        noise = generator.choice(self.errors, size) * generator.choice(self.deviations, size[1])
        return np.asarray(np.round((_MEAN + np.array([0.0, *shifts]) + noise) * _IMAGES) / _IMAGES)


def published_spread(folder: Path = RESULTS) -> Spread:
    """Return the spread of the published configs that have at least five seeds."""
    groups: list[NDArray[np.float64]] = []
    for file, columns, metric in (
        ("confirmation_runs", [Column.CONFIG], Metric.TEST_ACCURACY),
        ("article", ["network"], Metric.TEST_ACCURACY),
        ("batch_size", ["study", "training.batch_size"], Metric.VALIDATION_ACCURACY),
    ):
        groups += [part.to_numpy() for _, part in pd.read_csv(folder / f"{file}.csv").groupby(columns)[metric]]
    errors = [(part - part.mean()) / part.std(ddof=1) * (len(part) / (len(part) - 1)) ** 0.5 for part in groups]
    return Spread(np.array([part.std(ddof=1) for part in groups]), np.concatenate(errors))


def _against_baseline(runs: Runs) -> NDArray[np.float64]:
    """Return the weights of each candidate's difference to the baseline."""
    weights = np.delete(np.eye(runs.shape[1]), 0, axis=1)
    weights[0] = -1.0
    return weights


def pooled_with_spending(runs: Runs, look: int) -> list[Verdict]:
    """Judge as digitcnn does: pooled error, simultaneous intervals, a share of the 5 % for each look."""
    found = estimate(runs, _against_baseline(runs), 1 / _IMAGES)
    bound = critical_value(found.correlation, found.freedom, level_of_look(look))
    return _verdicts(found.differences, bound * found.errors)


def _verdicts(differences: NDArray[np.float64], half: NDArray[np.float64]) -> list[Verdict]:
    """Return the verdicts on differences by their intervals, half of which is given."""
    return [decide(low, high, MARGIN) for low, high in zip(differences - half, differences + half, strict=True)]


def pooled_always_valid(runs: Runs, look: int) -> list[Verdict]:
    """Judge by always-valid t intervals: the mixture of Lindon and others (2022, arXiv:2210.08589), by Bonferroni."""
    found = estimate(runs, _against_baseline(runs), 1 / _IMAGES)
    share = _PRECISION / (_PRECISION + found.n)
    ratio = (len(found.n) / _LEVEL / np.sqrt(share)) ** (2 / (found.freedom + 1))
    room = 1 - ratio * share
    t = np.sqrt(found.freedom * np.where(room > 0, (ratio - 1) / np.where(room > 0, room, 1.0), np.inf))
    return _verdicts(found.differences, t * found.errors)


def paired_with_holm(runs: Runs, look: int) -> list[Verdict]:
    """Judge as the first edition did: paired t-tests corrected by Holm, whatever was seen before."""
    differences = runs[:, 1:] - runs[:, :1]
    n = len(differences)
    t = differences.mean(axis=0) / (np.maximum(differences.std(axis=0, ddof=1), 1 / _IMAGES) / n**0.5)
    p = 2 * stats.t.sf(np.abs(t), n - 1)
    order = np.argsort(p)
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return [
        "undecided" if each >= _LEVEL else "better" if sign > 0 else "worse"
        for each, sign in zip(corrected, t, strict=True)
    ]


def looks_at(*seeds: int) -> Use:
    """Return the use of confirming with these numbers of seeds, one after the other."""

    def use(runs: Runs, rule: Rule, generator: np.random.Generator) -> Iterator[tuple[Runs, int]]:
        yield from ((runs[:n], look) for look, n in enumerate(seeds, start=1))

    return use


def in_any_order(runs: Runs, rule: Rule, generator: np.random.Generator) -> Iterator[tuple[Runs, int]]:
    """Raise confirm.top or confirm.seeds, whichever comes to mind, and look after each step."""
    n, top, look = 3, 1, 0
    while n <= 30:
        look += 1
        yield runs[:n, : top + 1], look
        if top < runs.shape[1] - 1 and generator.random() < 0.5:
            top += 1
        else:
            n += int(generator.integers(1, 6))


def asked_again(runs: Runs, rule: Rule, generator: np.random.Generator) -> Iterator[tuple[Runs, int]]:
    """Ask for 8 seeds, then for fewer of them and fewer candidates: what is recorded counts, and is seen once."""
    if rule is not paired_with_holm:
        yield runs[:8], 1
        return
    yield from ((runs[:n, : top + 1], 1) for n in range(2, 9) for top in range(1, runs.shape[1]))


def watching(runs: Runs, rule: Rule, generator: np.random.Generator) -> Iterator[tuple[Runs, int]]:
    """Ask for 30 seeds, watch each result in MLflow, and give up for a look at those so far when they look best."""
    # Each seed of a look that was given up counts as a look.
    yield from ((runs[:n], n + 1) for n in range(3, 31))


def racing(runs: Runs, rule: Rule, generator: np.random.Generator) -> Iterator[tuple[Runs, int]]:
    """Give those that are out of the race no further seeds, as confirm does; look at 10 and 20 seeds."""
    out = race(runs[:20], 1 / _IMAGES)
    raced = np.where(np.arange(len(runs))[:, np.newaxis] < np.where(out, out, len(runs)), runs, np.nan)
    yield from ((raced[:n], look) for look, n in ((1, 10), (2, 20)))


def bought(runs: Runs, rule: Rule, generator: np.random.Generator) -> Iterator[tuple[Runs, int]]:
    """Have the seeds that the CPU time of 40 runs buys for those in the race, as confirm does, then that of 80."""
    # At least two configs are in the race.
    runs = runs[:40]
    out = race(runs, 1 / _IMAGES)
    made = np.arange(len(runs))[:, np.newaxis] < np.where(out, out, len(runs))
    made[made[:, 1:].sum(axis=1) == 0] = False
    costs = made.sum(axis=1).cumsum()
    yield from (
        (np.where(made, runs, np.nan)[: int((costs <= budget).sum())], look) for look, budget in ((1, 40), (2, 80))
    )


RULES: dict[str, Rule] = {
    "first edition: paired t, Holm": paired_with_holm,
    "pooled, always valid": pooled_always_valid,
    "pooled, alpha spending": pooled_with_spending,
}
USES: dict[str, Use] = {
    "one look at 5 seeds": looks_at(5),
    "looks at 5, 10 and 20 seeds": looks_at(5, 10, 20),
    "a look after each of 5 to 30 seeds": looks_at(*range(5, 31)),
    "top and seeds in any order": in_any_order,
    "8 recorded seeds, any question": asked_again,
    "watching, then a look at the best moment": watching,
    "racing, looks at 10 and 20 seeds": racing,
    "racing, what a budget of 40 runs buys, then 80": bought,
}


def said(
    spread: Spread, rule: Rule, use: Use, shifts: tuple[float, ...], studies: int, seed: int
) -> list[set[Verdict]]:
    """Return for each of some simulated studies what some look says of any candidate."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(studies):
        runs = spread.draw(shifts, generator)
        found.append({verdict for seen, look in use(runs, rule, generator) for verdict in rule(seen, look)})
    return found


def share(found: list[set[Verdict]], verdict: Verdict) -> float:
    """Return the share of studies in which some look came to a verdict."""
    return float(np.mean([verdict in said_of for said_of in found]))


def table(studies: int) -> str:
    """Return the simulations as Markdown: false alarms of each use, power, and errors of equivalence, by rule."""
    spread = published_spread()
    rows = []
    for name, use in USES.items():
        cells = []
        for rule in RULES.values():
            if use in (racing, bought) and rule is paired_with_holm:
                # It knows no runs that were not made.
                cells.append("")
                continue
            found = said(spread, rule, use, (0.0,) * 3, studies, seed=1)
            cells.append(f"{100 * share(found, 'better'):.1f}, {100 * share(found, 'worse'):.1f} %")
        rows.append([f"false better, worse: {name}", *cells])
    for shift, seeds in ((0.002, 5), (0.003, 5), (0.002, 8), (0.003, 8), (0.002, 20)):
        rows.append(
            [f"power: {100 * shift:.1f} points, {seeds} seeds", *_of_first(spread, shift, seeds, "better", studies)]
        )
    for seeds in (20, 40, 60):
        found_in = _of_first(spread, MARGIN, seeds, "equivalent", studies)
        rows.append([f"false equivalent: truly {100 * MARGIN:.1f} points, {seeds} seeds", *found_in])
    for seeds in (40, 60):
        rows.append(
            [f"equivalent, no difference: {seeds} seeds", *_of_first(spread, 0.0, seeds, "equivalent", studies)]
        )
    return markdown_table(["", *RULES], rows)


def _of_first(spread: Spread, shift: float, seeds: int, verdict: Verdict, studies: int) -> list[str]:
    """Return by rule how often one look comes to a verdict on the one candidate that differs from the others."""
    cells = []
    for rule in RULES.values():
        generator = np.random.default_rng(2)
        hits = [rule(spread.draw((shift, 0.0, 0.0), generator)[:seeds], 1)[0] == verdict for _ in range(studies)]
        cells.append(f"{100 * np.mean(hits):.1f} %")
    return cells
