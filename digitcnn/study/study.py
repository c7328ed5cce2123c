"""The Optuna study: created, resumed and found by name."""

from __future__ import annotations

import contextlib
import json
import uuid
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from digitcnn.config import RunConfig, StudyConfig, StudyReference, load_config, nested
from digitcnn.errors import ConfigError
from digitcnn.records import IdentityKey, StudyAttribute, TrialRecord, is_maximized
from digitcnn.study.samplers import make_sampler
from digitcnn.study.space import Space, describe_space, distributions, grid_points
from digitcnn.study.storage import connect, storage_errors, storage_path
from digitcnn.study.trials import EndedTrial, as_recorded, parameters_key

optuna.logging.set_verbosity(optuna.logging.ERROR)
# The baseline may lie off a range's steps on purpose; optuna warns of that and of its own experimental parts.
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
warnings.filterwarnings("ignore", message="Fixed parameter .* is out of range")

# Studies that an error names.
_MAX_NAMES = 10
# optuna-dashboard divides longer notes.
_MAX_NOTE = 2000


class OpenStudy(Study):
    """A recorded study."""

    @property
    def key(self) -> str:
        """The globally unique id of the study; its MLflow run is found by it."""
        return str(self.user_attrs[StudyAttribute.KEY])

    @property
    def identity(self) -> dict[str, Any]:
        """The `study_identity` of the study's first sweep."""
        return dict(self.user_attrs[StudyAttribute.IDENTITY])

    @property
    def parent_run_id(self) -> str | None:
        """The id of the study's MLflow run; None before there is one."""
        return self.user_attrs.get(StudyAttribute.PARENT_RUN_ID)


def study_identity(config: StudyConfig, space: Space, baseline: RunConfig, data_sha256: str) -> dict[str, Any]:
    """Return all that two sweeps of one study share: space, objectives, constraints, seeds, data, fixed values.

    The data are their SHA-256: `data.path` says where they were last, and may change.
    """
    return {
        IdentityKey.SPACE: describe_space(space),
        IdentityKey.OBJECTIVE: list(config.objective),
        IdentityKey.BASELINE: fixed_values(baseline),
        IdentityKey.CONSTRAINTS: config.bounds(),
        IdentityKey.SEEDS: config.seeds,
        IdentityKey.DATA_SHA256: data_sha256,
    }


def fixed_values(baseline: RunConfig) -> dict[str, Any]:
    """Return every value of a baseline, by dotted name, that all runs of its study have unless it is searched."""
    values = baseline.parameters()
    # Threads change the speed of a run, and differ between the machines that a study is resumed on.
    values.pop("training.threads")
    return values


def existing_study(folder: Path, name: str) -> OpenStudy | None:
    """Return the study of that name in a records folder, or None; create nothing."""
    with storage_errors(folder):
        if not storage_path(folder).exists():
            return None
        store = connect(folder)
        with contextlib.suppress(KeyError):
            return OpenStudy(name, store)
    return None


def recorded_study(reference: StudyReference, folder: Path, key: str = "study.name") -> OpenStudy:
    """Return the study that a config's `key` names in a records folder. Raises ConfigError if there is none."""
    found = existing_study(folder, reference.name)
    with storage_errors(folder):
        if found is not None and StudyAttribute.IDENTITY in found.user_attrs:
            return found
        names = sorted(each.study_name for each in recorded_studies(folder))
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    others = f"; there are {', '.join(names[:_MAX_NAMES])}{more}" if names else ""
    raise ConfigError(f"{key}={reference.name}: no such study is recorded in {folder}{others}")


def recorded_studies(folder: Path) -> list[OpenStudy]:
    """Return the studies in a records folder that were made by digitcnn; create nothing."""
    if not storage_path(folder).exists():
        return []
    store = connect(folder)
    found = optuna.get_all_study_summaries(store, include_best_trial=False)
    return [OpenStudy(each.study_name, store) for each in found if StudyAttribute.IDENTITY in each.user_attrs]


def save_note(study: Study, text: str) -> None:
    """Record what optuna-dashboard shows as a study's note, in its own form, for the one process that owns the study.

    What a person wrote there stays.
    """
    before = study._storage.get_study_system_attrs(study._study_id)
    # A person's is of another version than ours, or in several parts.
    if before.get(StudyAttribute.DASHBOARD_NOTE_VERSION, 1) == 1:
        study._storage.set_study_system_attr(study._study_id, StudyAttribute.DASHBOARD_NOTE, text[:_MAX_NOTE])
        study._storage.set_study_system_attr(study._study_id, StudyAttribute.DASHBOARD_NOTE_VERSION, 1)


def delete_study(folder: Path, name: str) -> None:
    """Delete a study and its trials from the store of a records folder."""
    optuna.delete_study(study_name=name, storage=connect(folder))


def snapshot_study(study: Study) -> Study:
    """Return a copy in memory of a study as it is now, with the same trial numbers."""
    copy = study_of_trials(study.directions, study.get_trials(deepcopy=False), study.study_name)
    if study.metric_names is not None:
        copy.set_metric_names(study.metric_names)
    return copy


def study_of_trials(
    directions: Sequence[StudyDirection], trials: Iterable[FrozenTrial], name: str | None = None
) -> Study:
    """Return a study in memory of some trials; their parameters may be off the grid, as a baseline's."""
    memory = optuna.storages.InMemoryStorage()
    made = optuna.create_study(study_name=name, directions=directions, storage=memory)
    for trial in trials:
        # Study.add_trial checks that a value is one of its distribution.
        memory.create_new_trial(made._study_id, template_trial=trial)
    return made


def refuse_another(study: Study, wanted: Mapping[str, Any]) -> None:
    """Raise ConfigError, naming the first difference, if the study was begun with another identity."""
    recorded = study.user_attrs.get(StudyAttribute.IDENTITY)
    if recorded is None:
        if study.directions == _directions(wanted[IdentityKey.OBJECTIVE]) and not study.get_trials(deepcopy=False):
            # Just created, by a process that was killed then.
            return
        raise ConfigError(f"study.name={study.study_name}: exists, but was not made by digitcnn; choose another name")
    # The store holds JSON, in which a tuple is a list.
    before, now = _flat(recorded), _flat(json.loads(json.dumps(wanted)))
    if IdentityKey.DATA_SHA256 in recorded:
        path, begun_with = now.pop("data.path"), before.pop("data.path")
        if recorded[IdentityKey.DATA_SHA256] != wanted[IdentityKey.DATA_SHA256]:
            others = "other images now" if path == begun_with else "other images"
            split = now["data.validation"] == "holdout" and path == begun_with
            drawn = ", or its holdout was drawn before holdouts held each class in proportion (its own commit goes on)"
            raise ConfigError(
                f"data.path={path}: holds {others} than study {study.study_name} was begun with"
                f"{drawn if split else ''}; choose another study.name for a new study"
            )
    for key in dict.fromkeys([*before, *now]):
        if before.get(key) != now.get(key):
            begun = f"was begun with {before[key]}" if key in before else "was begun without it"
            wanted_now = f"{key}={now[key]}" if key in now else f"{key} is left out"
            extends = f", with study.extends={study.study_name} to take its trials along"
            searched = key.startswith("study.")
            raise ConfigError(
                f"{wanted_now}: study {study.study_name} {begun}; choose another study.name for a new study"
                f"{extends if searched else ''}"
            )


def _directions(objectives: Sequence[str]) -> list[StudyDirection]:
    return [StudyDirection.MAXIMIZE if is_maximized(objective) else StudyDirection.MINIMIZE for objective in objectives]


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    space = {f"study.space.{name}": value for name, value in identity[IdentityKey.SPACE].items()}
    searched = {
        "study.objective": identity[IdentityKey.OBJECTIVE],
        "study.constraints": identity.get(IdentityKey.CONSTRAINTS, {}),
        "study.seeds": identity.get(IdentityKey.SEEDS, 1),
    }
    # A study of an earlier version has the defaults of the keys that there were not.
    baseline = fixed_values(load_config(RunConfig, nested(identity[IdentityKey.BASELINE])))
    return {**searched, **space, **baseline}


def open_study(
    folder: Path,
    config: StudyConfig,
    space: Space,
    baseline: RunConfig,
    data_sha256: str,
    taken: Sequence[EndedTrial] = (),
) -> OpenStudy:
    """Create or resume a study in a records folder, and add trials that it takes over; trial 0 is the baseline.

    Raises ConfigError for another study.
    """
    wanted = study_identity(config, space, baseline, data_sha256)
    with storage_errors(folder):
        study = _create_or_load(connect(folder), config, wanted)
        study.sampler = make_sampler(config, len(study.get_trials(deepcopy=False)))
        # One that is taken over comes first among those.
        if not any(trial.record.baseline for trial in taken):
            start = {name: baseline.parameters()[name] for name in space}
            study.enqueue_trial(start, user_attrs=TrialRecord(baseline=True).attributes(), skip_if_exists=True)
        for trial in taken:
            study.add_trial(as_recorded(trial, distributions(space)))
    return study


def _create_or_load(store: RDBStorage, config: StudyConfig, wanted: Mapping[str, Any]) -> OpenStudy:
    try:
        study = OpenStudy(config.name, store)
    except KeyError:
        optuna.create_study(study_name=config.name, storage=store, directions=_directions(config.objective))
        study = OpenStudy(config.name, store)
    refuse_another(study, wanted)
    if StudyAttribute.KEY not in study.user_attrs:
        study.set_user_attr(StudyAttribute.KEY, uuid.uuid4().hex)
    if study.user_attrs.get(StudyAttribute.IDENTITY) != json.loads(json.dumps(wanted)):
        # The study is new, its data have moved, or an earlier version began it without their digest.
        study.set_metric_names(list(config.objective))
        study.set_user_attr(StudyAttribute.IDENTITY, wanted)
    return study


def total_trials(config: StudyConfig, space: Space, baseline: RunConfig) -> int:
    """Return the number of finished trials that completes a study: a grid may have fewer points than asked for."""
    if config.sampler != "grid":
        return config.trials
    points = {parameters_key(point) for point in grid_points(space)}
    points.add(parameters_key({name: baseline.parameters()[name] for name in space}))
    return min(config.trials, len(points))
