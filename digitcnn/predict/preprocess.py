"""Preprocessing: a scan, photograph or drawing of one digit, prepared as MNIST was. Pillow, numpy and scipy.

MNIST's digits were scaled into a box of 20 x 20 pixels, their proportions kept, with grey edges, and placed in 28 x 28
with their centre of mass at the centre (LeCun, Cortes and Burges); the mean centre over its training images is at row
13.99, column 14.00, so the centre is pixel 14. Light ink on black.
"""

from __future__ import annotations

import io
import os
import stat
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

# The decoders that a picture may reach: no others of Pillow's forty, some of which start other programs.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
_MAX_FILE_BYTES = 64 * 2**20
# A telephone's camera; decoded in colour it takes 200 MB. Pillow itself allows 179 million.
_MAX_PIXELS = 50_000_000
# Large pictures are reduced to this many pixels a side: a digit of a 50th of the side still fills MNIST's box.
_WORKING_SIDE = 1000
# MNIST's frame and box, for the proportions of other frames.
_FRAME, _BOX = 28, 20
# The 1st and the 99th percentile of the width of MNIST's strokes, in pixels of the box.
_MIN_STROKE = 1.9
# Ink must stand out from its background by this much of the range from black to white, and of the background's grain.
_MIN_CONTRAST, _MIN_GRAINS = 0.06, 8.0
# A part of the drawing is ink, not a speck, from this share of the largest part on.
_MIN_PART = 0.04

Grey = NDArray[np.float32]
Mask = NDArray[np.bool_]


def read_picture(name: str) -> Image.Image:
    """Return the decoded picture of a file: of an animation or of several pages the first.

    Raises ValueError with the cause for a file that is not a picture, is corrupt or truncated, or is too large, which
    is judged before it is decoded.
    """
    try:
        # A named pipe would block until someone writes to it.
        with open(os.open(name, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("is not a regular file")
            if status.st_size > _MAX_FILE_BYTES:
                raise ValueError(f"holds {status.st_size:,} bytes; at most {_MAX_FILE_BYTES:,}")
            content = file.read()
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    with warnings.catch_warnings():
        # Pillow's warnings about sizes and damaged metadata: the sizes are judged here, the metadata are not used.
        warnings.simplefilter("ignore")
        try:
            picture = Image.open(io.BytesIO(content), formats=_FORMATS)
        except UnidentifiedImageError:
            raise ValueError(f"is not a picture; must be one of {', '.join(_FORMATS)}") from None
        except Image.DecompressionBombError:
            raise ValueError(f"has more than {_MAX_PIXELS:,} pixels") from None
        if picture.width * picture.height > _MAX_PIXELS:
            raise ValueError(f"has {picture.width:,} x {picture.height:,} pixels; at most {_MAX_PIXELS:,}")
        try:
            picture.load()
            return ImageOps.exif_transpose(picture)
        except Exception as error:
            # Decoders raise many kinds of errors for files that were cut off or made up.
            raise ValueError(f"is corrupt or truncated ({' '.join(str(error).split())})") from None


def prepare_picture(picture: Image.Image, height: int = _FRAME, width: int = _FRAME) -> NDArray[np.uint8]:
    """Return the digit of a picture, light on black, in a frame (height, width) uint8, as MNIST's are in 28 x 28.

    The ink may be darker or lighter than its background, or of another colour; the background may be transparent,
    grainy or unevenly lit. Raises ValueError if nothing stands out from it.
    """
    grey = _grey(picture)
    if min(grey.shape) < 3:
        raise ValueError(f"has {picture.width} x {picture.height} pixels: too few, or too narrow")
    ink = _ink(grey)
    left, top, right, bottom = _bounds(ink)
    enlarged = min(_BOX / _FRAME * height / (bottom - top), _BOX / _FRAME * width / (right - left))
    ink = _thickened(ink, _MIN_STROKE / _FRAME * min(height, width) / enlarged)
    left, top, right, bottom = _bounds(ink)
    scale = min(_BOX / _FRAME * height / (bottom - top), _BOX / _FRAME * width / (right - left))
    size = max(round((right - left) * scale), 1), max(round((bottom - top) * scale), 1)
    digit = np.asarray(Image.fromarray(ink).resize(size, Image.Resampling.BICUBIC, (left, top, right, bottom)))
    digit = digit.clip(0, 1) / min(digit.max(), 1)
    frame = np.zeros((height, width), np.float32)
    centre = ndimage.center_of_mass(digit)
    top, left = (
        min(max(round(middle - each), 0), side - length)
        for middle, each, side, length in zip((height / 2, width / 2), centre, frame.shape, digit.shape, strict=True)
    )
    frame[top : top + digit.shape[0], left : left + digit.shape[1]] = digit
    return np.round(255 * frame).astype(np.uint8)


def _bounds(ink: Grey) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the ink, as Pillow counts them."""
    rows, columns = np.nonzero(ink >= 0.5)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def _grey(picture: Image.Image) -> Grey:
    """Return the picture (height, width) in the channel that shows it best, about 0 to 1, reduced if it is large."""
    factor = -(-max(picture.size) // _WORKING_SIDE)
    if picture.mode[0] in "IF":
        deep = np.asarray(picture, np.float32)
        if not np.isfinite(deep).all():
            raise ValueError("holds values that are not numbers")
        # 16 bits, or values of no fixed range.
        low, high = (0.0, 65535.0) if picture.mode.startswith("I;16") else (float(deep.min()), float(deep.max()))
        return np.asarray(Image.fromarray((deep - low) / max(high - low, 1e-9)).reduce(factor))
    if picture.has_transparency_data:
        return _one_channel(_on_paper(_array(picture.convert("RGBA"), factor)))
    if picture.mode in ("1", "L"):
        return _array(picture.convert("L"), factor)
    return _one_channel(_array(picture.convert("RGB"), factor))


def _array(picture: Image.Image, factor: int) -> Grey:
    return np.asarray(picture.reduce(factor), np.float32) / np.float32(255)


def _on_paper(picture: Grey) -> Grey:
    """Return an RGBA picture on a background: of its most frequent colour, or one that its strokes stand out from."""
    colours, opacity = picture[..., :3], picture[..., 3:]
    opaque = colours[opacity[..., 0] > 0.5]
    if not len(opaque):
        raise ValueError("is transparent all over")
    light = opaque.mean(axis=1)
    several_tones = np.percentile(light, 98) - np.percentile(light, 2) > 0.2
    if several_tones and 2 * len(opaque) > opacity.size:
        paper = np.median(opaque, axis=0)
    else:
        paper = np.full(3, 1.0 if light.mean() < 0.5 else 0.0, np.float32)
    return np.asarray(opacity * colours + (1 - opacity) * paper, np.float32)


def _one_channel(colours: Grey) -> Grey:
    """Project RGB on the line along which the picture's colours vary most: red ink on green paper shows, too."""
    flat = colours.reshape(-1, 3)
    line = np.linalg.eigh(np.cov(flat, rowvar=False))[1][:, -1]
    line = line * np.sign(line.sum()) / np.abs(line).sum()
    return np.asarray(colours @ line, np.float32)


def _ink(grey: Grey) -> Grey:
    """Return the ink at each pixel, 0 to 1, grain and specks left out. Raises ValueError if there is none."""
    difference = grey - _background(grey)
    if np.square(difference[difference < 0]).sum() > np.square(difference[difference > 0]).sum():
        difference = -difference
    # Of a normal distribution, from neighbours: slow changes of the background are no grain.
    grain = float(np.median(np.abs(np.diff(grey.ravel())))) / 0.6745 / 2**0.5
    for blur in (max(grey.shape) / 250, max(grey.shape) / 100):
        smooth = ndimage.gaussian_filter(difference, blur)
        left = grain / max(2 * blur * np.pi**0.5, 1)
        peak = float(smooth.max())
        if peak >= max(_MIN_CONTRAST, _MIN_GRAINS * left):
            break
    else:
        raise ValueError("holds no digit: nothing stands out from its background")
    drawn = _drawn(smooth > max(0.4 * peak, 4 * left))
    full = float(np.median(smooth[drawn]))
    low = min(2 * left, 0.4 * full)
    near = ndimage.binary_dilation(drawn, iterations=2 + max(grey.shape) // 200)
    return np.asarray(((smooth - low) / (full - low)).clip(0, 1) * near, np.float32)


def _background(grey: Grey) -> Grey:
    """Return the picture without ink: as its edge is, or a second-order surface if the paper is nearer to that.

    The surface is that of least absolute distance, by reweighted least squares.
    """
    height, width = grey.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    step = -(-max(height, width) // 50)
    some, values = terms[::step, ::step].reshape(-1, 6), grey[::step, ::step].ravel()
    edge = float(np.median(np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])))
    distance = np.abs(values - edge)
    # A quarter of the picture is paper even where ink fills the rest.
    flat = np.percentile(distance, 25)
    for _ in range(20):
        weighted = some / np.maximum(distance, 0.004)[:, None]
        # The small diagonal is for pictures that are too narrow to curve.
        surface = np.linalg.solve(weighted.T @ some + 1e-4 * np.eye(6), weighted.T @ values)
        distance = np.abs(values - some @ surface)
    if flat <= 1.1 * np.percentile(distance, 25):
        return np.full_like(grey, edge)
    return np.asarray(terms @ surface, np.float32)


def _drawn(mask: Mask) -> Mask:
    """Return the parts of a mask that belong to the digit: no specks, and no lines from edge to edge beside it."""
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    across = [
        any(place.stop - place.start == length for place, length in zip(places, mask.shape, strict=True))
        for places in ndimage.find_objects(parts)
    ]
    inside = np.where(across, 0, sizes)
    if inside.max() >= 0.1 * sizes.max():
        sizes = inside
    return np.isin(parts, 1 + np.flatnonzero(sizes >= _MIN_PART * sizes.max()))


def _thickened(ink: Grey, least: float) -> Grey:
    """Return the ink with strokes at least this wide, in pixels.

    Over a long bar of width w the mean distance to its edge is w / 4.
    """
    width = 4 * float(ndimage.distance_transform_edt(ink >= 0.5)[ink >= 0.5].mean())
    grow = (least - width) / 2
    if grow <= 0:
        return ink
    ink = np.pad(ink, int(grow) + 2)
    away = ndimage.distance_transform_edt(ink < 0.5)
    return np.asarray(np.maximum(ink, (grow + 1 - away).clip(0, 1)), np.float32)
