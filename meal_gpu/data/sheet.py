"""A large image file that tiles are cut from: decoded once, or read in parts where its format allows.

TIFF files in strips or tiles, 8-bit grey or RGB with or without more bands, uncompressed or deflated, are read in the
parts that a cut needs, where tifffile is installed. Of every other file Pillow holds the whole, 4 bytes a pixel.
"""

import mmap
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ..errors import InputError
from ..grid import Box, Size
from . import tiff
from .imagefile import Reading, check_depth, check_size, file_content, header, orientation, read_image, turned

_BY_PARTS = (1, 8, 32946)
"""TIFF's numbers for no compression and for deflate, which need no other library."""


class Sheet(Protocol):
    size: Size
    """(height, width) as the file is read."""
    turn: int
    """The EXIF orientation that the file has."""

    def cut(self, box: Box) -> np.ndarray:
        """Pixels uint8 ``[h, w, 3]`` of a box within the file."""
        ...


class _Held:
    """By Pillow, or as an array where bands are chosen."""

    def __init__(self, image: Image.Image, turn: int) -> None:
        self.image, self.turn, self.size = image, turn, (image.height, image.width)

    def cut(self, box: Box) -> np.ndarray:
        return np.array(self.image.crop((box[1], box[0], box[3], box[2])))


class _Parts:
    """A TIFF file of which the strips or tiles are read that a box touches."""

    turn = 1

    def __init__(self, path: str | os.PathLike[str], page: Any, bands: tuple[int, ...]) -> None:
        self.path, self.page, self.bands = path, page, [band - 1 for band in bands]
        self.size = (int(page.imagelength), int(page.imagewidth))
        self._high = int(page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength))
        self._wide = int(page.tilewidth if page.is_tiled else page.imagewidth)
        if self._high < 1 or self._wide < 1:
            raise ValueError("its parts have no pixels")

    def cut(self, box: Box) -> np.ndarray:
        y0, x0, y1, x1 = box
        across = -(-self.size[1] // self._wide)
        parts = [row * across + col for row in range(y0 // self._high, -(-y1 // self._high))
                 for col in range(x0 // self._wide, -(-x1 // self._wide))]
        found = np.zeros((y1 - y0, x1 - x0, len(self.bands)), np.uint8)
        page = self.page
        try:
            with open(self.path, "rb") as file:
                for i in parts:
                    file.seek(page.dataoffsets[i])
                    pixels, (_, _, top, left, _), _ = page.decode(file.read(page.databytecounts[i]), i)
                    if pixels is None:
                        raise ValueError(f"part {i} is empty")
                    part = pixels[0][..., self.bands]  # whole parts may reach beyond the file
                    high, wide = min(y1, top + part.shape[0]), min(x1, left + part.shape[1])
                    first, start = max(y0, top), max(x0, left)
                    found[first - y0 : high - y0, start - x0 : wide - x0] = part[first - top : high - top,
                                                                                 start - left : wide - left]
        except Exception as error:  # it fails in whatever way the damage leads it to
            raise InputError(f"{self.path} cannot be decoded, it is truncated or damaged ({error}). Copy the file "
                             "again.") from None
        return found if len(self.bands) == 3 else found.repeat(3, 2)


def open_sheet(path: str | os.PathLike[str], reading: Reading) -> Sheet:
    """Raises `InputError` as `imagefile.read_image` does, and gives its pixels."""
    parts = _by_parts(path, reading)
    if parts is not None:
        return parts
    if reading.bands is not None:
        pixels = read_image(path, reading)
        return _Held(Image.fromarray(pixels), 1)
    image, turn = turned(header(file_content(path, reading), path, reading), path, reading)
    return _Held(image, turn)


def read_size(path: str | os.PathLike[str], reading: Reading) -> Size:
    """(height, width) of an image as it will be read, by its header. Raises `InputError` as `open_sheet` does."""
    with mapped(path) as content:
        if bytes(content[:4]) in tiff.SIGNATURES:
            tiff.check_layout(content, path, reading.bands is not None)
            found = tiff.layout(content)
            if found is not None:
                check_size(*found.size, path, reading)
                return found.size[::-1] if found.turn in (5, 6, 7, 8) and reading.exif == "apply" else found.size
        # Of a PNG that has an orientation Pillow reads all, to find it; of others the header.
        image = header(content, path, reading)
        check_depth(image, path)
        quarter = (image.format != "PNG" or content.find(b"eXIf", 0) >= 0) and orientation(image) >= 5
        return (image.width, image.height) if quarter and reading.exif == "apply" else (image.height, image.width)


def mapped(path: str | os.PathLike[str]) -> mmap.mmap:
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # none, or empty: said as of any image
        file_content(path)
        raise InputError(f"{path} cannot be read.") from None


def _by_parts(path: str | os.PathLike[str], reading: Reading) -> _Parts | None:
    """The file, where it can be read in parts with the pixels of a whole reading; else None."""
    with mapped(path) as content:
        if bytes(content[:4]) not in tiff.SIGNATURES:
            return None
        tiff.check_layout(content, path, reading.bands is not None)
        found = tiff.layout(content)
        if found is None or found.turn != 1 or set(found.bits) != {8} or (found.planar and found.samples > 1):
            return None
        check_size(*found.size, path, reading)
    bands = reading.bands or {(1, 1): (1,), (2, 3): (1, 2, 3), (2, 4): (1, 2, 3)}.get(
        (found.photometric, found.samples))
    if bands is None or max(bands) > found.samples:
        return None
    try:
        import tifffile

        with tifffile.TiffFile(Path(path)) as file:
            page = file.pages[0]
            if page.compression not in _BY_PARTS or page.fillorder != 1 or page.imagedepth != 1:
                return None
            return _Parts(path, page, bands)
    except Exception:  # not there, or it does not open the file: whoever reads it whole says why
        return None
