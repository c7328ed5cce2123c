"""README and configs cannot lie: every command, key and file they name exists."""

from __future__ import annotations

import re
import shlex
import subprocess

import pytest
from omegaconf import OmegaConf

from digitcnn.config import (
    ConfirmConfig,
    PredictConfig,
    ReportConfig,
    ReproduceConfig,
    RunConfig,
    SweepConfig,
    load_config,
)
from digitcnn.study import parse_space
from experiments.article.publication import PublishConfig
from experiments.benchmarks.measurement import BenchmarkConfig
from tests.conftest import REPOSITORY, command_line

README = (REPOSITORY / "README.md").read_text()
RESULTS = (REPOSITORY / "experiments" / "results" / "RESULTS.md").read_text()


def _commands(text: str) -> list[str]:
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.DOTALL)
    return [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


COMMANDS = _commands(README)
KINDS = {
    "train": RunConfig,
    "sweep": SweepConfig,
    "confirm": ConfirmConfig,
    "report": ReportConfig,
    "reproduce": ReproduceConfig,
    "predict": PredictConfig,
    "benchmark": BenchmarkConfig,
    "publish": PublishConfig,
}
OURS = [command for command in [*COMMANDS, *_commands(RESULTS)] if re.search(r"\bdigitcnn \w", command)]


def test_readme_can_be_read_in_one_sitting() -> None:
    assert len(README.splitlines()) < 150
    assert len(COMMANDS) > 10


def test_every_file_that_readme_names_is_there() -> None:
    named = set(re.findall(r"\]\(([^)#]+)\)", README)) | set(
        re.findall(r"`((?:conf|digitcnn|experiments)/[^`* ]*)`", README)
    )
    missing = [name for name in named if "://" not in name and not (REPOSITORY / name).exists()]
    assert missing == []
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (REPOSITORY / picture).read_bytes().startswith(b"\x89PNG")


def test_every_test_that_readme_names_is_there() -> None:
    named = re.findall(r"`([\w/]*test_\w+\.py)::(\w+)`", README)
    assert named
    for file, name in named:
        assert f"def {name}(" in (REPOSITORY / "tests" / file).read_text()


def test_every_make_target_that_readme_names_is_there() -> None:
    targets = set(re.findall(r"^([.a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([.\w]+)", README + (REPOSITORY / "mlruns" / "README.md").read_text()))
    assert named <= targets
    listed = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert all(f"make {target}" in listed for target in targets - {"help"})


@pytest.mark.parametrize("command", OURS)
def test_every_command_in_readme_and_results_composes(command: str) -> None:
    """Hydra composes each command's config, and it is valid; other tests run the commands themselves."""
    name = re.search(r"\bdigitcnn (\w+)", command)
    assert name is not None
    overrides = [part for part in shlex.split(command.partition(name[0])[2]) if part != "--multirun"]
    # One of the values that a multirun goes through.
    overrides = [re.sub(r"=(\w+),.*", r"=\1", part) for part in overrides]
    ended = subprocess.run(
        command_line(name[1], "--cfg", "job", *overrides), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    tree = OmegaConf.to_container(OmegaConf.create(ended.stdout))
    assert isinstance(tree, dict)
    tree.pop("experiment", None)
    kind = KINDS[name[1]]
    config = load_config(kind, tree)  # type: ignore[type-var]
    if isinstance(config, SweepConfig):
        assert parse_space(config.study.space, config.baseline)


def test_every_config_file_says_what_it_is_for() -> None:
    for path in (REPOSITORY / "conf").rglob("*.yaml"):
        assert path.read_text().startswith("#"), f"{path} does not say what it is for"
