"""Publish the study of the article: `python -m experiments.article [from_tables=true]`."""

from digitcnn.cli import REPOSITORY, main, messages, settled
from digitcnn.config import expand_user
from experiments.article import publication
from experiments.article.publication import PublishConfig


def publish(config: PublishConfig) -> int:
    """Write the tables, the champion, the figure and RESULTS.md; or the last two again, with `from_tables=true`."""
    folder = REPOSITORY / expand_user(config.folder)
    if config.from_tables:
        print(f"written: {publication.publish_from_tables(folder)}, and the figure beside it")
        return 0
    with messages("experiments"):
        written = publication.publish(config.model_copy(update={"folder": str(folder)}))
    print(f"written: {written}, and the tables beside it")
    return settled(config.tracking)


if __name__ == "__main__":
    main("publish", PublishConfig, publish, texts=("folder",))
