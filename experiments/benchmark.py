"""Measures this project beside its peers: `experiments/benchmark.py [KEY=VALUE ...]`."""

from command import main

from digitcnn import benchmark, runs
from digitcnn.measurement import BenchmarkConfig


def compare(config: BenchmarkConfig) -> int:
    """All rows that the config names, each line as soon as it is known."""
    runs.check(config)
    measured = benchmark.measure(config, lambda text: print(text, flush=True))
    path = benchmark.write(measured, config)
    print(path.read_text())
    print(f"written to {path} and benchmark.json beside it")
    return 0


if __name__ == "__main__":
    main("benchmark", BenchmarkConfig, compare)
