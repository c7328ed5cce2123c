"""The command `digitcnn` itself: its list of commands, its version, and commands that there are not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from digitcnn.cli.program import COMMANDS, main
from tests.conftest import REPOSITORY

SLOW = {"tensorflow", "torch", "jax", "keras", "mlflow", "matplotlib", "plotly"}


def _digitcnn(*arguments: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, *flags, "-m", "digitcnn", *arguments]
    return subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_help_lists_every_command_in_a_line() -> None:
    ended = _digitcnn("--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    listed = [line.split()[0] for line in ended.stdout.splitlines() if line.startswith("  ")]
    assert listed == list(COMMANDS)
    modules = (REPOSITORY / "digitcnn" / "cli" / "commands").glob("[a-z]*.py")
    assert {path.stem for path in modules} == set(COMMANDS)


def test_commands_are_those_of_readmes_table() -> None:
    assert re.findall(r"^\| `digitcnn (\w+)", (REPOSITORY / "README.md").read_text(), re.MULTILINE) == list(COMMANDS)


def test_program_without_a_command_shows_the_help() -> None:
    ended = _digitcnn()
    assert (ended.returncode, ended.stdout) == (2, _digitcnn("--help").stdout)


def test_program_prints_the_installed_version() -> None:
    ended = _digitcnn("--version")
    assert (ended.returncode, ended.stdout) == (0, f"digitcnn {version('digitcnn')}\n")


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("sweeep", "error: sweeep: unknown command; did you mean digitcnn sweep?\n"),
        ("x\x1b[2J", f"error: x\\x1b[2J: unknown command; known commands: {', '.join(COMMANDS)}\n"),
        ("postgresql://ann:secret@h/d", "error: postgresql://***@h/d: unknown command; known commands: "),
    ],
)
def test_program_refuses_an_unknown_command_in_one_line(word: str, line: str) -> None:
    ended = _digitcnn(word)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(line)
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_imports_nothing_slow(arguments: list[str]) -> None:
    program = f"""
import atexit, sys
atexit.register(lambda: print("slow:", sorted({SLOW!r} & set(sys.modules))))
sys.argv = ["digitcnn", *{arguments!r}]
from digitcnn.cli import main
main()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.endswith("slow: []\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_has_the_comments_of_its_config_and_three_examples(name: str) -> None:
    ended = _digitcnn(name, "--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.count(f"\n  digitcnn {name}") >= 3
    for line in Path(REPOSITORY, "conf", f"{name}.yaml").read_text().splitlines():
        if "#" in line:
            assert line.removeprefix("#").strip() in ended.stdout
    assert "relative to the folder the command is run in" in ended.stdout
    assert max(map(len, ended.stdout.splitlines())) <= 120


def test_help_shows_the_groups_that_were_chosen(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "mine.yaml").write_text("# Mine.\nname: mine  # its name\n")
    ended = _digitcnn("sweep", f"--config-dir={tmp_path}", "study=mine", "model=mlp", "--help")
    assert "filters, mine, pareto" in ended.stdout
    assert "# study=mine\n# Mine.\nstudy:\n  name: mine  # its name\n" in ended.stdout
    assert "dense2_units: 32" in ended.stdout
    assert _digitcnn("sweep", "study=nowhere", "--help").returncode == 2


def test_program_refuses_a_python_without_docstrings() -> None:
    ended = _digitcnn("train", flags=("-OO",))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: PYTHONOPTIMIZE=2 (python -OO): MLflow and Keras read docstrings; unset it\n"


def test_program_in_a_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    line = 'cd "$1" && mkdir gone && cd gone && rmdir ../gone && exec "$0" -m digitcnn sweep'
    variables = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    words = ["bash", "-c", line, sys.executable, str(tmp_path)]
    ended = subprocess.run(words, env=variables, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: the folder that this is run in is gone; change to another one\n"


def test_program_names_a_python_without_our_packages() -> None:
    # Without site-packages, as the machine's own Python.
    ended = _digitcnn("train", "tracking.uri=https://user:secret@host", flags=("-S",))
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: {sys.executable} has no ")
    assert ended.stderr.count("\n") == 1
    assert "secret" not in ended.stderr


@pytest.fixture
def main_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs the program in this process and returns its exit status and what it said on standard error."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        monkeypatch.setattr(sys, "argv", ["digitcnn", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "-sc: Expecting one subcommand"),
        (["foo"], "-sc: Expecting one subcommand"),
        (["install=foo"], "-sc: No completion plugin for 'foo' found, available : bash fish zsh"),
        (["uninstall=[1"], "-sc: "),
        (["--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_completion_refuses_a_mistake_in_one_line(
    main_here: Callable[..., tuple[int, str]], arguments: list[str], line: str
) -> None:
    status, said = main_here("-sc", *arguments)
    assert (status, said.count("\n")) == (2, 1)
    assert said.startswith(f"error: {line}")


@pytest.mark.parametrize(
    ("file", "content", "line"),
    [
        ("sweep", b"a: [1\n", "sweep.yaml"),
        ("sweep", b"a: 1\na: 2\n", "found duplicate key a"),
        ("sweep", b"a: !!int b\n", "sweep.yaml: invalid literal for int()"),
        ("sweep", b"3\n", "sweep.yaml: must hold keys and values"),
        ("sweep", b"defaults: 3\n", "sweep.yaml: defaults must be a list"),
        ("sweep", b"defaults: [colour: red]\n", "sweep.yaml: colour/red: no such config in "),
        ("sweep", "# é\n".encode("latin-1"), "sweep.yaml: must be UTF-8"),
        ("study/mine", b"a: [1\n", "study/mine.yaml"),
        ("study/mine", "# é\n".encode("latin-1"), "study/mine.yaml: must be UTF-8"),
    ],
)
def test_help_names_a_config_file_that_is_broken(
    main_here: Callable[..., tuple[int, str]], tmp_path: Path, file: str, content: bytes, line: str
) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / f"{file}.yaml").write_bytes(content)
    chosen = [f"--config-dir={tmp_path}", "study=mine"] if file == "study/mine" else [f"--config-path={tmp_path}"]
    status, said = main_here("sweep", *chosen, "--help")
    assert (status, said.count("\n")) == (2, 1)
    assert said.startswith("error: ")
    assert line in said


@pytest.mark.parametrize(
    "arguments", [["--help"], ["ui", "--help"], ["ui", "--cfg", "job"], ["ui", "--info"]], ids=" ".join
)
def test_output_may_be_cut_in_order(arguments: list[str]) -> None:
    # Given a reader that has gone, as of `| head -1`
    reading, writing = os.pipe()
    os.close(reading)
    # When
    line = [sys.executable, "-m", "digitcnn", *arguments]
    ended = subprocess.run(line, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    # Then
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("elsewhere", [">/dev/full", ">&-", ">/dev/full 2>&1", "<&- >&- 2>&-"])
def test_help_ends_in_order_wherever_it_is_printed_to(elsewhere: str) -> None:
    line = f'exec "$0" -m digitcnn sweep --help {elsewhere}'
    ended = subprocess.run(["bash", "-c", line, sys.executable], cwd=REPOSITORY, capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")
