"""One run, top to bottom: data, model, records, training. The same for a command, a trial and a reproduction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from digitcnn import tracking, training
from digitcnn.config import DataConfig, RunConfig
from digitcnn.errors import ConfigError
from digitcnn.training import build_model, samples_per_epoch, train
from digitcnn.values import Decision, EpochMetrics, Splits, TrainingResult

# An epoch's order of images is held in memory: 8 bytes each.
_MOST_SAMPLES = 100_000_000


@dataclass(frozen=True)
class FinishedRun:
    """A run that is over, and where it is recorded."""

    run_id: str
    result: TrainingResult


def check_run(config: RunConfig) -> Splits:
    """The data of a run, after checking that the network fits them and its backend is there. Imports neither that nor
    MLflow.

    Raises ConfigError; nothing has been created by then.
    """
    training.check_installed(config.backend)
    splits = _load_once(config.data)
    height, width = splits.image_shape
    training.check_fits(config.model, height, width, splits.classes)
    samples = samples_per_epoch(config.training, len(splits.train))
    if samples > _MOST_SAMPLES:
        raise ConfigError(f"training.steps_per_epoch: makes epochs of {samples:,} images; at most {_MOST_SAMPLES:,}")
    return splits


def with_threads(config: RunConfig) -> RunConfig:
    """The config with `training.threads` settled: what is recorded is what was used."""
    return config.replace({"training.threads": training.thread_count(config.training)})


def record_run(
    config: RunConfig,
    *,
    tags: Mapping[str, str],
    run_id: str | None = None,
    on_epoch: Callable[[EpochMetrics], Decision] = lambda _: "continue",
    on_progress: Callable[[int, float], None] | None = None,
) -> FinishedRun:
    """Trains as the config says and records it, in a new run or in one that was created for it.

    `on_epoch` is called after each epoch has been recorded and decides whether to go on. Raises ConfigError before
    anything is recorded; TrainingDiverged, and any failure of the machine, after the run was closed as FAILED.
    """
    config = with_threads(config)
    splits = check_run(config)
    training.import_keras(training.thread_count(config.training), config.backend)
    import keras

    # Layers of earlier runs in this process are let go.
    keras.backend.clear_session()
    environment = training.describe_environment(training.thread_count(config.training), config.backend)
    with tracking.start_run(config, tags, environment, run_id) as run:
        run.log_data(splits)
        height, width = splits.image_shape
        model = build_model(config.model, height, width, splits.classes, config.training.seed)

        def record_epoch(metrics: EpochMetrics) -> Decision:
            run.log_epoch(metrics)
            return on_epoch(metrics)

        result = train(model, splits, config.training, record_epoch, on_progress)
        run.log_result(result, model)
    return FinishedRun(run.run_id, result)


_loaded: tuple[DataConfig, Splits] | None = None


def _load_once(config: DataConfig) -> Splits:
    """The splits of a data config, kept for the next run of this process: a sweep's trials share them."""
    global _loaded  # noqa: PLW0603
    if _loaded is None or _loaded[0] != config:
        _loaded = (config, training.load_splits(config))
    return _loaded[1]
