"""The command line: `digitcnn COMMAND`."""

from digitcnn.cli.command import REPOSITORY, main, settled

__all__ = ["REPOSITORY", "main", "settled"]
