"""Train one network and record it: `digitcnn train [KEY=VALUE ...]`."""

import sys

from hydra.core.hydra_config import HydraConfig

from digitcnn import runner
from digitcnn.cli.command import is_multirun, settled, training_callbacks
from digitcnn.config import RunConfig, TrainConfig
from digitcnn.errors import AlreadyRecorded, ConfigError
from digitcnn.formatting import format_count, format_percent
from digitcnn.records import Metric

# What may be typed beside run=RUN_ID.
_FREE = ("run", "all", "training.epochs", "tracking")


def main(command: TrainConfig) -> int:
    """Train and record one run, with its progress on the screen; return the exit status."""
    record(command)
    return settled(command.tracking)


def record(command: TrainConfig) -> runner.FinishedRun:
    """Train and record one run, with its progress on the screen; return it.

    Raises AlreadyRecorded in a multirun for a job that needs no training.
    """
    continues, config = (None, command.alone) if command.run is None else _recorded(command, command.run)
    runner.check_run(config)
    before = runner.recorded_before(config) if is_multirun() and not command.all else None
    if before is not None:
        raise AlreadyRecorded(f"recorded as run {before}; not trained again")
    with training_callbacks(config.training, config.backend) as (on_epoch, on_progress):
        finished = runner.record_run(
            config, tags={}, on_epoch=on_epoch, on_progress=on_progress, saves=True, continues=continues
        )
    result, summary = finished.result, finished.result.summary
    judged = "validation" if config.data.validation == "holdout" else "test"
    accuracy = summary[Metric.TEST_ACCURACY if config.data.validation == "test_once" else Metric.VALIDATION_ACCURACY]
    print(f"{judged} accuracy {format_percent(accuracy)} % after {format_count(result.epochs, 'epoch')}, ", end="")
    seconds, parameters = summary[Metric.TRAINING_SECONDS], int(summary[Metric.PARAMETERS])
    print(f"{seconds:.0f} s, {parameters:,} parameters, engine {result.engine}")
    print(f"recorded as run {finished.run_id}; next: digitcnn ui, and compare it with other runs")
    return finished


def _recorded(command: TrainConfig, reference: str) -> tuple[str, RunConfig]:
    """Return the run that is trained on, and its config with the epochs that were typed. Raises ConfigError."""
    from digitcnn import evaluation

    # A program's words are not Hydra's.
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else sys.argv[2:]
    typed = [override.lstrip("+~").partition("=")[0] for override in overrides]
    for key in typed:
        if key not in _FREE and not key.startswith("tracking."):
            raise ConfigError(f"{key}: run={reference} is trained on as it was; only training.epochs may differ")
    run_id, config = evaluation.find_config(reference, command.tracking)
    length = {"training.epochs": command.training.epochs} if "training.epochs" in typed else {}
    return run_id, config.replace(length)
