"""Measure this project beside its peers: `python -m experiments.benchmarks [KEY=VALUE ...]`."""

from pathlib import Path

from digitcnn import runner
from digitcnn.cli import messages, run_command
from digitcnn.errors import ConfigError
from experiments.benchmarks import benchmark
from experiments.benchmarks.measurement import BenchmarkConfig, markdown, read_table


def compare(config: BenchmarkConfig) -> int:
    """Measure all rows that the config names, and print each line as soon as it is known; or write the pages."""
    if config.from_tables:
        benchmark.write_pages()
        print(f"written: {benchmark.PAGE} and {benchmark.README}")
        return 0
    available = len(runner.check_run(config).train)
    for name, images in (("images", config.images), ("grid_images", config.grid_images)):
        if images > available:
            raise ConfigError(f"{name}={images}: must be at most {available}, the training images there are")
    with messages("experiments"):
        measured = benchmark.measure(config)
    path = benchmark.write(measured, config)
    machine, versions, table = read_table(path)
    print(f"{machine}\n{versions}\n\n{markdown(table)}\n\nwritten to {path}")
    return 0


if __name__ == "__main__":
    run_command("benchmark", BenchmarkConfig, compare, config_path=Path(__file__).parent / "conf")
