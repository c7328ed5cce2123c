"""Studies on a Ray cluster of a head and three nodes: nothing is lost when workers, nodes, owner or head die."""

from __future__ import annotations

import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pandas as pd
import pytest

from digitcnn.config import ConfirmConfig, SweepConfig, load_config
from digitcnn.runner import KerasTrainer, Trainer
from tests.conftest import with_study, with_workers
from tests.support.clusters import Nodes, ray_cluster
from tests.support.processes import start, wait_for
from tests.support.sweeps import assert_nothing_runs, assert_whole, confirm_config, open_records, recorded_results, work
from tests.support.trainers import ConfirmingTrainer, InstantTrainer

pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A cluster of a head that does no work and three nodes of two CPUs."""
    with ray_cluster(3) as began:
        yield began


def _on_cluster(config: SweepConfig, nodes: Nodes, trials: int) -> SweepConfig:
    return with_workers(with_study(config, trials=trials, sampler="random"), name="ray", address=nodes.address)


def _wait_for_trials(lines: Path, trials: int, owner: BaseProcess) -> None:
    while not lines.exists() or lines.read_text().count(" complete\n") < trials:
        assert owner.is_alive(), f"ended with {owner.exitcode} before {trials} trials were complete"
        time.sleep(0.05)


def _assert_no_worker_is_left(nodes: Nodes) -> None:
    for _ in range(600):
        if not nodes.actors():
            return
        time.sleep(0.05)
    raise AssertionError(f"workers are left: {nodes.actors()}")


def _survive_kills(config: SweepConfig, nodes: Nodes, trainer: Trainer, trials: int, lines: Path) -> None:
    """Work on a study while a worker and a node are killed, a node joins, and at last the owner is killed."""
    owner = start(config, trainer, lines)
    _wait_for_trials(lines, max(trials // 10, 1), owner)
    nodes.actors()[0].kill()
    _wait_for_trials(lines, max(trials // 5, 2), owner)
    nodes.kill(nodes.nodes[1])
    nodes.add()
    _wait_for_trials(lines, trials // 2, owner)
    owner.kill()
    owner.join()
    _assert_no_worker_is_left(nodes)
    again = start(config, trainer, lines)
    again.join(300)
    assert again.exitcode == 0, lines.read_text()
    _assert_no_worker_is_left(nodes)


def test_sweep_on_a_cluster_ends_with_each_trial_done_once(
    nodes: Nodes, sweep_config: SweepConfig, tmp_path: Path
) -> None:
    config = _on_cluster(sweep_config, nodes, trials=30)
    _survive_kills(config, nodes, InstantTrainer(0.1), 30, tmp_path / "lines")
    assert_whole(config.tracking.folder, 30)
    assert len(recorded_results(config.tracking.folder)) == 30
    assert {"KILLED", "FAILED"} & {run.info.status for run in open_records(config.tracking.folder)[2]}


@pytest.mark.soak
def test_sweep_on_a_cluster_trains_with_keras(nodes: Nodes, sweep_config: SweepConfig, tmp_path: Path) -> None:
    config = _on_cluster(sweep_config, nodes, trials=6)
    _survive_kills(config, nodes, KerasTrainer(), 6, tmp_path / "lines")
    assert_whole(config.tracking.folder, 6, models=True)


@pytest.mark.soak
def test_confirmation_on_a_cluster_loses_no_run(nodes: Nodes, sweep_config: SweepConfig, tmp_path: Path) -> None:
    """A node dies while the last runs are trained: the workers that had none left train them again."""
    config = _on_cluster(sweep_config, nodes, trials=6)
    work(config, InstantTrainer(model=True))
    confirmation = load_config(
        ConfirmConfig, confirm_config(config).model_dump() | {"workers": config.workers.model_dump()}
    )
    owner = start(confirmation, ConfirmingTrainer(2.0), tmp_path / "lines")
    wait_for(tmp_path / "lines", "epoch 1", owner)
    nodes.kill(nodes.nodes[0])
    owner.join(120)
    assert owner.exitcode == 0, (tmp_path / "lines").read_text()
    runs = pd.read_csv(config.tracking.folder / "reports" / "small" / "confirmation_runs.csv")
    assert len(runs) == 4
    assert_nothing_runs(config.tracking.folder)


@pytest.mark.soak
def test_sweep_goes_on_after_the_head_was_lost(sweep_config: SweepConfig, tmp_path: Path) -> None:
    """One line and exit status 1; the same command goes on with the next cluster."""
    lines = tmp_path / "lines"
    with ray_cluster(2) as nodes:
        config = _on_cluster(sweep_config, nodes, trials=30)
        owner = start(config, InstantTrainer(0.5), lines)
        _wait_for_trials(lines, 3, owner)
        nodes.kill_head()
        owner.join(60)
        assert owner.exitcode == 1
    error = next(line for line in lines.read_text().splitlines() if line.startswith("error: "))
    assert error.startswith("error: workers.address=127.0.0.2:")
    assert error.endswith("the same command goes on when the cluster is there again")
    assert_nothing_runs(config.tracking.folder)
    with ray_cluster(2) as nodes:
        again = start(_on_cluster(sweep_config, nodes, trials=30), InstantTrainer(), lines)
        again.join(120)
        assert again.exitcode == 0, lines.read_text()
    assert_whole(config.tracking.folder, 30)
