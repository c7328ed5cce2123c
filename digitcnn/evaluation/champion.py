"""What the runs of a confirmation say: a table with verdicts, the champion, its model card, and sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd

from digitcnn import tracking
from digitcnn.config import RunConfig
from digitcnn.evaluation import statistics
from digitcnn.formatting import format_interval, format_p, format_percent, format_points
from digitcnn.records import Metric

# The columns of a confirmation's table that are counts, and may be empty.
COUNTS = ("only_candidate_right", "only_baseline_right", Metric.PARAMETERS)
# Those that compare a candidate with the baseline: empty for the baseline itself.
_COMPARED = ("difference", "difference_low", "difference_high", "p", "p_holm", *COUNTS[:2], "mcnemar_p")


@dataclass(frozen=True)
class Candidate:
    """A config that is confirmed: the baseline or a trial, under the name that tables give it."""

    name: str
    trial: int
    parameters: dict[str, Any]
    config: RunConfig


def confirmation_tables(
    contenders: Sequence[Candidate],
    store: tracking.Store,
    recorded: Mapping[tuple[str, int], str],
    diverged: Mapping[str, int],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A row per config, baseline first, and a row per run that was compared.

    `recorded` holds the run ids by config and seed, `diverged` the seed with which a candidate has no result: its
    other seeds alone would flatter it, so that its row has n = 0 and says only that.
    """
    rows = []
    right: dict[str, list[np.ndarray[Any, np.dtype[np.bool_]]]] = {}
    sizes: dict[str, int] = {}
    compared_runs = {key: run_id for key, run_id in recorded.items() if key[0] not in diverged}
    for (name, seed), run_id in compared_runs.items():
        metrics = store.client.get_run(run_id).data.metrics
        rows.append(
            {"config": name, "seed": seed, "run_id": run_id}
            | {key: metrics[key] for key in (Metric.TEST_ACCURACY, Metric.TEST_LOSS, Metric.CPU_SECONDS)}
        )
        sizes[name] = int(metrics[Metric.PARAMETERS])
        table = tracking.read_predictions(store, run_id)
        right.setdefault(name, []).append((table["predicted"] == table["label"]).to_numpy())
    runs_table = pd.DataFrame(rows)
    trials = {contender.name: contender.trial for contender in contenders}
    runs_table.insert(1, "trial", runs_table["config"].map(trials))
    order = {contender.name: place for place, contender in enumerate(contenders)}
    runs_table = runs_table.sort_values(
        ["config", "seed"], key=lambda column: column.map(order) if column.name == "config" else column
    ).reset_index(drop=True)
    values = {name: group[Metric.TEST_ACCURACY].tolist() for name, group in runs_table.groupby("config", sort=False)}
    names = [contender.name for contender in contenders[1:] if contender.name not in diverged]
    resolution = 1 / len(right["baseline"][0])
    compared = statistics.compare_to_baseline(values["baseline"], [values[name] for name in names], resolution)
    comparisons = dict(zip(names, compared, strict=True))
    costs = runs_table.groupby("config")[Metric.CPU_SECONDS].mean()
    table_rows = []
    for contender in contenders:
        row = {"config": contender.name, "trial": contender.trial, **contender.parameters}
        if contender.name in diverged:
            table_rows.append(row | {"n": 0, "verdict": f"diverged with seed {diverged[contender.name]}"})
            continue
        row |= vars(statistics.summarize(values[contender.name])) | dict.fromkeys(_COMPARED, math.nan)
        comparison = comparisons.get(contender.name)
        if comparison is not None:
            images = statistics.mcnemar(np.array(right[contender.name]), np.array(right["baseline"]))
            row |= {
                "difference": comparison.difference.mean,
                "difference_low": comparison.difference.low,
                "difference_high": comparison.difference.high,
                "p": comparison.p,
                "p_holm": comparison.p_holm,
                "only_candidate_right": images.only_candidate_right,
                "only_baseline_right": images.only_baseline_right,
                "mcnemar_p": images.p,
            }
        row |= {
            Metric.CPU_SECONDS: float(costs[contender.name]),
            Metric.PARAMETERS: sizes[contender.name],
            "verdict": "" if comparison is None else statistics.verdict_in_words(comparison),
        }
        table_rows.append(row)
    table = pd.DataFrame(table_rows)
    table = table.astype(dict.fromkeys(COUNTS, "Int64"))
    table["champion"] = table["config"] == _champion(table, values, resolution)
    return table, runs_table


def _champion(table: pd.DataFrame, values: dict[Any, list[float]], resolution: float) -> str:
    """The baseline, unless a candidate is better; then the cheapest of those that the best cannot be told from."""
    better = table[table["verdict"].str.startswith("better")]
    if better.empty:
        return "baseline"
    best = better.sort_values("mean", ascending=False).iloc[0]["config"]
    names = [name for name in better["config"] if name != best]
    compared = statistics.compare_to_baseline(values[best], [values[name] for name in names], resolution)
    alike = [name for name, each in zip(names, compared, strict=True) if each.verdict == "not distinguishable"]
    level = better[better["config"].isin([best, *alike])]
    return str(level.sort_values(Metric.CPU_SECONDS).iloc[0]["config"])


def read_confirmation(file: Path | TextIO) -> pd.DataFrame:
    """The table of a confirmation from its CSV."""
    table = pd.read_csv(file, float_precision="round_trip").fillna({"verdict": ""})
    return table.astype(dict.fromkeys(COUNTS, "Int64"))


def leading_row(table: pd.DataFrame) -> int:
    """The row of the candidate to speak of: the champion, or the one with the best mean if the baseline is that."""
    candidates = table.iloc[1:].reset_index(drop=True)
    ordered = candidates.sort_values(["champion", "mean"], ascending=False, na_position="last", kind="stable")
    return 1 + int(ordered.index[0])


def model_card(
    study: str, contenders: Sequence[Candidate], seeds: Sequence[int], table: pd.DataFrame, name: str, run_id: str
) -> str:
    """The model card: what the model is, how it was found, how good it is, and how it is made again."""
    row = table[table["config"] == name].iloc[0]
    baseline = table.iloc[0]
    parameters = ", ".join(f"{key}={row[key]}" for key in contenders[0].parameters)
    found = "no candidate was better than the baseline" if name == "baseline" else row["verdict"]
    data_config = contenders[0].config.data
    left_out = table[table["n"] == 0]
    diverged = [
        f"Left out: {config} {verdict}."
        for config, verdict in zip(left_out["config"], left_out["verdict"], strict=True)
    ]
    return "\n".join(
        [
            f"Champion of the study {study}: {name} ({parameters}).",
            f"Test accuracy {_interval(row)}; the baseline {_interval(baseline)}: {found}.",
            f"Trained on {data_config.train_size or 'all'} training images of {data_config.path}; the test set was",
            "read once per run, after the last epoch.",
            *diverged,
            f"{len(table) - len(left_out) - 1} candidates, paired t-tests corrected by Holm,",
            f"seeds {seeds[0]} to {seeds[-1]}; this is the model of the first, chosen beforehand.",
            "Intended for grey images of one handwritten digit, prepared as MNIST was.",
            f"Reproduce: digitcnn reproduce run={run_id}, or run=THIS_FILE",
        ]
    )


def _interval(row: pd.Series[Any]) -> str:
    interval = format_interval(row["low"], row["high"])
    return f"{format_percent(row['mean'])} % (n = {row['n']}, sd {format_percent(row['sd'])}, 95 % interval {interval})"


def verdict_sentences(table: pd.DataFrame) -> list[str]:
    """What was found, a line per config and one on the champion."""
    lines = []
    for _, row in table.iterrows():
        if row["n"] == 0:
            lines.append(f"{row['config']}: {row['verdict']}; it is left out of the comparison")
            continue
        line = f"{row['config']}: test accuracy {_interval(row)}"
        if row["config"] != "baseline":
            interval = format_interval(row["difference_low"], row["difference_high"], signed=True)
            line += (
                f"; {format_points(row['difference'])} points ({interval}), p {format_p(row['p_holm'], 3)} (Holm); "
                f"right alone on {row['only_candidate_right']} images, wrong alone on {row['only_baseline_right']} "
                f"(McNemar p {format_p(row['mcnemar_p'], 3)}): {row['verdict']}"
            )
        lines.append(line)
    champion = str(table[table["champion"]]["config"].iloc[0])
    why = "nothing was better than the baseline" if champion == "baseline" else "better than the baseline"
    lines.append(f"champion: {champion} ({why}), registered as models:/digitcnn@champion")
    return lines
