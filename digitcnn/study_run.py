"""The run that stands for a study in MLflow: the hosts that record in one store share it; the last closes it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from digitcnn import environment, reconcile, storage, study, tracking, trials, writes
from digitcnn.config import SweepConfig, flatten
from digitcnn.errors import MachineError
from digitcnn.hosts import LockLost, SharedStorage
from digitcnn.processes import this_host
from digitcnn.space import parse_space
from digitcnn.study import FrozenTrial, OpenStudy


def begin(opened: OpenStudy, store: tracking.Store, config: SweepConfig) -> str:
    """The id of the study's run: a new one, or the one that there is, RUNNING again.

    MLflow is asked without the study's lock. Under it the first of the hosts that begin at once notes its run, and the
    others take that one. Hosts that record in different stores, each in its own folder, have a run each.
    """
    chosen = None
    while chosen is None:
        noted = opened.user_attrs.get("parent_run_id")
        offered = noted if noted and reconcile.has_run(store, noted) else _found_or_new(opened, store, config)
        chosen = _choose(opened, noted, offered)
    for other in _runs(opened, store):
        if other != chosen:
            # Its process was killed before it could note it, or another host was faster.
            tracking.patiently(store, partial(store.client.delete_run, other))
    tracking.patiently(store, lambda: store.client.update_run(chosen, status="RUNNING"))
    _forget_failure(store, chosen)
    # What it is resumed with: parameters cannot change.
    tracking.put(store, chosen, writes.tags(_tags(opened, config)))
    return chosen


def _found_or_new(opened: OpenStudy, store: tracking.Store, config: SweepConfig) -> str:
    found = _runs(opened, store)
    return found[0] if found else create(opened, store, config)


def _runs(opened: OpenStudy, store: tracking.Store) -> list[str]:
    """The runs that were created for a study, the first first: one, unless a process died or two raced."""
    found = reconcile.search(store, f"tags.`study.key` = '{opened.key}'")
    return [run.info.run_id for run in sorted(found, key=lambda run: run.info.start_time)]


def create(opened: OpenStudy, store: tracking.Store, config: SweepConfig) -> str:
    """Creates a run for a study, with the study's config as parameters, and returns its id."""
    values = flatten({"study": config.study.model_dump(exclude={"storage"})})
    run_id = tracking.create(store, config.study.name, _tags(opened, config), values)
    baseline = config.model_dump(exclude={"tracking": True, "preview": True, "study": {"storage"}})
    tracking.put_yaml(store, run_id, "config.yaml", baseline)
    return run_id


def _tags(opened: OpenStudy, config: SweepConfig) -> dict[str, str]:
    description = environment.describe(config.training.threads or environment.available_cores(), config.backend)
    # A grid may have fewer points than the trials that were asked for.
    total = study.total_trials(config.study, parse_space(config.study.space, config.baseline), config.baseline)
    tags = {"study": config.study.name, "study.key": opened.key, "study.trials": str(total)}
    return tags | environment.flatten_tags(description)


def _choose(opened: OpenStudy, noted: str | None, offered: str) -> str | None:
    """Notes a run as the study's, with this process at work under it; None if another was noted in the meantime."""

    def choose() -> str | None:
        if opened.user_attrs.get("parent_run_id") not in (noted, offered):
            return None
        opened.set_user_attr("parent_run_id", offered)
        if isinstance(opened.store, SharedStorage):
            # From here on, whoever ends leaves the run open.
            opened.store.be_present(offered)
        return offered

    return storage.decide(opened.store, opened.study_name, choose)


def log(store: tracking.Store, run_id: str, leaderboard: str, metrics: Mapping[str, float]) -> None:
    """Records a study's leaderboard (CSV) and the values of its best trial."""
    tracking.put(store, run_id, writes.metrics(metrics, step=0))
    tracking.put_text(store, run_id, "leaderboard.csv", leaderboard)


def end(opened: OpenStudy, store: tracking.Store, run_id: str, total: int, status: tracking.Status) -> None:
    """Closes the study's run, unless other hosts are at work under it, and runs that were left without a process.

    The status is this sweep's. A study whose trials are all there is FINISHED, whoever finds it so. What is to be
    closed is decided under the study's lock, and done after it: a host that joins in between has trials of its own,
    and closes the study's run again when it ends.
    """
    failure: MachineError | LockLost | None = None
    try:
        left = storage.decide(opened.store, opened.study_name, lambda: trials.leave(opened, total, run_id))
    except (LockLost, MachineError) as error:
        # Nobody can say who else is at work. If others are, the last of them will correct this.
        failure, left = error, trials.Left(last=True, over=False, lost=frozenset())
        status = "KILLED" if status == "KILLED" else "FAILED"
    cause = None if failure is None else "the study's store went away"
    for run in _open_trials(store, run_id):
        if run.data.tags.get("host") == this_host() or int(run.data.tags["trial"]) in left.lost:
            tracking.close_run(store, run.info.run_id, "KILLED", cause or "its process ended")
    if left.last:
        if left.over:
            _forget_failure(store, run_id)
        tracking.close_run(store, run_id, "FINISHED" if left.over else status, cause)
    if failure is not None:
        raise failure


def _forget_failure(store: tracking.Store, run_id: str) -> None:
    """What an earlier end said no longer holds: the study goes on, or is all there. Nothing, of a store away."""
    try:
        if "failure" in store.client.get_run(run_id).data.tags:
            store.client.delete_tag(run_id, "failure")
    except Exception as error:
        if not tracking.is_away(error):
            raise


def _open_trials(store: tracking.Store, run_id: str) -> list[Any]:
    """The RUNNING runs of a study's trials, by the study's run: names are given again. None of a store that is away.

    A run whose end is still kept is not one of them.
    """
    try:
        tracking.deliver(store)
        filters = f"attributes.status = 'RUNNING' and tags.`mlflow.parentRunId` = '{run_id}'"
        found = store.client.search_runs([store.experiment_id], filters, max_results=1000)
    except Exception as error:
        if not tracking.is_away(error):
            raise
        return []
    return [run for run in found if "trial" in run.data.tags]


def end_taken(store: tracking.Store, trial: FrozenTrial) -> str:
    """Closes the run of a trial whose host fell silent, another host's or our own after a stall; says why.

    Also one that has FINISHED, if its host fell silent before it could tell the study: the trial is repeated, and of
    the two runs only the one whose result the study has may look like a result. Its metrics stay; its model goes.
    """
    cause = str(trial.user_attrs.get("lost", "its host fell silent"))
    run_id = trial.user_attrs.get("run_id")
    if run_id is not None:
        tracking.close_run(store, str(run_id), "KILLED", cause)
    return f"trial {trial.number} was lost: {cause}; its parameters are queued again"
