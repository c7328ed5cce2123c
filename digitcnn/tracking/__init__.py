"""MLflow: one recorder, the outbox of what a store did not take, and queries. The only importer of mlflow."""

from digitcnn.tracking.client import Store, open_store, pending_message, store_errors, suppress_away, with_retries
from digitcnn.tracking.local import kept_variables, relocate_artifacts
from digitcnn.tracking.operations import (
    Status,
    delete_runs,
    deliver,
    discard_refused,
    metrics,
    put,
    put_files,
    queued_records,
    retry_refused,
    tags,
)
from digitcnn.tracking.outbox import Queued
from digitcnn.tracking.queries import (
    RUN_IDS,
    champion_run,
    filtered_runs,
    find_run_id,
    find_runs,
    has_run,
    is_kept,
    is_running,
    logged_model,
    metric_histories,
    model_file,
    open_recorded,
    read_epochs,
    read_predictions,
    read_text,
    register_champion,
    run_folders,
    run_models,
    runs_below,
    runs_of_ids,
    runs_place,
    same_training,
    search_runs,
    study_runs,
    trained_run,
    was_trained_with,
)
from digitcnn.tracking.recorder import (
    Run,
    close_abandoned_run,
    close_abandoned_runs,
    close_run,
    copy_run,
    create_run,
    create_training_run,
    environment_tags,
    put_yaml,
)
from digitcnn.tracking.results import MODEL_FILE, package_result
