"""List the commands of `digitcnn`, and run the one that is asked for."""

import contextlib
import difflib
import functools
import importlib
import importlib.metadata
import inspect
import os
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

from digitcnn.errors import ConfigError
from digitcnn.imports import large_imports
from digitcnn.output import StartLines, survive_readers

COMMANDS = {
    "train": "train one network and record it",
    "sweep": "search around the baseline and record every trial",
    "confirm": "test a study's best trials on the test set, and name the champion",
    "reproduce": "train a recorded run again and say whether it is the same",
    "report": "write what a study found as one page",
    "status": "say what is at work on a study, how far it is, and the time left",
    "stop": "end what is at work on a study with its present epochs",
    "studies": "list the recorded studies",
    "runs": "list the recorded runs, or a study's",
    "diff": "say what differs between runs",
    "predict": "say what digit a picture shows",
    "delete": "delete a study or a run, with its files",
    "records": "list what an MLflow store did not take, and offer it again",
    "ui": "show the records in MLflow's UI",
}
_HELP = """usage: digitcnn COMMAND [FLAG...] [KEY=VALUE...]

A hyperparameter study, done right, for the CNN digit classifier of a well-known article.

{commands}

digitcnn COMMAND --help explains a command's keys, with examples; digitcnn --version says which one this is.
Completion of commands and keys: eval "$(digitcnn -sc install=bash)" (or zsh, fish)"""


def main() -> None:
    """Run the command that was typed; exits with its status, or with 2 and one line for a command that there is not."""
    survive_readers()
    _settle_interpreter()
    name, *arguments = sys.argv[1:] or [""]
    # Hydra's flag would say which Hydra this is.
    name = "--version" if name in COMMANDS and "--version" in arguments else name
    try:
        if name in COMMANDS and not {"-h", "--help"} & set(arguments):
            _imported(name)(arguments=arguments)
        _explain(name, arguments)
    except ModuleNotFoundError as error:
        # Without what was typed: it may hold a password.
        print(f"error: {sys.executable} has no {error.name}; install digitcnn, or make .venv", file=sys.stderr)
        sys.exit(2)
    except ConfigError as error:
        from digitcnn.config import without_credentials
        from digitcnn.formatting import printable

        print(f"error: {printable(without_credentials(str(error)))}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0 if name else 2)


def _settle_interpreter() -> None:
    """Let no setting of Python for developers end a run; exit with 2 and one line where that cannot be."""
    if sys.flags.optimize > 1:
        print("error: PYTHONOPTIMIZE=2 (python -OO): MLflow and Keras read docstrings; unset it", file=sys.stderr)
        sys.exit(2)
    if any(option.startswith("error") for option in sys.warnoptions):
        # A warning of some library would be an error, here and in the workers.
        warnings.simplefilter("ignore")
        sys.warnoptions[:] = ["ignore"]
        os.environ["PYTHONWARNINGS"] = "ignore"


def _imported(name: str) -> Callable[..., NoReturn]:
    """Return the function that runs a command, whose module's main is a task of its config.

    Its import takes seconds, and a minute on a slow disk.
    """
    with contextlib.closing(StartLines(f"digitcnn {name}", on_error_stream=True)), large_imports():
        from digitcnn.cli.command import run_command

        task = importlib.import_module(f"digitcnn.cli.commands.{name}").main
    schema = next(iter(inspect.get_annotations(task, eval_str=True).values()))
    return functools.partial(run_command, name, schema, task)


def _explain(name: str, arguments: list[str]) -> None:
    """Print the help, a command's help, the version or what completes a line, without what it takes to run a command.

    Raises ConfigError for a command that there is not.
    """
    if name in ("", "-h", "--help"):
        print(_HELP.format(commands="\n".join(f"  {command:11}{line}" for command, line in COMMANDS.items())))
    elif name == "--version":
        print(f"digitcnn {importlib.metadata.version('digitcnn')}")
    elif name in COMMANDS:
        from digitcnn.cli.help import command_help

        print(command_help(name, arguments))
    elif name in ("-sc", "--shell-completion"):
        from digitcnn.cli.help import complete

        complete(list(COMMANDS), sys.argv[1:])
    else:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        hint = f"did you mean digitcnn {near[0]}?" if near else f"known commands: {', '.join(COMMANDS)}"
        raise ConfigError(f"{name}: unknown command; {hint}")
