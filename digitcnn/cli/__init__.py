"""The command line: `digitcnn COMMAND`, with Hydra's configs and flags, and what is shown on the screen."""

import importlib
from typing import TYPE_CHECKING, Any

from digitcnn.cli.program import main

if TYPE_CHECKING:
    from digitcnn.cli.arguments import words_of
    from digitcnn.cli.command import run_command, settled
    from digitcnn.cli.commands.sweep import search
    from digitcnn.cli.commands.train import record
    from digitcnn.cli.composition import apart_from_hydra, compose_command
    from digitcnn.output import messages

_HOMES = {
    "apart_from_hydra": "digitcnn.cli.composition",
    "compose_command": "digitcnn.cli.composition",
    "messages": "digitcnn.output",
    "record": "digitcnn.cli.commands.train",
    "run_command": "digitcnn.cli.command",
    "search": "digitcnn.cli.commands.sweep",
    "settled": "digitcnn.cli.command",
    "words_of": "digitcnn.cli.arguments",
}


def __getattr__(name: str) -> Any:
    """Import Hydra only for those who run a command: the list of commands is there at once."""
    if name not in _HOMES:
        raise AttributeError(name)
    return getattr(importlib.import_module(_HOMES[name]), name)
