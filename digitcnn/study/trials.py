"""The trials of a study: their typed records, parameters and results, and which is the best."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields

from optuna.distributions import BaseDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

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
        cpu_spent=summary.get(Metric.CPU_SPENT),
        seeds=None if Metric.SEEDS not in summary else int(summary[Metric.SEEDS]),
        seeds_sd=summary.get(Metric.SEEDS_SD),
    )


def mean_of_seeds(summaries: Sequence[Mapping[str, float]], objective: str) -> dict[str, float]:
    """Return the final metrics of a trial from those of its runs: means, but for the CPU seconds that it took.

    With their number, and of the objective the standard deviation and error, if there are several.
    """
    means = {name: statistics.fmean(each[name] for each in summaries) for name in summaries[0]}
    if Metric.CPU_SPENT in means:
        means[Metric.CPU_SPENT] *= len(summaries)
    means[Metric.SEEDS] = len(summaries)
    if len(summaries) > 1:
        means[Metric.SEEDS_SD] = statistics.stdev(each[objective] for each in summaries)
        means[Metric.SEEDS_ERROR] = means[Metric.SEEDS_SD] / math.sqrt(len(summaries))
    return means


def named_means(summary: Mapping[str, float]) -> dict[str, float]:
    """Return the means of several seeds by the names that they have in the run of a trial, beside its own metrics."""
    own = (Metric.CPU_SPENT, Metric.SEEDS, Metric.SEEDS_SD, Metric.SEEDS_ERROR)
    return {name if name in own else f"{name}{Metric.MEAN_SUFFIX}": value for name, value in summary.items()}


def trial_of_run(study: Study, run_id: str) -> int | None:
    """Return the number of the trial that a run was recorded of, if it is one of the study's."""
    return next((t.number for t in study.get_trials(deepcopy=False) if read_trial(t).run_id == run_id), None)


def constraint_values(constraints: Mapping[str, Mapping[str, float]], metrics: Mapping[str, float]) -> dict[str, float]:
    """Return how far metrics are beyond the bounds that they are held to, as far as they are known: above 0 is broken.

    `constraints` holds `min` and `max` by metric; the names of the result are `parameters.max`.
    """
    return {
        f"{name}.{side}": metrics[name] - bound if side == "max" else bound - metrics[name]
        for name, bounds in constraints.items()
        if name in metrics
        for side, bound in bounds.items()
    }


def record_constraints(study: Study, trial: Trial | FrozenTrial, values: Mapping[str, float]) -> None:
    """Record a trial's `constraint_values` before it ends, for the sampler and the leaderboard."""
    for name, value in values.items():
        Trial(study, trial._trial_id).set_constraint(name, value)


def broken(constraints: Mapping[str, float]) -> dict[str, float]:
    """Return the constraints that are broken, and by how much."""
    return {name: value for name, value in constraints.items() if value > 0}


def repeated_numbers(trials: Iterable[FrozenTrial]) -> set[int]:
    """Return the numbers of the trials that were queued again, which `TrialRecord.repeats` of others names."""
    # Without `read_trial`, which takes 2 microseconds a trial: this is looked up twice a second in all of them.
    return {trial.user_attrs["repeats"] for trial in trials if "repeats" in trial.user_attrs}


def parameters_of(trial: FrozenTrial) -> dict[str, Scalar]:
    """Return the parameters that a trial has, or was queued with."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def parameters_key(parameters: Mapping[str, Scalar]) -> str:
    """Return the same text for the same parameters, in whatever order, and for 0.3 and the third step of 0.1."""
    return json.dumps(
        {
            name: float(f"{value:.12g}") if isinstance(value, float) else value
            for name, value in sorted(parameters.items())
        }
    )


def beginning_key(parameters: Mapping[str, Scalar]) -> str:
    """Return the same text for parameters that differ in the number of epochs alone."""
    return parameters_key({name: value for name, value in parameters.items() if name != "training.epochs"})


def count_finished(study: Study, sampler: str, retry_failed: bool = False) -> int:
    """Return the number of trials that count: completed, pruned, or failed for a reason of their own unless retried.

    A grid counts its points: trials of equal parameters, which another sampler may have drawn before, are one.
    """
    counted = finished_points(study, retry_failed)
    return len(set(counted) if sampler == "grid" else counted)


def finished_points(study: Study, retry_failed: bool = False) -> list[str]:
    """Return the `parameters_key` of each trial that counts."""
    trials = study.get_trials(deepcopy=False)
    repeated = repeated_numbers(trials)
    ended = [each for each in trials if each.state.is_finished() and each.number not in repeated]
    return [
        parameters_key(parameters_of(each))
        for each in ended
        # A trial that ended before it had parameters left nothing to count or to repeat.
        if each.state != TrialState.FAIL or (not retry_failed and read_trial(each).lost is None and parameters_of(each))
    ]


@dataclass(frozen=True)
class EndedTrial:
    """A trial with a result: the objectives' values, None if it was pruned; and the values its pruner saw by epoch.

    `constraints` are Optuna's, by their names: what is above 0 is broken.
    """

    number: int
    parameters: dict[str, Scalar]
    values: list[float] | None
    record: TrialRecord
    reports: dict[int, float]
    constraints: dict[str, float] = field(default_factory=dict)


def ended_trial(study: Study, trial: Trial, values: list[float] | None) -> EndedTrial:
    """Return a trial with its result, of which the study itself has not been told yet."""
    return _ended(study._storage.get_trial(trial._trial_id), values)


def _ended(trial: FrozenTrial, values: list[float] | None) -> EndedTrial:
    return EndedTrial(
        trial.number, trial.params, values, read_trial(trial), trial.intermediate_values, trial.constraints
    )


def ended_trials(study: Study) -> list[EndedTrial]:
    """Return the completed and the pruned trials, in the order of their numbers."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    return [_ended(trial, None if trial.state == TrialState.PRUNED else list(trial.values)) for trial in trials]


def failed_trials(study: Study) -> list[EndedTrial]:
    """Return the trials that failed for a reason of their own, without values."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    return [each for each in (_ended(trial, None) for trial in trials) if each.record.failure]


def as_recorded(trial: EndedTrial, searched: dict[str, BaseDistribution]) -> FrozenTrial:
    """Return a trial with a result as `Study.add_trial` takes it, its parameters drawn from some distributions."""
    return create_trial(
        state=TrialState.PRUNED if trial.values is None else TrialState.COMPLETE,
        values=trial.values,
        params=trial.parameters,
        distributions=searched,
        user_attrs=trial.record.attributes(),
        intermediate_values=trial.reports,
        constraints=trial.constraints,
    )


def copy_result(study: Study, trial: Trial, original: EndedTrial) -> None:
    """Record of a trial what is recorded of an earlier one with the same parameters, before it ends like that."""
    result = original.record
    copied = TrialRecord(
        same_as=original.number,
        reached=result.reached,
        epochs_run=result.epochs_run,
        pruned_against=result.pruned_against,
        validation_accuracy=result.validation_accuracy,
        cpu_seconds=result.cpu_seconds,
        cpu_spent=0.0,
        seeds=result.seeds,
        seeds_sd=result.seeds_sd,
        seed_runs=result.seed_runs,
    )
    record_trial(study, trial, copied)
    record_constraints(study, trial, original.constraints)
    for epoch, value in original.reports.items():
        trial.report(value, epoch)


def reusable_trials(ended: Iterable[EndedTrial]) -> dict[str, EndedTrial]:
    """Return by `parameters_key` the trials whose results equals take over: the first completed, else the first.

    One that failed for a reason of its own would do so again.
    """
    found: dict[str, EndedTrial] = {}
    for trial in sorted(ended, key=lambda each: (each.values is None, each.number)):
        found.setdefault(parameters_key(trial.parameters), trial)
    return found


def longest_trials(ended: Iterable[EndedTrial]) -> dict[str, EndedTrial]:
    """Return by `beginning_key` the trials that were trained for most epochs, completed or not."""
    trained = [each for each in ended if each.record.same_as is None and each.record.prefix_of is None]
    by_length = sorted(trained, key=lambda each: (each.record.epochs_run or 0, -each.number))
    return {beginning_key(each.parameters): each for each in by_length}


def signed_values(study: Study, values: Iterable[float]) -> list[float]:
    """Return values of the study's objectives such that smaller is better for each."""
    maximized = [direction == StudyDirection.MAXIMIZE for direction in study.directions]
    return [-value if larger else value for larger, value in zip(maximized, values, strict=True)]


def best_first(study: Study, ended: Iterable[EndedTrial]) -> list[EndedTrial]:
    """Return the completed ones of some trials that break no constraint, the best first.

    They are in the order of the objectives, the first of which decides, then the earliest.
    """
    completed = [trial for trial in ended if trial.values is not None and not broken(trial.constraints)]
    return sorted(completed, key=lambda trial: (signed_values(study, trial.values or []), trial.number))


def best_trial(study: Study) -> EndedTrial | None:
    """Return the best of all completed trials, which is the leaderboard's first; None before there is one."""
    return next(iter(best_first(study, ended_trials(study))), None)
