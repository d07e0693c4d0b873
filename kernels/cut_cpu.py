"""Frames cut out of images on the CPU, as they are or normalised: each pixel is read once and written once.

How it is organised, and why:

* A *run* is a row of neighbouring patches: of every pixel row it is one piece of the image. Whoever asks for a pool's
  patches in their order has memory read from end to end, three times as fast as patch by patch. Any other order is a
  list of runs of one patch.
* The statistics are repeated over TILE values, so that the inner loop has a constant trip count and is vectorised,
  although three channels alternate. No fused multiply-add and no reordering: the bits are those of two operations.
"""

from typing import Any

import numpy as np
from numba import njit, prange
from torch import Tensor

from .jit import Kernel, torch_threads

TILE = 768  # values: a multiple of three channels and of the widest vectors; both statistics stay in the L1 cache


@njit(error_model="numpy")
def _copied(source, target):  # type: ignore[no-untyped-def]
    """uint8 [n] -> uint8 [n]."""
    for j in range(target.size):
        target[j] = source[j]


@njit(error_model="numpy")
def _normalised(source, mean, scale, target):  # type: ignore[no-untyped-def]
    """uint8 [n] -> float32 [n]; mean and scale float32 [TILE], repeating from channel 0."""
    for first in range(0, target.size, TILE):
        read, written = source[first : first + TILE], target[first : first + TILE]
        for j in range(written.size):
            written[j] = (np.float32(read[j]) - mean[j]) * scale[j]


# The loop stands twice: one kernel that asks in every row whether to normalise, or a function that both call for a row,
# copies patches a tenth to a quarter slower.


def _copy(images, frames, runs, rows, cols, out):  # type: ignore[no-untyped-def]
    """images uint8 [N, H, W * C]; frames int64 [B] in runs [n + 1]; out uint8 [B, h, w * C]."""
    height, width = out.shape[1], out.shape[2]
    for item in prange((runs.size - 1) * height):
        run, y = item // height, item % height
        for k in range(runs[run], runs[run + 1]):
            image, cell = frames[k] // (rows * cols), frames[k] % (rows * cols)
            x = cell % cols * width
            _copied(images[image, cell // cols * height + y, x : x + width], out[k, y])


def _normalise(images, frames, runs, rows, cols, mean, scale, out):  # type: ignore[no-untyped-def]
    """As `_copy`, (value - mean) * scale as float32 [B, h, w * C]."""
    height, width = out.shape[1], out.shape[2]
    for item in prange((runs.size - 1) * height):
        run, y = item // height, item % height
        for k in range(runs[run], runs[run + 1]):
            image, cell = frames[k] // (rows * cols), frames[k] % (rows * cols)
            x = cell % cols * width
            _normalised(images[image, cell // cols * height + y, x : x + width], mean, scale, out[k, y])


def _runs(frames, cols, n):  # type: ignore[no-untyped-def]
    """Where runs begin in frames int64 [B], and B after the last; nothing where a frame is outside 0 ... n - 1."""
    begins = np.empty(frames.size + 1, np.int64)
    count = 0
    for k in range(frames.size):
        if frames[k] < 0 or frames[k] >= n:
            return begins[:0]
        if k == 0 or frames[k] != frames[k - 1] + 1 or frames[k] % cols == 0:
            begins[count] = k
            count += 1
    begins[count] = frames.size
    return begins[: count + 1]


_INDICES = "uint8[:,:,::1], int64[::1], int64[::1], int64, int64"
_SIGNATURES: dict[Any, str] = {
    _runs: "int64[::1](int64[::1], int64, int64)",
    _copy: f"void({_INDICES}, uint8[:,:,::1])",
    _normalise: f"void({_INDICES}, float32[::1], float32[::1], float32[:,:,::1])",
}
KERNELS = {function: Kernel(function, signature, parallel=function is not _runs, error_model="numpy")
           for function, signature in _SIGNATURES.items()}  # fmt: skip
READING = KERNELS[_runs], KERNELS[_normalise]
"""What a pass over images calls."""


def cut(
    images: Tensor,
    frames: Tensor,
    tiles: tuple[int, int],
    statistics: tuple[Tensor, Tensor] | None,
    out: Tensor,
) -> None:
    """Fill out [B, h, w, ...] from images [N, H, W, ...], all contiguous; see `meal_gpu.kernels.cut_frames`.

    Uses as many threads as torch does (``torch.set_num_threads``). All but the frames are checked by the caller.
    """
    if not len(frames):
        return
    (rows, cols), wanted = tiles, np.ascontiguousarray(frames.numpy())
    n = len(images) * rows * cols
    runs = KERNELS[_runs]()(wanted, cols, n)  # a batch of small images is cut in less time than numpy takes here
    if not len(runs):
        raise ValueError(f"frames {wanted.min()} to {wanted.max()} are asked for: there are 0 to {n - 1}")
    arguments = [images.numpy().reshape(*images.shape[:2], -1), wanted, runs, rows, cols]
    if statistics is not None:
        arguments += [_tiled(values.numpy()) for values in statistics]
    run = KERNELS[_copy if statistics is None else _normalise]()
    with torch_threads():
        run(*arguments, out.numpy().reshape(*out.shape[:2], -1))


def _tiled(values: np.ndarray) -> np.ndarray:
    """float32 [3] -> [TILE]."""
    tile = np.empty((TILE // len(values), len(values)), np.float32)
    tile[:] = values
    return tile.reshape(-1)
