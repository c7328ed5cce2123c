"""What a study found: its leaderboard as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from digitcnn.study import parameters_of

_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def ranked(study: optuna.Study) -> pd.DataFrame:
    """A row per trial that has begun: rank, parameters, objectives, accuracy, cost, epochs, state, run id, note.

    Completed trials are ranked by the objective; with several objectives the rank is the number of the Pareto
    front. Pruned trials follow in the order of what they had reached when they were ended, without a rank.
    """
    names = study.metric_names or ["value"]
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]
    signs = [1 if direction == optuna.study.StudyDirection.MAXIMIZE else -1 for direction in study.directions]
    completed = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    ranks = _ranks([[sign * value for sign, value in zip(signs, trial.values, strict=True)] for trial in completed])
    rank_of = {trial.number: rank for trial, rank in zip(completed, ranks, strict=True)}
    rows = [_row(trial, rank_of.get(trial.number), names) for trial in trials]
    rows.sort(key=lambda row: (row["rank"] is None, row["rank"] or 0, *_worth(row, names, signs), row["trial"]))
    table = pd.DataFrame(rows)
    if "rank" in table:
        table["rank"] = table["rank"].astype("Int64")
    return table


def _row(trial: FrozenTrial, rank: int | None, names: Sequence[str]) -> dict[str, Any]:
    attributes = trial.user_attrs
    values = trial.values or [attributes.get("reached", {}).get(name) for name in names]
    return {
        "rank": rank,
        "trial": trial.number,
        **parameters_of(trial),
        **{name: attributes.get(name) for name in ("validation_accuracy", "cpu_seconds")},
        **dict(zip(names, values, strict=True)),
        "epochs_run": attributes.get("epochs_run"),
        "state": _STATES[trial.state],
        "run_id": attributes.get("run_id"),
        "note": _note(attributes),
    }


def _note(attributes: dict[str, Any]) -> str:
    notes = ["baseline"] if attributes.get("baseline") else []
    if "same_as" in attributes:
        notes.append(f"same parameters as trial {attributes['same_as']}, not trained again")
    if "repeats" in attributes:
        notes.append(f"repeats trial {attributes['repeats']}")
    notes += [str(attributes[key]) for key in ("lost", "failure") if key in attributes]
    return "; ".join(notes)


def _worth(row: dict[str, Any], names: Sequence[str], signs: Sequence[int]) -> list[float]:
    worst = float("inf")
    return [worst if row[name] is None else -sign * row[name] for name, sign in zip(names, signs, strict=True)]


def _ranks(points: list[list[float]]) -> list[int]:
    """Ranks from 1 of points of which larger is better: equal values share one, fronts are peeled off one by one."""
    if points and len(points[0]) == 1:
        return [1 + sum(other[0] > point[0] for other in points) for point in points]
    ranks = [0] * len(points)
    left, front = set(range(len(points))), 1
    while left:
        best = {i for i in left if not any(_dominates(points[j], points[i]) for j in left)}
        for index in best:
            ranks[index] = front
        left, front = left - best, front + 1
    return ranks


def _dominates(one: list[float], other: list[float]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


def best_against_baseline(table: pd.DataFrame, objectives: Sequence[str]) -> str:
    """One line: the first-ranked trial's first objective beside the baseline's. A comparison, not yet a finding."""
    completed = table[table["state"] == "complete"] if len(table) else table
    if completed.empty:
        return "no trial has completed"
    name = objectives[0]
    best = completed.iloc[0]
    text = f"best: trial {best['trial']}, {name} {best[name]:.4f}"
    baseline = completed[completed["note"].str.startswith("baseline")]
    if baseline.empty:
        return f"{text}; the baseline has not completed"
    of_baseline = float(baseline.iloc[0][name])
    difference = f"difference {best[name] - of_baseline:+.4f}, one run each"
    return f"{text}; baseline: trial {baseline.iloc[0]['trial']}, {of_baseline:.4f} ({difference})"
