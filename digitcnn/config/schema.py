"""Typed, validated configuration: every key a command accepts, its type, its range and its default.

The names here are the names everywhere: YAML, command line, Optuna parameter, MLflow parameter.
"""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from digitcnn.config import urls
from digitcnn.errors import ConfigError
from digitcnn.files import sqlite_url

Filters = Annotated[int, Field(ge=1, le=4096)]
Kernel = Annotated[int, Field(ge=1, le=99)]
Units = Annotated[int, Field(ge=1, le=65_536)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Count = Annotated[int, Field(ge=1, le=10_000_000)]

Backend = Literal["tensorflow", "jax", "torch"]
Objective = Literal[
    "validation_accuracy",
    "best_validation_accuracy",
    "validation_loss",
    "cpu_seconds",
    "training_seconds",
    "parameters",
]

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smh])")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# Keys that runs and studies recorded before them do not name, and what those had.
LATER_KEYS = {"backend": "tensorflow"}
# What file systems allow, in bytes.
_LONGEST_PATH, _LONGEST_NAME = 4000, 255
# An error names the value, but not all of a long one.
_MOST_SHOWN = 200


def parse_duration(duration: str) -> float:
    """Seconds of a duration such as `90s`, `15m` or `2h`. Raises ValueError for anything else."""
    match = _DURATION.fullmatch(duration)
    if match is None or float(match[1]) <= 0:
        raise ValueError("must be a duration such as 90s, 15m or 2h")
    return float(match[1]) * _SECONDS[match[2]]


def _duration(value: str) -> str:
    parse_duration(value)
    return value


def _name(value: str) -> str:
    if _NAME.fullmatch(value) is None:
        raise ValueError("must be 1 to 100 letters, digits, '.', '_' or '-', beginning with a letter or digit")
    return value


def _path(value: str) -> str:
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
        raise ValueError("must hold no control characters and be UTF-8")
    encoded = os.fsencode(value)
    if len(encoded) > _LONGEST_PATH or any(len(name) > _LONGEST_NAME for name in encoded.split(b"/")):
        raise ValueError(f"must be at most {_LONGEST_PATH} bytes long, and each name in it {_LONGEST_NAME}")
    return value


def _root(value: str) -> str:
    if re.search("%[0-9A-Fa-f]{2}", str(Path(_path(value)).absolute())):
        raise ValueError("must have no % with two hexadecimal digits in its path: MLflow takes that for a character")
    return value


def _objective(value: list[Objective]) -> list[Objective]:
    if len(set(value)) != len(value):
        raise ValueError("must name each objective once")
    return value


Name = Annotated[str, AfterValidator(_name)]
Root = Annotated[str, AfterValidator(_root)]
Duration = Annotated[str, AfterValidator(_duration)]
FilePath = Annotated[str, AfterValidator(_path)]
Server = Annotated[str, AfterValidator(urls.server)]


class Config(BaseModel):
    """A frozen, strict value: an unknown key or a wrong type is an error, nothing is converted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DataConfig(Config):
    """Which images, and how they are split.

    `validation`: holdout judges every epoch by training images that were held out; test by the test set, as the
    article did; test_once trains on all training images and reads the test set after the last epoch only.
    """

    path: FilePath = "mnist"
    train_size: Count | None = None
    validation: Literal["holdout", "test", "test_once"] = "holdout"
    validation_size: Count = 10_000
    split_seed: Seed = 0


class CnnConfig(Config):
    """The article's convolutional network."""

    name: Literal["cnn"] = "cnn"
    conv1_filters: Filters = 32
    conv1_kernel: Kernel = 3
    conv2_filters: Filters = 64
    conv2_kernel: Kernel = 3
    dense_units: Units = 512


class MlpConfig(Config):
    """The fully connected network that the article improves on."""

    name: Literal["mlp"] = "mlp"
    dense1_units: Units = 128
    dense2_units: Units = 32


_NETWORKS: dict[str, type[Config]] = {"cnn": CnnConfig, "mlp": MlpConfig}


def _model_name(value: Any) -> str | None:
    return value.get("name") if isinstance(value, dict) else getattr(value, "name", None)


ModelConfig = Annotated[Annotated[CnnConfig, Tag("cnn")] | Annotated[MlpConfig, Tag("mlp")], Discriminator(_model_name)]


class TrainingConfig(Config):
    """How a network is trained.

    `steps_per_epoch`: null is one full pass over the training images, last partial batch included; a number or
    `batch_size` (the article's choice) takes that many batches from a repeating shuffled stream.
    `engine`: auto is compiled where that can train the network, else keras.
    `threads`: null is every core this process may use.
    """

    engine: Literal["auto", "keras", "compiled"] = "auto"
    batch_size: Count = 250
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 10
    learning_rate: Annotated[float, Field(gt=0, le=1_000_000)] = 0.001
    steps_per_epoch: Count | Literal["batch_size"] | None = None
    seed: Seed = 0
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None


class TrackingConfig(Config):
    """Where records are kept: `root` holds the embedded stores, `uri` names an MLflow server instead."""

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


class RunConfig(Config):
    """Everything that one training run depends on, and where it is recorded. `backend` is what Keras computes with."""

    data: DataConfig = DataConfig()
    model: ModelConfig = CnnConfig()
    training: TrainingConfig = TrainingConfig()
    backend: Backend = "tensorflow"
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _has_its_engine(self) -> RunConfig:
        if self.training.engine == "compiled" and self.backend != "tensorflow":
            raise ValueError(
                f"training.engine=compiled: needs backend=tensorflow; with {self.backend} choose auto or keras"
            )
        return self

    def parameters(self) -> dict[str, Any]:
        """Every value that defines the run, by its dotted name; not where the run is recorded."""
        return flatten(self.model_dump(exclude={"tracking"}))

    def replace(self, values: Mapping[str, Any]) -> RunConfig:
        """This config with other values under the given dotted names. Raises ConfigError as `load` does."""
        tree = self.model_dump()
        for name, value in values.items():
            group, _, key = name.rpartition(".")
            (tree[group] if group else tree)[key] = value
        return load_config(RunConfig, tree)


class StudyConfig(Config):
    """What is searched, how, and for how long. `space` mirrors the config tree: see space.py."""

    name: Name
    trials: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    objective: Annotated[list[Objective], Field(min_length=1, max_length=3), AfterValidator(_objective)]
    sampler: Literal["tpe", "random", "grid", "qmc", "gp", "cmaes", "nsgaii"] = "tpe"
    pruner: Literal["median", "successive_halving", "hyperband", "none"] = "median"
    timeout: Duration | None = None
    workers: Annotated[int, Field(ge=1, le=1024)] | None = None
    seed: Seed = 0
    retries: Annotated[int, Field(ge=0, le=100)] = 2
    space: dict[str, Any]


class StudyReference(Config):
    """A study that was recorded, by its name."""

    name: Name


class SweepConfig(RunConfig):
    """One sweep: the baseline run and the study around it."""

    study: StudyConfig
    preview: bool = False

    @property
    def baseline(self) -> RunConfig:
        """The run that every trial is a variation of."""
        return RunConfig(**{name: getattr(self, name) for name in RunConfig.model_fields})


def expand_user(path: str) -> Path:
    """The path with ~ and ~USER replaced, of a user that there is: Path.expanduser raises for any other."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


AnyConfig = TypeVar("AnyConfig", bound=Config)


def load_config(kind: type[AnyConfig], values: Mapping[str, Any]) -> AnyConfig:
    """The typed config of plain nested values, such as a composed YAML tree.

    Raises ConfigError with one line that names the first wrong key, its value and what is allowed.
    """
    study = values.get("study")
    if isinstance(study, Mapping) and isinstance(study.get("objective"), str):
        values = {**values, "study": {**study, "objective": [study["objective"]]}}
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(_one_line(kind, error)) from None


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of flatten, for names of at most one dot."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        group, _, key = name.rpartition(".")
        (tree.setdefault(group, {}) if group else tree)[key] = value
    return tree


def nearest_key(name: str, names: list[str]) -> str:
    """A hint that names the nearest of some keys, or those of its group, or the groups."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.75)
    if close:
        return f"did you mean {close[0]}?"
    groups = list(dict.fromkeys(known.partition(".")[0] for known in names))
    group = [known for known in names if known.startswith(name.partition(".")[0] + ".")]
    return f"known keys: {', '.join(group or groups)}"


def known_keys(kind: type[BaseModel], prefix: str = "") -> list[str]:
    """Every key of a config by its dotted name, those of each network included."""
    keys: list[str] = []
    for name, field in kind.model_fields.items():
        groups = [part for part in _members(field.annotation) if isinstance(part, type) and issubclass(part, BaseModel)]
        keys += [key for group in groups for key in known_keys(group, f"{prefix}{name}.")] or [f"{prefix}{name}"]
    return list(dict.fromkeys(keys))


def _members(annotation: Any) -> list[Any]:
    return [annotation, *(member for part in getattr(annotation, "__args__", ()) for member in _members(part))]


def _one_line(kind: type[Config], error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    value = urls.without_credentials(str(problem.get("input")))
    value = value if len(value) <= _MOST_SHOWN else f"{value[:_MOST_SHOWN]}..."
    location = [str(part) for part in problem["loc"]]
    network = next((part for part in location[1:2] if part in _NETWORKS), None)
    # A location walks through the members of unions, which have no name in the config: keep what a person typed.
    typed = [part for part in location if re.fullmatch(r"\w+", part) and part not in (*_NETWORKS, "int")]
    if typed[:2] == ["training", "steps_per_epoch"]:
        return f"training.steps_per_epoch={value}: must be null, a whole number from 1 to 10000000, or batch_size"
    key = ".".join(typed)
    if key == "tracking.uri" and "://" not in value:
        value = "***"
    if problem["type"] == "extra_forbidden":
        keys = known_keys(_NETWORKS[network], "model.") if network else known_keys(kind)
        return f"{key}: unknown key; {nearest_key(key, keys)}"
    if problem["type"] == "missing":
        return f"{key}: missing"
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return f"{key}.name={_model_name(problem['input'])}: must be one of {', '.join(_NETWORKS)}"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ").replace("should", "must", 1)
    return f"{key}={value}: {message}" if key else message
