"""The MLflow run of a study, the parent of its trials' runs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from digitcnn import study, tracking, training
from digitcnn.config import SweepConfig, flatten
from digitcnn.records import Artifact, StudyAttribute, Tag
from digitcnn.runner import recovery
from digitcnn.study import OpenStudy, parse_space


def begin_study_run(opened: OpenStudy, store: tracking.Store, config: SweepConfig) -> str:
    """Return the id of the study's run: a new one, or the one that there is, RUNNING again."""
    created = _created_runs(opened, store)
    run_id = opened.parent_run_id
    if run_id is None or not tracking.has_run(store, run_id):
        run_id = created[0] if created else create_study_run(opened, store, config)
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
    tracking.put(store, run_id, tracking.tags(_tags(opened, config)))
    return run_id


def _created_runs(opened: OpenStudy, store: tracking.Store) -> list[str]:
    """Return the runs that were created for a study, the first first: one, unless a process died."""
    found = tracking.find_runs(store, f"tags.`{Tag.STUDY_KEY}` = '{opened.key}'")
    return [run.info.run_id for run in sorted(found, key=lambda run: run.info.start_time)]


def create_study_run(opened: OpenStudy, store: tracking.Store, config: SweepConfig) -> str:
    """Create a run for a study, with the study's config as parameters, and return its id."""
    values = flatten({"study": config.study.model_dump()})
    run_id = tracking.create_run(store, config.study.name, _tags(opened, config), values)
    tracking.put_yaml(store, run_id, Artifact.CONFIG, config.model_dump(exclude={"tracking", "preview"}))
    return run_id


def _tags(opened: OpenStudy, config: SweepConfig) -> dict[str, str]:
    description = training.describe_environment(training.thread_count(config.training), config.backend)
    # A grid may have fewer points than the trials that were asked for.
    total = study.total_trials(config.study, parse_space(config.study.space, config.baseline), config.baseline)
    tags = {Tag.STUDY: config.study.name, Tag.STUDY_KEY: opened.key, Tag.STUDY_TRIALS: str(total)}
    return tags | tracking.environment_tags(description)


def log_study_run(store: tracking.Store, run_id: str, leaderboard: str, metrics: Mapping[str, float]) -> None:
    """Record a study's leaderboard (CSV) and the values of its best trial."""
    tracking.put(store, run_id, tracking.metrics(metrics, step=0))
    tracking.put_files(store, run_id, {Artifact.LEADERBOARD: leaderboard})


def end_study_run(opened: OpenStudy, store: tracking.Store, run_id: str, status: tracking.Status) -> None:
    """Close the runs of a study's trials that were left open, then the study's run; deliver what is queued.

    `status` is the sweep's. The study's run is closed, and what is queued delivered, even if reading the study fails.
    A store that is away gets the end of the study's run only, later: the next sweep closes the others.
    """
    try:
        with tracking.suppress_away():
            # A run whose end is still kept is not open.
            tracking.deliver(store)
            recovery.end_runs(opened, store, recovery.unfinished_runs(store, run_id))
    finally:
        tracking.close_run(store, run_id, status)
        with tracking.suppress_away():
            tracking.deliver(store)
