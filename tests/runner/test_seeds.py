"""Trials that are trained with several seeds: the baseline and those that may be the best with all of them."""

from __future__ import annotations

import base64
import json
import time
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from digitcnn import evaluation, report, runner, study
from digitcnn.config import ReportConfig, RunConfig, StudyReference, SweepConfig
from digitcnn.errors import ConfigError
from tests.conftest import with_study
from tests.support.processes import start, wait_for
from tests.support.sweeps import Quiet, assert_nothing_runs, confirm_config, open_records, work
from tests.support.trainers import ConfirmingTrainer, SeedsTrainer


def _seeds(config: SweepConfig, **values: object) -> SweepConfig:
    space = {"training": {"batch_size": [20, 50, 100]}}
    return with_study(config, workers=1, **{"trials": 3, "sampler": "grid", "seeds": 3, "space": space, **values})


@dataclass(frozen=True)
class _Waiting(SeedsTrainer):
    """Does not begin the second epoch of seed 2."""

    def before_epoch(self, job: RunConfig, epoch: int) -> None:
        while (job.training.seed, epoch) == (2, 2):
            time.sleep(0.05)
        super().before_epoch(job, epoch)


def _trained(folder: Path) -> Counter[tuple[int, int, int]]:
    """Return the number of times that each epoch of each batch size and seed was trained."""
    batches = (line.split() for line in (folder / "trained").read_text().splitlines())
    return Counter((int(size), int(seed), int(epoch)) for size, seed, epoch in batches)


def test_sweep_of_several_seeds_goes_on_where_it_was_killed(sweep_config: SweepConfig, tmp_path: Path) -> None:
    """Killed in the baseline's second seed: its first is not trained again, and the values are the means of all."""
    config, lines = _seeds(sweep_config), tmp_path / "lines"
    process = start(config, _Waiting(folder=tmp_path), lines)
    wait_for(lines, "trial trial 0, seed 2 epoch 1\n", process)
    place = ReportConfig(study=StudyReference(name="small"), tracking=config.tracking)
    assert report.study_status(place)[1:3] == ["  0: seed 2: epoch 1 of 2", "no trial has completed"]
    process.kill()
    process.join()
    result = work(config, SeedsTrainer(folder=tmp_path))
    length = config.training.epochs
    trained = _trained(tmp_path)
    assert {(size, seed) for size, seed, _ in trained} == {
        (20, 1),
        *((size, seed) for size in (50, 100) for seed in (1, 2, 3)),
    }
    assert all(count == 1 for (size, seed, _), count in trained.items() if (size, seed) != (50, 2))
    assert_nothing_runs(config.tracking.folder)
    opened, client, runs = open_records(config.tracking.folder)
    ended = {trial.params["training.batch_size"]: trial for trial in opened.trials if trial.values}
    undisturbed = {
        size: SeedsTrainer().accuracy(config.baseline.replace({"training.batch_size": size}), length) for size in ended
    }
    assert {size: trial.values for size, trial in ended.items()} == {
        size: [pytest.approx(value)] for size, value in undisturbed.items()
    }
    records = {size: study.read_trial(trial) for size, trial in ended.items()}
    assert {size: record.seeds for size, record in records.items()} == {20: 1, 50: 3, 100: 3}
    assert (records[100].seeds_sd, records[20].seeds_sd) == (pytest.approx(0.001), None)
    assert (records[100].cpu_seconds, records[100].cpu_spent) == (length, 3 * length)
    run = client.get_run(str(records[100].run_id))
    assert run.info.status == "FINISHED"
    measured = {
        "validation_accuracy.mean": undisturbed[100],
        "seeds": 3,
        "seeds.sd": 0.001,
        "seeds.standard_error": 0.001 / 3**0.5,
    }
    assert {name: run.data.metrics[name] for name in measured} == pytest.approx(measured)
    children = [each for each in runs if each.data.tags.get("mlflow.parentRunId") == run.info.run_id]
    assert sorted(each.data.params["training.seed"] for each in children) == ["2", "3"]
    assert [each.info.run_id for each in reversed(children)] == records[100].seed_runs
    best = result.leaderboard.iloc[0]
    assert (best["training.batch_size"], best["seeds"], best["seeds_sd"]) == (100, 3, pytest.approx(0.001))
    line = study.best_against_baseline(result.leaderboard, ["validation_accuracy"])
    assert line.endswith("standard error 0.08, 3 and 3 seeds)")
    assert not list(config.tracking.folder.glob("checkpoints/sweep/small/*"))
    # The means are what MLflow's table of trials is sorted by, and the report says that they are.
    page = report.write_report(place).read_text()
    assert "is trained with seeds 1 to 3, and its values are the means" in page
    assert "ranked by validation_accuracy, the mean of each one's seeds;" in page.replace("&#39;", "'")
    experiment = client.get_experiment_by_name("digitcnn")
    assert experiment is not None
    view = json.loads(experiment.tags["mlflow.sharedViewState.small-trials"])["state"].removeprefix("deflate;")
    state = json.loads(zlib.decompress(base64.b64decode(view)))
    assert state["orderByKey"] == "metrics.`validation_accuracy.mean`"
    assert state["orderByKey"] in state["selectedColumns"]
    # Nor with the seeds of the search.
    plan = evaluation.plan_confirmation(confirm_config(config))
    assert plan.seeds == (4, 5)
    evaluation.run_confirmation(plan, Quiet(), ConfirmingTrainer())


@pytest.mark.usefixtures("quick_workers")
def test_trials_of_several_seeds_share_epochs(sweep_config: SweepConfig, tmp_path: Path) -> None:
    """Three and two epochs of the same training: each seed of the shorter is read off the longer's."""
    config = _seeds(sweep_config, trials=2, space={"training": {"epochs": [2, 3]}})
    config = config.model_copy(update={"training": config.training.model_copy(update={"epochs": 3})})
    result = work(config, SeedsTrainer(folder=tmp_path))
    assert _trained(tmp_path) == Counter({(50, seed, epoch): 1 for seed in (1, 2, 3) for epoch in (1, 2, 3)})
    opened, client, _ = open_records(config.tracking.folder)
    record = study.read_trial(opened.trials[1])
    # A single seed tells that one epoch less is worse by ten times what seeds differ in.
    assert (record.prefix_of, record.seeds, record.cpu_spent) == (0, 1, 0.0)
    assert "validation_accuracy.mean" in client.get_run(str(record.run_id)).data.metrics
    assert result.epochs == "epochs: 9 trained, 2 taken from other trials"


def test_seeds_are_part_of_a_study_and_not_of_its_space(sweep_config: SweepConfig) -> None:
    with pytest.raises(ConfigError, match="study.seeds=3: must be 1"):
        runner.plan_sweep(_seeds(sweep_config, space={"training": {"seed": [1, 2]}}))
