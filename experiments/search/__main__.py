"""Ask whether the search is worth it: `python -m experiments.search [KEY=VALUE ...]`."""

from pathlib import Path

from digitcnn.cli import run_command
from digitcnn.errors import ConfigError
from digitcnn.report import markdown_table
from experiments.search import replay
from experiments.search.grid import PATH, SearchConfig, read_grid, record_grid


def search(config: SearchConfig) -> int:
    """Train the grid; or compare the searches on it."""
    if config.grid:
        print(record_grid(config))
        return 0
    if not PATH.exists():
        raise ConfigError(f"{PATH.name}: is not there; grid=true trains it")
    compared = replay.compare(config, read_grid(), config.repetitions)
    replay.FIGURE.write_bytes(replay.draw(compared))
    table = replay.summarize(compared)
    print(markdown_table(list(table.columns), [[str(cell) for cell in row] for row in table.to_numpy()]))
    print(f"\nwritten: {replay.FIGURE}")
    return 0


if __name__ == "__main__":
    run_command("search", SearchConfig, search, config_path=Path(__file__).parent / "conf")
