"""Data: the packaged MNIST or any npz file in its layout, verified and split. numpy only."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digitcnn.config import DataConfig
from digitcnn.errors import ConfigError, MachineError
from digitcnn.training.data.npz import read_npz
from digitcnn.values import Examples, Splits, sha256_of_arrays

# SHA-256 of each array's raw bytes, as published with the data set's card.
MNIST_SHA256 = {
    "x_train": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
    "y_train": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
    "x_test": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
    "y_test": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
}
PACKAGED_NAME = "mnist"
_PACKAGED = Path(str(files("digitcnn"))) / "datasets" / "mnist.npz"
_MAX_CLASSES = 1000
# Images of 0 to 1 or, as scikit-learn's digits, of 0 to 16.
_MAX_DARK = 16
# The arrays of data sets that came from another machine instead of a file, by path.
_provided: dict[str, Mapping[str, NDArray[Any]]] = {}


def read_arrays(config: DataConfig) -> dict[str, NDArray[Any]]:
    """Return the arrays that `load_splits` reads of a data set, by name; none of the packaged one. Raises as it does.

    Another machine has no such file: with `provide_arrays` it reads them as if it had.
    """
    if config.path == PACKAGED_NAME:
        return {}
    parts = ("train",) if config.validation == "holdout" else ("train", "test")
    with _naming_path(config):
        return read_npz(Path(config.path), [f"{kind}_{part}" for part in parts for kind in "xy"])


def provide_arrays(path: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Let `load_splits` take arrays as those of the file at a path, which this machine need not have."""
    if arrays:
        _provided[path] = arrays


def load_splits(config: DataConfig) -> Splits:
    """Return the training and validation examples of a config.

    With `validation: holdout` the test arrays are not read. The images are put into one seeded order in which every
    beginning holds each class in proportion: the holdout is the first `validation_size` of it and a subset the next
    `train_size`, so that smaller subsets lie within larger ones and all share one holdout. Raises ConfigError for a
    file or sizes that cannot be used.
    """
    everything, classes, digests = _read(config, "train")
    order = np.random.default_rng(config.split_seed).permutation(len(everything))
    held_out = config.validation_size if config.validation == "holdout" else 0
    if held_out >= len(everything):
        raise ConfigError(
            f"data.validation_size={held_out}: must be below the {len(everything)} training images of data.path"
        )
    left = len(everything) - held_out
    if config.train_size is not None and config.train_size > left:
        raise ConfigError(f"data.train_size={config.train_size}: must be at most {left}, what validation leaves")
    split = bool(held_out or config.train_size)
    if split:
        order = order[_in_proportion(everything.labels[order])]
    if config.validation == "holdout":
        validation = _take(everything, order[:held_out])
    else:
        validation, test_classes, test_digests = _read(config, "test")
        digests |= test_digests
        shapes = [examples.images.shape[1:] for examples in (everything, validation)]
        if shapes[0] != shapes[1]:
            raise ConfigError(
                f"data.path={config.path}: training images are {shapes[0]}, test images {shapes[1]} pixels"
            )
        if test_classes > classes:
            raise ConfigError(
                f"data.path={config.path}: y_test has labels to {test_classes - 1}, y_train only to {classes - 1}"
            )
    train = _take(everything, order[held_out : held_out + (config.train_size or left)])
    # Splits that an earlier version drew without regard to the classes were others.
    marked = [digests[name] for name in sorted(digests)] + ["in proportion"] * split
    return Splits(
        name=Path(config.path).name.removesuffix(".npz"),
        path=str(_PACKAGED) if config.path == PACKAGED_NAME else config.path,
        train=train,
        validation=validation,
        classes=classes,
        sha256=hashlib.sha256("".join(marked).encode()).hexdigest(),
        final_test_only=config.validation == "test_once",
        doubts=(
            *_absent(train, validation, classes),
            *(() if config.path == PACKAGED_NAME else _doubts(train, validation)),
        ),
    )


def _in_proportion(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return an order in which every beginning holds each class in proportion, to an image; otherwise as they are."""
    by_class = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    place = np.empty(len(labels))
    place[by_class] = np.arange(len(labels)) - (counts.cumsum() - counts)[labels[by_class]]
    return np.argsort((place + 0.5) / counts[labels], kind="stable")


def _absent(train: Examples, validation: Examples, classes: int) -> Iterator[str]:
    """Yield which classes are absent from the images of a side."""
    for examples, part in ((train, "to train on"), (validation, "to judge by")):
        absent = np.setdiff1d(np.arange(classes), examples.labels)
        if len(absent):
            yield f"none of the images {part} is of class {_ranges(absent)}"


def _doubts(train: Examples, validation: Examples) -> Iterator[str]:
    """Yield whether images are on both sides, and whether they are dark on white."""
    known = {hashlib.sha256(image).digest() for image in train.images}
    twice = sum(hashlib.sha256(image).digest() in known for image in validation.images)
    if twice:
        yield f"{twice:,} of the {len(validation):,} images to judge by are among those to train on"
    if np.median(train.images[:, [0, -1]]) > 127:
        yield "the images are dark on light; MNIST's, and those that predict makes, are light on black: 255 - x"


def _ranges(numbers: NDArray[np.int64]) -> str:
    """Return whole numbers in words, `3, 7 to 9`, of many the first."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    return ", ".join(texts[:5]) + (f" and {len(texts) - 5} more" if len(texts) > 5 else "")


def _take(examples: Examples, order: NDArray[np.int64]) -> Examples:
    return Examples(examples.images[order], examples.labels[order])


def _read(config: DataConfig, part: str) -> tuple[Examples, int, dict[str, str]]:
    """Return one part (`train` or `test`) of the data set, its number of classes, and its arrays' SHA-256 by name."""
    packaged = config.path == PACKAGED_NAME
    names = [f"x_{part}", f"y_{part}"]
    provided = _provided.get(config.path)
    with _naming_path(config):
        if provided is None:
            arrays = read_npz(_PACKAGED if packaged else Path(config.path), names)
        else:
            arrays = {name: provided[name] for name in names}
        images, labels = arrays.values()
        if not packaged:
            _check_images(images, part)
            _check_labels(len(images), labels, part)
    digests = {name: sha256_of_arrays(array) for name, array in arrays.items()}
    for name in digests if packaged else ():
        if digests[name] != MNIST_SHA256[name]:
            raise MachineError(f"the packaged MNIST is damaged: {name} has another SHA-256; install digitcnn again")
    # Files may hold them in Fortran's order; the bytes of each image are compared.
    return Examples(np.ascontiguousarray(images), labels.astype(np.int64)), int(labels.max()) + 1, digests


@contextlib.contextmanager
def _naming_path(config: DataConfig) -> Iterator[None]:
    """Raise the errors of reading a data set with its path."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"data.path={config.path}: {error}") from None
    except OSError as error:
        raise MachineError(f"data.path={config.path}: cannot be read: {error.strerror}") from None


def _check_images(images: NDArray[np.uint8], part: str) -> None:
    """Raise ConfigError, without the path, if images show nothing, or are not 0 to 255."""
    lowest, highest = int(images.min()), int(images.max())
    if lowest == highest:
        raise ConfigError(f"all pixels of x_{part} are {lowest}")
    if highest <= _MAX_DARK:
        right = f'(x_{part} * (255 / {highest})).round().astype("uint8")'
        raise ConfigError(f"the brightest pixel of x_{part} is {highest}; images are 0 to 255: {right}")
    if len(images) > 1 and (images == images[0]).all():
        raise ConfigError(f"all images of x_{part} are the same")


def _check_labels(images: int, labels: NDArray[Any], part: str) -> None:
    """Raise ConfigError, without the path, if there is not one label an image or labels are no classes."""
    if images != len(labels):
        raise ConfigError(f"{images} images but {len(labels)} labels in {part}")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= _MAX_CLASSES:
        raise ConfigError(f"y_{part} has labels from {lowest} to {highest}; must lie in 0 to {_MAX_CLASSES - 1}")
    present = np.unique(labels).astype(np.int64)
    if part == "test":
        return
    if highest == lowest:
        raise ConfigError(f"y_train has one label, {lowest}; must have 0 and 1 at least")
    if lowest > 0 and len(present) == highest - lowest + 1:
        raise ConfigError(f"y_train has labels from {lowest} to {highest}; must begin with 0: subtract {lowest}")
    absent = np.setdiff1d(np.arange(highest + 1), present)
    if len(absent):
        remedy = "np.unique(y, return_inverse=True)[1] numbers them anew"
        raise ConfigError(f"y_train has labels to {highest}, but none is {_ranges(absent)}; {remedy}")
