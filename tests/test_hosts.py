"""Many hosts on one study: real PostgreSQL, a real MLflow server, hosts that are killed, that stall and return."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow import MlflowClient
from optuna import Study
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState
from sqlalchemy import QueuePool, text
from sqlalchemy.exc import OperationalError

from digitcnn import confirmation, hosts, storage, study, study_run, sweep, tracking, trials
from digitcnn.config import SweepConfig, TrackingConfig, load
from digitcnn.confirmation import ConfirmConfig
from digitcnn.errors import ConfigError, MachineError
from digitcnn.space import parse_space
from tests.conftest import REPOSITORY, Command, with_study
from tests.processes import FORKS, start, wait_for
from tests.servers import PostgreSQL, free_port, mlflow_server, postgresql
from tests.test_sweep import Quiet, work
from tests.trainers import ConfirmingTrainer, InstantTrainer

# Long enough that a busy machine's heartbeats come in time, short enough to wait for.
TIMES = {"HEARTBEAT_SECONDS": 0.5, "GRACE_SECONDS": 6.0, "PATIENCE_SECONDS": 60.0}
PATIENCE = 300


@pytest.fixture(scope="module")
def database() -> Iterator[PostgreSQL]:
    with postgresql() as server:
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
        time.sleep(0.2)


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
        name=re.sub(r"\W+", "-", request.node.name).rstrip("-"),
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
                # Each epoch once, and the final value.
                assert [point.step for point in history] == [1, 2, 2]
    assert not children
    return opened


@pytest.mark.soak
def test_two_hosts_share_a_study_while_its_database_restarts(site: Site, database: PostgreSQL) -> None:
    both = [site.host(), site.host()]
    both[0].wait_for("ended", 2)
    database.control("restart", "-m", "fast")
    assert [host.ended() for host in both] == [0, 0], "\n".join(line for host in both for line in host.lines)
    opened = assert_exact(site, 16)
    workers = Counter(trial.user_attrs["host"] for trial in opened.trials)
    assert len(workers) == 2, workers


@pytest.mark.soak
def test_a_host_that_is_killed_and_one_that_stalls_lose_nothing(site: Site) -> None:
    site.seconds = 0.4
    steady, killed, stalled = site.host(), site.host(), site.host()
    for host in (killed, stalled):
        host.wait_for("epoch 1")
    killed.signal(signal.SIGKILL)
    stalled.signal(signal.SIGSTOP)
    # It is taken for dead, and its trials begin again on the host that is left.
    steady.wait_for("trial", 2)
    stalled.signal(signal.SIGCONT)
    assert [steady.ended(), stalled.ended()] == [0, 0], (steady.lines, stalled.lines)
    opened = assert_exact(site, 16)
    silent = [trial for trial in opened.trials if "fell silent" in trial.user_attrs.get("lost", "")]
    assert len(silent) >= 2
    assert killed.process.wait() == -signal.SIGKILL
    # What it still had to say of the lost trials did not arrive.
    its = [trial.number for trial in silent if f"process {stalled.process.pid} of" in trial.user_attrs.get("host", "")]
    assert not {f"ended {number} complete" for number in its} & set(stalled.lines)


def _space_of(config: SweepConfig) -> Any:
    return parse_space(config.study.space, config.baseline)


def _open(config: SweepConfig) -> study.OpenStudy:
    return study.open_study(str(config.study.storage), config.study, _space_of(config), config.baseline)


def _at_once(count: int, work: Callable[[], None]) -> None:
    """Does some work in several threads at the same time and raises what one of them raised."""
    with ThreadPoolExecutor(count) as threads:
        for future in [threads.submit(work) for _ in range(count)]:
            future.result()


def test_hosts_that_begin_at_once_agree_on_the_queue_and_exceed_no_total(site: Site, database: PostgreSQL) -> None:
    database.create("fresh")
    grid = {"training": {"batch_size": [20, 50, 100], "epochs": [1, 2, 3]}}
    config = with_study(site.config, sampler="grid", space=grid, storage=database.url("fresh"), trials=7)
    space = _space_of(config)

    def work() -> None:
        # A store and a lock of its own, as another process has.
        opened = _open(config)

        def objective(trial: study.Trial) -> list[float]:
            study.suggest(trial, space)
            return [0.5]

        trials.optimize(opened, objective, trials.Limits(7, lambda: None), 2, 2, threading.Event(), pytest.fail)

    # Also the tables of an empty database are made at once.
    _at_once(4, work)
    found = _open(config).get_trials()
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 7
    assert len({study.parameters_key(trial.params) for trial in found}) == 7
    assert sum(trial.user_attrs.get("baseline", False) for trial in found) == 1


def test_no_queued_trial_is_given_to_two_hosts_even_without_the_lock(site: Site) -> None:
    opened = _open(site.config)
    for batch_size in range(1, 60):
        opened.enqueue_trial({"training.batch_size": batch_size})
    given: list[int] = []

    def work() -> None:
        own = site.opened()
        given.extend(Study.ask(own).number for _ in range(15))

    _at_once(4, work)
    assert sorted(given) == list(range(60))


def test_a_host_that_stalls_while_it_holds_the_lock_loses_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, other = _open(site.config), site.opened()
    monkeypatch.setattr(hosts, "_HOLD_SECONDS", 1)
    with pytest.raises(hosts.LockLost), opened.store.lock("small"), other.store.lock("small"):
        pass


def test_a_host_that_stalls_in_a_transaction_does_not_hold_up_the_others(site: Site) -> None:
    opened = _open(site.config)
    with opened.store.engine.connect() as connection:
        setting = connection.execute(text("SHOW idle_in_transaction_session_timeout")).scalar_one()
    assert setting == f"{hosts._HOLD_SECONDS}s"


def test_a_trial_that_began_while_the_lock_was_lost_is_given_back(site: Site, database: PostgreSQL) -> None:
    opened = _open(with_study(site.config, trials=3))
    space = _space_of(site.config)
    ask, asked = opened.ask, []

    def ask_and_lose() -> study.Trial:
        asked.append(ask())
        if len(asked) == 1:
            database.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_stat_activity USING (pid) "
                f"WHERE locktype = 'advisory' AND classid = {hosts._LOCK} AND state = 'idle in transaction'"
            )
        return asked[-1]

    opened.ask = ask_and_lose  # type: ignore[method-assign, assignment]

    def objective(trial: study.Trial) -> list[float]:
        study.suggest(trial, space)
        return [0.5]

    trials.optimize(opened, objective, trials.Limits(3, lambda: None), 1, 2, threading.Event(), pytest.fail)
    found = opened.get_trials()
    assert [trial.state for trial in found].count(TrialState.COMPLETE) == 3
    assert found[0].user_attrs["lost"] == "its host stalled as it began"
    # It was the baseline, which is tried again.
    assert [trial.user_attrs.get("repeats") for trial in found if trial.user_attrs.get("baseline")] == [None, 0]


def test_a_trial_that_began_as_the_server_went_away_holds_up_nobody(site: Site) -> None:
    opened = _open(with_study(site.config, trials=3))
    space = _space_of(site.config)
    lock, locked = opened.store.lock, []

    @contextlib.contextmanager
    def lock_and_fail(study: str) -> Iterator[None]:
        with lock(study):
            yield
        locked.append(study)
        if len(locked) == 1:
            raise OperationalError("COMMIT", {}, Exception("server closed the connection"))

    opened.store.lock = lock_and_fail  # type: ignore[method-assign]

    def objective(trial: study.Trial) -> list[float]:
        study.suggest(trial, space)
        return [0.5]

    # A trial that nobody works on would be waited for until time is up.
    until = time.monotonic() + 60
    limits = trials.Limits(3, lambda: until - time.monotonic())
    trials.optimize(opened, objective, limits, 1, 2, threading.Event(), pytest.fail)
    assert [trial.state for trial in opened.get_trials()].count(TrialState.COMPLETE) == 3


def test_a_thread_that_gets_no_connection_in_time_waits_as_for_a_server_that_is_away(site: Site) -> None:
    opened = _open(site.config)
    pool = opened.store.engine.pool
    assert isinstance(pool, QueuePool)
    pool._timeout = 0.1
    with contextlib.ExitStack() as held:
        for _ in range(6):
            held.enter_context(opened.store.engine.connect())
        releasing = threading.Timer(1.0, held.pop_all().close)
        releasing.start()
        assert opened.store.get_trial(opened.trials[0]._trial_id).number == 0


# The study's run.


@pytest.fixture
def slow(site: Site, root: Path, monkeypatch: pytest.MonkeyPatch) -> tracking.Store:
    """A store whose first answers take longer than the study's lock may be held."""
    monkeypatch.setattr(hosts, "_HOLD_SECONDS", 3)
    store = tracking.open_store(TrackingConfig(root=str(root)))
    for name in ("search_runs", "create_run", "update_run", "set_terminated"):
        monkeypatch.setattr(store.client, name, _slowed(getattr(store.client, name)))
    return store


def _slowed(method: Callable[..., Any]) -> Callable[..., Any]:
    waits = [3.5]

    def call(*arguments: Any, **named: Any) -> Any:
        time.sleep(waits.pop() if waits else 0)
        return method(*arguments, **named)

    return call


def test_a_slow_mlflow_does_not_cost_the_lock_of_a_study(
    site: Site, slow: tracking.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = _open(site.config)
    held: list[str] = []
    lock = hosts.SharedStorage.lock

    def counted(store: hosts.SharedStorage, name: str) -> contextlib.AbstractContextManager[None]:
        held.append(name)
        return lock(store, name)

    monkeypatch.setattr(hosts.SharedStorage, "lock", counted)
    run_id = study_run.begin(opened, slow, site.config)
    assert slow.client.get_run(run_id).info.status == "RUNNING"
    study_run.end(opened, slow, run_id, 16, "KILLED")
    assert slow.client.get_run(run_id).info.status == "KILLED"
    # Once for each decision: whoever loses it decides again.
    assert len(held) == 2


def test_a_host_that_leaves_closes_nothing_of_one_that_joins(
    site: Site, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tracking.open_store(TrackingConfig(root=str(root)))
    first, second = _open(site.config), site.opened()
    run_id = study_run.begin(first, store, site.config)
    begun: list[str] = []

    def join() -> None:
        assert study_run.begin(second, store, site.config) == run_id
        tags = {"trial": str(second.ask().number), "host": "another"}
        begun.append(tracking.create_run(store, site.config.baseline, "joined", tags, run_id))

    def status(run: str) -> str:
        return str(store.client.get_run(run).info.status)

    decide = storage.decide

    def decide_and_join(*arguments: Any) -> Any:
        """What the first decides, which is alone by then; before it closes anything, the second joins."""
        monkeypatch.setattr(storage, "decide", decide)
        decided = decide(*arguments)
        join()
        return decided

    monkeypatch.setattr(storage, "decide", decide_and_join)
    study_run.end(first, store, run_id, 16, "KILLED")
    assert status(begun[0]) == "RUNNING"
    # One that joins before that decision keeps the study's run open too.
    assert study_run.begin(first, store, site.config) == run_id
    study_run.end(first, store, run_id, 16, "KILLED")
    assert [status(begun[0]), status(run_id)] == ["RUNNING", "RUNNING"]
    study_run.end(second, store, run_id, 16, "KILLED")
    assert [status(begun[0]), status(run_id)] == ["KILLED", "KILLED"]


def test_hosts_that_record_in_stores_of_their_own_have_a_run_each(
    site: Site, root: Path, empty_records: Path, tmp_path: Path
) -> None:
    shutil.copytree(empty_records, tmp_path / "second")
    stores = [tracking.open_store(TrackingConfig(root=str(folder))) for folder in (root, tmp_path / "second")]
    opened = [_open(site.config), site.opened()]
    runs = [study_run.begin(each, store, site.config) for each, store in zip(opened, stores, strict=True)]
    for each, store, run_id in zip(opened, stores, runs, strict=True):
        study_run.end(each, store, run_id, 16, "KILLED")
        assert store.client.get_run(run_id).info.status == "KILLED"
    # Whoever comes back finds its own.
    assert [study_run.begin(each, store, site.config) for each, store in zip(opened, stores, strict=True)] == runs


def test_only_the_silent_lose_their_trials(site: Site, database: PostgreSQL) -> None:
    opened = _open(site.config)
    beating, silent, never = (opened.ask() for _ in range(3))
    for trial in (beating, silent, never):
        study.suggest(trial, _space_of(site.config))
    for trial in (beating, silent):
        opened.store.record_heartbeat(trial._trial_id)
    hour = "heartbeat = heartbeat - interval '1 hour'"
    database.execute(f"UPDATE trial_heartbeats SET {hour} WHERE trial_id = {silent._trial_id}")
    # This process has not been in contact with the server for the grace: it cannot know who is silent.
    assert trials._end_silent(opened, set()) == []
    assert isinstance(opened.store, hosts.SharedStorage)
    opened.store._last_away -= 3600
    assert [trial.number for trial in trials._end_silent(opened, {never._trial_id})] == [silent.number]
    assert [trial.number for trial in trials._end_silent(opened, set())] == [never.number]
    assert [trial.state for trial in opened.get_trials()[:3]] == [TrialState.RUNNING, TrialState.FAIL, TrialState.FAIL]
    # The silent one returns: what it says is refused.
    with pytest.raises(UpdateFinishedTrialError):
        silent.set_user_attr("epochs_run", 2)
    work = trials._Work(opened, lambda _: [1.0], trials.Limits(3, lambda: None), 2, threading.Event(), pytest.fail)
    assert work._tell(silent, [1.0], TrialState.COMPLETE).state == TrialState.FAIL


@pytest.mark.parametrize(
    ("password", "message"),
    [("wrong", 'password authentication failed for user "colleague"'), (None, "no password supplied"), ("right", None)],
    ids=["wrong", "none", "right"],
)
def test_a_password_may_come_from_the_environment_and_is_never_shown(
    password: str | None, message: str | None, site: Site, database: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGPASSWORD", raising=False)
    if password == "right":
        monkeypatch.setenv("PGPASSWORD", password)
    url = database.url(user="colleague" + (":wrong" if password == "wrong" else ""))
    config = with_study(site.config, storage=url)
    if message is None:
        assert sweep.plan(config).total == 16
        return
    with pytest.raises(MachineError) as caught:
        sweep.plan(config)
    assert message in str(caught.value)
    assert "colleague:wrong" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_driver_is_one_line(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match="study.storage: needs a database driver") as caught:
        sweep.plan(site.config)
    assert "\n" not in str(caught.value)


def test_a_database_that_is_down_is_one_line_within_seconds(command: Command, small_overrides: list[str]) -> None:
    url = f"postgresql+psycopg://me:secret@127.0.0.1:{free_port()}/studies"
    began = time.monotonic()
    ended = command("sweep", *small_overrides, f"study.storage={url}")
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: the study's store postgresql+psycopg://***@127.0.0.1:")
    assert ended.stderr.count("\n") == 1
    assert "secret" not in ended.stderr
    # Generous: the command alone takes seconds on a busy machine; waiting for the server would take two minutes.
    assert time.monotonic() - began < hosts.PATIENCE_SECONDS / 2


# The long ones: 2 hosts x 4 workers x 80 trials.
_GRACE = 15.0


@pytest.fixture
def large(site: Site) -> Site:
    site.config = with_study(site.config, trials=80, workers=4)
    return site


def _work(site: Site, count: int = 2, **times: float) -> list[Host]:
    """So many hosts, each of which has begun to train. Eight workers can keep a small machine from its heartbeats."""
    begun = [site.host(**{"GRACE_SECONDS": _GRACE, **times}) for _ in range(count)]
    for host in begun:
        host.wait_for("epoch 1")
    return begun


def _wait_for_finished(opened: study.OpenStudy, count: int) -> None:
    # Whoever goes on may be faster than the one that looks: there are no more than 80.
    wait_until(lambda: trials.finished(opened) >= min(count, 80))


@pytest.mark.soak
def test_two_hosts_and_eight_workers_do_each_of_80_trials_once(large: Site) -> None:
    both = _work(large)
    assert [host.ended() for host in both] == [0, 0]
    opened = assert_exact(large, 80, lost=0)
    assert len(opened.trials) == 80
    assert min(Counter(trial.user_attrs["host"] for trial in opened.trials).values()) > 10


@pytest.mark.soak
def test_a_host_killed_half_way_is_made_up_for(large: Site) -> None:
    killed, steady = _work(large)
    _wait_for_finished(large.opened(), 40)
    killed.signal(signal.SIGKILL)
    assert steady.ended() == 0, steady.lines
    opened = assert_exact(large, 80)
    lost = [trial for trial in opened.trials if trial.state == TrialState.FAIL]
    assert 0 < len(lost) <= 4
    # One that was killed as it began has no host yet.
    assert len({trial.user_attrs.get("host") for trial in lost} - {None}) <= 1


@pytest.mark.soak
def test_both_hosts_survive_three_restarts_of_the_database(large: Site, database: PostgreSQL) -> None:
    large.seconds = 0.3
    both = _work(large)
    watched = large.opened()
    for number, how in enumerate(("fast", "immediate", "fast"), start=1):
        _wait_for_finished(watched, 15 * number)
        database.control("stop", "-m", how)
        time.sleep(2 * number)
        database.control("start")
    assert [host.ended() for host in both] == [0, 0], [host.lines for host in both]
    assert_exact(large, 80)


@pytest.mark.soak
def test_a_host_that_stalls_twice_corrupts_nothing(large: Site) -> None:
    large.seconds = 0.3
    stalling, _ = both = _work(large)
    watched = large.opened()
    for _ in range(2):
        before = trials.finished(watched)
        stalling.signal(signal.SIGSTOP)
        _wait_for_finished(watched, before + 10)
        time.sleep(1.5 * _GRACE)
        stalling.signal(signal.SIGCONT)
        _wait_for_finished(watched, before + 15)
    assert [host.ended() for host in both] == [0, 0], [host.lines for host in both]
    assert_exact(large, 80)


@pytest.mark.soak
def test_a_database_that_is_gone_for_good_ends_the_sweep_and_it_resumes(large: Site, database: PostgreSQL) -> None:
    (host,) = _work(large, 1, PATIENCE_SECONDS=5.0)
    _wait_for_finished(large.opened(), 10)
    database.control("stop", "-m", "fast")
    try:
        assert host.ended() == 1, host.lines
    finally:
        database.control("start")
    errors = [line for line in host.lines if line.startswith("error: ")]
    assert len(errors) == 1, host.lines
    assert "went away and did not come back in time" in errors[0]
    assert "postgres@" not in errors[0]
    _, runs = large.runs()
    assert not [run for run in runs if run.info.status == "RUNNING"]
    recorded = trials.finished(large.opened())
    assert large.host().ended() == 0
    assert recorded >= 10
    assert_exact(large, 80)


@pytest.mark.soak
def test_a_host_that_is_interrupted_leaves_the_study_to_the_others(large: Site) -> None:
    interrupted, steady = _work(large)
    _wait_for_finished(large.opened(), 30)
    interrupted.signal(signal.SIGINT)
    assert interrupted.ended() == 0, interrupted.lines
    (parent,) = [run for run in large.runs()[1] if "trial" not in run.data.tags]
    assert parent.info.status == "RUNNING"
    assert steady.ended() == 0
    assert_exact(large, 80)


def test_a_second_confirmation_is_refused_and_leaves_the_first_alone(
    database: PostgreSQL, sweep_config: SweepConfig, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given two processes with one store of studies, which is all that two hosts need have in common for this."""
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: FORKS)
    config = with_study(sweep_config, name="confirmed-twice", storage=database.url(), trials=2, workers=1)
    work(config, InstantTrainer())
    confirm = load(
        ConfirmConfig,
        {
            "study": {"name": "confirmed-twice", "storage": database.url()},
            "tracking": {"root": str(root)},
            "confirm": {"top": 1, "seeds": 2, "workers": 1},
        },
    )
    first = start(confirm, ConfirmingTrainer(seconds=0.5), tmp_path / "lines")
    wait_for(tmp_path / "lines", " epoch 1", first)
    holder = rf"study.name=confirmed-twice: .*, process {first.pid} of .*, is at work on this study alone"
    with pytest.raises(ConfigError, match=holder):
        confirmation.run(confirmation.plan(confirm), Quiet(), ConfirmingTrainer())
    first.join(PATIENCE)
    assert first.exitcode == 0, (tmp_path / "lines").read_text()
    # Now it is free, and nothing is left to train: the other's runs were not closed.
    shown = Quiet()
    confirmation.run(confirmation.plan(confirm), shown, ConfirmingTrainer())
    assert shown.endings == []


def test_who_is_alone_on_a_study_stays_so_when_the_server_restarts(database: PostgreSQL) -> None:
    first, second = (hosts.SharedStorage(database.url()) for _ in range(2))
    with first.alone("lonely") as make_sure:
        database.control("restart", "-m", "fast")
        make_sure()
        with pytest.raises(ConfigError, match=f"process {os.getpid()} of"), second.alone("lonely"):
            pass
        with second.alone("another"):
            make_sure()
    with second.alone("lonely"), pytest.raises(ConfigError, match="wait for it"):
        make_sure()


@pytest.mark.soak
def test_the_commands_read_a_shared_study(
    site: Site, records: str, command: Command, small_overrides: list[str]
) -> None:
    """With real Keras, as a person would: sweep, confirm and reproduce on the shared stores."""
    shared = [f"study.storage={site.config.study.storage}", f"tracking.uri={records}"]
    name = "commands"
    ended = command(
        *("sweep", *small_overrides, *shared, f"study.name={name}", "study.trials=3", "study.workers=1"),
        *("study.space.training.epochs=null", "study.space.model.conv2_filters=null", "study.pruner=none"),
    )
    assert ended.returncode == 0, ended.stderr
    root = next(override for override in small_overrides if override.startswith("tracking.root="))
    ended = command("confirm", f"study={name}", *shared, root, "confirm.top=1", "confirm.seeds=2", "confirm.workers=1")
    assert ended.returncode == 0, ended.stderr
    assert "champion: " in ended.stdout
    ended = command("reproduce", "run=best", f"study={name}", *shared, root)
    assert ended.returncode == 0, ended.stderr
    assert "IDENTICAL" in ended.stdout
