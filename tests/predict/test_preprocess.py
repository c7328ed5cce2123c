"""Pictures of digits: what a person draws, scans or photographs becomes what MNIST looks like, or is refused."""

from __future__ import annotations

import io
import os
import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from digitcnn.predict.preprocess import prepare_picture
from digitcnn.predict.reading import read_picture
from tests.conftest import REPOSITORY
from tests.support import pictures

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def digits() -> Pixels:
    """The first 40 test images of MNIST."""
    with np.load(REPOSITORY / "digitcnn" / "datasets" / "mnist.npz") as mnist:
        return np.asarray(mnist["x_test"][:40])


def drawing(
    digit: Pixels, width: int = 200, height: int = 160, side: int = 100, left: int = 30, top: int = 20
) -> Pixels:
    """A digit, light on black, its longer side `side` pixels, somewhere in a picture (height, width)."""
    rows, columns = np.nonzero(digit)
    cut = Image.fromarray(digit[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1])
    scale = side / max(cut.size)
    cut = cut.resize((round(cut.width * scale), round(cut.height * scale)), Image.Resampling.BICUBIC)
    page = Image.new("L", (width, height), 0)
    page.paste(cut, (left, top))
    return np.asarray(page)


def likeness(one: Pixels, other: Pixels) -> float:
    """The correlation of two prepared pictures, at most a pixel apart: where a centre of mass is rounded to."""
    shifts = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    return max(float(np.corrcoef(np.roll(one, shift, (0, 1)).ravel(), other.ravel())[0, 1]) for shift in shifts)


def _saved(picture: Image.Image, kind: str, **options: Any) -> Image.Image:
    """The picture as it comes back from a file."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return Image.open(file)


def _transparent(drawn: Pixels, ink: int) -> Image.Image:
    rgba = np.full((*drawn.shape, 4), ink, np.uint8)
    rgba[..., 3] = drawn
    return _saved(Image.fromarray(rgba), "PNG")


def _card(drawn: Pixels) -> Image.Image:
    """Dark ink on a white card with transparent corners."""
    rgba = np.stack([255 - drawn] * 3 + [np.full_like(drawn, 255)], axis=-1)
    for rows in (slice(0, 12), slice(-12, None)):
        for columns in (slice(0, 12), slice(-12, None)):
            rgba[rows, columns] = 0
    return Image.fromarray(rgba)


def _palette(drawn: Pixels) -> Image.Image:
    return _saved(Image.fromarray(255 - drawn).convert("RGB").quantize(16), "GIF")


def _deep(drawn: Pixels) -> Image.Image:
    return _saved(Image.fromarray(65535 - drawn.astype(np.uint16) * 257), "PNG")


def _red_on_green(drawn: Pixels) -> Image.Image:
    """Two colours of the same lightness."""
    ink = drawn[..., None] / 255
    return Image.fromarray((ink * (200, 60, 60) + (1 - ink) * (40, 128, 40)).astype(np.uint8))


def _uneven(drawn: Pixels) -> Image.Image:
    """Paper that is twice as bright on one side as on the other, with grain."""
    light = np.linspace(1, 0.5, drawn.shape[1])
    grain = np.random.default_rng(0).normal(0, 4, drawn.shape)
    return Image.fromarray((light * (220 - 0.7 * drawn) + grain).clip(0, 255).astype(np.uint8))


def _framed(drawn: Pixels) -> Image.Image:
    page = 255 - drawn
    page[:2] = page[-2:] = 0
    page[:, :2] = page[:, -2:] = 0
    return Image.fromarray(page)


def _framed_inside(drawn: Pixels) -> Image.Image:
    page = 255 - drawn
    page[8:11, 8:-8] = page[-11:-8, 8:-8] = 0
    page[8:-8, 8:11] = page[8:-8, -11:-8] = 0
    return Image.fromarray(page)


FORMS: dict[str, Callable[[Pixels], Image.Image]] = {
    "dark on light": lambda drawn: Image.fromarray(255 - drawn),
    "faint": lambda drawn: Image.fromarray((150 - drawn // 8).astype(np.uint8)),
    "transparent, dark ink": lambda drawn: _transparent(drawn, 0),
    "transparent, light ink": lambda drawn: _transparent(drawn, 255),
    "a card with transparent corners": _card,
    "grey with alpha": lambda drawn: _transparent(drawn, 40).convert("LA"),
    "palette": _palette,
    "palette, transparent": lambda drawn: _saved(_transparent(drawn, 0).quantize(32), "PNG"),
    "16 bits": _deep,
    "10 bits in 16": lambda drawn: _saved(Image.fromarray(1023 - drawn.astype(np.uint16) * 4), "PNG"),
    "12 bits in 16": lambda drawn: _saved(Image.fromarray(4095 - drawn.astype(np.uint16) * 16), "TIFF"),
    "12 bits in 16, big-endian": lambda drawn: Image.fromarray((drawn.astype(np.uint16) * 16).astype(">u2")),
    "4 bits in 8, as is left of 12 in 16 in colour": lambda drawn: Image.fromarray(15 - drawn // 16).convert("RGB"),
    "32 bits": lambda drawn: Image.fromarray(drawn.astype(np.int32) * 1000),
    "floating point": lambda drawn: _saved(Image.fromarray(drawn.astype(np.float32) / 7), "TIFF"),
    "1 bit": lambda drawn: _saved(Image.fromarray(drawn).convert("1", dither=Image.Dither.NONE), "BMP"),
    "CMYK": lambda drawn: _saved(Image.fromarray(255 - drawn).convert("RGB").convert("CMYK"), "JPEG", quality=95),
    "JPEG": lambda drawn: _saved(Image.fromarray(255 - drawn), "JPEG", quality=40),
    "WebP": lambda drawn: _saved(Image.fromarray(255 - drawn), "WEBP", quality=60),
    "colours of one lightness": _red_on_green,
    "unevenly lit": _uneven,
    "a frame around it": _framed,
    "a frame on the page": _framed_inside,
}


@pytest.mark.parametrize("form", FORMS)
def test_prepare_picture_gives_the_same_for_every_form_of_a_digit(form: str, digits: Pixels) -> None:
    # Black and white alone have no grey edges.
    least = 0.88 if form == "1 bit" else 0.96
    for digit in digits[:5]:
        drawn = drawing(digit)
        assert likeness(prepare_picture(FORMS[form](drawn)), prepare_picture(Image.fromarray(drawn))) > least


# What a telephone did to a picture for each orientation that it notes; 1 is upright.
TURNED = {
    1: lambda page: page,
    2: np.fliplr,
    3: lambda page: np.rot90(page, 2),
    4: np.flipud,
    5: lambda page: page.T,
    6: np.rot90,
    7: lambda page: np.rot90(page, 2).T,
    8: lambda page: np.rot90(page, 3),
}


@pytest.mark.parametrize("orientation", TURNED)
def test_read_picture_follows_a_telephones_note_of_rotation(orientation: int, digits: Pixels, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("jpg", "png", "webp", "tif"):
        place = tmp_path / f"it.{kind}"
        turned = np.ascontiguousarray(TURNED[orientation](255 - drawing(digits[0])))
        Image.fromarray(turned).save(place, quality=95, exif=exif)
        seen = prepare_picture(read_picture(str(place)))
        assert likeness(seen, prepare_picture(Image.fromarray(drawing(digits[0])))) > 0.99


def test_read_picture_needs_no_sound_metadata(digits: Pixels, tmp_path: Path) -> None:
    page = Image.fromarray(255 - drawing(digits[0]))
    for number, damaged in enumerate(
        (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff12")
    ):
        page.save(tmp_path / f"{number}.jpg", exif=damaged)
        seen = prepare_picture(read_picture(str(tmp_path / f"{number}.jpg")))
        assert likeness(seen, prepare_picture(page)) > 0.99


@pytest.mark.parametrize("kind", pictures.HARD)
def test_prepare_picture_sees_the_digit_alone(kind: str, digits: Pixels) -> None:
    """Given what is around a digit and in its way, its prepared form is nearly that of a clean page."""
    number = list(pictures.HARD).index(kind)
    seen = prepare_picture(pictures.HARD[kind](digits[number], np.random.default_rng(number)))
    clean = prepare_picture(pictures.OTHERS["clean"](digits[number], np.random.default_rng(0)))
    assert likeness(seen, clean) > 0.85


def test_prepare_picture_finds_no_digit_on_empty_paper_and_among_several() -> None:
    with np.load(REPOSITORY / "digitcnn" / "datasets" / "mnist.npz") as mnist:
        several = pictures.several(mnist["x_test"][:500], mnist["y_test"][:500])
    blanks = {name: picture for name, picture in pictures.blanks().items() if name != "mottled"}
    for expected, shown in (("holds no digit", blanks), (r"holds \d separate shapes", several)):
        for name, picture in shown.items():
            with pytest.raises(ValueError, match=expected if name != "Hello" else "holds"):
                raise AssertionError(name, prepare_picture(picture))


def test_prepare_picture_leaves_mnist_nearly_as_it_is(digits: Pixels) -> None:
    for digit in digits:
        for picture in (digit, 255 - digit):
            seen = prepare_picture(Image.fromarray(picture))
            assert seen.max() == 255
            assert likeness(seen, digit) > 0.98


@pytest.mark.parametrize(("height", "width"), [(28, 28), (14, 14), (56, 56), (20, 40)])
def test_prepare_picture_fills_the_box_and_centres_the_mass(height: int, width: int, digits: Pixels) -> None:
    for digit in digits[:10]:
        seen = prepare_picture(Image.fromarray(drawing(digit)), height, width)
        assert (seen.shape, seen.dtype) == ((height, width), np.uint8)
        rows, columns = np.nonzero(seen)
        sides = np.array([np.ptp(rows) + 1, np.ptp(columns) + 1]) / (np.array([height, width]) * 20 / 28)
        assert sides.max() == pytest.approx(1, abs=0.1)
        centre = np.array(ndimage.center_of_mass(seen)) - (height / 2, width / 2)
        assert np.abs(centre).max() <= 0.5 + 1e-6


def test_prepare_picture_is_independent_of_size_and_place(digits: Pixels) -> None:
    for digit in digits[:3]:
        expected = prepare_picture(Image.fromarray(drawing(digit)))
        for width, height, side, left, top in (
            (4000, 3000, 900, 2900, 1900),
            (300, 900, 290, 4, 5),
            (90, 90, 50, 0, 0),
        ):
            seen = prepare_picture(Image.fromarray(drawing(digit, width, height, side, left, top)))
            assert likeness(seen, expected) > 0.98


def test_prepare_picture_widens_a_thin_pen_to_the_thinnest_of_mnist(digits: Pixels) -> None:
    page = np.full((600, 600), 255, np.uint8)
    page[60:540, 300:302] = 0
    seen = prepare_picture(Image.fromarray(page))
    assert seen[10].sum() / 255 == pytest.approx(1.9, abs=0.3)


RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (Image.new("L", (200, 160), 255), "holds no digit"),
        (Image.new("RGB", (200, 160), (3, 200, 7)), "holds no digit"),
        (Image.new("RGBA", (200, 160)), "is transparent all over"),
        (Image.fromarray(RANDOM.normal(120, 20, (160, 200)).astype(np.uint8)), "holds no digit"),
        (Image.fromarray(np.tile(np.linspace(50, 200, 200).astype(np.uint8), (160, 1))), "holds no digit"),
        (Image.new("L", (1, 1)), "has 1 x 1 pixels"),
        (Image.new("L", (20_000, 3)), "has 20000 x 3 pixels"),
        (Image.fromarray(np.full((9, 9), np.nan, np.float32)), "holds values that are not numbers"),
    ],
)
def test_prepare_picture_refuses_a_picture_without_a_digit(picture: Image.Image, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare_picture(picture)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width: int, height: int, pixels: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(pixels)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def _file(kind: str, cut: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(RANDOM.integers(0, 255, (200, 200), np.uint8)).save(file, kind)
    return file.getvalue()[:cut]


def _write(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**33)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "cannot be read: No such file or directory"),
        (_write(b""), "is empty"),
        (_write(b"a letter to a friend"), "is not a picture; must be"),
        # Pillow would start Ghostscript for it.
        (
            _write(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"),
            "is PostScript; save it as JPEG",
        ),
        (_write(b"\0\0\0\x20ftypheic\0\0\0\0mif1heic"), "is HEIC; save it as JPEG or PNG"),
        (_write(b"\0\0\0\x20ftypavif\0\0\0\0avifmif1"), "is AVIF; save it as JPEG or PNG"),
        (_write(b"%PDF-1.7\n"), "is a PDF file; save it as JPEG or PNG"),
        (_write(b'<?xml version="1.0"?>\n<svg/>'), "is SVG; save it"),
        (_write(b"<!DOCTYPE html><html>"), "is a web page; save it"),
        (
            _write(b"version https://git-lfs.github.com/spec/v1\n"),
            "is a Git LFS pointer; fetch the picture: git lfs pull",
        ),
        (_write(_png(60_000, 60_000, bytes(10**7))), "has more than 50,000,000 pixels"),
        (_write(_png(8_000, 8_000, bytes(8_000 * 8_001))), "has 8,000 x 8,000 pixels; at most 50,000,000"),
        (_write(_bmp(60_000, 60_000)), "has more than 50,000,000 pixels"),
        (_write(_file("PNG", 5000)), "is corrupt or truncated"),
        (_write(_file("JPEG", 5000)), "is corrupt or truncated"),
        (_write(_file("BMP", 5000)), "is corrupt or truncated"),
        (_write(_png(200, 200, b"12")), "is corrupt or truncated"),
        (_sparse, "holds 8,589,934,592 bytes; at most 67,108,864"),
        (Path.mkdir, "is a folder; name the pictures in it, as FOLDER/"),
        (os.mkfifo, "is not a regular file"),
        (lambda path: path.symlink_to("nowhere"), "cannot be read: No such file or directory"),
        (lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links"),
        (lambda path: path.symlink_to(path.parent), "is a folder; name the pictures in it, as FOLDER/"),
    ],
)
def test_read_picture_refuses_other_files(make: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    make(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=message):
        read_picture(str(path))
    # In kB: nothing was decoded. The smallest of the large ones would take 64 MB, the largest 8 GB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000


def test_read_picture_downloads_nothing() -> None:
    with pytest.raises(ValueError, match="is an address; download the picture first"):
        read_picture("https://127.0.0.1:1/7.png")


@pytest.mark.parametrize("kind", ["gif", "tif", "webp", "png"])
def test_read_picture_takes_the_first_of_several_and_says_so(
    kind: str, digits: Pixels, tmp_path: Path, messages: list[str]
) -> None:
    first, second = (Image.fromarray(255 - drawing(digit)) for digit in digits[:2])
    place = tmp_path / f"two.{kind}"
    first.save(place, save_all=True, append_images=[second])
    seen = prepare_picture(read_picture(str(place)))
    assert np.abs(seen.astype(int) - prepare_picture(first).astype(int)).mean() < 1
    assert messages == [f"{place}: holds several pages or pictures; the first one is taken"]
    first.save(place)
    read_picture(str(place))
    assert len(messages) == 1
