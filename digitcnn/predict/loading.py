"""Loading a recorded model: verified before anything of it is parsed, then rebuilt by our own code.

Keras deserializes nothing here, in safe mode or not: an archive can name any class, module and path. Its config is read
as data for the sizes of the network, build_model builds that network, every layer of the archive must be what ours is,
and the weights are read as plain arrays of the shapes that ours has. MLflow's loader is not used either: an MLmodel can
name any module and code.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from digitcnn import tracking, training
from digitcnn.config import CnnConfig, MlpConfig, TrackingConfig, load_config
from digitcnn.errors import ConfigError, MachineError
from digitcnn.records import Metric, Tag
from digitcnn.training import MOST_PARAMETERS, build_model, check_fits, count_parameters, weights_sha256

if TYPE_CHECKING:
    import keras

_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
_LAYERS = ("InputLayer", "Rescaling", "Reshape", "Conv2D", "MaxPooling2D", "Flatten", "Dense")
# What a file may hold beside its weights, config.json, and MLmodel; ours have 10 kB, 6 kB and 1 kB.
_MOST_BYTES_BESIDE, _MOST_TEXT = 2**20, 2**18
# What MLflow writes of a Keras model. Anything else could name code that its own loader would run.
_FLAVORS = {
    "keras": {"data": "data", "save_exported_model": False, "keras_version": str, "keras_backend": str},
    "python_function": {"loader_module": "mlflow.keras", "env": dict, "python_version": str},
}


def load_recorded_model(store: tracking.Store, config: TrackingConfig, run_id: str) -> keras.Model:
    """The model that a run recorded in the store of a config. It is parsed only if its SHA-256 is the recorded one.

    Raises ConfigError for a run without a model or without its digest, MachineError with one line for a model that is
    not what was recorded, or is none of ours.
    """
    run = store.client.get_run(run_id)
    # A trial with the parameters of an earlier one was not trained again.
    run_id = run.data.tags.get(Tag.SAME_AS_RUN, run_id)
    run = store.client.get_run(run_id)
    model_id = tracking.logged_model(store, run_id).model_id
    if Tag.MODEL_SHA256 not in run.data.tags:
        again = f"digitcnn reproduce run={run_id}"
        raise ConfigError(f"run={run_id}: recorded no SHA-256 of its model, as runs do now; repeat it: {again}")
    folder = config.folder if config.uri is None else None
    parameters = min(int(run.data.metrics.get(Metric.PARAMETERS, MOST_PARAMETERS)), MOST_PARAMETERS)
    try:
        content = _read(store, model_id, tracking.MODEL_FILE, folder, 4 * parameters + _MOST_BYTES_BESIDE)
        if hashlib.sha256(content).hexdigest() != run.data.tags[Tag.MODEL_SHA256]:
            raise ValueError(f"{tracking.MODEL_FILE} has another SHA-256 than the run recorded")
        _check_description(_read(store, model_id, "MLmodel", folder, _MOST_TEXT))
        network = rebuild(content)
        if weights_sha256(network) != run.data.tags.get(Tag.WEIGHTS_SHA256):
            raise ValueError("its weights have another SHA-256 than the run recorded")
    except (ValueError, RecursionError) as error:
        raise MachineError(f"the model of run {run_id} is refused: {error}") from None
    return network


def _read(store: tracking.Store, model_id: str, name: str, folder: Path | None, most: int) -> bytes:
    """A file of a recorded model, which lies below the folder of the records if it is not on a server."""
    path = tracking.model_file(store, model_id, name)
    if folder is not None and not Path(os.path.normpath(path)).is_relative_to(folder):
        raise ValueError(f"{name} is not in the records, but {path}")
    if not path.is_file():
        raise ValueError(f"{name} is no file")
    if path.stat().st_size > most:
        raise ValueError(f"{name} holds {path.stat().st_size:,} bytes; at most {most:,}")
    return path.read_bytes()


def _check_description(text: bytes) -> None:
    """Raises ValueError for an MLmodel that MLflow would not have written of one of our models."""
    try:
        flavors = yaml.safe_load(text)["flavors"]
        described = {name: set(flavors[name]) for name in flavors}
        wrong = [
            f"{name}.{key}"
            for name, known in _FLAVORS.items()
            for key, value in flavors[name].items()
            if key not in known or not (value == known[key] or type(value) is known[key])
        ]
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError("its MLmodel is torn") from None
    if described.keys() != _FLAVORS.keys() or wrong:
        named = [*wrong, *(described.keys() - _FLAVORS.keys())]
        raise ValueError(f"its MLmodel is not ours: {named[0]!r:.60}")


def rebuild(archive: bytes) -> keras.Model:
    """The network of a `.keras` archive, built by build_model, with the archive's weights.

    Raises ValueError with the cause for an archive that is not exactly what Keras writes of one of our networks. The
    memory that it takes is bounded by the archive's size.
    """
    config_text, weights = _members(archive)
    try:
        config = json.loads(config_text)
        layers = list(config["config"]["layers"])
        kinds = [(layer["module"], layer["class_name"]) for layer in layers]
        foreign = [kind for kind in kinds if kind[0] != "keras.layers" or kind[1] not in _LAYERS]
        if foreign:
            raise ValueError(f"has a layer that we do not build: {foreign[0][1]!r:.60} of {foreign[0][0]!r:.60}")
        network, height, width, classes = _network({layer["config"]["name"]: layer["config"] for layer in layers})
        check_fits(network, height, width, classes)
    except ConfigError as error:
        raise ValueError(f"its network cannot be: {error}") from None
    except (KeyError, TypeError, AttributeError, RecursionError, json.JSONDecodeError):
        raise ValueError(f"its {_CONFIG} describes none of our networks") from None
    parameters = count_parameters(network, height, width, classes)
    if 4 * parameters > len(weights):
        raise ValueError(f"its network has {parameters:,} weights, of which {len(weights):,} bytes cannot be all")
    training.import_keras()
    model = build_model(network, height, width, classes, seed=0)
    if _without_defaults(config) != _without_defaults(json.loads(model.to_json())):
        raise ValueError(f"its {_CONFIG} is not what Keras writes of our network")
    model.set_weights(_arrays(weights, model))
    return model


def _members(archive: bytes) -> tuple[bytes, bytes]:
    """The config and the weights of an archive with the three members that Keras writes, stored as they are."""
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            members = {member.filename: member for member in opened.infolist()}
            foreign = [name for name in members if name not in (_CONFIG, _WEIGHTS, "metadata.json")]
            if foreign or len(members) != len(opened.infolist()):
                raise ValueError(f"its archive holds {(foreign or ['a member twice'])[0]!r:.60}")
            if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
                raise ValueError("its archive is compressed; Keras stores members as they are")
            if members[_CONFIG].file_size > _MOST_TEXT:
                raise ValueError(f"its {_CONFIG} holds {members[_CONFIG].file_size:,} bytes; at most {_MOST_TEXT:,}")
            return opened.read(_CONFIG), opened.read(_WEIGHTS)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, KeyError, EOFError, OSError) as error:
        raise ValueError(f"it is no .keras archive, or is torn ({error})") from None


def _network(layers: dict[str, dict[str, Any]]) -> tuple[CnnConfig | MlpConfig, int, int, int]:
    """Our config, the image size and the number of classes of a network whose layers have these configs, by name."""
    _, height, width = layers["image"]["batch_shape"]
    classes = layers["probabilities"]["units"]
    if any(type(number) is not int or number < 1 for number in (height, width, classes)) or classes < 2:
        raise TypeError
    if "conv1" not in layers:
        units = {f"{name}_units": layers[name]["units"] for name in ("dense1", "dense2")}
        return load_config(MlpConfig, units), height, width, classes
    sizes = {"dense_units": layers["dense"]["units"]}
    for name in ("conv1", "conv2"):
        sizes |= {f"{name}_filters": layers[name]["filters"], f"{name}_kernel": layers[name]["kernel_size"][0]}
    return load_config(CnnConfig, sizes), height, width, classes


def _without_defaults(value: Any) -> Any:
    """Plain values without the entries that say nothing: versions of Keras write more or fewer of them."""
    if isinstance(value, dict):
        kept = {key: each for key, each in value.items() if each not in (None, False, {}) and key != "shared_object_id"}
        return {key: _without_defaults(each) for key, each in kept.items()}
    return [_without_defaults(each) for each in value] if isinstance(value, list) else value


def _arrays(weights: bytes, model: keras.Model) -> list[NDArray[np.float32]]:
    """The arrays of a weights file in the order of the model's; raises ValueError unless they have its shapes."""
    import h5py

    arrays: list[NDArray[np.float32]] = []
    before: Counter[str] = Counter()
    try:
        with h5py.File(io.BytesIO(weights), "r") as file:
            for layer in model.layers:
                kind = type(layer).__name__.lower()
                # Keras numbers the layers of a class: layers/dense/vars/0, layers/dense_1/vars/0.
                folder = f"layers/{kind}_{before[kind]}/vars" if before[kind] else f"layers/{kind}/vars"
                before[kind] += 1
                arrays += [_array(file, f"{folder}/{i}", tuple(own.shape)) for i, own in enumerate(layer.weights)]
    except (OSError, KeyError, RuntimeError) as error:
        raise ValueError(f"its weights are torn ({' '.join(str(error).split()):.100})") from None
    return arrays


def _array(file: Any, path: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """An array that lies in the file itself, whole and uncompressed: HDF5 can link to any other file."""
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
