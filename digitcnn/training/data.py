"""Data: the packaged MNIST or any npz file in its layout, verified and split. numpy only."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from digitcnn.config import DataConfig
from digitcnn.errors import ConfigError, MachineError
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
# The largest array that a file may make us allocate: 40 times MNIST.
_MAX_BYTES = 2 * 1024**3
# Deflate can expand a thousandfold; real images from some size on do not. MNIST expands fivefold.
_MAX_EXPANSION, _FREE_BYTES = 100, 2**26
# numpy writes headers of 128 bytes, and four members have a directory of 250; both are read whole.
_MAX_HEADER, _MAX_DIRECTORY = 2**14, 2**16
_MAX_CLASSES = 1000
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
        return _read_arrays(Path(config.path), [f"{kind}_{part}" for part in parts for kind in "xy"])


def provide_arrays(path: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Let `load_splits` take arrays as those of the file at a path, which this machine need not have."""
    if arrays:
        _provided[path] = arrays


def load_splits(config: DataConfig) -> Splits:
    """Return the training and validation examples of a config.

    With `validation: holdout` the test arrays are not read. The holdout is the first `validation_size` of one seeded
    permutation of the training images and a subset is the next `train_size`, so that smaller subsets lie within
    larger ones and all share one holdout. Raises ConfigError for a file or sizes that cannot be used.
    """
    everything, classes, digests = _read(config, "train")
    order = np.random.default_rng(config.split_seed).permutation(len(everything))
    if config.validation == "holdout":
        held_out = config.validation_size
        if held_out >= len(everything):
            raise ConfigError(
                f"data.validation_size={held_out}: must be below the {len(everything)} training images of data.path"
            )
        validation = _take(everything, order[:held_out])
    else:
        held_out = 0
        validation, test_classes, test_digests = _read(config, "test")
        digests |= test_digests
        if validation.images.shape[1:] != everything.images.shape[1:] or test_classes > classes:
            raise ConfigError(f"data.path={config.path}: training and test images differ in size or classes")
    left = len(everything) - held_out
    if config.train_size is not None and config.train_size > left:
        raise ConfigError(f"data.train_size={config.train_size}: must be at most {left}, what validation leaves")
    return Splits(
        name=Path(config.path).name.removesuffix(".npz"),
        path=str(_PACKAGED) if config.path == PACKAGED_NAME else config.path,
        train=_take(everything, order[held_out : held_out + (config.train_size or left)]),
        validation=validation,
        classes=classes,
        sha256=hashlib.sha256("".join(digests[name] for name in sorted(digests)).encode()).hexdigest(),
        final_test_only=config.validation == "test_once",
    )


def _take(examples: Examples, order: NDArray[np.int64]) -> Examples:
    return Examples(np.ascontiguousarray(examples.images[order]), examples.labels[order])


def _read(config: DataConfig, part: str) -> tuple[Examples, int, dict[str, str]]:
    """Return one part (`train` or `test`) of the data set, its number of classes, and its arrays' SHA-256 by name."""
    packaged = config.path == PACKAGED_NAME
    names = [f"x_{part}", f"y_{part}"]
    provided = _provided.get(config.path)
    with _naming_path(config):
        if provided is None:
            arrays = _read_arrays(_PACKAGED if packaged else Path(config.path), names)
        else:
            arrays = {name: provided[name] for name in names}
        images, labels = arrays.values()
        if not packaged:
            _check_labels(len(images), labels, part)
    digests = {name: sha256_of_arrays(array) for name, array in arrays.items()}
    for name in digests if packaged else ():
        if digests[name] != MNIST_SHA256[name]:
            raise MachineError(f"the packaged MNIST is damaged: {name} has another SHA-256; install digitcnn again")
    return Examples(images, labels.astype(np.int64)), int(labels.max()) + 1, digests


@contextlib.contextmanager
def _naming_path(config: DataConfig) -> Iterator[None]:
    """Raise the errors of reading a data set with its path."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"data.path={config.path}: {error}") from None
    except OSError as error:
        raise MachineError(f"data.path={config.path}: cannot be read: {error.strerror}") from None


def _read_arrays(path: Path, names: list[str]) -> dict[str, NDArray[Any]]:
    """Return arrays of an npz file by name. Raises ConfigError, without the path, if they cannot be used."""
    if any(is_it(path) for is_it in (Path.is_fifo, Path.is_socket, Path.is_char_device)):
        raise ConfigError("is not a regular file")
    try:
        with path.open("rb") as file:
            _check_directory(file)
            with zipfile.ZipFile(file) as archive:
                return {name: _array(archive, name) for name in names}
    except FileNotFoundError:
        raise ConfigError("no such file; must be mnist or an npz file") from None
    except IsADirectoryError:
        raise ConfigError("is a folder; must be mnist or an npz file") from None
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, OverflowError, ValueError) as error:
        raise ConfigError(f"is not an npz file, or is corrupt or truncated ({error})") from None


def _check_directory(file: IO[bytes]) -> None:
    """Raise ValueError if a zip file's directory, which zipfile reads whole, is that of no npz file."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(size - 2**16 - 22, 0))
    tail = file.read()
    end = len(tail) - 22 if tail[-22:-18] == b"PK\5\6" and tail[-2:] == b"\0\0" else tail.rfind(b"PK\5\6")
    directory = int.from_bytes(tail[end + 12 : end + 16], "little") if end >= 0 else 0
    # The directory of files over 4 GiB has a second record that overrules the first.
    overruled = end >= 20 and tail[end - 20 : end - 16] == b"PK\6\7" and size < 2**32
    if overruled or directory > _MAX_DIRECTORY:
        raise ValueError("its list of members is that of no npz file")


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """Return one array of an npz file. Its header is judged before anything is allocated; pickles are never opened."""
    if f"{name}.npy" not in archive.namelist():
        raise ConfigError(f"has no array {name}; needs x_train, y_train, x_test, y_test")
    member = archive.getinfo(f"{name}.npy")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ConfigError(f"{name} is compressed in a way that numpy does not write")
    with archive.open(member) as opened:
        start = io.BytesIO(opened.read(_MAX_HEADER))
    try:
        version = np.lib.format.read_magic(start)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(start)
    except (ValueError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError) as error:
        raise ConfigError(f"{name} is not a numpy array ({' '.join(str(error).split())})") from None
    if dtype.hasobject:
        raise ConfigError(f"{name} holds pickled objects, which are never opened")
    if name.startswith("x"):
        fits, wanted = len(shape) == 3 and dtype == np.uint8, "(n, height, width) uint8"
    else:
        fits, wanted = len(shape) == 1 and dtype.kind in "iu", "(n,) of whole numbers"
    if not fits or min(shape) < 0:
        raise ConfigError(f"{name} is {shape} {dtype}; must be {wanted}")
    if 0 in shape:
        raise ConfigError(f"{name} is empty")
    size = math.prod(shape) * dtype.itemsize
    if size > _MAX_BYTES:
        raise ConfigError(f"{name} is {shape} {dtype}, over the limit of 2 GiB")
    if size != member.file_size - start.tell():
        raise ConfigError(f"{name} is corrupt or truncated: {shape} {dtype} in {member.file_size:,} bytes")
    if size > _FREE_BYTES and size > _MAX_EXPANSION * member.compress_size:
        raise ConfigError(f"{name} expands from {member.compress_size:,} to {size:,} bytes: no images do")
    with archive.open(member) as opened:
        return np.lib.format.read_array(opened, allow_pickle=False)


def _check_labels(images: int, labels: NDArray[Any], part: str) -> None:
    """Raise ConfigError, without the path, if there is not one label an image or labels are no classes."""
    if images != len(labels):
        raise ConfigError(f"{images} images but {len(labels)} labels in {part}")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= _MAX_CLASSES:
        raise ConfigError(f"y_{part} has labels from {lowest} to {highest}; must lie in 0 to {_MAX_CLASSES - 1}")
    present = np.unique(labels)
    if part == "train" and (len(present) != highest + 1 or highest < 1):
        raise ConfigError("y_train must hold every label from 0 to the highest, at least 0 and 1")
