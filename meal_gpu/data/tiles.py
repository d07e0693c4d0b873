"""Files that are larger than what a network takes, cut into images of one size (``data.tile``).

A tile is an image of its own, with its file and its place there. The last ones of a row or column may reach beyond the
file: what lies there is void. A file is decoded once, and held once while its tiles are cut; see `sheet` for those that
are read in parts.
"""

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import InputError, all_of
from ..grid import Box, Grid, Size
from .classes import VOID
from .fit import FILL
from .imagefile import Reading
from .listing import Sample
from .maskfile import Labels, read_classes
from .rules import Rules
from .sheet import Sheet, open_sheet, read_size


def told(tiles: Sequence[Sample], tile: Size) -> str:
    """One line for people."""
    files, beyond = len({sample.image for sample in tiles}), sum(sample.box != inside(sample) for sample in tiles)
    return (f"{files} files of the pool are cut into {len(tiles)} images of {tile[1]} x {tile[0]} pixels (width x "
            f"height); {beyond} reach beyond their file's edge, and are void there.")


def cut(samples: Sequence[Sample], tile: Size, reading: Reading) -> Iterator[Sample]:
    """Tiles of each sample, file by file. Reads headers; raises one `InputError` for all bad ones."""
    problems, sizes = list[InputError](), list[Size]()
    for sample in samples:
        try:
            sizes.append(read_size(sample.image, reading))
        except InputError as error:
            problems.append(error)
    if problems:
        raise all_of(problems, len(samples), "images")
    names = Counter(_name(sample, y, x) for sample, size in zip(samples, sizes, strict=True)
                    for y, x in _corners(size, tile))
    for sample, size in zip(samples, sizes, strict=True):
        for y, x in _corners(size, tile):
            name = _name(sample, y, x)
            if names[name] > 1:
                raise InputError(f"Two tiles have the name '{name}', one of them of {sample.image}. Rename that file.")
            yield replace(sample, name=name, box=(y, x, y + tile[0], x + tile[1]), file_size=size)


def _name(sample: Sample, y: int, x: int) -> str:
    return f"{sample.name}_y{y}_x{x}"


def _corners(size: Size, tile: Size) -> list[tuple[int, int]]:
    return [(y, x) for y in range(0, size[0], tile[0]) for x in range(0, size[1], tile[1])]


def inside(sample: Sample) -> Box:
    """The part of a tile that its file fills."""
    assert sample.box is not None
    y0, x0, y1, x1 = sample.box
    return y0, x0, min(y1, sample.file_size[0]), min(x1, sample.file_size[1])


def file_name(sample: Sample) -> str:
    """Of a tile, its file's."""
    return sample.name if sample.box is None else sample.name[: sample.name.rindex("_y")]


def find(patch: int, grid: Grid, samples: Sequence[Sample]) -> dict[str, Any]:
    """A patch's image, row, col and box; where that is a tile its file, and the box in the file's pixels."""
    image, cell = grid.split(patch)
    place = whereabouts(samples[image], grid.box(cell), (grid.height, grid.width))
    return {**grid.describe(cell, [samples[image].name]), **place}


def whereabouts(sample: Sample, box: Box, size: Size) -> dict[str, object]:
    """Of a box in a tile of ``size``: the file that the tile is cut from, and the box in that file's pixels."""
    if sample.box is None:
        return {}
    y0, x0, y1, x1 = sample.box
    down, across = (y1 - y0) / size[0], (x1 - x0) / size[1]
    place = [y0 + round(box[0] * down), x0 + round(box[1] * across), y0 + round(box[2] * down),
             x0 + round(box[3] * across)]
    return {"source": file_name(sample) + sample.image.suffix, "source_box": place}


@dataclass
class _File:
    """A file that some of its tiles have still to be cut from."""

    left: int
    lock: threading.Lock = field(default_factory=threading.Lock)
    sheet: Sheet | None = None
    labels: Labels | None = None
    problem: InputError | None = None


class Sheets:
    """Files that tiles are cut from: each is decoded by whoever comes first, and let go by whoever comes last."""

    def __init__(self, samples: Sequence[Sample], rules: Rules) -> None:
        self.rules = rules
        self._files = {image: _File(n) for image, n in Counter(s.image for s in samples if s.box).items()}

    def read(self, sample: Sample) -> tuple[np.ndarray, Labels | None, int]:
        """A tile's pixels uint8 ``[h, w, 3]``, its labels, and the orientation of its file."""
        file = self._files[sample.image]
        with file.lock:
            if file.sheet is None and file.problem is None:
                self._open(file, sample)
            try:
                if file.problem is not None:
                    raise file.problem
                assert file.sheet is not None
                return self._cut(file.sheet, file.labels, sample)
            finally:
                file.left -= 1
                if not file.left:
                    file.sheet = file.labels = None

    def _open(self, file: _File, sample: Sample) -> None:
        try:
            file.sheet = open_sheet(sample.image, self.rules.reading)
            if file.sheet.size != sample.file_size:
                raise InputError(f"{sample.image} has changed while it was read: start again.")
            if sample.mask is not None:
                file.labels = read_classes(sample.mask, self.rules)
                height, width = file.labels.classes.shape
                if (height, width) != file.sheet.size:
                    raise InputError(
                        f"{sample.mask} is {width} x {height} pixels (width x height), its image {sample.image} is "
                        f"{file.sheet.size[1]} x {file.sheet.size[0]}: they must be equal.")
        except InputError as error:
            file.problem, file.sheet, file.labels = error, None, None

    def _cut(self, sheet: Sheet, labels: Labels | None, sample: Sample) -> tuple[np.ndarray, Labels | None, int]:
        assert sample.box is not None
        y0, x0, y1, x1 = inside(sample)
        pixels = _filled(sheet.cut((y0, x0, y1, x1)), sample.box, FILL)
        if labels is not None:
            classes = _filled(labels.classes[y0:y1, x0:x1], sample.box, np.uint8(VOID))
            labels = Labels(np.ascontiguousarray(classes), labels.palette)
        return pixels, labels, sheet.turn


def _filled(part: np.ndarray, box: Box, value: np.ndarray | np.uint8) -> np.ndarray:
    """``part`` in the upper left of a whole tile."""
    height, width = box[2] - box[0], box[3] - box[1]
    if part.shape[:2] == (height, width):
        return part
    whole = np.empty((height, width, *part.shape[2:]), np.uint8)
    whole[:] = value
    whole[: part.shape[0], : part.shape[1]] = part
    return whole
