"""A store of decoded images: raw uint8 pixels that are memory-mapped, and a manifest. `ingest` makes them.

A store is a directory with ``images.u8`` (``[N, H, W, 3]``), ``masks.u8`` (``[N, H, W]``, class indices and `VOID`;
absent without labels) and ``manifest.json``: the settings it was made with, the images' names, and per image the source
files' sizes and times and the CRC-32 of its pixels, what the source files were, and pixels per class. Stores of before
these two were kept have neither.
"""

import json
import mmap
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..grid import Size
from ..timing import Progress, no_progress

FORMAT = 2
"""Raised when a store's layout or the pixels of a decoder change: older stores are then rebuilt."""
FILES = ("images.u8", "masks.u8")


@dataclass(frozen=True, eq=False)
class Store:
    """Decoded images, memory-mapped: opening one reads its manifest, not its pixels."""

    path: Path
    names: tuple[str, ...]
    images: np.ndarray
    """uint8 memmap ``[N, H, W, 3]``, read-only."""
    masks: np.ndarray | None
    """uint8 memmap ``[N, H, W]``, read-only: class indices and `VOID`. None where nobody has labelled."""
    checksums: list[list[int]]
    """CRC-32 per image: of the image's bytes and, where there are masks, of the mask's."""
    sources: list[list[int] | None] | None = None
    """Per image: height, width and EXIF orientation of its file; None where that was not kept."""
    counts: list[list[int]] | None = None
    """Pixels, and images that hold one, of each mask value of the store: two lists of 256."""

    @classmethod
    def open(cls, path: Path) -> "Store":
        """Open a complete store; `ValueError` or `OSError` where it is missing, unreadable or of the wrong length."""
        return cls.from_manifest(path, read_manifest(path))

    @classmethod
    def from_manifest(cls, path: Path, manifest: dict[str, Any]) -> "Store":
        try:
            names, checksums, (height, width) = manifest["names"], manifest["checksums"], manifest["image_size"]
            parts = len(checksums[0])
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"its manifest is incomplete ({error!r})") from None
        if len(checksums) != len(names):
            raise ValueError("its manifest is incomplete")
        maps: list[np.ndarray | None] = [None, None]
        for i, shape in enumerate(shapes_of(len(names), (height, width))[:parts]):
            file, length = path / FILES[i], int(np.prod(shape))
            if file.stat().st_size != length:
                raise ValueError(f"{file.name} has {file.stat().st_size:,} bytes instead of {length:,}")
            maps[i] = np.memmap(file, np.uint8, "r", shape=shape)
        assert maps[0] is not None
        return cls(path, tuple(names), maps[0], maps[1], checksums, manifest.get("sources"), manifest.get("counts"))

    def verify(self, progress: Progress = no_progress) -> None:
        """Read everything and compare the checksums. Raises `InputError` with the names of damaged images."""
        damaged = []
        for i, name in enumerate(self.names):
            if checksums_of(self.images[i], None if self.masks is None else self.masks[i]) != self.checksums[i]:
                damaged.append(name)
            for part in (self.images, self.masks):
                if part is not None:
                    release(part, i, i + 1)
            progress("verify", i + 1, len(self.names))
        if damaged:
            raise InputError(
                f"The store {self.path} is damaged: the pixels of {', '.join(damaged[:5])}"
                f"{f' and {len(damaged) - 5} more images' if len(damaged) > 5 else ''} are not those that were written."
                " Delete that directory; the next start decodes the images again.")


def release(rows: np.ndarray, first: int, last: int) -> None:
    """Give back the memory that rows ``first … last - 1`` of a mapped array take in this process.

    The pixels stay in the system's page cache. Without this, whoever reads a store from end to end holds all of it.
    Rows of an array that is no memory map are left alone.
    """
    if isinstance(rows.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED") and last > first:
        rows.base.madvise(mmap.MADV_DONTNEED, *_pages(rows, first, last))


def expect(rows: np.ndarray, first: int, last: int) -> None:
    """Have the system read rows ``first … last - 1`` of a mapped array from the disk while other work goes on."""
    if isinstance(rows.base, mmap.mmap) and hasattr(mmap, "MADV_WILLNEED") and last > first:
        rows.base.madvise(mmap.MADV_WILLNEED, *_pages(rows, first, last))


def _pages(rows: np.ndarray, first: int, last: int) -> tuple[int, int]:
    """Where the pages of rows begin in a mapped file, and how long they are."""
    start = first * rows[0].nbytes // mmap.PAGESIZE * mmap.PAGESIZE
    return start, last * rows[0].nbytes - start


def map_images(path: Path, first: int, last: int, size: Size) -> np.ndarray:
    """Images ``first … last - 1`` of a store, uint8 ``[n, H, W, 3]``, mapped by themselves: `release` works on them.

    The manifest, which names every image, is not read. Raises `InputError` where the file does not hold them.
    """
    file, shape = path / FILES[0], (last - first, *size, 3)
    row = int(np.prod(shape[1:]))
    try:
        if file.stat().st_size >= last * row:
            return np.memmap(file, np.uint8, "r", offset=first * row, shape=shape)
        trouble = f"is shorter than {last} images"
    except OSError as error:
        trouble = f"cannot be read: {error.strerror}"
    raise InputError(f"{file} {trouble}. Every process of a run must see the same store: give a directory that all "
                     "share as data.store.")


def read_manifest(path: Path) -> dict[str, Any]:
    manifest = json.loads((path / "manifest.json").read_bytes())
    if not isinstance(manifest, dict):
        raise ValueError("its manifest is not a table")
    return manifest


def shapes_of(n: int, size: Size) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (n, *size, 3), (n, *size)


def checksums_of(image: np.ndarray, mask: np.ndarray | None) -> list[int]:
    return [zlib.crc32(np.ascontiguousarray(part).data) for part in (image, mask) if part is not None]
