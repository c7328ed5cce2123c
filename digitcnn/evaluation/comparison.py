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
from digitcnn.errors import MachineError
from digitcnn.evaluation.champion import champion_of, verdict_in_words
from digitcnn.evaluation.statistics import compare_pairs, mcnemar, summarize
from digitcnn.formatting import named_null
from digitcnn.records import Column, Metric

# The columns of counts, which may be empty.
_COUNTS = (Column.ONLY_CANDIDATE_RIGHT, Column.ONLY_BASELINE_RIGHT, Metric.PARAMETERS)
# The columns that compare a candidate with the baseline: empty for the baseline itself.
_COMPARED = (
    Column.DIFFERENCE,
    Column.DIFFERENCE_LOW,
    Column.DIFFERENCE_HIGH,
    "p",
    Column.P_HOLM,
    *_COUNTS[:2],
    Column.MCNEMAR_P,
)


@dataclass(frozen=True)
class Candidate:
    """A config that is confirmed: the baseline or a trial, under the name that tables give it."""

    name: str
    trial: int
    parameters: dict[str, Any]
    config: RunConfig


@dataclass(frozen=True)
class RecordedRuns:
    """The recorded part of a confirmation: run ids by candidate and seed, and the seed with which one diverged."""

    runs: dict[tuple[str, int], str]
    diverged: dict[str, int]

    def missing(self, candidates: Sequence[Candidate], seeds: Sequence[int]) -> list[tuple[Candidate, int]]:
        """Return the candidates and seeds to train, in that order; none of a candidate that diverged.

        A candidate that diverged with one seed cannot be compared, whatever its others do.
        """
        return [
            (candidate, seed)
            for seed in seeds
            for candidate in candidates
            if candidate.name not in self.diverged and (candidate.name, seed) not in self.runs
        ]

    def require_baseline(self) -> None:
        """Raise MachineError if the baseline diverged."""
        if "baseline" in self.diverged:
            seed = self.diverged["baseline"]
            raise MachineError(f"the baseline diverged with seed {seed}: there is nothing to compare the others with")


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
                {
                    Column.CONFIG: candidate.name,
                    Column.TRIAL: candidate.trial,
                    Column.SEED: seed,
                    Column.RUN_ID: run_id,
                    **measured,
                }
            )
            sizes[candidate.name] = int(metrics[Metric.PARAMETERS])
            predicted = tracking.read_predictions(store, run_id)
            of_images.append((predicted[Column.PREDICTED] == predicted[Column.LABEL]).to_numpy())
        right[candidate.name] = np.array(of_images)
    runs = pd.DataFrame(rows)
    by_config = runs.groupby(Column.CONFIG, sort=False)
    values = {str(name): group.tolist() for name, group in by_config[Metric.TEST_ACCURACY]}
    seconds = by_config[Metric.CPU_SECONDS].mean()
    # No smaller difference than one image can be seen.
    resolution = 1 / right["baseline"].shape[1]
    pairs = [(values[each.name], values["baseline"]) for each in compared[1:]]
    comparisons = dict(zip([each.name for each in compared[1:]], compare_pairs(pairs, resolution), strict=True))
    table_rows = []
    for candidate in candidates:
        name = candidate.name
        parameters = {key: named_null(value) for key, value in candidate.parameters.items()}
        row = {Column.CONFIG: name, Column.TRIAL: candidate.trial, **parameters}
        if name in diverged:
            table_rows.append(row | {"n": 0, Column.VERDICT: f"diverged with seed {diverged[name]}"})
            continue
        row |= vars(summarize(values[name])) | dict.fromkeys(_COMPARED, math.nan)
        comparison = comparisons.get(name)
        if comparison is not None:
            images = mcnemar(right[name], right["baseline"])
            difference = comparison.difference
            row |= {
                Column.DIFFERENCE: difference.mean,
                Column.DIFFERENCE_LOW: difference.low,
                Column.DIFFERENCE_HIGH: difference.high,
            }
            row |= {"p": comparison.p, Column.P_HOLM: comparison.p_holm, Column.MCNEMAR_P: images.p}
            row |= {key: getattr(images, key) for key in _COUNTS[:2]}
        row |= {Metric.CPU_SECONDS: float(seconds[name]), Metric.PARAMETERS: sizes[name]}
        table_rows.append(row | {Column.VERDICT: "" if comparison is None else verdict_in_words(comparison)})
    table = pd.DataFrame(table_rows).astype(dict.fromkeys(_COUNTS, "Int64"))
    table[Column.CHAMPION] = table[Column.CONFIG] == champion_of(table, values, resolution)
    return table, runs


def read_confirmation(file: Path | TextIO) -> pd.DataFrame:
    """Read a confirmation's table from its CSV."""
    table = pd.read_csv(file, float_precision="round_trip").fillna({Column.VERDICT: ""})
    return table.astype(dict.fromkeys(_COUNTS, "Int64"))
