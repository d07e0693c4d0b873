"""A store of decoded images: raw uint8 pixels that are memory-mapped, and a manifest. `ingest` makes them.

A store is a directory with ``images.u8`` (``[N, H, W, 3]``), ``masks.u8`` (``[N, H, W]``, class indices and `VOID`;
absent without labels) and ``manifest.json``: the settings it was made with, the images' names, and per image the source
files' sizes and times and the CRC-32 of its pixels, what the source files were, and pixels per class. Stores of before
these two were kept have neither.
"""

import json
import mmap
import shlex
import stat
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import open_object, parse_json, read_own, seal_object, write_atomic
from ..grid import Size
from ..timing import Progress, no_progress

FORMAT = 2
"""Raised when a store's layout or the pixels of a decoder change: older stores are then rebuilt."""
FILES = ("images.u8", "masks.u8")


class Checksums:
    """Of the rows of a mapped file, each compared once in a process: where it is first read."""

    def __init__(self, what: str, path: Path, names: Sequence[str], sums: Sequence[int]) -> None:
        self.what, self.path, self.names, self.sums = what, path, names, sums
        self.compared = np.zeros(len(sums), bool)

    def compare(self, rows: np.ndarray, first: int, last: int) -> None:
        """Raise `InputError`, naming the image, where rows ``first … last - 1`` are not those that were written."""
        todo = (first + np.flatnonzero(~self.compared[first:last])).tolist()
        if len(todo) * rows[0].nbytes > _ALONE:
            with ThreadPoolExecutor(4, "compare") as threads:  # zlib leaves the interpreter to others meanwhile
                found = list(threads.map(lambda i: zlib.crc32(rows[i].data), todo))
        else:
            found = [zlib.crc32(rows[i].data) for i in todo]
        for i, sum_ in zip(todo, found, strict=True):
            if sum_ != self.sums[i]:
                raise InputError(f"The {self.what} {self.names[i]} in the store {self.path} is damaged: its pixels are "
                                 f"not those that were written. {rebuilding(self.path)}")
            self.compared[i] = True


_ALONE = 2**24
"""Bytes that are compared sooner than threads are started."""


class Mapped(np.memmap):
    """A mapped file whose rows have checksums; a part of it has none. See `compare`."""

    checksums: Checksums | None = None


def compare(rows: np.ndarray, first: int, last: int) -> None:
    """Compare rows ``first … last - 1`` of a store's file with their checksums, where that was not done before.

    Raises `InputError`, naming the image and what rebuilds it. Rows of an array that is no store's are left alone.
    """
    checksums = getattr(rows, "checksums", None)
    if checksums is not None and not checksums.compared[first:last].all():
        checksums.compare(rows, first, last)


def rebuilding(path: Path) -> str:
    """How a damaged store is made anew."""
    return f"Remove it, and the next start decodes the images again: rm -r {shlex.quote(str(path))}"


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
        if manifest.get("settings", {}).get("image_size", [height, width]) != [height, width]:
            raise ValueError("its manifest contradicts itself in the size of the images")
        maps: list[np.ndarray | None] = [None, None]
        for i, shape in enumerate(shapes_of(len(names), (height, width))[:parts]):
            file, length = path / FILES[i], int(np.prod(shape))
            if not stat.S_ISREG(file.lstat().st_mode):
                raise ValueError(f"{file.name} is no regular file")
            if file.stat().st_size != length:
                raise ValueError(f"{file.name} has {file.stat().st_size:,} bytes instead of {length:,}")
            part = maps[i] = Mapped(file, np.uint8, "r", shape=shape)
            part.checksums = Checksums(("image", "mask of")[i], path, names, [sums[i] for sums in checksums])
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
                f" {rebuilding(self.path)}")


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

    Of the manifest, which names every image, what belongs to these is kept. Raises `InputError` where the file does not
    hold them.
    """
    file, shape = path / FILES[0], (last - first, *size, 3)
    row = int(np.prod(shape[1:]))
    try:
        if file.stat().st_size >= last * row:
            images = Mapped(file, np.uint8, "r", offset=first * row, shape=shape)
            manifest = read_manifest(path)
            names, sums = manifest["names"][first:last], manifest["checksums"][first:last]
            images.checksums = Checksums("image", path, names, [of_image for of_image, *_ in sums])
            return images
        trouble = f"is shorter than {last} images"
    except OSError as error:
        file, trouble = Path(error.filename or file), f"cannot be read: {error.strerror}"
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"The store {path} is damaged: {error}. {rebuilding(path)}") from None
    raise InputError(f"{file} {trouble}. Every process of a run must see the same store: give a directory that all "
                     "share as data.store.")


def write_images(path: Path, images: np.ndarray) -> None:
    """A store of images uint8 ``[n, H, W, 3]`` that no file was read for, such as noise, in a directory that exists."""
    (path / FILES[0]).write_bytes(images.tobytes())
    manifest = {"format": FORMAT, "names": [str(i) for i in range(len(images))], "image_size": images.shape[1:3],
                "checksums": [checksums_of(image, None) for image in images]}
    write_atomic(path / "manifest.json", seal_object(json.dumps(manifest).encode()))


def read_manifest(path: Path) -> dict[str, Any]:
    text, _, right = open_object(read_own(path / "manifest.json"))
    manifest = parse_json(text)
    if not isinstance(manifest, dict):
        raise ValueError("its manifest is not a table")
    if right is False:  # stores of before have no checksum there
        raise ValueError("its manifest was changed")
    return manifest


def shapes_of(n: int, size: Size) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (n, *size, 3), (n, *size)


def checksums_of(image: np.ndarray, mask: np.ndarray | None) -> list[int]:
    return [zlib.crc32(np.ascontiguousarray(part).data) for part in (image, mask) if part is not None]
