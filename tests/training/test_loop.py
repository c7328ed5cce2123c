"""The training loop: real Keras on small data."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from digitcnn import runner, training
from digitcnn.config import RunConfig, TrainingConfig, load_config
from digitcnn.errors import TrainingDiverged
from digitcnn.training import batches_per_epoch, build_model, loop, train
from digitcnn.training.loop import epoch_orders, is_last
from digitcnn.values import Checkpoint, Decision, EpochMetrics, TrainingResult
from tests.support.processes import FORKS
from tests.support.trainers import result_of


def _train(config: RunConfig, on_epoch: Any = lambda _: "continue") -> TrainingResult:
    training.import_keras(config.training.threads or 1)
    splits = runner.check_run(config)
    model = build_model(config.model, *splits.image_shape, splits.classes, config.training.seed)
    return result_of(train(model, splits, config), on_epoch)


def _orders(examples: int, **values: Any) -> list[list[int]]:
    return [order.tolist() for order in epoch_orders(TrainingConfig(**values), examples)]


def test_epoch_orders_permute_all_images_in_a_full_pass() -> None:
    first, second = _orders(10, batch_size=3, epochs=2)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert _orders(10, batch_size=3, epochs=2) == [first, second]
    assert _orders(10, batch_size=3, epochs=2, seed=1) != [first, second]
    assert batches_per_epoch(TrainingConfig(batch_size=3), 10) == 4


def test_epoch_orders_with_steps_are_pieces_of_one_repeating_stream() -> None:
    epochs = _orders(10, batch_size=4, epochs=5, steps_per_epoch="batch_size")
    assert [len(epoch) for epoch in epochs] == [16] * 5
    stream = sum(epochs, [])
    assert all(sorted(stream[start : start + 10]) == list(range(10)) for start in range(0, 80, 10))
    assert [len(epoch) for epoch in _orders(10, batch_size=4, epochs=1, steps_per_epoch=7)] == [28]


def test_train_learns_and_counts_its_work(small_config: RunConfig) -> None:
    result = _train(small_config.replace({"training.epochs": 6}))
    assert result.epochs[-1].train_loss < result.epochs[0].train_loss
    summary = result.summary
    assert summary["samples_seen"] == 6 * 500
    assert summary["updates"] == 6 * 10
    assert summary["parameters"] == training.count_parameters(small_config.model, 28, 28, 10)
    best = max(result.epochs, key=lambda epoch: epoch.validation_accuracy)
    assert (summary["best_epoch"], summary["best_validation_accuracy"]) == (best.epoch, best.validation_accuracy)
    assert result.confusion.sum() == 100
    assert np.trace(result.confusion) == round(100 * result.epochs[-1].validation_accuracy)
    assert summary["peak_memory_mb"] > 100
    assert summary["cpu_seconds"] > 0


def test_train_reports_the_metrics_that_keras_does(small_config: RunConfig) -> None:
    """Given the same weights, our validation loss and accuracy are what model.evaluate gives."""
    training.import_keras(1)
    splits = runner.check_run(small_config)
    model = build_model(small_config.model, *splits.image_shape, splits.classes, 0)
    result = result_of(train(model, splits, small_config))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    loss, accuracy = model.evaluate(splits.validation.images, splits.validation.labels, verbose=0)
    assert result.epochs[-1].validation_loss == pytest.approx(loss, rel=1e-5)
    assert result.epochs[-1].validation_accuracy == pytest.approx(accuracy)


def test_train_takes_a_batch_larger_than_the_data(small_config: RunConfig) -> None:
    result = _train(small_config.replace({"training.batch_size": 5000}))
    assert (result.summary["samples_seen"], result.summary["updates"]) == (1000, 2)


@pytest.mark.parametrize(("decision", "ending"), [("prune", "pruned"), ("stop", "stopped")])
def test_train_ends_at_the_epoch_of_the_decision(small_config: RunConfig, decision: Decision, ending: str) -> None:
    result = _train(small_config.replace({"training.epochs": 5}), lambda e: decision if e.epoch == 2 else "continue")
    assert (result.ending, len(result.epochs)) == (ending, 2)


def test_train_ignores_a_decision_after_the_last_epoch(small_config: RunConfig) -> None:
    assert _train(small_config, lambda _: "prune" if _.epoch == 2 else "continue").ending == "completed"


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_training_stops_early_where_keras_does(patience: int) -> None:
    training.import_keras(1)
    from keras.callbacks import EarlyStopping

    for losses in np.random.default_rng(0).integers(0, 9, (100, 12)).tolist():
        callback, model = EarlyStopping("val_loss", patience=patience, mode="min"), SimpleNamespace(stop_training=False)
        callback.set_model(model)
        callback.on_train_begin()
        for epoch in range(12):
            callback.on_epoch_end(epoch, {"val_loss": losses[epoch]})
            epochs = [EpochMetrics(n, 0, 0, loss, 0, 0, 0) for n, loss in enumerate(losses[: epoch + 1], 1)]
            config = TrainingConfig(epochs=12, early_stopping=patience)
            assert is_last(epochs, config) == (model.stop_training or epoch == 11)
            if model.stop_training:
                break


@pytest.mark.parametrize("engine", ["fast", "keras"])
def test_train_that_stops_early_is_bit_for_bit_a_shorter_one(small_config: RunConfig, engine: str) -> None:
    """Also where it goes on from its last checkpoint, as it does if it is killed thereafter."""
    values = {"training.engine": engine, "training.learning_rate": 0.03, "training.epochs": 30}
    config = small_config.replace(values | {"training.early_stopping": 1})
    splits, saved = runner.check_run(config), []

    def trained(job: RunConfig, start: Any = None, prunes: int = 0) -> TrainingResult:
        model = build_model(job.model, *splits.image_shape, splits.classes, job.training.seed)
        events = train(model, splits, job, save=saved.append, saved=start)
        return result_of(events, lambda each: "prune" if each.epoch == prunes else "continue")

    early = trained(config)
    count = early.summary["epochs_run"]
    losses = [epoch.validation_loss for epoch in early.epochs]
    assert (early.ending, len(losses), early.summary["samples_seen"]) == ("completed", count, 500 * count)
    assert 1 < count < 30
    assert losses[-1] >= losses[-2] == min(losses)
    shorter = trained(config.stopped_after(int(count)))
    again = trained(config, saved[0])
    # A decision after its last epoch comes too late, as after a config's last one.
    assert trained(config, prunes=int(count)).ending == "completed"
    assert early.weights_sha256 == shorter.weights_sha256 == again.weights_sha256
    assert (again.epochs, again.final.accuracy) == (early.epochs, early.final.accuracy)


def test_train_raises_diverged_when_a_loss_is_not_finite(small_config: RunConfig) -> None:
    seen: list[EpochMetrics] = []

    def remember(metrics: EpochMetrics) -> Decision:
        seen.append(metrics)
        return "continue"

    with pytest.raises(TrainingDiverged, match="the loss became"):
        _train(small_config.replace({"training.learning_rate": 1e6, "training.epochs": 5}), remember)
    assert all(math.isfinite(metrics.train_loss) for metrics in seen)


def test_train_repeats_its_weights_in_a_warm_process(small_config: RunConfig) -> None:
    digests = [_train(small_config).weights_sha256 for _ in range(2)]
    _train(small_config.replace({"training.seed": 5}))
    digests.append(_train(small_config).weights_sha256)
    assert len(set(digests)) == 1
    assert _train(small_config.replace({"training.seed": 5})).weights_sha256 != digests[0]


def test_train_final_test_only_reads_the_test_set_after_the_last_epoch_alone(small_config: RunConfig) -> None:
    once = _train(small_config.replace({"data.validation": "test_once"}))
    assert [epoch.validation_accuracy for epoch in once.epochs] == [None, None]
    assert not set(once.summary) & {"validation_accuracy", "best_epoch"}
    # The same training as when the test set judges every epoch: judging changes nothing.
    each = _train(small_config.replace({"data.validation": "test"}))
    assert once.weights_sha256 == each.weights_sha256
    assert once.summary["test_accuracy"] == each.epochs[-1].validation_accuracy
    assert once.summary["samples_seen"] == 2 * 600
    assert (once.final.predictions == once.labels).mean() == once.summary["test_accuracy"]


def _train_in_a_process(values: dict[str, Any], folder: Path, epochs: int, start: int) -> None:
    """Leave a checkpoint of each epoch in the folder, and what was trained in `end`."""
    loop._CHECKPOINT_SECONDS = 0.0
    config = load_config(RunConfig, values).replace({"training.epochs": epochs})
    training.import_keras(config.training.threads)
    splits = runner.check_run(config)
    identity = training.identify_training(config, splits.sha256, {})
    saved = training.read_checkpoint((folder / str(start)).read_bytes(), identity, epochs) if start else None
    model = build_model(config.model, *splits.image_shape, splits.classes, config.training.seed)
    events = train(model, splits, config, None, lambda saved: training.write_checkpoint(saved, identity), saved)
    try:
        event = next(events)
        while True:
            if isinstance(event, Checkpoint):
                (folder / str(event.epoch)).write_bytes(event.content)
            event = events.send("continue")
    except StopIteration as end:
        result = end.value
    found = [[each.train_loss, each.validation_loss, each.weights_sha256] for each in result.epochs]
    seconds, spent = result.summary["cpu_seconds"], result.summary["cpu_spent"]
    cost = [result.summary["samples_seen"], result.summary["updates"], seconds >= spent > 0]
    (folder / "end").write_text(json.dumps([found, training.weights_sha256(model), cost]))


@pytest.mark.parametrize("engine", ["keras", "fast"])
@pytest.mark.parametrize(("threads", "batch_size"), [(1, 97), (2, 499)])
def test_train_goes_on_from_any_epoch_with_the_same_bits(
    engine: str, threads: int, batch_size: int, small_npz: Path, tmp_path: Path
) -> None:
    """Three new processes: undisturbed; from the checkpoint of some epoch; and one of fewer epochs, from the start.

    The last batch of 500 images has one image, where there are two threads.
    """
    blocks = (
        {"batch_normalization": True} if threads == 1 else {"padding": "same", "conv3_filters": 8, "dense_units": 0}
    )
    values: dict[str, Any] = {
        "data": {"path": str(small_npz), "validation_size": 100},
        # Layers with a state of their own: seeds and moving averages.
        "model": {"name": "cnn", "conv1_filters": 8, "conv2_filters": 16, "dense_units": 32, "dropout": 0.3} | blocks,
        "training": {"batch_size": batch_size, "threads": threads, "engine": engine},
    }
    if threads == 1:
        values["training"] |= {"optimizer": "adamw", "weight_average": 0.9}
        values["augmentation"] = {"shift": 0.1, "rotation": 10.0, "zoom": 0.1}
    else:
        values["training"] |= {"optimizer": "sgd", "schedule": "one_cycle"}

    def run(epochs: int, start: int = 0) -> Any:
        folder = tmp_path / str(epochs)
        folder.mkdir(exist_ok=True)
        process = FORKS.Process(target=_train_in_a_process, args=(values, folder, epochs, start))
        process.start()
        process.join()
        assert process.exitcode == 0
        return json.loads((folder / "end").read_text())

    (epochs, weights, cost), (first, prefix, _) = run(5), run(2)
    assert (len(epochs), epochs[-1][2]) == (5, weights)
    assert first[-1][2] == prefix
    # A schedule goes over all epochs, however many these are.
    assert (first == epochs[:2]) == (threads == 1)
    assert run(5, random.randint(1, 4)) == [epochs, weights, cost]
