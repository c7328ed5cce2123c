"""README, docs/ and the configs' comments are true: what they name exists, and what is generated is up to date."""

from __future__ import annotations

import importlib.util
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from digitcnn.config import SweepConfig, known_keys, load_config
from digitcnn.study import parse_space
from tests.conftest import REPOSITORY, command_line
from tests.support.processes import run_forked

DOCS = sorted((REPOSITORY / "docs").glob("*.md"))
PAGES = {
    str(path.relative_to(REPOSITORY)): path.read_text()
    for path in [
        REPOSITORY / "README.md",
        *DOCS,
        REPOSITORY / "mlruns" / "README.md",
        REPOSITORY / "experiments" / "results" / "RESULTS.md",
    ]
}
GENERATE = runpy.run_path(str(REPOSITORY / "docs" / "generate.py"))
# What a shell has beside the environment's own programs.
SHELL = {"source", "export", "eval", "curl", "pip", "make"}


def _commands(text: str) -> list[str]:
    """Return the lines of the shell blocks of a page, and the command lines in its prose and tables."""
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.DOTALL)
    lines = [re.split(r"\s#", line)[0].strip() for block in blocks for line in block.splitlines()]
    prose = [re.sub(r" \[.*", "", command) for command in re.findall(r"`(digitcnn [a-z]+ [^`]*)`", text)]
    return [line for line in [*lines, *prose] if line and "|" not in line]


# In the order in which they are read.
COMMANDS = list(dict.fromkeys(command for text in PAGES.values() for command in _commands(text)))
# Completion has no config, and my_configs/ is a folder of the reader's own.
OTHERS = (" -sc ", "--config-dir my_configs")
OURS = [
    command for command in COMMANDS if command.startswith("digitcnn ") and not any(other in command for other in OTHERS)
]


def test_readme_has_at_most_100_lines_of_120_characters() -> None:
    lines = PAGES["README.md"].splitlines()
    assert len(lines) <= 100
    assert max(map(len, lines)) <= 120
    assert sum(not line for line in lines) >= len(lines) // 5, "a page needs air"


def test_docs_have_lines_of_120_characters() -> None:
    long = [line for path in DOCS for line in path.read_text().splitlines() if len(line) > 120 and line[0] != "|"]
    assert long == []


def test_changelog_and_configs_have_lines_of_120_characters() -> None:
    configs = [*(REPOSITORY / "conf").rglob("*.yaml"), *(REPOSITORY / "experiments").glob("*/conf/*.yaml")]
    for path in (REPOSITORY / "CHANGELOG.md", *configs):
        assert max(map(len, path.read_text().splitlines())) <= 120, path.name


@pytest.mark.parametrize("page", PAGES)
def test_docs_name_files_that_exist(page: str) -> None:
    text, folder = PAGES[page], (REPOSITORY / page).parent
    links = {link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link}
    named = set(re.findall(r"`((?:conf|digitcnn|experiments|docs|tests)/[^`*: ]*)`", text)) - {"conf/GROUP/NAME.yaml"}
    assert [link for link in links if not (folder / link).exists()] == []
    assert [name for name in named if not (REPOSITORY / name).exists()] == []
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("page", PAGES)
def test_docs_link_to_headings_that_exist(page: str) -> None:
    for file, heading in re.findall(r"\]\(([^)#]*)#([^)]+)\)", PAGES[page]):
        text = ((REPOSITORY / page).parent / file).read_text() if file else PAGES[page]
        headings = {title.lower().replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
        assert heading in headings


def test_docs_name_tests_that_exist() -> None:
    named = {found for text in PAGES.values() for found in re.findall(r"`([\w/]*test_\w+\.py)::(\w+)`", text)}
    assert len(named) >= 9
    missing = [name for file, name in named if f"def {name}(" not in (REPOSITORY / "tests" / file).read_text()]
    assert missing == []


def test_docs_name_make_targets_that_exist() -> None:
    targets = set(re.findall(r"^([.a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    named = {target for text in PAGES.values() for target in re.findall(r"(?:`|^)make ([.\w]+)", text, re.MULTILINE)}
    assert named <= targets
    listed = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert all(f"make {target}" in listed for target in targets - {"help"})


def test_docs_name_functions_that_exist() -> None:
    named = re.findall(r"`([\w/]+\.py):(\w+)`", PAGES["docs/architecture.md"])
    assert len(named) > 20
    missing = [
        f"{file}:{name}"
        for file, name in named
        if not re.search(rf"^ *(?:def|class) {name}\b|^ *{name}\b.* = ", _module(file), re.MULTILINE)
    ]
    assert missing == []


def _module(file: str) -> str:
    path = REPOSITORY / "digitcnn" / file
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize("command", COMMANDS)
def test_docs_name_programs_that_exist(command: str) -> None:
    program, *words = shlex.split(command)
    if program == ".venv/bin/python":
        assert importlib.util.find_spec(words[words.index("-m") + 1])
    else:
        assert program in SHELL or shutil.which(program, path=str(Path(sys.executable).parent))


@pytest.mark.parametrize("command", OURS)
def test_docs_name_commands_that_compose(command: str) -> None:
    """Hydra composes each command's config as it is written, and it is valid."""
    name, *words = shlex.split(command)[1:]
    schema = GENERATE["COMMANDS"][name]
    overrides = []
    for word in words:
        key, equals, value = word.partition("=")
        if key == "study" and name != "sweep":
            overrides.append(f"study.name={value}")
        elif key.startswith(("study.space.", "study.constraints")):
            # An entry of a space is replaced as a whole, and so are the constraints.
            overrides += [f"++{key}=null", f"++{word}"]
        elif equals:
            # One of the values that a multirun goes through; a list of run ids is a text.
            overrides.append(f"{key}='{value}'" if key == "study.take" else re.sub(r"=(\w+),.*", r"=\1", word))
    tree = _composed(name, overrides)
    config = load_config(schema, tree)
    if isinstance(config, SweepConfig):
        assert parse_space(config.study.space, config.baseline)


# Commands that the walk below leaves out, by a part of their text, and what runs them instead or why nothing does.
ELSEWHERE = {
    "make .venv": "CI begins with it: .ci/run",
    "pip install": "needs a network; cli/test_wheel.py installs the wheel, .ci/smoke with its dependencies",
    "source ": "the shell's own",
    "export ": "the shell's own",
    "digitcnn ui": "cli/test_ui.py",
    "confirm.cpu_budget": "trains for as long as it is given: evaluation/test_confirmation.py",
    "confirm.ablation": "trains some twenty runs: evaluation/test_confirmation.py",
    "study=beyond": "takes hours, and runs of the published records: article/test_publication.py",
    "digitcnn stop": "needs a study at work: runner/test_ownership.py",
    "workers=ray": "needs a cluster: faults/test_cluster.py",
    "tracking=server": "needs a server: faults/test_server_gone.py",
    "backend=jax": "not among the locked packages: training/test_backends.py, where it is installed",
    "backend=torch": "not among the locked packages: training/test_backends.py, where it is installed",
    "optuna-dashboard": "serves until it is ended: cli/test_commands.py",
    "mlflow models serve": "serves until it is ended: predict/test_prediction.py",
    "curl": "asks that server: predict/test_prediction.py",
}
# What takes minutes as it is written, smaller. The champion's study stays, so another one is deleted.
SMALLER = {"confirm.seeds": "2", "training.seed": "0", "workers.count": "1"}
LAST = "digitcnn delete study=NAME"


@pytest.mark.soak
def test_docs_name_commands_that_run(small_npz: Path, tmp_path: Path) -> None:
    """A reader's walk through all pages in one folder, on 600 images."""
    (tmp_path / "my_configs" / "experiment").mkdir(parents=True)
    (tmp_path / "my_configs/experiment/mine.yaml").write_text("# @package _global_\nstudy: {name: mine}\n")
    with np.load(small_npz) as data:
        for index, name in enumerate(("MY_DIGIT.png", "scan.png", "digit.jpg", "FILE")):
            digit = Image.fromarray(255 - data["x_test"][index]).resize((280, 280))
            digit.save(tmp_path / name, "jpeg" if name.endswith("jpg") else "png")
    shutil.copy(small_npz, tmp_path / "FILE.npz")
    small = ["data.path=FILE.npz", "data.validation_size=100", "data.train_size=200"]
    small += ["training.epochs=1", "training.batch_size=20"]
    appended = {
        "train": small,
        "sweep": [*small, "study.trials=2", "workers.count=1"],
        "confirm": ["workers.count=1", "confirm.seeds=2"],
        "delete": ["yes=true"],
    }
    assert [part for part in ELSEWHERE if not any(part in command for command in COMMANDS)] == []
    here = [command for command in COMMANDS if not any(part in command for part in ELSEWHERE)]
    for command in sorted(here, key=LAST.__eq__):
        program, name, *words = shlex.split(command)
        assert program == "digitcnn"
        if "champion.yaml" in command:
            (tmp_path / "experiments" / "results").mkdir(parents=True, exist_ok=True)
            shutil.copy(tmp_path / "mlruns/reports/quick/champion.yaml", tmp_path / "experiments" / "results")
        runs = iter(_confirming_runs(tmp_path))
        study = "wider" if command == LAST else "quick"
        words = [word[:-3] + next(runs) if word.endswith("RUN") else word for word in words]
        words = [word.replace("NAME", study).rstrip(".") for word in words]
        given = {key: SMALLER.get(key, value) for key, _, value in (word.partition("=") for word in words)}
        words = [f"{key}={value}" if value else key for key, value in given.items()]
        words += [word for word in appended.get(name, []) if word.partition("=")[0] not in given]
        ended = run_forked(command_line(name, *words), tmp_path)
        assert ended.returncode == 0, f"{command}: {ended.stdout}{ended.stderr}"


def _confirming_runs(folder: Path) -> list[str]:
    path = folder / "mlruns/reports/quick/confirmation_runs.csv"
    return pd.read_csv(path)["run_id"].tolist() if path.exists() else []


def _composed(name: str, overrides: list[str]) -> dict[str, Any]:
    with initialize_config_dir(version_base=None, config_dir=str(REPOSITORY / "conf")):
        tree: Any = OmegaConf.to_container(compose(name, overrides), resolve=True)
    tree.pop("experiment", None)
    return dict(tree)


def test_generated_pages_are_up_to_date() -> None:
    for path, text in GENERATE["pages"]().items():
        assert path.read_text() == text, "make docs writes it"


@pytest.mark.parametrize("name", GENERATE["COMMANDS"])
def test_configuration_page_has_every_key_with_its_default(name: str) -> None:
    schema = GENERATE["COMMANDS"][name]
    rows = re.findall(r"^\| `([\w.]+)` \| .*? \| (`.*?`|required) \|", PAGES["docs/configuration.md"], re.MULTILINE)
    documented = {key for key, _ in rows}
    assert set(known_keys(schema)) <= documented
    # The defaults are those that the command composes.
    config = load_config(schema, _composed(name, [])).model_dump()
    for group in ("data", "training", "confirm"):
        for key, value in config.get(group, {}).items():
            written = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            assert (f"{group}.{key}", f"`{written}`") in rows


def test_architecture_picture_has_the_contracts_layers() -> None:
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    drawing = PAGES["docs/architecture.md"].partition("```text\n")[2].partition("```")[0]
    drawn = [line.strip("| ").split(" | ") for line in drawing.splitlines() if line.startswith("|")]
    names = [[cell.split(" (")[0].strip() for cell in row] for row in drawn]
    assert names == [["experiments"], *(layer.split(" | ") for layer in layers)]


def test_architecture_page_names_every_room() -> None:
    rooms = {path.parent.name for path in (REPOSITORY / "digitcnn").glob("*/__init__.py")}
    assert rooms == set(re.findall(r"^### (\w+)$", PAGES["docs/architecture.md"], re.MULTILINE))


def test_conf_files_say_what_they_are_for() -> None:
    for path in [*(REPOSITORY / "conf").rglob("*.yaml"), *(REPOSITORY / "experiments").glob("*/conf/*.yaml")]:
        assert path.read_text().startswith("#"), f"{path} does not say what it is for"
