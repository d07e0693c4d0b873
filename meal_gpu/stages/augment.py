"""Augmentation: the frames of labelled patches flipped, zoomed and recoloured, and the labels with them.

Each patch of a batch gets a picture of its own: its frame, changed so that the patch, or a part of it, lies where a
patch of the grid lies. So a step's windows are those of a step without it. All numbers are drawn and made on the host;
the device only applies them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..config import TrainConfig
from ..data.frames import sent
from ..data.pixels import statistics
from ..grid import Grid
from ..network.features import Features
from ..randomness import derive

GREY = (0.2989, 0.587, 0.114)
"""What red, green and blue count in an image without colour (ITU-R BT.601, as torchvision has it)."""
_DRAWS = 7


@dataclass(frozen=True)
class Changes:
    """How the pictures of a batch of B patches are made of their frames."""

    axes: Tensor
    """float32 ``[B, 4]``: the middle of pixel row i shows what the frame has at ``axes[0] (i + ½) + axes[1]`` pixels
    from its top; columns likewise with ``axes[2]`` and ``axes[3]``, from the left."""
    colours: Tensor
    """float32 ``[B, 3]``: factors of brightness, contrast and saturation."""
    cells: Tensor
    """int64 ``[B]``: where in its picture each patch lies."""


def drawn(cells: Tensor, grid: Grid, config: TrainConfig, order: torch.Generator) -> Changes:
    """Random changes for patches at these cells of their frames, int64 ``[B]`` on the host.

    A part that is off draws as well, so that the others draw the same with and without it.
    """
    draws = torch.rand(len(cells), _DRAWS, generator=order, dtype=torch.float64)
    flipped = draws[:, 0] < (0.5 if config.flip else 0.0)
    shown = config.scale ** (1 - 2 * draws[:, 1])  # of the frame, where the picture shows one pixel
    rows, cols = cells // grid.cols, cells % grid.cols
    cols = torch.where(flipped, grid.cols - 1 - cols, cols)
    # A random point of the patch stays where it is, so that all parts of it are seen.
    top = (rows + draws[:, 2]) * grid.patch_height * (1 - shown)
    left = (cols + draws[:, 3]) * grid.patch_width * (1 - shown)
    # The mirror stands in the middle of what the grid covers, so that patches come to lie on patches.
    across = torch.where(flipped, -shown, shown)
    left = torch.where(flipped, grid.cols * grid.patch_width - left, left)
    return Changes(torch.stack([shown, top, across, left], 1).float(),
                   (1 + config.colour * (2 * draws[:, 4:] - 1)).float(), rows * grid.cols + cols)


@dataclass(frozen=True)
class Known:
    """Constants of colours, float32 ``[3, 1, 1]``."""

    mean: Tensor
    scale: Tensor
    """Of `data.pixels.normalise`."""
    grey: Tensor

    @classmethod
    def on(cls, device: torch.device) -> "Known":
        return cls(*(value[:, None, None] for value in (*statistics(device), torch.tensor(GREY).to(device))))


class Augmentation:
    """The changed pictures of a training on labelled patches, and what is known of their windows."""

    def __init__(self, features: Features, ids: Tensor, labels: Tensor, config: TrainConfig,
                 order: torch.Generator) -> None:
        self.grid, self.config, self.labels, self.device = features.frames.grid, config, labels, ids.device
        self.draws = torch.Generator().manual_seed(derive(order.initial_seed(), 0, "augment"))
        self.row_of = torch.full((features.frames.count * self.grid.cells,), -1, dtype=torch.int64, device=ids.device)
        self.row_of[ids] = torch.arange(len(ids), device=ids.device)
        self.known = Known.on(ids.device)

    def drawn(self, patches: Sequence[Tensor]) -> tuple[list[Changes], list[Tensor]]:
        """For each batch of patches, int64 ``[B]`` on the host; sent to the device in as few copies as there are
        kinds of numbers. And where the patches then lie, for the host."""
        changes = [drawn(ids % self.grid.cells, self.grid, self.config, self.draws) for ids in patches]
        on_device = [Changes(*parts) for parts in zip(*(
            sent([getattr(change, field.name) for change in changes], self.device) for field in fields(Changes)),
            strict=True)]
        return on_device, [change.cells for change in changes]

    def pictures(self, pixels: Tensor, changes: Changes) -> Tensor:
        """Of frames ``[B, 3, H, W]``."""
        if self.config.colour:
            pixels = recoloured(pixels, changes.colours, self.known)
        return moved(pixels, changes.axes) if self.config.flip or self.config.scale > 1 else pixels

    def labels_of(self, patches: Tensor, changes: Changes, own: Tensor) -> Tensor:
        """What is known of the windows of patches int64 ``[B]``: uint8 ``[B, patch_height, patch_width]``.

        ``own`` are the labels of the patches themselves, as large. A window that shows more than its patch has those of
        labelled neighbours too, and 255 elsewhere.
        """
        grid, axes, cells = self.grid, changes.axes, changes.cells
        rows = torch.arange(grid.patch_height, device=axes.device) + (cells // grid.cols * grid.patch_height)[:, None]
        cols = torch.arange(grid.patch_width, device=axes.device) + (cells % grid.cols * grid.patch_width)[:, None]
        y, x = (_source(at, axis).floor().long() for at, axis in ((rows, axes[:, :2]), (cols, axes[:, 2:])))
        inside = (((y >= 0) & (y < grid.rows * grid.patch_height))[:, :, None]
                  & ((x >= 0) & (x < grid.cols * grid.patch_width))[:, None])
        y, x = y.clamp(0, grid.rows * grid.patch_height - 1), x.clamp(0, grid.cols * grid.patch_width - 1)
        cell = (y // grid.patch_height * grid.cols)[:, :, None] + (x // grid.patch_width)[:, None]
        row = self.row_of[(patches // grid.cells)[:, None, None] * grid.cells + cell]
        y, x = (y % grid.patch_height)[:, :, None], (x % grid.patch_width)[:, None]
        others = torch.where(row >= 0, self.labels[row.clamp(min=0), y, x], 255)
        mine = own[torch.arange(len(own), device=own.device)[:, None, None], y, x]
        return torch.where(inside, torch.where(cell == (patches % grid.cells)[:, None, None], mine, others), 255)


def moved(pixels: Tensor, axes: Tensor) -> Tensor:
    """The pictures of frames ``[B, 3, H, W]``, interpolated bilinearly. Where a frame has ended it is mirrored: a plain
    colour would be new to a frozen backbone, and would change the mean that the network takes over the image."""
    place, (height, width) = torch.arange(len(pixels), device=pixels.device)[:, None], pixels.shape[2:]
    last = pixels.permute(0, 2, 3, 1)
    first, second, part = _between(height, axes[:, :2])
    rows = torch.lerp(last[place, first], last[place, second], part[:, :, None, None])
    rows = rows.transpose(1, 2)  # columns come first, so that whole ones are taken
    first, second, part = _between(width, axes[:, 2:])
    cols = torch.lerp(rows[place, first], rows[place, second], part[:, :, None, None])
    return cols.permute(0, 3, 2, 1).contiguous(memory_format=torch.channels_last)


def recoloured(pixels: Tensor, factors: Tensor, known: Known) -> Tensor:
    """Normalised pixels ``[B, 3, H, W]``, made brighter, then richer in contrast, then in colour; values stay within
    those of an image."""
    brighter, sharper, richer = (factor[:, None, None, None] for factor in factors.unbind(1))
    values = ((pixels / known.scale + known.mean) * brighter).clamp(0, 255)
    level = (values * known.grey).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    values = torch.lerp(level, values, sharper).clamp(0, 255)
    values = torch.lerp((values * known.grey).sum(1, keepdim=True), values, richer).clamp(0, 255)
    return ((values - known.mean) * known.scale).contiguous(memory_format=torch.channels_last)


def _source(at: Tensor, axis: Tensor) -> Tensor:
    """Where pixels ``[B, n]`` of a picture lie in the frame, in pixels from its edge; axis ``[B, 2]``."""
    return (at + 0.5) * axis[:, :1] + axis[:, 1:]


def _between(size: int, axis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of all pixels along an axis: the two that each is made of, and the second one's part."""
    at = _source(torch.arange(size, device=axis.device).expand(len(axis), size), axis).remainder(2 * size)
    inner = (torch.minimum(at, 2 * size - at) - 0.5).clamp(0, size - 1)
    first = inner.floor()
    return first.long(), (first.long() + 1).clamp(max=size - 1), inner - first
