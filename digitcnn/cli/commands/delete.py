"""Delete a study or a single run, in both stores and on disk: `digitcnn delete study=NAME | run=RUN`."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from digitcnn import evaluation, report, study, tracking
from digitcnn.config import DeleteConfig, StudyReference, TrackingConfig
from digitcnn.errors import ConfigError, MachineError
from digitcnn.files import size_of
from digitcnn.formatting import format_bytes, format_count
from digitcnn.records import STUDY_VIEWS, Tag


def main(config: DeleteConfig) -> int:
    """Say what would be deleted, ask, and delete it; return the exit status, 1 if the answer was no.

    Raises ConfigError if there is no such study or run, if it is the champion's, or if nobody can be asked.
    """
    name, place = config.study.name, config.tracking
    if (name is None) == (config.run is None):
        raise ConfigError("study, run: one of them says what is deleted: digitcnn delete study=NAME, or run=RUN")
    with tracking.store_errors(place), study.storage_errors(place.folder):
        wanted = f"run={config.run}" if name is None else f"study.name={name}"
        store = tracking.open_recorded(place, wanted)
        if name is None:
            run_id = evaluation.find_run(store, str(config.run), StudyReference(name="none"), place, "run")
            return _ask(_of_run(store, run_id, place), store, config)
        opened = study.recorded_study(StudyReference(name=name), place.folder)
        with study.only_process(place.folder, name):
            return _ask(_of_study(store, opened, place), store, config)


def _ask(removal: _Removal, store: tracking.Store, config: DeleteConfig) -> int:
    words = removal.in_words()
    if not config.yes:
        if not sys.stdin.isatty():
            raise ConfigError(f"yes=true deletes without asking, which cannot be done here: {words}")
        print(f"delete {words}? [y/N] ", end="", flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print("nothing was deleted")
            return 1
    _remove(removal, store, config.tracking)
    for experiment_id in removal.experiments:
        report.describe_experiment(store, experiment_id)
    print(f"deleted: {words}")
    return 0


@dataclass(frozen=True)
class _Removal:
    """A removal: of a study's trials, if one is named, of MLflow's runs and models by id, of folders and of files."""

    study: str | None
    runs: tuple[str, ...]
    models: tuple[str, ...]
    folders: tuple[Path, ...]
    files: tuple[Path, ...]
    experiments: tuple[str, ...]

    def in_words(self) -> str:
        """Return what goes and the space that it gives back."""
        what = f"run {self.runs[0]}" if self.study is None else f"study {self.study}: its trials"
        runs = "" if self.study is None else f", {format_count(len(self.runs), 'run')}"
        space = format_bytes(sum(map(size_of, self.folders)) + sum(file.stat().st_size for file in self.files))
        return f"{what}{runs}, {format_count(len(self.models), 'model')}, {space} of files"


def _of_study(store: tracking.Store, opened: study.OpenStudy, config: TrackingConfig) -> _Removal:
    """Return what goes with a study: its trials, confirmation, reports, checkpoints. Raise ConfigError as below."""
    name, key, parent = opened.study_name, opened.key, opened.parent_run_id
    # Another study in this MLflow store may have the same name. One that was cut off may have a run and not know it.
    runs = [
        run
        for run in tracking.study_runs(store, name)
        if run.data.tags.get(Tag.STUDY_KEY) == key
        or (parent is not None and parent in (run.data.tags.get(Tag.PARENT), run.data.tags.get(Tag.SEED_OF)))
    ]
    return _removal(store, runs, config, f"study.name={name}", name)


def _of_run(store: tracking.Store, run_id: str, config: TrackingConfig) -> _Removal:
    """Return what is removed with a single run.

    Raise ConfigError if it is the champion's, or a study's: what a study rests on goes as a whole or not at all.
    """
    run = store.client.get_run(run_id)
    of_study = run.data.tags.get(Tag.STUDY)
    if of_study is not None:
        raise ConfigError(
            f"run={run_id}: belongs to study {of_study}; digitcnn delete study={of_study} deletes all of it"
        )
    return _removal(store, [run], config, f"run={run_id}", None)


def _removal(
    store: tracking.Store, runs: Sequence[Any], config: TrackingConfig, named: str, of_study: str | None
) -> _Removal:
    prefix, champion = Tag.TAKEN_BY_PREFIX, None
    for other in sorted({tag.removeprefix(prefix) for run in runs for tag in run.data.tags if tag.startswith(prefix)}):
        if study.existing_study(config.folder, other) is not None:
            raise ConfigError(f"{named}: study {other} has taken trials of it; delete that one first")
    with contextlib.suppress(ConfigError):
        champion = tracking.champion_run(store)
    ids = [run.info.run_id for run in runs]
    if champion in ids:
        raise ConfigError(
            f"{named}: run {champion} is the champion's, models:/digitcnn@champion; confirm another study, or remove "
            "that alias in MLflow's UI, first"
        )
    return _Removal(
        study=of_study,
        runs=tuple(ids),
        models=tuple(model.model_id for model in tracking.run_models(store, runs)),
        folders=(
            *tracking.run_folders(store, config.folder, runs),
            *(config.study_folders(of_study) if of_study else ()),
        ),
        files=tuple(
            path for path in config.checkpoints().glob("*/*.npz") if not set(ids).isdisjoint(path.stem.split("-"))
        ),
        experiments=tuple(sorted({run.info.experiment_id for run in runs})),
    )


def _remove(removal: _Removal, store: tracking.Store, config: TrackingConfig) -> None:
    """Remove what was planned. What was cut off can be removed again: the study itself goes last.

    Raise MachineError if files cannot be removed.
    """
    for path in (*removal.folders, *removal.files):
        try:
            path.unlink() if path in removal.files else shutil.rmtree(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise MachineError(f"{path} cannot be removed: {error.strerror}; delete again to go on") from None
    tracking.delete_runs(store, removal.runs, removal.models)
    if removal.study is not None:
        views = {f"{Tag.VIEW_PREFIX}{removal.study}{kind}" for kind in STUDY_VIEWS}
        for experiment_id in removal.experiments:
            for name in views & store.client.get_experiment(experiment_id).tags.keys():
                store.client.delete_experiment_tag(experiment_id, name)
        study.delete_study(config.folder, removal.study)
