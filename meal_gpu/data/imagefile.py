"""Read one image or mask file: every pixel right, a stated conversion, or a clear error."""

import io
import mmap
import os
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ..errors import InputError
from ..files import read_given
from ..grid import Size
from . import tiff

Image.MAX_IMAGE_PIXELS = None  # Pillow's limit is for strangers' files; ours is ``data.max_megapixels``, by the header
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_MOST_BYTES = 32
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Reading:
    """What a config says of reading images."""

    exif: Literal["apply", "ignore"] = "apply"
    """Whether an EXIF orientation turns the image."""
    max_pixels: float = 5e8
    """A file of more is refused by its header."""
    bands: tuple[int, ...] | None = None
    """Of TIFF files: the samples that are red, green and blue, or the one that is grey, counted from 1."""


_PLAINLY = Reading()


def read_image(path: str | os.PathLike[str], reading: Reading = _PLAINLY) -> np.ndarray:
    """Decode an image to uint8 ``[H, W, 3]`` RGB.

    The file's content decides, not its suffix: a JPEG named ``.png`` is read as a JPEG. Conversions: grey is repeated
    into three channels, a palette is looked up, alpha is dropped (colours are not blended with anything), CMYK and
    YCbCr are converted, an EXIF orientation is applied, of several frames the first is taken. More than 8 bits a
    channel is refused, because the range that such a file uses is not known, and so is a TIFF file of more bands than
    colours, unless ``reading`` chooses.

    Raises `InputError` for a file that is missing, empty, truncated, damaged, too large or of another kind. The
    checksums of PNG chunks are checked, which Pillow does not; JPEG has none, so a damaged JPEG is found only where its
    stream breaks. Metadata that cannot be read is no orientation.
    """
    content = file_content(path, reading)
    if reading.bands is not None and content.startswith(tiff.SIGNATURES):
        return _bands(content, path, reading)[0]
    return _pixels(header(content, path, reading), path, reading)[0]


@dataclass(frozen=True, eq=False)
class Picture:
    """An image file that has been read and checked, for a decoder."""

    content: np.ndarray
    """uint8: the file's bytes ``[n]``, or pixels ``[H, W, 3]`` where decoders might not agree with `read_image`."""
    size: Size
    turn: int = 1
    """The EXIF orientation that the file has."""


def read_picture(path: str | os.PathLike[str], reading: Reading = _PLAINLY) -> Picture:
    """Read an image for a faster decoder than Pillow. Gives the pixels of `read_image`, and raises as it does.

    Handed on as they are: PNG files of 8 bits a channel without palette or colour key, and JPEG files of grey or YCbCr
    that end as they should; none with an orientation. The rest is decoded here.
    """
    content = file_content(path, reading)
    if reading.bands is not None and content.startswith(tiff.SIGNATURES):
        pixels, turn = _bands(content, path, reading)
        return Picture(pixels, (pixels.shape[0], pixels.shape[1]), turn)
    image = header(content, path, reading)
    if image.format == "PNG":
        # An orientation stands in one of these chunks. To ask Pillow for it would decode the image.
        plain = (image.mode in ("L", "RGB", "RGBA") and _rawmode(image) == image.mode
                 and "transparency" not in image.info
                 and not any(mark in content for mark in (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile type")))
    else:
        plain = (image.format == "JPEG" and image.mode in ("L", "RGB")
                 and content.rstrip(b"\0").endswith(b"\xff\xd9") and orientation(image) == 1)
    if plain:
        return Picture(np.frombuffer(content, np.uint8), (image.height, image.width))
    pixels, turn = _pixels(image, path, reading)
    return Picture(pixels, (pixels.shape[0], pixels.shape[1]), turn)


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Decode a mask to uint8 ``[H, W]``: the ids as they stand in the file (palette images: the indices).

    Raises `InputError` for anything but an 8-bit single-channel or palette PNG: colours or scaled grey values are not
    ids, and a lossy format invents ids at the borders.
    """
    return load_mask(path)[0]


def load_mask(path: str | os.PathLike[str], in_colour: bool = False, reading: Reading = _PLAINLY,
              content: bytes | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """A mask's values, uint8 ``[H, W]``, and where it has one its palette, uint8 ``[n, 3]``.

    With ``in_colour``, RGB and RGBA are read too, as ``[H, W, 3]``. An orientation is never applied: the masks that
    people draw have none. ``content``: of the file, where it has been read. Raises as `read_mask`.
    """
    content = file_content(path, reading) if content is None else _checked(content, path)
    image = header(content, path, reading, mask=True)
    what = image.format if image.format != "PNG" else f"PNG of Pillow mode {image.mode}"
    allowed = "Masks must be PNG files with one 8-bit channel (L) or a palette (P) whose values are class ids"
    if image.format != "PNG":
        raise InputError(f"{path} is a {what} file. {allowed}: a lossy or different format may change ids.")
    low = image.mode != "1" and _rawmode(image) != image.mode and image.mode != "P"
    if in_colour and image.mode in ("RGB", "RGBA") and not low:
        return np.array(_load(lambda mask: mask, image, path))[..., :3], None
    if image.mode in ("RGB", "RGBA", "LA") and not _bits16(image):
        raise InputError(f"{path} is a {what}, so it holds colours. {allowed}: write each pixel's class id (0, 1, "
                         "...) instead of its colour, or give the colours of the classes as data.mask_colours.")
    if image.mode not in ("L", "P") or low:  # Pillow stretches 2- and 4-bit grey to 0 … 255
        depth = "fewer than 8 bits" if image.mode in ("L", "1") else "more than 8 bits"
        raise InputError(f"{path} is a {what} with {depth} per pixel. {allowed}: save it with exactly 8 bits.")
    palette = None
    if image.mode == "P":
        raw = bytes(image.palette.palette) if image.palette is not None else b""
        palette = np.frombuffer(raw[: len(raw) // 3 * 3], np.uint8).reshape(-1, 3)
    return np.array(_load(lambda mask: mask, image, path)), palette


_TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
          5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
          8: Image.Transpose.ROTATE_90}
_BACK = {6: 8, 8: 6}
"""Orientations of which the turn is undone by that of another; the rest undo themselves."""


def orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1, as it is, where there is none or the metadata cannot be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow's parsers fail in whatever way the damage leads them to
        return 1
    return value if value in _TURNS else 1


def _bands(content: bytes, path: str | os.PathLike[str], reading: Reading) -> tuple[np.ndarray, int]:
    """As `_pixels`, of a TIFF file of which the config chooses bands."""
    assert reading.bands is not None
    tiff.check_layout(content, path, choosing=True)
    found = tiff.layout(content)
    if found is not None:
        check_size(*found.size, path, reading)
    turn = found.turn if found is not None and found.turn in _TURNS else 1
    pixels = tiff.read_bands(content, path, reading.bands)
    if turn != 1 and reading.exif == "apply":
        pixels = np.array(Image.fromarray(pixels).transpose(_TURNS[turn]))
    return pixels, turn


def _pixels(image: Image.Image, path: str | os.PathLike[str], reading: Reading) -> tuple[np.ndarray, int]:
    """uint8 ``[H, W, 3]``, and the orientation that the file asks for."""
    image, turn = turned(image, path, reading)
    return np.array(image), turn


def turned(image: Image.Image, path: str | os.PathLike[str], reading: Reading) -> tuple[Image.Image, int]:
    """Decode to RGB, turned as ``reading`` says; and the orientation that the file asks for."""
    check_depth(image, path)
    turns_itself = image.format == "TIFF"  # Pillow does so while it decodes, and forgets that there was one
    turn = orientation(image) if turns_itself else 1
    image = _load(lambda whole: whole, image, path)
    if not turns_itself:
        turn = orientation(image)
    if turn != 1 and (reading.exif == "apply") != turns_itself:
        image = image.transpose(_TURNS[_BACK.get(turn, turn) if turns_itself else turn])
    if image.mode != "RGB":
        # Straight from P to RGB drops transparency as RGBA does, without Pillow's warning.
        image = image.convert("RGBA").convert("RGB") if "transparency" in image.info else image.convert("RGB")
    return image, turn


def check_depth(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Raise `InputError` for more than 8 bits a channel, which the header says."""
    if image.mode[0] in "IF" or _bits16(image):
        raise InputError(f"{path} has more than 8 bits per channel (Pillow mode {image.mode}). Images must have 8: "
                         "convert it, choosing yourself which range of values becomes 0 to 255.")


def file_content(path: str | os.PathLike[str], reading: Reading = _PLAINLY) -> bytes:
    """All of a file. Raises `InputError` for one that cannot be read, is empty, is no regular file, has more bytes than
    its limit of pixels allows, or is a PNG of other checksums."""
    try:
        # No format takes more for a pixel, so that a file's length is known to be believable before it is in memory.
        content = read_given(path, int(reading.max_pixels * _MOST_BYTES), "data.max_megapixels allows")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist (any more). Restore the file, or remove its partner too.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    return _checked(content, path)


def _checked(content: bytes, path: str | os.PathLike[str]) -> bytes:
    if not content:
        raise InputError(f"{path} is empty (0 bytes). Copy the file again.")
    if content.startswith(_PNG_SIGNATURE):
        _check_png(content, path)
    return content


def header(content: tiff.Content, path: str | os.PathLike[str], reading: Reading, mask: bool = False) -> Image.Image:
    """The image, of which only the header has been looked at."""
    is_tiff = bytes(content[:4]) in tiff.SIGNATURES
    if is_tiff and not mask:
        tiff.check_layout(content, path, reading.bands is not None)
    try:
        source: Any = content if isinstance(content, mmap.mmap) else io.BytesIO(content)
        image = Image.open(source)
    except UnidentifiedImageError:
        layout = tiff.layout(content) if is_tiff else None
        if layout is not None and not mask:
            raise InputError(f"{path} is a TIFF file of {layout.words()} in a layout that Pillow does not open. Let "
                             "tifffile read it by choosing its bands, for example data.bands: [1, 2, 3], or convert "
                             "it.") from None
        raise InputError(f"{path} is not an image that can be read. Allowed: "
                         f"{', '.join(suffix[1:] for suffix in IMAGE_SUFFIXES)}.") from None
    except Exception as error:  # as in `orientation`
        raise _unreadable(path, error) from None
    check_size(image.height, image.width, path, reading)
    return image


def check_size(height: int, width: int, path: str | os.PathLike[str], reading: Reading) -> None:
    if height * width > reading.max_pixels:
        raise InputError(f"{path} is too large: {width} x {height} pixels (width x height), "
                         f"{height * width / 1e6:,.0f} megapixels, and data.max_megapixels is "
                         f"{reading.max_pixels / 1e6:g}. Raise it where memory allows (3 bytes a pixel and reader), or "
                         "cut the image into smaller ones.")


def _load(step: Callable[[Image.Image], Image.Image], image: Image.Image, path: str | os.PathLike[str]) -> Image.Image:
    try:
        image.load()
        return step(image)
    except MemoryError:
        raise InputError(f"{path} is too large for the memory that is free: {image.width} x {image.height} pixels. Cut "
                         "it into smaller images.") from None
    except Exception as error:  # as in `orientation`
        raise _unreadable(path, error) from None


def _unreadable(path: str | os.PathLike[str], error: Exception) -> InputError:
    return InputError(f"{path} cannot be decoded, it is truncated or damaged ({error}). Copy the file again.")


def _check_png(content: bytes, path: str | os.PathLike[str]) -> None:
    """Walk over the chunks and compare their checksums. Pillow skips those of the pixels."""
    at = len(_PNG_SIGNATURE)
    while at + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        end = at + 12 + length
        if end > len(content):
            break
        if zlib.crc32(memoryview(content)[at + 4 : end - 4]) != struct.unpack_from(">I", content, end - 4)[0]:
            raise InputError(f"{path} is damaged: the PNG checksum at byte {at} is wrong. Copy the file again.")
        if content[at + 4 : at + 8] == b"IEND":
            return
        at = end
    raise InputError(f"{path} is truncated: it ends after {len(content)} bytes, before the PNG does. "
                     "Copy the file again.")


def _rawmode(image: Image.Image) -> str:
    """How pixels are packed in the file, in Pillow's words, such as ``RGB;16B``; empty when unknown."""
    tiles = getattr(image, "tile", None) or [("", (), 0, "")]
    args = tiles[0][3]
    return str(args[0] if isinstance(args, tuple) and args else args or "")


def _bits16(image: Image.Image) -> bool:
    return re.search(r";16", _rawmode(image)) is not None
