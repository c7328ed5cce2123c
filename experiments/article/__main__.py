"""Publish the study of the article: `python -m experiments.article [from_tables=true]`."""

from pathlib import Path

from digitcnn.cli import messages, run_command, settled
from digitcnn.config import expand_user
from experiments.article import publication
from experiments.article.publication import PublishConfig

REPOSITORY = Path(__file__).parents[2]


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
    run_command("publish", PublishConfig, publish, config_path=Path(__file__).parent / "conf")
