"""Ink: what is drawn on paper that is grainy, ruled, shadowed or lies on a table. numpy and scipy."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

# Ink must stand out from its background by this much of the range from black to white, and of the background's grain.
_MIN_CONTRAST, _MIN_GRAINS = 0.06, 8.0
# A part of the drawing is ink, not a speck, from this share of the largest part on.
_MIN_PART = 0.04
# A drawing of more parts is none: grain, a chequered board.
_MAX_PARTS = 8
# A digit is at least this part of the longer side.
_MAX_ZOOM = 50

Grey = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class _Drawing:
    """A drawing: each pixel's depth below its paper, the ink, the paper's lines, and the number of other shapes."""

    depth: Grey
    ink: Mask
    lines: Mask
    others: int


def bounds(ink: Grey | Mask) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the ink, as Pillow counts them."""
    rows, columns = np.nonzero(ink >= 0.5)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def find_ink(grey: Grey) -> Grey:
    """Return the ink at each pixel, 0 to 1, grain, specks and lines left out.

    Raises ValueError if there is none, or if it is several shapes.
    """
    side = max(grey.shape)
    # Of a normal distribution, from neighbours: slow changes of the background are no grain.
    grain = float(np.median(np.abs(np.diff(grey.ravel())))) / 0.6745 / 2**0.5
    for blur in (side / 250, side / 100):
        smooth = ndimage.gaussian_filter(grey, blur)
        left = grain / max(2 * blur * np.pi**0.5, 1)
        drawings = [each for each in (_drawing(smooth, left), _drawing(1 - smooth, left)) if each is not None]
        if drawings:
            break
    else:
        raise ValueError("holds no digit: nothing stands out from its background")
    drawings = [each for each in drawings if each.ink.any()]
    if not drawings:
        raise ValueError("holds no digit: only lines, specks or an empty sheet")
    # Strokes are long: the paper in a 0 is not.
    best = max(drawings, key=lambda each: each.ink.sum() / ndimage.distance_transform_edt(each.ink).max() ** 2)
    if best.others:
        raise ValueError(f"holds {1 + best.others} separate shapes; must be one digit")
    full = float(np.median(best.depth[best.ink]))
    low = min(2 * left, 0.4 * full)
    around = 2 + side // 200
    near = ndimage.binary_dilation(best.ink, iterations=around)
    if best.lines.any():
        near &= best.ink | ~ndimage.binary_dilation(best.lines, iterations=around)
    return np.asarray(((best.depth - low) / (full - low)).clip(0, 1) * near, np.float32)


def _drawing(grey: Grey, grain: float) -> _Drawing | None:
    """Return what is drawn in dark, None if nothing stands out.

    Morphological closing keeps the edges of shadows, sheets and tables, and fills what is narrower than its reach. From
    narrow to wide until no more of the drawing appears: a sheet on a table would appear, too.
    """
    side = max(grey.shape)
    found = None
    for reach in (each for each in (side / 16, side / 8, side / 4, side / 2) if each >= 3):
        size = 2 * round(reach / 2) + 1
        paper = ndimage.grey_closing(grey, (size, size))
        # The same ink on half as bright a paper is half as deep; 0.2 keeps a dark table's grain low.
        depth = 1.2 * (paper - grey) / (0.2 + paper)
        # Of grain the closing is the highest nearby.
        depth -= np.median(depth)
        peak = float(depth.max())
        if peak < max(_MIN_CONTRAST, _MIN_GRAINS * grain):
            continue
        mask = depth > max(0.4 * peak, 4 * grain)
        lines = _lines(mask)
        ink, others, filled = _one_shape(mask & ~lines, None if found is None else found.ink)
        if ink.any() and not _is_whole(grey, paper, ink, lines):
            ink, others, filled = np.zeros_like(mask), 0, False
        if filled:
            return _Drawing(depth, np.zeros_like(mask), lines, 0)
        before, found = found, _Drawing(depth, ink, lines, others)
        if before is not None and before.ink.any() and ink.sum() <= 1.25 * before.ink.sum():
            break
    return found


def _is_whole(grey: Grey, paper: Grey, ink: Mask, lines: Mask) -> bool:
    """Tell whether ink is all of what is as dark and holds together: a corner of a shadow, sheet or gap is not."""
    parts, _ = ndimage.label((grey < np.median((0.75 * grey + 0.25 * paper)[ink])) & ~lines, np.ones((3, 3)))
    return bool(np.isin(parts, np.setdiff1d(parts[ink], [0])).sum() <= 2 * ink.sum())


def _lines(mask: Mask) -> Mask:
    """Return the pixels of straight thin lines nearly along an edge: from edge to edge, or several side by side."""
    found = np.zeros_like(mask)
    side = max(mask.shape)
    step = -(-side // 250)
    for drawn, line in ((mask, found), (mask.T, found.T)):
        runs, _ = ndimage.label(drawn, [[0, 1, 0]] * 3)
        lengths = np.bincount(runs.ravel())[runs]
        thin = drawn & (lengths <= max(side / 25, 2))
        coarse = ndimage.maximum_filter(thin, step)[::step, ::step]
        rows, columns = np.nonzero(coarse)
        width = coarse.shape[1]
        ends = columns < width / 20, columns > 0.95 * width
        straight = np.zeros(len(rows), bool)
        for slope in np.arange(-0.2, 0.2, 1 / width):
            places = np.round(rows - slope * columns).astype(int) + width
            counts = np.bincount(places, minlength=1)
            if counts.max() < 0.4 * width:
                continue
            many = counts >= 0.4 * width
            if ndimage.label(many)[1] < 3:
                # One line may be the stroke of a 1, unless it ends where the picture does.
                reached = [np.bincount(places[end], minlength=len(counts)) for end in ends]
                many &= ndimage.maximum_filter1d(reached, 3).min(axis=0) > 0
            straight |= many[places]
        coarse[rows, columns] = straight
        near = ndimage.binary_dilation(coarse).repeat(step, 0).repeat(step, 1)
        on_line = thin & near[: drawn.shape[0], : drawn.shape[1]]
        if on_line.any():
            # Where a line crosses the digit, the ink is thicker.
            line[on_line & (lengths <= 2 * np.median(lengths[on_line]))] = True
    return found


def _one_shape(mask: Mask, before: Mask | None) -> tuple[Mask, int, bool]:
    """Return the parts of a mask that are one drawing, how many others there are, and whether it is a sheet or a table.

    No specks; nothing that touches an edge beside it, unless it holds what was seen `before`.
    """
    nothing = np.zeros_like(mask)
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    places = ndimage.find_objects(parts)
    lengths = np.array([max(each.stop - each.start for each in place) for place in places])
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:] * (lengths >= max(mask.shape) / _MAX_ZOOM)
    if not sizes.any():
        return nothing, 0, False
    inside = sizes.copy()
    edges = parts[0], parts[-1], parts[:, 0], parts[:, -1]
    # A frame touches none of the edges, but is as large as the picture.
    reaches = [
        all(part.stop - part.start > 0.8 * side for part, side in zip(place, mask.shape, strict=True))
        for place in places
    ]
    touching = np.union1d(np.setdiff1d(np.concatenate(edges), [0]), 1 + np.flatnonzero(reaches)).astype(int)
    if before is not None:
        touching = np.setdiff1d(touching, parts[before])
    inside[touching - 1] = 0
    if inside.max() >= _MIN_PART * sizes.max():
        sizes = inside
    large = np.flatnonzero(sizes >= _MIN_PART * sizes.max())
    if len(large) > _MAX_PARTS:
        return nothing, 0, False
    main = int(sizes.argmax())
    # Another digit, nearly as long, may be nearer than a loose stroke of this one.
    far = np.where(lengths >= 0.6 * lengths[main], 0.05, 0.2) * lengths[main]
    beside = [each for each in large if _gap(places[each], places[main]) > far[each]]
    ink = np.isin(parts, 1 + np.setdiff1d(large, beside))
    shape = parts == main + 1
    # A stroke is narrower than a sheet, but not along a whole edge: there it is the dark side of uneven light.
    least = 0.0 if any(np.mean(edge == main + 1) > 0.9 for edge in edges) else 0.5
    around = np.mean(np.concatenate(edges) == main + 1) > 0.5
    return ink, sum(sizes[each] >= 0.2 * sizes[main] for each in beside), bool(around) or _is_box(shape, least)


def _gap(one: tuple[slice, ...], other: tuple[slice, ...]) -> float:
    """Return how far two boxes are apart, in pixels along the axis along which they are farther."""
    return max(float(max(a.start - b.stop, b.start - a.stop)) for a, b in zip(one, other, strict=True))


def _is_box(mask: Mask, least: float) -> bool:
    """Tell whether a shape fills a box, upright or tilted, of at least this width to its height: a sheet or a blot."""
    points = np.argwhere(mask).astype(float)
    for angle in np.radians(np.arange(-15, 16, 3)):
        turned = points @ [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        height, width = np.ptp(turned, axis=0) + 1
        if len(points) > 0.85 * height * width and width > least * height:
            return True
    return False
