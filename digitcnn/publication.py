"""The published study, collected from the records: a table per question, as the CSV files that results.py reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from digitcnn import findings, records, results, storage, tracking
from digitcnn.config import (
    Backend,
    Config,
    DataConfig,
    FilePath,
    RunConfig,
    StudyReference,
    TrackingConfig,
    TrainingConfig,
)
from digitcnn.config import load as load_config
from digitcnn.errors import ConfigError
from digitcnn.files import write_whole
from digitcnn.findings import Findings
from digitcnn.frozen import Frozen, write_frozen
from digitcnn.store import Store

_ARTICLE = RunConfig(data=DataConfig(validation="test"), training=TrainingConfig(steps_per_epoch="batch_size"))
BACKENDS: tuple[tuple[Backend, Literal["keras", "compiled"]], ...] = (
    ("tensorflow", "keras"),
    ("tensorflow", "compiled"),
    ("jax", "keras"),
    ("torch", "keras"),
)
_VERSIONS = ("python", "version.tensorflow", "version.keras", "version.numpy")
_SAFE = "the runs are recorded"
_MEASURES = ("samples_seen", "updates", "parameters", "training_seconds", "cpu_seconds")


class PublishConfig(Config):
    """From which records, and into which folder, the results are written."""

    folder: FilePath = "experiments/results"
    tracking: TrackingConfig = TrackingConfig()


def publish(config: PublishConfig, say: Callable[[str], None] = lambda _: None) -> Path:
    """Writes the tables, the champion's frozen form, the figure and RESULTS.md; returns the path of the last.

    A part that is not recorded here stays as it was published before, and `say` is told so. Raises ConfigError, having
    written nothing, if no part is recorded.
    """
    from digitcnn import figures

    folder = Path(config.folder)
    url = storage.address(None, config.tracking.folder)
    with tracking.store_errors(config.tracking), storage.errors(url):
        store = records.open_recorded(config.tracking, "publish", say)
        parts, missing = _collect(store, config.tracking)
    if not parts:
        raise ConfigError(f"publish: nothing that it publishes is recorded in {config.tracking.folder}: {missing[0]}")
    for line in missing:
        say(f"left as it was published: {line}")
    made = pd.concat([part.provenance for part in parts])
    before = results.read(folder).get("provenance", made.head(0))
    tables = {name: table for part in parts for name, table in part.tables.items()}
    tables["provenance"] = pd.concat([made, before[~before["part"].isin(made["part"])]]).sort_values(
        ["part", "command"]
    )
    for name, table in tables.items():
        write_whole(folder / f"{name}.csv", table.to_csv(index=False, lineterminator="\n"), _SAFE)
    for part in parts:
        if part.champion is not None:
            write_frozen(part.champion, folder / "champion.yaml", "The champion of the published study: RESULTS.md.")
    # From the files, as anybody else makes it.
    published = results.read(folder)
    picture = figures.drawn(published)
    if picture is not None:
        write_whole(folder / "results.png", picture, _SAFE)
    write_whole(folder / "RESULTS.md", results.text(published), _SAFE)
    return folder / "RESULTS.md"


@dataclass(frozen=True)
class _Part:
    """What answers one question: its tables by name, how their runs were made, and the champion if it has one."""

    tables: dict[str, pd.DataFrame]
    provenance: pd.DataFrame
    champion: Frozen | None = None


def _collect(store: Store, config: TrackingConfig) -> tuple[list[_Part], list[str]]:
    """The parts that are recorded, and for each other one what it lacks."""
    parts, missing = [], []
    for collect in (_article, _batch_sizes, _filters, _backends, _default):
        try:
            parts.append(collect(store, config))
        except ConfigError as error:
            missing.append(str(error))
    return parts, missing


def _article(store: Store, config: TrackingConfig) -> _Part:
    runs = _runs_of_article(store)
    measured = _measured(runs, "validation_accuracy", "best_validation_accuracy", "best_epoch")
    return _Part({"article": measured}, _provenance("article", runs))


def _batch_sizes(store: Store, config: TrackingConfig) -> _Part:
    found = {name: _study(store, config, name) for name in results.BATCH_SIZES}
    tables = {
        "batch_size": pd.concat([_trials(name, *each) for name, each in found.items()], ignore_index=True),
        "batch_size_curves": pd.concat([_curves(name, *each) for name, each in found.items()], ignore_index=True),
    }
    return _Part(tables, pd.concat([_provenance(name, _of_trials(runs)) for name, (_, runs) in found.items()]))


def _filters(store: Store, config: TrackingConfig) -> _Part:
    found, runs = _study(store, config, results.FILTERS)
    return _Part({"filters": _trials(results.FILTERS, found, runs)}, _provenance(results.FILTERS, _of_trials(runs)))


def _default(store: Store, config: TrackingConfig) -> _Part:
    name = results.DEFAULT
    found, runs = _study(store, config, name)
    if found.confirmation is None:
        raise ConfigError(f"study.name={name}: is not confirmed; python experiments/confirm.py study={name} does it")
    tables = {
        "leaderboard": found.table,
        "confirmation": found.confirmation.table,
        "confirmation_runs": found.confirmation.runs,
    }
    confirming = [run for run in runs.values() if "confirms" in run.data.tags]
    made = [_provenance(name, _of_trials(runs)), _provenance(f"{name} confirmed", confirming)]
    return _Part(tables, pd.concat(made), found.confirmation.frozen)


def _backends(store: Store, config: TrackingConfig) -> _Part:
    """Keras's own fit on each backend that runs are recorded of, and TensorFlow's compiled engine."""
    found: dict[tuple[str, str, int], Any] = {}
    for run in reversed(records.search(store, "attributes.status = 'FINISHED' AND params.`training.epochs` = '2'")):
        for backend, engine in BACKENDS:
            seed = int(run.data.params["training.seed"])
            training = TrainingConfig(epochs=2, engine=engine, seed=seed)
            if records.is_of(run, RunConfig(backend=backend, training=training)):
                found[backend, engine, seed] = run
    runs = [found[key] for key in sorted(found)]
    if {(backend, engine) for backend, engine, _ in found} != set(BACKENDS):
        raise ConfigError(
            "backend: needs runs of each backend and engine; python experiments/train.py --multirun backend=NAME "
            "training.engine=keras training.epochs=2 training.seed=0,1,2 and with training.engine=compiled"
        )
    measured = _measured(runs, "validation_accuracy", "images_per_second")
    measured.insert(0, "backend", [backend for backend, _, _ in sorted(found)])
    measured.insert(1, "engine", [engine for _, engine, _ in sorted(found)])
    return _Part({"backends": measured}, _provenance("backends", runs))


def _of_trials(runs: Mapping[str, Any]) -> list[Any]:
    return [run for run in runs.values() if "trial" in run.data.tags]


def _runs_of_article(store: Store) -> list[Any]:
    """The finished runs of the article's two networks by its own protocol, one a seed."""
    query = "attributes.status = 'FINISHED' AND params.`data.validation` = 'test'"
    found: dict[tuple[str, int], Any] = {}
    for run in reversed(records.search(store, query)):
        for network in results.NETWORKS:
            seed = int(run.data.params["training.seed"])
            tree = {**_ARTICLE.model_dump(), "model": {"name": network}}
            if records.is_of(run, load_config(RunConfig, tree).replace({"training.seed": seed})):
                found[network, seed] = run
    for network in results.NETWORKS:
        if sum(each == network for each, _ in found) < 2:
            raise ConfigError(
                "publish: needs the article's runs with several seeds; python experiments/train.py --multirun "
                "experiment=article model=cnn,mlp training.seed=0,1,2,3,4"
            )
    return [found[key] for key in sorted(found)]


def _study(store: Store, config: TrackingConfig, name: str) -> tuple[Findings, dict[str, Any]]:
    """What is recorded of a finished study, and its runs by id."""
    found = findings.read(store, StudyReference(name=name), config)
    if found.status != "FINISHED":
        raise ConfigError(f"study.name={name}: is not finished; python experiments/sweep.py study={name} goes on")
    return found, {run.info.run_id: run for run in records.study_runs(store, name)}


def _measured(runs: Sequence[Any], *metrics: str) -> pd.DataFrame:
    """A row per run: its network, seed and run id, the metrics, and what it cost."""
    rows = [
        {"network": run.data.params["model.name"], "seed": int(run.data.params["training.seed"])}
        | {name: run.data.metrics[name] for name in (*metrics, *_MEASURES)}
        | {"weights_sha256": run.data.tags["weights_sha256"], "run_id": run.info.run_id}
        for run in runs
    ]
    return pd.DataFrame(rows)


def _trials(name: str, found: Findings, runs: dict[str, Any]) -> pd.DataFrame:
    """A row per completed trial: its study, its parameters, and what its run measured."""
    table = found.completed.sort_values("trial")
    parameters = [column for column in table.columns if "." in str(column)]
    measured = _measured([runs[run_id] for run_id in table["run_id"]], "validation_accuracy")
    keep = table[["trial", *parameters]].reset_index(drop=True)
    joined = pd.concat([keep.drop(columns="training.seed", errors="ignore"), measured], axis=1)
    joined.insert(0, "study", name)
    return joined


def _curves(name: str, found: Findings, runs: dict[str, Any]) -> pd.DataFrame:
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


def _provenance(part: str, runs: Sequence[Any]) -> pd.DataFrame:
    """By which command, when, on what and in which time some runs were made; a row per command.

    The wall time is that in which at least one of them was at work: pauses between a sweep and its resumption are none.
    """
    rows = []
    for command in dict.fromkeys(run.data.tags["command"] for run in runs):
        some = [run for run in runs if run.data.tags["command"] == command]
        rows.append(
            {
                "part": part,
                "command": command,
                "runs": len(some),
                "wall_seconds": round(_busy([(run.info.start_time, run.info.end_time) for run in some]) / 1000),
                "cpu_seconds": round(sum(run.data.metrics.get("cpu_seconds", 0.0) for run in some)),
                "date": pd.Timestamp(min(run.info.start_time for run in some), unit="ms").strftime("%Y-%m-%d"),
            }
            | {name: _most(some, name) for name in ("cpu", "cores", "threads", "engine", *_VERSIONS, "git.commit")}
        )
    return pd.DataFrame(rows)


def _busy(intervals: Sequence[tuple[int, int]]) -> int:
    """The length of the union of some intervals."""
    total, until = 0, 0
    for begin, end in sorted(intervals):
        total += max(end - max(begin, until), 0)
        until = max(until, end)
    return total


def _most(runs: Sequence[Any], tag: str) -> str:
    counts: Counter[str] = Counter(run.data.tags.get(tag, "") for run in runs)
    return counts.most_common(1)[0][0]
