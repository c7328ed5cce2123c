"""A run's manifest: all that it takes to repeat the run and to recognize it. Its file is data and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, model_validator

from digitcnn import tracking, training
from digitcnn.config import Config, RunConfig, TrackingConfig, load_config
from digitcnn.errors import ConfigError, MachineError
from digitcnn.files import write_atomically
from digitcnn.formatting import has_control_characters
from digitcnn.records import EPOCH_METRICS, IN_VALIDATION, TEST_METRICS, TRAIN_METRICS, Artifact, EnvironmentKey, Tag

# The metrics that config and seed decide. Seconds and memory are the machine's.
_METRICS = (*EPOCH_METRICS, *TEST_METRICS)
_FORMAT = 1
# Enough for 25,000 epochs. Aliases would expand beyond any limit, deep nesting would exhaust the stack.
_MAX_BYTES = 4 * 2**20
_MAX_DEPTH = 10


def _check_text(value: str) -> str:
    if has_control_characters(value):
        raise ValueError("must hold no control characters")
    return value


def _check_environment(value: dict[str, Any]) -> dict[str, Any]:
    for name, part in value.items():
        parts = part if isinstance(part, dict) else {name: part}
        if isinstance(part, dict) != (name in (EnvironmentKey.PACKAGES, EnvironmentKey.FLAGS, EnvironmentKey.GIT)):
            raise ValueError(f"must hold mappings as packages, flags and git only, and not as {name}")
        for key, text in parts.items():
            if not isinstance(key, str) or not isinstance(text, str | bool | int | float | None):
                raise ValueError(f"must hold words and numbers, also in {name}")
            _check_text(f"{key} {text}")
    # Earlier versions recorded other variables too, which may hold secrets and are not to be published.
    flags, backend = value.get(EnvironmentKey.FLAGS, {}), value.get(Tag.BACKEND, "tensorflow")
    return {**value, EnvironmentKey.FLAGS: training.arithmetic_flags(flags, backend)}


_Text = Annotated[str, AfterValidator(_check_text)]
_Sha256 = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
_Metrics = dict[Literal[_METRICS], float]  # type: ignore[valid-type]


class RunManifest(Config):
    """The manifest of a finished run.

    `epochs` are the metrics of each epoch by name, `final` those of the final model on the test set, if it was judged
    once. `environment` is the content of environment.json.
    """

    run_id: Annotated[str, Field(pattern=r"\A[0-9a-f]{32}\z")]
    config: RunConfig
    epochs: list[_Metrics]
    final: _Metrics
    weights_sha256: _Sha256
    data_sha256: _Sha256
    engine: Literal["fast", "keras", "compiled"]
    environment: Annotated[dict[_Text, Any], AfterValidator(_check_environment)]

    @model_validator(mode="after")
    def _fits_its_config(self) -> RunManifest:
        once = self.config.data.validation == "test_once"
        wanted = set(TRAIN_METRICS if once else EPOCH_METRICS)
        judged = {IN_VALIDATION.get(name, name) for epoch in self.epochs for name in epoch}
        whole = len(self.epochs) == self.config.training.epochs and all(
            len(each) == len(wanted) for each in self.epochs
        )
        if not whole or judged != wanted:
            raise ValueError(f"must hold {', '.join(sorted(wanted))} of each of the config's epochs")
        if set(self.final) != (set(TEST_METRICS) if once else set()):
            raise ValueError("must hold test_loss and test_accuracy at the end if data.validation is test_once")
        return self


def write_manifest(manifest: RunManifest, path: Path, comment: str) -> None:
    """Write a manifest as `manifest_text` has it. Raise MachineError if it cannot be written."""
    write_atomically(path, manifest_text(manifest, comment), "the run is recorded")


def manifest_text(manifest: RunManifest, comment: str) -> str:
    """Return a manifest as YAML, headed by a comment."""
    content = {"format": _FORMAT, **manifest.model_dump(exclude={"config": {"tracking"}})}
    heading = "".join(f"# {line}\n" for line in comment.splitlines())
    return f"{heading}{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}"


def read_manifest(path: Path) -> RunManifest:
    """Read a manifest from its file. Raise ConfigError with one line if the file holds none."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a regular file")
        with path.open("rb") as file:
            content = _plain_mapping(file.read(_MAX_BYTES + 1))
        if content.pop("format", None) != _FORMAT:
            raise ValueError(f"its format is not {_FORMAT}")
        return load_config(RunManifest, content)
    except OSError as error:
        raise ConfigError(f"run={path}: cannot be read: {error.strerror}") from None
    except (ValueError, ConfigError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"run={path}: is not a run's manifest, or is corrupt or truncated ({reason})") from None


def _plain_mapping(text: bytes | str) -> dict[str, Any]:
    """Parse a YAML mapping without tags and aliases, of bounded size and depth. Raise ValueError for anything else."""
    if len(text) > _MAX_BYTES:
        raise ValueError(f"it has more than {_MAX_BYTES:,} bytes")
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            if getattr(event, "anchor", None) is not None or getattr(event, "tag", None) is not None:
                raise ValueError("it holds an alias or a tag")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:
                raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
        content = yaml.load(text, Loader=yaml.CSafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    if not isinstance(content, dict):
        raise ValueError("it holds no mapping of keys to values")
    return content


def config_of_run(store: tracking.Store, run_id: str, records: TrackingConfig) -> RunConfig:
    """Return the config of a recorded run, with the place of its records now. Raise ConfigError if it is no run's."""
    content = _plain_mapping(tracking.read_text(store, run_id, Artifact.CONFIG))
    return load_config(RunConfig, {**content, "tracking": records.model_dump()})


def manifest_of(store: tracking.Store, run_id: str) -> RunManifest:
    """Return the manifest of a recorded run. Raise ConfigError unless the run is finished.

    A run that stopped early is one of so many epochs: it is repeated without asking again when to stop.
    """
    found = tracking.trained_run(store, run_id)
    if found.info.status != "FINISHED" or Tag.WEIGHTS_SHA256 not in found.data.tags:
        raise ConfigError(f"run={run_id}: is {found.info.status}; only a run that got to its end can be reproduced")
    run_id = found.info.run_id
    config_text = tracking.read_text(store, run_id, Artifact.CONFIG)
    environment_text = tracking.read_text(store, run_id, Artifact.ENVIRONMENT)
    histories = {
        name: {point.step: point.value for point in store.client.get_metric_history(run_id, name)}
        for name in _METRICS
        if name in found.data.metrics
    }
    try:
        last = max(histories[TRAIN_METRICS[0]])
        # Judged once, after the last epoch, or by every epoch.
        once = list(TEST_METRICS) if found.data.params["data.validation"] == "test_once" else []
        content = {
            "run_id": run_id,
            "config": load_config(RunConfig, _plain_mapping(config_text)).stopped_after(last).model_dump(),
            "epochs": [
                {name: history[epoch] for name, history in histories.items() if name not in once}
                for epoch in range(1, last + 1)
            ],
            "final": {name: histories[name][last] for name in once},
            **{name: found.data.tags[name] for name in (Tag.WEIGHTS_SHA256, Tag.DATA_SHA256, Tag.ENGINE)},
            "environment": json.loads(environment_text),
        }
    except (ValueError, KeyError, RecursionError) as error:
        raise MachineError(f"run {run_id}: its records are incomplete or corrupt ({error})") from None
    return load_config(RunManifest, content)
