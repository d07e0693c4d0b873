"""Frames: what the network is shown, and how it comes to the device.

`Frames` decides what the network sees: whole images, or patches as images of their own (``data.context``), and where
they come from: a tensor, or a stream from the store. Behind it nothing else needs to know; both give equal pixels.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from .grid import Grid
from .pixels import normalise, statistics
from .store import release


@dataclass(frozen=True, eq=False)
class Frames(ABC):
    """What the network is shown, one index per frame.

    Patches keep their pool ids: ``id = frame * grid.cells + cell``, where ``grid`` is the grid *within a frame*: the
    images' grid where frames are images, 1 × 1 where frames are patches.
    """

    images_grid: Grid
    context: str
    """``image`` or ``patch``"""
    device: torch.device
    """Where frames are delivered."""

    @property
    def grid(self) -> Grid:
        images = self.images_grid
        return images if self.context == "image" else Grid(1, 1, images.patch_height, images.patch_width)

    @property
    @abstractmethod
    def n_images(self) -> int: ...

    @property
    def per_image(self) -> int:
        """Frames that an image holds."""
        return 1 if self.context == "image" else self.images_grid.cells

    @property
    def count(self) -> int:
        return self.n_images * self.per_image

    def scan(self, size: int) -> Iterator[tuple[slice, Tensor]]:
        """One pass over all frames in their order, whole images at a time, about ``size`` frames together.

        Yields their numbers and their pixels, float32 ``[B, 3, h, w]``, normalised, in channels_last, on the device.
        """
        step = max(1, size // self.per_image)
        parts = [(first, min(first + step, self.n_images)) for first in range(0, self.n_images, step)]
        for (first, last), pixels in zip(parts, self._images(parts), strict=True):
            yield slice(first * self.per_image, last * self.per_image), pixels

    @abstractmethod
    def _images(self, parts: list[tuple[int, int]]) -> Iterator[Tensor]:
        """The frames of images ``first … last - 1``, part by part."""

    @abstractmethod
    def read(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """The frames of each batch of indices, int64 ``[B]`` on the host; pixels as from `scan`."""


@dataclass(frozen=True, eq=False)
class HeldFrames(Frames):
    """Frames of images (or masks) that a tensor holds: on the device (resident), on the host, or memory-mapped."""

    images: Tensor
    """uint8 ``[N, H, W, …]``"""
    mapped: np.ndarray | None = None
    """The array that ``images`` shares, where it is a mapped file: its memory is given back as it has been read."""

    @classmethod
    def of(cls, images: Tensor | np.ndarray, grid: Grid, context: str, device: torch.device) -> "HeldFrames":
        """Frames of uint8 ``[N, H, W, …]``. No pixel is copied."""
        if isinstance(images, np.ndarray):
            return cls(grid, context, device, as_tensor(images), images)
        return cls(grid, context, device, images)

    @property
    def n_images(self) -> int:
        return len(self.images)

    @cached_property
    def _tiles(self) -> Tensor:
        """A view ``[N, rows, h, cols, w, …]``: patches are gathered from it by index."""
        grid = self.images_grid
        height, width = grid.patch_height, grid.patch_width
        tiles = self.images[:, : grid.rows * height, : grid.cols * width]
        return tiles.unflatten(2, (grid.cols, width)).unflatten(1, (grid.rows, height))

    @cached_property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        return statistics(self.device)

    def __getitem__(self, index: Tensor) -> Tensor:
        """Frames as they are, uint8 ``[B, h, w, …]`` on the device, for indices int64 ``[B]``."""
        index = index.to(self.images.device)
        if self.context == "image":
            return self.images[index].to(self.device)
        image, cell = index // self.per_image, index % self.per_image
        row, col = cell // self.images_grid.cols, cell % self.images_grid.cols
        return self._tiles[image, row, :, col].to(self.device)

    def cut(self, frames: slice) -> Tensor:
        """Frames of whole images as they are, uint8 ``[B, h, w, …]`` on the device."""
        first, last = frames.start // self.per_image, frames.stop // self.per_image
        if self.context == "image":
            pixels = self.images[first:last].to(self.device, copy=self.mapped is not None)
        else:
            pixels = self._tiles[first:last].to(self.device).transpose(2, 3).flatten(0, 2)
        if self.mapped is not None:
            release(self.mapped, first, last)
        return pixels

    def _images(self, parts: list[tuple[int, int]]) -> Iterator[Tensor]:
        for first, last in parts:
            yield normalise(self.cut(slice(first * self.per_image, last * self.per_image)), self._statistics)

    def read(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        batches = list(batches)
        for batch, index in zip(batches, sent(batches, self.images.device), strict=True):
            yield normalise(self[index], self._statistics)
            if self.mapped is not None:
                for image in (batch // self.per_image).tolist():
                    release(self.mapped, image, image + 1)


Reading = Callable[[Iterable[list[np.ndarray] | np.ndarray]], Iterator[Tensor]]


@dataclass(frozen=True, eq=False)
class StreamedFrames(Frames):
    """Frames streamed from a store by DALI: read, cut and normalised a batch ahead of whoever uses them."""

    images: np.ndarray
    """uint8 ``[N, H, W, 3]``, memory-mapped."""
    _idle: dict[tuple[bool, int], Reading] = field(default_factory=dict)
    """Pipelines that no pass is using, by what they cut and their largest batch."""

    @property
    def n_images(self) -> int:
        return len(self.images)

    def _images(self, parts: list[tuple[int, int]]) -> Iterator[Tensor]:
        batches = (self.images[first:last] for first, last in parts)
        largest = max((last - first for first, last in parts), default=1)
        for (first, last), pixels in zip(parts, self._pass(self.context == "patch", largest, batches), strict=True):
            yield pixels.flatten(0, -4).permute(0, 3, 1, 2)
            release(self.images, first, last)

    def read(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        wanted = [batch.tolist() for batch in batches]
        rows = ([self._cut(frame) for frame in batch] for batch in wanted)
        for batch, pixels in zip(wanted, self._pass(False, max(map(len, wanted), default=1), rows), strict=True):
            yield pixels.permute(0, 3, 1, 2)
            for frame in batch:
                release(self.images, frame // self.per_image, frame // self.per_image + 1)

    def _cut(self, frame: int) -> np.ndarray:
        if self.context == "image":
            return self.images[frame]
        image, cell = self.images_grid.split(frame)
        y0, x0, y1, x1 = self.images_grid.box(cell)
        return np.ascontiguousarray(self.images[image, y0:y1, x0:x1])

    def _pass(self, tiled: bool, largest: int, batches: Iterable[list[np.ndarray] | np.ndarray]) -> Iterator[Tensor]:
        """One pass through a pipeline of its own; a pass that was left in the middle takes its pipeline with it."""
        grid = self.images_grid
        reading = self._idle.pop((tiled, largest), None)
        if reading is None:
            from .dali import FrameReader

            size = (grid.height, grid.width) if tiled or self.context == "image" else (
                grid.patch_height, grid.patch_width)
            tiles = (grid.rows, grid.cols) if tiled else None
            reading = FrameReader(size, tiles, True, self.device, largest).read
        yield from reading(batches)
        self._idle[tiled, largest] = reading


def sent(parts: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    """Tensors of the host, of one dtype, on a device: in one copy, however many they are."""
    return torch.cat(list(parts)).to(device).split([len(part) for part in parts]) if parts else parts


def resident(images: np.ndarray, device: torch.device, loader: str) -> Tensor:
    """Bring a whole pool to the device: uint8 ``[N, H, W, 3]``, through DALI where that is the loader."""
    n, (height, width) = len(images), images.shape[1:3]
    if loader != "dali":
        return as_tensor(images).to(device, copy=True)
    from .dali import FrameReader

    held = torch.empty(images.shape, dtype=torch.uint8, device=device)
    step = max(1, 2**25 // images[0].nbytes)
    firsts = range(0, n, step)
    reader = FrameReader((height, width), None, False, device, step)
    for first, part in zip(firsts, reader.read(images[i : i + step] for i in firsts), strict=True):
        held[first : first + len(part)] = part
        release(images, first, first + len(part))
    return held


def as_tensor(array: np.ndarray) -> Tensor:
    """Share an array's memory, also where it is read-only: nothing here writes into images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)
