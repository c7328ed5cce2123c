"""The command line: `digitcnn COMMAND`."""

from digitcnn.cli.command import REPOSITORY, main, settled
from digitcnn.cli.display import messages

__all__ = ["REPOSITORY", "main", "messages", "settled"]
