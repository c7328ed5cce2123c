"""The Optuna study: its trials, the baseline first, lost ones again, and resuming."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import optuna
from optuna.distributions import BaseDistribution
from optuna.study import Study as Study
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial as FrozenTrial
from optuna.trial import Trial as Trial
from optuna.trial import TrialState

from digitcnn import storage
from digitcnn.config import RunConfig, StudyConfig
from digitcnn.errors import ConfigError
from digitcnn.samplers import PRUNABLE, pruner_of, sampler_of
from digitcnn.space import Choices, Range, Scalar, Space, describe, grid

optuna.logging.set_verbosity(optuna.logging.ERROR)
# The baseline may lie off a range's steps on purpose; optuna warns of that and of its own experimental parts.
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
warnings.filterwarnings("ignore", message="Fixed parameter .* is out of range")

DIRECTIONS = {
    "validation_accuracy": "maximize",
    "best_validation_accuracy": "maximize",
    "validation_loss": "minimize",
    "cpu_seconds": "minimize",
    "training_seconds": "minimize",
    "parameters": "minimize",
}
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)

_drawing = threading.Lock()
_requeueing = threading.Lock()


class SharedStudy(Study):
    """A study whose threads get their trials one after the other.

    SQLite has no row locks, so that two threads asking at once can be given the same queued trial (optuna issue 4002).
    `failure` is the first error that Optuna would not pass on: it looks at no thread that ends after the last began.
    """

    failure: Exception | None = None

    def ask(self, fixed_distributions: dict[str, BaseDistribution] | None = None) -> Trial:
        try:
            with _drawing:
                return super().ask(fixed_distributions)
        except Exception as error:
            self.failure = self.failure or error
            raise


class Pruned(optuna.TrialPruned):
    """The pruner ended this trial."""


class Lost(Exception):
    """The trial did not get to its end for a reason outside it: it will be tried again."""


class Failed(Exception):
    """The trial failed in a way that would happen again."""


def identity(config: StudyConfig, space: Space, baseline: RunConfig) -> dict[str, Any]:
    """What makes two sweeps parts of one study: its space, objectives, and every value that is not searched."""
    fixed = baseline.parameters()
    # Threads change the speed of a run, and differ between machines that work on one study.
    fixed.pop("training.threads")
    return {"space": describe(space), "objective": list(config.objective), "baseline": fixed}


def existing_study(url: str, name: str) -> SharedStudy | None:
    """The study of that name in a store, or None; does not create an embedded store that is not there."""
    if storage.is_missing(url):
        return None
    with storage.errors(url), contextlib.suppress(KeyError):
        return SharedStudy(name, storage.connect(url))
    return None


def refuse_another(study: Study, wanted: Mapping[str, Any]) -> None:
    """Raises ConfigError, naming the first difference, if the study was begun with another identity."""
    recorded = study.user_attrs.get("identity")
    if recorded is None:
        raise ConfigError(f"study.name={study.study_name}: exists, but was not made by digitcnn; choose another name")
    before, now = _named(recorded), _named(json.loads(json.dumps(wanted)))
    for key in dict.fromkeys([*before, *now]):
        if before.get(key) != now.get(key):
            raise ConfigError(
                f"{key}={now.get(key)}: study {study.study_name} was begun with {before.get(key)}; "
                "choose another study.name for a new study"
            )


def _named(identity: Mapping[str, Any]) -> dict[str, Any]:
    space = {f"study.space.{name}": value for name, value in identity["space"].items()}
    return {"study.objective": identity["objective"], **space, **identity["baseline"]}


def open_study(url: str, config: StudyConfig, space: Space, baseline: RunConfig) -> SharedStudy:
    """Creates the study, or resumes it, with trial 0 the baseline. Raises ConfigError if it is another study."""
    wanted = identity(config, space, baseline)
    study = existing_study(url, config.name)
    if study is not None:
        refuse_another(study, wanted)
    with storage.errors(url):
        if study is None:
            connected = storage.connect(url)
            directions = [StudyDirection[DIRECTIONS[objective].upper()] for objective in config.objective]
            optuna.create_study(study_name=config.name, storage=connected, directions=directions)
            study = SharedStudy(config.name, connected)
            study.set_user_attr("identity", wanted)
            study.set_metric_names(list(config.objective))
        study.sampler = sampler_of(config, len(study.get_trials(deepcopy=False)))
        study.pruner = pruner_of(config, space, baseline)
        start = {name: baseline.parameters()[name] for name in space}
        study.enqueue_trial(start, user_attrs={"baseline": True}, skip_if_exists=True)
        if config.sampler == "grid":
            _enqueue_grid(study, config, space)
    return study


def _enqueue_grid(study: Study, config: StudyConfig, space: Space) -> None:
    """Queues the grid's points in a seeded order, up to the total. A point that is there already is not repeated.

    Optuna's own grid sampler stumbles over trials that were queued, as a baseline and a retry are.
    """
    points = grid(space)
    random.Random(config.seed).shuffle(points)
    known = {parameters_key(parameters_of(trial)) for trial in study.get_trials(deepcopy=False)}
    missing = [point for point in points if parameters_key(point) not in known]
    for point in missing[: max(config.trials - len(known), 0)]:
        study.enqueue_trial(point)


def total_trials(config: StudyConfig, space: Space, baseline: RunConfig) -> int:
    """The number of finished trials at which the study is over: a grid may have fewer points than asked for."""
    if config.sampler != "grid":
        return config.trials
    points = {parameters_key(point) for point in grid(space)}
    points.add(parameters_key({name: baseline.parameters()[name] for name in space}))
    return min(config.trials, len(points))


def suggest(trial: Trial, space: Space) -> dict[str, Scalar]:
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


def report(trial: Trial, objective: str, metrics: Mapping[str, float], epoch: int) -> bool:
    """Tells the pruner of an epoch and returns whether the trial is to end. Always False with several objectives."""
    if len(trial.study.directions) > 1 or objective not in PRUNABLE:
        return False
    trial.report(metrics[PRUNABLE[objective]], epoch)
    return trial.should_prune()


@dataclass(frozen=True)
class Ended:
    """A trial that has a result, as another with the same parameters needs it; no values if it was pruned."""

    number: int
    run_id: str
    values: list[float] | None
    attributes: dict[str, Any]
    reports: dict[int, float]


def parameters_of(trial: FrozenTrial) -> dict[str, Scalar]:
    """The parameters a trial has, or was queued with."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def parameters_key(parameters: Mapping[str, Scalar]) -> str:
    """The same text for the same parameters, in whatever order."""
    return json.dumps(dict(sorted(parameters.items())))


def ended(trial: Trial, values: list[float] | None) -> Ended:
    """What another trial needs of this one, which has its result but has not been told to the study."""
    recorded = trial.study.get_trials(deepcopy=False)[trial.number]
    attributes = dict(recorded.user_attrs)
    return Ended(trial.number, str(attributes["run_id"]), values, attributes, recorded.intermediate_values)


def results(study: Study) -> dict[str, Ended]:
    """The trials that have a result, completed or pruned, by `parameters_key`: the first of equals."""
    found: dict[str, Ended] = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
        values = None if trial.state == TrialState.PRUNED else list(trial.values)
        result = Ended(
            trial.number, str(trial.user_attrs["run_id"]), values, trial.user_attrs, trial.intermediate_values
        )
        found.setdefault(parameters_key(trial.params), result)
    return found


def recover(study: Study) -> list[FrozenTrial]:
    """Ends the trials that were running when their sweep ended without a word, as lost; returns them.

    Only for the one process that owns the study.
    """
    stale = study.get_trials(states=(TrialState.RUNNING,))
    for trial in stale:
        study._storage.set_trial_user_attr(trial._trial_id, "lost", "its sweep ended")
        study.tell(trial.number, state=TrialState.FAIL)
    return stale


def requeue_lost(study: Study, retries: int) -> None:
    """Queues every lost trial's parameters again, unless that was done or its worker has died too often on them."""
    # Threads whose trials are lost at the same time must not queue each other's.
    with _requeueing:
        _requeue_lost(study, retries)


def _requeue_lost(study: Study, retries: int) -> None:
    trials = study.get_trials(deepcopy=False)
    repeated = {trial.user_attrs.get("repeats") for trial in trials}
    for trial in trials:
        if trial.state != TrialState.FAIL or "lost" not in trial.user_attrs or trial.number in repeated:
            continue
        deaths = trial.user_attrs.get("deaths", 0)
        if deaths > retries or not parameters_of(trial):
            continue
        attributes = {"repeats": trial.number, "deaths": deaths}
        if trial.user_attrs.get("baseline"):
            attributes["baseline"] = True
        study.enqueue_trial(parameters_of(trial), user_attrs=attributes)


def finished(study: Study) -> int:
    """The trials that count: completed, pruned or failed for good. A lost one counts when it is not repeated."""
    trials = study.get_trials(deepcopy=False, states=_FINISHED)
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING))
    repeated = {trial.user_attrs.get("repeats") for trial in [*trials, *waiting]}
    return sum(
        trial.state != TrialState.FAIL or trial.number not in repeated
        for trial in trials
        # A trial that ended before it had parameters left nothing to count or to repeat.
        if parameters_of(trial)
    )


@dataclass(frozen=True)
class Limits:
    """When a study is over: at a total of finished trials, or after some seconds of this sweep."""

    trials: int
    seconds_left: Callable[[], float | None]


def optimize(
    study: SharedStudy,
    objective: Callable[[Trial], list[float]],
    limits: Limits,
    workers: int,
    retries: int,
    stop: threading.Event,
) -> None:
    """Runs trials on `workers` threads until the total is finished, time is up or `stop` is set.

    The objective raises Pruned, Lost (tried again) or Failed (not tried again) when it has no value. A round starts
    only as many trials as are missing, so that the total is never exceeded; lost trials are made up for in the next.
    """

    def guarded(trial: Trial) -> list[float]:
        if stop.is_set():
            trial.set_user_attr("lost", "interrupted")
            trial.study.stop()
            raise Lost("interrupted")
        try:
            return objective(trial)
        except (Pruned, Lost, Failed):
            raise
        except Exception as error:
            study.failure = study.failure or error
            stop.set()
            trial.set_user_attr("lost", f"{type(error).__name__}")
            raise Lost from error

    def after(study: Study, trial: FrozenTrial) -> None:
        if "lost" in trial.user_attrs:
            requeue_lost(study, retries)
        if stop.is_set():
            study.stop()

    requeue_lost(study, retries)
    while not stop.is_set():
        missing = limits.trials - finished(study)
        seconds = limits.seconds_left()
        if missing <= 0 or (seconds is not None and seconds <= 0):
            return
        study.optimize(
            guarded,
            n_trials=missing,
            timeout=seconds,
            n_jobs=min(workers, missing),
            catch=(Lost, Failed),
            callbacks=[after],
        )
        if study.failure is not None:
            raise study.failure


def best(study: Study) -> FrozenTrial | None:
    """The completed trial with the best first objective, the earliest of equals; None before there is one."""
    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not completed:
        return None
    sign = 1 if study.directions[0] == StudyDirection.MAXIMIZE else -1
    return max(completed, key=lambda trial: (sign * trial.values[0], -trial.number))


def values(config: StudyConfig, summary: Mapping[str, float]) -> list[float]:
    """The study's objectives out of a run's final metrics."""
    return [summary[objective] for objective in config.objective]
