"""The run that stands for a study in MLflow, above those of its trials."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from digitcnn import study, tracking, training
from digitcnn.config import SweepConfig, flatten
from digitcnn.records import Artifact, StudyAttribute, Tag
from digitcnn.runner import recovery
from digitcnn.study import OpenStudy, parse_space


def begin_study_run(opened: OpenStudy, store: tracking.Store, config: SweepConfig) -> str:
    """The id of the study's run: a new one, or the one that there is, RUNNING again."""
    noted = opened.parent_run_id
    run_id = noted if noted and recovery.has_run(store, noted) else _found_or_new(opened, store, config)
    opened.set_user_attr(StudyAttribute.PARENT_RUN_ID, run_id)
    for other in _runs(opened, store):
        if other != run_id:
            # Its process was killed before it could note it.
            tracking.with_retries(store, partial(store.client.delete_run, other))
    tracking.with_retries(store, lambda: store.client.update_run(run_id, status="RUNNING"))
    _forget_failure(store, run_id)
    # What it is resumed with: parameters cannot change.
    tracking.put(store, run_id, tracking.tags(_tags(opened, config)))
    return run_id


def _found_or_new(opened: OpenStudy, store: tracking.Store, config: SweepConfig) -> str:
    found = _runs(opened, store)
    return found[0] if found else create_study_run(opened, store, config)


def _runs(opened: OpenStudy, store: tracking.Store) -> list[str]:
    """The runs that were created for a study, the first first: one, unless a process died."""
    found = recovery.find_runs(store, f"tags.`{Tag.STUDY_KEY}` = '{opened.key}'")
    return [run.info.run_id for run in sorted(found, key=lambda run: run.info.start_time)]


def create_study_run(opened: OpenStudy, store: tracking.Store, config: SweepConfig) -> str:
    """Creates a run for a study, with the study's config as parameters, and returns its id."""
    values = flatten({"study": config.study.model_dump()})
    run_id = tracking.create_run(store, config.study.name, _tags(opened, config), values)
    baseline = config.model_dump(exclude={"tracking", "preview"})
    tracking.put_yaml(store, run_id, Artifact.CONFIG, baseline)
    return run_id


def _tags(opened: OpenStudy, config: SweepConfig) -> dict[str, str]:
    description = training.describe_environment(training.thread_count(config.training), config.backend)
    # A grid may have fewer points than the trials that were asked for.
    total = study.total_trials(config.study, parse_space(config.study.space, config.baseline), config.baseline)
    tags = {Tag.STUDY: config.study.name, Tag.STUDY_KEY: opened.key, Tag.STUDY_TRIALS: str(total)}
    return tags | tracking.environment_tags(description)


def log_study_run(store: tracking.Store, run_id: str, leaderboard: str, metrics: Mapping[str, float]) -> None:
    """Records a study's leaderboard (CSV) and the values of its best trial."""
    tracking.put(store, run_id, tracking.metrics(metrics, step=0))
    tracking.put_files(store, run_id, {Artifact.LEADERBOARD: leaderboard})


def end_study_run(store: tracking.Store, run_id: str, status: tracking.Status) -> None:
    """Closes the study's run with the sweep's status, and the runs of its trials that were left without a process."""
    for run in _open_trials(store, run_id):
        tracking.close_abandoned_run(store, run.info.run_id)
    tracking.close_run(store, run_id, status)


def _forget_failure(store: tracking.Store, run_id: str) -> None:
    """What an earlier end said no longer holds: the study goes on. Nothing, of a store away."""
    try:
        if Tag.FAILURE in store.client.get_run(run_id).data.tags:
            store.client.delete_tag(run_id, Tag.FAILURE)
    except Exception as error:
        if not tracking.is_away(error):
            raise


def _open_trials(store: tracking.Store, run_id: str) -> list[Any]:
    """The RUNNING runs of a study's trials, by the study's run: names are given again. None of a store that is away.

    A run whose end is still kept is not one of them.
    """
    try:
        tracking.deliver(store)
        filters = f"attributes.status = 'RUNNING' and tags.`{Tag.PARENT}` = '{run_id}'"
        found = store.client.search_runs([store.experiment_id], filters, max_results=1000)
    except Exception as error:
        if not tracking.is_away(error):
            raise
        return []
    return [run for run in found if Tag.TRIAL in run.data.tags]
