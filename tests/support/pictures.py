"""Pictures of handwritten digits as people make them, drawn from MNIST's images, and pictures that show none."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

Pixels = NDArray[np.uint8]
# Light on a page (height, width) or (height, width, 3), 0 to 1.
Page = NDArray[np.float64]
# A digit and a source of chance in, its picture out.
Disturbance = Callable[[Pixels, np.random.Generator], Image.Image]
_SIDE = 400
_WHITE, _INK = 0.93, 0.15


def outline(digit: Pixels, length: int, bolder: float = 0.0) -> Page:
    """Return the ink of a digit, 0 to 1, its longer side `length` pixels, with smooth outlines.

    `bolder` widens (or, below 0, thins) its strokes by this share of the length.
    """
    rows, columns = np.nonzero(digit > 127)
    cut = np.pad(digit[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].astype(float) / 255, 2)
    fine = max(length, 60)
    scale = fine / (max(cut.shape) - 4)
    ink = ndimage.gaussian_filter(ndimage.zoom(cut, scale, order=1), scale / 3)
    inside = ink > 0.5
    distance = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside)
    ink = (distance + bolder * fine + 0.5).clip(0, 1)
    rows, columns = np.nonzero(ink > 0.5)
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    size = tuple(
        max(round(side * length / max(box[2] - box[0], box[3] - box[1])), 1)
        for side in (box[2] - box[0], box[3] - box[1])
    )
    drawn = Image.fromarray(ink.astype(np.float32)).resize(size, Image.Resampling.BOX, box)
    return np.asarray(drawn, float).clip(0, 1)


def place(ink: Page, height: int, width: int, down: float = 0.5, right: float = 0.5) -> Page:
    """Return ink on a page (height, width) of none; `down` and `right` say where, 0 to 1."""
    page = np.zeros((height, width))
    top, left = round((height - ink.shape[0]) * down), round((width - ink.shape[1]) * right)
    page[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return page


def picture(light: Page) -> Image.Image:
    """Return a page as a picture."""
    return Image.fromarray(np.round(255 * light.clip(0, 1)).astype(np.uint8))


def written(digit: Pixels, chance: np.random.Generator, side: int = _SIDE, share: float = 0.5) -> Page:
    """Return a page with a digit of about this share of its side, near its middle."""
    ink = outline(digit, round(side * share))
    return _WHITE - (_WHITE - _INK) * place(ink, side, side, chance.uniform(0.4, 0.6), chance.uniform(0.4, 0.6))


def _phone(digit: Pixels, chance: np.random.Generator, lines: bool = False) -> Image.Image:
    """A digit as a telephone's camera sees it on paper."""
    side = int(np.exp(chance.uniform(np.log(60), np.log(2000))))
    other = round(side * chance.uniform(0.7, 1))
    height, width = (side, other) if chance.random() < 0.5 else (other, side)
    ink = outline(digit, round(other * chance.uniform(0.3, 0.7)), chance.uniform(-0.01, 0.04))
    ink = ndimage.rotate(ink, chance.uniform(-10, 10), order=1).clip(0, 1)
    if max(ink.shape[0] / height, ink.shape[1] / width) > 0.95:
        ink = ndimage.zoom(ink, 0.7, order=1)
    page = place(ink, height, width, chance.uniform(0.1, 0.9), chance.uniform(0.1, 0.9))
    paper = chance.uniform(0.75, 0.97) - chance.uniform(0, 0.12, 3)
    pen = chance.choice([0.05, 0.15, 0.3]) + chance.uniform(0, 0.25, 3) * (chance.random(3) < 0.5)
    light = np.tile(paper, (height, width, 1))
    if lines:
        spacing = max(round(height / chance.integers(8, 16)), 6)
        light[::spacing, :] *= chance.uniform(0.75, 0.9)
    light = light - (light - pen).clip(0) * page[..., None]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    angle, slope, corner = chance.uniform(0, 2 * np.pi), chance.uniform(0, 0.4), chance.uniform(0, 0.4)
    shade = 1 - slope * (x * np.cos(angle) + y * np.sin(angle) + 1.4) / 2.8 - corner * (x * x + y * y) / 2
    texture = ndimage.gaussian_filter(chance.normal(0, 1, (height, width)), side / 150)
    shade *= 1 + chance.uniform(0, 0.02) * texture / texture.std()
    light = ndimage.gaussian_filter(light * shade[..., None], (chance.uniform(0, side / 200),) * 2 + (0,))
    light += chance.normal(0, chance.uniform(0, 0.06), light.shape)
    file = io.BytesIO()
    picture(light).save(file, "JPEG", quality=int(chance.integers(40, 93)))
    return Image.open(file)


def _tilted(mask: Page, degrees: float) -> Page:
    return np.asarray(ndimage.rotate(mask, degrees, reshape=False, order=1))


def on_table(light: Page, share: float, table: tuple[float, float, float], chance: np.random.Generator) -> Image.Image:
    """Return a page as a sheet of paper that is this share of the picture's side, on a table."""
    side = round(light.shape[0] / share)
    top, left = (round((side - light.shape[0]) * chance.uniform(0.3, 0.7)) for _ in range(2))
    sheet, paper = (np.zeros((side, side)) for _ in range(2))
    sheet[top : top + light.shape[0], left : left + light.shape[1]] = light
    paper[top : top + light.shape[0], left : left + light.shape[1]] = 1
    degrees = float(chance.uniform(-4, 4)) if share < 0.9 else 0.0
    sheet, paper = _tilted(sheet, degrees)[..., None], _tilted(paper, degrees)[..., None]
    grain = ndimage.gaussian_filter(chance.normal(0, 1, (side, side)), (0.5, 12))[..., None]
    wood = np.asarray(table) * (1 + 0.04 * grain / grain.std())
    return picture(sheet + (1 - paper) * wood).resize((_SIDE, _SIDE), Image.Resampling.BOX)


def _table(share: float, table: tuple[float, float, float] = (0.2, 0.15, 0.12)) -> Disturbance:
    return lambda digit, chance: on_table(written(digit, chance), share, table, chance)


def hard_shadow(light: Page, chance: np.random.Generator, depth: float = 0.55, soft: float = 0.7) -> Image.Image:
    """Return a page half in the shadow of something with a straight edge, which passes near the middle."""
    y, x = np.mgrid[-1 : 1 : light.shape[0] * 1j, -1 : 1 : light.shape[1] * 1j]
    angle = chance.uniform(0, 2 * np.pi)
    dark = (x * np.cos(angle) + y * np.sin(angle) > chance.uniform(-0.2, 0.2)).astype(float)
    return picture(light * (1 - (1 - depth) * ndimage.gaussian_filter(dark, soft)))


def ruled(light: Page, chance: np.random.Generator, every: int, thick: int, dark: float, ways: int = 1) -> Page:
    """Return a page with lines on it, across (1 way) or squared (2 ways); as dark as ink if `dark` is 1."""
    lines = np.zeros(light.shape)
    for way in range(ways):
        first = int(chance.integers(every))
        for each in range(first, light.shape[way], every):
            lines[(slice(each, each + thick), slice(None))[:: 1 - 2 * way]] = dark
    return np.minimum(light, _WHITE - (_WHITE - _INK) * lines)


def _lines(every: int, thick: int, dark: float, ways: int = 1, degrees: float = 0.0) -> Disturbance:
    def draw(digit: Pixels, chance: np.random.Generator) -> Image.Image:
        larger = ruled(np.full((2 * _SIDE, 2 * _SIDE), _WHITE), chance, every, thick, dark, ways)
        turned = ndimage.rotate(larger, degrees * chance.choice([-1, 1]), reshape=False, order=1, mode="nearest")
        half = _SIDE // 2
        return picture(np.minimum(written(digit, chance), turned[half:-half, half:-half]))

    return draw


def _margin(digit: Pixels, chance: np.random.Generator) -> Image.Image:
    """A red line from top to bottom, as on school paper, through the digit."""
    light = np.repeat(written(digit, chance)[..., None], 3, axis=2)
    left = _SIDE // 2 + int(chance.integers(-40, 40))
    light[:, left : left + 4] = np.minimum(light[:, left : left + 4], (0.5, 0.1, 0.1))
    return picture(light)


def _bars(digit: Pixels, chance: np.random.Generator) -> Image.Image:
    """A scan that is narrower than its file, with black beside it."""
    light = written(digit, chance)
    left, right = (int(chance.integers(10, 70)) for _ in range(2))
    light[:, :left] = light[:, -right:] = 0.0
    return picture(light)


def _noisy(digit: Pixels, chance: np.random.Generator) -> Image.Image:
    return picture(written(digit, chance) + chance.normal(0, 0.1, (_SIDE, _SIDE)))


def _blurred(digit: Pixels, chance: np.random.Generator) -> Image.Image:
    return picture(ndimage.gaussian_filter(written(digit, chance), 6))


def _bold(share: float) -> Disturbance:
    """Strokes that are wider by this share of the digit's height."""
    return lambda digit, chance: picture(_WHITE - 0.78 * place(outline(digit, 220, share), _SIDE, _SIDE))


def _tight(digit: Pixels, chance: np.random.Generator) -> Image.Image:
    """Cut at the ink: all edges are touched."""
    return picture(_WHITE - 0.78 * outline(digit, 300))


def _tiny(side: int) -> Disturbance:
    return lambda digit, chance: picture(written(digit, chance)).resize((side, side), Image.Resampling.BOX)


def _holes(digit: Pixels, chance: np.random.Generator) -> Image.Image:
    page = picture(written(digit, chance))
    for down in (100, 300):
        ImageDraw.Draw(page).ellipse((12, down - 11, 34, down + 11), fill=20)
    return page


def _chalk(digit: Pixels, chance: np.random.Generator) -> Image.Image:
    board = 0.2 + 0.02 * chance.normal(0, 1, (_SIDE, _SIDE))
    return picture(board + 0.6 * place(outline(digit, 200), _SIDE, _SIDE, 0.4, 0.6))


# What is asked of predict: at least 98 % of MIXED and 95 % of each of HARD; OTHERS were right before and must stay so.
MIXED: dict[str, Disturbance] = {"phone": _phone}
HARD: dict[str, Disturbance] = {
    **{f"paper of {share:.0%} on a dark table": _table(share) for share in (0.3, 0.45, 0.6, 0.75, 0.85, 0.95)},
    "paper on a brown table": _table(0.6, (0.5, 0.36, 0.22)),
    "paper on a light table": _table(0.6, (0.75, 0.68, 0.55)),
    "paper on a blue table": _table(0.6, (0.2, 0.3, 0.6)),
    "hard shadow": lambda digit, chance: hard_shadow(written(digit, chance), chance),
    "ruled, faint": _lines(50, 2, 0.3),
    "ruled, dark": _lines(50, 3, 0.6),
    "ruled, as dark as ink": _lines(50, 4, 1.0),
    "ruled, tilted": _lines(50, 3, 0.8, degrees=5),
    "squared": _lines(40, 2, 0.5, ways=2),
    "squared, as dark as ink": _lines(40, 3, 1.0, ways=2),
    "squared, tilted": _lines(40, 2, 0.6, ways=2, degrees=4),
    "margin line": _margin,
    "a 40th of the side": lambda digit, chance: picture(written(digit, chance, 1200, 1 / 40)),
    "black bars of a scan": _bars,
}
OTHERS: dict[str, Disturbance] = {
    "phone, ruled": lambda digit, chance: _phone(digit, chance, lines=True),
    "clean": lambda digit, chance: picture(written(digit, chance)),
    "noise": _noisy,
    "blur": _blurred,
    "rotated by 20": lambda digit, chance: picture(
        ndimage.rotate(written(digit, chance), 20 * chance.choice([-1, 1]), reshape=False, order=1, cval=_WHITE)
    ),
    "soft shadow": lambda digit, chance: hard_shadow(written(digit, chance), chance, soft=30),
    "chalk": _chalk,
    "pencil": lambda digit, chance: picture(0.9 - 0.12 * place(outline(digit, 200, -0.01), _SIDE, _SIDE)),
    "thin pen": lambda digit, chance: picture(1 - place(outline(digit, 600, -0.03), 1000, 1000)),
    "bold by 5 %": _bold(0.05),
    "bold by 10 %": _bold(0.1),
    "cut at the ink": _tight,
    "28 x 28": lambda digit, chance: Image.fromarray(digit),
    "16 x 16": _tiny(16),
    "12 x 12": _tiny(12),
    "holes": _holes,
}


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def typed(text: str, size: int = 220) -> Image.Image:
    """Return a page with a text in the middle."""
    font = _font(size)
    width = max(_SIDE, round(font.getlength(text)) + 120)
    page = Image.new("L", (width, _SIDE), 237)
    ImageDraw.Draw(page).text((width / 2, _SIDE / 2), text, fill=38, font=font, anchor="mm")
    return page


def beside(digits: list[Pixels], gap: int = 60) -> Image.Image:
    """Return a page with several digits in a row."""
    parts = [outline(digit, 150) for digit in digits]
    width = sum(part.shape[1] + gap for part in parts) + 100
    page, left = np.zeros((_SIDE, width)), 50
    for part in parts:
        page[120 : 120 + part.shape[0], left : left + part.shape[1]] = part
        left += part.shape[1] + gap
    return picture(_WHITE - 0.78 * page)


def letters() -> dict[str, Image.Image]:
    """Return the 26 letters."""
    return {letter: typed(letter) for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}


def signs() -> dict[str, Image.Image]:
    """Return 12 signs and scribbles that are no digits."""
    found = {sign: typed(sign) for sign in "%#+?@-&=*"}
    for name in ("smiley", "ring", "scribble"):
        found[name] = Image.new("L", (_SIDE, _SIDE), 237)
        draw = ImageDraw.Draw(found[name])
        if name == "scribble":
            turns = np.linspace(0, 40, 400)
            spots = zip(200 + 120 * np.sin(1.7 * turns), 200 + 100 * np.sin(turns + 1), strict=True)
            draw.line([(float(x), float(y)) for x, y in spots], fill=38, width=8)
            continue
        draw.ellipse((80, 80, 320, 320), outline=38, width=12 if name == "smiley" else 25)
        if name == "smiley":
            draw.arc((140, 140, 260, 260), 20, 160, fill=38, width=12)
            draw.ellipse((150, 150, 170, 170), fill=38)
            draw.ellipse((230, 150, 250, 170), fill=38)
    return found


def blanks() -> dict[str, Image.Image]:
    """Return 12 pictures of paper on which nothing is written."""
    chance = np.random.default_rng(12)
    white = np.full((_SIDE, _SIDE), _WHITE)
    mottled = ndimage.gaussian_filter(chance.normal(0, 1, white.shape), 25)
    crumb = place(np.ones((7, 6)), _SIDE, _SIDE, 0.3, 0.6)
    fold = white - 0.25 * np.exp(-(((np.mgrid[:_SIDE, :_SIDE][1] - 170) / 3.0) ** 2))
    checks = np.indices(white.shape) // 50
    return {
        "white": picture(white),
        "noise": picture(white - 0.2 + chance.normal(0, 0.08, white.shape)),
        "ruled": picture(ruled(white, chance, 50, 3, 0.6)),
        "squared": picture(ruled(white, chance, 40, 2, 0.6, ways=2)),
        "squared, faint": picture(ruled(white, chance, 40, 2, 0.2, ways=2)),
        "margin line": picture(ruled(white, chance, 390, 3, 0.6)),
        "fold": picture(fold),
        "crumb": picture(white - 0.6 * crumb),
        "hard shadow": hard_shadow(white, chance),
        "paper on a table": on_table(white, 0.6, (0.2, 0.15, 0.12), chance),
        "mottled": picture(white - 0.1 + 0.05 * mottled / mottled.std()),
        "checker": picture(white - 0.6 * ((checks[0] + checks[1]) % 2)),
    }


def several(images: Pixels, labels: NDArray[np.int64]) -> dict[str, Image.Image]:
    """Return 12 pictures of two to four digits side by side, or of a text."""
    found = {text: typed(text, 90) for text in ("42", "2025", "24.12.25", "Hello")}
    for number in ("17", "42", "60", "2025"):
        digits = [images[np.flatnonzero(labels == int(digit))[7]] for digit in number]
        found |= {f"{number}, {gap} apart": beside(digits, gap) for gap in (20, 100)}
    return found
