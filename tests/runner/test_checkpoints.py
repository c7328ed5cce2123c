"""Epochs are not trained twice: trials that go on from checkpoints, and trials read off the curves of others."""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from digitcnn import runner, study, tracking
from digitcnn.config import RunConfig, SweepConfig, load_config
from digitcnn.training import loop
from digitcnn.values import Decision, EpochMetrics
from tests.conftest import Command, with_study
from tests.support.processes import start, wait_for
from tests.support.sweeps import During, Quiet, assert_stores_agree, assert_whole, open_records, work
from tests.support.trainers import InstantTrainer, SavingTrainer


def _with_epochs(config: SweepConfig, epochs: int, **values: object) -> SweepConfig:
    """One worker, batch sizes alone unless another space is given."""
    tree = config.model_dump()
    longer = load_config(SweepConfig, tree | {"training": tree["training"] | {"epochs": epochs}})
    space = {"training": {"batch_size": [20, 50]}}
    return with_study(longer, workers=1, **{"trials": 2, "sampler": "grid", "space": space, **values})


def _trained(folder: Path) -> Counter[tuple[int, int]]:
    """Return the number of times that each epoch of each batch size was trained."""
    lines = (folder / "trained").read_text().splitlines()
    return Counter((int(size), int(epoch)) for size, epoch in map(str.split, lines))


def test_trial_of_a_killed_worker_goes_on_at_its_last_checkpoint(sweep_config: SweepConfig, tmp_path: Path) -> None:
    config, dies = _with_epochs(sweep_config, 6), random.randint(2, 6)
    root = config.tracking.folder
    work(config, SavingTrainer(folder=tmp_path, dies=dies))
    assert _trained(tmp_path) == Counter({(size, epoch): 1 for size in (20, 50) for epoch in range(1, 7)})
    assert_whole(root, 2, models=True)
    opened, client, _ = open_records(root)
    lost, again = [[t for t in opened.trials if ("repeats" in t.user_attrs) == repeats] for repeats in (False, True)]
    assert len(lost) == len(again) == 2
    for trial in again:
        record = study.read_trial(trial)
        assert (record.continues, record.epochs_before) == (record.repeats, dies - 1)
        assert (record.cpu_seconds, record.cpu_spent) == (6, 7 - dies)
        earlier = lost[int(record.continues or 0)].user_attrs["run_id"]
        run = client.get_run(str(record.run_id))
        assert run.data.tags["continues"] == earlier
        assert (run.data.metrics["cpu_seconds"], run.data.metrics["cpu_spent"]) == (6, 7 - dies)
    table = study.rank_trials(opened)
    assert table[table["state"] == "complete"]["note"].str.contains(f"goes on after epoch {dies - 1} of trial").all()
    assert not (root / "checkpoints" / "sweep" / "small").exists()


def test_sweep_of_a_killed_owner_goes_on_at_its_last_checkpoint(sweep_config: SweepConfig, tmp_path: Path) -> None:
    """Killed twice: it goes on; and from the start, with one line, where the checkpoint was damaged meanwhile."""
    config, lines = _with_epochs(sweep_config, 8, trials=1, checkpoints="keep"), tmp_path / "lines"
    trainer, folder = SavingTrainer(0.2, folder=tmp_path), config.tracking.folder / "checkpoints" / "sweep" / "small"
    for epoch in (4, 6):
        process = start(config, trainer, lines)
        wait_for(lines, f"trial {0 if epoch == 4 else 1} epoch {epoch}\n", process)
        process.kill()
        process.join()
    (path,) = folder.glob("*.npz")
    assert int(path.stem.rpartition("-")[2]) in (5, 6, 7)
    # A kill between the begin of an epoch and its checkpoint has this epoch trained again: one for each kill.
    assert all(_trained(tmp_path)[50, epoch] == 1 for epoch in (1, 2, 3))
    assert sum(_trained(tmp_path)[50, epoch] - 1 for epoch in (4, 5)) <= 1
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    last = start(config, trainer, lines)
    last.join(60)
    assert last.exitcode == 0, lines.read_text()
    pattern = f"checkpoint {path.name} is corrupt or truncated .*: trained from the start"
    assert len(re.findall(pattern, lines.read_text())) == 1
    assert _trained(tmp_path)[50, 1] == 2
    # Kept, as it was asked for: the last one.
    assert [each.stem.rpartition("-")[2] for each in folder.glob("*.npz")] == ["8"]


def test_trials_that_differ_in_epochs_alone_share_them(sweep_config: SweepConfig, tmp_path: Path) -> None:
    """The baseline has 4 epochs: 2 and 3 are read off its curve, 6 goes on from it, 5 is read off that."""
    config = _with_epochs(
        sweep_config, 4, trials=5, sampler="random", space={"training": {"epochs": {"choices": [2, 3, 4, 5, 6]}}}
    )
    root = config.tracking.folder
    _queued(config, [2, 3, 6, 5])

    def measure() -> None:
        """Record what a training of more than 30 s has: of the machine, not of the epochs."""
        opened, client, _ = open_records(root)
        client.log_metric(opened.trials[0].user_attrs["run_id"], "system/memory_usage_megabytes", 900.0)

    work(config, SavingTrainer(folder=tmp_path), During(0, measure))
    assert _trained(tmp_path) == Counter({(50, epoch): 1 for epoch in range(1, 7)})
    assert_stores_agree(root)
    opened, client, _ = open_records(root)
    records = [study.read_trial(trial) for trial in opened.trials]
    assert [record.prefix_of for record in records] == [None, 0, 0, None, 3]
    assert (records[3].continues, records[3].epochs_before) == (0, 4)
    assert [record.cpu_seconds for record in records] == [4, 2, 3, 6, 5]
    assert [record.cpu_spent for record in records] == [4, 0, 0, 2, 0]
    undisturbed = InstantTrainer()
    for trial, record in zip(opened.trials, records, strict=True):
        epochs, run = trial.params["training.epochs"], client.get_run(str(record.run_id))
        assert record.epochs_run == epochs
        assert trial.values == [undisturbed.accuracy(config.baseline, epochs)]
        assert run.data.metrics["samples_seen"] == 500 * epochs
        assert trial.number == 0 or not any("/" in name for name in run.data.metrics)
        assert run.data.tags["weights_sha256"] == hashlib.sha256(f"50 {epochs}".encode()).hexdigest()
        history = client.get_metric_history(run.info.run_id, "validation_accuracy")
        assert {each.step: each.value for each in history} == {
            epoch: undisturbed.accuracy(config.baseline, epoch) for epoch in range(1, epochs + 1)
        }
        steps = [each.step for each in client.get_metric_history(run.info.run_id, "train_loss")]
        assert steps == list(range(1, epochs + 1))
    assert client.get_run(str(records[1].run_id)).data.tags["prefix_of"] == records[0].run_id
    assert client.get_run(str(records[3].run_id)).data.tags["continues"] == records[0].run_id
    assert "the first epochs of trial 3, not trained again" in list(study.rank_trials(opened)["note"])
    # Optuna's pruner has seen every epoch of every trial.
    assert [sorted(trial.intermediate_values) for trial in opened.trials[1:3]] == [[1, 2], [1, 2, 3]]


@dataclass(frozen=True)
class _Meeting(InstantTrainer):
    """Trains its first epoch when two runs have come to it."""

    folder: Path = Path()

    def before_epoch(self, job: RunConfig, epoch: int) -> None:
        (self.folder / f"epochs-{job.training.epochs}").touch()
        deadline = time.monotonic() + 60
        while len(list(self.folder.glob("epochs-*"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_trials_that_share_no_epochs_do_not_wait_for_each_other(sweep_config: SweepConfig, tmp_path: Path) -> None:
    """Given a schedule over all epochs, and two workers."""
    config = _with_epochs(sweep_config, 2, space={"training": {"epochs": [2, 3]}})
    config = load_config(SweepConfig, config.model_dump() | {"training": {"schedule": "cosine", "epochs": 2}})
    shown = Quiet()
    work(with_study(config, workers=2), _Meeting(folder=tmp_path), shown)
    assert shown.endings == ["complete"] * 2


def _queued(config: SweepConfig, epochs: list[int]) -> None:
    """Begin the study with these numbers of epochs to come after the baseline."""
    plan = runner.plan_sweep(config)
    opened = study.open_study(config.tracking.folder, config.study, plan.space, config.baseline, plan.data_sha256)
    for each in epochs:
        opened.enqueue_trial({"training.epochs": each})


def test_train_goes_on_where_it_was_ended_and_trains_a_finished_run_on(
    small_config: RunConfig, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    """Real training: ended before its time, begun again, and trained on, each with the bits of an undisturbed run."""
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", 0.0)
    config, longer = (small_config.replace({"training.epochs": epochs}) for epochs in (3, 5))
    undisturbed = runner.record_run(longer, tags={})
    digests = [each.weights_sha256 for each in undisturbed.epochs]

    def end_after(epoch: int) -> Callable[[EpochMetrics], Decision]:
        def end(metrics: EpochMetrics) -> Decision:
            if metrics.epoch == epoch:
                raise KeyboardInterrupt
            return "continue"

        return end

    with pytest.raises(KeyboardInterrupt):
        runner.record_run(config, tags={}, saves=True, on_epoch=end_after(3))
    again = runner.record_run(config, tags={}, saves=True)
    assert again.result.epochs_before == 2
    assert [each.weights_sha256 for each in again.epochs] == digests[:3]
    # A run that was finished is not gone on with, unless it is named.
    anew = runner.record_run(config, tags={}, saves=True)
    assert (anew.result.epochs_before, anew.result.weights_sha256) == (0, digests[2])
    trained_on = runner.record_run(longer, tags={}, saves=True, continues=again.run_id)
    assert (trained_on.result.epochs_before, trained_on.result.weights_sha256) == (3, digests[4])
    store = tracking.open_store(config.tracking)
    run = store.client.get_run(trained_on.run_id)
    assert run.data.tags["continues"] == again.run_id
    steps = [each.step for each in store.client.get_metric_history(trained_on.run_id, "train_loss")]
    assert steps == [1, 2, 3, 4, 5]
    assert {name: run.data.metrics[name] for name in ("samples_seen", "updates")} == {
        "samples_seen": 2500,
        "updates": 50,
    }
    assert run.data.metrics["cpu_seconds"] > run.data.metrics["cpu_spent"] > 0
    assert f"goes on after epoch 3 of run {again.run_id}" in messages
    # What ends before it, and what keeps no checkpoints, leaves that of a longer training where it is found.
    with pytest.raises(KeyboardInterrupt):
        runner.record_run(config.replace({"training.epochs": 7}), tags={}, saves=True, on_epoch=end_after(7))
    runner.record_run(longer, tags={}, saves=True)
    runner.record_run(config.replace({"training.epochs": 6}), tags={})
    longest = runner.record_run(config.replace({"training.epochs": 7}), tags={}, saves=True)
    assert longest.result.epochs_before == 6
    # Nothing to go on from: the same bits from the start.
    shorter = runner.record_run(config, tags={}, saves=True, continues=trained_on.run_id)
    assert (shorter.result.epochs_before, shorter.result.weights_sha256) == (0, digests[2])
    assert f"run {trained_on.run_id} has no checkpoint of 3 epochs or fewer: trained from the start" in messages


def test_train_of_a_recorded_run_takes_epochs_alone(command: Command, tmp_path: Path) -> None:
    ended = command("train", "run=abcdef12", "training.seed=3", f"tracking.root={tmp_path}/records")
    line = "error: training.seed: run=abcdef12 is trained on as it was; only training.epochs may differ\n"
    assert (ended.returncode, ended.stderr) == (2, line)
    ended = command("train", "run=abcdef12", "training.epochs=3", f"tracking.root={tmp_path}/records")
    assert (ended.returncode, ended.stderr) == (2, f"error: run=abcdef12: nothing is recorded in {tmp_path}/records\n")


@pytest.mark.usefixtures("root")
def test_trial_read_off_a_longer_one_is_reproduced_and_gets_a_model(
    command: Command, small_overrides: list[str], tmp_path: Path
) -> None:
    """Real training: the baseline of 2 epochs, and a trial of 1 whose weights nobody has computed again."""
    space = ["study.space.training.epochs=[1,2]", "study.space.training.batch_size=null"]
    space += ["study.space.model.conv1_filters=null", "study.space.model.conv2_filters=null"]
    study_keys = ["study.name=small", "study.trials=2", "study.sampler=grid", "workers.count=1"]
    swept = command("sweep", *small_overrides, *study_keys, *space)
    assert swept.returncode == 0, swept.stderr
    assert "the first epochs of trial 0, not trained again" in " ".join(swept.stdout.split())
    root = f"tracking.root={tmp_path}/records"
    run_id = open_records(tmp_path / "records")[0].trials[1].user_attrs["run_id"]
    refused = command("predict", "digit.png", f"run={run_id}", root)
    words = f"error: run={run_id}: has no model, as it was read off a longer run; "
    assert refused.returncode == 2
    assert refused.stderr.endswith(f"{words}digitcnn train run={run_id} makes one with a model\n")
    again = command("reproduce", f"run={run_id}", root)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "IDENTICAL" in again.stdout
    trained = command("train", f"run={run_id[:8]}", root)
    assert trained.returncode == 0, trained.stderr
    (made,) = re.findall(r"recorded as run (\w+)", trained.stdout)
    client = open_records(tmp_path / "records")[1]
    digests = {client.get_run(each).data.tags["weights_sha256"] for each in (run_id, made)}
    assert len(digests) == 1
    assert client.get_run(made).data.params["training.epochs"] == "1"
    assert client.search_logged_models(["1"], f"source_run_id = '{made}'")
