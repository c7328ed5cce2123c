"""Writes the published study from its records: `experiments/publish.py`."""

from command import REPOSITORY, main, settled

from digitcnn import publication
from digitcnn.config import expanded
from digitcnn.publication import PublishConfig


def publish(config: PublishConfig) -> int:
    """The tables, the champion, the figure and RESULTS.md."""
    below = config.model_copy(update={"folder": str(REPOSITORY / expanded(config.folder))})
    print(f"written: {publication.publish(below, print)}, and the tables beside it")
    return settled(config.tracking)


if __name__ == "__main__":
    main("publish", PublishConfig, publish, texts=("folder",))
