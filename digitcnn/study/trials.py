"""The trials of a study: their typed records, parameters and results, and the best one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from digitcnn.records import Metric, TrialRecord
from digitcnn.study.space import Scalar

_FIELDS = frozenset(each.name for each in fields(TrialRecord))


def read_trial(trial: Trial | FrozenTrial) -> TrialRecord:
    """Return what is recorded of a trial beside its parameters and values."""
    return TrialRecord(**{name: value for name, value in trial.user_attrs.items() if name in _FIELDS})


def record_trial(study: Study, trial: Trial | FrozenTrial, record: TrialRecord) -> None:
    """Add the set fields of a record to a trial that has not ended; the others stay as they are."""
    for name, value in record.attributes().items():
        if isinstance(trial, Trial):
            trial.set_user_attr(name, value)
        else:
            study._storage.set_trial_user_attr(trial._trial_id, name, value)


def outcome_record(epochs: int, summary: Mapping[str, float]) -> TrialRecord:
    """Return what a trial records of its run's final metrics, beside the objectives."""
    return TrialRecord(
        epochs_run=epochs,
        validation_accuracy=summary[Metric.VALIDATION_ACCURACY],
        cpu_seconds=summary[Metric.CPU_SECONDS],
    )


def parameters_of(trial: FrozenTrial) -> dict[str, Scalar]:
    """Return the parameters that a trial has, or was queued with."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def parameters_key(parameters: Mapping[str, Scalar]) -> str:
    """Return the same text for the same parameters, in whatever order."""
    return json.dumps(dict(sorted(parameters.items())))


@dataclass(frozen=True)
class EndedTrial:
    """A trial with a result, for another one with its parameters: the objectives' values, None if it was pruned; what
    is recorded of it; and the values by epoch that its pruner was told."""

    number: int
    values: list[float] | None
    record: TrialRecord
    reports: dict[int, float]


def ended_trial(trial: Trial, values: list[float] | None) -> EndedTrial:
    """Return the result of a trial that has not been told to its study yet."""
    recorded = trial.study.get_trials(deepcopy=False)[trial.number]
    return EndedTrial(trial.number, values, read_trial(recorded), recorded.intermediate_values)


def ended_trials(study: Study) -> dict[str, EndedTrial]:
    """Return the completed and the pruned trials by `parameters_key`: the first of equals."""
    found: dict[str, EndedTrial] = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
        values = None if trial.state == TrialState.PRUNED else list(trial.values)
        ended = EndedTrial(trial.number, values, read_trial(trial), trial.intermediate_values)
        found.setdefault(parameters_key(trial.params), ended)
    return found


def best_trial(study: Study) -> FrozenTrial | None:
    """Return the completed trial with the best first objective, the earliest of equals; None before there is one."""
    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not completed:
        return None
    sign = 1 if study.directions[0] == StudyDirection.MAXIMIZE else -1
    return max(completed, key=lambda trial: (sign * trial.values[0], -trial.number))
