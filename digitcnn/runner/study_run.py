"""The MLflow run of a study: repaired after a process was killed, begun, and closed with the runs of its trials."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from digitcnn import study, tracking, training
from digitcnn.config import SweepConfig, flatten
from digitcnn.files import write_atomically
from digitcnn.formatting import format_count
from digitcnn.records import Artifact, IdentityKey, Metric, StudyAttribute, Tag, TrialRecord
from digitcnn.study import OpenStudy
from digitcnn.values import Ending


@dataclass(frozen=True)
class SweepResult:
    """An ended sweep: its leaderboard, its counts, and the signal of its interruption, if there was one.

    `failure` says why most of the trials failed that have no result, `overtime` how far past its timeout the sweep
    went, and why; they are empty if none did, and if it did not. `epochs` says how many were trained, and saved.
    """

    leaderboard: pd.DataFrame
    leaderboard_path: Path
    finished: int
    completed: int
    total: int
    parent_run_id: str
    interrupted: signal.Signals | None
    failure: str
    overtime: str
    epochs: str


def repair_records(opened: study.OpenStudy, store: tracking.Store) -> str:
    """Repair a study's records, for the one process that owns it; return one line on what was repaired, if anything.

    A trial that was running, but whose run had FINISHED or was pruned, gets the result that was recorded; the others
    that were running are lost, and will be repeated. A run that is open is ended as its trial was. Three queries and
    some for each trial that was cut off, however many are recorded.
    """
    parent = str(opened.parent_run_id)
    own = tracking.find_runs(store, f"attributes.run_id = '{parent}'")
    open_runs = [run for run in own if run.info.status == "RUNNING"]
    open_runs += tracking.with_retries(store, lambda: unfinished_runs(store, parent))
    _record_run_ids(opened, open_runs)
    finished = [trial.number for trial in _running(opened) if _finish(opened, store, trial)]
    lost = [trial.number for trial in study.end_running_trials(opened)]
    closed, corrected = end_runs(opened, store, open_runs)
    said = [
        f"trials {_listed(finished)} had finished unnoticed; their results count" if finished else "",
        f"trials {_listed(lost)} had been cut off; their parameters are queued again" if lost else "",
        f"{format_count(closed, 'open run')} {'was' if closed == 1 else 'were'} closed" if closed else "",
        "1 run was marked as finished, as its trial is" if corrected == 1 else "",
        f"{corrected:,} runs were marked as finished, as their trials are" if corrected > 1 else "",
        _deleted_store(opened, store, own),
    ]
    return "; ".join(part for part in said if part)


def unfinished_runs(store: tracking.Store, parent: str) -> list[Any]:
    """Return the runs below a study's run that are RUNNING or FAILED; the others may be thousands."""
    return tracking.runs_below(store, parent, "attributes.status != 'FINISHED' and attributes.status != 'KILLED'")


def end_runs(opened: study.OpenStudy, store: tracking.Store, open_runs: Sequence[Any]) -> tuple[int, int]:
    """End open runs as their trials ended; return how many were RUNNING, and how many FAILED of completed trials."""
    trials = {study.read_trial(trial).run_id: trial for trial in opened.get_trials(deepcopy=False)}
    closed = corrected = 0
    for run in open_runs:
        run_id, trial = run.info.run_id, trials.get(run.info.run_id)
        if trial is not None and trial.state.name == "COMPLETE":
            if Tag.FAILURE in run.data.tags:
                for name in {Tag.FAILURE, Tag.NOTE} & run.data.tags.keys():
                    store.client.delete_tag(run_id, name)
            tracking.close_run(store, run_id, "FINISHED")
            corrected += 1
        elif run.info.status == "RUNNING":
            if run_id == opened.parent_run_id:
                # No failure to name: the next sweep opens it again.
                tracking.close_run(store, run_id, "KILLED")
            else:
                tracking.close_abandoned_run(store, run_id)
            closed += 1
    return closed, corrected


def _record_run_ids(opened: study.OpenStudy, open_runs: Sequence[Any]) -> None:
    """Record a trial's run where the process was killed between creating the run and doing that."""
    created = {run.data.tags[Tag.TRIAL]: run.info.run_id for run in open_runs if Tag.TRIAL in run.data.tags}
    for trial in _running(opened):
        if study.read_trial(trial).run_id is None and str(trial.number) in created:
            study.record_trial(opened, trial, TrialRecord(run_id=created[str(trial.number)]))


def _finish(opened: study.OpenStudy, store: tracking.Store, trial: study.FrozenTrial) -> bool:
    """Give a trial the result that its run recorded; return False if it recorded none."""
    run_id = study.read_trial(trial).run_id
    outcome = None if run_id is None else recorded_outcome(store, run_id)
    names = opened.metric_names or []
    if outcome is None or not all(name in outcome.summary for name in names):
        return False
    record = study.outcome_record(outcome.epochs, outcome.summary)
    study.record_trial(opened, trial, replace(record, pruned_against=outcome.pruned_against))
    constraints = opened.identity.get(IdentityKey.CONSTRAINTS, {})
    study.record_constraints(opened, trial, study.constraint_values(constraints, outcome.summary))
    study.tell_recorded(opened, trial, {name: outcome.summary[name] for name in names}, outcome.ending == "pruned")
    return True


def _deleted_store(opened: study.OpenStudy, store: tracking.Store, own: Sequence[Any]) -> str:
    """Return a sentence if one of the two stores was deleted while the other was kept, as far as that can be told."""
    name = opened.study_name
    if opened.parent_run_id is not None:
        return "" if own else "MLflow's records of it are gone; its trials count without them"
    others = tracking.find_runs(store, f"attributes.run_name = '{name}' and tags.{Tag.STUDY} = '{name}'")
    if any(run.data.tags.get(Tag.STUDY_KEY) != opened.key for run in others):
        return "MLflow also has the runs of another study of this name"
    return ""


def _running(opened: study.OpenStudy) -> list[study.FrozenTrial]:
    return [trial for trial in opened.get_trials(deepcopy=False) if trial.state.name == "RUNNING"]


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in numbers)


@dataclass(frozen=True)
class _Outcome:
    """The recorded result of a run: its ending, its number of epochs, and its final metrics by name.

    A run that was pruned has the number of values that it was judged against, if it is recorded.
    """

    ending: Ending
    epochs: int
    summary: dict[str, float]
    pruned_against: int | None = None


def recorded_outcome(store: tracking.Store, run_id: str) -> _Outcome | None:
    """Return the outcome of a run that FINISHED or was pruned although its process could not say so; None of others.

    Its status is the last that is recorded of a run, so that its metrics and its model are complete by then.
    """

    def read() -> Sequence[Any]:
        # How it ended may be among what is still kept for the store.
        tracking.deliver(store, run_id)
        return tracking.search_runs(store, f"attributes.run_id = '{run_id}' and attributes.status != 'RUNNING'")

    found = tracking.with_retries(store, read)
    if not found:
        return None
    return outcome_of(found[0])


def outcome_of(run: Any) -> _Outcome | None:
    """Return the outcome of a run; None unless it FINISHED or was pruned."""
    data, status = run.data, run.info.status
    if status == "FINISHED":
        # Earlier versions recorded no other number: no run of theirs stopped early.
        epochs = int(data.metrics.get(Metric.EPOCHS_RUN, data.params["training.epochs"]))
        # Of several seeds the means count.
        means = {name for name in data.metrics if name.endswith(Metric.MEAN_SUFFIX)}
        summary = data.metrics | {name.removesuffix(Metric.MEAN_SUFFIX): data.metrics[name] for name in means}
        return _Outcome("completed", epochs, summary)
    if status == "KILLED" and Tag.PRUNED_AFTER in data.tags:
        against = int(data.tags[Tag.PRUNED_AGAINST]) if Tag.PRUNED_AGAINST in data.tags else None
        return _Outcome("pruned", int(data.tags[Tag.PRUNED_AFTER]), dict(data.metrics), against)
    return None


def begin_study_run(opened: OpenStudy, store: tracking.Store, config: SweepConfig, total: int) -> str:
    """Return the id of the run of a study of `total` trials: a new one, or the one that there is, RUNNING again."""
    created = _created_runs(opened, store)
    run_id = opened.parent_run_id
    if run_id is None or not tracking.has_run(store, run_id):
        run_id = created[0] if created else create_study_run(opened, store, config, total)
    opened.set_user_attr(StudyAttribute.PARENT_RUN_ID, run_id)
    for other in created:
        if other != run_id:
            # Its process was killed before it could record it.
            tracking.with_retries(store, partial(store.client.delete_run, other))
    tracking.with_retries(store, lambda: store.client.update_run(run_id, status="RUNNING"))
    with tracking.suppress_away():
        # What an earlier sweep failed from: the study goes on.
        if Tag.FAILURE in store.client.get_run(run_id).data.tags:
            store.client.delete_tag(run_id, Tag.FAILURE)
    # What it is resumed with: parameters cannot change.
    tracking.put(store, run_id, tracking.tags(_tags(opened, config, total)))
    return run_id


def _created_runs(opened: OpenStudy, store: tracking.Store) -> list[str]:
    """Return the runs that were created for a study, the first first: one, unless a process died."""
    found = tracking.find_runs(store, f"tags.`{Tag.STUDY_KEY}` = '{opened.key}'")
    return [run.info.run_id for run in sorted(found, key=lambda run: run.info.start_time)]


def create_study_run(opened: OpenStudy, store: tracking.Store, config: SweepConfig, total: int) -> str:
    """Create a run for a study of `total` trials, with its config as parameters, and return its id."""
    values = flatten({"study": config.study.model_dump()})
    run_id = tracking.create_run(store, config.study.name, _tags(opened, config, total), values)
    tracking.put_yaml(store, run_id, Artifact.CONFIG, config.model_dump(exclude={"tracking", "preview"}))
    return run_id


def _tags(opened: OpenStudy, config: SweepConfig, total: int) -> dict[str, str]:
    description = training.describe_environment(training.thread_count(config.training), config.backend)
    tags = {
        Tag.STUDY: config.study.name,
        Tag.STUDY_KEY: opened.key,
        # A grid may have fewer points than the trials that were asked for.
        Tag.STUDY_TRIALS: str(total),
        Tag.STUDY_SAMPLER: config.study.sampler,
        Tag.STUDY_PRUNER: config.study.pruner,
        Tag.STUDY_SEED: str(config.study.seed),
    }
    return tags | tracking.environment_tags(description)


def record_leaderboard(
    opened: OpenStudy, store: tracking.Store, run_id: str, config: SweepConfig
) -> tuple[Path, pd.DataFrame]:
    """Write a study's leaderboard as CSV, record it with the best trial's values; return its path and the table."""
    table, best = study.rank_trials(opened), study.best_trial(opened)
    text = table.to_csv(index=False)
    path = config.tracking.reports(config.study.name) / Artifact.LEADERBOARD
    write_atomically(path, text, "the trials are recorded")
    values = [] if best is None else best.values or []
    names = [f"{Metric.BEST_TRIAL_PREFIX}{name}" for name in config.study.objective]
    tracking.put(store, run_id, tracking.metrics(dict(zip(names, values, strict=False)), step=0))
    tracking.put_files(store, run_id, {Artifact.LEADERBOARD: text})
    study.save_note(opened, f"{study.best_against_baseline(table, config.study.objective)}\n\nMLflow run {run_id}")
    return path, table


def sweep_ending(queue: study.TrialQueue, failed: bool, interrupted: bool) -> tuple[tracking.Status, str]:
    """Return the status of a study's run, and in words how its sweep ended."""
    reached = f"{queue.finished} of {queue.total} trials"
    if failed:
        return "FAILED", f"failed after {reached}"
    if interrupted:
        return "KILLED", f"interrupted after {reached}"
    if queue.finished < queue.total:
        return "KILLED", f"time was up after {reached}"
    return ("FINISHED", reached) if queue.completed else ("FAILED", f"{reached}, none of them completed")


def end_study_run(opened: OpenStudy, store: tracking.Store, run_id: str, status: tracking.Status, words: str) -> None:
    """Close the runs of a study's trials that were left open, then the study's run; deliver what is queued.

    `status` is the sweep's, and `words` say how it ended. The study's run is closed, and what is queued
    delivered, even if reading the study fails. A store that is away gets the end of the study's run only, later: the
    next sweep closes the others.
    """
    try:
        with tracking.suppress_away():
            # A run whose end is still kept is not open.
            tracking.deliver(store)
            end_runs(opened, store, unfinished_runs(store, run_id))
    finally:
        tracking.put(store, run_id, tracking.tags({Tag.STUDY_ENDED: words}))
        tracking.close_run(store, run_id, status)
        with tracking.suppress_away():
            tracking.deliver(store)
