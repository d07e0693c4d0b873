"""What is labelled before a run begins: images held out for validation, and the patches that the run begins with."""

from collections.abc import Sequence

import numpy as np

from ..grid import Grid
from ..randomness import derive
from .classes import VOID
from .listing import Sample
from .store import compare, release


def hold_out(samples: Sequence[Sample], fraction: float) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """The pool, and of its labelled images a share for validation: at least one, never all.

    Every image has a number drawn by its name, and the lowest are held out: whichever run draws, and when there is one
    image more, at most one of the others changes sides.
    """
    labelled = [sample for sample in samples if sample.mask is not None]
    n = min(max(1, round(fraction * len(labelled))), len(labelled) - 1)
    by_draw = sorted(labelled, key=lambda sample: derive(0, 0, f"validation {sample.name}"))
    held = {sample.name for sample in by_draw[: max(0, n)]}
    return (tuple(sample for sample in samples if sample.name not in held),
            tuple(sample for sample in samples if sample.name in held))


def labelled_cells(masks: np.ndarray, images: Sequence[int], grid: Grid) -> np.ndarray:
    """bool ``[len(images), cells]``: patches of which a mask of a store, uint8 ``[N, H, W]``, labels a pixel at all.

    No label that somebody has made is dropped; a patch that is void from edge to edge trains nothing, and may be asked
    for.
    """
    found = np.zeros((len(images), grid.cells), bool)
    for row, i in enumerate(images):
        compare(masks, i, i + 1)
        whole = masks[i, : grid.rows * grid.patch_height, : grid.cols * grid.patch_width] != VOID
        patches = whole.reshape(grid.rows, grid.patch_height, grid.cols, grid.patch_width)
        found[row] = patches.any((1, 3)).ravel()
        release(masks, i, i + 1)
    return found
