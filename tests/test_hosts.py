"""Many hosts on one study: real PostgreSQL, a real MLflow server, hosts that are killed, that stall and return."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState

from digitcnn import study, trials
from digitcnn.config import SweepConfig, load
from tests.conftest import REPOSITORY, with_study
from tests.servers import PostgreSQL, mlflow_server, postgresql

# Long enough that a busy machine's heartbeats come in time, short enough to wait for.
TIMES = {"HEARTBEAT_SECONDS": 0.5, "GRACE_SECONDS": 6.0, "PATIENCE_SECONDS": 60.0}
PATIENCE = 180


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgreSQL]:
    with postgresql(tmp_path_factory.mktemp("postgresql") / "data") as server:
        yield server


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as uri:
        yield uri


@dataclass
class Host:
    """A host: a process group of its own, in a folder of its own."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    def said(self, start: str) -> int:
        return sum(line.startswith(start) for line in list(self.lines))

    def wait_for(self, start: str, times: int = 1) -> None:
        wait_until(lambda: self.said(start) >= times or self.process.poll() is not None, self.lines)
        assert self.said(start) >= times, self.lines

    def signal(self, number: signal.Signals) -> None:
        os.killpg(self.process.pid, number)

    def ended(self) -> int:
        status = self.process.wait(PATIENCE)
        self.reader.join(PATIENCE)
        return status


def wait_until(condition: Callable[[], bool], shown: object = None) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, shown
        time.sleep(0.05)


@dataclass
class Site:
    """A study on shared stores, and the hosts that work on it."""

    config: SweepConfig
    folder: Path
    seconds: float
    hosts: list[Host] = field(default_factory=list)

    def host(self, **times: float) -> Host:
        folder = self.folder / f"host-{len(self.hosts)}"
        folder.mkdir()
        tree = self.config.model_dump()
        tree["tracking"]["root"] = str(folder / "mlruns")
        content = {"config": tree, "hosts": {**TIMES, **times}, "seconds": self.seconds}
        (folder / "config.json").write_text(json.dumps(content))
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.host", str(folder / "config.json")],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.hosts.append(Host(process))
        return self.hosts[-1]

    def opened(self) -> study.OpenStudy:
        found = study.existing_study(str(self.config.study.storage), self.config.study.name)
        assert found is not None
        return found

    def runs(self) -> tuple[MlflowClient, list[Any]]:
        client = MlflowClient(self.config.tracking.uri)
        experiment = client.get_experiment_by_name("digitcnn")
        assert experiment is not None
        found = client.search_runs(
            [experiment.experiment_id], f"tags.study = '{self.config.study.name}'", max_results=999
        )
        return client, list(found)


@pytest.fixture
def site(
    database: PostgreSQL, records: str, sweep_config: SweepConfig, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Site]:
    """A study of 16 trials of its own name, each of two epochs."""
    tree = with_study(
        sweep_config,
        name=request.node.name.replace("[", "-").rstrip("]"),
        storage=database.url(),
        sampler="random",
        trials=16,
        workers=2,
        space={"training": {"batch_size": {"low": 1, "high": 400}}},
    ).model_dump()
    config = load(SweepConfig, {**tree, "tracking": {"uri": records}})
    made = Site(config, tmp_path, 0.1)
    yield made
    for host in made.hosts:
        with contextlib.suppress(ProcessLookupError):
            host.signal(signal.SIGKILL)
        host.ended()


def assert_exact(site: Site, total: int, lost: int | None = None) -> optuna.Study:
    """The total and not one more, each trial once in both stores, every lost one repeated, nothing running."""
    opened = site.opened()
    found = opened.get_trials()
    states = Counter(trial.state for trial in found)
    assert set(states) <= {TrialState.COMPLETE, TrialState.FAIL}, states
    assert states[TrialState.COMPLETE] == trials.finished(opened) == total
    begun = [trial for trial in found if study.parameters_of(trial)]
    failed = [trial for trial in begun if trial.state == TrialState.FAIL]
    assert lost is None or len(failed) == lost
    repeats = Counter(trial.user_attrs["repeats"] for trial in found if "repeats" in trial.user_attrs)
    assert repeats == {trial.number: 1 for trial in failed}
    assert all("lost" in trial.user_attrs for trial in failed)
    baselines = [trial for trial in found if trial.user_attrs.get("baseline") and trial.state == TrialState.COMPLETE]
    assert len(baselines) == 1
    client, runs = site.runs()
    (parent,) = [run for run in runs if "trial" not in run.data.tags]
    assert parent.info.status == "FINISHED"
    children = {run.data.tags["trial"]: run for run in runs if "trial" in run.data.tags}
    assert len(children) == len(runs) - 1
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    for trial in found:
        run = children.pop(str(trial.number), None)
        if run is None:
            # Its host was killed between the two records' beginnings.
            assert trial.state == TrialState.FAIL
            continue
        statuses = {"FINISHED"} if trial.state == TrialState.COMPLETE else {"KILLED", "FAILED"}
        assert run.info.status in statuses, (trial, run.data.tags)
        if trial.state == TrialState.COMPLETE:
            assert run.data.tags["host"] == trial.user_attrs["host"]
            if "same_as" not in trial.user_attrs:
                history = client.get_metric_history(run.info.run_id, "validation_accuracy")
                assert [point.step for point in history] == [1, 2]
    assert not children
    return opened


def test_two_hosts_share_a_study_while_its_database_restarts(site: Site, database: PostgreSQL) -> None:
    both = [site.host(), site.host()]
    both[0].wait_for("ended", 2)
    database.control("restart", "-m", "fast")
    assert [host.ended() for host in both] == [0, 0], [host.lines for host in both]
    opened = assert_exact(site, 16)
    workers = Counter(trial.user_attrs["host"] for trial in opened.trials)
    assert len(workers) == 2, workers


def test_a_host_that_is_killed_and_one_that_stalls_lose_nothing(site: Site) -> None:
    site.seconds = 0.4
    steady, killed, stalled = site.host(), site.host(), site.host()
    for host in (killed, stalled):
        host.wait_for("epoch 1")
    killed.signal(signal.SIGKILL)
    stalled.signal(signal.SIGSTOP)
    stopped = max(int(line.split()[1]) for line in list(stalled.lines) if line.startswith("began"))
    # It is taken for dead, and its trials begin again on the host that is left.
    steady.wait_for("trial", 2)
    stalled.signal(signal.SIGCONT)
    assert [steady.ended(), stalled.ended()] == [0, 0], (steady.lines, stalled.lines)
    opened = assert_exact(site, 16)
    assert "fell silent" in opened.trials[stopped].user_attrs["lost"] or opened.trials[stopped].state == 1
    assert killed.process.wait() == -signal.SIGKILL
    # What it still had to say of the lost trials did not arrive.
    assert not [line for line in stalled.lines if line == f"ended {stopped} complete"]
