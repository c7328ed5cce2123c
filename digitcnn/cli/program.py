"""List the commands of `digitcnn`, and run the one that is asked for."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import sys
from typing import NoReturn

COMMANDS = {
    "train": "train one network and record it",
    "sweep": "search around the baseline and record every trial",
    "confirm": "test a study's best trials on the test set, and name the champion",
    "reproduce": "train a recorded run again and say whether it is the same",
    "report": "write what a study found as one page, or compare runs",
    "predict": "say what digit a picture shows",
    "ui": "show the records in MLflow's UI",
}
_HELP = """usage: digitcnn COMMAND [FLAG...] [KEY=VALUE...]

A hyperparameter study, done right, for the CNN digit classifier of a well-known article.

{commands}

digitcnn COMMAND --help explains a command's keys, with examples; digitcnn --version says which one this is.
Completion of commands and keys: eval "$(digitcnn -sc install=bash)" (or zsh, fish)"""


def main() -> None:
    """Run the command that was typed; exits with its status, or with 2 and one line for a command that there is not."""
    name, *arguments = sys.argv[1:] or [""]
    if name in ("", "-h", "--help"):
        print(_HELP.format(commands="\n".join(f"  {command:11}{line}" for command, line in COMMANDS.items())))
        sys.exit(0 if name else 2)
    if name == "--version":
        print(f"digitcnn {importlib.metadata.version('digitcnn')}")
        sys.exit(0)
    try:
        if name in ("-sc", "--shell-completion"):
            from digitcnn.cli.help import complete

            complete(list(COMMANDS), sys.argv[1:])
        elif name in COMMANDS and {"-h", "--help"} & set(arguments):
            _explain(name, arguments)
        elif name in COMMANDS:
            importlib.import_module(f"digitcnn.cli.commands.{name}").main(arguments)
        else:
            _refuse(name)
    except ModuleNotFoundError as error:
        # Without what was typed: it may hold a password.
        print(f"error: {sys.executable} has no {error.name}; install digitcnn, or make .venv", file=sys.stderr)
        sys.exit(2)


def _explain(name: str, arguments: list[str]) -> None:
    """Print the help of a command, without what it takes to run it."""
    from digitcnn.cli.help import command_help
    from digitcnn.errors import ConfigError

    try:
        print(command_help(name, arguments))
    except ConfigError as error:
        _fail(str(error))


def _refuse(name: str) -> NoReturn:
    near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    hint = f"did you mean digitcnn {near[0]}?" if near else f"known commands: {', '.join(COMMANDS)}"
    _fail(f"{name}: unknown command; {hint}")


def _fail(line: str) -> NoReturn:
    from digitcnn.config import without_credentials
    from digitcnn.formatting import printable

    print(f"error: {printable(without_credentials(line))}", file=sys.stderr)
    sys.exit(2)
