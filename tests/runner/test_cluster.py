"""Workers on a real Ray cluster of several nodes, most with a trainer that takes no time."""

from __future__ import annotations

import itertools
import random
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib import metadata
from pathlib import Path

import psutil
import pytest

from digitcnn.config import DataConfig, RayWorkers, RunConfig
from digitcnn.errors import ConfigError, MachineError
from digitcnn.runner import Job, KerasTrainer, RunDiverged, Worker, WorkerDied, run_workers
from digitcnn.runner.cluster import RayPool, pool
from digitcnn.training import load_splits
from digitcnn.values import Checkpoint, Decision, EpochMetrics, Event, RunFinished, RunStarted
from tests.support.clusters import MarkingTrainer, Nodes, ray_cluster
from tests.support.messages import logged_messages

# One cluster for all: 15 s.
pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A cluster of a head and two nodes, to which a test adds a third."""
    with ray_cluster(2) as began:
        yield began


def open_pool(nodes: Nodes, folder: Path, seconds: float = 0.0, jobs: int = 60, **keys: object) -> RayPool:
    config = RayWorkers(address=nodes.address, **keys)  # type: ignore[arg-type]
    return RayPool(MarkingTrainer(folder, seconds), config, RunConfig(), 1, jobs)


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def go_on(event: Event) -> str:
    return "continue"


def test_pool_repeats_what_killed_workers_and_nodes_left(nodes: Nodes, tmp_path: Path) -> None:
    """60 jobs while a worker is killed, a node dies and another one joins: each is done once, by all who are there."""
    jobs, joined = deque(range(60)), threading.Event()
    done, deaths, at = Counter[int](), list[WorkerDied](), set[str]()

    def loop(worker: Worker) -> None:
        while worker.wait_ready():
            if "127.0.0.5" in worker.node:
                joined.set()
            elif len(jobs) < 10:
                joined.wait(60)
            try:
                job = jobs.popleft()
            except IndexError:
                return
            try:
                worker.run("3", go_on, began.stop)
            except WorkerDied as death:
                deaths.append(death)
                jobs.append(job)
            else:
                done[job] += 1
                at.add(worker.node.rpartition(" ")[2])

    with closing(open_pool(nodes, tmp_path, seconds=0.1)) as began:
        work = threading.Thread(target=run_workers, args=(began, loop))
        work.start()
        wait_for(lambda: len(done) > 4)
        nodes.actors()[0].kill()
        wait_for(lambda: len(deaths) == 1)
        nodes.kill(nodes.nodes[0])
        assert nodes.add().node_ip_address == "127.0.0.5"
        work.join(60)
        assert not work.is_alive()
    assert done == Counter(range(60))
    assert 60 <= len(list(tmp_path.glob("begun-*"))) <= 60 + len(deaths)
    assert 2 <= len(deaths) <= 3
    assert all(death.killed for death in deaths)
    assert at == {"(127.0.0.3)", "(127.0.0.4)", "(127.0.0.5)"}
    wait_for(lambda: not nodes.actors())


def test_worker_ends_as_its_run_does(nodes: Nodes, tmp_path: Path) -> None:
    """One worker outlives runs that fail, hang, or end its process; each is told in one line."""
    stop = threading.Event()

    def raised(job: str, kind: type[Exception]) -> Exception:
        with pytest.raises(kind) as caught:
            worker.run(job, go_on, stop)
        return caught.value

    with closing(open_pool(nodes, tmp_path, count=1, cpus=2, patience="2s")) as began:
        worker = next(began.arrivals())
        assert str(raised("fail", RunDiverged)) == "the loss became nan"
        assert worker.run("2", go_on, stop) == RunFinished(
            "completed", 2, {}, "", "instant", {}, {"weights": bytes(2_000_000)}
        )
        # The same process so far.
        assert len(list(tmp_path.glob("prepared-*"))) == 1
        node = worker.node
        memory = raised("memory", WorkerDied)
        assert str(memory) == f"its worker process on {node} ended (out of memory)"
        assert not memory.killed
        ended = raised("exit", WorkerDied)
        assert str(ended) == f"its worker process on {worker.node} ended or is out of reach"
        assert ended.killed
        with logged_messages() as heard:
            assert "said nothing for 2" in str(raised("hang", WorkerDied))
        assert "has said nothing for" in heard[0]
        # What the owner's own function raises ends the run, not the worker.
        with pytest.raises(ZeroDivisionError):
            worker.run("2", lambda event: 1 / 0, stop)  # type: ignore[arg-type, return-value]
        assert worker.run("1", go_on, stop).ending == "completed"
        threads = {file.read_text() for file in tmp_path.glob("prepared-*")}
        assert threads == {"1"}
        stop.set()
        assert worker.run("2", go_on, stop).ending == "stopped"
        began_at = time.monotonic()
        assert raised("hang", WorkerDied)
        assert time.monotonic() - began_at < 8
    wait_for(lambda: not nodes.actors())


def test_pool_carries_the_data_to_the_nodes(nodes: Nodes, small_npz: Path, tmp_path: Path) -> None:
    """A data set that only the owner's machine has is read on the nodes as the same."""
    copy = tmp_path / "copy.npz"
    copy.write_bytes(small_npz.read_bytes())
    run = RunConfig(data=DataConfig(path=str(copy), validation_size=100))
    config = RayWorkers(address=nodes.address, count=1)
    with closing(RayPool(MarkingTrainer(tmp_path), config, run, 1, 1)) as began:
        copy.unlink()
        worker = next(began.arrivals())
        events: list[Event] = []
        finished = worker.run(f"load {copy}", lambda event: events.append(event) or "continue", began.stop)
    assert finished.weights_sha256 == load_splits(DataConfig(path=str(small_npz), validation_size=100)).sha256
    assert isinstance(events[0], RunStarted)


def test_run_goes_on_from_its_checkpoint_on_another_node(nodes: Nodes, small_config: RunConfig) -> None:
    """Real training, ended after some epoch by the death of its actor: the same bits as without."""
    config, cut = small_config.replace({"training.epochs": 4}), random.randint(1, 3)
    checkpoints: list[Checkpoint] = []

    def end(event: Event) -> Decision:
        if isinstance(event, Checkpoint):
            checkpoints.append(event)
        return "stop" if isinstance(event, EpochMetrics) and event.epoch == cut else "continue"

    pool_config = RayWorkers(address=nodes.address, count=1)
    with closing(RayPool(KerasTrainer(), pool_config, config, 1, 1)) as began:
        worker = next(began.arrivals())
        undisturbed, seen = worker.run(Job(config), go_on, began.stop), list[Event]()
        assert worker.run(Job(config, saves=True), end, began.stop).ending == "stopped"
        nodes.actors()[0].kill()
        (checkpoint,) = checkpoints
        job = Job(config, True, checkpoint.content)
        with pytest.raises(WorkerDied):
            worker.run(job, go_on, began.stop)
        again = worker.run(job, lambda event: seen.append(event) or "continue", began.stop)
    assert isinstance(seen[0], RunStarted)
    assert (seen[0].refused, again.epochs_before) == ("", cut)
    assert again.weights_sha256 == undisturbed.weights_sha256
    assert [each.epoch for each in seen if isinstance(each, EpochMetrics)] == [1, 2, 3, 4]


def test_pool_refuses_what_it_cannot_use(nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other versions on the nodes, and addresses where nothing answers: one line each, at once."""
    with pytest.raises(MachineError, match=r"^workers.address=127.0.0.2:9: no Ray cluster answers at 127.0.0.2:9$"):
        RayPool(MarkingTrainer(tmp_path), RayWorkers(address="127.0.0.2:9"), RunConfig(), 1, 1)
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "99" if name == "digitcnn" else version(name))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ConfigError) as caught:
        open_pool(nodes, tmp_path)
    assert " has digitcnn 0.1.0, this machine 99; install the same there" in str(caught.value)
    assert "(127.0.0." in str(caught.value)
    assert signal.getsignal(signal.SIGTERM) == before


def test_pool_names_a_cluster_without_a_token_once(nodes: Nodes, tmp_path: Path) -> None:
    with logged_messages() as heard, closing(open_pool(nodes, tmp_path, count=1)):
        pass
    assert [line for line in heard if "asks for no token" in line] == heard


def test_pool_leaves_out_a_node_that_joins_with_another_version(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One warning names the node; a worker that dies is placed on the others again, not there."""
    version = metadata.version
    with logged_messages() as heard, closing(open_pool(nodes, tmp_path)) as began:
        workers = list(itertools.islice(began.arrivals(), 2))
        monkeypatch.setattr(metadata, "version", lambda name: "99" if name == "digitcnn" else version(name))
        joined = nodes.add().node_ip_address
        arrivals = threading.Thread(target=lambda: workers.extend(began.arrivals()))
        arrivals.start()
        wait_for(lambda: any("gets no workers" in line for line in heard))
        with pytest.raises(WorkerDied):
            workers[0].run("exit", go_on, began.stop)
        assert workers[0].wait_ready()
        began.finished.set()
        arrivals.join()
        assert not [worker for worker in began.workers if joined in worker.node]
    (line,) = [line for line in heard if "gets no workers" in line]
    assert f"({joined}) has digitcnn 0.1.0, this machine 99; it gets no workers" in line


def test_pool_ends_when_the_head_is_gone(nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last test of the cluster: its workers' threads all end with the one line, and no process is left."""
    monkeypatch.setattr(pool, "_HEAD_SECONDS", 3.0)
    raised: list[str] = []

    def loop(worker: Worker) -> None:
        try:
            while worker.wait_ready():
                worker.run("40", go_on, began.stop)
        except MachineError as error:
            raised.append(str(error))

    with closing(open_pool(nodes, tmp_path, seconds=0.05, count=2)) as began:
        workers = list(itertools.islice(began.arrivals(), 2))
        threads = [threading.Thread(target=loop, args=(worker,)) for worker in workers]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(list(tmp_path.glob("begun-*"))) > 1)
        nodes.kill_head()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        with pytest.raises(MachineError, match="is gone"):
            next(began.arrivals())
    words = "; what had been recorded is safe, and the same command goes on when the cluster is there again"
    assert len(raised) == 2
    assert all("the Ray cluster is gone (" in line and line.endswith(words) for line in raised)
    workers_left = nodes.actors()
    for node in nodes.cluster.worker_nodes:
        nodes.kill(node, but=workers_left)
    # Where a node's own process is gone its workers end by themselves.
    _, alive = psutil.wait_procs(workers_left, timeout=30)
    assert workers_left
    assert not alive
