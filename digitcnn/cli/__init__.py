"""The command line: `digitcnn COMMAND`, with Hydra's configs and flags, and what is shown on the screen."""

from typing import TYPE_CHECKING, Any

from digitcnn.cli.program import main

if TYPE_CHECKING:
    from digitcnn.cli.command import run_command, settled
    from digitcnn.output import messages

__all__ = ["main", "messages", "run_command", "settled"]


def __getattr__(name: str) -> Any:
    """Import Hydra only for those who run a command: the list of commands is there at once."""
    if name not in __all__:
        raise AttributeError(name)
    from digitcnn import output
    from digitcnn.cli import command

    return getattr(output if name == "messages" else command, name)
