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

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from digitcnn.config import SweepConfig, known_keys, load_config
from digitcnn.study import parse_space
from tests.conftest import REPOSITORY

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


COMMANDS = sorted({command for text in PAGES.values() for command in _commands(text)})
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
    """Hydra composes each command's config, and it is valid; other tests run the commands themselves."""
    name, *words = shlex.split(command)[1:]
    schema = GENERATE["COMMANDS"][name]
    overrides = []
    for word in words:
        key, equals, value = word.partition("=")
        if key == "study" and name != "sweep":
            overrides.append(f"study.name={value}")
        elif key.startswith("study.space."):
            # A space's entry is replaced as a whole.
            overrides += [f"++{key}=null", f"++{word}"]
        elif equals:
            # One of the values that a multirun goes through; a list of run ids is a text.
            overrides.append(f"{key}='{value}'" if key == "compare" else re.sub(r"=(\w+),.*", r"=\1", word))
    tree = _composed(name, overrides)
    config = load_config(schema, tree)
    if isinstance(config, SweepConfig):
        assert parse_space(config.study.space, config.baseline)


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
