"""The rules of what counts: a trial's own failure, a broken machine, kills from outside, a hung worker."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from optuna.trial import TrialState

from digitcnn import study
from digitcnn.config import RunConfig, SweepConfig
from digitcnn.errors import MachineError
from digitcnn.runner import Trainer
from tests.conftest import with_study, with_workers
from tests.support.processes import start
from tests.support.sweeps import assert_nothing_runs, assert_whole, open_records, work
from tests.support.trainers import BrokenTrainer, DivergingTrainer, InstantTrainer, SuicidalTrainer

_CRASHING = 100


@dataclass(frozen=True)
class HungryTrainer(InstantTrainer):
    """Asks for more memory than its process may have, when the batch size is 100 or always."""

    always: bool = False

    def prepare(self, threads: int) -> None:
        in_use = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (in_use + 2**31, in_use + 2**31))

    def before_epoch(self, job: RunConfig, epoch: int) -> None:
        if self.always or job.training.batch_size == _CRASHING:
            np.ones(2**33)


@pytest.mark.parametrize(
    ("trainer", "bad", "attempts"),
    [
        (HungryTrainer(), _CRASHING, 2),
        (BrokenTrainer(batch_sizes=(150,)), 150, 2),
        (SuicidalTrainer(batch_sizes=(30,), always=True), 30, 10),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_trial_that_fails_while_others_succeed_counts_as_failed(
    trainer: Trainer, bad: int, attempts: int, workers: int, sweep_config: SweepConfig, tmp_path: Path
) -> None:
    """Given one trial that takes all memory, that raises, or that always kills its worker."""
    space = {"training": {"batch_size": [20, 50, _CRASHING, 150, 30]}}
    config = with_study(sweep_config, sampler="grid", trials=5, workers=workers, space=space)
    if isinstance(trainer, SuicidalTrainer):
        trainer = replace(trainer, folder=tmp_path)
    assert work(config, trainer).finished == 5
    opened, client, _ = open_records(config.tracking.folder)
    states = Counter((trial.params["training.batch_size"], trial.state) for trial in opened.trials)
    assert {size for size, state in states if state == TrialState.COMPLETE} == {20, 30, 50, 100, 150} - {bad}
    assert states[bad, TrialState.FAIL] == attempts
    last = [trial for trial in opened.trials if trial.params["training.batch_size"] == bad][-1]
    assert client.get_run(last.user_attrs["run_id"]).data.tags["failure"] == last.user_attrs["failure"]
    assert_whole(config.tracking.folder, 5)


@pytest.mark.parametrize(
    ("trainer", "cause"),
    [
        (HungryTrainer(always=True), "its worker process ended (out of memory)"),
        (BrokenTrainer(), "RuntimeError: the matrix is singular"),
        (SuicidalTrainer(batch_sizes=(20, 50, 100), always=True), "its worker process ended (SIGKILL)"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_broken_machine_ends_the_sweep_and_counts_no_trial(
    trainer: Trainer, cause: str, workers: int, sweep_config: SweepConfig, tmp_path: Path
) -> None:
    """Given a machine on which every trial fails, twice, and which is mended then."""
    space = {"training": {"batch_size": [20, 50, _CRASHING]}}
    config = with_study(sweep_config, sampler="grid", trials=3, workers=workers, space=space)
    if isinstance(trainer, SuicidalTrainer):
        trainer = replace(trainer, folder=tmp_path)
    root = config.tracking.folder
    for _ in range(2):
        with pytest.raises(MachineError) as caught:
            work(config, trainer)
        assert str(caught.value) == (
            f"3 trials failed in a row: {cause}; none of this counts, and the same command tries again; "
            "what had run is recorded"
        )
        opened, client, _ = open_records(root)
        assert study.count_finished(opened, "tpe") == 0
        parent = client.get_run(opened.user_attrs["parent_run_id"])
        assert (parent.info.status, parent.data.tags["study.ended"]) == ("FAILED", "failed after 0 of 3 trials")
        assert_nothing_runs(root)
    begun = len(opened.trials)
    result = work(config, InstantTrainer())
    assert (result.finished, result.completed) == (3, 3)
    # The baseline comes first.
    assert open_records(root)[0].trials[begun].user_attrs["baseline"]
    assert_whole(root, 3)


def test_trials_that_fail_in_a_row_on_a_machine_that_works_come_to_an_end(sweep_config: SweepConfig) -> None:
    """Given only trials that always fail beside the baseline."""
    space = {"training": {"batch_size": [20, 50, _CRASHING, 150, 30]}}
    config = with_study(sweep_config, sampler="grid", trials=5, workers=2, space=space)
    result = work(config, BrokenTrainer(batch_sizes=(20, _CRASHING, 150, 30)))
    assert (result.finished, result.completed) == (5, 1)
    assert_whole(config.tracking.folder, 5)


def test_retry_failed_queues_failed_trials_again(sweep_config: SweepConfig, tmp_path: Path) -> None:
    space = {"training": {"batch_size": [20, 50, _CRASHING]}}
    config = with_study(sweep_config, sampler="grid", trials=3, workers=1, space=space)
    broken = BrokenTrainer(batch_sizes=(_CRASHING,), mend=tmp_path / "mended")
    assert work(config, broken).completed == 2
    broken.mend.touch()
    assert work(config, broken).completed == 2
    assert work(with_study(config, retry_failed=True), broken).completed == 3
    assert_whole(config.tracking.folder, 3)


@dataclass(frozen=True)
class UnpreparedTrainer(InstantTrainer):
    """Cannot begin, as where a library is broken or a limit of the system is too low."""

    def prepare(self, threads: int) -> None:
        raise ImportError("libtensorflow.so: cannot open\nshared object file")


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_that_cannot_begin_ends_the_sweep_with_its_words(
    workers: int, sweep_config: SweepConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    config = with_study(sweep_config, workers, trials=3)
    with pytest.raises(MachineError, match="a worker cannot begin: libtensorflow.so: cannot open"):
        work(config, UnpreparedTrainer())
    assert study.count_finished(open_records(config.tracking.folder)[0], "tpe") == 0
    assert_nothing_runs(config.tracking.folder)
    assert "Traceback" not in capfd.readouterr().err
    assert work(config, InstantTrainer()).completed == 3


def test_study_run_says_how_its_sweep_ended(sweep_config: SweepConfig, messages: list[str]) -> None:
    """Given a sweep whose time is up, then one at its total, and one in which nothing completed."""
    config = with_study(sweep_config, trials=3, workers=1)

    def ended(name: str) -> tuple[str, str]:
        opened, client, _ = open_records(config.tracking.folder, name)
        parent = client.get_run(opened.user_attrs["parent_run_id"])
        return parent.info.status, parent.data.tags["study.ended"]

    result = work(with_study(config, timeout="2s"), InstantTrainer(3.0))
    assert (result.finished, result.total) == (1, 3)
    assert ended("small") == ("KILLED", "time was up after 1 of 3 trials")
    assert work(config, InstantTrainer()).finished == 3
    assert ended("small") == ("FINISHED", "3 of 3 trials")
    result = work(with_study(config, name="nothing"), DivergingTrainer())
    assert (result.finished, result.completed) == (3, 0)
    assert ended("nothing") == ("FAILED", "3 of 3 trials, none of them completed")


@dataclass(frozen=True)
class HangingTrainer(InstantTrainer):
    """Stops its own process once, as a debugger or a device that does not answer does."""

    mark: Path = Path()

    def before_epoch(self, job: RunConfig, epoch: int) -> None:
        if not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGSTOP)


def test_worker_that_hangs_is_ended_and_its_trial_repeated(
    sweep_config: SweepConfig, tmp_path: Path, messages: list[str]
) -> None:
    config = with_workers(with_study(sweep_config, trials=3), count=1, patience="4s")
    assert work(config, HangingTrainer(mark=tmp_path / "hung")).completed == 3
    first = open_records(config.tracking.folder)[0].trials[0]
    assert re.fullmatch(
        r"its worker said nothing for \d+ s \(workers.patience\) and was ended", first.user_attrs["lost"]
    )
    assert [text for text in messages if "has said nothing for 2 s: it is ended" in text]
    assert_whole(config.tracking.folder, 3)


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A cgroup of this machine, of version 1 or 2, whose processes may take 700 MB."""
    for parent, limit in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        folder = parent / f"digitcnn-test-{os.getpid()}"
        with contextlib.suppress(OSError):
            folder.mkdir()
            if (folder / limit).exists():
                (folder / limit).write_text(str(700 * 2**20))
                yield folder
                folder.rmdir()
                return
            folder.rmdir()
    pytest.skip("a cgroup cannot be made here")


@dataclass(frozen=True)
class GreedyTrainer(InstantTrainer):
    """Takes 1 GB in a cgroup that it puts itself in, without asking its own process's limits."""

    cgroup: Path = Path()

    def before_epoch(self, job: RunConfig, epoch: int) -> None:
        (self.cgroup / "cgroup.procs").write_text(str(os.getpid()))
        np.ones(2**27)


def test_sweep_that_the_system_lets_have_too_little_memory_says_so(
    small_cgroup: Path, sweep_config: SweepConfig, tmp_path: Path
) -> None:
    """Given a real kill by the kernel: nothing counts, and the same sweep with less hunger trains all."""
    config = with_study(
        sweep_config, sampler="grid", trials=3, workers=1, space={"training": {"batch_size": [20, 50, 100]}}
    )
    lines = tmp_path / "lines"
    owner = start(config, GreedyTrainer(cgroup=small_cgroup), lines)
    (small_cgroup / "cgroup.procs").write_text(str(owner.pid))
    owner.join(120)
    assert owner.exitcode == 1
    error = next(line for line in lines.read_text().splitlines() if line.startswith("error: "))
    memory = r"1 worker( of [\d,]+ MB)? on [\d,]+ MB; try a smaller training.batch_size;"
    assert re.search(f"3 trials failed in a row: killed, probably out of memory: {memory}", error)
    assert study.count_finished(open_records(config.tracking.folder)[0], "tpe") == 0
    assert work(config, InstantTrainer()).completed == 3
