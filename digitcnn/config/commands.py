"""Schema of every command."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from digitcnn.config.fields import Duration, Name, Processes
from digitcnn.config.loading import Config
from digitcnn.config.schema import LocalWorkers, RunConfig, StudyConfig, TrackingConfig, WorkersConfig


def _check_local(value: str) -> str:
    if "://" in value:
        raise ValueError("must be a run or a file of this machine, not an address")
    return value


# Of a candidate that is confirmed.
MAX_SEEDS = 1000
# What a person names: a run, runs or a file, whatever its name.
Local = Annotated[str, AfterValidator(_check_local)]


class TrainConfig(RunConfig):
    """One training run; or with `run`, the id of a recorded one or its first characters, that run trained on.

    Of a multirun the jobs that are recorded are not trained again, unless `all` of them are.
    """

    run: Local | None = None
    all: bool = False

    @property
    def alone(self) -> RunConfig:
        """The run without what the command adds to it."""
        return RunConfig(**{name: getattr(self, name) for name in RunConfig.model_fields})


class SweepConfig(RunConfig):
    """One sweep: the baseline run and the study around it."""

    study: StudyConfig
    workers: WorkersConfig = LocalWorkers()
    preview: bool = False

    @property
    def baseline(self) -> RunConfig:
        """The run that every trial is a variation of; with study.seeds it has the first of them."""
        run = RunConfig(**{name: getattr(self, name) for name in RunConfig.model_fields})
        return run if self.study.seeds == 1 else run.replace({"training.seed": 1})


class StudyReference(Config):
    """A recorded study, by its name."""

    name: Name


class ConfirmSettings(Config):
    """The number of best trials that are confirmed, and of seeds for each; and the smallest difference of interest.

    `cpu_budget`: null, or the CPU time of all confirming runs of the study, which takes the place of `seeds`.
    `ablation` also trains what is between the baseline and the best trial, to tell what each change brings.
    """

    top: Annotated[int, Field(ge=1, le=50)] = 3
    seeds: Annotated[int, Field(ge=2, le=MAX_SEEDS)] = 5
    cpu_budget: Duration | None = None
    margin: Annotated[float, Field(gt=0, le=1)] = 0.001
    ablation: bool = False

    @model_validator(mode="after")
    def _ablates_with_seeds(self) -> ConfirmSettings:
        if self.ablation and self.cpu_budget is not None:
            raise ValueError("confirm.ablation=true: has confirm.seeds for each step, and takes no confirm.cpu_budget")
        return self


class ConfirmConfig(Config):
    """One confirmation of a study."""

    study: StudyReference
    confirm: ConfirmSettings = ConfirmSettings()
    workers: WorkersConfig = LocalWorkers()
    tracking: TrackingConfig = TrackingConfig()
    preview: bool = False


class ReproduceConfig(Config):
    """The run that is trained again: champion, best (of `study`), an id's first characters, or a manifest's file."""

    run: Local = "champion"
    threads: Processes | None = None
    study: StudyReference
    tracking: TrackingConfig = TrackingConfig()


class ReportConfig(Config):
    """The study that is reported, looked at or stopped."""

    study: StudyReference
    tracking: TrackingConfig = TrackingConfig()


class DiffConfig(Config):
    """The runs that are put side by side (`study` is that of `best`), and the form of the answer."""

    WORDS = "runs"
    runs: list[Local] = Field(default_factory=list)
    format: Literal["text", "csv"] = "text"
    study: StudyReference
    tracking: TrackingConfig = TrackingConfig()


class PredictConfig(Config):
    """The pictures, the run whose model classifies them (`study` is that of run=best), and the form of the answer."""

    WORDS = "image"
    image: list[Local] = Field(default_factory=list)
    run: Local = "champion"
    format: Literal["text", "json", "csv"] = "text"
    show: bool = False
    study: StudyReference
    tracking: TrackingConfig = TrackingConfig()


class RecordsConfig(Config):
    """The action on the records that a store did not take: none lists them; or `retry`, or `discard` and an id."""

    WORDS = "action"
    action: list[str] = Field(default_factory=list)
    tracking: TrackingConfig = TrackingConfig()


class StudyChoice(Config):
    """A recorded study, by its name, or none."""

    name: Name | None = None


class StudiesConfig(Config):
    """The records whose studies are listed."""

    tracking: TrackingConfig = TrackingConfig()


class RunsConfig(Config):
    """The runs that are listed: those of a study or all, which of them, in what order, with what, and in which form."""

    study: StudyChoice = StudyChoice()
    filter: str | None = None
    sort: str | None = None
    columns: list[str] = Field(default_factory=list)
    format: Literal["text", "csv", "json"] = "text"
    tracking: TrackingConfig = TrackingConfig()


class DeleteConfig(Config):
    """The study or the single run that is deleted, with or without asking."""

    study: StudyChoice = StudyChoice()
    run: Local | None = None
    yes: bool = False
    tracking: TrackingConfig = TrackingConfig()


class UiConfig(Config):
    """The records that MLflow's UI shows, those of a study if one is named, and its port on 127.0.0.1."""

    study: StudyChoice = StudyChoice()
    port: Annotated[int, Field(ge=1, le=65_535)] = 5000
    open: bool = False
    tracking: TrackingConfig = TrackingConfig()
