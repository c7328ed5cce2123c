"""Recorded studies and runs as tables: listed, runs side by side, and a study at work."""

from __future__ import annotations

import difflib
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from digitcnn import evaluation, study, tracking
from digitcnn.config import DiffConfig, ReportConfig, RunsConfig, StudyReference, TrackingConfig
from digitcnn.errors import ConfigError
from digitcnn.files import size_of
from digitcnn.formatting import format_bytes, format_count, format_duration
from digitcnn.records import Column, Metric, Tag, is_maximized
from digitcnn.report import text
from digitcnn.report.record import GONE, StudyRecord, read_study, with_known_flags

_TAGS = {Tag.ENGINE, Tag.CPU, Tag.FLAGS, Tag.GIT_COMMIT, Tag.GIT_DIRTY, Tag.DATA_SHA256, Tag.WEIGHTS_SHA256}
# Of a list of runs, beside the parameters that differ between them.
_MEASURED = (Metric.VALIDATION_ACCURACY, Metric.TEST_ACCURACY, Metric.CPU_SECONDS)
_ABOUT = ("name", "status", Tag.STUDY, "began", Column.NOTE)
_TIME = "%Y-%m-%d %H:%M"


def list_studies(config: TrackingConfig) -> pd.DataFrame:
    """Return a row per recorded study, the last used first: trials, best value, confirming runs, size, last use."""
    with tracking.store_errors(config), study.storage_errors(config.folder):
        store = tracking.open_recorded(config, f"tracking.root={config.root}")
        of_study = defaultdict(list)
        for run in tracking.search_runs(store, f"tags.{Tag.STUDY} like '%'"):
            of_study[run.data.tags[Tag.STUDY]].append(run)
        rows = []
        for opened in study.recorded_studies(config.folder):
            name, runs = opened.study_name, of_study[opened.study_name]
            files = tracking.run_folders(store, config.folder, runs)
            used = max((run.info.end_time or run.info.start_time for run in runs), default=0)
            size = format_bytes(sum(map(size_of, [*files, *config.study_folders(name)])))
            rows.append((used, name, _trials(opened, runs), _best(opened), _confirmed(runs), size, _date(used)))
    rows.sort(key=lambda row: -row[0])
    names = [Tag.STUDY, "trials", "best", "confirmed", "size", "last used"]
    return pd.DataFrame([row[1:] for row in rows], columns=names)


def _trials(opened: study.OpenStudy, runs: Sequence[Any]) -> str:
    own: dict[str, str] = next(
        (run.data.params | run.data.tags for run in runs if run.info.run_id == opened.parent_run_id), {}
    )
    finished = study.count_finished(opened, own.get(Tag.STUDY_SAMPLER, ""))
    return f"{finished} of {own.get(Tag.STUDY_TRIALS, '?')}"


def _best(opened: study.OpenStudy) -> str:
    best, names = study.best_trial(opened), opened.metric_names or ["value"]
    if best is None or not best.values:
        return ""
    return f"trial {best.number}: {names[0]} {study.format_cell(names[0], best.values[0])}"


def _confirmed(runs: Sequence[Any]) -> str:
    configs = [
        run.data.tags[Tag.CONFIRMS] for run in runs if Tag.CONFIRMS in run.data.tags and run.info.status == "FINISHED"
    ]
    return f"{format_count(len(configs), 'run')} of {format_count(len(set(configs)), 'config')}" if configs else ""


def _date(milliseconds: int) -> str:
    return time.strftime(_TIME, time.localtime(milliseconds / 1000)) if milliseconds else ""


def study_status(config: ReportConfig) -> list[str]:
    """Return lines on a study: its owner, progress and time left, what runs, the best so far, and what to type next.

    Raise ConfigError if there is no such study.
    """
    name, folder = config.study.name, config.tracking.folder
    with tracking.store_errors(config.tracking), study.storage_errors(folder):
        store = tracking.open_recorded(config.tracking, f"study.name={name}")
        found = read_study(store, config.study, config.tracking)
        running = tracking.runs_below(store, str(found.parent_run_id), "attributes.status = 'RUNNING'")
        epochs = tracking.metric_histories(store, [run.info.run_id for run in running], Metric.TRAIN_LOSS)
    # The run of a trial that is trained with a further seed is open, and waits for that.
    waiting = {run.data.tags[Tag.PARENT] for run in running}
    at_work = [run for run in running if run.info.run_id not in waiting]
    owner, again, (first, *_) = study.owner(folder, name), found.finished < found.total, text.commands(found)
    if found.status == GONE and owner is None:
        return [f"study {name}: {text.state(found)}", study.best_against_baseline(found.table, found.objectives)]
    reached = f"study {name}: {found.finished} of {found.total} trials are finished"
    best = study.best_against_baseline(found.table, found.objectives)
    if owner is None:
        cut_off = f" ({format_count(len(at_work), 'run')} cut off)" if at_work else ""
        next_ = f"goes on with the other {found.total - found.finished}: {first}" if again else f"adds none: {first}"
        return [f"{reached}; nothing is at work on it{cut_off}; the same command {next_}", best]
    lines, parts = [], 0.0
    for run in sorted(running, key=lambda run: run.info.start_time):
        # One that has just begun has no parameters yet.
        epoch, length = max(epochs[run.info.run_id], default=0), int(run.data.params.get("training.epochs", 0))
        parts += epoch / max(length, 1) / found.seeds if {Tag.TRIAL, Tag.SEED_OF} & run.data.tags.keys() else 0.0
        lines += [f"  {run.info.run_name}: epoch {epoch} of {length}"] if run in at_work else []
    left = _seconds_left(found, parts, len(at_work)) if again else None
    about = "" if left is None else f"; about {format_duration(left)} left"
    return [f"{reached}; {owner} is at work on it{about}", *lines, best, f"digitcnn stop study={name} ends it in order"]


def _seconds_left(found: StudyRecord, parts: float, workers: int) -> float | None:
    """Return the time that the trials to come take at the mean of those that were trained; `parts` of them are done."""
    trials = {trial.number: trial for trial in found.study.get_trials(deepcopy=False)}
    trained = [trials[number] for number in found.completed.get(Column.TRIAL, [])]
    took = [
        each.duration.total_seconds() for each in trained if each.duration and each.user_attrs.get(Metric.CPU_SPENT, 1)
    ]
    if not took:
        return None
    return sum(took) / len(took) * max(found.total - found.finished - parts, 0.0) / max(workers, 1)


def list_runs(config: RunsConfig) -> pd.DataFrame:
    """Return a row per run, the newest first or as `sort` says: id, name, status, study, time, parameters, metrics.

    Without `columns` a text has the parameters that differ and the results; other formats have all. Raise ConfigError
    for a study that there is not, for a filter that MLflow does not take, and for a column that no run has.
    """
    wanted = [f"tags.{Tag.STUDY} = '{config.study.name}'"] if config.study.name else []
    with tracking.store_errors(config.tracking):
        store = tracking.open_recorded(config.tracking, f"tracking.root={config.tracking.root}")
        found = tracking.filtered_runs(store, " and ".join([*wanted, *filter(None, [config.filter])]))
        # A server may have the runs of a study that this folder has not.
        if not found and config.study.name and not tracking.study_runs(store, config.study.name):
            study.recorded_study(StudyReference(name=config.study.name), config.tracking.folder)
    # A study's own run trains nothing.
    runs = [run for run in found if Tag.STUDY_KEY not in run.data.tags]
    if not runs:
        return pd.DataFrame(columns=list(dict.fromkeys([Column.RUN_ID, *(config.columns or _ABOUT)])))
    parameters = sorted({name for run in runs for name in run.data.params})
    measured = sorted({name for run in runs for name in run.data.metrics})
    columns = [Column.RUN_ID, *_ABOUT, *parameters, *measured]
    table = pd.DataFrame([_row(run) for run in runs]).reindex(columns=columns).apply(_typed)
    for name in [*config.columns, *filter(None, [config.sort])]:
        if name not in table:
            near = difflib.get_close_matches(name, columns, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(columns)}"
            raise ConfigError(f"{name}: no such column; {hint}")
    if config.sort is not None:
        larger = is_maximized(config.sort.removesuffix(Metric.MEAN_SUFFIX))
        table = table.sort_values(config.sort, ascending=not larger, kind="stable")
    if config.columns:
        return table[list(dict.fromkeys([Column.RUN_ID, *config.columns]))]
    if config.format != "text":
        return table
    differing = [name for name in parameters if table[name].nunique(dropna=False) > 1]
    differing.sort(key=lambda name: name.startswith("data."))
    about = [name for name in _ABOUT if table[name].astype(bool).any()]
    return table[[Column.RUN_ID, about[0], *(name for name in _MEASURED if name in measured), *differing, *about[1:]]]


def _row(run: Any) -> dict[str, Any]:
    tags = run.data.tags
    about = (run.info.run_name, run.info.status, tags.get(Tag.STUDY, ""), _date(run.info.start_time))
    values: dict[str, Any] = run.data.params | run.data.metrics
    note = tags.get(Tag.NOTE, "").partition("\n")[0]
    return {Column.RUN_ID: run.info.run_id, **dict(zip(_ABOUT, (*about, note), strict=True)), **values}


def _typed(values: pd.Series[Any]) -> pd.Series[Any]:
    """Return numbers as such: MLflow records parameters as texts."""
    numbers = pd.to_numeric(values, errors="coerce")
    return numbers if numbers.notna().equals(values.notna()) else values


@dataclass(frozen=True)
class RunComparison:
    """The differences of runs: a row per name, a column per run. `alike` other values are the same in all.

    Each flag of an environment has a name of its own: flags.XLA_FLAGS.
    """

    differing: pd.DataFrame
    alike: int


def compare_runs(config: DiffConfig) -> RunComparison:
    """Compare two or more runs. Raise ConfigError if one cannot be found or is named twice."""
    named = f"runs={','.join(config.runs)}"
    if len(config.runs) < 2:
        raise ConfigError(f"{named}: must name at least two runs: digitcnn diff RUN RUN")
    with tracking.store_errors(config.tracking):
        store = tracking.open_recorded(config.tracking, named)
        ids = [evaluation.find_run(store, each, config.study, config.tracking, "runs") for each in config.runs]
        if len(set(ids)) < len(ids):
            raise ConfigError(f"{named}: must name each run once")
        found = [store.client.get_run(run_id) for run_id in ids]
    columns = []
    for run in found:
        tags = with_known_flags(run.data.tags)
        tags = {k: v for k, v in tags.items() if k in _TAGS or k.startswith(Tag.VERSION_PREFIX)}
        status = {"name": run.info.run_name, "status": run.info.status}
        parameters = dict(sorted(run.data.params.items()))
        flags = json.loads(tags.pop(Tag.FLAGS, "{}"))
        tags |= {f"{Tag.FLAGS}.{name}": str(value) for name, value in flags.items()}
        columns.append(status | parameters | dict(sorted(run.data.metrics.items())) | tags)
    names = list(dict.fromkeys(name for column in columns for name in column))
    values = {name: [column.get(name) for column in columns] for name in names}
    differing = {name: row for name, row in values.items() if any(each != row[0] for each in row)}
    table = pd.DataFrame.from_dict(differing, orient="index", columns=ids, dtype=object)
    return RunComparison(table, len(values) - len(differing))
