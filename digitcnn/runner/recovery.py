"""Recovery from a killed process: Optuna's and MLflow's records of a study are made to agree again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from digitcnn import study, tracking
from digitcnn.records import Tag, TrialRecord
from digitcnn.runner.run import recorded_outcome


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
        f"{closed} open runs were closed" if closed else "",
        f"{corrected} runs were marked as finished, as their trials are" if corrected else "",
        _deleted_store(opened, store, own),
    ]
    return "; ".join(part for part in said if part)


def unfinished_runs(store: tracking.Store, parent: str) -> list[Any]:
    """Return the runs below a study's run that are RUNNING or FAILED; the others may be thousands.

    By the run and not by the study's name: another study in this MLflow store may have the same name.
    """
    unfinished = "attributes.status != 'FINISHED' and attributes.status != 'KILLED'"
    return tracking.search_runs(store, f"tags.`{Tag.PARENT}` = '{parent}' and {unfinished}")


def end_runs(opened: study.OpenStudy, store: tracking.Store, open_runs: Sequence[Any]) -> tuple[int, int]:
    """End open runs as their trials ended; return how many were RUNNING, and how many FAILED of completed trials."""
    trials = {study.read_trial(trial).run_id: trial for trial in opened.get_trials(deepcopy=False)}
    closed = corrected = 0
    for run in open_runs:
        run_id, trial = run.info.run_id, trials.get(run.info.run_id)
        if trial is not None and trial.state.name == "COMPLETE":
            if Tag.FAILURE in run.data.tags:
                store.client.delete_tag(run_id, Tag.FAILURE)
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
    study.record_trial(opened, trial, study.outcome_record(outcome.epochs, outcome.summary))
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
