"""The Optuna study: its trials, the baseline first, lost ones again, and resuming."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import uuid
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.study import Study as Study
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial as FrozenTrial
from optuna.trial import Trial as Trial

from digitcnn.config import LATER_KEYS, RunConfig, StudyConfig, StudyReference
from digitcnn.errors import ConfigError
from digitcnn.records import PRUNING_METRICS, StudyAttribute, TrialRecord, is_maximized
from digitcnn.study import storage
from digitcnn.study.samplers import make_pruner, make_sampler
from digitcnn.study.space import Choices, Range, Scalar, Space, describe_space, grid_points
from digitcnn.study.trials import parameters_key, parameters_of

optuna.logging.set_verbosity(optuna.logging.ERROR)
# The baseline may lie off a range's steps on purpose; optuna warns of that and of its own experimental parts.
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
warnings.filterwarnings("ignore", message="Fixed parameter .* is out of range")

# Of the studies that an error names.
_MOST_NAMES = 10
_drawing = threading.Lock()


class OpenStudy(Study):
    """A study that is recorded."""

    @property
    def key(self) -> str:
        """What tells the study from every other, whatever their names: its run in MLflow is found by it."""
        return str(self.user_attrs[StudyAttribute.KEY])


def study_identity(config: StudyConfig, space: Space, baseline: RunConfig) -> dict[str, Any]:
    """What makes two sweeps parts of one study: its space, objectives, and every value that is not searched."""
    return {"space": describe_space(space), "objective": list(config.objective), "baseline": fixed_values(baseline)}


def fixed_values(baseline: RunConfig) -> dict[str, Any]:
    """Every value of a baseline that all runs of its study have, unless it is searched."""
    values = baseline.parameters()
    # Threads change the speed of a run, and differ between the machines that a study is resumed on.
    values.pop("training.threads")
    return values


def existing_study(url: str, name: str) -> OpenStudy | None:
    """The study of that name in a store, or None; creates nothing."""
    with storage.storage_errors(url), contextlib.suppress(KeyError):
        if not storage.is_missing(url):
            return OpenStudy(name, storage.connect(url))
    return None


def recorded_study(reference: StudyReference, folder: Path) -> OpenStudy:
    """The study that a reference names, in the records folder. Raises ConfigError if there is none."""
    url = storage.storage_url(folder)
    found = existing_study(url, reference.name)
    with storage.storage_errors(url):
        ours = found is not None and StudyAttribute.IDENTITY in found.user_attrs
    if found is None or not ours:
        names = _recorded_names(url)
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        others = f"; there are {', '.join(names[:_MOST_NAMES])}{more}" if names else ""
        raise ConfigError(f"study.name={reference.name}: no such study is recorded in {folder}{others}")
    return found


def _recorded_names(url: str) -> list[str]:
    """The studies of a store that were made by digitcnn."""
    if storage.is_missing(url):
        return []
    with storage.storage_errors(url):
        found = optuna.get_all_study_summaries(storage.connect(url), include_best_trial=False)
    return sorted(each.study_name for each in found if StudyAttribute.IDENTITY in each.user_attrs)


def snapshot_study(study: Study) -> Study:
    """A copy in memory of a study as it is now, under the same numbers: it can be read again and again."""
    copy = optuna.create_study(study_name=study.study_name, directions=study.directions)
    copy.add_trials(study.get_trials(deepcopy=False))
    if study.metric_names is not None:
        copy.set_metric_names(study.metric_names)
    return copy


def refuse_another(study: Study, wanted: Mapping[str, Any]) -> None:
    """Raises ConfigError, naming the first difference, if the study was begun with another identity."""
    recorded = study.user_attrs.get(StudyAttribute.IDENTITY)
    if recorded is None:
        if study.directions == _directions(wanted["objective"]) and not study.get_trials(deepcopy=False):
            # Just created, by a process that was killed then.
            return
        raise ConfigError(f"study.name={study.study_name}: exists, but was not made by digitcnn; choose another name")
    before, now = _named(recorded), _named(json.loads(json.dumps(wanted)))
    for key in dict.fromkeys([*before, *now]):
        if before.get(key) != now.get(key):
            begun = f"was begun with {before[key]}" if key in before else "was begun without it"
            wanted_now = f"{key}={now[key]}" if key in now else f"{key} is left out"
            raise ConfigError(
                f"{wanted_now}: study {study.study_name} {begun}; choose another study.name for a new study"
            )


def _directions(objectives: Sequence[str]) -> list[StudyDirection]:
    return [StudyDirection.MAXIMIZE if is_maximized(objective) else StudyDirection.MINIMIZE for objective in objectives]


def _named(identity: Mapping[str, Any]) -> dict[str, Any]:
    space = {f"study.space.{name}": value for name, value in identity["space"].items()}
    return {"study.objective": identity["objective"], **space, **LATER_KEYS, **identity["baseline"]}


def open_study(url: str, config: StudyConfig, space: Space, baseline: RunConfig) -> OpenStudy:
    """Creates the study, or resumes it, with trial 0 the baseline. Raises ConfigError if it is another study."""
    wanted = study_identity(config, space, baseline)
    with storage.storage_errors(url):
        store = storage.connect(url)
        study = _created(store, config, wanted)
        study.sampler = make_sampler(config, len(study.get_trials(deepcopy=False)))
        study.pruner = make_pruner(config, space, baseline)
        start = {name: baseline.parameters()[name] for name in space}
        study.enqueue_trial(start, user_attrs=TrialRecord(baseline=True).attributes(), skip_if_exists=True)
        if config.sampler == "grid":
            _enqueue_grid(study, config, space)
    return study


def _created(store: optuna.storages.RDBStorage, config: StudyConfig, wanted: Mapping[str, Any]) -> OpenStudy:
    try:
        study = OpenStudy(config.name, store)
    except KeyError:
        optuna.create_study(study_name=config.name, storage=store, directions=_directions(config.objective))
        study = OpenStudy(config.name, store)
    refuse_another(study, wanted)
    if StudyAttribute.KEY not in study.user_attrs:
        study.set_user_attr(StudyAttribute.KEY, uuid.uuid4().hex)
    if StudyAttribute.IDENTITY not in study.user_attrs:
        study.set_metric_names(list(config.objective))
        # The last of what makes a study: one that has it is whole.
        study.set_user_attr(StudyAttribute.IDENTITY, wanted)
    return study


def _enqueue_grid(study: Study, config: StudyConfig, space: Space) -> None:
    """Queues the grid's points in a seeded order, up to the total. A point that is there already is not repeated.

    Optuna's own grid sampler stumbles over trials that were queued, as a baseline and a retry are.
    """
    points = grid_points(space)
    random.Random(config.seed).shuffle(points)
    known = {parameters_key(parameters_of(trial)) for trial in study.get_trials(deepcopy=False)}
    missing = [point for point in points if parameters_key(point) not in known]
    for point in missing[: max(config.trials - len(known), 0)]:
        study.enqueue_trial(point)


def total_trials(config: StudyConfig, space: Space, baseline: RunConfig) -> int:
    """The number of finished trials at which the study is over: a grid may have fewer points than asked for."""
    if config.sampler != "grid":
        return config.trials
    points = {parameters_key(point) for point in grid_points(space)}
    points.add(parameters_key({name: baseline.parameters()[name] for name in space}))
    return min(config.trials, len(points))


def suggest_parameters(trial: Trial, space: Space) -> dict[str, Scalar]:
    """The trial's parameters by dotted name, drawn without another thread's draws between them."""
    with _drawing:
        return {name: _suggest(trial, name, parameter) for name, parameter in space.items()}


def _suggest(trial: Trial, name: str, parameter: Choices | Range) -> Scalar:
    if isinstance(parameter, Choices):
        choice: Any = trial.suggest_categorical(name, parameter.values)
        return cast("Scalar", choice)
    low, high = parameter.extremes
    if parameter.is_integer:
        step = int(parameter.step or 1)
        return trial.suggest_int(name, int(low), int(high), step=step, log=parameter.log)
    return trial.suggest_float(name, low, high, step=parameter.step, log=parameter.log)


def report_epoch(trial: Trial, objective: str, metrics: Mapping[str, float], epoch: int) -> bool:
    """Tells the pruner of an epoch and returns whether the trial is to end. Always False with several objectives."""
    if len(trial.study.directions) > 1 or objective not in PRUNING_METRICS:
        return False
    trial.report(metrics[PRUNING_METRICS[objective]], epoch)
    return trial.should_prune()


def objective_values(config: StudyConfig, summary: Mapping[str, float]) -> list[float]:
    """The study's objectives out of a run's final metrics."""
    return [summary[objective] for objective in config.objective]
