"""The published tables hold what is recorded, each run once, and nothing is written while something is missing."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from digitcnn import confirmation, publication, results, tracking, writes
from digitcnn.config import RunConfig, SweepConfig, TrackingConfig, load
from digitcnn.confirmation import ConfirmConfig
from digitcnn.errors import ConfigError
from digitcnn.publication import PublishConfig
from digitcnn.store import put
from digitcnn.training import samples_per_epoch
from digitcnn.workers import Job
from tests.conftest import REPOSITORY
from tests.recorded import saved_model
from tests.test_sweep import Quiet, work
from tests.trainers import InstantTrainer

# Two seeds and two values of each are enough to tell what is recorded from what is not.
FEWER = {
    **{name: {"training": {"batch_size": [50, 250], "seed": [0, 1]}} for name in results.BATCH_SIZES},
    results.FILTERS: {"training": {"seed": [0, 1]}, "model": {"conv1_filters": [16, 32], "conv2_filters": [32, 64]}},
}


@dataclass(frozen=True)
class ThoroughTrainer(InstantTrainer):
    """Records all that a real training does; a seed brings a thousandth, and so does a batch size of 50."""

    folder: Path = Path()

    def at_the_end(self, job: Job, run: tracking.Run) -> None:
        training = job.config.training
        samples = training.epochs * samples_per_epoch(training, 50_000)
        accuracy = 0.95 + 0.001 * training.seed + 0.001 * (training.batch_size == 50)
        judged = "test" if job.config.data.validation == "test_once" else "validation"
        measured = {f"{judged}_accuracy": accuracy, f"{judged}_loss": 0.1, "samples_seen": samples}
        costs = {"updates": 7, "parameters": 9, "training_seconds": 3.0, "cpu_seconds": 4.0, "peak_memory_mb": 1.0}
        best = {"best_validation_accuracy": accuracy, "best_epoch": 1}
        put(run.store, run.run_id, writes.metrics(measured | costs | best, training.epochs))
        put(
            run.store, run.run_id, writes.tags({"weights_sha256": "0" * 64, "data_sha256": "1" * 64, "engine": "keras"})
        )
        labels = np.arange(20) % 10
        predictions = {"image": range(20), "label": labels, "predicted": labels, "probability": 1.0}
        run.log_file(tracking.PREDICTIONS, pd.DataFrame(predictions).to_csv(index=False))
        put(run.store, run.run_id, writes.model(saved_model(self.folder / run.run_id), {"a": "1"}))


def _preset(name: str, root: Path, **study: Any) -> SweepConfig:
    """A study of conf/study, as the command composes it."""
    with initialize_config_dir(version_base=None, config_dir=str(REPOSITORY / "conf")):
        tree: Any = OmegaConf.to_container(compose("sweep", [f"study={name}"]))
    tree.pop("experiment", None)
    tree["tracking"]["root"] = str(root)
    tree["study"] |= {"workers": 1, **study}
    return load(SweepConfig, tree)


def _articles(network: str, seed: int) -> dict[str, Any]:
    training = {"steps_per_epoch": "batch_size", "seed": seed}
    return {"data": {"validation": "test"}, "model": {"name": network}, "training": training}


def _on_backend(backend: str, engine: str, seed: int) -> dict[str, Any]:
    return {"backend": backend, "training": {"engine": engine, "epochs": 2, "seed": seed}}


def test_what_is_recorded_is_published_and_the_rest_stays_as_it_was(tmp_path: Path) -> None:
    # Given
    root, folder = tmp_path / "records", tmp_path / "published"
    (tmp_path / "models").mkdir()
    trainer = ThoroughTrainer(folder=tmp_path / "models")
    config = PublishConfig(folder=str(folder), tracking=TrackingConfig(root=str(root)))
    said: list[str] = []

    def record(tree: dict[str, Any]) -> None:
        trainer.run(Job(load(RunConfig, tree | {"tracking": {"root": str(root)}}), {}, None), lambda _: "continue")

    with pytest.raises(ConfigError, match="publish: nothing is recorded"):
        publication.publish(config)
    # When only the article's runs are recorded, one of them twice, and one with another learning rate
    record({"training": {"epochs": 3}})
    with pytest.raises(ConfigError, match="publish: nothing that it publishes is recorded .* experiment=article"):
        publication.publish(config)
    assert not folder.exists()
    for network, seed in itertools.product(results.NETWORKS, (0, 1, 1)):
        record(_articles(network, seed))
    other = _articles("cnn", 0)
    record({**other, "training": {**other["training"], "learning_rate": 0.5}})
    publication.publish(config, said.append)
    # Then
    tables = results.read(folder)
    assert set(tables) == {"article", "provenance"}
    article = tables["article"]
    assert list(zip(article["network"], article["seed"], strict=True)) == [
        ("cnn", 0),
        ("cnn", 1),
        ("mlp", 0),
        ("mlp", 1),
    ]
    assert (folder / "RESULTS.md").read_text().count("\n## ") == 2
    assert [line.partition(": ")[0] for line in said] == ["left as it was published"] * 4
    # When all the rest is recorded, in a folder of its own
    root = tmp_path / "others"
    config = config.model_copy(update={"tracking": TrackingConfig(root=str(root))})
    for name, space in FEWER.items():
        work(_preset(name, root, space=space), trainer)
    for (backend, engine), seed in itertools.product(publication.BACKENDS, (0, 1)):
        record(_on_backend(backend, engine, seed))
    work(_preset(results.DEFAULT, root, trials=4, pruner="none"), trainer)
    confirm = {"study": {"name": results.DEFAULT}, "confirm": {"top": 1, "seeds": 2, "workers": 1}}
    planned = confirmation.plan(load(ConfirmConfig, confirm | {"tracking": {"root": str(root)}}))
    confirmation.run(planned, Quiet(), trainer)
    written = publication.publish(config, said.append)
    # Then
    assert "article" in said[-1]
    published = results.read(folder)
    assert written.read_text() == results.text(published)
    assert written.read_text().count("\n## ") == 6
    pd.testing.assert_frame_equal(published["article"], article)
    sizes = published["batch_size"].groupby(["study", "training.batch_size"])
    assert sizes["seed"].apply(list).tolist() == [[0, 1]] * 4
    assert sizes["samples_seen"].first()["batch_size_article"].tolist() == [25_000, 625_000]
    assert sizes["samples_seen"].first()["batch_size"].tolist() == [250_000] * 2
    assert len(published["batch_size_curves"]) == 2 * 2 * 10 + 2 * 2 * 5
    assert len(published["filters"]) == 8
    assert len(published["backends"]) == 8
    assert set(published["provenance"]["part"]) == {
        *("article", *results.BATCH_SIZES, results.FILTERS, "backends", results.DEFAULT, "around_article confirmed")
    }
    equal = results.batch_size_comparisons(published, "batch_size")[50]
    assert equal.difference.mean == pytest.approx(0.001)
    assert (folder / "champion.yaml").read_text().startswith("# The champion")
    assert (folder / "results.png").read_bytes().startswith(b"\x89PNG")


def test_time_in_which_nothing_ran_is_no_wall_time() -> None:
    busy: Callable[[list[tuple[int, int]]], int] = publication._busy
    assert busy([(0, 10), (5, 12), (20, 30), (22, 25)]) == 22
    assert busy([]) == 0
