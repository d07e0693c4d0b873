"""Backbone features of frames: constants where the backbone is frozen, and then computed once."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..config import Config, DataConfig
from ..data.frames import Frames, HeldFrames, StreamedFrames, resident, sent
from ..grid import Grid, Size
from ..machine.backend import Backend
from ..timing import Progress, no_progress
from .interface import Network, Upsampling
from .model import upsampling
from .repeated import repeated
from .windows import Windows, along, bilinear_matrix

BATCH_PIXELS = 1_400_000
"""Pixels per forward pass over a pool on a CPU: eight CamVid images, enough to fill it, small beside its memory."""
DEVICE_BATCH_PIXELS = 32 * 512 * 1024
"""The same on CUDA, where memory allows: enough that a launch takes longer than the host needs for it."""
PEAK_BYTES = 320
"""A forward pass takes at most so many bytes per pixel of its batch at its peak: 290 in float32, 160 in bfloat16, by
the count of `sizing.peak_scoring` for the default backbone."""

Given = tuple[Tensor, ...]
"""What a network is given of a batch of frames: the maps that are kept, or the pixels ``[B, 3, H, W]``."""
Means = tuple[Tensor, Tensor]
"""Row and column matrices that average a map over patches."""
Maps = tuple[Tensor, Tensor]
"""Feature maps ``[B, C, h4, w4]`` and ``[B, C, h16, w16]`` of a batch of frames."""


@dataclass(frozen=True)
class Features:
    """Where a network's (low, high) feature maps of frames come from: a cache on the device, or the backbone."""

    frames: Frames
    backend: Backend
    low_size: Size
    high_size: Size
    logits_size: Size
    windows_of: Callable[[Grid, torch.device], Windows]
    """`Network.windows`."""
    batch: int
    """Frames in every forward pass of a `scan`."""
    align_corners: bool = True
    """Of the network: how maps are interpolated to the frame."""
    cache: tuple[Tensor, Tensor] | None = None
    """Maps ``[frames, h4, w4, C]`` and ``[frames, h16, w16, C]`` in the autocast dtype; channels last, as used."""
    memo: dict[int, Maps] | None = None
    """The same of single frames that were read, where workers hold the pool: those trained on, in every epoch."""

    @classmethod
    def of(cls, frames: Frames, model: Network, backend: Backend, cached: bool, stage: str = "features",
           progress: Progress = no_progress, batch: int | None = None) -> "Features":
        """Prepare the features of frames under a network, computing all of them now if ``cached``.

        ``batch`` is the whole pool's `batch_size` where these frames are a part of it: see `scan`.
        """
        grid = frames.grid
        shapes = model.map_shapes(grid.height, grid.width)
        fresh = cls(frames, backend, shapes[0][1:], shapes[1][1:], model.logits_size(grid.height, grid.width),
                    model.windows, batch or batch_size(frames, backend), model.align_corners)
        return fresh._kept(model, shapes, stage, progress) if cached else fresh

    @torch.no_grad()
    def _kept(self, model: Network, shapes: Iterable[tuple[int, int, int]], stage: str,
              progress: Progress) -> "Features":
        model.eval()
        count, done = self.frames.count, 0
        low, high = (torch.empty(count, height, width, channels, dtype=self.backend.dtype, device=self.frames.device)
                     for channels, height, width in shapes)
        for frames, maps in self.scan(model):
            for cache, fresh in zip((low, high), maps, strict=True):
                cache[frames] = fresh[: frames.stop - frames.start].permute(0, 2, 3, 1)
            progress(stage, done := done + frames.stop - frames.start, count)
        return replace(self, cache=(low, high))

    def scan(self, model: Network) -> Iterator[tuple[slice, Maps]]:
        """One pass over all frames: their numbers and their maps, batch by batch.

        All batches are of one shape, so that a frame's maps do not depend on how many come with it (another shape may
        make the processor add in another order) and a device runs the same graph every time. The last is filled up
        with repeats of its last frame: leave out what comes behind the numbers.
        """
        for frames, given in self.given():
            with self.backend.autocast():
                maps = maps_of(model, given)
            del given  # the next batch of pixels may have its memory
            yield frames, maps

    def given(self) -> Iterator[tuple[slice, Given]]:
        """The pass of `scan` before the network: what each batch's maps are made of, by `maps_of`."""
        if self.cache is not None:
            low, high = (cache.permute(0, 3, 1, 2) for cache in self.cache)
            for frames in self.parts:
                yield frames, (filled(low[frames], self.batch), filled(high[frames], self.batch))
            return
        # A loop would hold a batch's pixels while the next is made.
        yield from map(lambda part: (part[0], (filled(part[1], self.batch),)),  # noqa: C417
                       self.frames.scan(self.batch))

    def some(self, model: Network, frames: Tensor) -> Iterator[Maps]:
        """The same maps of some frames, int64 ``[n]`` on the host, a batch at a time; the backbone's batches are of the
        shape of a `scan`, so that they do not depend on where maps are kept."""
        batches = list(frames.split(self.batch)) if len(frames) else []
        if self.cache is not None:
            for index in sent(batches, self.frames.device):
                low, high = (cache[index].permute(0, 3, 1, 2) for cache in self.cache)
                yield low, high
            return
        for index, pixels in zip(batches, self.frames.read(batches), strict=True):
            with self.backend.autocast():
                low, high = (part[: len(index)] for part in maps_of(model, (filled(pixels, self.batch),)))
            yield low, high

    def given_twice(self) -> Iterator[tuple[slice, Given, Given]]:
        """`given`, and beside it the same frames in a mirror, left and right exchanged: always pixels, since what is
        kept is of the frames as they are."""
        if self.cache is None:
            for frames, (pixels,) in self.given():
                yield frames, (pixels,), in_mirror(pixels)
            return
        fresh = replace(self, cache=None, memo=None)
        for (frames, kept), (_, (pixels,)) in zip(self.given(), fresh.given(), strict=True):
            yield frames, kept, in_mirror(pixels)

    @property
    def parts(self) -> list[slice]:
        """The frames of each batch of a `scan`."""
        count = self.frames.count
        return [slice(first, min(first + self.batch, count)) for first in range(0, count, self.batch)]

    def read(self, model: Network, batches: Iterable[Tensor],
             changed: Callable[[Tensor], Tensor] = lambda pixels: pixels) -> Iterator[Maps]:
        """Maps of each batch of frames, int64 ``[B]`` on the host. A batch is computed when it is asked for.

        The indices of all batches go to the device together. A frame that a batch names several times goes through the
        backbone once, ``changed`` where nothing is kept.
        """
        batches, device = list(batches), self.frames.device
        if self.cache is not None:
            for index in sent(batches, device):
                low, high = (cache[index].permute(0, 3, 1, 2) for cache in self.cache)
                yield low, high
            return
        if self.memo is not None:
            for batch in batches:
                self._memorise(model, self.memo, batch)
                kept = [self.memo[frame] for frame in batch.tolist()]
                low, high = (torch.stack(maps).permute(0, 3, 1, 2) for maps in zip(*kept, strict=True))
                yield low, high
            return
        distinct = [torch.unique(batch, return_inverse=True) for batch in batches]
        places = sent([place for _, place in distinct], device)
        for pixels, place in zip(self.frames.read([frames for frames, _ in distinct]), places, strict=True):
            with self.backend.autocast():
                low, high = (repeated(part, place) for part in model.features(changed(pixels)))
            yield low, high

    @torch.no_grad()
    def _memorise(self, model: Network, memo: dict[int, Maps], batch: Tensor) -> None:
        """In batches of the shape that `scan` has, so that it gives the same bits."""
        new = torch.tensor([frame for frame in dict.fromkeys(batch.tolist()) if frame not in memo], dtype=torch.int64)
        for part in new.split(self.batch) if len(new) else ():
            [pixels] = self.frames.read([part])
            with self.backend.autocast():
                low, high = model.features(filled(pixels, self.batch))
            for i, frame in enumerate(part.tolist()):
                memo[frame] = (low[i].permute(1, 2, 0).to(self.backend.dtype, copy=True),
                               high[i].permute(1, 2, 0).to(self.backend.dtype, copy=True))

    # Constants, brought to the device once.

    @cached_property
    def windows(self) -> Windows:
        """The network's windows on the patches of a frame."""
        return self.windows_of(self.frames.grid, self.frames.device)

    @cached_property
    def upsampling(self) -> Upsampling:
        """For `Network.logits`."""
        return upsampling(self.low_size, self.high_size, self.frames.device, self.backend.dtype)

    @cached_property
    def means(self) -> dict[Size, Means]:
        """Per size of map, the row and column matrices that average it over each patch."""
        grid, device = self.frames.grid, self.frames.device
        return {size: mean_matrices(grid, size, device, self.align_corners)
                for size in {self.logits_size, self.high_size}}

    def patch_vectors(self, maps: Tensor) -> Tensor:
        """F of equation 2: float32 ``[B * cells, C]``, maps ``[B, C, h, w]`` upsampled and averaged per patch."""
        return patch_means(maps, *self.means[maps.shape[2], maps.shape[3]])


def in_mirror(pixels: Tensor) -> Given:
    return (pixels.flip(3).contiguous(memory_format=torch.channels_last),)


def maps_of(model: Network, given: Given) -> Maps:
    """Maps of a batch from `Features.given`; call it within the autocast of its backend."""
    low, high = given if len(given) == 2 else model.features(*given)
    return low, high


def logits_of(model: Network, given: Given, up: Upsampling, backend: Backend) -> Maps:
    """Logits of a batch from `Features.given`, and the high maps that they were made of."""
    with backend.autocast():
        low, high = maps_of(model, given)
        return model.logits(low, high, up), high


def window_pixels(model: Network, low: Tensor, high: Tensor, at: Windows, backend: Backend) -> Tensor:
    """Logits of the pixels of one window of each frame, ``[B, patch_height, patch_width, classes]``."""
    with backend.autocast():
        logits = model.window_logits(low, high, at)
        return along(at.rows.pixels, at.cols.pixels, logits.permute(0, 2, 3, 1))


def patch_means(maps: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Means over patches, float32 ``[B * cells, C]``, of maps ``[B, C, h, w]``; matrices from `Features.means`."""
    with torch.autocast(maps.device.type, enabled=False):
        return along(rows, cols, maps.float().permute(0, 2, 3, 1)).flatten(0, 2)


def frames_of(images: np.ndarray, config: Config, backend: Backend, where: str) -> Frames:
    """Frames of a store's images, ``resident`` or ``streamed``: the one place that chooses how they come."""
    grid, context, device = config.data.tiling(), config.data.context, backend.device
    if where == "resident":
        return HeldFrames.of(resident(images, device, backend.stream), grid, context, device)
    if backend.stream == "dali":
        return StreamedFrames(grid, context, device, images)
    return HeldFrames.of(images, grid, context, device)


def batch_pixels(backend: Backend) -> int:
    """Pixels per forward pass over a pool: the one place that decides it.

    On CUDA as many as take a quarter of the memory budget at their peak (what is free is twice the budget). In powers
    of two, so that a little more or less free memory changes neither the batches nor, with them, any bit of a result.
    """
    if backend.device.type != "cuda":
        return BATCH_PIXELS
    fit, pixels = backend.budget_bytes // 4 // PEAK_BYTES, DEVICE_BATCH_PIXELS
    while pixels > max(fit, BATCH_PIXELS):
        pixels //= 2
    return pixels


def images_per_batch(grid: Grid, pixels: int) -> int:
    """Images per forward pass over a pool, where it holds so many; ``pixels`` as from `batch_pixels`."""
    return max(1, pixels // (grid.height * grid.width))


def batch_size(frames: Frames, backend: Backend) -> int:
    """Frames per forward pass: whole images, and no more than there are."""
    most, n = images_per_batch(frames.images_grid, batch_pixels(backend)), frames.n_images
    if backend.device.type == "cuda" and n > most:  # the last batch is filled up: batches alike waste least
        most = math.ceil(n / math.ceil(n / most))
    return min(most, n) * frames.per_image


def full_batch(data: DataConfig, pixels: int) -> int:
    """Frames per forward pass over a pool that is no smaller; ``pixels`` as from `batch_pixels`."""
    grid = data.tiling()
    return images_per_batch(grid, pixels) * grid.per_image(data.context)


def filled(batch: Tensor, size: int) -> Tensor:
    """``batch [B, …]`` as ``[size, …]``, with repeats of its last entry, in the memory format that it has."""
    return torch.cat([batch, *[batch[-1:]] * (size - len(batch))]) if len(batch) < size else batch


def mean_matrices(grid: Grid, size: Size, device: torch.device, align_corners: bool = True) -> Means:
    """For `patch_means` of maps of a size, interpolated to the grid's images."""
    rows, cols = (_mean_matrix(*axis, align_corners).to(device) for axis in (
        (grid.height, grid.patch_height, grid.rows, size[0]), (grid.width, grid.patch_width, grid.cols, size[1])))
    return rows, cols


def _mean_matrix(n_pixels: int, patch: int, n_patches: int, n_in: int, align_corners: bool) -> Tensor:
    """[1, n_patches, n_in]: the mean over each patch's pixels of what is interpolated from ``n_in`` cells."""
    weights = bilinear_matrix(n_pixels, n_in, align_corners)[: n_patches * patch]
    weights = weights.reshape(n_patches, patch, n_in).mean(axis=1)
    return torch.from_numpy(weights.astype(np.float32)).unsqueeze(0)
