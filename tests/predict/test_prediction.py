"""Predicting: the command as a person runs it, 500 pictures of digits, and the champion behind MLflow's server."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from digitcnn import runner, tracking
from digitcnn.config import PredictConfig, RunConfig, StudyReference, TrackingConfig, load_config
from digitcnn.errors import ConfigError
from digitcnn.predict import models, predict, prediction_in_words, predictions_as_json, predictions_as_table
from digitcnn.predict.prediction import Prediction
from tests.conftest import REPOSITORY, Command
from tests.support.planted import plant
from tests.support.servers import free_port

# Only run=best asks for it.
STUDY = StudyReference(name="none")
Champion = tuple[TrackingConfig, str]
Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def mnist() -> tuple[Pixels, NDArray[np.uint8]]:
    """The test images of MNIST, and what they are."""
    with np.load(REPOSITORY / "digitcnn" / "datasets" / "mnist.npz") as arrays:
        return arrays["x_test"], arrays["y_test"]


def _draw(digit: Pixels, place: Path) -> None:
    Image.fromarray(255 - digit).resize((150, 150)).save(place)


def test_predict_classifies_usable_pictures_and_names_the_others(
    command: Command, champion: Champion, mnist: tuple[Pixels, Pixels], tmp_path: Path
) -> None:
    config, run_id = champion
    store = tracking.open_store(config)
    before = len(store.client.search_runs([store.experiment_id]))
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    names = ["a, 'b' = \"c\".png", "100% ${oc.env:HOME} é.png", "trailing\\", "seven.png"]
    for name, digit in zip(names, mnist[0][:4], strict=True):
        Image.fromarray(255 - digit).resize((150, 150)).save(folder / name, "PNG")
    (folder / "letter\x1b[31m.png").write_text("Dear all")
    words = ["missing.png", f"image={names[0]}", *names[1:], "letter\x1b[31m.png", "show=true", "format=json"]
    here = (f"tracking.root={config.root}", f"run={run_id[:10]}")
    ended = command("predict", *words, *here, variables=plant(tmp_path / "planted"))
    assert ended.returncode == 1, ended.stdout + ended.stderr
    said = [line for line in ended.stderr.splitlines() if not line.startswith("starting ")]
    assert said == [
        "error: missing.png: cannot be read: No such file or directory",
        "error: letter\\x1b[31m.png: is not a picture; must be one of PNG, JPEG, BMP, GIF, TIFF, WEBP",
    ]
    found = json.loads(ended.stdout)
    assert [each["image"] for each in found] == names
    seen = np.stack([np.asarray(Image.open(each["seen"])) for each in found])
    expected = models.load_recorded_model(store, config, run_id).predict(seen, verbose=0)
    assert [each["predicted"] for each in found] == expected.argmax(axis=1).tolist()
    assert np.array([each["probabilities"] for each in found]) == pytest.approx(expected, abs=1e-5)
    assert [each["unsure"] for each in found] == [bool(row.max() < 0.8) for row in expected]
    assert [each["probability"] for each in found] == pytest.approx(expected.max(axis=1).tolist(), abs=1e-5)
    assert [each["runner_up"] for each in found] == expected.argsort(axis=1)[:, -2].tolist()
    reports = Path(config.root) / "reports" / "predictions"
    assert {Path(each["seen"]) for each in found} == {reports / f"{name}.seen.png" for name in names}
    assert {path.name for path in folder.iterdir()} == {*names, "letter\x1b[31m.png"}
    # Nothing is recorded.
    assert len(store.client.search_runs([store.experiment_id])) == before


def test_predict_without_a_picture_or_a_model_is_one_line(command: Command, champion: Champion, tmp_path: Path) -> None:
    ended = command("predict", f"tracking.root={tmp_path}/records")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: image: names no picture; digitcnn predict FILE...\n"
    here, nowhere = champion[0].root, str(tmp_path / "records")
    for root, run, line in (
        (nowhere, "champion", "run=champion: nothing is recorded in"),
        (here, "ffffffff", "run=ffffffff: no such run is recorded"),
        (here, "best", "study.name=none: no such study is recorded in"),
        (here, "1", "run=1: must be champion, best with study=NAME, a run id"),
        (
            here,
            "x.yaml",
            "run=x.yaml: a manifest holds no model; digitcnn reproduce run=x.yaml makes",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            predict(PredictConfig(image=["x.png"], run=run, study=STUDY, tracking=TrackingConfig(root=root)))
        assert str(caught.value).startswith(line)
    assert not Path(nowhere).exists()


def test_predict_never_writes_over_a_picture(champion: Champion, mnist: tuple[Pixels, Pixels], tmp_path: Path) -> None:
    config, _ = champion
    reports = Path(config.root) / "reports" / "predictions"
    reports.mkdir(parents=True, exist_ok=True)
    own, other, third = reports / "7.png.seen.png", tmp_path / "7.png", tmp_path / "below" / "7.png"
    third.parent.mkdir()
    for place in (own, other, third):
        _draw(mnist[0][0], place)
    before = own.read_bytes()
    images = [str(own), str(other), str(third)]
    found = predict(PredictConfig(image=images, show=True, study=STUDY, tracking=config))
    assert own.read_bytes() == before
    assert [Path(str(each.seen)).name for each in found] == [
        *("7.png.seen.png.seen.png", "7.png.2.seen.png", "7.png.3.seen.png")
    ]


def test_predictions_say_the_same_in_every_format() -> None:
    found = [
        Prediction('a "b", c.png', 7, 0.9876, 1, 0.0101, False, None, (0.0023, 0.0101, 0.9876)),
        Prediction("d.png", 2, 0.5, 3, 0.25, True, "seen/d.png", (0.25, 0.5, 0.25)),
    ]
    assert json.loads(predictions_as_json(found)) == [
        vars(each) | {"probabilities": list(each.probabilities)} for each in found
    ]
    rows = list(csv.DictReader(io.StringIO(predictions_as_table(found).to_csv(index=False))))
    assert rows[0]["image"] == 'a "b", c.png'
    assert [float(row["probability"]) for row in rows] == [0.9876, 0.5]
    assert [row["unsure"] for row in rows] == ["False", "True"]
    assert prediction_in_words(found[0]) == 'a "b", c.png: 7 (98.8 %), runner-up 1 (1.0 %)'
    assert prediction_in_words(found[1]) == (
        "d.png: 2 (50.0 %, unsure), runner-up 3 (25.0 %); the model saw seen/d.png"
    )
    assert json.loads(predictions_as_json([])) == []


def _picture(digit: Pixels, generator: np.random.Generator) -> Image.Image:
    """A digit 40 to 140 pixels long, anywhere in a picture of 200 x 160, dark on light or light on dark."""
    rows, columns = np.nonzero(digit)
    cut = Image.fromarray(digit[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1])
    scale = int(generator.integers(40, 141)) / max(cut.size)
    cut = cut.resize((max(round(cut.width * scale), 1), max(round(cut.height * scale), 1)), Image.Resampling.BICUBIC)
    page = Image.new("L", (200, 160), 0)
    page.paste(cut, (int(generator.integers(201 - cut.width)), int(generator.integers(161 - cut.height))))
    return page if generator.random() < 0.5 else Image.fromarray(255 - np.asarray(page))


def test_predict_reads_over_97_of_100_redrawn_digits_right(
    mnist: tuple[Pixels, Pixels], tmp_path: Path, messages: list[str]
) -> None:
    """Given a champion that has seen MNIST once, and the first 500 test images, shifted, scaled and inverted."""
    config = load_config(
        RunConfig,
        {
            "data": {"validation": "test_once"},
            "model": {"name": "cnn", "conv1_filters": 16, "conv2_filters": 32, "dense_units": 64},
            "training": {"epochs": 1, "batch_size": 100, "learning_rate": 0.003, "threads": 1},
            "tracking": {"root": str(tmp_path / "records")},
        },
    )
    run_id = runner.record_run(config, tags={}).run_id
    tracking.register_champion(tracking.open_store(config.tracking), run_id, {}, "")
    generator = np.random.default_rng(0)
    images, labels = (array[:500] for array in mnist)
    places = [tmp_path / f"{index}.png" for index in range(500)]
    for image, place in zip(images, places, strict=True):
        _picture(image, generator).save(place)
    wanted = PredictConfig(image=[str(place) for place in places], study=STUDY, tracking=config.tracking)
    found = predict(wanted)
    assert messages == []
    right = np.mean([each.predicted for each in found] == labels)
    assert right > 0.97, f"{100 * right:.1f} % right"


@contextlib.contextmanager
def _served(config: TrackingConfig, home: Path) -> Iterator[str]:
    """The address of the champion's server, which runs while the body does, with other settings of Keras."""
    port = free_port()
    home.mkdir()
    (home / "keras.json").write_text('{"image_data_format": "channels_first", "floatx": "float64", "epsilon": 0.1}')
    scripts = Path(sys.executable).parent
    process = subprocess.Popen(
        [
            *(str(scripts / "mlflow"), "models", "serve", "-m", "models:/digitcnn@champion", "--env-manager", "local"),
            *("--host", "127.0.0.1", "--port", str(port)),
        ],
        env=os.environ
        | {"MLFLOW_TRACKING_URI": config.store_uri, "PATH": f"{scripts}:{os.environ['PATH']}"}
        | {"KERAS_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5):
                break
            assert process.poll() is None
            time.sleep(0.25)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


# What README says, but for the port.
CALL = (
    "import json, sys, numpy, PIL.Image; "
    "print(json.dumps({'instances': [numpy.asarray(PIL.Image.open(name)).tolist() for name in sys.argv[1:]]}))"
)


def test_predict_answers_as_the_served_champion_does(
    champion: Champion, mnist: tuple[Pixels, Pixels], tmp_path: Path
) -> None:
    config, run_id = champion
    for index in range(2):
        _draw(mnist[0][index], tmp_path / f"{index}.png")
    images = [str(tmp_path / f"{index}.png") for index in range(2)]
    found = predict(PredictConfig(image=images, show=True, study=STUDY, tracking=config))
    seen = [str(each.seen) for each in found]
    body = subprocess.run([sys.executable, "-c", CALL, *seen], capture_output=True, text=True, check=True).stdout
    with _served(config, tmp_path / "home") as address:
        curl = shutil.which("curl")
        if curl is not None:
            call = [curl, "-s", "-H", "Content-Type: application/json", "-d", "@-", f"{address}/invocations"]
            text = subprocess.run(call, input=body, capture_output=True, text=True, check=True, timeout=60).stdout
        else:
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(f"{address}/invocations", body.encode(), headers)
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
    served = np.array(json.loads(text)["predictions"])
    model = models.load_recorded_model(tracking.open_store(config), config, run_id)
    own = model.predict(np.stack([np.asarray(Image.open(name)) for name in seen]), verbose=0)
    assert served == pytest.approx(own, abs=1e-5)
    assert served.argmax(axis=1).tolist() == [each.predicted for each in found]
