"""Train one network and record it: `digitcnn train [KEY=VALUE ...]`."""

import functools

from digitcnn import runner
from digitcnn.cli.command import is_multirun, run_command, settled, training_callbacks
from digitcnn.config import TrainConfig
from digitcnn.errors import AlreadyRecorded
from digitcnn.formatting import format_count, format_percent
from digitcnn.records import Metric


def train(config: TrainConfig) -> int:
    """Train and record one run, with its progress on the screen; return the exit status.

    Raises AlreadyRecorded in a multirun for a job that needs no training.
    """
    runner.check_run(config.run)
    before = runner.recorded_before(config.run) if is_multirun() and not config.all else None
    if before is not None:
        raise AlreadyRecorded(f"recorded as run {before}; not trained again")
    with training_callbacks(config.training, config.backend) as (on_epoch, on_progress):
        finished = runner.record_run(config.run, tags={}, on_epoch=on_epoch, on_progress=on_progress)
    result, summary = finished.result, finished.result.summary
    judged = "validation" if config.data.validation == "holdout" else "test"
    accuracy = summary[Metric.TEST_ACCURACY if config.data.validation == "test_once" else Metric.VALIDATION_ACCURACY]
    print(f"{judged} accuracy {format_percent(accuracy)} % after {format_count(result.epochs, 'epoch')}, ", end="")
    seconds, parameters = summary[Metric.TRAINING_SECONDS], int(summary[Metric.PARAMETERS])
    print(f"{seconds:.0f} s, {parameters:,} parameters, engine {result.engine}")
    print(f"recorded as run {finished.run_id}; next: digitcnn ui, and compare it with other runs")
    return settled(config.tracking)


main = functools.partial(run_command, "train", TrainConfig, train)
