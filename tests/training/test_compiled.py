"""The compiled engine trains as Keras does from the same weights and batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from digitcnn import runner, training
from digitcnn.config import CnnConfig, MlpConfig, RunConfig, TrainingConfig
from digitcnn.errors import ConfigError
from digitcnn.training import build_model, make_engine, train
from digitcnn.training.engines.reference import KerasEngine
from digitcnn.values import Examples
from tests.support.trainers import result_of

# Adam divides by the gradient's own size, so that rounding in a gradient near zero moves a weight by the whole learning
# rate: at 0.001 Keras differs from itself by up to 3e-3 in a weight after 50 steps when the images of each batch of 250
# are put in another order. At this rate that noise stays below the tolerances.
QUIET_RATE = 1e-5


@pytest.fixture(autouse=True, scope="module")
def _keras() -> None:
    training.import_keras(1)


def _examples(height: int = 28, width: int = 28, count: int = 400, blank: bool = False) -> Examples:
    """Random pixels on a zero background; `blank` zeroes half of each image and all of every second one."""
    random = np.random.default_rng(3)
    images = random.integers(0, 256, (count, height, width)) * (random.random((count, height, width)) < 0.3)
    if blank:
        images[:, :, width // 2 :] = 0
        images[::2] = 0
    return Examples(images.astype(np.uint8), random.integers(0, 10, count))


def _engines(
    model: CnnConfig | MlpConfig, examples: Examples, batch_size: int, rate: float
) -> tuple[Any, Any, KerasEngine]:
    """A Keras model with one engine of each kind that starts from its weights."""
    from digitcnn.training.engines.compiled import CompiledEngine

    config = TrainingConfig(batch_size=batch_size, learning_rate=rate, threads=1)
    _, height, width = examples.images.shape
    built = build_model(model, height, width, 10, 5)
    return built, CompiledEngine(built, examples, config), KerasEngine(built, examples, config)


def _assert_trains_as_keras(
    model: CnnConfig | MlpConfig, examples: Examples, batch_size: int, steps: int = 50, rate: float = QUIET_RATE
) -> None:
    """Losses within 1e-4 relative at every step, weights within 1e-4 after them."""
    built, compiled, keras = _engines(model, examples, batch_size, rate)
    random = np.random.default_rng(7)
    for _ in range(steps):
        rows = random.integers(0, len(examples), batch_size)
        loss, accuracy = compiled.train_epoch(rows, None)
        expected_loss, expected_accuracy = keras.train_epoch(rows, None)
        assert loss == pytest.approx(expected_loss, rel=1e-4)
        assert accuracy == pytest.approx(expected_accuracy, abs=1.5 / batch_size)
    expected_weights = built.get_weights()
    compiled.finish()
    for weight, expected_weight in zip(built.get_weights(), expected_weights, strict=True):
        np.testing.assert_allclose(weight, expected_weight, rtol=0, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 7, 97, 250])
def test_compiled_trains_the_articles_network_as_keras_does(batch_size: int) -> None:
    _assert_trains_as_keras(CnnConfig(), _examples(), batch_size)


def test_compiled_differs_from_keras_as_keras_does_from_itself() -> None:
    """Where rounding is amplified beyond 1e-4, it is not more than an order above what it does to Keras itself.

    Keras repeats the steps from weights that differ in their last bit, and with each batch in another order: on some
    processors one of these alone changes nothing.
    """
    examples = _examples()
    built, compiled, keras = _engines(CnnConfig(), examples, 97, 0.001)
    config = TrainingConfig(batch_size=97, learning_rate=0.001, threads=1)
    others = [build_model(CnnConfig(), 28, 28, 10, 5) for _ in range(3)]
    for number, other in enumerate(others[1:]):
        random = np.random.default_rng(number)
        last_bit = [random.choice([-(2**-23), 0, 2**-23], weight.shape) for weight in other.get_weights()]
        other.set_weights([w + w * bit for w, bit in zip(other.get_weights(), last_bit, strict=True)])
    engines = [KerasEngine(other, examples, config) for other in others]
    random = np.random.default_rng(7)
    for _ in range(20):
        rows = random.integers(0, len(examples), 97)
        losses = [compiled.train_epoch(rows, None)[0], keras.train_epoch(rows, None)[0]]
        assert losses[0] == pytest.approx(losses[1], rel=1e-2)
        for engine in engines:
            engine.train_epoch(rows[::-1] if engine is engines[0] else rows, None)
    expected = built.get_weights()
    compiled.finish()

    def apart(weights: list[Any]) -> float:
        return max(float(np.abs(a - b).max()) for a, b in zip(weights, expected, strict=True))

    assert apart(built.get_weights()) < 10 * max(apart(other.get_weights()) for other in others) + 1e-4


def test_compiled_takes_a_batch_larger_than_the_data_and_a_chunk() -> None:
    _assert_trains_as_keras(
        CnnConfig(conv1_filters=8, conv2_filters=16, dense_units=32), _examples(count=300), 777, steps=15
    )


@pytest.mark.parametrize(("first", "second"), [(8, 8), (9, 13), (31, 128), (128, 65)])
def test_compiled_takes_any_number_of_filters(first: int, second: int) -> None:
    model = CnnConfig(conv1_filters=first, conv2_filters=second, dense_units=64)
    _assert_trains_as_keras(model, _examples(), 32)


@pytest.mark.parametrize(("height", "width"), [(27, 25), (23, 28), (14, 15)])
def test_compiled_takes_images_with_odd_edges(height: int, width: int) -> None:
    model = CnnConfig(conv1_filters=8, conv2_filters=16, dense_units=64)
    _assert_trains_as_keras(model, _examples(height, width), 32)


@pytest.mark.parametrize("kernel", [1, 2, 5])
def test_compiled_takes_other_kernels(kernel: int) -> None:
    model = CnnConfig(conv1_filters=8, conv1_kernel=kernel, conv2_filters=16, conv2_kernel=kernel, dense_units=64)
    _assert_trains_as_keras(model, _examples(), 32)


def test_compiled_trains_the_fully_connected_network() -> None:
    _assert_trains_as_keras(MlpConfig(), _examples(), 97)
    _assert_trains_as_keras(MlpConfig(), _examples(), 97, rate=0.001)


def test_compiled_resolves_ties_as_keras_does() -> None:
    model = CnnConfig(conv1_filters=16, conv2_filters=32, dense_units=64)
    _assert_trains_as_keras(model, _examples(blank=True), 64)


@pytest.mark.parametrize("model", [CnnConfig(), MlpConfig()])
def test_compiled_computes_the_first_gradient(model: CnnConfig | MlpConfig) -> None:
    """The momentum after one step is 0.1 of the gradient, which Adam's division has not touched yet."""
    built, compiled, keras = _engines(model, _examples(), 250, 0.001)
    compiled.train_epoch(np.arange(250), None)
    keras.train_epoch(np.arange(250), None)
    for momentum, expected in zip(compiled._state[1], built.optimizer._momentums, strict=True):
        np.testing.assert_allclose(momentum, expected, rtol=0, atol=5e-3 * np.abs(expected).max())


def test_compiled_handles_a_partial_last_batch_and_evaluates() -> None:
    examples = _examples()
    _, compiled, keras = _engines(
        CnnConfig(conv1_filters=8, conv2_filters=16, dense_units=32), examples, 37, QUIET_RATE
    )
    order = np.random.default_rng(1).permutation(len(examples))
    done: list[float] = []
    loss, accuracy = compiled.train_epoch(order, done.append)
    expected_loss, expected_accuracy = keras.train_epoch(order, None)
    assert loss == pytest.approx(expected_loss, rel=1e-4)
    assert accuracy == pytest.approx(expected_accuracy, abs=0.003)
    assert done == sorted(done)
    assert done[-1] == 1.0
    some = Examples(examples.images[:271], examples.labels[:271])
    ours, expected = compiled.evaluate(some), keras.evaluate(some)
    assert ours.loss == pytest.approx(expected.loss, rel=1e-4)
    assert ours.accuracy == pytest.approx(expected.accuracy, abs=0.004)
    assert ours.predictions.shape == (271,)
    assert ours.probabilities == pytest.approx(expected.probabilities, abs=1e-3)


def _unsupported(change: Callable[[Any], Any]) -> Any:
    import keras
    from keras import layers

    ends = [layers.MaxPooling2D(2), layers.Flatten(), layers.Dense(10, activation="softmax")]
    return keras.Sequential([keras.Input((28, 28)), layers.Reshape((28, 28, 1)), change(layers), *ends])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda layers: layers.Conv2D(4, 3, padding="same", activation="relu"), "padding"),
        (lambda layers: layers.Conv2D(4, 3, strides=2, activation="relu"), "strides"),
        (lambda layers: layers.Conv2D(4, 3, activation="tanh"), "activation"),
        (lambda layers: layers.Conv2D(4, 3, activation="relu", kernel_regularizer="l2"), "regularizer"),
        (lambda layers: layers.Dropout(0.5), "dropout"),
    ],
)
def test_make_engine_says_why_a_model_cannot_be_compiled(change: Callable[[Any], Any], reason: str) -> None:
    model, examples = _unsupported(change), _examples()
    with pytest.raises(ConfigError, match=f"training.engine=compiled: cannot train this model: .*{reason}"):
        make_engine(model, examples, TrainingConfig(engine="compiled"))
    chosen = make_engine(model, examples, TrainingConfig(engine="auto"))
    assert chosen.name.startswith("keras (")
    assert reason in chosen.name


def test_train_says_which_engine_trained_and_keeps_the_layers(small_config: RunConfig) -> None:
    splits = runner.check_run(small_config)
    for engine, name in (("auto", "compiled"), ("compiled", "compiled"), ("keras", "keras")):
        config = small_config.replace({"training.engine": engine})
        model = build_model(config.model, *splits.image_shape, splits.classes, 0)
        result = result_of(train(model, splits, config.training))
        assert result.engine == name
        # The weights that are saved are those that were judged last.
        probabilities = model.predict(splits.validation.images, verbose=0)
        accuracy = (probabilities.argmax(1) == splits.validation.labels).mean()
        assert accuracy == pytest.approx(result.epochs[-1].validation_accuracy, abs=0.011)
        assert {type(layer).__module__.partition(".")[0] for layer in model.layers} == {"keras"}
