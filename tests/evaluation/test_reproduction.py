"""Finding a run to reproduce, and judging the repeated run."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import optuna
import pytest

from digitcnn import evaluation, study, tracking
from digitcnn.config import ReproduceConfig, StudyReference, SweepConfig
from digitcnn.errors import ConfigError
from digitcnn.evaluation import ComparedMetric
from digitcnn.evaluation.reproduction import judge, tolerance
from digitcnn.files import sqlite_url
from tests.conftest import with_study
from tests.support.processes import FORKS
from tests.support.sweeps import work
from tests.support.trainers import InstantTrainer

ALLOWED = "must be champion, best with study=NAME, a run id, at least its first 6 characters, or a manifest's FILE.yaml"


def test_find_run_knows_champion_best_and_ids_only(
    sweep_config: SweepConfig, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: FORKS)
    work(with_study(sweep_config, trials=2, workers=1), InstantTrainer())
    opened = study.existing_study(root, "small")
    assert opened is not None
    foreign = optuna.create_study(study_name="foreign", storage=sqlite_url(root / "optuna.db"))
    foreign.add_trial(optuna.trial.create_trial(value=1.0))
    store = tracking.open_store(sweep_config.tracking)

    def find(reference: str, name: str = "small", key: str = "run") -> str:
        return evaluation.find_run(store, reference, StudyReference(name=name), sweep_config.tracking, key)

    best = max(opened.trials, key=lambda trial: trial.values[0]).user_attrs["run_id"]
    assert find("best") == find(best) == find(best[:6]) == best
    for reference, name, key, line in (
        ("best", "nowhere", "run", f"study.name=nowhere: no such study is recorded in {root}; there are small"),
        ("best", "foreign", "run", "study.name=foreign: no such study is recorded"),
        ("champion", "small", "run", "run=champion: there is none yet"),
        ("f" * 31, "small", "run", f"run={'f' * 31}: no such run is recorded"),
        ("12ab", "small", "run", f"run=12ab: {ALLOWED}"),
        ("Best", "small", "run", f"run=Best: {ALLOWED}"),
        ("a.yaml", "small", "compare", "compare=a.yaml: must be champion, best with study=NAME, a run id, or at least"),
    ):
        with pytest.raises(ConfigError) as caught:
            find(reference, name, key)
        assert str(caught.value).startswith(line)
    wanted = ReproduceConfig(run="best", study=StudyReference(name="foreign"), tracking=sweep_config.tracking)
    with pytest.raises(ConfigError, match="study.name=foreign: no such study is recorded"):
        evaluation.find_manifest(wanted)


def test_judge_gives_a_reason_for_its_verdict() -> None:
    near = (ComparedMetric(1, "train_loss", 0.5, 0.5001, tolerance("train_loss", 0.5, 0.9, 1000)),)
    assert judge("a", "b", {"threads": "1 recorded, 2 now"}, near)[0] == "EQUIVALENT"
    assert judge("a", "b", {}, near) == ("DIFFERENT", ("the weights differ in the same environment",))
    far = (ComparedMetric(1, "train_loss", 0.5, 0.9, tolerance("train_loss", 0.5, 0.9, 1000)),)
    verdict, reasons = judge("a", "b", {"threads": "1 recorded, 2 now"}, far)
    assert verdict == "DIFFERENT"
    assert reasons[0].startswith("train_loss of epoch 1: 0.5 recorded, 0.9 repeated, tolerance 0.21")
    nothing = (ComparedMetric(1, "train_loss", 0.5, float("nan"), 1.0),)
    assert judge("a", "b", {"cpu": "x"}, nothing)[0] == "DIFFERENT"


def test_tolerance_is_three_standard_errors_of_a_difference() -> None:
    assert tolerance("test_accuracy", 0.99, 0.99, 10_000) == pytest.approx(3 * (2 * 0.99 * 0.01 / 10_000) ** 0.5)
    assert tolerance("train_loss", 0.04, 0.99, 10_000) == pytest.approx(3 * 0.04 * (2 / 100) ** 0.5)
    assert tolerance("test_accuracy", 1.0, 1.0, 100) > 0
