"""Patch scores on the CPU: one numba kernel, parallel over bands of rows, vectorised by LLVM.

How it is organised, and why:

* A *band* is a run of output rows between the same two rows of the low-resolution logits. The horizontal half of the
  upsampling is done once per band; a row of it then costs one multiply-add per class and pixel.
* Inside a band, tiles of TILE pixels: every inner loop runs over the TILE pixels of one class (class-outer), has a
  constant trip count and no branch, so LLVM vectorises it without a remainder, and a tile stays in the L1 cache.
* PyPI's numba has no SVML, where ``math.exp`` is a scalar call. `exp_cpu.exp` is a polynomial, see its error bound.
* The running maximum pushes the loser of each comparison into the next row of a buffer, so that the largest logit,
  whose exponential is exactly 1, is not among the C - 1 that remain. That saves one exponential and keeps 1 - p1 exact.
* Interpolating in float32 is off by about 1e-7 of the largest logit, and that, as an absolute error of the differences
  between classes, is the relative error of a small entropy. Beyond FLOAT32_LIMIT a band is interpolated in float64.
* Sums: float32 over a patch's part of one row, float64 over the rows, in an order that depends on the shape alone. So
  the result does not depend, bit for bit, on the number of threads.
* float16 and bfloat16 logits are read as bit patterns and widened a row at a time, whatever their strides.

One signature serves every dtype, memory layout, score and shape, because compiling takes seconds and every user pays it
once; the result is cached on disk beside this file, or in the user's cache, or in NUMBA_CACHE_DIR.
"""

from functools import lru_cache

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from .exp_cpu import exp, log1p
from .jit import Kernel, torch_threads
from .reference import FLOAT32_LIMIT, SCORES, taps
from .rows_cpu import (
    BANDS,
    CELLS,
    COPY,
    FAST,
    PAD,
    RUN,
    TILE,
    aligned,
    bands,
    memory,
    mode_of,
    pattern_of,
    read_row,
    write_run,
)


@njit(**FAST)
def _expand(row, mode, first, x0, x1, wx, start, xs, line):  # type: ignore[no-untyped-def]
    """Interpolate the low-resolution row, given from column first on, to the TILE pixels from xs on.

    The row's last column is followed by itself once more.
    """
    if mode == COPY:
        for k in range(TILE):
            line[k] = row[k]
    elif mode == CELLS:
        begins = start[first : x0[xs + TILE - 1] + 1]
        left = row[0]
        for cell in range(begins.size):
            right = row[cell + 1]
            begin = max(begins[cell], xs)
            write_run(line, begin - xs, wx, begin, left, right - left)
            left = right
    else:
        for k in range(TILE):
            left = row[x0[xs + k] - first]
            line[k] = left + wx[xs + k] * (row[x1[xs + k] - first] - left)


@njit(**FAST)
def _tile(top, bottom, weight, score, m, lose, S, T, line):  # type: ignore[no-untyped-def]
    """Score of TILE pixels, whose logits lie between top and bottom ([C, TILE] each), into line[:TILE].

    top, bottom, weight, m and lose [C, TILE] are all float32 or all float64; the others are float32.
    """
    C = top.shape[0]
    for k in range(TILE):
        m[k] = top[0, k] + weight * (bottom[0, k] - top[0, k])
    for c in range(1, C):
        for k in range(TILE):
            v = top[c, k] + weight * (bottom[c, k] - top[c, k])
            best = m[k]
            # With these comparisons a NaN stays, in m or among the losers, and reaches S and T.
            lose[c - 1, k] = best if v > best else v
            m[k] = v if v > best else best
    for k in range(TILE):
        S[k] = np.float32(m[k] - m[k])  # 0, or NaN if the largest is infinite, as the reference has it
        T[k] = np.float32(0.0)
    if score == 0:
        for c in range(C - 1):
            for k in range(TILE):
                d = np.float32(lose[c, k] - m[k])
                e = exp(d)
                S[k] += e
                T[k] += d * e
        for k in range(TILE):
            line[k] = log1p(S[k]) - T[k] / (np.float32(1.0) + S[k])
        return
    if score == 4:  # one exponential per pixel
        for k in range(TILE):
            T[k] = np.float32(-np.inf)
        for c in range(C - 1):
            for k in range(TILE):
                d = np.float32(lose[c, k] - m[k])
                T[k] = d if d > T[k] else T[k]
                S[k] = S[k] if d == d else d  # 0, or a NaN
        for k in range(TILE):
            line[k] = exp(T[k]) + S[k]
        return
    for c in range(C - 1):
        for k in range(TILE):
            e = exp(np.float32(lose[c, k] - m[k]))
            S[k] += e
            T[k] = e if e > T[k] else T[k]  # the second largest class, relative to the largest
    constant = np.float32(1.0) if score == 3 else np.float32(0.0)
    rest = np.float32(0.0) if score == 3 else np.float32(1.0)
    second = np.float32(1.0) if score == 2 else np.float32(0.0)
    for k in range(TILE):
        line[k] = (constant + rest * S[k] + second * T[k]) / (np.float32(1.0) + S[k])


@njit(fastmath={"contract", "reassoc"})
def _sum(line, first, last):  # type: ignore[no-untyped-def]
    """Float32 sum of line[first:last]; LLVM may use several accumulators, in an order fixed when it compiles."""
    total = np.float32(0.0)
    for k in range(first, last):
        total += line[k]
    return total


@njit(**FAST)
def _largest(row, n):  # type: ignore[no-untyped-def]
    """Bit pattern of the largest magnitude of row[:n] (float32): it orders like the magnitudes, with NaN on top."""
    largest = np.int32(0)
    for x in range(n):
        largest = max(largest, np.int32(pattern_of(row[x]) & 0x7FFFFFFF))
    return largest


@njit(**FAST)
def _bands(  # type: ignore[no-untyped-def]
    f32, bits, kind, shape, strides, score, b, bands, y0, y1, wy, mode, x0, x1, wx, start, wy32, give_up,
    patch_w, cols, W, row_sums, pixels,
):  # fmt: skip
    """The given bands of image b; the arguments are those of `_scores`, interpolation is in the dtype of wy and wx.

    Returns, with give_up before it has finished, whether a logit is beyond FLOAT32_LIMIT or NaN.
    """
    limit = np.int32(pattern_of(np.float32(FLOAT32_LIMIT)))
    C = shape[1]
    # The low-resolution row r, upsampled, is in lines[r % 2]; held says which r that is.
    lines, held = aligned(2 * C, TILE + PAD, wx).reshape((2, C, TILE + PAD)), np.empty(2, np.int64)
    lose, m, row = aligned(C, TILE, wx), aligned(1, TILE, wx)[0], np.zeros(shape[3] + TILE, wx.dtype)
    S, T, line = aligned(1, TILE, wy32)[0], aligned(1, TILE, wy32)[0], aligned(1, TILE, wy32)[0]
    largest = np.int32(0)
    row_sums[b, bands[0] : bands[-1]] = 0
    for xs in range(0, x0.size - RUN, TILE):
        first = x0[xs]
        n = x1[xs + TILE - 1] + 1 - first
        first_col, last_col = xs // patch_w, min((xs + TILE - 1) // patch_w, cols - 1)
        held[:] = -1
        for band in range(bands.size - 1):
            ya, yb = bands[band], bands[band + 1]
            for r in range(y0[ya], y1[ya] + 1):
                if held[r % 2] != r:
                    held[r % 2] = r
                    for c in range(C):
                        read_row(f32, bits, kind, strides, b, c, r, first, n, row)
                        largest = max(largest, _largest(row, n))
                        _expand(row, mode, first, x0, x1, wx, start, xs, lines[r % 2, c])
            if give_up and largest > limit:
                return True
            top, bottom = lines[y0[ya] % 2], lines[y1[ya] % 2]
            for y in range(ya, yb):
                _tile(top, bottom, wy[y], score, m, lose, S, T, line)
                if pixels.size:
                    wide = min(TILE, W - xs)
                    for k in range(wide):
                        pixels[b, y, xs + k] = line[k]
                for col in range(first_col, last_col + 1):
                    row_sums[b, y, col] += _sum(line, max(col * patch_w - xs, 0), min((col + 1) * patch_w - xs, TILE))
    return largest > limit


def _scores(  # type: ignore[no-untyped-def]
    f32,
    bits,
    kind,
    shape,
    strides,
    score,
    bands,
    y0,
    y1,
    wy32,
    mode,
    x0,
    x1,
    start,
    wy,
    wx,
    give_up,
    large,
    patch_w,
    cols,
    W,
    row_sums,
    pixels,
):
    """All bands of all images that are marked in large, in parallel.

    f32 float32 or bits uint16: the logits' memory, chosen by kind (0 float32, 1 bfloat16, 2 float16), their shape
    [B, C, h, w] and strides in elements; bands int64 [n + 1], the rows at which a band begins; y0, y1 int64 [rows] and
    wy [rows], the rows' taps; x0, x1 int64 and wx, the columns' taps, padded to a multiple of TILE and RUN more;
    start int64 [w], the first pixel of a cell; wy and wx are of the dtype to interpolate in, wy32 is float32; large
    bool [B, items] is written: which of them have a logit beyond FLOAT32_LIMIT, and are not done if give_up;
    row_sums float32 [B, rows, cols] is written, and so is pixels float32 [B, rows, W] unless it is empty.
    """
    n_items = large.shape[1]
    for item in prange(large.size):
        b, i = item // n_items, item % n_items
        if large[b, i]:
            some = bands[i * BANDS : (i + 1) * BANDS + 1]
            large[b, i] = _bands(f32, bits, kind, shape, strides, score, b, some, y0, y1, wy, mode, x0, x1, wx, start,
                                 wy32, give_up, patch_w, cols, W, row_sums, pixels)  # fmt: skip


_SIGNATURE = (
    "void(float32[::1], uint16[::1], int64, UniTuple(int64, 4), UniTuple(int64, 4), int64, "
    "int64[::1], int64[::1], int64[::1], float32[::1], int64, int64[::1], int64[::1], int64[::1], "
    "{real}[::1], {real}[::1], boolean, boolean[:,::1], int64, int64, int64, float32[:,:,::1], float32[:,:,::1])"
)


KERNELS = {real: Kernel(_scores, _SIGNATURE.format(real=real), parallel=True) for real in ("float32", "float64")}
"""By what they interpolate in: float64 is compiled for the first logits that need it, which hardly anybody has."""


@lru_cache(maxsize=32)
def plan(h: int, w: int, H: int, W: int, rows: int, align_corners: bool) -> tuple[np.ndarray | int, ...]:
    """The kernel's arguments that depend on the shape alone: bands, y0, y1, wy32, mode, x0, x1, start; then wy and wx
    in float32, and in float64."""
    if (h, w) == (H, W):
        mode, y0, x0 = COPY, np.arange(H), np.arange(W)
        y1, wy, x1, wx = y0, np.zeros(H), x0, np.zeros(W)
    else:
        y0, y1, wy = taps(h, H, align_corners)
        x0, x1, wx = taps(w, W, align_corners)
        mode = mode_of(x0)
    y0, y1, wy = y0[:rows], y1[:rows], wy[:rows]
    pad = (0, -W % TILE + RUN)
    start = np.searchsorted(x0, np.arange(w))
    x0, x1, wx = np.pad(x0, pad, mode="edge"), np.pad(x1, pad, mode="edge"), np.pad(wx, pad, mode="edge")
    wy32 = wy.astype(np.float32)
    return bands(y0), y0, y1, wy32, mode, x0, x1, start, wy32, wx.astype(np.float32), wy, wx


def patch_entropy(
    logits: Tensor, sums: Tensor, pixels: Tensor | None, size: tuple[int, int], score: str, align_corners: bool
) -> None:
    """Fill sums [B, rows, cols] and, if given, pixels [B, H, W] (float32, contiguous, CPU) from logits [B, C, h, w].

    Uses as many threads as torch does (``torch.set_num_threads``). The arguments are checked by the caller.
    """
    (B, _, h, w), (_, rows, cols), (H, W) = logits.shape, sums.shape, size
    patch_h, patch_w = H // rows, W // cols
    used = H if pixels is not None else rows * patch_h  # rows below the last patch matter to the map alone
    if not B:
        return
    strides = logits.stride()
    f32, bits, kind = memory(logits)
    row_sums = np.empty((B, used, cols), np.float32)
    out = np.empty((0, 0, 0), np.float32) if pixels is None else pixels.numpy()
    *shapes, wy32, wx32, wy64, wx64 = plan(h, w, H, W, used, align_corners)
    given = f32, bits, kind, tuple(logits.shape), strides, SCORES.index(score), *shapes
    written = patch_w, cols, W, row_sums, out
    large, upsampled = np.ones((B, (np.size(shapes[0]) - 2) // BANDS + 1), np.bool_), (h, w) != (H, W)
    with torch_threads():
        KERNELS["float32"]()(*given, wy32, wx32, upsampled, large, *written)
        if upsampled and large.any():  # without upsampling there is nothing to do better
            KERNELS["float64"]()(*given, wy64, wx64, False, large, *written)
    per_row = row_sums[:, : rows * patch_h].reshape(B, rows, patch_h, cols)
    sums.copy_(torch.from_numpy(per_row.sum(axis=2, dtype=np.float64)))
