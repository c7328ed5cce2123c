"""The leaderboard: a study's trials as a ranked table, and its cells as text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import optuna
import pandas as pd
from numpy.typing import NDArray
from optuna.study._multi_objective import _calculate_nondomination_rank
from optuna.trial import FrozenTrial, TrialState

from digitcnn.config import RunConfig
from digitcnn.formatting import format_percent, format_points, named_null
from digitcnn.records import Column, Metric, TrialRecord
from digitcnn.study.trials import broken, parameters_of, read_trial, signed_values


def rank_trials(study: optuna.Study) -> pd.DataFrame:
    """Return a row per trial that has begun: rank, parameters, objectives, accuracy, cost, epochs, state, run id, note.

    With study.seeds the values are means, and a row has the number of seeds and the objective's standard deviation.
    Completed trials are ranked by the objective; with several objectives the rank is the number of the Pareto front.
    Equals are in the order of `best_first`. Others follow without a rank: those that break a constraint, which are
    called infeasible, and those that were pruned, by what they had reached.
    """
    names = study.metric_names or ["value"]
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]
    completed = [each for each in trials if each.state == TrialState.COMPLETE and not broken(each.constraints)]
    ranks = _ranks([signed_values(study, trial.values) for trial in completed])
    rank_of = {trial.number: rank for trial, rank in zip(completed, ranks, strict=True)}
    rows = [_row(trial, rank_of.get(trial.number), names) for trial in trials]
    last = [math.inf] * len(names)

    def order(row: dict[str, Any]) -> tuple[float, list[float], int]:
        values = [row[name] for name in names]
        return row[Column.RANK] or math.inf, last if None in values else signed_values(study, values), row[Column.TRIAL]

    rows.sort(key=order)
    table = pd.DataFrame(rows)
    if Column.SEEDS in table and table[Column.SEEDS].isna().all():
        table = table.drop(columns=[Column.SEEDS, Column.SEEDS_SD])
    if Column.RANK in table:
        table[Column.RANK] = table[Column.RANK].astype("Int64")
    return table


def _row(trial: FrozenTrial, rank: int | None, names: Sequence[str]) -> dict[str, Any]:
    record = read_trial(trial)
    # Of a pruned trial Optuna's value is the last that its pruner saw, not what the objective had reached.
    reached = [record.reached.get(name) for name in names] if record.reached else None
    values = reached or trial.values or [None] * len(names)
    return {
        Column.RANK: rank,
        Column.TRIAL: trial.number,
        **{name: named_null(value) for name, value in parameters_of(trial).items()},
        Metric.VALIDATION_ACCURACY: record.validation_accuracy,
        Metric.CPU_SECONDS: record.cpu_seconds,
        # Earlier versions knew no other.
        Metric.CPU_SPENT: record.cpu_seconds if record.cpu_spent is None else record.cpu_spent,
        **dict(zip(names, values, strict=True)),
        Column.SEEDS: record.seeds,
        Column.SEEDS_SD: record.seeds_sd,
        Column.EPOCHS_RUN: record.epochs_run,
        Column.STATE: _state(record, trial),
        Column.RUN_ID: record.run_id,
        Column.NOTE: _note(record, trial),
    }


def _state(record: TrialRecord, trial: FrozenTrial) -> str:
    if broken(trial.constraints):
        return "infeasible"
    if trial.state != TrialState.FAIL:
        return trial.state.name.lower()
    # Optuna has one state for both: a lost trial is tried again under another number.
    return "failed" if record.failure else "lost"


def _note(record: TrialRecord, trial: FrozenTrial) -> str:
    notes = [
        "baseline" if record.baseline else "",
        "" if record.same_as is None else f"same parameters as trial {record.same_as}, not trained again",
        f"from {record.taken_from}" if record.taken_from else "",
        "" if record.prefix_of is None else f"the first epochs of trial {record.prefix_of}, not trained again",
        "" if record.epochs_before is None else _continued(record),
        "" if record.repeats is None else f"repeats trial {record.repeats}",
        # A trial whose worker died before it could end it has the number too.
        f"judged in epoch {record.epochs_run} against {record.pruned_against} values"
        if record.pruned_against is not None and trial.state == TrialState.PRUNED
        else "",
        *(f"{value:,.4g} beyond {name}" for name, value in broken(trial.constraints).items()),
        "not trained" if broken(trial.constraints) and record.epochs_run is None else "",
        record.lost or "",
        record.failure or "",
    ]
    return "; ".join(note for note in notes if note)


def _continued(record: TrialRecord) -> str:
    of = "an earlier run" if record.continues is None else f"trial {record.continues}"
    return f"goes on after epoch {record.epochs_before} of {of}"


def _ranks(points: list[list[float]]) -> list[int]:
    """Return ranks from 1 of points of which smaller is better: equal values share one; several have their front's."""
    if not points:
        return []
    values = np.array(points)
    if values.shape[1] == 1:
        return [int(rank) for rank in 1 + np.searchsorted(np.sort(values[:, 0]), values[:, 0])]
    return [int(rank) for rank in pareto_ranks(values)]


def pareto_ranks(points: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the number of each point's Pareto front, from 1, for points (n, at least 2 objectives), smaller better.

    A point dominates another that is nowhere better and somewhere worse; the first front is dominated by none, the
    next by the first alone. Equal points share a front.
    """
    return 1 + _calculate_nondomination_rank(points)


def best_against_baseline(table: pd.DataFrame, objectives: Sequence[str]) -> str:
    """Return one line: the first-ranked trial's first objective beside the baseline's. A comparison, not a finding."""
    completed = table[table[Column.STATE] == "complete"] if len(table) else table
    if completed.empty:
        broke = int((table[Column.STATE] == "infeasible").sum()) if len(table) else 0
        return f"no trial has completed{f' that keeps study.constraints; {broke} broke them' if broke else ''}"
    name = objectives[0]
    best = completed.iloc[0]
    text = f"best: trial {best[Column.TRIAL]}, {name} {format_cell(name, best[name])}"
    baseline = table[table[Column.STATE].isin(("complete", "infeasible")) & table[name].notna()]
    baseline = baseline[baseline[Column.NOTE].str.startswith("baseline")]
    if baseline.empty:
        return f"{text}; the baseline has not completed"
    of_baseline = float(baseline.iloc[0][name])
    difference = best[name] - of_baseline
    in_words = f"{format_points(difference)} points" if name.endswith("accuracy") else f"{difference:+.4g}"
    number = baseline.iloc[0][Column.TRIAL]
    infeasible = ", infeasible" if baseline.iloc[0][Column.STATE] == "infeasible" else ""
    return (
        f"{text}; baseline: trial {number}, {format_cell(name, of_baseline)} (difference {in_words}, "
        f"{_seeds_in_words(name, best, baseline.iloc[0])}{infeasible})"
    )


def _seeds_in_words(name: str, best: pd.Series[Any], baseline: pd.Series[Any]) -> str:
    """Return what a difference rests on: one run or some seeds each; its standard error if both have several."""
    if Column.SEEDS not in best:
        return "one run each"
    numbers = f"{best[Column.SEEDS]:.0f} and {baseline[Column.SEEDS]:.0f} seeds"
    if min(best[Column.SEEDS], baseline[Column.SEEDS]) < 2:
        return numbers
    error = math.hypot(*(float(row[Column.SEEDS_SD]) / float(row[Column.SEEDS]) ** 0.5 for row in (best, baseline)))
    shown = format_percent(error) if name.endswith("accuracy") else f"{error:.2g}"
    return f"standard error {shown}, {numbers}"


def epochs_in_words(study: optuna.Study) -> str:
    """Return how many epochs were trained, and how many were there from other trials."""
    trained = saved = 0
    for trial in study.get_trials(deepcopy=False):
        record = read_trial(trial)
        seeds, run, whole = (
            record.seeds or 1,
            record.epochs_run or 0,
            (record.same_as, record.prefix_of, record.taken_from) != (None,) * 3,
        )
        before = run if whole else record.epochs_before or 0
        trained += seeds * (run - before)
        # What an attempt of the same trial had trained is not saved.
        saved += seeds * before if whole or record.continues != record.repeats else 0
    return f"epochs: {trained:,} trained" + (f", {saved:,} taken from other trials" if saved else "")


def frequent_failure(study: optuna.Study) -> str:
    """Return the most frequent cause of trials that failed or were lost, and their number; empty if there are none."""
    trials = [read_trial(trial) for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.FAIL]
    causes = Counter(trial.failure or trial.lost for trial in trials if trial.failure or trial.lost).most_common(1)
    return f"{causes[0][0]} ({causes[0][1]} of {len(trials)} that failed)" if causes else ""


def best_trial_number(table: pd.DataFrame) -> int | None:
    """Return the number of the best completed trial; None before there is one."""
    return _first(table[table[Column.STATE] == "complete"]) if len(table) else None


def baseline_trial_number(table: pd.DataFrame) -> int | None:
    """Return the number of the baseline's trial, the last one if it was repeated; None before there is one."""
    if table.empty:
        return None
    return _first(table[table[Column.NOTE].str.startswith("baseline")].sort_values(Column.TRIAL, ascending=False))


def _first(rows: pd.DataFrame) -> int | None:
    return None if rows.empty else int(rows[Column.TRIAL].iloc[0])


def format_cell(column: str, value: Any) -> str:
    """Return a value of the table as text: accuracies in percent, a run by the beginning of its id."""
    if value is None or pd.isna(value):
        return ""
    if column.endswith("accuracy"):
        return f"{format_percent(value)} %"
    if column == Column.SEEDS:
        return f"{value:.0f}"
    if column == Column.RUN_ID:
        return str(value)[:8]
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else f"{value:.4g}"
    return str(value)


def column_heading(column: str) -> str:
    """Return the name of a column in words; a parameter's is its config key."""
    return _HEADINGS.get(column, column if "." in column else column.replace("_", " "))


def parameter_in_words(parameter: str) -> str:
    """Return a parameter's last name in words: `model.conv1_filters` is conv1 filters."""
    return parameter.rpartition(".")[2].replace("_", " ")


def differences_in_words(config: RunConfig, baseline: RunConfig) -> str:
    """Return what a config's network, training and images differ in from a baseline's: batch 125, 32-128, 9 ep."""
    values, before = config.parameters(), baseline.parameters()
    differing = [
        name
        for name, value in values.items()
        if value != before.get(name)
        and name.startswith(("model.", "training.", "augmentation."))
        and name != "training.threads"
    ]
    # A block without filters is none.
    words = {name: f"{parameter_in_words(name)} {named_null(values[name])}" for name in differing}
    filters = "-".join(str(value) for name, value in values.items() if name.endswith(_FILTERS) and value)
    short = {_BATCH: f"batch {values[_BATCH]}", _FILTERS: filters, _EPOCHS: f"{values[_EPOCHS]} ep"}
    named = [text for name, text in short.items() if any(each.endswith(name) for each in differing)]
    return ", ".join([*named, *(text for name, text in words.items() if not name.endswith(tuple(short)))])


def parameters_among(columns: Iterable[Any]) -> list[str]:
    """Return the columns that are parameters, which have dotted names."""
    return [str(column) for column in columns if "." in str(column)]


_BATCH, _FILTERS, _EPOCHS = "training.batch_size", "_filters", "training.epochs"
_HEADINGS = {
    Metric.CPU_SECONDS: "CPU s",
    Metric.CPU_SPENT: "spent s",
    Column.SEEDS_SD: "sd",
    Column.RUN_ID: "run",
    Metric.VALIDATION_ACCURACY: "val. accuracy",
}
