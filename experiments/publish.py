"""Writes the published study from its records: `python experiments/publish.py`."""

from command import main, settled

from digitcnn import publication
from digitcnn.publication import PublishConfig


def publish(config: PublishConfig) -> int:
    """The tables, the champion, the figure and RESULTS.md."""
    print(f"written: {publication.publish(config, print)}, and the tables beside it")
    return settled(config.tracking)


if __name__ == "__main__":
    main("publish", PublishConfig, publish)
