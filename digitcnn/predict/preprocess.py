"""Preprocessing: a scan, photograph or drawing of one digit, prepared as MNIST was. Pillow, numpy and scipy.

MNIST's digits were scaled into a box of 20 x 20 pixels, their proportions kept, with grey edges, and placed in 28 x 28
with their centre of mass at the centre (LeCun, Cortes and Burges); the mean centre over its training images is at row
13.99, column 14.00, so the centre is pixel 14. Light ink on black.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from digitcnn.predict.ink import Grey, bounds, find_ink

# Large pictures are reduced to this many pixels a side; a small digit is then looked at from nearer by.
_WORKING_SIDE = 500
# MNIST's frame and box, for the proportions of other frames.
_FRAME, _BOX = 28, 20
# The 1st and the 99th percentile of the width of MNIST's strokes, in pixels of the box.
_MIN_STROKE = 1.9


def prepare_picture(picture: Image.Image, height: int = _FRAME, width: int = _FRAME) -> NDArray[np.uint8]:
    """Return the digit of a picture, light on black, in a frame (height, width) uint8, as MNIST's are in 28 x 28.

    The ink may be darker or lighter than its background, or of another colour; the background may be transparent,
    grainy, ruled, unevenly lit, or paper on a table. Raises ValueError if nothing stands out from it, or no one shape.
    """
    grey = _grey(picture)
    if min(grey.shape) < 3:
        raise ValueError(f"has {picture.width} x {picture.height} pixels: too few, or too narrow")
    ink = find_ink(grey)
    left, top, right, bottom = bounds(ink)
    length = max(right - left, bottom - top)
    if length < max(ink.shape) / 4:
        # Seen from nearer by, with as much around it on each side as it is long.
        scale = max(picture.size) / max(ink.shape)
        box = left - length, top - length, right + length, bottom + length
        left, top, right, bottom = (
            min(max(round(each * scale), 0), most) for each, most in zip(box, 2 * picture.size, strict=True)
        )
        ink = find_ink(_grey(picture.crop((left, top, right, bottom))))
        left, top, right, bottom = bounds(ink)
    enlarged = min(_BOX / _FRAME * height / (bottom - top), _BOX / _FRAME * width / (right - left))
    ink = _thickened(ink, _MIN_STROKE / _FRAME * min(height, width) / enlarged)
    left, top, right, bottom = bounds(ink)
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


def _grey(picture: Image.Image) -> Grey:
    """Return the picture (height, width) in the channel that shows it best, 0 to 1, reduced if it is large."""
    factor = -(-max(picture.size) // _WORKING_SIDE)
    if picture.mode[0] in "IF":
        deep = np.asarray(picture, np.float32)
        if not np.isfinite(deep).all():
            raise ValueError("holds values that are not numbers")
        # 16 bits, or values of no fixed range.
        low, high = (0.0, 65535.0) if picture.mode.startswith("I;16") else (float(deep.min()), float(deep.max()))
        grey = np.asarray(Image.fromarray((deep - low) / max(high - low, 1e-9)).reduce(factor))
    elif picture.has_transparency_data:
        grey = _one_channel(_on_paper(_array(picture.convert("RGBA"), factor)))
    elif picture.mode in ("1", "L"):
        grey = _array(picture.convert("L"), factor)
    else:
        grey = _one_channel(_array(picture.convert("RGB"), factor))
    # Cameras write their 10 or 12 bits into 16, of which 8 remain.
    return grey * np.float32(2 ** max(int(-np.log2(max(float(grey.max()), 2**-9))), 0))


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
    # A line that falls in one colour as it rises in another begins below 0.
    return np.asarray(colours @ line - line[line < 0].sum(), np.float32)


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
