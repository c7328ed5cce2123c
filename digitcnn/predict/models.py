"""Loading a recorded model: verified before anything of it is parsed, then rebuilt by our own code.

Keras deserializes nothing here, in safe mode or not: an archive can name any class, module and path. build_model builds
the network of the run's own parameters; the archive's config must be exactly that network's, and its weights are read
as plain arrays of that network's shapes. MLflow's loader is not used either: an MLmodel can name any module and code.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import Field

from digitcnn import tracking, training
from digitcnn.config import Config, ModelConfig, RunConfig, TrackingConfig, load_config, nested
from digitcnn.errors import ConfigError, MachineError
from digitcnn.records import Metric, Tag
from digitcnn.training import MAX_PARAMETERS, build_model, check_fits, count_parameters, weights_sha256

if TYPE_CHECKING:
    import keras

_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
# The most bytes that a file may hold beside its weights, and config.json or MLmodel; ours have 10 kB, 6 kB and 1 kB.
_MAX_BYTES_BESIDE, _MAX_TEXT = 2**20, 2**18


class _KerasFlavor(Config):
    data: Literal["data"] = "data"
    save_exported_model: Literal[False] = False
    keras_version: str = ""
    keras_backend: str = ""


class _FunctionFlavor(Config):
    loader_module: Literal["mlflow.keras"] = "mlflow.keras"
    python_version: str = ""
    env: dict[str, str] = Field(default_factory=dict)


class _Flavors(Config):
    """The flavors that MLflow writes of a Keras model: any other could name code that its own loader would run."""

    keras: _KerasFlavor
    python_function: _FunctionFlavor


def load_recorded_model(store: tracking.Store, config: TrackingConfig, run_id: str) -> keras.Model:
    """Return the model that a run recorded in the store of a config; it is parsed only if its SHA-256 is the recorded.

    Raises ConfigError for a run without a model or without its digest, MachineError with one line for a model that is
    not what was recorded, or not one of ours.
    """
    run = tracking.trained_run(store, run_id)
    run_id, tags = run.info.run_id, run.data.tags
    model_id = tracking.logged_model(store, run_id).model_id
    if Tag.MODEL_SHA256 not in tags:
        again = f"digitcnn reproduce run={run_id}"
        raise ConfigError(f"run={run_id}: recorded no SHA-256 of its model, as runs do now; repeat it: {again}")
    parameters = min(int(run.data.metrics.get(Metric.PARAMETERS, MAX_PARAMETERS)), MAX_PARAMETERS)
    try:
        content = _read(store, config, model_id, tracking.MODEL_FILE, 4 * parameters + _MAX_BYTES_BESIDE)
        if hashlib.sha256(content).hexdigest() != tags[Tag.MODEL_SHA256]:
            raise ValueError(f"{tracking.MODEL_FILE} has another SHA-256 than the run recorded")
        _check_description(_read(store, config, model_id, "MLmodel", _MAX_TEXT))
        network = rebuild(content, _network(run.data.params))
        if weights_sha256(network) != tags.get(Tag.WEIGHTS_SHA256):
            raise ValueError("its weights have another SHA-256 than the run recorded")
    except (ValueError, RecursionError, yaml.YAMLError, ConfigError) as error:
        raise MachineError(f"the model of run {run_id} is refused: {' '.join(str(error).split())}") from None
    return network


def _network(parameters: dict[str, str]) -> ModelConfig:
    """Return the network of a run's recorded parameters. Raises ConfigError if they describe none."""
    own = {name: value for name, value in parameters.items() if name.startswith("model.")}
    return load_config(RunConfig, nested({name: yaml.safe_load(value) for name, value in own.items()})).model


def _read(store: tracking.Store, config: TrackingConfig, model_id: str, name: str, most: int) -> bytes:
    """Return a file of a recorded model, which lies below the folder of the records if it is not on a server."""
    path = tracking.model_file(store, model_id, name)
    if config.uri is None and not Path(os.path.normpath(path)).is_relative_to(config.folder):
        raise ValueError(f"{name} is not in the records, but {path}")
    if not path.is_file():
        raise ValueError(f"{name} is not a regular file")
    if path.stat().st_size > most:
        raise ValueError(f"{name} holds {path.stat().st_size:,} bytes; at most {most:,}")
    return path.read_bytes()


def _check_description(text: bytes) -> None:
    """Raise ValueError for an MLmodel that MLflow would not have written of one of our models."""
    try:
        load_config(_Flavors, yaml.safe_load(text)["flavors"])
    except ConfigError as error:
        raise ValueError(f"its MLmodel is not ours: {error}") from None
    except (yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError):
        raise ValueError("its MLmodel is corrupt or truncated") from None


def rebuild(archive: bytes, network: ModelConfig) -> keras.Model:
    """Return a network of a `.keras` archive, built by build_model, with the archive's weights.

    Raises ValueError with the cause for an archive that is not exactly what Keras writes of that network. The memory
    that it takes is bounded by the archive's size.
    """
    config_text, weights = _members(archive)
    try:
        config = json.loads(config_text)
        first, *_, last = (layer["config"] for layer in config["config"]["layers"])
        _, height, width = first["batch_shape"]
        classes = last["units"]
        if any(type(number) is not int or number < 1 for number in (height, width, classes)):
            raise TypeError
        check_fits(network, height, width, classes)
    except ConfigError as error:
        raise ValueError(f"its network cannot be: {error}") from None
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        raise ValueError(f"its {_CONFIG} describes none of our networks") from None
    parameters = count_parameters(network, height, width, classes)
    if 4 * parameters > len(weights):
        raise ValueError(f"its network has {parameters:,} weights, of which {len(weights):,} bytes cannot be all")
    training.import_keras()
    model = build_model(network, height, width, classes, seed=0)
    if _without_defaults(config) != _without_defaults(json.loads(model.to_json())):
        raise ValueError(f"its {_CONFIG} is not what Keras writes of the run's network")
    model.set_weights(_arrays(weights, model))
    return model


def _members(archive: bytes) -> tuple[bytes, bytes]:
    """Return the config and the weights of an archive with the three members that Keras writes, stored as they are."""
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            members = {member.filename: member for member in opened.infolist()}
            foreign = [name for name in members if name not in (_CONFIG, _WEIGHTS, "metadata.json")]
            if foreign or len(members) != len(opened.infolist()):
                raise ValueError(f"its archive holds {(foreign or ['a member twice'])[0]!r:.60}")
            if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
                raise ValueError("its archive is compressed; Keras stores members as they are")
            if members[_CONFIG].file_size > _MAX_TEXT:
                raise ValueError(f"its {_CONFIG} holds {members[_CONFIG].file_size:,} bytes; at most {_MAX_TEXT:,}")
            return opened.read(_CONFIG), opened.read(_WEIGHTS)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, KeyError, EOFError, OSError) as error:
        raise ValueError(f"it is not a .keras archive, or is corrupt or truncated ({error})") from None


def _without_defaults(value: Any) -> Any:
    """Return plain values without the entries that say nothing: versions of Keras write more or fewer of them."""
    if isinstance(value, dict):
        kept = {key: each for key, each in value.items() if each not in (None, False, {}) and key != "shared_object_id"}
        return {key: _without_defaults(each) for key, each in kept.items()}
    return [_without_defaults(each) for each in value] if isinstance(value, list) else value


def _arrays(weights: bytes, model: keras.Model) -> list[NDArray[np.float32]]:
    """Return the arrays of a weights file in the model's order. Raises ValueError unless they have its shapes."""
    import h5py

    arrays: list[NDArray[np.float32]] = []
    before: Counter[str] = Counter()
    try:
        with h5py.File(io.BytesIO(weights), "r") as file:
            for layer in model.layers:
                kind = re.sub("(?<=[a-z])(?=[A-Z])", "_", type(layer).__name__).lower()
                # Keras numbers the layers of a class: layers/dense/vars/0, layers/dense_1/vars/0.
                folder = f"layers/{kind}_{before[kind]}/vars" if before[kind] else f"layers/{kind}/vars"
                before[kind] += 1
                arrays += [_array(file, f"{folder}/{i}", tuple(own.shape)) for i, own in enumerate(layer.weights)]
    except (OSError, KeyError, RuntimeError) as error:
        raise ValueError(f"its weights are corrupt or truncated ({' '.join(str(error).split()):.100})") from None
    return arrays


def _array(file: Any, path: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return an array that lies in the file itself, whole and uncompressed: HDF5 can link to any other file."""
    import h5py

    node = file
    for part in path.split("/"):
        if node.get(part, getclass=True, getlink=True) is not h5py.HardLink:
            raise ValueError(f"its weights have no {path}, or a link in its place")
        node = node[part]
    if not isinstance(node, h5py.Dataset) or node.is_virtual or node.external or node.chunks is not None:
        raise ValueError(f"its weights have {path} stored elsewhere, or in a form that Keras does not write")
    if node.shape != shape or node.dtype != np.float32:
        raise ValueError(f"its weights have {path} as {node.shape} {node.dtype}; must be {shape} float32")
    array: NDArray[np.float32] = node[()]
    return array
