"""Train one network and record it: `digitcnn train [KEY=VALUE ...]`."""

import functools

from digitcnn import runner
from digitcnn.cli.command import run_command, settled, training_callbacks
from digitcnn.config import RunConfig
from digitcnn.formatting import format_count, format_percent
from digitcnn.records import Metric


def train(config: RunConfig) -> int:
    """Train and record one run, with its progress on the screen; return the exit status."""
    runner.check_run(config)
    with training_callbacks(config.training, config.backend) as (on_epoch, on_progress):
        finished = runner.record_run(config, tags={}, on_epoch=on_epoch, on_progress=on_progress)
    result, summary = finished.result, finished.result.summary
    judged = "validation" if config.data.validation == "holdout" else "test"
    accuracy = summary[Metric.TEST_ACCURACY if config.data.validation == "test_once" else Metric.VALIDATION_ACCURACY]
    print(f"{judged} accuracy {format_percent(accuracy)} % after {format_count(result.epochs, 'epoch')}, ", end="")
    seconds, parameters = summary[Metric.TRAINING_SECONDS], int(summary[Metric.PARAMETERS])
    print(f"{seconds:.0f} s, {parameters:,} parameters, engine {result.engine}")
    print(f"recorded as run {finished.run_id}; next: digitcnn ui, and compare it with other runs")
    return settled(config.tracking)


main = functools.partial(run_command, "train", RunConfig, train)
