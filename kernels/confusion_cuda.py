"""Confusion counts on CUDA: the launch plan of `confusion.cu`, its compilation by NVRTC through CuPy, and the launch.

`launch_plan` is pure: it needs neither a GPU nor CuPy, and the tests that run the kernels' PTX on a CPU call it too.
One launch, which adds integers to the result: nothing is allocated.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import nvrtc
from .nvrtc import DTYPES, MAX_GRID, THREADS, candidates, pitch
from .reference import step32, taps32

ROWS_PER_THREAD = 32  # at most
SHARED_BYTES = 48 * 1024  # what needs no opt-in: the staged window, and behind it the block's histogram
SHARED_CLASSES = 64  # as in confusion.cu: a histogram of 16 KiB; more classes are counted in global memory
MAX_SIDE = 2**23  # pixels whose numbers, and halves between them, are exact in float32


@dataclass(frozen=True)
class Variant:
    """A template instance of confusion.cu, for any number of classes."""

    dtype: str  # Float32 | Float16 | BFloat16
    staged: bool  # the window goes through shared memory; else (strong downsampling) logits are read where they are

    @property
    def name(self) -> str:
        """The kernel's name, an identifier."""
        return f"confusion_{self.dtype.lower()}_{'staged' if self.staged else 'direct'}"


@dataclass(frozen=True)
class Plan:
    """A launch of THREADS threads per block.

    The arguments are the addresses of logits, truth and counts, then `scalars`.
    """

    variant: Variant
    grid: tuple[int, int, int]  # images, tiles down, tiles across
    shared_bytes: int  # dynamic shared memory per block
    scalars: tuple[np.generic, ...]


@lru_cache(maxsize=128)
def launch_plan(
    shape: tuple[int, int, int, int],
    strides: tuple[int, int, int, int],
    dtype: torch.dtype,
    truth_shape: tuple[int, int],
    truth_strides: tuple[int, int, int],
    size: tuple[int, int],
    align_corners: bool,
) -> Plan:
    """Everything about the launch except addresses, for logits of that shape [B, C, h, w] and truth [B, *truth_shape].

    Raises
    ------
    ValueError
        If positions are not exact in float32 or the tiles are too many for one launch.
    """
    (B, C, h, w), (H, W), (height, width) = shape, size, truth_shape
    if max(h, w, H, W) >= MAX_SIDE:
        raise ValueError(f"upsampling {h} x {w} to {H} x {W}: sides must be below {MAX_SIDE}")
    y_low, y_high, *_ = taps32(h, H, align_corners)
    x_low, x_high, *_ = taps32(w, W, align_corners)
    tile_w = next((t for t in (32, 64) if width <= t), THREADS)
    thread_rows = min(ROWS_PER_THREAD, -(-height // (THREADS // tile_w)))
    histogram = -(-C * C * 4 // 16) * 16 if C <= SHARED_CLASSES else 0
    staged, window = False, (0, 0)
    for candidate_w, candidate_rows in candidates(tile_w, thread_rows):
        window_w = max(_window(x_low, x_high, width, candidate_w), 2)  # 2^32 / 1 would not fit `by_columns`
        window_h = _window(y_low, y_high, height, THREADS // candidate_w * candidate_rows)
        if window_h * window_w * pitch(C) * 4 + histogram <= SHARED_BYTES:
            staged, tile_w, thread_rows, window = True, candidate_w, candidate_rows, (window_h, window_w)
            break
    blocks = (B, -(-height // (THREADS // tile_w * thread_rows)), -(-width // tile_w))
    if blocks[0] > MAX_GRID or max(blocks[1:]) > 65535:
        raise ValueError(f"{blocks} blocks exceed the limits of one launch: give a smaller batch or image")
    steps = (step32(h, H, align_corners), step32(w, W, align_corners))
    tiling = (height, width, tile_w.bit_length() - 1, thread_rows, *window, pitch(C))
    # Dividing by n is multiplying by ceil(2^32 / n) and shifting, exact below 2^16: a window has fewer elements.
    reciprocals = (np.uint32(-(-(2**32) // n)) for n in (C, max(window[1], 2)))
    return Plan(
        variant=Variant(DTYPES[dtype], staged),
        grid=blocks,
        shared_bytes=window[0] * window[1] * pitch(C) * 4 + histogram,
        scalars=(
            *(np.int64(s) for s in (*strides, *truth_strides)),
            *(np.int32(i) for i in (C, h, w, H, W, align_corners)),
            *steps,
            *(np.int32(i) for i in tiling),
            *reciprocals,
        ),
    )


def _window(low: np.ndarray, high: np.ndarray, n: int, tile: int) -> int:
    """The most low-resolution positions that a tile of the first n output positions touches."""
    first = np.arange(0, n, tile)
    return int((high[np.minimum(first + tile, n) - 1] - low[first]).max()) + 1


def source(variants: Iterable[Variant]) -> str:
    """The text of confusion.cu with the given kernels instantiated."""
    return nvrtc.text("confusion.cu", (f"KERNEL({v.name}, {v.dtype}, {str(v.staged).lower()})" for v in variants))


@cache
def _kernel(variant: Variant, device: int) -> Any:
    """The compiled kernel; a module is loaded per device."""
    (kernel,) = nvrtc.functions(source([variant]), variant.name)
    return kernel


def confusion(logits: Tensor, truth: Tensor, counts: Tensor, size: tuple[int, int], align_corners: bool) -> None:
    """Add to counts int64 [C, C] (contiguous) the pixels of truth uint8 [B, height, width]; all on CUDA.

    Runs on torch's current stream, without synchronising. The arguments are checked by the caller.
    """
    if not truth.numel():
        return
    plan = launch_plan(
        tuple(logits.shape),
        logits.stride(),
        logits.dtype,
        (truth.shape[1], truth.shape[2]),
        (truth.stride(0), truth.stride(1), truth.stride(2)),
        size,
        align_corners,
    )
    with nvrtc.on_torchs_stream(logits.device):
        addresses = (np.uintp(tensor.data_ptr()) for tensor in (logits, truth, counts))
        kernel = _kernel(plan.variant, logits.device.index)
        kernel(plan.grid, (THREADS,), (*addresses, *plan.scalars), shared_mem=plan.shared_bytes)
