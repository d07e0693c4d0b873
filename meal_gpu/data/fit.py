"""Images that keep their aspect ratio: resized into the upper left of the store's size, the rest is void."""

from collections.abc import Sequence

import numpy as np
import torch

from ..grid import Grid, Size
from .classes import VOID
from .pixels import MEAN_255

_FILL = np.array([round(mean) for mean in MEAN_255], np.uint8)
"""What the network takes for 0: no edge stands out more than it must."""


def inner_size(source: Size, size: Size) -> Size:
    """(height, width) of an image of ``source`` pixels within ``size``: as large as it fits, at least one pixel."""
    scale = min(size[0] / source[0], size[1] / source[1])
    return (min(size[0], max(1, round(source[0] * scale))), min(size[1], max(1, round(source[1] * scale))))


def empty(size: Size) -> tuple[np.ndarray, np.ndarray]:
    """An image uint8 ``[*size, 3]`` of nothing, and its mask, all void."""
    return np.tile(_FILL, (*size, 1)), np.full(size, VOID, np.uint8)


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


def blank_patches(sources: Sequence[Sequence[int] | None], grid: Grid) -> np.ndarray:
    """bool ``[N, cells]``: patches of which more than half lies beside the image: nobody is asked for them."""
    boxes, size = grid.boxes(), (grid.height, grid.width)
    found = np.zeros((len(sources), grid.cells), np.bool_)
    for i, source in enumerate(sources):
        if source is not None:
            height, width = inner_size((source[0], source[1]), size)
            rows = (np.minimum(boxes[:, 2], height) - boxes[:, 0]).clip(0)
            cols = (np.minimum(boxes[:, 3], width) - boxes[:, 1]).clip(0)
            found[i] = rows * cols * 2 < grid.patch_pixels
            if found[i].all():  # a panorama: what there is of it may be asked for
                found[i] = rows * cols == 0
    return found
