"""A study's records, read at once: its trials, runs and learning curves, its confirmation, its champion."""

from __future__ import annotations

import io
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import optuna
import pandas as pd
from numpy.typing import NDArray

from digitcnn import evaluation, study, tracking
from digitcnn.config import StudyReference, TrackingConfig
from digitcnn.errors import ConfigError, MachineError
from digitcnn.evaluation import RunManifest
from digitcnn.records import EPOCH_METRICS, Artifact, Column, IdentityKey, Metric, Tag
from digitcnn.training import arithmetic_flags, load_splits

logger = logging.getLogger(__name__)

# The status of a study whose own run is not in MLflow any more.
GONE = "GONE"
_RESUMED = (Tag.STUDY_SAMPLER, Tag.STUDY_PRUNER, Tag.STUDY_SEED)
_MACHINE = (Tag.CPU, Tag.CORES, Tag.THREADS, Tag.PLATFORM)
_SOFTWARE = (Tag.PYTHON, Tag.BACKEND, Tag.ENGINE, Tag.FLAGS)
_CODE_AND_DATA = (Tag.GIT_COMMIT, Tag.GIT_DIRTY, Tag.DATA_SHA256)


@dataclass(frozen=True)
class Confirmation:
    """A recorded confirmation: a row per config, a row per run, the champion's name and the manifest of its run."""

    table: pd.DataFrame
    runs: pd.DataFrame
    champion: str
    manifest: RunManifest


@dataclass(frozen=True)
class StudyRecord:
    """All that is recorded of a study at one moment.

    `table` is the leaderboard. The study is over with `total` trials, of which `finished` are. `status` is that of the
    study's own run, or GONE, `note` its description, which a person may have written, `settings` are its parameters,
    and what its last sweep had instead. `environment` holds the recorded values of each name with their numbers of
    runs. `place` is where the records are, as words of a command. `ablation` is the last one, a row per change and
    place.
    """

    store: tracking.Store
    study: optuna.Study
    identity: dict[str, Any]
    objectives: tuple[str, ...]
    table: pd.DataFrame
    total: int
    finished: int
    parent_run_id: str | None
    experiment_id: str | None
    status: str
    note: str
    settings: dict[str, str]
    environment: dict[str, Counter[str]]
    commands: tuple[str, ...]
    place: tuple[str, ...]
    confirmation: Confirmation | None
    ablation: pd.DataFrame | None

    @property
    def baseline(self) -> dict[str, Any]:
        """Every value of the baseline's config, by dotted name."""
        return dict(self.identity[IdentityKey.BASELINE])

    @property
    def space(self) -> dict[str, Any]:
        """The values that were searched, by dotted name, as plain values."""
        return dict(self.identity[IdentityKey.SPACE])

    @property
    def seeds(self) -> int:
        """The most seeds that a trial is trained with: its values are their means."""
        return int(self.identity.get(IdentityKey.SEEDS, 1))

    @cached_property
    def curves(self) -> pd.DataFrame:
        """A row per trial and epoch with EPOCH_METRICS; read when it is asked for, which takes seconds of many."""
        return _curves(self.store, self.table)

    @cached_property
    def confirming_curves(self) -> pd.DataFrame:
        """A row per config, seed and epoch of the confirming runs, with their training loss."""
        columns = [Column.CONFIG, Column.SEED, Column.EPOCH, Metric.TRAIN_LOSS]
        if self.confirmation is None:
            return pd.DataFrame(columns=columns)
        runs = self.confirmation.runs
        found = tracking.metric_histories(self.store, runs[Column.RUN_ID].tolist(), Metric.TRAIN_LOSS)
        named = zip(runs[Column.CONFIG], runs[Column.SEED], runs[Column.RUN_ID], strict=True)
        rows = [(config, seed, *point) for config, seed, run_id in named for point in sorted(found[run_id].items())]
        return pd.DataFrame(rows, columns=columns)

    @property
    def completed(self) -> pd.DataFrame:
        """The leaderboard's completed trials."""
        return self.table[self.table[Column.STATE] == "complete"] if len(self.table) else self.table

    @property
    def unconfirmed(self) -> int | None:
        """The leaderboard's first trial if others were confirmed: the study went on after that. Else None."""
        best = study.best_trial_number(self.table)
        if best is None or self.confirmation is None or len(self.objectives) > 1:
            return None
        # Seeds aside: a confirmation has its own.
        names = [name for name in self.space if name != "training.seed"]
        trials = self.study.get_trials(deepcopy=False)
        first, *confirmed = (
            [trials[number].params.get(name) for name in names]
            for number in (best, *self.confirmation.table[Column.TRIAL])
        )
        return None if first in confirmed else best


def read_study(store: tracking.Store, reference: StudyReference, config: TrackingConfig) -> StudyRecord:
    """Read everything that is recorded of a study. Raise ConfigError if there is no such study."""
    opened = study.recorded_study(reference, config.folder)
    snapshot = study.snapshot_study(opened)
    table = study.rank_trials(snapshot)
    parent_run_id = opened.parent_run_id
    found = tracking.study_runs(store, reference.name)
    parent = next((run for run in found if run.info.run_id == parent_run_id), None)
    # Another study in this MLflow store may have the same name.
    children = [run for run in found if run.data.tags.get(Tag.PARENT, "") == parent_run_id]
    records = [study.read_trial(trial) for trial in snapshot.get_trials(deepcopy=False)]
    taken = [str(record.run_id) for record in records if record.taken_from is not None]
    children += tracking.runs_of_ids(store, taken).values()
    runs = sorted(children, key=lambda run: run.info.start_time)
    settings = {} if parent is None else _settings(parent.data.params, parent.data.tags)
    finished = study.count_finished(snapshot, settings.get(Tag.STUDY_SAMPLER, "").rpartition(" ")[2])
    every = [run.data.tags for run in ([] if parent is None else [parent]) + runs]
    files = set[str]() if parent is None else store.artifact_names(parent.info.run_id)
    # It has none before its first sweep has begun it.
    without_run = "RUNNING" if parent_run_id is None else GONE
    return StudyRecord(
        store=store,
        study=snapshot,
        identity=opened.identity,
        objectives=tuple(snapshot.metric_names or ["value"]),
        table=table,
        total=finished if parent is None else int(parent.data.tags[Tag.STUDY_TRIALS]),
        finished=finished,
        parent_run_id=parent_run_id,
        experiment_id=None if parent is None else str(parent.info.experiment_id),
        note="" if parent is None else parent.data.tags.get(Tag.NOTE, ""),
        status=without_run if parent is None else str(parent.info.status),
        settings=settings,
        environment=_environment([with_known_flags(run.data.tags) for run in runs]),
        commands=tuple(dict.fromkeys(tags[Tag.COMMAND] for tags in every if Tag.COMMAND in tags)),
        place=_place(config),
        confirmation=_confirmation(store, reference.name, str(parent_run_id), files),
        ablation=_ablation(store, str(parent_run_id), files),
    )


def _settings(parameters: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, str]:
    """Return a study's parameters; of what its last sweep had instead both: `random, then grid`."""
    resumed = {key: tags[key] for key in _RESUMED if tags.get(key, parameters.get(key)) != parameters.get(key)}
    return {**parameters, **{key: f"{parameters.get(key)}, then {value}" for key, value in resumed.items()}}


def _place(config: TrackingConfig) -> tuple[str, ...]:
    """Return the words of a command that name the place of the records, where that is not the default."""
    given = {name: getattr(config, name) for name in ("root", "uri", "experiment")}
    default = TrackingConfig()
    return tuple(f"tracking.{name}={value}" for name, value in given.items() if value != getattr(default, name))


def _curves(store: tracking.Store, table: pd.DataFrame) -> pd.DataFrame:
    columns = [Column.TRIAL, Column.RUN_ID, Column.STATE, Column.EPOCH, *EPOCH_METRICS]
    begun = table[table[Column.RUN_ID].notna()].sort_values(Column.TRIAL) if len(table) else table
    if begun.empty:
        return pd.DataFrame(columns=columns)
    histories = {name: tracking.metric_histories(store, begun[Column.RUN_ID].tolist(), name) for name in EPOCH_METRICS}
    rows = []
    for trial, run_id, state in zip(begun[Column.TRIAL], begun[Column.RUN_ID], begun[Column.STATE], strict=True):
        curves = [histories[name][run_id] for name in EPOCH_METRICS]
        for epoch in sorted(set().union(*curves)):
            rows.append((trial, run_id, state, epoch, *(curve.get(epoch) for curve in curves)))
    return pd.DataFrame(rows, columns=columns)


def with_known_flags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return a run's tags with those of its flags that are recorded now: earlier versions recorded other variables."""
    try:
        flags = arithmetic_flags(json.loads(tags[Tag.FLAGS]), tags.get(Tag.BACKEND, "tensorflow"))
    except (KeyError, TypeError, ValueError):
        return {name: value for name, value in tags.items() if name != Tag.FLAGS}
    return {**tags, Tag.FLAGS: json.dumps(flags, sort_keys=True)}


def _environment(tags: Sequence[dict[str, str]]) -> dict[str, Counter[str]]:
    versions = sorted({name for each in tags for name in each if name.startswith(Tag.VERSION_PREFIX)})
    names = (*_MACHINE, *_SOFTWARE, *versions, *_CODE_AND_DATA)
    counted = {name: Counter(each[name] for each in tags if name in each) for name in names}
    return {name: values for name, values in counted.items() if values}


def _confirmation(store: tracking.Store, name: str, parent_run_id: str, recorded: Set[str]) -> Confirmation | None:
    names = (Artifact.CONFIRMATION, Artifact.CONFIRMATION_RUNS)
    if not set(names) <= recorded:
        return None
    files = [io.StringIO(tracking.read_text(store, parent_run_id, name)) for name in names]
    runs = pd.read_csv(files[1], float_precision="round_trip")
    table = evaluation.read_confirmation(files[0], runs)
    champion = str(table[table[Column.CHAMPION]][Column.CONFIG].iloc[0])
    run_id = str(runs[runs[Column.CONFIG] == champion][Column.RUN_ID].iloc[0])
    if not tracking.is_kept(store, run_id):
        logger.warning(
            f"study.name={name}: run {run_id} of its champion was deleted from MLflow for good, so that its "
            f"confirmation is not shown; digitcnn confirm study={name} makes it whole"
        )
        return None
    return Confirmation(table, runs, champion, evaluation.manifest_of(store, run_id))


def _ablation(store: tracking.Store, parent_run_id: str, recorded: Set[str]) -> pd.DataFrame | None:
    if Artifact.ABLATION not in recorded:
        return None
    table = pd.read_csv(io.StringIO(tracking.read_text(store, parent_run_id, Artifact.ABLATION)))
    # Of one change that cannot be taken back there is nothing.
    return table if len(table) else None


def most_confident_mistakes(
    manifest: RunManifest, predicted: pd.DataFrame, most: int
) -> list[tuple[dict[str, Any], NDArray[np.uint8]]]:
    """Return what a run was most confidently wrong about: rows of its predictions, each with its (height, width) image.

    Raise ConfigError if its data cannot be read any more, or are others than it was judged by.
    """
    try:
        splits = load_splits(manifest.config.data)
    except MachineError as error:
        raise ConfigError(str(error)) from None
    if splits.sha256 != manifest.data_sha256:
        raise ConfigError(f"data.path={manifest.config.data.path}: holds other data than the run was judged by")
    wrong = predicted[predicted[Column.PREDICTED] != predicted[Column.LABEL]]
    wrong = wrong.sort_values([Column.PROBABILITY, Column.IMAGE], ascending=[False, True]).head(most)
    rows = [{str(name): value for name, value in row.items()} for row in wrong.to_dict("records")]
    return [(row, splits.validation.images[row[Column.IMAGE]]) for row in rows]
