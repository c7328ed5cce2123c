"""Operations on MLflow runs, by several processes at one moment."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from mlflow import MlflowClient

from digitcnn import tracking
from digitcnn.config import RunConfig, TrackingConfig
from digitcnn.tracking import operations
from digitcnn.tracking.outbox import Operation


def test_operations_record_a_data_set_of_runs_that_are_the_first_with_it_at_one_moment(root: Path) -> None:
    # Given several runs of one experiment, at the same point
    config = TrackingConfig(root=str(root))
    store = tracking.open_store(config)
    together = threading.Barrier(4)

    def first(run_id: str, name: str) -> None:
        client = MlflowClient(config.store_uri)
        data = {"name": name, "digest": "1", "source_type": "local", "source": "{}"}
        client.get_run(run_id)
        together.wait()
        operations.write(replace(store, client=client), run_id, Operation("data", {"training": data}))

    for attempt in range(10):
        ids = [tracking.create_training_run(store, RunConfig(tracking=config), f"run {i}", {}) for i in range(4)]
        # When
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(first, ids, [f"data {attempt}"] * 4))
        # Then
        for run_id in ids:
            (found,) = store.client.get_run(run_id).inputs.dataset_inputs
            assert found.dataset.name == f"data {attempt}"


def test_operations_give_a_run_its_end_and_no_model_however_often(root: Path) -> None:
    # Given
    config = TrackingConfig(root=str(root))
    store = tracking.open_store(config)
    run_id = tracking.create_training_run(store, RunConfig(tracking=config), "run", {})
    store.client.create_logged_model(store.experiment_id, "begun", run_id)
    written = [operations.metrics({"loss": 0.5}, 3), Operation("without_models", {}), operations.ended("KILLED")]
    # When
    for operation in written * 2:
        operations.write(store, run_id, operation)
    # Then
    assert [(point.step, point.value) for point in store.client.get_metric_history(run_id, "loss")] == [(3, 0.5)]
    assert store.client.search_logged_models([store.experiment_id]) == []
    info = store.client.get_run(run_id).info
    assert (info.status, info.end_time) == ("KILLED", written[-1].content["end_time"])


def test_store_that_is_read_gets_no_experiment(root: Path) -> None:
    """Given the name of an experiment that nobody has created."""
    config = TrackingConfig(root=str(root), experiment="digitcn")
    run_id = tracking.create_run(tracking.open_store(TrackingConfig(root=str(root))), "run", {}, {})
    # When
    store = tracking.open_recorded(config, "run=1")
    # Then what is recorded is found, in whatever experiment
    assert store.experiment_id == ""
    assert tracking.find_run_id(store, run_id[:8], "run") == run_id
    assert store.client.get_experiment_by_name("digitcn") is None
