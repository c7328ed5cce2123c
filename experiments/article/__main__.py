"""Writes the published study from its records: `python -m experiments.article`."""

from digitcnn.cli import REPOSITORY, main, settled
from digitcnn.config import expand_user
from experiments.article import publication
from experiments.article.publication import PublishConfig


def publish(config: PublishConfig) -> int:
    """The tables, the champion, the figure and RESULTS.md."""
    below = config.model_copy(update={"folder": str(REPOSITORY / expand_user(config.folder))})
    print(f"written: {publication.publish(below, print)}, and the tables beside it")
    return settled(config.tracking)


if __name__ == "__main__":
    main("publish", PublishConfig, publish, texts=("folder",))
