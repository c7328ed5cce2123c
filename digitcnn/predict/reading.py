"""Reading of pictures: of a few formats, with limits that are judged before anything is decoded."""

import contextlib
import io
import logging
import os
import re
import stat
import warnings

from PIL import Image, ImageOps, UnidentifiedImageError

logger = logging.getLogger(__name__)

# The decoders that a picture may reach: no others of Pillow's forty, some of which start other programs.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
# Others that people have, by their first bytes.
_OTHER_FORMATS = {
    "HEIC": rb"....ftyp(hei|hev|mif1|msf1)",
    "AVIF": rb"....ftypavi",
    "JPEG 2000": rb"....jP  |\xff\x4f\xff\x51",
    "JPEG XL": rb"....JXL |\xff\x0a",
    "a PDF file": rb"%PDF",
    "PostScript": rb"%!PS",
    "PPM": rb"P[1-7]\s",
    "a Photoshop file": rb"8BPS",
    "SVG": rb"\s*(<\?xml.*)?<svg",
    "a web page": rb"\s*<(!doctype )?html",
}
_MAX_FILE_BYTES = 64 * 2**20
# A telephone's camera; decoded in colour it takes 200 MB. Pillow itself allows 179 million.
_MAX_PIXELS = 50_000_000


def read_picture(name: str) -> Image.Image:
    """Return the decoded picture of a file: of an animation or of several pages the first, with a warning.

    Raises ValueError with the cause, and the remedy if there is one, for a file that is not a picture, is corrupt or
    truncated, or is too large, which is judged before it is decoded.
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
    except IsADirectoryError:
        raise ValueError("is a folder; name the pictures in it, as FOLDER/*") from None
    except OSError as error:
        if "://" in name:
            raise ValueError("is an address; download the picture first") from None
        raise ValueError(f"cannot be read: {error.strerror}") from None
    with warnings.catch_warnings():
        # Pillow's warnings about sizes and damaged metadata: the sizes are judged here.
        warnings.simplefilter("ignore")
        try:
            picture = Image.open(io.BytesIO(content), formats=_FORMATS)
        except UnidentifiedImageError:
            raise ValueError(_other_format(content)) from None
        except Image.DecompressionBombError:
            raise ValueError(f"has more than {_MAX_PIXELS:,} pixels") from None
        if picture.width * picture.height > _MAX_PIXELS:
            raise ValueError(f"has {picture.width:,} x {picture.height:,} pixels; at most {_MAX_PIXELS:,}")
        with contextlib.suppress(Exception):
            # A telephone's MPO has its preview as a second one.
            if picture.format != "MPO" and getattr(picture, "is_animated", False):
                logger.warning(f"{name}: holds several pages or pictures; the first one is taken")
        try:
            picture.load()
        except Exception as error:
            # Decoders raise many kinds of errors for files that were cut off or made up.
            raise ValueError(f"is corrupt or truncated ({' '.join(str(error).split())})") from None
        try:
            return ImageOps.exif_transpose(picture)
        except Exception:
            # Metadata are as easily damaged, but nothing is lost with them.
            return picture


def _other_format(content: bytes) -> str:
    """Return what a file is instead of a picture that is read, and the remedy."""
    if not content:
        return "is empty"
    if content.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer; fetch the picture: git lfs pull"
    for name, pattern in _OTHER_FORMATS.items():
        if re.match(pattern, content[:200], re.IGNORECASE | re.DOTALL):
            return f"is {name}; save it as JPEG or PNG"
    return f"is not a picture; must be one of {', '.join(_FORMATS)}"
