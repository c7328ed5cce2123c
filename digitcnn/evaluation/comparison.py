"""The comparison of a confirmation's runs: a table of configs with verdicts, and a table of runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from digitcnn import tracking
from digitcnn.config import RunConfig
from digitcnn.evaluation.champion import champion_of, verdict_in_words
from digitcnn.evaluation.statistics import compare_pairs, mcnemar, summarize
from digitcnn.records import Metric

# The columns of counts, which may be empty.
_COUNTS = ("only_candidate_right", "only_baseline_right", Metric.PARAMETERS)
# The columns that compare a candidate with the baseline: empty for the baseline itself.
_COMPARED = ("difference", "difference_low", "difference_high", "p", "p_holm", *_COUNTS[:2], "mcnemar_p")


@dataclass(frozen=True)
class Candidate:
    """A config that is confirmed: the baseline or a trial, under the name that tables give it."""

    name: str
    trial: int
    parameters: dict[str, Any]
    config: RunConfig


def compare_candidates(
    candidates: Sequence[Candidate],
    store: tracking.Store,
    recorded: Mapping[tuple[str, int], str],
    diverged: Mapping[str, int],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a row per candidate, baseline first, and a row per run that was compared.

    `recorded` holds the run ids by candidate and seed, `diverged` the seed with which a candidate has no result: its
    other seeds alone would flatter it, so that its row has n = 0 and says only that.
    """
    compared = [each for each in candidates if each.name not in diverged]
    rows, right, sizes = [], {}, {}
    for candidate in compared:
        of_images: list[NDArray[np.bool_]] = []
        for seed, run_id in sorted(
            (seed, run_id) for (name, seed), run_id in recorded.items() if name == candidate.name
        ):
            metrics = store.client.get_run(run_id).data.metrics
            measured = {key: metrics[key] for key in (Metric.TEST_ACCURACY, Metric.TEST_LOSS, Metric.CPU_SECONDS)}
            rows.append(
                {"config": candidate.name, "trial": candidate.trial, "seed": seed, "run_id": run_id, **measured}
            )
            sizes[candidate.name] = int(metrics[Metric.PARAMETERS])
            predicted = tracking.read_predictions(store, run_id)
            of_images.append((predicted["predicted"] == predicted["label"]).to_numpy())
        right[candidate.name] = np.array(of_images)
    runs = pd.DataFrame(rows)
    by_config = runs.groupby("config", sort=False)
    values = {str(name): group.tolist() for name, group in by_config[Metric.TEST_ACCURACY]}
    seconds = by_config[Metric.CPU_SECONDS].mean()
    # No smaller difference than one image can be seen.
    resolution = 1 / right["baseline"].shape[1]
    pairs = [(values[each.name], values["baseline"]) for each in compared[1:]]
    comparisons = dict(zip([each.name for each in compared[1:]], compare_pairs(pairs, resolution), strict=True))
    table_rows = []
    for candidate in candidates:
        name = candidate.name
        row = {"config": name, "trial": candidate.trial, **candidate.parameters}
        if name in diverged:
            table_rows.append(row | {"n": 0, "verdict": f"diverged with seed {diverged[name]}"})
            continue
        row |= vars(summarize(values[name])) | dict.fromkeys(_COMPARED, math.nan)
        comparison = comparisons.get(name)
        if comparison is not None:
            images = mcnemar(right[name], right["baseline"])
            difference = comparison.difference
            row |= {"difference": difference.mean, "difference_low": difference.low, "difference_high": difference.high}
            row |= {"p": comparison.p, "p_holm": comparison.p_holm, "mcnemar_p": images.p}
            row |= {key: getattr(images, key) for key in _COUNTS[:2]}
        row |= {Metric.CPU_SECONDS: float(seconds[name]), Metric.PARAMETERS: sizes[name]}
        table_rows.append(row | {"verdict": "" if comparison is None else verdict_in_words(comparison)})
    table = pd.DataFrame(table_rows).astype(dict.fromkeys(_COUNTS, "Int64"))
    table["champion"] = table["config"] == champion_of(table, values, resolution)
    return table, runs


def read_confirmation(file: Path | TextIO) -> pd.DataFrame:
    """Read a confirmation's table from its CSV."""
    table = pd.read_csv(file, float_precision="round_trip").fillna({"verdict": ""})
    return table.astype(dict.fromkeys(_COUNTS, "Int64"))
