"""Train one network and record it: `digitcnn train [KEY=VALUE ...]`."""

import functools

from digitcnn import runner
from digitcnn.cli.command import run_command, settled, training_callbacks
from digitcnn.config import RunConfig


def train(config: RunConfig) -> int:
    """Train and record one run, with its progress on the screen; return the exit status."""
    runner.check_run(config)
    with training_callbacks(config.training) as (on_epoch, on_progress):
        finished = runner.record_run(config, tags={}, on_epoch=on_epoch, on_progress=on_progress)
    accuracy = 100 * finished.result.final.accuracy
    judged = "validation" if config.data.validation == "holdout" else "test"
    print(f"{judged} accuracy {accuracy:.2f} % after {len(finished.result.epochs)} epochs, ", end="")
    seconds, parameters = finished.result.training_seconds, finished.result.parameters
    print(f"{seconds:.0f} s, {parameters:,} parameters, engine {finished.result.engine}")
    print(f"recorded as run {finished.run_id}; next: digitcnn ui, and compare it with other runs")
    return settled(config.tracking)


main = functools.partial(run_command, "train", RunConfig, train)
