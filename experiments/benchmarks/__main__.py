"""Measure this project beside its peers: `python -m experiments.benchmarks [KEY=VALUE ...]`."""

from pathlib import Path

from digitcnn import runner
from digitcnn.cli import messages, run_command
from experiments.benchmarks import benchmark
from experiments.benchmarks.measurement import BenchmarkConfig


def compare(config: BenchmarkConfig) -> int:
    """Measure all rows that the config names; print each line as soon as it is known."""
    runner.check_run(config)
    with messages("experiments"):
        measured = benchmark.measure(config)
    path = benchmark.write(measured, config)
    print(path.read_text())
    print(f"written to {path} and benchmark.json beside it")
    return 0


if __name__ == "__main__":
    run_command("benchmark", BenchmarkConfig, compare, config_path=Path(__file__).parent / "conf")
