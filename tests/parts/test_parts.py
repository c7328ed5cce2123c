"""The parts of the space: each is a configuration, and the published runs are those of what it says now."""

from __future__ import annotations

import threading
from pathlib import Path

import pandas as pd
import pytest

from digitcnn import runner
from digitcnn.config import RunConfig
from experiments.parts import engines
from experiments.parts.parts import PARTS, PATH, append_runs, said, table
from tests.support.trainers import InstantTrainer


def test_published_runs_are_those_of_the_parts() -> None:
    configs = [RunConfig().replace(changes) for changes in PARTS.values()]
    assert all(config not in configs[:index] for index, config in enumerate(configs))
    rows = pd.read_csv(PATH, keep_default_na=False)
    for part, changes in set(zip(rows["part"], rows["changes"], strict=True)):
        assert said(part) == changes
    for (part, _), epochs in rows.groupby(["part", "seed"])["epoch"]:
        config = RunConfig().replace(PARTS[part])
        assert epochs.tolist() == list(range(1, config.training.epochs + 1))
    assert len(table().splitlines()) == 4 + rows["part"].nunique()


def test_published_engines_were_trained_with_the_same_parts_and_seeds() -> None:
    rows = pd.read_csv(engines.PATH, keep_default_na=False)
    for part, changes in set(zip(rows["part"], rows["changes"], strict=True)):
        assert said(part) == changes
    pairs = rows.groupby(["part", "training.precision", "seed"])["training.engine"].apply(sorted)
    assert pairs.tolist() == [["fast", "keras"]] * len(pairs)
    lines = rows.groupby(["part", "training.precision"]).ngroups + rows["training.precision"].nunique()
    assert len(engines.table().splitlines()) == 2 + lines


def test_run_that_was_cut_off_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = threading.Barrier(2)

    def rows_of(worker: runner.Worker, job: str, stop: threading.Event) -> pd.DataFrame:
        began.wait(60)
        if job == "fails":
            raise OSError("no memory")
        assert stop.wait(60)
        return pd.DataFrame({"part": [job]})

    monkeypatch.setattr(runner, "KerasTrainer", InstantTrainer)
    with pytest.raises(OSError, match="no memory"):
        append_runs(tmp_path / "parts.csv", ["fails", "cut off"], rows_of)
    assert not (tmp_path / "parts.csv").exists()
