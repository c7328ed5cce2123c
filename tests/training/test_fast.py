"""The fast engine trains as Keras does from the same weights and batches."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from digitcnn import runner, training
from digitcnn.config import AugmentationConfig, CnnConfig, MlpConfig, RunConfig, TrainingConfig
from digitcnn.training import build_model, draw_transforms, train
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
    from digitcnn.training.engines.fast import FastEngine

    config = TrainingConfig(batch_size=batch_size, learning_rate=rate, threads=1)
    _, height, width = examples.images.shape
    built = build_model(model, height, width, 10, 5)
    return built, FastEngine(built, examples, config), KerasEngine(built, examples, config)


def _assert_trains_as_keras(model: CnnConfig | MlpConfig, examples: Examples, batch_size: int, steps: int = 50) -> None:
    """Losses within 1e-4 relative at every step, weights within 1e-4 after them."""
    built, fast, keras = _engines(model, examples, batch_size, QUIET_RATE)
    random = np.random.default_rng(7)
    for _ in range(steps):
        rows = random.integers(0, len(examples), batch_size)
        loss, accuracy = fast.train_epoch(rows, None)
        expected_loss, expected_accuracy = keras.train_epoch(rows, None)
        assert loss == pytest.approx(expected_loss, rel=1e-4)
        assert accuracy == pytest.approx(expected_accuracy, abs=1.5 / batch_size)
    expected_weights = built.get_weights()
    fast.finish()
    for weight, expected_weight in zip(built.get_weights(), expected_weights, strict=True):
        np.testing.assert_allclose(weight, expected_weight, rtol=0, atol=1e-4)


# Each part of the space: no statistic, mask, edge or missing layer may be another one's.
PARTS = [
    CnnConfig(conv1_filters=8, conv2_filters=8, padding="same", batch_normalization=True, dropout=0.5, dense_units=0),
    CnnConfig(
        **{f"conv{number}_filters": 8 for number in range(1, 5)},
        **{"conv1_pooling": 1, "conv2_pooling": 3, "conv4_pooling": 1},
        dense_units=16,
    ),
]


@pytest.mark.parametrize("batch_size", [1, 250])
def test_fast_trains_the_articles_network_as_keras_does(batch_size: int) -> None:
    _assert_trains_as_keras(CnnConfig(), _examples(), batch_size, steps=20)


@pytest.mark.parametrize("model", PARTS)
def test_fast_trains_each_part_of_the_space_as_keras_does(model: CnnConfig) -> None:
    _assert_trains_as_keras(model, _examples(), 50)


def test_fast_differs_from_keras_as_keras_does_from_itself() -> None:
    """Where rounding is amplified beyond 1e-4, it is not more than an order above what it does to Keras itself.

    Keras repeats the steps from weights that differ in their last bit, and with each batch in another order: on some
    processors one of these alone changes nothing.
    """
    examples = _examples()
    built, fast, keras = _engines(CnnConfig(), examples, 97, 0.001)
    config = TrainingConfig(batch_size=97, learning_rate=0.001, threads=1)
    others = [build_model(CnnConfig(), 28, 28, 10, 5) for _ in range(3)]
    for number, other in enumerate(others[1:]):
        random = np.random.default_rng(number)
        last_bit = [random.choice([-(2**-23), 0, 2**-23], weight.shape) for weight in other.get_weights()]
        other.set_weights([w + w * bit for w, bit in zip(other.get_weights(), last_bit, strict=True)])
    engines = [KerasEngine(other, examples, config) for other in others]
    random = np.random.default_rng(7)
    for _ in range(12):
        rows = random.integers(0, len(examples), 97)
        losses = [fast.train_epoch(rows, None)[0], keras.train_epoch(rows, None)[0]]
        assert losses[0] == pytest.approx(losses[1], rel=1e-2)
        for engine in engines:
            engine.train_epoch(rows[::-1] if engine is engines[0] else rows, None)
    expected = built.get_weights()
    fast.finish()

    def apart(weights: list[Any]) -> float:
        return max(float(np.abs(a - b).max()) for a, b in zip(weights, expected, strict=True))

    assert apart(built.get_weights()) < 10 * max(apart(other.get_weights()) for other in others) + 1e-4


def test_fast_takes_a_batch_larger_than_the_data() -> None:
    _assert_trains_as_keras(
        CnnConfig(conv1_filters=8, conv2_filters=16, dense_units=32), _examples(count=300), 777, steps=15
    )


@pytest.mark.parametrize("last", [250, 117, 2, 1])
def test_fast_trains_in_shares_as_in_one(last: int) -> None:
    """Large batches are cut for the threads, whatever the last one is."""
    from digitcnn.training.engines.fast import FastEngine

    examples, model = _examples(), CnnConfig(conv1_filters=8, conv2_filters=16, dense_units=32)
    rows = np.random.default_rng(1).integers(0, len(examples), 500 + last)
    found = []
    for threads in (1, 2):
        built = build_model(model, 28, 28, 10, 5)
        engine = FastEngine(built, examples, TrainingConfig(batch_size=250, threads=threads, learning_rate=QUIET_RATE))
        sums = engine.train_epoch(rows)
        engine.finish()
        found.append((sums, built.get_weights(), max(parts for _, parts, _ in engine._graphs)))
    (one, weights, whole), (two, shared_weights, cut) = found
    assert (whole, cut) == (1, 2)
    assert one == pytest.approx(two, rel=1e-5)
    for ours, theirs in zip(weights, shared_weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=QUIET_RATE / 100)


@pytest.mark.parametrize(("height", "width", "kernel"), [(27, 25, 3), (14, 15, 2)])
def test_fast_takes_images_with_odd_edges_and_any_number_of_filters(height: int, width: int, kernel: int) -> None:
    model = CnnConfig(conv1_filters=9, conv1_kernel=kernel, conv2_filters=13, conv2_kernel=kernel, dense_units=64)
    _assert_trains_as_keras(model, _examples(height, width), 32)


def test_fast_trains_the_fully_connected_network() -> None:
    _assert_trains_as_keras(MlpConfig(), _examples(), 97)


def test_fast_resolves_ties_as_keras_does() -> None:
    model = CnnConfig(conv1_filters=16, conv2_filters=32, dense_units=64)
    _assert_trains_as_keras(model, _examples(blank=True), 64)


@pytest.mark.parametrize("model", [CnnConfig(), MlpConfig(), *PARTS])
def test_fast_computes_the_first_gradient(model: CnnConfig | MlpConfig) -> None:
    """The momentum after one step is 0.1 of the gradient, which Adam's division has not touched yet."""
    built, fast, keras = _engines(model, _examples(), 250, 0.001)
    fast.train_epoch(np.arange(250), None)
    keras.train_epoch(np.arange(250), None)
    for momentum, expected in zip(fast._kept[0], built.optimizer._momentums, strict=True):
        np.testing.assert_allclose(momentum, expected, rtol=0, atol=5e-3 * np.abs(expected).max())


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer": "adamw", "weight_decay": 0.1},
        {"optimizer": "sgd", "learning_rate": 1e-3, "schedule": "one_cycle"},
        {"schedule": "cosine", "weight_average": 0.9},
    ],
)
def test_fast_updates_augments_and_averages_as_keras_does(values: dict[str, Any]) -> None:
    """Over two epochs: after the first one Keras's fit has been left and entered again."""
    from digitcnn.training.engines.fast import FastEngine

    config = TrainingConfig(**{"batch_size": 50, "threads": 1, "epochs": 2, "learning_rate": QUIET_RATE, **values})
    examples = _examples()
    built = build_model(CnnConfig(conv1_filters=8, conv2_filters=8, dense_units=16), 28, 28, 10, 5)
    initial = built.get_weights()
    fast, keras = FastEngine(built, examples, config, augmented=True), KerasEngine(built, examples, config)
    graphs = set(fast._graphs)
    for epoch in range(2):
        order = np.random.default_rng(epoch).permutation(400)
        moved = draw_transforms(AugmentationConfig(shift=0.1, rotation=20, zoom=0.1), 0, epoch, 400, 28, 28)
        ours, theirs = fast.train_epoch(order, None, moved), keras.train_epoch(order, None, moved)
        assert ours == pytest.approx(theirs, rel=1e-5)
        found, expected = fast.evaluate(examples), keras.evaluate(examples)
        assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    # Of training there was none left to trace in an epoch.
    assert {name for name, *_ in set(fast._graphs) - graphs} == {"_probabilities"}
    expected_weights = built.get_weights()
    fast.finish()
    moves = [np.abs(weight - before).max() for weight, before in zip(expected_weights, initial, strict=True)]
    for weight, expected_weight in zip(built.get_weights(), expected_weights, strict=True):
        np.testing.assert_allclose(weight, expected_weight, rtol=0, atol=0.02 * max(moves))


def test_fast_handles_a_partial_last_batch_and_evaluates() -> None:
    examples = _examples()
    _, fast, keras = _engines(CnnConfig(conv1_filters=8, conv2_filters=16, dense_units=32), examples, 37, QUIET_RATE)
    order = np.random.default_rng(1).permutation(len(examples))
    done: list[float] = []
    loss, accuracy = fast.train_epoch(order, done.append)
    expected_loss, expected_accuracy = keras.train_epoch(order, None)
    assert loss == pytest.approx(expected_loss, rel=1e-4)
    assert accuracy == pytest.approx(expected_accuracy, abs=0.003)
    assert done == sorted(done)
    assert done[-1] == 1.0
    some = Examples(examples.images[:271], examples.labels[:271])
    ours, expected = fast.evaluate(some), keras.evaluate(some)
    assert ours.loss == pytest.approx(expected.loss, rel=1e-4)
    assert ours.accuracy == pytest.approx(expected.accuracy, abs=0.004)
    assert ours.predictions.shape == (271,)
    assert ours.probabilities == pytest.approx(expected.probabilities, abs=1e-3)


def _after_twenty_steps(kind: Any, layer: str, arguments: dict[str, Any]) -> tuple[list[Any], list[float]]:
    """The weights and the losses of a network that holds a layer, trained by an engine for 20 steps of 50 images."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(3)
    stack = [layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(32), getattr(layers, layer)(**arguments)]
    ends = [layers.ReLU(), layers.Dense(10, activation="softmax")]
    model = keras.Sequential([keras.Input((28, 28), dtype="uint8"), *stack, *ends])
    engine = kind(model, _examples(), TrainingConfig(batch_size=50, learning_rate=QUIET_RATE, threads=1))
    losses = [engine.train_epoch(np.arange(start, start + 50))[0] for start in [*range(0, 400, 50)] * 3][:20]
    engine.finish()
    return model.get_weights(), losses


@pytest.mark.parametrize(
    ("layer", "arguments"),
    [
        ("BatchNormalization", {}),
        ("Dropout", {"rate": 0.5}),
        ("LayerNormalization", {}),
        ("Dense", {"units": 16, "kernel_regularizer": "l2"}),
    ],
)
def test_fast_trains_any_layer_as_keras_does(layer: str, arguments: dict[str, Any]) -> None:
    """With the same statistics of batch normalization, masks of dropout and penalties of a regularizer."""
    from digitcnn.training.engines.fast import FastEngine

    ours, our_losses = _after_twenty_steps(FastEngine, layer, arguments)
    theirs, their_losses = _after_twenty_steps(KerasEngine, layer, arguments)
    if "kernel_regularizer" not in arguments:
        # Keras's fit counts the penalty as a part of the loss that it reports.
        assert our_losses == pytest.approx(their_losses, rel=1e-4)
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our, their, rtol=0, atol=1e-4)


def _outputs_and_gradients(model: Any, examples: Examples) -> list[Any]:
    import keras
    import tensorflow as tf

    with tf.GradientTape() as tape:
        outputs = model(examples.images, training=True)
        loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(examples.labels, outputs))
    return [outputs.numpy(), *(gradient.numpy() for gradient in tape.gradient(loss, model.trainable_weights))]


@pytest.mark.parametrize("batch_normalization", [False, True])
def test_rewriting_changes_no_bit_of_outputs_and_gradients(batch_normalization: bool) -> None:
    from digitcnn.training.engines.rewriting import rewrite_for_training

    examples = _examples(blank=True)
    config = CnnConfig(conv1_filters=8, conv2_filters=16, dense_units=32, batch_normalization=batch_normalization)
    model = build_model(config, 28, 28, 10, 5)
    rewritten = rewrite_for_training(model, "float32")
    rewritten.set_weights(model.get_weights())
    kinds = [type(layer).__name__ for layer in rewritten.layers]
    assert kinds.count("ReLU") == 2
    assert all(kinds[index - 1] == "MaxPooling2D" for index, kind in enumerate(kinds) if kind == "ReLU")
    found = [_outputs_and_gradients(each, examples) for each in (model, rewritten)]
    for ours, theirs in zip(*found, strict=True):
        assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "pooling", [{}, {"pool_size": 3, "strides": 2}, {"pool_size": 3, "strides": 1, "padding": "same"}]
)
def test_pooled_convolution_changes_no_bit_but_of_the_bias(precision: Any, pooling: dict[str, Any]) -> None:
    """Nor is the bias's gradient, a sum in another order, further from float32's than bfloat16 makes it."""
    import keras

    from digitcnn.training.engines.pooling import PooledConvolution
    from digitcnn.training.engines.rewriting import rewrite_for_training

    keras.utils.set_random_seed(3)
    examples = _examples(blank=True)
    stack: list[Any] = [keras.Input((28, 28), dtype="uint8"), keras.layers.Rescaling(1 / 255)]
    stack.append(keras.layers.Reshape((28, 28, 1)))
    for filters in (8, 16):
        stack.append(keras.layers.Conv2D(filters, 3, activation="relu", bias_initializer="random_normal"))
        stack.append(keras.layers.MaxPooling2D(**pooling))
    model = keras.Sequential([*stack, keras.layers.Flatten(), keras.layers.Dense(10, "softmax")])
    three, one = rewrite_for_training(model, precision), rewrite_for_training(model, precision, PooledConvolution)
    assert len(one.layers) == len(three.layers) - 4
    for each in (three, one):
        each.set_weights(model.get_weights())
    exact, theirs, ours = (_outputs_and_gradients(each, examples) for each in (model, three, one))
    for number, (our, their, right) in enumerate(zip(ours, theirs, exact, strict=True)):
        if number in (2, 4):
            atol = {"float32": 1e-4, "bfloat16": 0.05}[precision] * np.abs(right).max()
            np.testing.assert_allclose(our, right, rtol=0, atol=atol)
        else:
            assert our.tobytes() == their.tobytes()


_LAYERS = {"model.conv3_filters": 8, "model.padding": "same", "model.batch_normalization": True, "model.dropout": 0.25}
_UPDATES = {"training.optimizer": "adamw", "training.schedule": "one_cycle", "training.weight_average": 0.9}
_IMAGES = {"augmentation.shift": 0.08, "augmentation.rotation": 10.0, "augmentation.zoom": 0.1}


@pytest.mark.parametrize("engine", ["fast", "keras"])
@pytest.mark.parametrize(
    "parts",
    [{}, _LAYERS | {"training.optimizer": "sgd", "training.schedule": "cosine"}, _UPDATES | _IMAGES],
    ids=["the article's", "layers and sgd", "adamw and images"],
)
def test_bfloat16_repeats_its_bits_learns_as_float32_and_saves_float32(
    small_config: RunConfig, engine: str, parts: dict[str, Any]
) -> None:
    small_config = small_config.replace(parts)
    splits = runner.check_run(small_config)
    results = []
    for precision in ("bfloat16", "bfloat16", "float32"):
        config = small_config.replace(
            {"training.engine": engine, "training.precision": precision, "training.epochs": 4}
        )
        model = build_model(config.model, *splits.image_shape, splits.classes, 0)
        results.append(result_of(train(model, splits, config)))
        assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
        assert {weight.dtype for weight in model.get_weights()} == {np.dtype("float32")}
        # Judged as it is saved.
        probabilities = model.predict(splits.validation.images, verbose=0)
        np.testing.assert_allclose(probabilities.max(1), results[-1].final.probabilities, rtol=1e-5)
    once, again, float32 = results
    assert once.weights_sha256 == again.weights_sha256 != float32.weights_sha256
    losses = [[epoch.train_loss for epoch in result.epochs] for result in (once, float32)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_train_says_which_engine_trained_and_keeps_the_layers(small_config: RunConfig) -> None:
    splits = runner.check_run(small_config)
    for engine in ("fast", "keras"):
        config = small_config.replace({"training.engine": engine})
        model = build_model(config.model, *splits.image_shape, splits.classes, 0)
        result = result_of(train(model, splits, config))
        assert result.engine == engine
        # The weights that are saved are those that were judged last.
        probabilities = model.predict(splits.validation.images, verbose=0)
        assert (probabilities.argmax(1) == splits.validation.labels).mean() == result.epochs[-1].validation_accuracy
        assert {type(layer).__module__.partition(".")[0] for layer in model.layers} == {"keras"}


def test_train_calls_progress_between_short_calls(small_config: RunConfig) -> None:
    splits = runner.check_run(small_config)
    model = build_model(small_config.model, *splits.image_shape, splits.classes, 0)
    told: list[tuple[int, float]] = []
    result_of(train(model, splits, small_config, lambda epoch, fraction: told.append((epoch, fraction))))
    assert told == sorted(told)
    assert [fraction for _, fraction in told].count(1.0) == small_config.training.epochs


def test_fused_normalization_is_as_near_to_float32_as_kerass() -> None:
    """Its outputs, gradients and averages; and it is Keras's own where the values are not bfloat16."""
    import keras

    from digitcnn.training.engines.normalization import FusedNormalization
    from digitcnn.training.engines.rewriting import rewrite_for_training

    examples = _examples(blank=True)
    config = CnnConfig(conv1_filters=8, conv2_filters=16, dense_units=32, batch_normalization=True)
    model = build_model(config, 28, 28, 10, 5)
    found: dict[tuple[Any, Any], list[Any]] = {}
    kinds = keras.layers.BatchNormalization, FusedNormalization
    for precision, kind in itertools.product(("float32", "bfloat16"), kinds):
        network = rewrite_for_training(model, precision, None, kind)
        network.set_weights(model.get_weights())
        values = [*_outputs_and_gradients(network, examples), *(v.numpy() for v in network.non_trainable_weights)]
        found[precision, kind] = [value.astype(np.float32) for value in values]
    fused = False
    for exact, kept, theirs, ours in zip(*found.values(), strict=True):
        assert exact.tobytes() == kept.tobytes()
        fused = fused or ours.tobytes() != theirs.tobytes()
        np.testing.assert_allclose(ours, exact, rtol=0, atol=1.5 * float(np.abs(theirs - exact).max()) + 1e-5)
    assert fused
