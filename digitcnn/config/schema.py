"""Schema of a run and of a study: every key, its type, its range and its default.

The names here are the names everywhere: YAML, command line, Optuna parameter, MLflow parameter. conf/*.yaml states the
same defaults with their reasons, for people to read; tests/config compares both.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isclose
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from digitcnn.config.fields import (
    Backend,
    Cluster,
    Count,
    Duration,
    Engine,
    FilePath,
    Filters,
    Kernel,
    Name,
    Objectives,
    OptionalFilters,
    OptionalUnits,
    Pooling,
    Precision,
    Processes,
    Root,
    Seed,
    Server,
    Steps,
    Units,
)
from digitcnn.config.loading import Config, flatten, load_config
from digitcnn.files import sqlite_url
from digitcnn.records import Objective


class DataConfig(Config):
    """The images, and how they are split.

    `validation`: holdout judges every epoch by training images that were held out; test by the test set, as the
    article did; test_once trains on all training images and reads the test set after the last epoch only.
    """

    path: FilePath = "mnist"
    train_size: Count | None = None
    validation: Literal["holdout", "test", "test_once"] = "holdout"
    validation_size: Count = 10_000
    split_seed: Seed = 0


class CnnConfig(Config):
    """The article's convolutional network, with up to four blocks of a convolution, ReLU and max-pooling.

    Blocks 2 to 4 are left out with 0 filters, the dense layer with 0 units; a pooling of 1 leaves the pixels as they
    are. `batch_normalization` stands between a convolution and its ReLU, `dropout` before the last layer.
    """

    name: Literal["cnn"] = "cnn"
    conv1_filters: Filters = 32
    conv1_kernel: Kernel = 3
    conv1_pooling: Pooling = 2
    conv2_filters: OptionalFilters = 64
    conv2_kernel: Kernel = 3
    conv2_pooling: Pooling = 2
    conv3_filters: OptionalFilters = 0
    conv3_kernel: Kernel = 3
    conv3_pooling: Pooling = 2
    conv4_filters: OptionalFilters = 0
    conv4_kernel: Kernel = 3
    conv4_pooling: Pooling = 2
    padding: Literal["valid", "same"] = "valid"
    batch_normalization: bool = False
    dense_units: OptionalUnits = 512
    dropout: Annotated[float, Field(ge=0, le=0.99)] = 0.0


class MlpConfig(Config):
    """The article's fully connected network, its predecessor."""

    name: Literal["mlp"] = "mlp"
    dense1_units: Units = 128
    dense2_units: Units = 32


ModelConfig = CnnConfig | MlpConfig


class TrainingConfig(Config):
    """The training of a network.

    `steps_per_epoch`: null is one full pass over the training images, last partial batch included; a number or
    `batch_size` (the article's choice) takes that many batches from a repeating shuffled stream.
    `engine`: keras is Keras's own fit. `precision`: auto is bfloat16 where the processor has instructions for it.
    `schedule`: the learning rate falls to zero over the epochs (cosine), or rises to it and falls (one_cycle).
    `early_stopping`: the training ends, with the weights it has then, after so many epochs without a lower validation
    loss; null: never.
    `weight_average`: judged and saved are averages of the weights, of which each update keeps that share; 0 is none.
    `threads`: null is every core this process may use.
    """

    engine: Engine = "fast"
    precision: Precision = "float32"
    batch_size: Count = 250
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 10
    learning_rate: Annotated[float, Field(gt=0, le=1_000_000)] = 0.001
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    momentum: Annotated[float, Field(ge=0, le=0.9999)] = 0.9
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.004
    schedule: Literal["constant", "cosine", "one_cycle"] = "constant"
    early_stopping: Annotated[int, Field(ge=1, le=100_000)] | None = None
    weight_average: Annotated[float, Field(ge=0, le=0.9999)] = 0.0
    steps_per_epoch: Steps = None
    seed: Seed = 0
    threads: Processes | None = None


class AugmentationConfig(Config):
    """Random changes of the training images, of an image's own in each epoch; all 0: none."""

    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    zoom: Annotated[float, Field(ge=0, le=0.9)] = 0.0

    @property
    def augments(self) -> bool:
        """True if images are changed at all."""
        return any(self.model_dump().values())


class TrackingConfig(Config):
    """The place of the records: `root` holds the local stores, `uri` names an MLflow server instead."""

    root: Root = "mlruns"
    uri: Server | None = None
    experiment: Name = "digitcnn"

    @property
    def store_uri(self) -> str:
        """The MLflow tracking URI: the server, or the SQLite file below the root."""
        return self.uri or sqlite_url(self.folder / "mlflow.db")

    @property
    def folder(self) -> Path:
        """The folder of all records, absolute."""
        return Path(self.root).absolute()

    def reports(self, name: str) -> Path:
        """Return the folder of a study's reports; "predictions" are those of predict."""
        return self.folder / "reports" / name

    def checkpoints(self, command: str = "", study: str = "") -> Path:
        """Return the folder of all checkpoints, of those that a command leaves, or that it leaves of a study."""
        return self.folder / "checkpoints" / command / study

    def study_folders(self, name: str) -> tuple[Path, ...]:
        """Return the folders that are a study's alone, whether or not they are there."""
        return (self.reports(name), self.checkpoints("sweep", name), self.checkpoints("confirm", name))


class RunConfig(Config):
    """Everything that one training run depends on, and the place of its record. `backend` is Keras's."""

    data: DataConfig = DataConfig()
    model: Annotated[ModelConfig, Field(discriminator="name")] = CnnConfig()
    training: TrainingConfig = TrainingConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    backend: Backend = "tensorflow"
    tracking: TrackingConfig = TrackingConfig()

    def parameters(self) -> dict[str, Any]:
        """Return every value that defines the run, by its dotted name; not where the run is recorded."""
        return flatten(self.model_dump(exclude={"tracking"}))

    @model_validator(mode="after")
    def _stops_early_by_held_out_images(self) -> RunConfig:
        patience = self.training.early_stopping
        if patience is not None and self.data.validation != "holdout":
            raise ValueError(
                f"training.early_stopping={patience}: must not see the test set; needs data.validation=holdout"
            )
        if patience is not None and self.training.schedule != "constant":
            raise ValueError(
                f"training.early_stopping={patience}: would cut the schedule; needs training.schedule=constant"
            )
        return self

    def stopped_after(self, epochs: int) -> RunConfig:
        """Return the config of what a training that stopped early was, bit for bit: one of so many epochs."""
        if self.training.early_stopping is None:
            return self
        return self.replace({"training.epochs": epochs, "training.early_stopping": None})

    @property
    def defaults(self) -> RunConfig:
        """The default config with a network of the same kind."""
        return RunConfig(model=type(self.model)())

    def completed(self, recorded: Mapping[str, str]) -> dict[str, str]:
        """Return a run's recorded parameters, with the defaults of the keys that an earlier version did not have."""
        return {name: str(value) for name, value in self.defaults.parameters().items()} | dict(recorded)

    def replace(self, values: Mapping[str, Any]) -> RunConfig:
        """Return this config with other values under the given dotted names. Raises ConfigError as load_config does."""
        tree = self.model_dump()
        for name, value in values.items():
            group, _, key = name.rpartition(".")
            place = tree[group] if group else tree
            # Three steps of 0.1 are 0.30000000000000004: a fraction that differs by rounding alone is the same.
            fractions = isinstance(value, float) and isinstance(place.get(key), float)
            place[key] = place[key] if fractions and isclose(place[key], value, rel_tol=1e-12) else value
        return load_config(RunConfig, tree)


class LocalWorkers(Config):
    """Worker processes on this machine; `count`: null is as many as its cores and its memory allow.

    One that says nothing for `patience`, or ten times the longest silence of any so far if that is longer, is ended.
    """

    name: Literal["local"] = "local"
    count: Processes | None = None
    patience: Duration = "120s"


class RayWorkers(Config):
    """Worker processes on the machines of a Ray cluster, each with `cpus` of its processors.

    `count`: null is as many as the cluster's free processors allow; up to `max` (null: any number) join with new nodes.
    """

    name: Literal["ray"] = "ray"
    address: Cluster = "auto"
    count: Processes | None = None
    max: Processes | None = None
    cpus: Processes = 1
    patience: Duration = "120s"

    @field_validator("max")
    @classmethod
    def _holds_the_first(cls, value: int | None, info: ValidationInfo) -> int | None:
        count = info.data.get("count")
        if value is not None and count is not None and value < count:
            raise ValueError(f"must be at least workers.count, {count}")
        return value


WorkersConfig = Annotated[LocalWorkers | RayWorkers, Field(discriminator="name")]


class Bounds(Config):
    """The least and the largest value of a metric that a trial may have."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _leave_room(self) -> Bounds:
        if self.min is None and self.max is None:
            raise ValueError("must have min or max, or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"is empty: min={self.min} is above max={self.max}")
        return self


class StudyConfig(Config):
    """The search: its space, its method and its limits. `space` mirrors the config tree: see study/space.py."""

    name: Name
    trials: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    objective: Objectives
    sampler: Literal["tpe", "random", "grid", "qmc", "gp", "nsgaii"] = "tpe"
    startup_trials: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    pruner: Literal["none", "median"] = "none"
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    timeout: Duration | None = None
    seed: Seed = 0
    retries: Annotated[int, Field(ge=1, le=100)] = 1
    retry_failed: bool = False
    extends: Name | None = None
    take: str | None = None
    constraints: dict[Objective, Bounds] = Field(default_factory=dict)
    checkpoints: Literal["delete", "keep"] = "delete"
    space: dict[str, Any]

    def bounds(self) -> dict[str, dict[str, float]]:
        """Return the constraints as plain values."""
        return {str(name): each.model_dump(exclude_none=True) for name, each in self.constraints.items()}

    @field_validator("extends")
    @classmethod
    def _is_another(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and value == info.data.get("name"):
            raise ValueError("must be another study; give this one a study.name of its own")
        return value
