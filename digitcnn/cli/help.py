"""Explain a command by the comments of its config files, and complete what is typed."""

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra

from digitcnn.cli.arguments import parse_flags
from digitcnn.cli.composition import CONF, read_config, set_up_hydra
from digitcnn.errors import ConfigError

_FLAGS = """Flags, as in every Hydra application:
  --cfg job            show the config that overrides lead to (job, hydra or all; with --resolve, --package KEY)
  --info searchpath    show where configs come from (or defaults, defaults-tree, config, plugins, all)
  --multirun           run every combination of KEY=A,B; hydra/launcher=joblib runs them side by side
  --config-dir DIR     find more configs in DIR: experiment=mine is DIR/experiment/mine.yaml
  --hydra-help         Hydra's own flags and keys"""


def command_help(name: str, arguments: Sequence[str], config_path: Path | None = None) -> str:
    """Return the help of a command, made of the comments and keys of its config files.

    A group that is overridden, as in study=quick, is shown as it was chosen. Raises ConfigError for a file that is
    missing or broken.
    """
    flags = parse_flags(arguments)
    folders = [Path(folder) for folder in (flags["config_path"] or config_path, CONF, flags["config_dir"]) if folder]
    path, text, content = _config(folders, flags["config_name"] or name)
    comments, body = _parts(text)
    defaults = content.get("defaults", [])
    if not isinstance(defaults, list):
        raise ConfigError(f"{path}: defaults must be a list")
    # Hydra's own groups (override hydra/...) and optional ones are none of the command's.
    entries = [(str(group), option) for entry in defaults if isinstance(entry, dict) for group, option in entry.items()]
    chosen = {group: option if isinstance(option, str) else None for group, option in entries if group.isidentifier()}
    for override in flags["overrides"]:
        group, _, option = override.lstrip("+").partition("=")
        if group in chosen:
            chosen[group] = None if option == "null" else option
    groups = [f"  {group:12}{', '.join(_options(folders, group))}" for group in chosen]
    keys = [line for line in body.splitlines() if not line.startswith(("defaults:", "  - "))]
    for group, option in chosen.items():
        if option is None:
            continue
        origin = "" if f"{group}={option}" in flags["overrides"] else f"{path}: "
        _, text, _ = _config(folders, f"{group}/{option}", origin)
        comments_of_group, body_of_group = _parts(text)
        within = "" if "@package _global_" in text else "  "
        keys += ["", f"# {group}={option}", *(f"# {comment}".rstrip() for comment in comments_of_group)]
        keys += [f"{group}:"] if within else []
        keys += [f"{within}{line}".rstrip() for line in body_of_group.splitlines()]
    return "\n".join(
        [
            *(f"digitcnn {name} [FLAG...] [KEY=VALUE...]", "", *comments, ""),
            *(["Groups, GROUP=NAME:", *groups, ""] if groups else []),
            *("Keys, KEY=VALUE, with dots as in tracking.root=FOLDER:", "", "\n".join(keys).strip(), ""),
            _FLAGS,
        ]
    )


def complete(commands: Sequence[str], arguments: Sequence[str]) -> None:
    """Print what Hydra's shell completion asks for: its installation, or what may follow in the line COMP_LINE.

    The first word is one of the commands; what follows is completed by Hydra with that command's config. A line that
    cannot be read has no completions, and says nothing into the line that is being typed.
    """
    flags = parse_flags(arguments)
    if not any(word.startswith("query=") for word in flags["overrides"]):
        os.environ["HYDRA_FULL_ERROR"] = "1"
        try:
            _run_hydra(None, arguments)
        except Exception as error:
            raise ConfigError(f"-sc: {' '.join(str(error).split())}; such as -sc install=bash") from None
        return
    words = os.environ.get("COMP_LINE", "").split(" ")[1:]
    if len(words) < 2:
        print("\n".join(command for command in commands if command.startswith("".join(words))))
    elif words[0] in commands:
        os.environ["COMP_LINE"] = " ".join(["digitcnn", *words[1:]])
        with contextlib.suppress(Exception, SystemExit), contextlib.redirect_stderr(io.StringIO()):
            folder = parse_flags([word for word in words[1:-1] if word])["config_dir"]
            _run_hydra(words[0], [*arguments, *([f"--config-dir={folder}"] if folder else [])])


def _run_hydra(config_name: str | None, arguments: Sequence[str]) -> None:
    sys.argv = ["digitcnn", *arguments]
    set_up_hydra(".")
    hydra.main(version_base=None, config_path=None, config_name=config_name)(lambda _: None)()


def _config(folders: Sequence[Path], name: str, origin: str = "") -> tuple[Path, str, dict[str, Any]]:
    """Return the path of a config file, of the first folder that has it, its text and its content."""
    for folder in folders:
        path = folder / f"{name}.yaml"
        if path.is_file():
            return path, *read_config(path)
    raise ConfigError(f"{origin}{name}: no such config in {', '.join(map(str, folders))}")


def _parts(text: str) -> tuple[list[str], str]:
    """Return the comment that a config file opens with, as lines without #, and the rest."""
    lines = text.splitlines()
    count = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    comment = [line.removeprefix("#").removeprefix(" ") for line in lines[:count] if "@package" not in line]
    return comment, "\n".join(lines[count:])


def _options(folders: Sequence[Path], group: str) -> list[str]:
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})
