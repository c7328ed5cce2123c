"""What `run=` means: the champion, a study's best trial, a run by its id; and what is said of anything else."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import optuna
import pytest

from digitcnn import evaluation, study, tracking
from digitcnn.config import ReproduceConfig, StudyReference, SweepConfig
from digitcnn.errors import ConfigError
from digitcnn.files import sqlite_url
from tests.conftest import with_study
from tests.support.processes import FORKS
from tests.support.sweeps import work
from tests.support.trainers import InstantTrainer

ALLOWED = "must be champion, best with study=NAME, a run id, at least its first 6 characters, or a manifest's FILE.yaml"


def test_a_run_is_found_by_each_of_its_names_and_nothing_else_is_taken_for_one(
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
