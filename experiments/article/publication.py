"""The published study, from the records into a folder: tables as CSV, the champion, the figure and RESULTS.md."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from digitcnn import report, study, tracking
from digitcnn.config import (
    LATER_KEYS,
    Backend,
    Config,
    DataConfig,
    FilePath,
    RunConfig,
    StudyReference,
    TrackingConfig,
    TrainingConfig,
    load_config,
)
from digitcnn.errors import ConfigError, MachineError
from digitcnn.evaluation import RunManifest, write_manifest
from digitcnn.files import write_atomically
from digitcnn.records import Artifact, Metric, Tag
from digitcnn.report import StudyRecord
from digitcnn.tracking import Store
from experiments.article import answers, contrasts, provenance, results

_ARTICLE = RunConfig(data=DataConfig(validation="test"), training=TrainingConfig(steps_per_epoch="batch_size"))
BACKENDS: tuple[tuple[Backend, Literal["keras", "compiled"]], ...] = (
    ("tensorflow", "keras"),
    ("tensorflow", "compiled"),
    ("jax", "keras"),
    ("torch", "keras"),
)
_TRAIN = "digitcnn train --multirun"
_HOW_ARTICLE = f"{_TRAIN} experiment=article model=cnn,mlp training.seed=0,1,2,3,4 makes the runs"
_HOW_BACKENDS = (
    f"{_TRAIN} backend=NAME training.engine=keras training.epochs=2 training.seed=0,1,2 makes the runs of tensorflow, "
    "jax and torch, and with backend=tensorflow training.engine=compiled the others"
)
# The tags of runs that are no answer by themselves: those of studies, and repetitions of a recorded run.
_NOT_ALONE = {Tag.STUDY, Tag.REPRODUCES}
_SAFE = "the runs are recorded"
_COUNTS = ("samples_seen", "updates", "parameters")
_COSTS = (Metric.TRAINING_SECONDS, Metric.CPU_SECONDS)
# What the sections' protocols say of the studies: the values in which their baselines differ from a run's defaults.
_BASELINES: dict[str, dict[str, Any]] = {
    "batch_size_article": {"training": {"steps_per_epoch": "batch_size"}},
    "batch_size": {"training": {"epochs": 5}},
    results.FILTERS: {"training": {"epochs": 3}},
    results.DEFAULT: {},
}

# What there is one run of: its network or backend, and its seed.
_Key = tuple[Any, ...]


class PublishConfig(Config):
    """From which records, and into which folder, the results are written."""

    folder: FilePath = "experiments/results"
    tracking: TrackingConfig = TrackingConfig()


def publish(config: PublishConfig, say: Callable[[str], None] = lambda _: None) -> Path:
    """Writes the tables, the champion's frozen form, the figure and RESULTS.md; returns the path of the last.

    A part that is not recorded here, or not whole, stays as it was published before, if it was; `say` is told so.
    Raises ConfigError if there is no other part. Nothing is written before all is made.
    """
    from experiments.article import figures

    folder = Path(config.folder)
    url = study.storage_url(config.tracking.folder)
    with tracking.store_errors(config.tracking), study.storage_errors(url):
        store = tracking.open_recorded(config.tracking, "publish", say)
        parts, missing = _collect(store, config.tracking)
    if not parts:
        for reason in missing.values():
            say(f"not published: {reason}")
        raise ConfigError(f"publish: nothing that it publishes is recorded in {config.tracking.folder}")
    before = _kept(folder, {name for part in parts for name in part.tables})
    for question, reason in missing.items():
        say(f"{'left as it was published' if results.has(before, question) else 'not published'}: {reason}")
    tables = {name: table for part in parts for name, table in part.tables.items()}
    tables["provenance"] = _made(parts, before.get("provenance"))
    written = {name: table.to_csv(index=False, lineterminator="\n") for name, table in tables.items()}
    # From the files' text, as anybody else makes it.
    published = before | {name: results.parsed(name, io.StringIO(text)) for name, text in written.items()}
    contents: dict[str, str | bytes] = {f"{name}.csv": text for name, text in written.items()}
    picture = figures.drawn(published)
    if picture is not None:
        contents["results.png"] = picture
    contents["RESULTS.md"] = results.text(published)
    for part in parts:
        if part.champion is not None:
            comment = "The champion of the published study: RESULTS.md."
            write_manifest(part.champion, folder / Artifact.CHAMPION, comment)
    # The text comes last: what it speaks of is there.
    for name, content in contents.items():
        write_atomically(folder / name, content, _SAFE)
    return folder / "RESULTS.md"


def _kept(folder: Path, renewed: Set[str]) -> dict[str, pd.DataFrame]:
    """The tables of a folder but those that are made anew. Raises ConfigError if they are not what publish wrote."""
    from experiments.article import figures

    try:
        tables = results.read(folder, renewed)
        if tables:
            results.text(tables)
            figures.drawn(tables)
    except (OSError, MachineError):
        raise
    # Torn or foreign files: whatever keeps text and figure from being made.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"folder={folder}: the tables in it are not as publish wrote them ({reason}); "
            "restore them, or publish into another folder"
        ) from error
    return tables


@dataclass(frozen=True)
class _Part:
    """What answers one question: its tables by name, how their runs were made, and the champion if it has one."""

    tables: dict[str, pd.DataFrame]
    made: list[dict[str, Any]]
    champion: RunManifest | None = None


def _collect(store: Store, config: TrackingConfig) -> tuple[list[_Part], dict[str, str]]:
    """The parts that are recorded, and by question what each other one lacks."""
    questions: dict[str, Callable[[Store, TrackingConfig], _Part]] = {
        "article": _article,
        "batch_size": _batch_sizes,
        "filters": _filters,
        "backends": _backends,
        "default": _default,
    }
    parts, missing = [], {}
    for question, collect in questions.items():
        try:
            parts.append(collect(store, config))
        except ConfigError as error:
            missing[question] = str(error)
    return parts, missing


def _made(parts: Sequence[_Part], before: pd.DataFrame | None) -> pd.DataFrame:
    """How these parts were made, and those that stay as they were before."""
    made = [row for part in parts for row in part.made]
    renewed = {row["part"] for row in made}
    kept = [] if before is None else [row for row in before.to_dict("records") if row["part"] not in renewed]
    return pd.DataFrame([*made, *kept], columns=list(provenance.COLUMNS)).sort_values(["part", "command"])


def _article(store: Store, config: TrackingConfig) -> _Part:
    """The article's two networks by its own protocol."""

    def key(run: Any) -> _Key | None:
        tree = {**_ARTICLE.model_dump(), "model": {"name": run.data.params["model.name"]}}
        seed = int(run.data.params["training.seed"])
        wanted = load_config(RunConfig, tree).replace({"training.seed": seed})
        return (run.data.params["model.name"], seed) if tracking.was_trained_with(run, wanted) else None

    runs = list(_newest(store, "params.`data.validation` = 'test'", key).values())
    measured = _measured(runs, Metric.VALIDATION_ACCURACY, Metric.BEST_VALIDATION_ACCURACY)
    _require_same_seeds(measured, ("network",), [(name,) for name in answers.NETWORKS], _HOW_ARTICLE)
    return _Part({"article": measured}, provenance.rows("article", runs))


def _batch_sizes(store: Store, config: TrackingConfig) -> _Part:
    found = {name: _study(store, config, name) for name in contrasts.BATCH_SIZE_STUDIES}
    trials = pd.concat([_trials(name, *each) for name, each in found.items()], ignore_index=True)
    _require_grid(trials, "training.batch_size")
    curves = pd.concat([_curves(name, *each) for name, each in found.items()], ignore_index=True)
    made = [row for name, (_, runs) in found.items() for row in provenance.rows(name, _of_trials(runs))]
    return _Part({"batch_size": trials, "batch_size_curves": curves}, made)


def _filters(store: Store, config: TrackingConfig) -> _Part:
    name = results.FILTERS
    found, runs = _study(store, config, name)
    trials = _trials(name, found, runs)
    _require_grid(trials, "model.conv1_filters", "model.conv2_filters")
    return _Part({"filters": trials}, provenance.rows(name, _of_trials(runs)))


def _default(store: Store, config: TrackingConfig) -> _Part:
    name = results.DEFAULT
    found, runs = _study(store, config, name)
    if found.confirmation is None or found.unconfirmed is not None:
        lacks = "is not confirmed" if found.confirmation is None else f"its first, trial {found.unconfirmed}, is not"
        raise ConfigError(f"study.name={name}: {lacks}; digitcnn confirm study={name} does it")
    tables = {
        "leaderboard": found.table,
        "confirmation": found.confirmation.table,
        "confirmation_runs": found.confirmation.runs,
    }
    confirming = [run for run in runs.values() if Tag.CONFIRMS in run.data.tags]
    made = provenance.rows(name, _of_trials(runs)) + provenance.rows(f"{name} confirmed", confirming)
    return _Part(tables, made, found.confirmation.frozen)


def _backends(store: Store, config: TrackingConfig) -> _Part:
    """Keras's own fit on each backend, and TensorFlow's compiled engine, on all cores."""

    def key(run: Any) -> _Key | None:
        parameters = LATER_KEYS | run.data.params
        backend, seed = parameters["backend"], int(parameters["training.seed"])
        # Whichever engine it asked for: `auto` ends as one of them.
        training = {"epochs": 2, "engine": parameters["training.engine"], "seed": seed}
        wanted = load_config(RunConfig, {"backend": backend, "training": training})
        tags = run.data.tags
        engine = tags.get(Tag.ENGINE)
        comparable = tracking.was_trained_with(run, wanted) and tags.get(Tag.THREADS) == tags.get(Tag.CORES)
        return (backend, engine, seed) if (backend, engine) in BACKENDS and comparable else None

    found = _newest(store, "params.`training.epochs` = '2'", key)
    runs = list(found.values())
    measured = _measured(runs, Metric.VALIDATION_ACCURACY, "images_per_second")
    measured.insert(0, "backend", [backend for backend, *_ in found])
    measured.insert(1, "engine", [engine for _, engine, _ in found])
    _require_same_seeds(measured, ("backend", "engine"), BACKENDS, _HOW_BACKENDS)
    return _Part({"backends": measured}, provenance.rows("backends", runs))


def _newest(store: Store, query: str, key: Callable[[Any], _Key | None]) -> dict[_Key, Any]:
    """The newest finished run of each key, in the order of the keys; those without a key are left out.

    So are those that are no answer by themselves: a repetition of an older run would take its place.
    """
    found: dict[_Key, Any] = {}
    for run in reversed(tracking.search_runs(store, f"attributes.status = 'FINISHED' AND {query}")):
        named = None if _NOT_ALONE & set(run.data.tags) else key(run)
        if named is not None:
            found[named] = run
    return dict(sorted(found.items()))


def _require_grid(trials: pd.DataFrame, *factors: str) -> None:
    """Raises ConfigError unless each study has every combination of the factors' values, with every seed."""
    columns = ("study", *factors)
    _require_same_seeds(trials, columns, itertools.product(*(sorted(trials[name].unique()) for name in columns)))


def _require_same_seeds(
    table: pd.DataFrame, columns: Sequence[str], groups: Iterable[tuple[Any, ...]], how: str | None = None
) -> None:
    """Raises ConfigError, which ends with `how`, if one of the groups of rows lacks a seed that the table has.

    They are compared seed by seed, each seed once, and it takes at least two.
    """
    end = f"; {how}" if how else ""
    seeds = sorted(table["seed"].unique()) if len(table) else []
    if len(seeds) < 2:
        raise ConfigError(f"{'/'.join(columns)}: needs runs with several seeds{end}")
    for group in groups:
        values = dict(zip(columns, group, strict=True))
        its = table.loc[(table[list(columns)] == list(group)).all(axis="columns"), "seed"].tolist()
        named = " ".join(f"{column}={value}" for column, value in values.items())
        for seed in seeds:
            if its.count(seed) != 1:
                raise ConfigError(f"{named}: has {its.count(seed)} runs with training.seed={seed}, needs one{end}")


def _of_trials(runs: Mapping[str, Any]) -> list[Any]:
    return [run for run in runs.values() if Tag.TRIAL in run.data.tags]


def _study(store: Store, config: TrackingConfig, name: str) -> tuple[StudyRecord, dict[str, Any]]:
    """What is recorded of a finished study, and the runs below its own, by id."""
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
    elsewhere = found.completed.loc[~found.completed["run_id"].isin(runs), "trial"].tolist()
    if elsewhere:
        raise ConfigError(f"study.name={name}: the run of trial {elsewhere[0]} is not recorded here")
    return found, runs


def _measured(runs: Sequence[Any], *metrics: str) -> pd.DataFrame:
    """A row per run: its network, seed and run id, the metrics, and what it cost."""
    rows = [
        {"network": run.data.params["model.name"], "seed": int(run.data.params["training.seed"])}
        | {name: run.data.metrics[name] for name in metrics}
        | {name: int(run.data.metrics[name]) for name in _COUNTS}
        | {name: run.data.metrics[name] for name in _COSTS}
        | {"weights_sha256": run.data.tags[Tag.WEIGHTS_SHA256], "run_id": run.info.run_id}
        for run in runs
    ]
    return pd.DataFrame(rows)


def _trials(name: str, found: StudyRecord, runs: dict[str, Any]) -> pd.DataFrame:
    """A row per completed trial: its study, its parameters, and what its run measured."""
    table = found.completed.sort_values("trial")
    parameters = study.parameters_among(table.columns)
    measured = _measured([runs[run_id] for run_id in table["run_id"]], Metric.VALIDATION_ACCURACY)
    keep = table[["trial", *parameters]].reset_index(drop=True)
    joined = pd.concat([keep.drop(columns="training.seed", errors="ignore"), measured], axis=1)
    joined.insert(0, "study", name)
    return joined


def _curves(name: str, found: StudyRecord, runs: dict[str, Any]) -> pd.DataFrame:
    """The validation accuracy after each epoch, and how many images had been seen by then."""
    trials = _trials(name, found, runs).set_index("run_id")
    curves = found.curves[found.curves["run_id"].isin(trials.index)]
    per_epoch = trials["samples_seen"] / curves.groupby("run_id")["epoch"].max()
    columns = {
        "study": name,
        "batch_size": curves["run_id"].map(trials["training.batch_size"]),
        "seed": curves["run_id"].map(trials["seed"]),
        "epoch": curves["epoch"],
        "samples_seen": (curves["epoch"] * curves["run_id"].map(per_epoch)).astype(int),
        "validation_accuracy": curves["validation_accuracy"],
    }
    return pd.DataFrame(columns).sort_values(["study", "batch_size", "seed", "epoch"], ignore_index=True)
