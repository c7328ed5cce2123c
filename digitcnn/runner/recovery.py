"""What a killed process left half recorded: Optuna's and MLflow's records of a study are made to say the same."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from digitcnn import study, tracking
from digitcnn.errors import MachineError
from digitcnn.records import Tag, TrialRecord
from digitcnn.runner.workers import Job, Outcome, RunFailed, Worker, WorkerDied
from digitcnn.values import Decision, EpochMetrics

_CAUSE = "its process ended"


def repair_records(opened: study.OpenStudy, store: tracking.Store) -> str:
    """Repairs a study's records for the one process that works on it; says in one line what it repaired, if anything.

    A trial that was running, but whose run had FINISHED or was pruned, gets the result that was recorded; the others
    that were running are lost, and will be repeated. A run that is open is ended as its trial was. Three queries and
    some for each trial that was cut off, however many are recorded.
    """
    parent = str(opened.parent_run_id)
    # By its run: another study in this MLflow store may have the same name.
    own = find_runs(store, f"attributes.run_id = '{parent}'")
    open_runs = [run for run in own if run.info.status == "RUNNING"]
    open_runs += find_runs(store, f"tags.`{Tag.PARENT}` = '{parent}' and {_NOT_ENDED}")
    _note_runs(opened, open_runs, parent)
    finished = [trial.number for trial in _running(opened) if _finish(opened, store, trial)]
    lost = [trial.number for trial in study.end_running_trials(opened)]
    closed, corrected = _end_runs(opened, store, open_runs)
    said = [
        f"trials {_listed(finished)} had finished unnoticed; their results count" if finished else "",
        f"trials {_listed(lost)} had been cut off; their parameters are queued again" if lost else "",
        f"{closed} open runs were closed" if closed else "",
        f"{corrected} runs were marked as finished, as their trials are" if corrected else "",
        _missing(opened, store, own),
    ]
    return "; ".join(part for part in said if part)


# RUNNING or FAILED: those that completed and those that were pruned may be thousands.
_NOT_ENDED = "attributes.status != 'FINISHED' and attributes.status != 'KILLED'"


def recorded_outcome(store: tracking.Store, run_id: str) -> Outcome | None:
    """The outcome of a run that FINISHED or was pruned although its process could not say so; None if it was not.

    How it ended is the last thing that is recorded of a run, so that its metrics and its model are complete by then.
    """

    def read() -> Sequence[Any]:
        # It may be its process's last words that are still kept.
        tracking.deliver_run(store, run_id)
        return tracking.search_runs(store, f"attributes.run_id = '{run_id}' and attributes.status != 'RUNNING'")

    found = tracking.with_retries(store, read)
    if not found:
        return None
    data, status = found[0].data, found[0].info.status
    if status == "FINISHED":
        return Outcome("completed", int(data.params["training.epochs"]), dict(data.metrics))
    if status == "KILLED" and Tag.PRUNED_AFTER in data.tags:
        return Outcome("pruned", int(data.tags[Tag.PRUNED_AFTER]), dict(data.metrics))
    return None


def run_job(
    store: tracking.Store,
    worker: Worker,
    job: Job,
    on_epoch: Callable[[EpochMetrics], Decision],
    stop: threading.Event,
) -> Outcome:
    """Has a worker do a job. One that died when all was recorded, before it could say so, has done it.

    Raises what `Worker.run` raises, and what `on_epoch` raises after the run was closed.
    """
    try:
        return worker.run(job, on_epoch, stop)
    except WorkerDied as death:
        try:
            outcome = recorded_outcome(store, job.run_id)
        except Exception as error:
            if not (stop.is_set() and tracking.is_away(error)):
                raise
            # It was killed since it was to stop: nobody waits for a store.
            raise death from None
        if outcome is None:
            raise
        return outcome
    except (RunFailed, MachineError):
        raise
    except Exception as error:
        tracking.close_run(store, job.run_id, "FAILED", f"{type(error).__name__}: {error}")
        raise


def _note_runs(opened: study.Study, open_runs: Sequence[Any], parent: str) -> None:
    """Tells trials of their runs, where the process was killed between creating a run and doing that."""
    created = {run.data.tags[Tag.TRIAL]: run.info.run_id for run in open_runs if _is_trial_of(run, parent)}
    for trial in _running(opened):
        if study.read_trial(trial).run_id is None and str(trial.number) in created:
            study.record_trial(opened, trial, TrialRecord(run_id=created[str(trial.number)]))


def _finish(opened: study.OpenStudy, store: tracking.Store, trial: study.FrozenTrial) -> bool:
    """Gives a trial the result that its run recorded; False if it recorded none."""
    run_id = study.read_trial(trial).run_id
    outcome = None if run_id is None else recorded_outcome(store, run_id)
    names = opened.metric_names or []
    if outcome is None or not all(name in outcome.summary for name in names):
        return False
    study.record_trial(opened, trial, study.outcome_record(outcome.epochs, outcome.summary))
    study.tell_recorded(opened, trial, {name: outcome.summary[name] for name in names}, outcome.ending == "pruned")
    return True


def _end_runs(opened: study.OpenStudy, store: tracking.Store, open_runs: Sequence[Any]) -> tuple[int, int]:
    """Ends runs as their trials ended; returns how many were open, and how many said FAILED of a completed trial."""
    parent = opened.parent_run_id
    by_run = {study.read_trial(trial).run_id: trial for trial in opened.get_trials(deepcopy=False)}
    closed = corrected = 0
    for run in open_runs:
        trial = by_run.get(run.info.run_id)
        if trial is not None and trial.state.name == "COMPLETE":
            if Tag.FAILURE in run.data.tags:
                store.client.delete_tag(run.info.run_id, Tag.FAILURE)
            tracking.close_run(store, run.info.run_id, "FINISHED")
            corrected += 1
        elif run.info.status == "RUNNING":
            # The study's own run, which has no trial, is opened again by the next sweep.
            tracking.close_run(store, run.info.run_id, "KILLED", None if run.info.run_id == parent else _CAUSE)
            closed += 1
    return closed, corrected


def _missing(opened: study.OpenStudy, store: tracking.Store, own: Sequence[Any]) -> str:
    """Says it if one of the two stores was deleted while the other was kept, as far as that can be told."""
    name = opened.study_name
    if opened.parent_run_id is not None:
        return "" if own else "MLflow's records of it are gone; its trials count without them"
    others = find_runs(store, f"attributes.run_name = '{name}' and tags.{Tag.STUDY} = '{name}'")
    if any(run.data.tags.get(Tag.STUDY_KEY) != opened.key for run in others):
        return "MLflow also has the runs of another study of this name"
    return ""


def has_run(store: tracking.Store, run_id: str) -> bool:
    """Whether a run is recorded, and has not been deleted."""
    return bool(find_runs(store, f"attributes.run_id = '{run_id}'"))


def _is_trial_of(run: Any, parent: str) -> bool:
    tags = run.data.tags
    return Tag.TRIAL in tags and tags.get(Tag.PARENT) == parent


def _running(opened: study.Study) -> list[study.FrozenTrial]:
    return [trial for trial in opened.get_trials(deepcopy=False) if trial.state.name == "RUNNING"]


def find_runs(store: tracking.Store, filters: str) -> list[Any]:
    """The runs that a filter finds, as soon as the store answers."""
    return tracking.with_retries(store, lambda: tracking.search_runs(store, filters))


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in numbers)
