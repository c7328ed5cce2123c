"""Trains a recorded run again and compares: `python experiments/reproduce.py run=RUN [KEY=VALUE ...]`."""

from pathlib import Path
from typing import Annotated

from command import deferred_signals, main
from pydantic import Field

from digitcnn import display, records, reproduction, study, tracking
from digitcnn.config import Config, TrackingConfig
from digitcnn.confirmation import StudyReference
from digitcnn.errors import ConfigError
from digitcnn.training import Decision, EpochMetrics


class ReproduceConfig(Config):
    """Which run is trained again: champion, best (of a study), a run id, or a frozen run's file."""

    run: str
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    study: StudyReference
    tracking: TrackingConfig = TrackingConfig()


def reproduce(config: ReproduceConfig) -> int:
    """Finds the run, trains it, and prints every metric side by side and the verdict."""
    frozen = _frozen(config)
    training = frozen.config.training
    with display.training(training) as shown, deferred_signals() as end_if_asked:

        def on_epoch(metrics: EpochMetrics) -> Decision:
            decision = shown.on_epoch(metrics)
            end_if_asked()
            return decision

        found = reproduction.reproduce(frozen, config.tracking, config.threads, on_epoch)
    display.side_by_side(found.metrics)
    print(f"weights {frozen.weights_sha256[:16]} recorded, {found.weights_sha256[:16]} repeated")
    for line in (*found.reasons, *([found.code] if found.code else [])):
        print(line)
    print(f"{found.verdict}: run {frozen.run_id} reproduced as run {found.run_id}")
    return 1 if found.verdict == "DIFFERENT" else 0


def _frozen(config: ReproduceConfig) -> reproduction.Frozen:
    if config.run.endswith((".yaml", ".yml")):
        return reproduction.read(Path(config.run).expanduser())
    with tracking.store_errors(config.tracking):
        store = tracking.open_store(config.tracking)
        if config.run == "champion":
            run_id = records.champion(store)
        elif config.run == "best":
            run_id = _best(config)
        else:
            run_id = records.find_run(store, config.run)
        return reproduction.frozen_of(store, run_id)


def _best(config: ReproduceConfig) -> str:
    url = config.study.storage or study.sqlite_url(config.tracking.folder / "optuna.db")
    existing = study.existing_study(url, config.study.name)
    best = None if existing is None else study.best(existing)
    if best is None:
        raise ConfigError(f"study.name={config.study.name}: no study of that name with a completed trial is recorded")
    return str(best.user_attrs["run_id"])


if __name__ == "__main__":
    main("reproduce", ReproduceConfig, reproduce, texts=("run",), study_by_name=True)
