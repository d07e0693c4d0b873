"""Images that keep their aspect ratio: resized into the upper left of the store's size, the rest is void."""

from collections.abc import Sequence

import numpy as np
import torch

from ..config import DataConfig
from ..grid import Grid, Size
from .classes import VOID
from .pixels import MEAN_255

FILL = np.array([round(mean) for mean in MEAN_255], np.uint8)
"""What the network takes for 0: no edge stands out more than it must."""


def inner_size(source: Size, size: Size) -> Size:
    """(height, width) of an image of ``source`` pixels within ``size``: as large as it fits, at least one pixel."""
    scale = min(size[0] / source[0], size[1] / source[1])
    return (min(size[0], max(1, round(source[0] * scale))), min(size[1], max(1, round(source[1] * scale))))


def empty(size: Size) -> tuple[np.ndarray, np.ndarray]:
    """An image uint8 ``[*size, 3]`` of nothing, and its mask, all void."""
    return np.tile(FILL, (*size, 1)), np.full(size, VOID, np.uint8)


def fitted(pixels: np.ndarray, size: Size) -> np.ndarray:
    """Resize uint8 ``[h, w, 3]`` as decoders do (bilinear, antialiased) into the upper left of ``[*size, 3]``."""
    from torchvision.transforms.v2.functional import resize

    height, width = inner_size((pixels.shape[0], pixels.shape[1]), size)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    found, _ = empty(size)
    found[:height, :width] = resize(image, [height, width], antialias=True).permute(1, 2, 0).numpy()
    return found


def fitted_mask(classes: np.ndarray, size: Size) -> np.ndarray:
    """The same for class indices uint8 ``[h, w]``, by nearest neighbour; the rest is `VOID`."""
    from .maskfile import nearest

    height, width = inner_size((classes.shape[0], classes.shape[1]), size)
    _, found = empty(size)
    found[:height, :width] = nearest(classes, (height, width))
    return found


def extents(sources: Sequence[Sequence[int] | None], data: DataConfig) -> np.ndarray | None:
    """int64 ``[N, 2]``: (height, width) of what each image fills of the store's size, in its upper left.

    ``sources`` as in `Store`. None where images fill it by how they are read.
    """
    size = data.image_size
    if data.resize != "fit" and data.tile is None:
        return None
    found = np.tile(np.array(size), (len(sources), 1))
    for i, source in enumerate(sources):
        if source is not None and data.tile is not None:
            found[i] = [min(whole, max(1, round(part * whole / cut)))
                        for part, whole, cut in zip(source, size, data.tile, strict=False)]
        elif source is not None:
            found[i] = inner_size((source[0], source[1]), size)
    return found


def filled(extents: np.ndarray, grid: Grid) -> np.ndarray:
    """int64 ``[N, cells, 2]``: pixel rows and columns of each patch that its image fills, from its upper left on."""
    boxes, patch = grid.boxes(), np.array([grid.patch_height, grid.patch_width])
    return (extents[:, None] - boxes[None, :, :2]).clip(0, patch)


def partly_filled(extents: np.ndarray | None, grid: Grid) -> np.ndarray | None:
    """int64 ``[N * cells, 2]``: `filled`, per patch of the pool; None where every image fills all of its patches."""
    if extents is None:
        return None
    found = filled(extents, grid).reshape(-1, 2)
    return found if (found != [grid.patch_height, grid.patch_width]).any() else None


def blank_patches(extents: np.ndarray, grid: Grid) -> np.ndarray:
    """bool ``[N, cells]``: patches of which more than half lies beside the image: nobody is asked for them."""
    return mostly_beside(filled(extents, grid).prod(2), grid)


def mostly_beside(pixels: np.ndarray, grid: Grid) -> np.ndarray:
    """`blank_patches`, given how many pixels of each patch its image fills, int64 ``[N, cells]``."""
    blank = pixels * 2 < grid.patch_pixels
    narrow = blank.all(1)  # a panorama: what there is of it may be asked for
    blank[narrow] = pixels[narrow] == 0
    return blank
