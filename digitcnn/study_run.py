"""The run that stands for a study in MLflow: all hosts have one, the first opens it and the last closes it."""

from __future__ import annotations

from digitcnn import reconcile, storage, tracking, trials
from digitcnn.config import SweepConfig
from digitcnn.errors import MachineError
from digitcnn.hosts import LockLost
from digitcnn.processes import this_host
from digitcnn.study import FrozenTrial, OpenStudy


def begin(opened: OpenStudy, store: tracking.Store, config: SweepConfig) -> str:
    """The id of the study's run: a new one, or the one that there is, RUNNING again."""
    with storage.exclusively(opened.store, config.study.name):
        run_id = opened.user_attrs.get("parent_run_id")
        if run_id is None or not reconcile.has_run(store, str(run_id)):
            run_id = tracking.create_study_run(store, config)
            opened.set_user_attr("parent_run_id", run_id)
        else:
            tracking.reopen_study_run(store, str(run_id), config)
    return str(run_id)


def end(opened: OpenStudy, store: tracking.Store, run_id: str, total: int, status: tracking.Status) -> None:
    """Closes the study's run, unless other hosts are at work on it, and runs that were left without a process.

    The status is this sweep's. A study whose trials are all there is FINISHED, whoever finds it so.
    """
    name, host = opened.study_name, this_host()
    try:
        with storage.exclusively(opened.store, name):
            last, over = trials.leave(opened, total)
            for trial_run in tracking.running_trials(store, name, None if last else host):
                tracking.close_run(store, trial_run, "KILLED", "its process ended")
            if last:
                tracking.close_run(store, run_id, "FINISHED" if over else status)
    except (LockLost, MachineError):
        # Nobody can say who else is at work. If others are, the last of them will correct this.
        for left in (*tracking.running_trials(store, name, host), run_id):
            tracking.close_run(store, left, "FAILED", "the study's store went away")
        raise


def end_taken(store: tracking.Store, trial: FrozenTrial) -> str:
    """Closes the run of a trial whose host fell silent, another host's or our own after a stall; says why."""
    cause = str(trial.user_attrs.get("lost", "its host fell silent"))
    run_id = trial.user_attrs.get("run_id")
    if run_id is not None:
        tracking.close_run(store, str(run_id), "KILLED", cause)
    return f"trial {trial.number} was lost: {cause}; its parameters are queued again"
