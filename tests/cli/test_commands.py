"""The commands as a person runs them: what is refused, what is printed, what is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.conftest import Command, command_line

# Command, override, and what the one line must say.
REFUSED = [
    ("train", "training.bach_size=1", "training.bach_size: unknown key; did you mean training.batch_size?"),
    ("train", "+training.colour=red", "training.colour: unknown key; known keys: training.engine"),
    ("train", "training.batch_size=abc", "training.batch_size=abc: must be a valid integer"),
    ("train", "training.batch_size=-3", "training.batch_size=-3: must be greater than or equal to 1"),
    ("train", "training.epochs=0", "training.epochs=0: must be greater than or equal to 1"),
    ("train", "training.epochs=99999999999", "training.epochs=99999999999: must be less than or equal to"),
    ("train", "training.learning_rate=nan", "training.learning_rate=nan: must be a finite number"),
    ("train", "training.learning_rate=inf", "training.learning_rate=inf: must be a finite number"),
    ("train", "training.learning_rate=1e99", "training.learning_rate=1e+99: must be less than"),
    ("train", "training.batch_size=[1", "has a bracket without its other half"),
    ("train", "model.conv2_kernel=20", "model.conv2_kernel=20: leaves no pixels of images of 28 x 28"),
    ("train", "model.conv1_filters=0", "model.conv1_filters=0: must be greater than or equal to 1"),
    ("train", "model.conv2_filters=1000000", "model.conv2_filters=1000000: must be less than or equal to 4096"),
    ("train", "model=resnet", "model=resnet: no such file in conf/model; must be one of cnn, mlp"),
    ("train", "data.path=/no/such.npz", "data.path=/no/such.npz: no such file"),
    ("train", "data.validation_size=60000", "must be below the 60000 training images"),
    ("train", "data.train_size=50001", "data.train_size=50001: must be at most 50000"),
    ("train", "training.threads=0", "training.threads=0: must be greater than or equal to 1"),
    ("sweep", "study.sampler=best", "study.sampler=best: must be 'tpe', 'random', 'grid', 'qmc'"),
    ("sweep", "study.pruner=hard", "study.pruner=hard: must be 'none' or 'median'"),
    ("sweep", "study.space.training.epochs=[]", "study.space.training.epochs.choices=[]: must be a list of at least"),
    ("sweep", "study.space.training.epochs={low: 9, high: 4}", "is empty: low=9 is above high=4"),
    ("sweep", "study.space.training.colour=[1,2]", "study.space.training.colour: unknown key"),
    ("sweep", "study.space.model.conv2_kernel=[3,14]", "model.conv2_kernel=14: leaves no pixels"),
    ("sweep", "study.trials=0", "study.trials=0: must be greater than or equal to 1"),
    ("sweep", "study.timeout=soon", "study.timeout=soon: must be a duration such as 90s, 15m or 2h"),
    ("sweep", "study.name=../../etc", "study.name=../../etc: must be 1 to 100 letters"),
    ("sweep", "study.objective=fame", "study.objective.0=fame: must be"),
    ("sweep", "workers.count=-1", "workers.count=-1: must be greater than or equal to 1"),
    ("sweep", "study.workers=2", "study.workers: unknown key; is now workers.count"),
    ("confirm", "confirm.workers=2", "confirm.workers: unknown key; is now workers.count"),
    ("sweep", "workers.max=2", "workers.max: unknown key; only another workers=NAME has it"),
    ("sweep", "study=null", "study=null: must be the name of a file in conf/study"),
    ("sweep", "study.space={}", "study.space: is empty; must vary at least one key"),
    ("sweep", "study=nothing", "study=nothing: no such file in conf/study; must be one of around_article"),
]


def test_commands_refuse_mistakes_in_one_line_and_leave_nothing(tmp_path: Path, command: Command) -> None:
    records = tmp_path / "records"

    for name, override, message in REFUSED:
        ended = command(name, override, f"tracking.root={records}")
        assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1), override
        assert message in ended.stderr
    assert not records.exists()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_sweep_without_its_cluster_ends_in_one_line(
    command: Command, small_overrides: list[str], tmp_path: Path
) -> None:
    ended = command("sweep", "workers=ray", "workers.address=127.0.0.2:9", *small_overrides)
    assert ended.returncode == 1
    assert ended.stderr == "error: workers.address=127.0.0.2:9: no Ray cluster answers at 127.0.0.2:9\n"
    assert not (tmp_path / "records" / "optuna.db").exists()


def test_sweep_refuses_a_grid_on_a_continuous_space(
    command: Command, small_overrides: list[str], tmp_path: Path
) -> None:
    continuous = "study.space.training.learning_rate={low: 0.001, high: 0.1}"
    ended = command("sweep", *small_overrides, continuous, "study.sampler=grid")
    assert ended.returncode == 2
    assert "study.space.training.learning_rate is continuous" in ended.stderr
    assert not (tmp_path / "records").exists()


def test_train_prints_its_epochs_and_records_a_run(
    command: Command, small_overrides: list[str], tmp_path: Path
) -> None:
    ended = command("train", *small_overrides)
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = [line for line in ended.stdout.splitlines() if not line.startswith("starting ")]
    assert lines[0].startswith("epoch 1/2: train loss ")
    assert lines[1].startswith("epoch 2/2: train loss ")
    run_id = lines[-1].split()[3].rstrip(";")
    assert lines[-1] == f"recorded as run {run_id}; next: digitcnn ui, and compare it with other runs"
    run = MlflowClient(f"sqlite:///{tmp_path}/records/mlflow.db").get_run(run_id)
    assert run.info.status == "FINISHED"
    assert "training.batch_size=50" in run.data.tags["command"]
    # Nothing is left where the command was started.
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert {path.name for path in (tmp_path / "records").iterdir()} == {"mlflow.db", "artifacts", "checkpoints"}


@pytest.mark.usefixtures("root")
def test_train_runs_every_combination_of_a_multirun(
    command: Command, small_overrides: list[str], tmp_path: Path
) -> None:
    overrides = [override for override in small_overrides if "batch_size" not in override]
    overrides = [override for override in overrides if not override.startswith("model.")]
    ended = command("train", *overrides, "--multirun", "training.batch_size=125,250", "model=mlp")
    assert ended.returncode == 0, ended.stderr
    client = MlflowClient(f"sqlite:///{tmp_path}/records/mlflow.db")
    experiment = client.get_experiment_by_name("digitcnn")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.params["training.batch_size"] for run in runs) == ["125", "250"]
    assert {run.data.params["model.name"] for run in runs} == {"mlp"}
    assert list((tmp_path / "elsewhere").iterdir()) == []
    # Again, with one more: only that one is trained.
    again = command("train", *overrides, "--multirun", "training.batch_size=125,250,500", "model=mlp")
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[-1] == "2 of 3 were recorded before; all=true trains them again"
    assert all(f"recorded as run {run.info.run_id}; not trained again" in again.stdout for run in runs)
    assert len(client.search_runs([experiment.experiment_id])) == 3


@pytest.mark.usefixtures("root")
def test_train_follows_the_articles_protocol(command: Command, small_overrides: list[str], tmp_path: Path) -> None:
    ended = command("train", *small_overrides, "experiment=article", "training.epochs=1")
    assert ended.returncode == 0, ended.stderr
    assert "test accuracy" in ended.stdout
    client = MlflowClient(f"sqlite:///{tmp_path}/records/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("digitcnn").experiment_id])  # type: ignore[union-attr]
    assert run.data.metrics["samples_seen"] == 50 * 50
    assert run.data.metrics["updates"] == 50


def test_sweep_previews_and_creates_nothing(command: Command, small_overrides: list[str], tmp_path: Path) -> None:
    ended = command("sweep", *small_overrides, "preview=true", "study.space.training.epochs=[1,2]")
    assert (ended.returncode, ended.stderr) == (0, "measuring the speed of 2 workers, half a minute ...\n")
    assert "2 workers of 1 thread: 2 cores\n" in ended.stdout
    assert "space: 490 points; the baseline is trial 0" in ended.stdout
    assert "training.epochs      one of 1, 2; baseline 2" in ended.stdout
    assert "baseline 4, off the grid" in ended.stdout
    assert "trials to come: 12 of 12 (none recorded yet)" in ended.stdout
    assert "MB a worker, measured" in ended.stdout
    assert "disk: about" in ended.stdout
    assert not (tmp_path / "records").exists()


def test_train_records_a_killed_run_within_an_epoch(small_overrides: list[str], root: Path, tmp_path: Path) -> None:
    """Ctrl-C and SIGTERM, each to a run of its own; both are at work at once."""
    # An epoch of a second or more: the signal meets it in its middle.
    overrides = [*small_overrides, "training.epochs=1000", "training.steps_per_epoch=500"]
    runs = {
        number: subprocess.Popen(
            command_line("train", *overrides, f"training.seed={number}"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        for number, process in runs.items():
            assert process.stdout is not None
            first = next((line for line in process.stdout if line.startswith("epoch 1/1000")), None)
            assert first is not None, process.wait()
            os.killpg(process.pid, number)
        # 10 s by the design; a busy machine may make more of it, but not an endless run.
        ends = {number: (process.communicate(timeout=60)[0], process.returncode) for number, process in runs.items()}
    finally:
        for process in runs.values():
            process.kill()
            process.wait()
    assert {number: status for number, (_, status) in ends.items()} == {signal.SIGINT: 130, signal.SIGTERM: 143}
    assert "Traceback" not in "".join(said for said, _ in ends.values())
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name("digitcnn")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    assert [run.info.status for run in found] == ["KILLED", "KILLED"]
    assert {run.data.params["training.seed"] for run in found} == {"2", "15"}
    assert all(client.get_metric_history(run.info.run_id, "train_loss")[0].step == 1 for run in found)
    assert all(run.data.metrics["validation_accuracy"] > 0 for run in found)
    assert client.search_logged_models([experiment.experiment_id]) == []


@pytest.mark.soak
def test_records_open_in_optuna_dashboard_and_mlflow_ui(
    command: Command, small_overrides: list[str], tmp_path: Path
) -> None:
    """`optuna-dashboard` and `mlflow ui` open the records: both are asked over HTTP."""
    import json
    import socket
    import time
    import urllib.request

    ended = command(
        "sweep", *small_overrides, "study.trials=1", "workers.count=1", "study.space.model.conv2_filters=null"
    )
    assert ended.returncode == 0, ended.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    scripts = Path(sys.executable).parent
    for program, arguments, address, expected in (
        (
            "optuna-dashboard",
            [f"sqlite:///{tmp_path}/records/optuna.db", "--host", "127.0.0.1", "--port", str(port)],
            f"http://127.0.0.1:{port}/api/studies",
            "around_article",
        ),
        (
            "mlflow",
            [
                "ui",
                "--backend-store-uri",
                f"sqlite:///{tmp_path}/records/mlflow.db",
                "--port",
                str(port + 1),
                "--workers",
                "1",
            ],
            f"http://127.0.0.1:{port + 1}/ajax-api/2.0/mlflow/experiments/search?max_results=10",
            "digitcnn",
        ),
    ):
        server = subprocess.Popen(
            [str(scripts / program), *arguments],
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            for _ in range(240):
                try:
                    with urllib.request.urlopen(address, timeout=5) as answer:
                        text = json.dumps(json.load(answer))
                    break
                except OSError:
                    time.sleep(0.25)
            assert expected in text
        finally:
            os.killpg(server.pid, 15)
            server.wait(timeout=20)
