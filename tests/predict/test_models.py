"""Recorded models: what is loaded is what was recorded; hostile files, built for real, are refused and run nothing."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import resource
import sqlite3
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml

from digitcnn import tracking
from digitcnn.config import CnnConfig, MlpConfig, ModelConfig, RunConfig, TrackingConfig
from digitcnn.errors import ConfigError, MachineError
from digitcnn.predict import models
from digitcnn.training import build_model, weights_sha256

Champion = tuple[TrackingConfig, str]
MIB = 2**20


@dataclass
class Recorded:
    """A recorded model whose files a test replaces; `marker` is the file that a hostile one would write."""

    config: TrackingConfig
    run_id: str
    folder: Path
    marker: Path

    def load(self) -> Any:
        return models.load_recorded_model(tracking.open_store(self.config), self.config, self.run_id)

    def plant(self, content: bytes) -> None:
        """Puts content in place of the model's file."""
        (self.folder / "data" / "model.keras").write_bytes(content)

    def tag(self, content: bytes) -> None:
        """Records the digest of content as the model's."""
        store = tracking.open_store(self.config)
        store.client.set_tag(self.run_id, "model_sha256", hashlib.sha256(content).hexdigest())


@pytest.fixture
def recorded(champion: Champion, tmp_path: Path) -> Iterator[Recorded]:
    config, run_id = champion
    (file,) = Path(config.root).rglob("model.keras")
    (description,) = Path(config.root).rglob("MLmodel")
    before = {path: path.read_bytes() for path in (file, description)}
    found = Recorded(config, run_id, description.parent, tmp_path / "marker")
    yield found
    for path, content in before.items():
        path.unlink(missing_ok=True)
        path.write_bytes(content)
    found.tag(before[file])


def _archive(original: bytes, **members: bytes | None) -> bytes:
    """The archive with members replaced, added or (None) left out; `_` in a name stands for `.`."""
    with zipfile.ZipFile(io.BytesIO(original)) as opened:
        contents: dict[str, bytes | None] = {name: opened.read(name) for name in opened.namelist()}
    contents |= {name.replace("_", "."): content for name, content in members.items()}
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in contents.items():
            if content is not None:
                archive.writestr(name, content)
    return target.getvalue()


def _with_config(original: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    with zipfile.ZipFile(io.BytesIO(original)) as opened:
        config = json.loads(opened.read("config.json"))
    change(config)
    return _archive(original, config_json=json.dumps(config).encode())


def _with_weights(original: bytes, change: Callable[[h5py.File], Any]) -> bytes:
    with zipfile.ZipFile(io.BytesIO(original)) as opened:
        weights = io.BytesIO(opened.read("model.weights.h5"))
    with h5py.File(weights, "r+") as file:
        change(file)
    return _archive(original, model_weights_h5=weights.getvalue())


def _layer(config: dict[str, Any], name: str) -> dict[str, Any]:
    return next(layer for layer in config["config"]["layers"] if layer["config"]["name"] == name)


def _lambda(original: bytes, marker: Path) -> bytes:
    import keras
    from keras import layers

    path = str(marker)
    write = layers.Lambda(lambda tensor: (open(path, "w").close(), tensor)[1], (28, 28))  # noqa: PTH123
    hostile = keras.Sequential([keras.Input((28, 28)), write, layers.Flatten()])
    place = marker.with_name("hostile.keras")
    hostile.save(place)
    # It is one: Keras without its safe mode runs the payload.
    keras.saving.load_model(place, safe_mode=False)(np.zeros((1, 28, 28), np.float32))
    marker.unlink()
    return place.read_bytes()


def _module_call(original: bytes, marker: Path) -> bytes:
    def change(config: dict[str, Any]) -> None:
        call = {"module": "os", "class_name": "function", "config": "system", "registered_name": "function"}
        node = {"inbound_nodes": [{"args": [f"touch {marker}"], "kwargs": {}}], "name": "call"}
        config["config"]["layers"].insert(1, call | node)

    return _with_config(original, change)


def _module_in_an_activation(original: bytes, marker: Path) -> bytes:
    call = {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"}
    return _with_config(original, lambda config: _layer(config, "conv1")["config"].update(activation=call))


def _saved_model(original: bytes, marker: Path) -> bytes:
    import tensorflow as tf

    class Payload(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[tf.TensorSpec([None, 28, 28], tf.float32)])  # type: ignore[untyped-decorator]
        def serve(self, images: Any) -> Any:
            tf.io.write_file(str(marker), "run")
            return images

    folder = marker.with_name("saved_model")
    tf.saved_model.save(Payload(), str(folder))
    layer = {"module": "keras.layers", "class_name": "TFSMLayer", "registered_name": None}
    layer |= {"config": {"name": "scale", "filepath": str(folder), "call_endpoint": "serve"}}  # type: ignore[dict-item]
    return _with_config(original, lambda config: config["config"]["layers"].insert(1, layer))


def _linked(original: bytes, marker: Path) -> bytes:
    """Weights that HDF5 would read from another file."""
    with h5py.File(marker.with_name("other.h5"), "w") as other:
        other["secret"] = np.zeros((16, 10), np.float32)

    def change(file: h5py.File) -> None:
        del file["layers/dense_1/vars/0"]
        file["layers/dense_1/vars/0"] = h5py.ExternalLink(str(marker.with_name("other.h5")), "secret")

    return _with_weights(original, change)


def _stored_elsewhere(original: bytes, marker: Path) -> bytes:
    """Weights whose bytes are those of any other file."""
    marker.with_name("secret").write_bytes(bytes(640))

    def change(file: h5py.File) -> None:
        del file["layers/dense_1/vars/0"]
        file["layers/dense_1/vars"].create_dataset(
            "0", (16, 10), np.float32, external=[(str(marker.with_name("secret")), 0, 640)]
        )

    return _with_weights(original, change)


def _huge_array(original: bytes, marker: Path) -> bytes:
    """Weights of 400 GB in a few bytes."""

    def change(file: h5py.File) -> None:
        del file["layers/dense_1/vars/0"]
        file["layers/dense_1/vars"].create_dataset("0", (10**6, 10**5), np.float32, chunks=True, compression="gzip")

    return _with_weights(original, change)


def _huge_layer(original: bytes, marker: Path) -> bytes:
    return _with_config(original, lambda config: _layer(config, "dense")["config"].update(units=65_536))


def _huge_image(original: bytes, marker: Path) -> bytes:
    shape = [None, 10**9, 10**9]
    return _with_config(original, lambda config: _layer(config, "image")["config"].update(batch_shape=shape))


def _large_image(original: bytes, marker: Path) -> bytes:
    return _with_config(original, lambda config: _layer(config, "image")["config"].update(batch_shape=[None, 500, 500]))


def _traversal(original: bytes, marker: Path) -> bytes:
    return _archive(original, **{f"../../../../../../..{marker}".replace(".", "_"): b"run"})


def _bomb(original: bytes, marker: Path) -> bytes:
    target = io.BytesIO()
    with (
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("config.json", "w") as member,
    ):
        for _ in range(300):
            member.write(bytes(MIB))
    return target.getvalue()


def _deep(original: bytes, marker: Path) -> bytes:
    return _archive(original, config_json=b"[" * 100_000)


class Payload:
    """A payload that a pickle runs when it is opened."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def _pickle(original: bytes, marker: Path) -> bytes:
    content = pickle.dumps(Payload(marker))
    pickle.loads(content)
    marker.unlink()
    return content


def _other_weights(original: bytes, marker: Path) -> bytes:
    return _with_weights(original, lambda file: file["layers/dense_1/vars/1"].write_direct(np.ones(10, np.float32)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (_lambda, "its config.json describes none of our networks"),
        (_module_call, "its config.json is not what Keras writes of the run's network"),
        (_module_in_an_activation, "its config.json is not what Keras writes of the run's network"),
        (_saved_model, "its config.json is not what Keras writes of the run's network"),
        (_linked, "its weights have no layers/dense_1/vars/0, or a link in its place"),
        (_stored_elsewhere, "its weights have layers/dense_1/vars/0 stored elsewhere, or in a form"),
        (_huge_array, "its weights have layers/dense_1/vars/0 stored elsewhere, or in a form"),
        (_huge_layer, "its config.json is not what Keras writes of the run's network"),
        (_huge_image, "its network cannot be: model: has "),
        (_large_image, "its network has 1,452,832 weights, of which 38,848 bytes cannot be all"),
        (_traversal, "its archive holds '../../"),
        (_bomb, "its archive is compressed"),
        (_deep, "its config.json describes none of our networks"),
        (_pickle, "it is not a .keras archive, or is corrupt or truncated"),
        (_other_weights, "its weights have another SHA-256 than the run recorded"),
    ],
)
def test_loading_refuses_a_hostile_model_even_if_its_digest_is_recorded(
    build: Callable[[bytes, Path], bytes], message: str, recorded: Recorded
) -> None:
    hostile = build((recorded.folder / "data" / "model.keras").read_bytes(), recorded.marker)
    recorded.plant(hostile)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MachineError) as caught:
        recorded.load()
    assert "model.keras has another SHA-256 than the run recorded" in str(caught.value)
    recorded.tag(hostile)
    with pytest.raises(MachineError) as caught:
        recorded.load()
    assert str(caught.value).startswith(f"the model of run {recorded.run_id} is refused: {message}")
    assert "\n" not in str(caught.value)
    assert not recorded.marker.exists()
    # In kB. The bomb would take 300 MB, the array 400 GB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_loading_does_not_read_a_file_far_larger_than_the_model(recorded: Recorded) -> None:
    file = recorded.folder / "data" / "model.keras"
    with file.open("r+b") as opened:
        opened.truncate(8 * 2**30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MachineError, match=r"model.keras holds 8,589,934,592 bytes; at most 1,0"):
        recorded.load()
    file.unlink()
    file.mkdir()
    with pytest.raises(MachineError, match=r"model.keras is not a regular file"):
        recorded.load()
    file.rmdir()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.parametrize(
    ("flavor", "change", "message"),
    [
        ("python_function", {"loader_module": "evil"}, "python_function.loader_module=evil: must be"),
        ("python_function", {"code": "code"}, "python_function.code: unknown key"),
        ("keras", {"data": "../../elsewhere"}, "keras.data=../../elsewhere: must be 'data'"),
        ("keras", {"save_exported_model": True}, "keras.save_exported_model=True: must be False"),
        ("sklearn", {"pickled_model": "model.pkl"}, "sklearn: unknown key"),
    ],
)
def test_loading_refuses_a_description_that_names_code(
    flavor: str, change: dict[str, Any], message: str, recorded: Recorded
) -> None:
    path = recorded.folder / "MLmodel"
    content = yaml.safe_load(path.read_text())
    content["flavors"].setdefault(flavor, {}).update(change)
    path.write_text(yaml.safe_dump(content))
    (recorded.folder / "code").mkdir(exist_ok=True)
    payload = f"open({str(recorded.marker)!r}, 'w').close()\ndef _load_pyfunc(path): pass\n"
    (recorded.folder / "code" / "evil.py").write_text(payload)
    with pytest.raises(MachineError) as caught:
        recorded.load()
    assert f"its MLmodel is not ours: {message}" in str(caught.value)
    assert not recorded.marker.exists()


@pytest.mark.parametrize("text", ["", "flavors: 3", "!!python/object/apply:os.system ['touch marker']", "[" * 600])
def test_loading_refuses_a_corrupt_description(text: str, recorded: Recorded) -> None:
    (recorded.folder / "MLmodel").write_text(text)
    with pytest.raises(MachineError, match="its MLmodel is corrupt or truncated"):
        recorded.load()


def test_loading_refuses_a_model_outside_the_records(recorded: Recorded, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    recorded.folder.rename(elsewhere)
    database = Path(recorded.config.root) / "mlflow.db"
    try:
        with sqlite3.connect(database) as records:
            records.execute("UPDATE logged_models SET artifact_location = ?", (elsewhere.as_uri(),))
        with pytest.raises(MachineError, match="data/model.keras is not in the records, but"):
            recorded.load()
    finally:
        elsewhere.rename(recorded.folder)
        with sqlite3.connect(database) as records:
            records.execute("UPDATE logged_models SET artifact_location = ?", (recorded.folder.as_uri(),))


def test_loading_says_how_to_get_a_digest(recorded: Recorded) -> None:
    tracking.open_store(recorded.config).client.delete_tag(recorded.run_id, "model_sha256")
    with pytest.raises(ConfigError) as caught:
        recorded.load()
    assert f"repeat it: digitcnn reproduce run={recorded.run_id}" in str(caught.value)


def test_loading_gives_the_recorded_model(recorded: Recorded) -> None:
    import keras

    network = recorded.load()
    tags = tracking.open_store(recorded.config).client.get_run(recorded.run_id).data.tags
    assert weights_sha256(network) == tags["weights_sha256"]
    ours = keras.saving.load_model(recorded.folder / "data" / "model.keras")
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    assert np.array_equal(network.predict(images, verbose=0), ours.predict(images, verbose=0))


def test_loading_follows_a_run_to_the_one_that_was_trained(recorded: Recorded, small_config: RunConfig) -> None:
    store = tracking.open_store(recorded.config)
    same = tracking.create_training_run(store, small_config, "same", {})
    tracking.copy_run(store, recorded.run_id, same, "FINISHED")
    found = models.load_recorded_model(store, recorded.config, same)
    assert weights_sha256(found) == weights_sha256(recorded.load())


@pytest.mark.parametrize(
    "config",
    [
        MlpConfig(dense1_units=7, dense2_units=7),
        CnnConfig(
            conv1_filters=2, conv2_filters=3, conv2_pooling=1, batch_normalization=True, dense_units=5, dropout=0.5
        ),
    ],
)
def test_rebuild_restores_a_network_of_any_size(config: ModelConfig, recorded: Recorded, tmp_path: Path) -> None:
    network = build_model(config, 12, 9, 4, seed=3)
    network.save(tmp_path / "saved.keras")
    assert weights_sha256(models.rebuild((tmp_path / "saved.keras").read_bytes(), config)) == weights_sha256(network)
