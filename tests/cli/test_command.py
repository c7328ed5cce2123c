"""A command and Hydra: a small application of `run_command`, run as a person runs it."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from digitcnn.config import Config, DeleteConfig, PredictConfig, ReproduceConfig, SweepConfig
from tests.support.commands import run_here

SCHEMAS: dict[str, type[Config]] = {
    "sweep": SweepConfig,
    "reproduce": ReproduceConfig,
    "delete": DeleteConfig,
    "predict": PredictConfig,
}
APPLICATION = """
import os, signal, sys, time
from digitcnn.cli import run_command
from digitcnn.config import SweepConfig
from digitcnn.errors import ConfigError

def task(config):
    seen = config.training.epochs, config.study.name, config.tracking.uri, config.tracking.root
    print("job", *seen, *sys.argv, flush=True)
    if config.training.epochs == 7:
        raise ConfigError("training.epochs=7: is unlucky")
    if config.training.epochs == 8:
        raise ZeroDivisionError("eight")
    if config.training.epochs == 9:
        time.sleep(60)
    return 0

if __name__ == "__main__":
    run_command("sweep", SweepConfig, task)
"""
Application = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def application(tmp_path: Path) -> Application:
    """Runs the application in a folder `empty` and returns how it ended."""
    (tmp_path / "app.py").write_text(APPLICATION)
    (tmp_path / "empty").mkdir()

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        # Unbuffered, the words that jobs print at the same time would mix.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        return subprocess.run(
            [sys.executable, str(tmp_path / "app.py"), *arguments],
            cwd=tmp_path / "empty",
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def here(tmp_path: Path) -> Application:
    """Runs a command that prints its study's name in this process, in a folder `empty`, and returns how it ended."""

    def task(config: SweepConfig) -> int:
        print("job", config.training.epochs, config.study.name, config.tracking.experiment, config.study.timeout)
        return 0

    (tmp_path / "empty").mkdir()
    return functools.partial(run_here, "sweep", SweepConfig, task, folder=tmp_path / "empty")


def _experiment(tmp_path: Path, name: str, content: bytes) -> str:
    folder = tmp_path / "own" / "experiment"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_bytes(content)
    return f"--config-dir={tmp_path}/own"


def test_command_runs_its_job_and_leaves_nothing(application: Application, tmp_path: Path) -> None:
    ended = application("training.epochs=3")
    assert (ended.returncode, ended.stderr) == (0, "")
    shown = f"{tmp_path}/empty/mlruns {tmp_path}/app.py training.epochs=3"
    assert ended.stdout == f"job 3 around_article None {shown}\n"
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--cfg", "job", "training.epochs=3"], "epochs: 3"),
        (["training.epochs=3", "-c", "job", "--package", "training"], "# @package training"),
        (["--cfg=job", "--resolve", "training.epochs=${model.conv1_kernel}"], "epochs: 3"),
        (["--cfg", "hydra"], "output_subdir: null"),
        (["--cfg", "all"], "conv1_filters: 32"),
        (["training.epochs=3", "--info"], "Config search path"),
        (["--info", "searchpath"], "digitcnn"),
        (["--info", "defaults-tree"], "study: around_article"),
        (["--hydra-help"], "Hydra"),
        (["--help"], "after the last epoch, of the model that is saved"),
    ],
)
def test_command_has_hydras_flags(here: Application, arguments: list[str], shown: str) -> None:
    ended = here(*arguments)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert shown in ended.stdout
    assert "job 3" not in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["training.bach_size=1"], "training.bach_size: unknown key; did you mean training.batch_size?"),
        (["+training.colour=red"], "training.colour: unknown key"),
        (["training.epochs=[1"], "training.epochs=[1: has a bracket without its other half; in a shell, put KEY=VALUE"),
        (["training.epochs==3"], "training.epochs==3: extraneous input '='\n"),
        (["training.learning_rate=0,001"], "training.learning_rate=0,001: several values; to train with each add"),
        (["training.epochs=3", "4"], "error: 4: must be KEY=VALUE, without spaces around =\n"),
        (["training.epochs = 3"], "training.epochs = 3: must be KEY=VALUE, without spaces around =\n"),
        (["data=é"], "data=é: holds a character that Hydra takes only within quotes"),
        (["+hydra.job.env_set.A=[s3cret"], "cannot be read: +hydra.job.env_set.A=***"),
        (["training.epochs=1,2"], "add --multirun"),
        (["training.epochs", "3"], "training.epochs: must be KEY=VALUE, without spaces around ="),
        (["--study", "quick"], "unrecognized arguments: --study; a key is written study=VALUE; --hydra-help"),
        (["model=null"], "model=null: must be the name of a file in conf/model"),
        (["hydra.searchpath=[file:///nowhere]"], "path=/nowhere is not available"),
        (["training.epochs=${nowhere}"], "Interpolation key 'nowhere' not found"),
        (["model=resnet"], "model=resnet: no such file in conf/model; must be one of cnn, mlp"),
        (["--colour"], "unrecognized arguments: --colour; a key is written colour=VALUE; --hydra-help"),
        (["--resolve"], "--resolve"),
        (["--multirun", "--cfg", "job"], "Only one of"),
        (["--config-dir=nowhere"], "nowhere' not found"),
        (["--config-name=nowhere"], "Cannot find primary config 'nowhere'"),
        (["study.name=a\x1b[2Jb"], "study.name=a\\x1b[2Jb: must be 1 to 100 letters"),
    ],
)
def test_command_refuses_a_mistake_in_one_line(here: Application, arguments: list[str], line: str) -> None:
    ended = here(*arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: ")
    assert line in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_command_without_a_folder_for_temporary_files_is_one_line(
    here: Application, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    ended = here()
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "error: no folder for temporary files: No such file or directory; set TMPDIR to one\n"


def test_command_writes_what_hydra_is_asked_to_write(application: Application, tmp_path: Path) -> None:
    ended = application("hydra.run.dir=out", "hydra.output_subdir=.hydra", "training.epochs=3")
    assert (ended.returncode, ended.stderr) == (0, "")
    written = tmp_path / "empty" / "out" / ".hydra"
    assert {path.name for path in written.iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}
    assert (written / "overrides.yaml").read_text() == "- training.epochs=3\n"


def test_command_takes_files_with_a_byte_order_mark_and_crlf(here: Application, tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf# @package _global_\r\ntraining:\r\n  epochs: 3\r\n"
    ended = here(_experiment(tmp_path, "mine", content), "experiment=mine")
    assert ended.stdout.startswith("job 3 "), ended.stderr


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (
            b"training:\n  epochs: 3\n",
            "experiment.training is no key; a file that sets training begins with the line # @package _global_ and ",
        ),
        ("# é\n".encode("latin-1"), "mine.yaml: must be UTF-8"),
        ("training:\n".encode("utf-16"), "mine.yaml: must be UTF-8"),
        (b"a: [1\n", "mine.yaml"),
        (b"# @package a b\n", "mine.yaml: Too many components"),
        (b"- 1\n", "mine.yaml: must hold keys and values"),
    ],
)
def test_command_names_a_config_file_that_is_of_no_use(
    here: Application, tmp_path: Path, content: bytes, line: str
) -> None:
    ended = here(_experiment(tmp_path, "mine", content), "experiment=mine")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert line in ended.stderr
    assert ended.stderr.count("\n") == 1


def _own(tmp_path: Path, files: dict[str, str]) -> str:
    """Write config files of one's own; return the flag that names their folder."""
    (tmp_path / "own").mkdir()
    for name, text in files.items():
        path = tmp_path / "own" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return f"--config-dir={tmp_path}/own"


@pytest.mark.parametrize(
    ("files", "arguments", "shown"),
    [
        ({"training/short.yaml": "epochs: 3\n"}, ["training=short", "training.batch_size=100"], "job 3 around"),
        (
            {"study/mini.yaml": "name: mini\nobjective: validation_accuracy\n"},
            ["study=mini", "study.timeout=1h", "study.space={training: {epochs: [1, 2]}}", "training.epochs=3"],
            "job 3 mini digitcnn 1h",
        ),
        ({"training/short.yaml": "{}\n"}, ["-m", "training=short", "training.epochs=3,4"], "job 4 around"),
        ({}, ["study.space.training.epochs.step=2", "experiment=null", "training.epochs=3"], "job 3 around"),
    ],
)
def test_command_sets_keys_of_the_schema_that_no_file_lists(
    here: Application, tmp_path: Path, files: dict[str, str], arguments: list[str], shown: str
) -> None:
    ended = here(_own(tmp_path, files), *arguments)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert shown in ended.stdout


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("training:\n  epochs: 50%\n", "training.epochs=50%: must be a valid integer ({file}, line 3)"),
        ("training:\n  epoch: 3\n", "training.epoch: unknown key; did you mean training.epochs? ({file}, line 3)"),
        ("validation: test\n", "validation: unknown key; did you mean data.validation? ({file}, line 2)"),
        ("training:\n", "training=null: must hold keys and values ({file}, line 2)"),
        ("training:\n  epochs = 3\n", "training=epochs = 3: must hold keys and values ({file}, line 2)"),
        (
            "training:\n  training:\n    epochs: 3\n",
            "training.training is no key; a file that sets training begins with the line # @package _global_ and has "
            "training at its left margin ({file}, line 2)",
        ),
        (
            "training:\n  epochs: ${nowhere}\n",
            "training.epochs: Interpolation key 'nowhere' not found ({file}, line 3)",
        ),
        ("training: [epochs]\n", "In 'experiment/mine': ConfigTypeError raised while composing config"),
        ("training:\n  batch_size: [1\n", '"{file}", line 3, column 15'),
        ("training:\n\tepochs: 3\n", '"{file}", line 3, column 1'),
        ("training:\n  epochs: 3\n  epochs: 4\n", 'found duplicate key epochs in "{file}", line 4'),
        ("training: {{seed: ???}}\n", '"{file}", line 2'),
    ],
)
def test_command_names_the_line_of_a_file_of_ones_own(here: Application, tmp_path: Path, text: str, line: str) -> None:
    folder = _own(tmp_path, {"experiment/mine.yaml": f"# @package _global_\n{text}"})
    ended = here(folder, "experiment=mine")
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert line.format(file=tmp_path / "own" / "experiment" / "mine.yaml") in ended.stderr
    # What was typed is in no file.
    typed = here(folder, "experiment=mine", "training.epochs=many")
    assert "many" not in typed.stderr or "(" not in typed.stderr


@pytest.mark.parametrize("group", ["study", "tracking"])
@pytest.mark.parametrize("content", ["study:\n  name: mine\n", "training:\n  epochs: 3\n"])
def test_command_names_a_group_file_without_its_package(
    here: Application, tmp_path: Path, group: str, content: str
) -> None:
    (tmp_path / group).mkdir()
    (tmp_path / group / "mine.yaml").write_text(content)
    ended = here(f"--config-dir={tmp_path}", f"{group}=mine")
    key = content.partition(":")[0]
    hint = f"a file that sets {key} begins with the line # @package _global_ and has {key} at its left margin"
    place = f"({tmp_path}/{group}/mine.yaml, line 1)"
    assert (ended.returncode, ended.stdout, ended.stderr) == (
        2,
        "",
        f"error: {group}.{key} is no key; {hint} {place}\n",
    )


@pytest.mark.parametrize("text", ["2024", "007", "on", "1e5", "1.0", "0x10", "'on'", "1_000"])
def test_command_takes_texts_of_a_file_as_they_are_written(here: Application, tmp_path: Path, text: str) -> None:
    (tmp_path / "experiment").mkdir()
    content = f"# @package _global_\nstudy: {{name: {text}, timeout: null}}\ntracking:\n  experiment: {text}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(content)
    ended = here(f"--config-dir={tmp_path}", "experiment=mine")
    written = text.strip("'")
    assert (ended.stdout, ended.stderr) == (f"job 10 {written} {written} None\n", "")


def test_multirun_goes_on_after_a_failed_job_and_names_it(application: Application, tmp_path: Path) -> None:
    ended = application("-m", "training.epochs=1,7,2,0", "study.name=a,b")
    assert ended.returncode == 1
    assert [line.split()[1:3] for line in ended.stdout.splitlines() if line.startswith("job ")] == [
        [epochs, name] for epochs in "172" for name in "ab"
    ]
    lines = ended.stderr.splitlines()
    assert lines[:-1] == [
        *["error: training.epochs=7: is unlucky"] * 2,
        *["error: training.epochs=0: must be greater than or equal to 1"] * 2,
    ]
    assert lines[-1] == (
        "error: 4 of 8 jobs failed: 2 (training.epochs=7 study.name=a), 3 (training.epochs=7 study.name=b), "
        "6 (training.epochs=0 study.name=a), 7 (training.epochs=0 study.name=b)"
    )
    assert list((tmp_path / "empty").iterdir()) == []


def test_multirun_with_joblib_does_the_same_in_other_processes(application: Application) -> None:
    ended = application("-m", "hydra/launcher=joblib", "training.epochs=1,7,8")
    assert ended.returncode == 1
    jobs = sorted(line for line in ended.stdout.splitlines() if line.startswith("job "))
    assert [job.split()[1:3] for job in jobs] == [[epochs, "around_article"] for epochs in "178"]
    assert "ZeroDivisionError: eight" in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("error: 2 of 3 jobs failed: 1 (training.epochs=7)")


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_multirun_goes_on_after_its_reader_has_gone(application: Application, tmp_path: Path, launcher: str) -> None:
    """Given jobs that print far more than a pipe holds, and leave a file each when they are done."""
    text = (tmp_path / "app.py").read_text()
    job = "[print('x' * 80) for _ in range(3000)]; open(f'done {seen[0]}', 'w')"
    (tmp_path / "app.py").write_text(text.replace("    return 0\n", f"    {job}\n    return 0\n"))
    reading, writing = os.pipe()
    os.close(reading)
    line = [sys.executable, str(tmp_path / "app.py"), "-m", f"hydra/launcher={launcher}", "training.epochs=1,2"]
    ended = subprocess.run(line, cwd=tmp_path / "empty", stdout=writing, stderr=writing, timeout=120, check=False)
    os.close(writing)
    assert ended.returncode == 0
    assert {path.name for path in (tmp_path / "empty").iterdir()} == {"done 1", "done 2"}


def test_multirun_replaces_entries_of_the_space(here: Application) -> None:
    ended = here("-m", "study.space.training.epochs=[1,2],[3,4]")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("job 10") == 2


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_multirun_ends_all_jobs_with_a_signal(
    application: Application, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "app.py"), "-m", "training.epochs=9,1"],
        cwd=tmp_path / "empty",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert any(line.startswith("job 9") for line in process.stdout)
    process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == status
    assert "job 1" not in output
    assert "Traceback" not in errors


def test_command_shows_a_full_traceback_to_those_who_ask(
    application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    ended = application("training.epochs=0")
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr


@pytest.mark.parametrize(
    ("name", "key"), [("A_PASSWORD", "+hydra.job.env_set.A_PASSWORD"), ("OTHER", "++hydra.job.env_set.OTHER")]
)
def test_command_hands_a_secret_to_hydra_and_shows_it_to_nobody(tmp_path: Path, name: str, key: str) -> None:
    (tmp_path / "app.py").write_text(APPLICATION.replace('print("job", ', f'print("job", os.environ["{name}"][::-1], '))
    ended = subprocess.run(
        [sys.executable, str(tmp_path / "app.py"), f"{key}=s3cret"], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "job terc3s " in ended.stdout
    assert f"{key}=***" in ended.stdout
    assert "s3cret" not in ended.stdout


def test_command_names_no_password_of_an_interpolated_choice(
    here: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADDRESS", "http://u:s3cret@h")
    ended = here("model=${oc.env:ADDRESS}")
    assert ended.returncode == 2
    assert ended.stderr == "error: model=***: no such file in conf/model; must be one of cnn, mlp\n"


@pytest.mark.parametrize(
    ("address", "typed"),
    [
        ("http://u:s3cret@h", True),
        ("http://u:x s3cret@h", True),
        ("http://u:x s3cret@h", False),
        ("http://u:x's3cret@h", False),
    ],
)
@pytest.mark.parametrize(
    ("name", "key"),
    [
        *(("sweep", key) for key in ("data.path", "tracking.root", "tracking.uri", "study.name")),
        *(("reproduce", "run"), ("predict", "run"), ("delete", "run")),
    ],
)
def test_command_refuses_an_address_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, key: str, address: str, typed: bool
) -> None:
    monkeypatch.setenv("ADDRESS", address)
    value = address if typed else "${oc.env:ADDRESS}"
    ended = run_here(name, SCHEMAS[name], lambda _: 0, f"{key}={value}", folder=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"error: {key}=http://***")
    assert "s3cret" not in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("typed", "shown"), [("http://u:s3cret@h/?a=b", "http://***@h/?***"), ("http://u:x y@h", "http://***")]
)
def test_command_refuses_an_address_as_a_picture(tmp_path: Path, typed: str, shown: str) -> None:
    ended = run_here("predict", PredictConfig, lambda _: 0, typed, folder=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"error: image.0={shown}")
    assert ended.stderr.endswith(" must be a run or a file of this machine, not an address\n")


def test_multirun_shows_no_password_and_no_control_characters(application: Application) -> None:
    ended = application("-m", "training.epochs=7", 'study.name="a\x1bb"', "+a_password=s3cret")
    assert ended.returncode == 1
    assert "Launching 1 jobs locally" in ended.stdout
    assert "a_password=***" in ended.stdout
    assert "a_password=***" in ended.stderr.splitlines()[-1]
    assert not any(hidden in ended.stdout + ended.stderr for hidden in ("s3cret", "\x1b"))
