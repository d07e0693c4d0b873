"""The tiling of an image into patches, and the numbering of the patches of a pool."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import InputError

Box = tuple[int, int, int, int]
Size = tuple[int, int]
"""(height, width)"""


def box_around(mask: np.ndarray) -> Box:
    """The least box ``(y0, x0, y1, x1)`` that holds what is true in a mask, bool ``[H, W]``, that is not empty."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0]), int(cols[0]), int(rows[-1]) + 1, int(cols[-1]) + 1


@dataclass(frozen=True)
class Grid:
    """``rows`` × ``cols`` equal patches on images of ``height`` × ``width`` pixels.

    Every patch has ``height // rows`` × ``width // cols`` pixels, so that sums over patches compare like with like.
    Where the grid does not divide the image, the last ``height % rows`` pixel rows and ``width % cols`` pixel columns
    belong to no patch: they are never queried, labelled or evaluated, and a network that sees whole images sees them
    as context.

    Patches are numbered through the pool: ``id = image * cells + row * cols + col``.
    """

    rows: int
    cols: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.cols < 1 or self.patch_height < 2 or self.patch_width < 2:
            raise InputError(
                f"A grid of {self.rows} x {self.cols} does not fit images of {self.height} x {self.width} pixels: "
                f"rows must be 1 to {self.height // 2} and columns 1 to {self.width // 2}. Change data.grid."
            )

    @property
    def patch_height(self) -> int:
        return self.height // max(self.rows, 1)

    @property
    def patch_width(self) -> int:
        return self.width // max(self.cols, 1)

    @property
    def cells(self) -> int:
        """Patches per image."""
        return self.rows * self.cols

    @property
    def patch_pixels(self) -> int:
        return self.patch_height * self.patch_width

    def within(self, context: str) -> "Grid":
        """The grid within a frame, which is what the network sees at once: an ``image``, or a ``patch`` alone."""
        return self if context == "image" else Grid(1, 1, self.patch_height, self.patch_width)

    def per_image(self, context: str) -> int:
        """Frames that an image holds."""
        return 1 if context == "image" else self.cells

    def box(self, cell: int) -> Box:
        """Pixel box ``(y0, x0, y1, x1)``, half open, of cell ``0 … cells - 1`` (row by row)."""
        row, col = divmod(cell, self.cols)
        y, x = row * self.patch_height, col * self.patch_width
        return y, x, y + self.patch_height, x + self.patch_width

    def boxes(self) -> np.ndarray:
        """All boxes of an image, int64 ``[cells, 4]``."""
        return np.array([self.box(cell) for cell in range(self.cells)])

    def split(self, patch_id: int) -> tuple[int, int]:
        """``(image, cell)`` of a patch of the pool."""
        return divmod(patch_id, self.cells)

    def check(self, patch: Mapping[str, Any]) -> str | None:
        """What of a described patch contradicts its id; None where nothing does."""
        _, cell = self.split(int(patch["id"]))
        row, col = divmod(cell, self.cols)
        right = {"row": row, "col": col, "box": self.box(cell)}
        for key, value in right.items():
            given = patch.get(key)
            if given is not None and (tuple(given) if key == "box" else given) != value:
                return f"{key} {given} is not that of id {patch['id']}, {value}"
        return None

    def describe(self, patch_id: int, names: Sequence[str]) -> dict[str, object]:
        """What a person or a tool needs to find a patch: image name, row, col and pixel box."""
        image, cell = self.split(patch_id)
        row, col = divmod(cell, self.cols)
        return {"image": names[image], "row": row, "col": col, "box": list(self.box(cell))}
