"""Recorded runs that a study takes over: of another study, or by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from digitcnn import study, tracking
from digitcnn.config import RunConfig, StudyReference, SweepConfig, listed
from digitcnn.errors import ConfigError
from digitcnn.formatting import format_count, named_null
from digitcnn.records import PRUNING_METRICS, Tag
from digitcnn.runner.study_run import outcome_of
from digitcnn.study import EndedTrial, Space

# In place of a trial's number.
_BY_HAND = -1


@dataclass(frozen=True)
class Takeover:
    """The trials that a study is to take over, and in one line how many these are, and why it leaves others."""

    trials: tuple[EndedTrial, ...] = ()
    line: str = ""


class _Left(Exception):
    """The run does not fit into the study, for this reason."""


def plan_takeover(config: SweepConfig, space: Space, data_sha256: str, existing: study.OpenStudy | None) -> Takeover:
    """Return what a study is to take over by `study.extends` and `study.take`. Creates nothing.

    Raises ConfigError if the other study or a run is not recorded, if a run by hand does not fit, or if nothing does.
    """
    name, extends, take = config.study.name, config.study.extends, config.study.take
    if extends is None and take is None:
        return Takeover()
    fitting: dict[str, EndedTrial] = {}
    left: Counter[str] = Counter()
    with tracking.store_errors(config.tracking):
        wanted = f"study.take={take}" if extends is None else f"study.extends={extends}"
        store = tracking.open_recorded(config.tracking, wanted)
        objectives, of_study = _runs_of_study(store, config)
        for number, run in (*((_BY_HAND, run) for run in _runs_by_hand(store, take)), *of_study):
            try:
                trial = _fitted(number, run, config, space, data_sha256, objectives)
            except _Left as reason:
                if number == _BY_HAND:
                    raise ConfigError(f"study.take={run.info.run_id[:8]}: is a run {reason}") from None
                left[str(reason)] += 1
            else:
                if fitting.setdefault(study.parameters_key(trial.parameters), trial) is not trial:
                    left["of equal parameters"] += 1
        if not fitting:
            raise ConfigError(f"study.extends={extends}: none of its trials fits into {name}: {_counted(left)}")
        ended = [] if existing is None else study.ended_trials(existing)
        known = {study.parameters_key(trial.parameters) for trial in ended}
        new = [trial for parameters, trial in fitting.items() if parameters not in known]
        new = _with_reports(store, new, config.study.objective)
    # The baseline is trial 0.
    new.sort(key=lambda trial: not trial.record.baseline)
    before, every = len(fitting) - len(new), format_count(len(fitting) + left.total(), "recorded trial")
    line = f"study {name} takes over {len(new)} of {every}" + (f", and has {before} of them" if before else "")
    return Takeover(tuple(new), line + (f"; left: {_counted(left)}" if left else ""))


def _counted(left: Counter[str]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in left.items()) or "it has none"


def _runs_by_hand(store: tracking.Store, take: str | None) -> list[Any]:
    ids = [tracking.find_run_id(store, each, "study.take") for each in ([] if take is None else listed(take))]
    return list(tracking.runs_of_ids(store, ids).values())


def _runs_of_study(store: tracking.Store, config: SweepConfig) -> tuple[list[str], list[tuple[int, Any]]]:
    """Return the objectives of the study that is extended, and of each trial its number and run, None if it is gone."""
    if config.study.extends is None:
        return [], []
    other = study.recorded_study(StudyReference(name=config.study.extends), config.tracking.folder, "study.extends")
    with study.storage_errors(config.tracking.folder):
        trials = other.get_trials(deepcopy=False)
    ids = {trial.number: study.read_trial(trial).run_id for trial in trials}
    found = tracking.runs_of_ids(store, [run_id for run_id in ids.values() if run_id is not None])
    return other.metric_names or [], [(number, found.get(str(run_id))) for number, run_id in ids.items()]


def _fitted(
    number: int, run: Any, config: SweepConfig, space: Space, data_sha256: str, pruned_by: Sequence[str]
) -> EndedTrial:
    """Return a run as a trial of the study. Raises _Left if it is none.

    One that was pruned is a trial only if that was by the study's own objective.
    """
    outcome = None if run is None else outcome_of(run)
    if outcome is None:
        raise _Left("without a result")
    tags, objectives, seeds = run.data.tags, config.study.objective, str(config.study.seeds)
    parameters = config.baseline.completed(run.data.params)
    if Tag.SAME_AS_RUN in tags:
        raise _Left("with the result of another")
    if tags.get(Tag.DATA_SHA256) != data_sha256:
        raise _Left("with other data")
    if tags.get(Tag.SEEDS, "1") != seeds:
        raise _Left(f"with study.seeds other than {seeds}")
    fixed = study.fixed_values(config.baseline)
    for name in (name for name in fixed if name not in space and name != "data.path"):
        if not _is_the_same(config.baseline, name, parameters[name]):
            raise _Left(f"with {name} other than {named_null(fixed[name])}")
    point = {name: parameter.parse(parameters[name]) for name, parameter in space.items()}
    for name, value in point.items():
        if not space[name].contains(value):
            raise _Left(f"with {name} other than {space[name]}")
    lacking = [name for name in objectives if name not in outcome.summary]
    if lacking:
        raise _Left(f"without {lacking[0]}")
    values = [outcome.summary[name] for name in objectives]
    record = replace(
        study.outcome_record(outcome.epochs, outcome.summary),
        run_id=run.info.run_id,
        baseline=study.parameters_key(point) == study.parameters_key({name: fixed[name] for name in space}),
        pruned_against=outcome.pruned_against,
        taken_from=f"run {run.info.run_id[:8]}" if number == _BY_HAND else f"trial {number} of {config.study.extends}",
    )
    constraints = study.constraint_values(config.study.bounds(), outcome.summary)
    if outcome.ending == "completed":
        return EndedTrial(number, point, values, record, {}, constraints)
    if objectives != pruned_by or len(objectives) > 1:
        raise _Left("pruned before its end")
    reached = {str(name): value for name, value in zip(objectives, values, strict=True)}
    return EndedTrial(number, point, None, replace(record, reached=reached), {}, constraints)


def _is_the_same(baseline: RunConfig, name: str, recorded: str) -> bool:
    """Return True if a recorded text is the baseline's value; an earlier version's words mean what a config's do."""
    value = baseline.parameters()[name]
    if not isinstance(value, str) or recorded == value:
        return recorded == str(value)
    try:
        return bool(baseline.replace({name: recorded}).parameters()[name] == value)
    except ConfigError:
        return False


def _with_reports(store: tracking.Store, trials: Sequence[EndedTrial], objectives: Sequence[str]) -> list[EndedTrial]:
    """Return trials with what a pruner would have been told of their epochs."""
    if len(objectives) > 1 or objectives[0] not in PRUNING_METRICS:
        return list(trials)
    ids = [str(trial.record.run_id) for trial in trials]
    reports = tracking.metric_histories(store, ids, PRUNING_METRICS[objectives[0]])
    return [replace(trial, reports=reports[str(trial.record.run_id)]) for trial in trials]
