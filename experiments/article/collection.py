"""Collect the parts of the published study from the records: each question's tables and how their runs were made."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import pandas as pd

from digitcnn import report, study, tracking
from digitcnn.config import Backend, DataConfig, RunConfig, StudyReference, TrackingConfig, TrainingConfig, load_config
from digitcnn.errors import ConfigError
from digitcnn.evaluation import RunManifest
from digitcnn.records import IN_VALIDATION, Artifact, Column, Metric, Tag
from digitcnn.report import StudyRecord
from digitcnn.tracking import Store
from experiments.article import contrasts, headlines, provenance, results

_ARTICLE = RunConfig(data=DataConfig(validation="test"), training=TrainingConfig(steps_per_epoch="batch_size"))
BACKENDS: tuple[tuple[Backend, Literal["fast", "keras"]], ...] = (
    ("tensorflow", "keras"),
    ("tensorflow", "fast"),
    ("jax", "keras"),
    ("torch", "keras"),
)
_TRAIN = "digitcnn train --multirun"
_HOW_ARTICLE = f"{_TRAIN} experiment=article model=cnn,mlp training.seed=0,1,2,3,4 makes the runs"
_HOW_BACKENDS = (
    f"{_TRAIN} backend=NAME training.engine=keras training.epochs=2 training.seed=0,1,2 makes the runs of tensorflow, "
    "jax and torch, and with backend=tensorflow training.engine=fast the others"
)
# Tags of the runs that are left out where single runs are asked for: runs of studies, and repetitions.
_NOT_ALONE = {Tag.STUDY, Tag.REPRODUCES}
_COUNTS = (Metric.SAMPLES_SEEN, Metric.UPDATES, Metric.PARAMETERS)
_COSTS = (Metric.TRAINING_SECONDS, Metric.CPU_SECONDS)
# The studies' protocols as RESULTS.md states them: the values in which their baselines differ from the defaults.
_BASELINES: dict[str, dict[str, Any]] = {
    "batch_size_article": {"training": {"steps_per_epoch": "batch_size"}},
    "batch_size": {"training": {"epochs": 5}},
    results.FILTERS: {"training": {"epochs": 3}},
    results.DEFAULT: {},
    "beyond": {"training": {"precision": "auto"}},
    "cheapest": {"training": {"precision": "auto"}},
}

# Identifies one run of a part: its network, or its backend and engine, and its seed.
_Key = tuple[Any, ...]


@dataclass(frozen=True)
class Part:
    """The answer to one question: tables by name, their runs' provenance rows, and champions' manifests by file."""

    tables: dict[str, pd.DataFrame]
    made: list[dict[str, Any]]
    champions: dict[str, RunManifest] = field(default_factory=dict)


def collect_parts(store: Store, config: TrackingConfig) -> tuple[list[Part], dict[str, str]]:
    """Return the parts that are recorded, and by question what each other one lacks."""
    questions: dict[str, Callable[[Store, TrackingConfig], Part]] = {
        "article": collect_article,
        "batch_size": collect_batch_sizes,
        "filters": collect_filters,
        "backends": collect_backends,
        **{question: partial(collect_confirmed, question) for question in results.CONFIRMED},
    }
    parts, missing = [], {}
    for question, collect in questions.items():
        try:
            parts.append(collect(store, config))
        except ConfigError as error:
            missing[question] = str(error)
    return parts, missing


def collect_article(store: Store, config: TrackingConfig) -> Part:
    """Collect the article's two networks by its own protocol: a run per network and seed."""

    def key(run: Any) -> _Key | None:
        tree = {**_ARTICLE.model_dump(), "model": {"name": run.data.params["model.name"]}}
        seed = int(run.data.params["training.seed"])
        wanted = load_config(RunConfig, tree).replace({"training.seed": seed})
        return (run.data.params["model.name"], seed) if tracking.was_trained_with(run, wanted) else None

    runs = list(_newest(store, "params.`data.validation` = 'test'", key).values())
    measured = _measured(runs, Metric.TEST_ACCURACY, Metric.BEST_TEST_ACCURACY)
    _require_same_seeds(measured, ("network",), [(name,) for name in headlines.NETWORKS], _HOW_ARTICLE)
    return Part({"article": measured}, provenance.rows("article", runs))


def collect_batch_sizes(store: Store, config: TrackingConfig) -> Part:
    """Collect the trials of the two studies of batch sizes, and their learning curves."""
    found = {name: _study(store, config, name) for name in contrasts.BATCH_SIZE_STUDIES}
    trials = pd.concat([_trials(name, *each) for name, each in found.items()], ignore_index=True)
    require_grid(trials, "training.batch_size")
    curves = pd.concat([_curves(name, *each) for name, each in found.items()], ignore_index=True)
    made = [row for name, (_, runs) in found.items() for row in provenance.rows(name, _of_trials(name, runs))]
    return Part({"batch_size": trials, "batch_size_curves": curves}, made)


def collect_filters(store: Store, config: TrackingConfig) -> Part:
    """Collect the trials of the study of filter counts."""
    name = results.FILTERS
    found, runs = _study(store, config, name)
    trials = _trials(name, found, runs)
    require_grid(trials, "model.conv1_filters", "model.conv2_filters")
    return Part({"filters": trials}, provenance.rows(name, _of_trials(name, runs)))


def collect_confirmed(question: str, store: Store, config: TrackingConfig) -> Part:
    """Collect a study that was confirmed: its leaderboard, its confirmation, its ablation and its champion."""
    name = results.CONFIRMED[question]
    found, runs = _study(store, config, name)
    if found.confirmation is None or found.unconfirmed is not None:
        lacks = "is not confirmed" if found.confirmation is None else f"its first, trial {found.unconfirmed}, is not"
        raise ConfigError(f"study.name={name}: {lacks}; digitcnn confirm study={name} does it")
    ablation = pd.DataFrame(columns=[Column.CONFIG]) if found.ablation is None else found.ablation
    every = (found.table, found.confirmation.table, found.confirmation.runs, ablation)
    # Of the default study no ablation is published.
    tables = dict(zip(results.TABLES[question], every, strict=False))
    file = Artifact.CHAMPION if question == "default" else f"{question}_{Artifact.CHAMPION}"
    confirming = [run for run in runs.values() if {Tag.CONFIRMS, Tag.ABLATES} & set(run.data.tags)]
    made = provenance.rows(name, _of_trials(name, runs)) + provenance.rows(f"{name} confirmed", confirming)
    champion = found.confirmation.manifest
    command = provenance.published_command(str(champion.environment[Tag.COMMAND]))
    published = champion.model_copy(update={"environment": champion.environment | {Tag.COMMAND: command}})
    return Part(tables, made, {file: published})


def collect_backends(store: Store, config: TrackingConfig) -> Part:
    """Collect the runs of Keras's own fit on each backend, and of the fast engine, on all cores."""

    def key(run: Any) -> _Key | None:
        tags = run.data.tags
        backend, engine = run.data.params.get("backend"), tags.get(Tag.ENGINE)
        if (backend, engine) not in BACKENDS or tags.get(Tag.THREADS) != tags.get(Tag.CORES):
            return None
        seed = int(run.data.params["training.seed"])
        training = {"epochs": 2, "engine": engine, "seed": seed}
        wanted = load_config(RunConfig, {"backend": backend, "training": training})
        return (backend, engine, seed) if tracking.was_trained_with(run, wanted) else None

    found = _newest(store, "params.`training.epochs` = '2'", key)
    runs = list(found.values())
    measured = _measured(runs, Metric.VALIDATION_ACCURACY, Metric.IMAGES_PER_SECOND)
    measured.insert(0, "backend", [backend for backend, *_ in found])
    measured.insert(1, "engine", [engine for _, engine, _ in found])
    _require_same_seeds(measured, ("backend", "engine"), BACKENDS, _HOW_BACKENDS)
    return Part({"backends": measured}, provenance.rows("backends", runs))


def _newest(store: Store, query: str, key: Callable[[Any], _Key | None]) -> dict[_Key, Any]:
    """Return the newest finished run of each key, in the order of the keys; runs without a key are left out.

    So are runs of studies and repetitions: a repetition would take the place of the run that it repeats.
    """
    found: dict[_Key, Any] = {}
    for run in reversed(tracking.search_runs(store, f"attributes.status = 'FINISHED' AND {query}")):
        elsewhere = run.info.experiment_id != store.experiment_id
        named = None if elsewhere or _NOT_ALONE & set(run.data.tags) else key(run)
        if named is not None:
            found[named] = run
    return dict(sorted(found.items()))


def require_grid(trials: pd.DataFrame, *factors: str) -> None:
    """Raise ConfigError unless each study has every combination of the factors' values, with every seed."""
    columns = ("study", *factors)
    _require_same_seeds(trials, columns, itertools.product(*(sorted(trials[name].unique()) for name in columns)))


def _require_same_seeds(
    table: pd.DataFrame, columns: Sequence[str], groups: Iterable[tuple[Any, ...]], how: str | None = None
) -> None:
    """Raise ConfigError, which ends with `how`, if one of the groups of rows lacks a seed that the table has.

    Groups are compared seed by seed: each needs every seed once, and there must be at least two.
    """
    end = f"; {how}" if how else ""
    seeds = sorted(table[Column.SEED].unique()) if len(table) else []
    if len(seeds) < 2:
        raise ConfigError(f"{'/'.join(columns)}: needs runs with several seeds{end}")
    for group in groups:
        values = dict(zip(columns, group, strict=True))
        its = table.loc[(table[list(columns)] == list(group)).all(axis="columns"), Column.SEED].tolist()
        named = " ".join(f"{column}={value}" for column, value in values.items())
        for seed in seeds:
            if its.count(seed) != 1:
                raise ConfigError(f"{named}: has {its.count(seed)} runs with training.seed={seed}, needs one{end}")


def _of_trials(name: str, runs: Mapping[str, Any]) -> list[Any]:
    return [run for run in runs.values() if {Tag.TRIAL, _taken_tag(name)} & set(run.data.tags)]


def _study(store: Store, config: TrackingConfig, name: str) -> tuple[StudyRecord, dict[str, Any]]:
    """Return the record of a finished study, and its runs by id, with those that it took over.

    Raises ConfigError if it is unfinished.
    """
    command = f"digitcnn sweep study={name}"
    reference = StudyReference(name=name)
    try:
        study.recorded_study(reference, config.folder)
    except ConfigError as error:
        raise ConfigError(f"{error}; {command} makes {name}") from error
    found = report.read_study(store, reference, config)
    for key, value in study.fixed_values(load_config(RunConfig, _BASELINES[name])).items():
        if found.baseline.get(key) != value:
            raise ConfigError(
                f"study.name={name}: was made with {key}={found.baseline.get(key)} instead of {value}; "
                f"{command} with another tracking.root makes the one that is published"
            )
    if found.status != "FINISHED" or found.finished < found.total:
        raise ConfigError(
            f"study.name={name}: is not finished, with {found.finished} of {found.total} trials; {command} goes on"
        )
    # A name is given again, to a study of other records in the same store.
    every = tracking.study_runs(store, name)
    runs = {run.info.run_id: run for run in every if run.data.tags.get(Tag.PARENT) == found.parent_run_id}
    others = [run_id for run_id in found.table[Column.RUN_ID].dropna() if run_id not in runs]
    runs |= {key: run for key, run in tracking.runs_of_ids(store, others).items() if _taken_tag(name) in run.data.tags}
    elsewhere = found.completed.loc[~found.completed[Column.RUN_ID].isin(runs), Column.TRIAL].tolist()
    if elsewhere:
        raise ConfigError(f"study.name={name}: the run of trial {elsewhere[0]} is not recorded here")
    return found, runs


def _taken_tag(name: str) -> str:
    """Return the tag of a run that was recorded before, and that a study took for a trial of its own."""
    return f"{Tag.TAKEN_BY_PREFIX}{name}"


def _measured(runs: Sequence[Any], *metrics: str) -> pd.DataFrame:
    """Return a row per run: network, seed, the named metrics, counts, costs (s), digest of the weights and run id."""
    rows = [
        {"network": run.data.params["model.name"], Column.SEED: int(run.data.params["training.seed"])}
        # Earlier versions recorded the article's test accuracies as those of a validation.
        | {name: run.data.metrics.get(name, run.data.metrics.get(IN_VALIDATION.get(name, name))) for name in metrics}
        | {name: int(run.data.metrics[name]) for name in _COUNTS}
        | {name: run.data.metrics[name] for name in _COSTS}
        | {Tag.WEIGHTS_SHA256: run.data.tags[Tag.WEIGHTS_SHA256], Column.RUN_ID: run.info.run_id}
        for run in runs
    ]
    return pd.DataFrame(rows)


def _trials(name: str, found: StudyRecord, runs: dict[str, Any]) -> pd.DataFrame:
    """Return a row per completed trial: study, trial, parameters, and its run's measurements."""
    table = found.completed.sort_values(Column.TRIAL)
    parameters = study.parameters_among(table.columns)
    measured = _measured([runs[run_id] for run_id in table[Column.RUN_ID]], Metric.VALIDATION_ACCURACY)
    keep = table[[Column.TRIAL, *parameters]].reset_index(drop=True)
    joined = pd.concat([keep.drop(columns="training.seed", errors="ignore"), measured], axis=1)
    joined.insert(0, "study", name)
    return joined


def _curves(name: str, found: StudyRecord, runs: dict[str, Any]) -> pd.DataFrame:
    """Return the validation accuracy after each epoch, and the number of images seen by then."""
    trials = _trials(name, found, runs).set_index(Column.RUN_ID)
    curves = found.curves[found.curves[Column.RUN_ID].isin(trials.index)]
    per_epoch = trials[Metric.SAMPLES_SEEN] / curves.groupby(Column.RUN_ID)[Column.EPOCH].max()
    columns = {
        "study": name,
        "batch_size": curves[Column.RUN_ID].map(trials["training.batch_size"]),
        Column.SEED: curves[Column.RUN_ID].map(trials[Column.SEED]),
        Column.EPOCH: curves[Column.EPOCH],
        Metric.SAMPLES_SEEN: (curves[Column.EPOCH] * curves[Column.RUN_ID].map(per_epoch)).astype(int),
        Metric.VALIDATION_ACCURACY: curves[Metric.VALIDATION_ACCURACY],
    }
    return pd.DataFrame(columns).sort_values(["study", "batch_size", Column.SEED, Column.EPOCH], ignore_index=True)
