"""Confusion counts on the CPU: one numba kernel, parallel over bands of rows.

How it is organised, and why:

* Bands and tiles are those of `entropy_cpu`. Of a low-resolution row the four corners of every pixel, left and right of
  the rows above and below, are written out once per band and class: no gather in the inner loop.
* `_arg_max` does LANES pixels at a time and all classes of them, with the largest logit and its class in registers: a
  product, three multiply-adds and a comparison per class. As LLVM vectors, because a loop over classes inside one over
  pixels is not vectorised, and the other way round the largest would go through memory for every class.
* The counts are integers, whose order does not matter: each of `parts` workers has its own, and they are added up.
* The arithmetic is torch's, bit for bit, so that the counts are those of ``interpolate`` and ``argmax``: see
  `reference.upsample32`.
"""

from functools import lru_cache

import numpy as np
import torch
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from .jit import Kernel, torch_threads
from .reference import FIRST, REST, taps32, vector_classes
from .rows_cpu import BANDS, CELLS, COPY, PAD, RUN, TILE, aligned, bands, memory, mode_of, read_row, write_run

LANES = 16  # pixels: an AVX-512 vector, or two of AVX2, which hide each other's latency
PITCH = TILE + PAD
PARTS = 4  # per thread, so that a thread that is held up leaves its work to others


@intrinsic
def _arg_max(typingctx, weights, corners, upper, below, at, classes, split, best):  # type: ignore[no-untyped-def]
    """best[at : at + LANES] = the class of the largest interpolated logit; of equals the first, of NaN the first NaN.

    weights float32 [4, TILE]; corners float32 [2, 2, classes, PITCH], low-resolution row (upper, below) and side (left,
    right); best int32 [TILE]. Classes below split add their corners in the order FIRST, the others in that of REST.
    """

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        _, _, upper, below, at, classes, split, _ = args
        f32, i32, i64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
        floats, ints = ir.VectorType(f32, LANES), ir.VectorType(i32, LANES)
        fused = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(floats, (floats, floats, floats)), f"llvm.fma.v{LANES}f32"
        )

        def data(i):  # type: ignore[no-untyped-def]
            return context.make_array(signature.args[i])(context, builder, args[i]).data

        def number(value):  # type: ignore[no-untyped-def]
            return ir.Constant(i64, value)

        def vector(pointer, index, kind):  # type: ignore[no-untyped-def]
            return builder.bitcast(builder.gep(pointer, [index]), kind.as_pointer())

        def splat(value, kind):  # type: ignore[no-untyped-def]
            one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(i32, 0))
            return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(ints, [0] * LANES))

        corner_data = data(1)
        factor = [
            builder.load(vector(data(0), builder.add(number(i * TILE), at), floats), align=4) for i in range(4)
        ]
        begins = []  # of the corners of class 0: upper left, upper right, lower left, lower right
        for row in (upper, below):
            for side in range(2):
                line = builder.mul(builder.add(builder.mul(row, number(2)), number(side)), classes)
                begins.append(builder.add(builder.mul(line, number(PITCH)), at))
        largest, index = cgutils.alloca_once(builder, floats), cgutils.alloca_once(builder, ints)
        builder.store(ir.Constant(floats, [float("-inf")] * LANES), largest)
        builder.store(ir.Constant(ints, [0] * LANES), index)
        for first, last, order in ((number(0), split, FIRST), (split, classes, REST)):
            with cgutils.for_range_slice(builder, first, last, number(1), i64) as (c, _):
                offset = builder.mul(c, number(PITCH))
                corner = [
                    builder.load(vector(corner_data, builder.add(begin, offset), floats), align=4) for begin in begins
                ]
                value = builder.fmul(factor[order[0]], corner[order[0]])
                for i in order[1:]:
                    value = builder.call(fused, [factor[i], corner[i], value])
                held = builder.load(largest)
                # Larger or NaN, unless a NaN was there before.
                wins = builder.and_(
                    builder.fcmp_unordered(">", value, held), builder.fcmp_ordered("ord", held, held)
                )
                builder.store(builder.select(wins, value, held), largest)
                this = splat(builder.trunc(c, i32), ints)
                builder.store(builder.select(wins, this, builder.load(index)), index)
        builder.store(builder.load(index), vector(data(7), at, ints), align=4)
        return context.get_dummy_value()

    return types.void(weights, corners, types.intp, types.intp, types.intp, types.intp, types.intp, best), codegen


@njit(error_model="numpy")
def _expand(row, mode, first, x0, x1, wx, start, xs, left, right):  # type: ignore[no-untyped-def]
    """The positions left and right of the TILE pixels from xs on, of a low-resolution row that begins at column first.

    The row's last column is followed by itself once more.
    """
    if mode == COPY:
        for k in range(TILE):
            left[k] = row[k]
            right[k] = row[k]
    elif mode == CELLS:
        begins = start[first : x0[xs + TILE - 1] + 1]
        a = row[0]
        for cell in range(begins.size):
            b = row[cell + 1]
            begin = max(begins[cell], xs)
            write_run(left, begin - xs, wx, begin, a, np.float32(0))
            write_run(right, begin - xs, wx, begin, b, np.float32(0))
            a = b
    else:
        for k in range(TILE):
            left[k] = row[x0[xs + k] - first]
            right[k] = row[x1[xs + k] - first]


@njit(error_model="numpy")
def _count(truth, best, n, classes, counts):  # type: ignore[no-untyped-def]
    """Add n pixels of a row to counts [classes * classes]; runs of equal pixels are counted in a register."""
    held, run = 0, 0
    for k in range(n):
        is_ = np.int64(truth[k])
        if is_ < classes:
            place = is_ * classes + best[k]
            if place != held:
                counts[held] += run
                held, run = place, 0
            run += 1
    counts[held] += run


@njit(error_model="numpy")
def _bands(  # type: ignore[no-untyped-def]
    f32, bits, kind, shape, strides, split, b, some, y0, y1, ry, wy, mode, x0, x1, rx, wx, start, truth, counts,
):  # fmt: skip
    """The bands of rows of image b that begin at some; the arguments are those of `_confusion`."""
    C, width = shape[1], truth.shape[2]
    # The low-resolution row r, left and right of every pixel, is in corners[r % 2]; held says which r that is.
    lines, held = aligned(4 * C, PITCH, wx), np.empty(2, np.int64)
    corners = lines.reshape((2, 2, C, PITCH))
    weights, row = aligned(4, TILE, wx), np.zeros(shape[3] + TILE, np.float32)
    best = np.empty(TILE, np.int32)
    for xs in range(0, width, TILE):
        wide = min(TILE, width - xs)
        first = x0[xs]
        n = x1[xs + TILE - 1] + 1 - first
        held[:] = -1
        for band in range(some.size - 1):
            ya, yb = some[band], some[band + 1]
            for r in range(y0[ya], y1[ya] + 1):
                if held[r % 2] != r:
                    held[r % 2] = r
                    for c in range(C):
                        read_row(f32, bits, kind, strides, b, c, r, first, n, row)
                        _expand(row, mode, first, x0, x1, wx, start, xs, corners[r % 2, 0, c], corners[r % 2, 1, c])
            upper, below = y0[ya] % 2, y1[ya] % 2
            for y in range(ya, yb):
                for k in range(TILE):
                    weights[0, k] = ry[y] * rx[xs + k]
                    weights[1, k] = ry[y] * wx[xs + k]
                    weights[2, k] = wy[y] * rx[xs + k]
                    weights[3, k] = wy[y] * wx[xs + k]
                for at in range(0, wide, LANES):
                    _arg_max(weights, corners, upper, below, at, C, split, best)
                _count(truth[b, y, xs : xs + wide], best, wide, C, counts)


def _confusion(  # type: ignore[no-untyped-def]
    f32, bits, kind, shape, strides, split, begins, y0, y1, ry, wy, mode, x0, x1, rx, wx, start, truth, counts,
):  # fmt: skip
    """All bands of all images, in parallel.

    f32 float32 or bits uint16: the logits' memory, chosen by kind, their shape [B, C, h, w] and strides in elements;
    begins int64 [n + 1], the rows at which a band begins; y0, y1 int64 and ry, wy float32 [height], the rows' taps and
    weights; x0, x1, rx, wx the columns', padded to a multiple of TILE and RUN more; start int64 [w], the first pixel of
    a cell; truth uint8 [B, height, width]; counts int64 [parts, C * C] are added to.
    """
    per_image = (begins.size - 2) // BANDS + 1
    items = shape[0] * per_image
    parts = counts.shape[0]
    for part in prange(parts):
        for item in range(part * items // parts, (part + 1) * items // parts):
            at = item % per_image * BANDS
            _bands(f32, bits, kind, shape, strides, split, item // per_image, begins[at : at + BANDS + 1], y0, y1, ry,
                   wy, mode, x0, x1, rx, wx, start, truth, counts[part])  # fmt: skip


_SIGNATURE = (
    "void(float32[::1], uint16[::1], int64, UniTuple(int64, 4), UniTuple(int64, 4), int64, "
    "int64[::1], int64[::1], int64[::1], float32[::1], float32[::1], int64, "
    "int64[::1], int64[::1], float32[::1], float32[::1], int64[::1], Array(uint8, 3, 'A', readonly=True), int64[:,::1])"
)


KERNEL = Kernel(_confusion, _SIGNATURE, parallel=True, error_model="numpy")


@lru_cache(maxsize=32)
def plan(
    h: int, w: int, H: int, W: int, height: int, width: int, align_corners: bool
) -> tuple[np.ndarray | int, ...]:
    """The kernel's arguments that depend on the shape alone: from begins to start."""
    y0, y1, ry, wy = (part[:height] for part in taps32(h, H, align_corners))
    x0, x1, rx, wx = (part[:width] for part in taps32(w, W, align_corners))
    mode = COPY if (h, w) == (H, W) else mode_of(x0)
    start = np.searchsorted(x0, np.arange(w))
    pad = (0, -width % TILE + RUN)
    x0, x1, rx, wx = (np.pad(part, pad, mode="edge") for part in (x0, x1, rx, wx))
    y0, y1, ry, wy = (np.ascontiguousarray(part) for part in (y0, y1, ry, wy))
    return bands(y0), y0, y1, ry, wy, mode, x0, x1, rx, wx, start


def confusion(
    logits: Tensor, truth: Tensor, counts: Tensor, size: tuple[int, int], align_corners: bool, split: int | None = None
) -> None:
    """Add to counts int64 [C, C] the pixels of truth uint8 [B, height, width] (CPU); see `meal_gpu.kernels`.

    Uses as many threads as torch does (``torch.set_num_threads``). The arguments are checked by the caller. split, for
    tests: as many classes are added up in vectors.
    """
    if not truth.numel():
        return
    (_, C, h, w), (_, height, width) = logits.shape, truth.shape
    f32, bits, kind = memory(logits)
    parts = torch.zeros(PARTS * torch.get_num_threads(), C * C, dtype=torch.int64)
    with torch_threads():
        KERNEL()(
            f32,
            bits,
            kind,
            tuple(logits.shape),
            logits.stride(),
            vector_classes(C) if split is None else split,
            *plan(h, w, *size, height, width, align_corners),
            truth.numpy(),
            parts.numpy(),
        )
    counts += parts.sum(0).view(C, C)
