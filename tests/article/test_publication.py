"""The published tables hold what is recorded, each run once, and a part that is not whole is not published."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from digitcnn import evaluation, runner, tracking, training
from digitcnn.config import ConfirmConfig, RunConfig, StudyReference, SweepConfig, TrackingConfig, load_config
from digitcnn.errors import ConfigError
from digitcnn.records import Artifact
from digitcnn.report import StudyRecord
from digitcnn.tracking import Store, open_store
from digitcnn.tracking import local as local_module
from digitcnn.training import samples_per_epoch
from digitcnn.values import Ending, RunFinished
from experiments.article import __main__ as command
from experiments.article import answers, collection, contrasts, publication, results
from experiments.article.publication import PublishConfig
from tests.conftest import ONE_WORKER, REPOSITORY
from tests.support.messages import logged_messages
from tests.support.sweeps import Quiet, work
from tests.support.trainers import MODEL, InstantTrainer

# What is published is recorded once.
pytestmark = pytest.mark.xdist_group("publication")

# Two seeds and two values of each are enough to tell what is recorded from what is not.
FEWER = {
    **{name: {"training": {"batch_size": [50, 250], "seed": [0, 1]}} for name in contrasts.BATCH_SIZE_STUDIES},
    results.FILTERS: {"training": {"seed": [0, 1]}, "model": {"conv1_filters": [16, 32], "conv2_filters": [64]}},
}


@dataclass(frozen=True)
class ThoroughTrainer(InstantTrainer):
    """Yields all that a real training does; a seed brings a thousandth, and so does a batch size of 50."""

    def result(self, job: RunConfig, ending: Ending, epochs: int, judged: dict[str, float]) -> RunFinished:
        training, once = job.training, job.data.validation == "test_once"
        accuracy = 0.95 + 0.001 * training.seed + 0.001 * (training.batch_size == 50)
        summary = dict.fromkeys(judged, 0.1) | {"test_accuracy" if once else "validation_accuracy": accuracy}
        summary |= {"samples_seen": training.epochs * samples_per_epoch(training, 50_000)}
        summary |= {"updates": 7, "parameters": 9, "training_seconds": 3.0, "cpu_seconds": 4.0, "peak_memory_mb": 1.0}
        summary |= {"best_validation_accuracy": accuracy, "best_epoch": 1}
        engine = training.engine
        labels = np.arange(20) % 10
        predictions = {"image": range(20), "label": labels, "predicted": labels, "probability": 1.0}
        files = {Artifact.PREDICTIONS: pd.DataFrame(predictions).to_csv(index=False).encode()}
        # The champion's has a model.
        return RunFinished(ending, epochs, summary, "0" * 64, engine, files, MODEL if once else {})


def _preset(name: str, root: Path, **study: Any) -> SweepConfig:
    """A study of conf/study, as the command composes it."""
    with initialize_config_dir(version_base=None, config_dir=str(REPOSITORY / "conf")):
        tree: Any = OmegaConf.to_container(compose("sweep", [f"study={name}"]))
    tree.pop("experiment", None)
    tree["tracking"]["root"] = str(root)
    tree["study"] |= study
    tree["workers"]["count"] = 1
    return load_config(SweepConfig, tree)


def _articles(network: str, seed: int) -> dict[str, Any]:
    training = {"steps_per_epoch": "batch_size", "seed": seed}
    return {"data": {"validation": "test"}, "model": {"name": network}, "training": training}


def _on_backend(backend: str, engine: str, seed: int) -> dict[str, Any]:
    return {"backend": backend, "training": {"engine": engine, "epochs": 2, "seed": seed}}


@dataclass(frozen=True)
class Records:
    """A folder of records, and what trains into it."""

    root: Path
    trainer: ThoroughTrainer

    @property
    def tracking(self) -> TrackingConfig:
        return TrackingConfig(root=str(self.root))

    @property
    def store(self) -> Store:
        return open_store(self.tracking)

    def record(self, tree: dict[str, Any], tags: dict[str, str] | None = None) -> None:
        config = load_config(RunConfig, tree | {"tracking": {"root": str(self.root)}})
        with pytest.MonkeyPatch.context() as patched:
            # Nothing of the backend is used.
            patched.setattr(training, "check_installed", lambda backend: None)
            runner.record_run(config, tags=tags or {}, trainer=self.trainer)

    def publish(self, folder: Path) -> list[str]:
        """Publishes, and returns what was said."""
        with logged_messages() as said:
            publication.publish(PublishConfig(folder=str(folder), tracking=self.tracking))
        return said


def _empty(empty_records: Path, folder: Path) -> Records:
    root = shutil.copytree(empty_records, folder / "records")
    local_module.relocate_artifacts(root)
    return Records(root, ThoroughTrainer())


@pytest.fixture(scope="module")
def article(empty_records: Path, tmp_path_factory: pytest.TempPathFactory) -> Records:
    """The article's runs, one of them twice, and one with another learning rate."""
    records = _empty(empty_records, tmp_path_factory.mktemp("article"))
    for network, seed in (*itertools.product(answers.NETWORKS, (0, 1)), ("cnn", 1)):
        records.record(_articles(network, seed))
    other = _articles("cnn", 0)
    records.record({**other, "training": {**other["training"], "learning_rate": 0.5}})
    return records


@pytest.fixture(scope="module")
def rest(empty_records: Path, tmp_path_factory: pytest.TempPathFactory) -> Records:
    """All that is published but the article's runs."""
    records = _empty(empty_records, tmp_path_factory.mktemp("rest"))
    for name, space in FEWER.items():
        work(_preset(name, records.root, space=space), records.trainer)
    # By hand, for the study of what would help.
    schedule = {"precision": "auto", "schedule": "cosine", "batch_size": 125}
    records.record({"training": schedule, "model": {"name": "cnn", "dropout": 0.5}})
    (by_hand,) = tracking.search_runs(records.store, "params.`training.schedule` = 'cosine'")
    for name in results.CONFIRMED.values():
        take = f"[{by_hand.info.run_id}]" if name == "beyond" else None
        work(_preset(name, records.root, trials=2, pruner="none", constraints={}, take=take), records.trainer)
        asked = {"top": 1, "seeds": 2, "ablation": name == "beyond"}
        confirm = {"study": {"name": name}, "confirm": asked, "workers": ONE_WORKER}
        planned = evaluation.plan_confirmation(
            load_config(ConfirmConfig, confirm | {"tracking": {"root": str(records.root)}})
        )
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(sys, "argv", ["digitcnn", "confirm", f"study={name}", f"tracking.root={records.root}"])
            evaluation.run_confirmation(planned, Quiet(), records.trainer)
    for (backend, engine), seed in itertools.product(collection.BACKENDS, (0, 1)):
        records.record(_on_backend(backend, engine, seed))
    return records


@pytest.fixture
def strays(rest: Records) -> Iterator[None]:
    """Runs that are no part of what is published, and look like it."""
    store, name = rest.store, results.DEFAULT
    (parent,) = {run.data.tags["mlflow.parentRunId"] for run in tracking.study_runs(store, name, "confirms")}
    trial = {"study": name, "trial": "9"}
    made = [
        # Cut off before it could record by which command; a duplicate has no command either.
        tracking.create_training_run(store, RunConfig(), "cut off", trial, parent),
        # Still at work.
        tracking.create_training_run(
            store, RunConfig(), "at work", {"study": name, "confirms": "x", "command": "python x"}, parent
        ),
        # Of another study that had the name.
        tracking.create_training_run(store, RunConfig(), "other", {**trial, "command": "python x"}, "0" * 32),
    ]
    for run_id in (made[0], made[2]):
        tracking.close_run(store, run_id, "KILLED")
    before = {run.info.run_id for run in tracking.search_runs(store, "")}
    rest.record(_on_backend("torch", "keras", 0), {"reproduces": "0" * 32})
    # On fewer cores than the others, if there are more than one: its speed is no answer.
    one_thread = _on_backend("jax", "keras", 0)
    one_thread["training"]["threads"] = 1
    if (os.cpu_count() or 1) > 1:
        rest.record(one_thread, {"odd": "threads"})
    rest.record(_on_backend("torch", "keras", 1), {"study": "other"})
    yield
    made += {run.info.run_id for run in tracking.search_runs(store, "")} - before
    for run_id in made:
        store.client.delete_run(run_id)


def test_publication_writes_the_recorded_parts(article: Records, tmp_path: Path) -> None:
    # When
    said = article.publish(tmp_path)
    # Then
    tables = results.read_tables(tmp_path)
    assert set(tables) == {"article", "provenance"}
    runs = tables["article"]
    assert list(zip(runs["network"], runs["seed"], strict=True)) == [("cnn", 0), ("cnn", 1), ("mlp", 0), ("mlp", 1)]
    assert tables["provenance"]["runs"].tolist() == [4]
    assert (tmp_path / "RESULTS.md").read_text().count("\n## ") == 2
    assert [line.partition(": ")[0] for line in said] == ["not published"] * 6


def test_publication_keeps_a_part_until_it_is_recorded_again(
    article: Records, rest: Records, strays: None, tmp_path: Path
) -> None:
    # Given
    article.publish(tmp_path)
    before = results.read_tables(tmp_path)
    # When
    (said,) = rest.publish(tmp_path)
    # Then
    assert said.startswith("left as it was published: network: needs runs with several seeds; digitcnn ")
    text, published = (tmp_path / "RESULTS.md").read_text(), results.read_tables(tmp_path)
    assert text == results.render_text(published)
    assert text.count("\n## ") == 8
    assert text.count("What each change brings") == 1
    changes = set(published["beyond_ablation"]["config"].str.rpartition(",")[2])
    assert changes == {" alone", " in trial 1"}
    assert published["cheapest_ablation"].empty
    pd.testing.assert_frame_equal(published["article"], before["article"])
    sizes = published["batch_size"].groupby(["study", "training.batch_size"])
    assert sizes["seed"].apply(list).tolist() == [[0, 1]] * 4
    assert sizes["samples_seen"].first()["batch_size_article"].tolist() == [25_000, 625_000]
    assert sizes["samples_seen"].first()["batch_size"].tolist() == [250_000] * 2
    assert len(published["batch_size_curves"]) == 2 * 2 * 10 + 2 * 2 * 5
    assert len(published["filters"]) == 4
    backends = published["backends"]
    assert set(zip(backends["backend"], backends["engine"], strict=True)) == set(collection.BACKENDS)
    assert published["provenance"].set_index("part")["runs"].to_dict() == {
        "article": 4,
        **dict.fromkeys((*contrasts.BATCH_SIZE_STUDIES, results.FILTERS), 4),
        "backends": 8,
        **dict.fromkeys(results.CONFIRMED.values(), 2),
        "around_article confirmed": 4,
        "beyond confirmed": 4 + 2 * len(published["beyond_ablation"]),
        "cheapest confirmed": 4,
    }
    of_others = {run.info.run_id for run in tracking.search_runs(rest.store, "") if "reproduces" in run.data.tags}
    of_others |= {run.info.run_id for run in tracking.search_runs(rest.store, "tags.study = 'other'")}
    assert len(of_others) == 2
    of_others |= {run.info.run_id for run in tracking.search_runs(rest.store, "tags.odd = 'threads'")}
    assert not of_others & set(backends["run_id"])
    assert contrasts.batch_size_comparisons(published, "batch_size")[50].difference == pytest.approx(0.001)
    for name in ("champion.yaml", "beyond_champion.yaml", "cheapest_champion.yaml"):
        champion = (tmp_path / name).read_text()
        assert champion.startswith("# A champion")
        assert "  command: digitcnn confirm study=" in champion
        assert str(rest.root) not in champion
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


def test_collection_names_a_seed_that_one_network_lacks(article: Records, tmp_path: Path) -> None:
    # Given
    article.publish(tmp_path)
    before = (tmp_path / "article.csv").read_text()
    article.record(_articles("cnn", 2))
    (added,) = tracking.search_runs(article.store, "params.`training.seed` = '2'")
    # When nothing else is recorded
    with logged_messages() as said, pytest.raises(ConfigError, match="publish: nothing that it publishes is recorded"):
        publication.publish(PublishConfig(folder=str(tmp_path), tracking=article.tracking))
    assert said[0].startswith("not published: network=mlp: has 0 runs with training.seed=2, needs one; digitcnn train")
    assert len(said) == len(results.TABLES)
    # Then
    assert (tmp_path / "article.csv").read_text() == before
    article.store.client.delete_run(added.info.run_id)


def test_collection_requires_a_full_grid() -> None:
    rows = itertools.product(["filters"], (16, 32), (32, 64), (0, 1))
    names = ("study", "model.conv1_filters", "model.conv2_filters", "seed")
    grid = pd.DataFrame(list(rows), columns=list(names))
    require: Callable[..., None] = collection.require_grid
    require(grid, *names[1:3])
    with pytest.raises(ConfigError, match=r"conv1_filters=16 model\.conv2_filters=64: has 0 runs with training.seed=1"):
        require(grid.drop(index=3), *names[1:3])
    with pytest.raises(ConfigError, match=r"conv1_filters=16 model\.conv2_filters=32: has 0 runs with training.seed=0"):
        require(grid.drop(index=[0, 1]), *names[1:3])
    with pytest.raises(ConfigError, match="has 2 runs with training.seed=0"):
        require(pd.concat([grid, grid.head(1)]), *names[1:3])


def test_collection_refuses_a_study_that_its_timeout_ended(rest: Records, tmp_path: Path) -> None:
    # Given what a timeout leaves: FINISHED, with fewer trials than were asked for
    store = rest.store
    (run,) = [each for each in tracking.study_runs(store, results.FILTERS) if "study.key" in each.data.tags]
    total = run.data.tags["study.trials"]
    store.client.set_tag(run.info.run_id, "study.trials", "9")
    # When
    said = rest.publish(tmp_path)
    # Then
    assert [line for line in said if "filters" in line] == [
        "not published: study.name=filters: is not finished, with 4 of 9 trials; digitcnn sweep study=filters goes on"
    ]
    assert not (tmp_path / "filters.csv").exists()
    store.client.set_tag(run.info.run_id, "study.trials", total)


@pytest.mark.parametrize("content", ["", "study\n", "study,seed\n1", '"', "\x00\x01"])
def test_publication_leaves_a_folder_of_corrupt_tables_as_it_is(article: Records, tmp_path: Path, content: str) -> None:
    # Given
    for name in results.TABLES["batch_size"]:
        (tmp_path / f"{name}.csv").write_text(content)
    # When
    with pytest.raises(ConfigError, match=r"folder=.*: the tables in it are not as publish wrote them \(.+\); restore"):
        article.publish(tmp_path)
    # Then
    assert {path.name for path in tmp_path.iterdir()} == {"batch_size.csv", "batch_size_curves.csv"}


def test_publication_replaces_a_corrupt_table(article: Records, tmp_path: Path) -> None:
    # Given
    (tmp_path / "article.csv").write_text("netwo")
    # When
    article.publish(tmp_path)
    # Then
    assert len(results.read_tables(tmp_path)["article"]) == 4


def test_collection_refuses_a_study_of_another_protocol(empty_records: Path, tmp_path: Path) -> None:
    # Given
    records = _empty(empty_records, tmp_path)
    preset = _preset(results.FILTERS, records.root, space=FEWER[results.FILTERS])
    work(preset.model_copy(update={"training": preset.training.model_copy(update={"epochs": 1})}), records.trainer)
    # When
    with pytest.raises(ConfigError) as raised:
        records.publish(tmp_path / "published")
    # Then
    assert raised.match("nothing that it publishes is recorded")
    found: Callable[..., object] = collection.collect_filters
    with pytest.raises(ConfigError, match=r"filters: was made with training\.epochs=1 instead of 3; digitcnn "):
        found(records.store, records.tracking)


def test_collection_refuses_an_outdated_confirmation(
    rest: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a study whose first trial is not among the confirmed ones
    read = collection.report.read_study

    def gone_on(*arguments: Any) -> StudyRecord:
        found = read(*arguments)
        assert found.confirmation is not None
        table = found.confirmation.table
        others = table[table["trial"] != found.table["trial"].iloc[0]]
        return dataclasses.replace(found, confirmation=dataclasses.replace(found.confirmation, table=others))

    assert read(rest.store, StudyReference(name=results.DEFAULT), rest.tracking).unconfirmed is None
    monkeypatch.setattr(collection.report, "read_study", gone_on)
    # When
    collect: Callable[..., object] = collection.collect_confirmed
    with pytest.raises(ConfigError, match=r"its first, trial \d, is not; digitcnn confirm study=aro"):
        collect("default", rest.store, rest.tracking)


def test_publication_without_records_creates_nothing(root: Path, tmp_path: Path) -> None:
    nothing = PublishConfig(folder=str(tmp_path / "published"), tracking=TrackingConfig(root=str(tmp_path / "none")))
    with pytest.raises(ConfigError, match="publish: nothing is recorded"):
        publication.publish(nothing)
    empty = nothing.model_copy(update={"tracking": TrackingConfig(root=str(root))})
    with pytest.raises(ConfigError, match="publish: nothing that it publishes is recorded"):
        publication.publish(empty)
    assert not (tmp_path / "published").exists()


def test_publication_folder_is_below_the_repository_or_at_home(
    article: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "REPOSITORY", tmp_path / "repository")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for folder, place in (("results", "repository/results"), ("~/results", "home/results")):
        assert command.publish(PublishConfig(folder=folder, tracking=article.tracking)) == 0
        assert f"written: {tmp_path / place / 'RESULTS.md'}," in capsys.readouterr().out
        assert (tmp_path / place / "article.csv").exists()
