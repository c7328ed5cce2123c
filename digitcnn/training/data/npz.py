"""Arrays of an npz file, read without pickle: judged by their headers before anything is allocated. numpy only."""

from __future__ import annotations

import io
import math
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from digitcnn.errors import ConfigError

# The largest array that a file may make us allocate: 40 times MNIST.
_MAX_BYTES = 2 * 1024**3
# Deflate can expand a thousandfold; real images from some size on do not. MNIST expands fivefold.
_MAX_EXPANSION, _FREE_BYTES = 100, 2**26
# numpy writes headers of 128 bytes, and four members have a directory of 250; both are read whole.
_MAX_HEADER, _MAX_DIRECTORY = 2**14, 2**16


def read_npz(path: Path, names: list[str]) -> dict[str, NDArray[Any]]:
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
        again = "np.savez('FILE.npz', x_train=..., y_train=..., x_test=..., y_test=...) writes one"
        raise ConfigError(f"is not an npz file, or is corrupt or truncated ({error}); {again}") from None


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
        # Names in a file can be anything.
        there = ", ".join(repr(each.removesuffix(".npy"))[:30] for each in archive.namelist()[:8]) or "nothing"
        raise ConfigError(f"has no array {name}, but {there}; needs x_train, y_train, x_test, y_test")
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
        raise ConfigError(f"{name} is {shape} {dtype}; must be {wanted}{_remedy(name, shape, dtype)}")
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


def _remedy(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    """Return how to make an array of the wrong form right, as the end of a message; nothing if that is not clear."""
    steps = name
    if name.startswith("y"):
        if len(shape) == 2:
            steps += "[:, 0]" if shape[1] == 1 else ".argmax(1)"
        if dtype.kind in "USb":
            steps = f"np.unique({steps}, return_inverse=True)[1]"
        elif dtype.kind == "f" and not steps.endswith("argmax(1)"):
            steps += '.astype("int64")'
        return f": {steps}" if steps != name else ""
    if len(shape) == 4 and shape[-1] == 1:
        steps += "[..., 0]"
    elif len(shape) == 4 and shape[1] == 1:
        steps += "[:, 0]"
    elif len(shape) == 4 and shape[-1] in (3, 4):
        steps += '[..., :3].mean(-1).round().astype("uint8")'
    elif len(shape) == 2 and math.isqrt(shape[1]) ** 2 == shape[1]:
        steps += f".reshape(-1, {math.isqrt(shape[1])}, {math.isqrt(shape[1])})"
    elif len(shape) != 3:
        return ""
    if dtype.kind == "b":
        return f': {steps}.astype("uint8") * 255'
    whole = f": {steps}" + ("" if dtype == np.uint8 else '.astype("uint8") if its values are 0 to 255')
    return whole + (f', ({steps} * 255).round().astype("uint8") if 0 to 1' if dtype.kind == "f" else "")
