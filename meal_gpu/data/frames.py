"""Frames: what the network is shown, and how it comes to the device.

`Frames` decides what the network sees: whole images, or patches as images of their own (``data.context``), and where
they come from: a tensor, the mapped store, or DALI's stream of it. Behind it nothing else needs to know; all give equal
pixels. What was handed out is never written again while anybody holds it.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..grid import Grid
from ..kernels import cut_frames
from .blocks import Blocks
from .pixels import normalise, statistics
from .store import compare, expect, release

if TYPE_CHECKING:
    from .dali import FrameReader

New = Callable[[tuple[int, ...], torch.dtype], Tensor]
"""Gives the memory of a tensor."""
Part = tuple[int, int]
"""Images ``first … last - 1``."""


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
        return self.images_grid.within(self.context)

    @property
    @abstractmethod
    def n_images(self) -> int: ...

    @property
    def per_image(self) -> int:
        """Frames that an image holds."""
        return self.images_grid.per_image(self.context)

    @property
    def count(self) -> int:
        return self.n_images * self.per_image

    def scan(self, size: int) -> Iterator[tuple[slice, Tensor]]:
        """One pass over all frames in their order, whole images at a time, about ``size`` frames together.

        Yields their numbers and their pixels, float32 ``[B, 3, h, w]``, normalised, in channels_last, on the device.
        """
        step = max(1, size // self.per_image)
        parts = [(first, min(first + step, self.n_images)) for first in range(0, self.n_images, step)]
        images = self._images(parts)
        for first, last in parts:  # no name holds the pixels of a batch when the next is made: its memory is free
            yield slice(first * self.per_image, last * self.per_image), next(images)
        next(images, None)  # a stream that has ended can be used again

    @abstractmethod
    def _images(self, parts: list[Part]) -> Iterator[Tensor]:
        """The frames of images ``first … last - 1``, part by part."""

    @abstractmethod
    def read(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """The frames of each batch of indices, int64 ``[B]`` on the host; pixels as from `scan`."""


@dataclass(frozen=True, eq=False)
class HeldFrames(Frames):
    """Frames of images (or masks) that a tensor holds: on the device (resident), on the host, or a mapped file.

    On the CPU a mapped store needs nothing else to be streamed: frames are cut and normalised in one pass over its
    pages, while the system reads the next ones, and the pages are given back.
    """

    images: Tensor
    """uint8 ``[N, H, W, …]``, contiguous"""
    mapped: np.ndarray | None = None
    """The array that ``images`` shares, where it is a mapped file: its memory is given back as it has been read."""
    _blocks: Blocks = field(default_factory=Blocks)

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
    def _statistics(self) -> tuple[Tensor, Tensor]:
        return statistics(self.device)

    def __getitem__(self, index: Tensor) -> Tensor:
        """Frames as they are, uint8 ``[B, h, w, …]`` on the device, for indices int64 ``[B]``.

        From the host they are sent out of pinned memory: the host goes on while the device still works.
        """
        if self.images.device.type == self.device.type:
            return self._cut(index, None, self._blocks.new)
        return self._cut(index, None, pinned).to(self.device, non_blocking=True)

    def cut(self, frames: slice) -> Tensor:
        """Frames of whole images as they are, uint8 ``[B, h, w, …]`` on the device."""
        images = [(frames.start // self.per_image, frames.stop // self.per_image)]
        self._compare(images)
        pixels = self[torch.arange(frames.start, frames.stop, device=self.images.device)]
        self._release(images)
        return pixels

    def passed(self, parts: Iterable[slice]) -> Iterator[Tensor]:
        """Frames of whole images as they are, uint8 ``[B, h, w, …]`` on the device, part by part.

        Nobody writes into what he is given: whole images that are where they are wanted are not copied.
        """
        grid, per = self.images_grid, self.per_image
        for frames in parts:
            first, last = frames.start // per, frames.stop // per
            self._compare([(first, last)])
            pixels = self.images[first:last]
            if self.images.device.type != self.device.type or (self.context == "patch" and self.device.type == "cpu"):
                yield self[torch.arange(frames.start, frames.stop, device=self.images.device)]
            elif self.context == "image":
                yield pixels
            else:  # one launch
                pixels = pixels[:, : grid.rows * grid.patch_height, : grid.cols * grid.patch_width]
                pixels = pixels.unflatten(2, (grid.cols, grid.patch_width)).unflatten(1, (grid.rows, grid.patch_height))
                yield pixels.transpose(2, 3).flatten(0, 2)
            self._release([(first, last)])

    def _cut(self, index: Tensor, values: tuple[Tensor, Tensor] | None, new: New) -> Tensor:
        tiles = (1, 1) if self.context == "image" else (self.images_grid.rows, self.images_grid.cols)
        return cut_frames(self.images, index.to(self.images.device), tiles, values, new)

    def _normalised(self, index: Tensor) -> Tensor:
        if self.images.device.type != self.device.type:  # a quarter of the bytes to move
            return normalise(self[index], self._statistics)
        return self._cut(index, self._statistics, self._blocks.new).permute(0, 3, 1, 2)

    def _images(self, parts: list[Part]) -> Iterator[Tensor]:
        per, device = self.per_image, self.images.device
        return self._passed(((torch.arange(first * per, last * per, device=device), [(first, last)])
                             for first, last in parts), True)

    def read(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        batches = list(batches)
        images = ([(i, i + 1) for i in (batch // self.per_image).tolist()] if self.mapped is not None else []
                  for batch in batches)
        # Of an image that one patch is read of, the rest need not come from the disk.
        return self._passed(zip(sent(batches, self.images.device), images, strict=True), self.context == "image")

    def _passed(self, batches: Iterable[tuple[Tensor, list[Part]]], ahead: bool) -> Iterator[Tensor]:
        """The frames of each batch, given their indices and the images that they are of, which are read ahead."""
        nothing: tuple[Tensor, list[Part]] = torch.empty(0, dtype=torch.int64), []
        for (index, images), (_, upcoming) in pairwise(chain(batches, [nothing])):
            if self.mapped is not None and ahead:
                for part in upcoming:
                    expect(self.mapped, *part)
            yield self._taken(index, images)

    def _taken(self, index: Tensor, images: list[Part]) -> Tensor:
        self._compare(images)
        pixels = self._normalised(index)
        self._release(images)
        return pixels

    def _compare(self, images: list[Part]) -> None:
        if self.mapped is not None:
            for part in images:
                compare(self.mapped, *part)

    def _release(self, images: list[Part]) -> None:
        if self.mapped is not None:
            for part in images:
                release(self.mapped, *part)


_PIPELINE = 64
"""Images that a pipeline takes at once, if no pass needs more: so that one of them serves all."""


@dataclass(frozen=True, eq=False)
class StreamedFrames(Frames):
    """Frames streamed from a store by DALI: read and cut a batch ahead of whoever uses them, normalised as they come.

    For a GPU: the work is done there. On the CPU `HeldFrames` of the mapped store cost a fraction of it; what this is
    for there is to show that both give the same bits.
    """

    images: np.ndarray
    """uint8 ``[N, H, W, 3]``, memory-mapped."""
    _idle: "dict[bool, FrameReader]" = field(default_factory=dict)
    """The pipeline that no pass is using, by whether it cuts."""

    @property
    def n_images(self) -> int:
        return len(self.images)

    def _images(self, parts: list[Part]) -> Iterator[Tensor]:
        batches = (self._compared(first, last) for first, last in parts)
        largest = max((last - first for first, last in parts), default=1)
        for (first, last), pixels in zip(parts, self._pass(self.context == "patch", largest, batches), strict=True):
            yield normalise(pixels.flatten(0, -4), self._statistics)
            release(self.images, first, last)

    def read(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        wanted = [batch.tolist() for batch in batches]
        rows = ([self._cut(frame) for frame in batch] for batch in wanted)
        for batch, pixels in zip(wanted, self._pass(False, max(map(len, wanted), default=1), rows), strict=True):
            yield normalise(pixels, self._statistics)
            for frame in batch:
                release(self.images, frame // self.per_image, frame // self.per_image + 1)

    @cached_property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        return statistics(self.device)

    def _compared(self, first: int, last: int) -> np.ndarray:
        compare(self.images, first, last)
        return self.images[first:last]

    def _cut(self, frame: int) -> np.ndarray:
        if self.context == "image":
            return self._compared(frame, frame + 1)[0]
        image, cell = self.images_grid.split(frame)
        compare(self.images, image, image + 1)
        y0, x0, y1, x1 = self.images_grid.box(cell)
        return np.ascontiguousarray(self.images[image, y0:y1, x0:x1])

    def _pass(self, tiled: bool, largest: int, batches: Iterable[list[np.ndarray] | np.ndarray]) -> Iterator[Tensor]:
        """One pass through a pipeline of its own; a pass that was left in the middle takes its pipeline with it."""
        grid = self.images_grid
        reader = self._idle.pop(tiled, None)
        if reader is None or reader.batch < largest:
            from .dali import FrameReader

            size = (grid.height, grid.width) if tiled or self.context == "image" else (
                grid.patch_height, grid.patch_width)
            tiles = (grid.rows, grid.cols) if tiled else None
            reader = FrameReader(size, tiles, self.device, max(largest, _PIPELINE))
        yield from reader.read(batches)
        self._idle[tiled] = reader


def sent(parts: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    """Tensors of the host, of one dtype, on a device: in one copy, however many they are."""
    return torch.cat(list(parts)).to(device).split([len(part) for part in parts]) if parts else parts


def resident(images: np.ndarray, device: torch.device, stream: str) -> Tensor:
    """Bring a whole pool to the device: uint8 ``[N, H, W, 3]``, through DALI where ``stream`` is ``dali``."""
    n, (height, width) = len(images), images.shape[1:3]
    held = torch.empty(images.shape, dtype=torch.uint8, device=device)
    step = max(1, 2**25 // images[0].nbytes)
    firsts = range(0, n, step)

    def read(first: int) -> np.ndarray:
        compare(images, first, min(first + step, n))
        return images[first : first + step]

    stored = map(read, firsts)
    if stream == "dali":
        from .dali import FrameReader

        parts = FrameReader((height, width), None, device, step).read(stored)
    else:
        parts = map(as_tensor, stored)
    for first, part in zip(firsts, parts, strict=True):
        held[first : first + step] = part
        release(images, first, min(first + step, n))
    return held


def pinned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory of the host that a device reads by itself. PyTorch gives it to nobody else before the device has."""
    return torch.empty(shape, dtype=dtype, pin_memory=torch.cuda.is_available())  # without a device one is pretended


def as_tensor(array: np.ndarray) -> Tensor:
    """Share an array's memory, also where it is read-only: nothing here writes into images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)
