"""Patch scores on CUDA: the launch plan of `entropy.cu`, its compilation by NVRTC through CuPy, and the launch.

`launch_plan` is pure: it needs neither a GPU nor CuPy, and the tests that run the kernels' PTX on a CPU call it too."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import nvrtc
from .nvrtc import DTYPES, MAX_GRID, THREADS, candidates, pitch
from .reference import SCORES

WARPS = THREADS // 32
ROWS_PER_THREAD = 32  # at most, so that a thread's float32 sum is of 32 terms and the window's halo stays small
SHARED_BYTES = 45 * 1024  # for the staged window: with the static 2 KiB below the 48 KiB that need no opt-in


@dataclass(frozen=True)
class Variant:
    """A template instance of entropy.cu."""

    classes: int
    dtype: str  # Float32 | Float16 | BFloat16
    score: str  # one of SCORES
    mode: str  # IDENTITY | STAGED | DIRECT

    @property
    def name(self) -> str:
        """The kernel's name, an identifier."""
        return f"{self.score}_{self.classes}_{self.dtype.lower()}_{self.mode.lower()}"


@dataclass(frozen=True)
class Plan:
    """Two launches of THREADS threads per block: `variant` writes one float64 per tile, `sum_partials` adds them up.

    The arguments of the first are the addresses of logits, partials and map (0 for none), then `scalars`; those of the
    second are the addresses of partials and sums, then `sum_scalars`.
    """

    variant: Variant
    grid: tuple[int, int, int]  # patches, tiles down a patch, tiles across it
    shared_bytes: int  # dynamic shared memory per block
    scalars: tuple[np.generic, ...]
    partials: int  # float64 elements
    sum_grid: int
    sum_scalars: tuple[np.generic, ...]


@lru_cache(maxsize=128)
def launch_plan(
    shape: tuple[int, int, int, int],
    strides: tuple[int, int, int, int],
    dtype: torch.dtype,
    size: tuple[int, int],
    grid: tuple[int, int],
    score: str,
    align_corners: bool,
    with_map: bool,
) -> Plan:
    """Everything about the launches except addresses, for logits of that shape [B, C, h, w] and strides (elements).

    Raises
    ------
    ValueError
        If positions overflow 32-bit integers or the tiles are too many for one launch.
    """
    (B, C, h, w), (H, W), (rows, cols) = shape, size, grid
    if max(2 * H * h, 2 * W * w) >= 2**31:
        raise ValueError(f"upsampling {h} x {w} to {H} x {W}: 2 * height * height and 2 * width * width must be < 2^31")
    patch_h, patch_w = H // rows, W // cols
    # A map needs the remainder of the image too: more cells of the same size, the last ones cut off by the image's end.
    cells_y, cells_x = (-(-H // patch_h), -(-W // patch_w)) if with_map else (rows, cols)
    step_y, step_x = (_step(n_in, n_out, align_corners) for n_in, n_out in ((h, H), (w, W)))
    widest = next((t for t in (32, 64) if patch_w <= t), THREADS)
    mode, tile_w, thread_rows = "IDENTITY", widest, min(ROWS_PER_THREAD, -(-patch_h // (THREADS // widest)))
    window, shared = (0, 0), 0
    if (h, w) != (H, W):
        mode = "DIRECT"
        for candidate_w, candidate_rows in candidates(widest, thread_rows):
            window_w = max(_window(min(candidate_w, patch_w), step_x, w), 2)  # 2^32 / 1 would not fit `reciprocal`
            window_h = _window(min(THREADS // candidate_w * candidate_rows, patch_h), step_y, h)
            if window_h * window_w * pitch(C) * 4 <= SHARED_BYTES:
                mode, tile_w, thread_rows, window = "STAGED", candidate_w, candidate_rows, (window_h, window_w)
                shared = window_h * window_w * pitch(C) * 4
                break
    tiles_y, tiles_x = -(-patch_h // (THREADS // tile_w * thread_rows)), -(-patch_w // tile_w)
    blocks, patches = (B * cells_y * cells_x, tiles_y, tiles_x), B * rows * cols
    if blocks[0] > MAX_GRID or max(blocks[1:]) > 65535:
        raise ValueError(f"{blocks} blocks exceed the limits of one launch: give a smaller batch, or a finer grid")
    image = (h, w, H, W, align_corners, patch_h, patch_w, rows, cols, cells_y, cells_x)
    tiling = (tile_w.bit_length() - 1, thread_rows, *window)
    # Dividing by the window's width w is multiplying by ceil(2^32 / w) and shifting, exact for positions below 2^16.
    reciprocal = np.uint32(-(-(2**32) // max(window[1], 2)))
    return Plan(
        variant=Variant(C, DTYPES[dtype], score, mode),
        grid=blocks,
        shared_bytes=shared,
        scalars=(*(np.int64(s) for s in strides), *(np.int32(i) for i in image + tiling), reciprocal),
        partials=patches * tiles_y * tiles_x,
        sum_grid=-(-patches // WARPS),
        sum_scalars=(np.int32(patches), np.int32(tiles_y * tiles_x)),
    )


def _step(n_in: int, n_out: int, align_corners: bool) -> tuple[int, int]:
    """Distance, in low-resolution positions, between two neighbouring output positions, as a fraction."""
    return (n_in - 1, max(n_out - 1, 1)) if align_corners else (n_in, n_out)


def _window(n: int, step: tuple[int, int], n_in: int) -> int:
    """Upper bound of the low-resolution positions that n neighbouring output positions touch."""
    return min(-(-(n - 1) * step[0] // step[1]) + 2, n_in)


def source(variants: Iterable[Variant]) -> str:
    """The text of entropy.cu with the given kernels instantiated."""
    return nvrtc.text(
        "entropy.cu", (f"KERNEL({v.name}, {v.classes}, {v.dtype}, {v.score.upper()}, {v.mode})" for v in variants)
    )


@cache
def _kernels(variant: Variant, device: int) -> tuple[Any, ...]:
    """The two compiled kernels; a module is loaded per device."""
    return nvrtc.functions(source([variant]), variant.name, "sum_partials")


def patch_entropy(
    logits: Tensor, sums: Tensor, pixels: Tensor | None, size: tuple[int, int], score: str, align_corners: bool
) -> None:
    """Fill sums [B, rows, cols] and, if given, pixels [B, H, W] (float32, contiguous) from logits [B, C, h, w] (CUDA).

    Runs on torch's current stream, without synchronising. The arguments are checked by the caller.
    """
    if not logits.shape[0]:
        return
    if score not in SCORES:
        raise ValueError(f"score {score!r}: choose one of {', '.join(SCORES)}")
    plan = launch_plan(
        tuple(logits.shape),
        logits.stride(),
        logits.dtype,
        size,
        (sums.shape[1], sums.shape[2]),
        score,
        align_corners,
        pixels is not None,
    )
    device = logits.device
    with nvrtc.on_torchs_stream(device):
        scores, sum_partials = _kernels(plan.variant, device.index)
        # Made anew in each call: PyTorch's allocator has it at hand, orders its reuse behind this stream, and where a
        # graph is recorded gives it from the graph's own pool, in which nothing may be kept that is no output.
        workspace = torch.empty(plan.partials, dtype=torch.float64, device=device)
        partials = np.uintp(workspace.data_ptr())
        addresses = (np.uintp(logits.data_ptr()), partials, np.uintp(0 if pixels is None else pixels.data_ptr()))
        scores(plan.grid, (THREADS,), (*addresses, *plan.scalars), shared_mem=plan.shared_bytes)
        sum_partials((plan.sum_grid,), (THREADS,), (partials, np.uintp(sums.data_ptr()), *plan.sum_scalars))
