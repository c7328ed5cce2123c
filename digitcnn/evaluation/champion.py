"""The champion of a confirmation: the rule that chooses it, the verdicts in words, and its model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from digitcnn.config import DataConfig
from digitcnn.evaluation.statistics import PairedComparison, compare_pairs
from digitcnn.formatting import format_interval, format_p, format_percent, format_points
from digitcnn.records import Column, Metric
from digitcnn.study import parameters_among


def champion_of(table: pd.DataFrame, values: Mapping[str, Sequence[float]], resolution: float) -> str:
    """Return the champion's name: the baseline, unless candidates are better than it.

    Of those it is the one with the least CPU time among the best and all that are not distinguishable from the best.
    `values` are the accuracies of each config in the order of the seeds, `resolution` their smallest step.
    """
    better = table[table[Column.VERDICT].str.startswith("better")].sort_values("mean", ascending=False)
    if better.empty:
        return "baseline"
    best, *others = better[Column.CONFIG]
    compared = compare_pairs([(values[name], values[best]) for name in others], resolution)
    alike = [name for name, each in zip(others, compared, strict=True) if each.verdict == "not distinguishable"]
    level = better[better[Column.CONFIG].isin([best, *alike])]
    return str(level.sort_values(Metric.CPU_SECONDS, kind="stable")[Column.CONFIG].iloc[0])


def leading_row(table: pd.DataFrame) -> int:
    """Return the row of the champion, or of the candidate with the best mean if the baseline is that."""
    candidates = table.iloc[1:].reset_index(drop=True)
    ordered = candidates.sort_values([Column.CHAMPION, "mean"], ascending=False, na_position="last", kind="stable")
    return 1 + int(ordered.index[0])


def verdict_in_words(comparison: PairedComparison) -> str:
    """Return a candidate's verdict, and of an open one the seeds that would settle it."""
    if comparison.verdict != "not distinguishable":
        return f"{comparison.verdict} than the baseline"
    if comparison.more_seeds is None:
        return "not distinguishable: more than 1,000 seeds would not settle it"
    plural = "s" if comparison.more_seeds > 1 else ""
    return f"not distinguishable: needs about {comparison.more_seeds} more seed{plural}"


def verdict_sentences(table: pd.DataFrame) -> list[str]:
    """Return a sentence per config of a confirmation's table, and one on the champion."""
    lines = []
    for _, row in table.iterrows():
        if row["n"] == 0:
            lines.append(f"{row[Column.CONFIG]}: {row[Column.VERDICT]}; it is left out of the comparison")
            continue
        line = f"{row[Column.CONFIG]}: test accuracy {_mean(row)}"
        if row[Column.CONFIG] != "baseline":
            interval = format_interval(row[Column.DIFFERENCE_LOW], row[Column.DIFFERENCE_HIGH], signed=True)
            line += (
                f"; {format_points(row[Column.DIFFERENCE])} points ({interval}), "
                f"p {format_p(row[Column.P_HOLM], 3)} (Holm); "
                f"right alone on {row[Column.ONLY_CANDIDATE_RIGHT]} images, "
                f"wrong alone on {row[Column.ONLY_BASELINE_RIGHT]} (McNemar p {format_p(row[Column.MCNEMAR_P], 3)}): "
                f"{row[Column.VERDICT]}"
            )
        lines.append(line)
    champion = str(table[table[Column.CHAMPION]][Column.CONFIG].iloc[0])
    why = "nothing was better than the baseline" if champion == "baseline" else "better than the baseline"
    return [*lines, f"champion: {champion} ({why}), registered as models:/digitcnn@champion"]


def _mean(row: pd.Series[Any]) -> str:
    interval = format_interval(row["low"], row["high"])
    return f"{format_percent(row['mean'])} % (n = {row['n']}, sd {format_percent(row['sd'])}, 95 % interval {interval})"


def model_card(study: str, data: DataConfig, seeds: Sequence[int], table: pd.DataFrame, run_id: str) -> str:
    """Return the champion's model card: its settings, its accuracy, its data, and the command that repeats its run."""
    row, baseline = table[table[Column.CHAMPION]].iloc[0], table.iloc[0]
    parameters = ", ".join(f"{key}={row[key]}" for key in parameters_among(table))
    is_baseline = row[Column.CONFIG] == "baseline"
    verdict = "no candidate was better than the baseline" if is_baseline else row[Column.VERDICT]
    left_out = table[table["n"] == 0]
    return "\n".join(
        [
            f"Champion of the study {study}: {row[Column.CONFIG]} ({parameters}).",
            f"Test accuracy {_mean(row)}; the baseline {_mean(baseline)}: {verdict}.",
            f"Trained on {data.train_size or 'all'} training images of {data.path}; the test set was",
            "read once per run, after the last epoch.",
            *(f"Left out: {each[Column.CONFIG]} {each[Column.VERDICT]}." for _, each in left_out.iterrows()),
            f"{len(table) - len(left_out) - 1} candidates, paired t-tests corrected by Holm,",
            f"seeds {seeds[0]} to {seeds[-1]}; this is the model of the first, chosen beforehand.",
            "Intended for grey images of one handwritten digit, prepared as MNIST was.",
            f"Reproduce: digitcnn reproduce run={run_id}, or run=THIS_FILE",
        ]
    )
