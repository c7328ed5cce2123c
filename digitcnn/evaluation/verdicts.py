"""The verdicts of a confirmation: looks at them, the champion's rule, the words, and the champion's model card."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from digitcnn import tracking
from digitcnn.config import DataConfig
from digitcnn.errors import ConfigError
from digitcnn.evaluation.statistics import ALPHA, Accuracies, compare
from digitcnn.formatting import format_count, format_interval, format_p, format_percent, format_points
from digitcnn.records import Artifact, Column, Metric
from digitcnn.study import parameters_among

_CLAIMS = {
    "better": "{config} is better than the baseline",
    "worse": "{config} is worse than the baseline",
    "equivalent": "{config} is equivalent to the baseline within {margin}",
    "undecided": "{config} could not be shown to be better or worse than the baseline, or equivalent within {margin}",
    "diverged": "{config} diverged with seed {seed}",
}


# Of a look that was announced: its runs are on their way.
_ANNOUNCED = "announced"
_LOOKS = (
    *(Column.LOOK, Column.MARGIN, Column.CONFIG, "n", Column.DIFFERENCE, Column.P, Column.VERDICT),
    Column.CPU_BUDGET,
)


@dataclass(frozen=True)
class Looks:
    """The looks that were taken at a study: a row per look and candidate, with the number of its seeds."""

    table: pd.DataFrame

    @classmethod
    def read(cls, store: tracking.Store, study_run_id: str) -> Looks:
        """Read what is recorded of them; the first edition kept no account, and what it concluded was one look."""
        files = store.artifact_names(study_run_id)
        for name in (Artifact.CONFIRMATION_LOOKS, Artifact.CONFIRMATION):
            if name in files:
                table = pd.read_csv(io.StringIO(tracking.read_text(store, study_run_id, name)))
                return cls(table.assign(**({} if Column.LOOK in table else {Column.LOOK: 1})).reindex(columns=_LOOKS))
        return cls(pd.DataFrame(columns=_LOOKS))

    @cached_property
    def last(self) -> pd.DataFrame:
        """The rows of the last look."""
        return pd.DataFrame(self.table[self.table[Column.LOOK] == self.table[Column.LOOK].max()])

    def number(self, wanted: dict[str, int], recorded: dict[str, int], budget: float | None = None) -> int:
        """Return the number of a look at `wanted` seeds of each candidate, given those that are `recorded` by now.

        The same seeds once more are the same look, and so are those that the same `budget` buys: a number that only its
        end tells. One that was announced, begun and given up could be watched, seed by seed, and counts as a look for
        each of them.
        """
        if self.table.empty:
            return 1
        of_last = dict(zip(self.last[Column.CONFIG], self.last["n"], strict=True))
        last = int(self.last[Column.LOOK].iloc[0])
        if budget is not None and (self.last[Column.CPU_BUDGET] == budget).all():
            return last
        if budget is None and {name: n for name, n in of_last.items() if name in wanted} == wanted:
            return last
        if (self.last[Column.VERDICT] != _ANNOUNCED).all():
            return last + 1
        concluded = self.table[self.table[Column.VERDICT] != _ANNOUNCED].groupby(Column.CONFIG)["n"].max()
        return last + max(n - int(concluded.get(name, 0)) for name, n in recorded.items())

    def require_margin(self, margin: float) -> None:
        """Raise ConfigError if the study was looked at with another smallest difference of interest."""
        before = self.table[Column.MARGIN].dropna()
        if len(before) and before.iloc[0] != margin:
            raise ConfigError(
                f"confirm.margin={margin}: this study was looked at with {before.iloc[0]}; a margin is chosen before "
                "anything is seen, and stays"
            )

    def announced(self, number: int, wanted: dict[str, int], margin: float, budget: float | None = None) -> Looks:
        """Return the looks with one that is on its way, at `wanted` seeds or at those that a budget buys."""
        shared = {Column.LOOK: number, Column.MARGIN: margin, Column.VERDICT: _ANNOUNCED, Column.CPU_BUDGET: budget}
        rows = [{**shared, Column.CONFIG: name, "n": n if budget is None else None} for name, n in wanted.items()]
        return self._with(number, pd.DataFrame(rows))

    def taken(self, table: pd.DataFrame) -> Looks:
        """Return the looks with the one of a confirmation's table."""
        return self._with(int(table[Column.LOOK].iloc[0]), table[table["n"] > 0])

    def _with(self, number: int, rows: pd.DataFrame) -> Looks:
        before = self.table[self.table[Column.LOOK] != number]
        rows = rows.reindex(columns=_LOOKS)
        return Looks(rows if before.empty else pd.concat([before, rows], ignore_index=True))


def best_of(table: pd.DataFrame) -> str:
    """Return the best config: of those that are better than the baseline the one of the highest mean, or else it.

    If it breaks a constraint of the study, the one of the highest mean that was compared stands in for it.
    """
    compared = table[(table["n"] > 0) & table[Column.FEASIBLE]].sort_values("mean", ascending=False, kind="stable")
    better = compared[compared[Column.VERDICT] == "better"]
    chosen = compared if better.empty and not table[Column.FEASIBLE].iloc[0] else better
    return "baseline" if chosen.empty else str(chosen[Column.CONFIG].iloc[0])


def as_good_as(best: str, values: Accuracies, look: int, margin: float, resolution: float) -> list[str]:
    """Return the best config and those that are equivalent to it within the margin."""
    others = {name: accuracies for name, accuracies in values.items() if name != best}
    compared = compare({best: values[best], **others}, look=look, margin=margin, resolution=resolution)
    # Also one that is demonstrably worse, by less than matters.
    return [best, *(name for name, each in compared.items() if -margin < each.low and each.high < margin)]


def champion_of(table: pd.DataFrame) -> str:
    """Return the champion: the cheapest config, by CPU time, of those that are as good as the best."""
    alike = table[table[Column.AS_GOOD]].sort_values(Metric.CPU_SECONDS, kind="stable")
    return str(alike[Column.CONFIG].iloc[0])


def leading_row(table: pd.DataFrame) -> int:
    """Return the row of the champion, or of the candidate with the best mean if the baseline is that."""
    candidates = table.iloc[1:].reset_index(drop=True)
    ordered = candidates.sort_values([Column.CHAMPION, "mean"], ascending=False, na_position="last", kind="stable")
    return 1 + int(ordered.index[0])


def format_margin(margin: float) -> str:
    """Return a difference of accuracies as short as it is: 0.1 points."""
    return f"{100 * margin:.3g} points"


def format_verdict(verdict: str, margin: float, n: int, seeds_needed: float | None, seed: float | None = None) -> str:
    """Return a verdict as a table shows it; of an open one with the seeds that the margin takes."""
    if verdict == "equivalent":
        return f"equivalent within {format_margin(margin)}"
    if verdict == "diverged":
        return f"diverged with seed {seed:.0f}"
    if verdict != "undecided":
        return verdict
    if seeds_needed is None or pd.isna(seeds_needed):
        return f"undecided; no number of seeds in reach settles {format_margin(margin)}"
    if seeds_needed <= n:
        return f"undecided; the difference may be close to {format_margin(margin)}"
    return f"undecided; {format_margin(margin)} take about {seeds_needed:,.0f} seeds"


def verdict_of_row(row: pd.Series[Any]) -> str:
    """Return the verdict on a config of a confirmation as a table shows it; empty for the baseline."""
    if row[Column.CONFIG] == "baseline":
        return ""
    needed, seed, out = row[Column.SEEDS_NEEDED], row[Column.DIVERGED_SEED], row.get(Column.RACED_OUT)
    text = format_verdict(str(row[Column.VERDICT]), row[Column.MARGIN], int(row["n"]), needed, seed)
    return text if pd.isna(out) else f"{text}; no more seeds, as it was behind the best after {out}"


def format_superiority(row: pd.Series[Any]) -> str:
    """Return the probability that a config beats the baseline, with its interval: 60 % (27 to 87)."""
    names = (Column.SUPERIORITY, Column.SUPERIORITY_LOW, Column.SUPERIORITY_HIGH)
    chance, low, high = (f"{100 * row[name]:.0f}" for name in names)
    return f"{chance} % ({low} to {high})"


def verdict_sentences(table: pd.DataFrame) -> list[str]:
    """Return a sentence per config of a confirmation's table, one on the champion, and one on what verdicts rest on."""
    lines = [f"the baseline has {_mean(table.iloc[0])} of the test images right"]
    for _, row in table.iloc[1:].iterrows():
        margin, seed = format_margin(row[Column.MARGIN]), row[Column.DIVERGED_SEED]
        claim = _CLAIMS[row[Column.VERDICT]].format(config=row[Column.CONFIG], margin=margin, seed=seed)
        if row["n"] == 0:
            lines.append(f"{claim} and is left out of the comparison")
            continue
        interval = format_interval(row[Column.DIFFERENCE_LOW], row[Column.DIFFERENCE_HIGH], signed=True)
        line = (
            f"{claim}: {format_points(row[Column.DIFFERENCE])} points ({interval}), p {format_p(row[Column.P])}; "
            f"it has {_mean(row)} right, beats the baseline's run of the same seed with a probability of "
            f"{format_superiority(row)}, and is right alone on {row[Column.ONLY_CANDIDATE_RIGHT]} images, "
            f"wrong alone on {row[Column.ONLY_BASELINE_RIGHT]}"
        )
        open_end = verdict_of_row(row).partition("; ")[2]
        lines.append(f"{line}; {open_end}" if open_end else line)
    return [*lines, f"champion: {champion_sentence(table)}; it is models:/digitcnn@champion", basis_sentence(table)]


def _mean(row: pd.Series[Any]) -> str:
    interval = format_interval(row["low"], row["high"])
    return f"{format_percent(row['mean'])} % (n = {row['n']}, sd {format_percent(row['sd'])}, 95 % interval {interval})"


def champion_sentence(table: pd.DataFrame) -> str:
    """Return the champion's name and the reason for it."""
    champion, best = str(table[table[Column.CHAMPION]][Column.CONFIG].iloc[0]), best_of(table)
    if champion != best:
        equals = int(table[Column.AS_GOOD].sum())
        margin = format_margin(table[Column.MARGIN].iloc[0])
        return f"{champion}, the cheapest of {equals} that are equivalent within {margin} to the best, {best}"
    if best == "baseline":
        return "the baseline, as no candidate could be shown to be better"
    if table[table[Column.CONFIG] == best][Column.VERDICT].iloc[0] != "better":
        return f"{champion}, the best of those that keep study.constraints, which the baseline breaks"
    return f"{champion}, which is better than the baseline"


def basis_sentence(table: pd.DataFrame) -> str:
    """Return what the verdicts of a confirmation rest on: looks, candidates, seeds, and the two kinds of error."""
    compared = table.iloc[1:][table.iloc[1:]["n"] > 0]
    row = table.iloc[0]
    text = (
        f"look {row[Column.LOOK]} at this study: intervals, p and verdicts hold together for "
        f"{format_count(len(compared), 'candidate')} and all looks at a level of {100 * ALPHA:.0f} %"
    )
    if compared.empty or pd.isna(row[Column.SPREAD]):
        return text
    seeds = sorted(set(compared["n"]))
    counted = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    found, spread = (format_percent(value) for value in (compared[Column.DETECTABLE].max(), row[Column.SPREAD]))
    return (
        f"{text}; {counted} seeds find differences of {found} points and more with 80 % power, at a standard deviation "
        f"of {spread} points between seeds; between test images an accuracy has a standard error of "
        f"{format_percent(row[Column.IMAGES_ERROR])}"
    )


def model_card(study: str, data: DataConfig, seeds: Sequence[int], table: pd.DataFrame, run_id: str) -> str:
    """Return the champion's model card: its settings, its accuracy, its data, and the command that repeats its run."""
    row, baseline = table[table[Column.CHAMPION]].iloc[0], table.iloc[0]
    parameters = ", ".join(f"{key}={row[key]}" for key in parameters_among(table))
    left_out = table[table["n"] == 0]
    return "\n".join(
        [
            f"Champion of the study {study}: {row[Column.CONFIG]} ({parameters}).",
            f"Chosen: {champion_sentence(table)}.",
            f"Test accuracy {_mean(row)}; the baseline {_mean(baseline)}.",
            f"Trained on {data.train_size or 'all'} training images of {data.path}.",
            "The test set was read once per run, after the last epoch.",
            *(f"Left out: {each[Column.CONFIG]}, which {verdict_of_row(each)}." for _, each in left_out.iterrows()),
            f"Compared: {format_count(len(table) - len(left_out) - 1, 'candidate')} at look {row[Column.LOOK]}, by "
            "simultaneous intervals with seeds as blocks.",
            f"Seeds {seeds[0]} to {seeds[-1]}; this is the model of the first, chosen beforehand.",
            "Intended for grey images of one handwritten digit, prepared as MNIST was.",
            f"Reproduce: digitcnn reproduce run={run_id}, or run=champion.yaml",
        ]
    )
