"""What the numba kernels do with rows of logits: widen them to float32, whatever their dtype and strides.

numba's cache notices changes of a kernel's own file alone: whoever changes this one deletes the cached kernels
(``kernels/__pycache__/*.nb?``, or NUMBA_CACHE_DIR).
"""

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

TILE = 128  # pixels; a multiple of 4 AVX-512 vectors
COPY, CELLS, GATHER = 0, 1, 2  # how a row is upsampled: not at all; cell by cell; pixel by pixel (any ratio)
PAD = 16  # float32 after a row of a tile: room for RUN, and the next row is aligned again
RUN = 8  # pixels written per low-resolution cell, of which the next cells overwrite the excess
BANDS = 8  # bands per work item, which share the rows between them
BAND_ROWS = 8  # a band has at most that many rows, so that a huge upsampling still has work for every thread
FAST: dict[str, Any] = {
    "fastmath": {"contract"},  # fused multiply-add only: NaN and infinity keep their meaning
    "error_model": "numpy",  # a division that raises is not vectorised
}


@njit
def pattern_of(x):  # type: ignore[no-untyped-def]
    """Bit pattern of a float32, as uint32."""
    return np.float32(x).view(np.uint32)


@njit
def as_float(pattern):  # type: ignore[no-untyped-def]
    """The float32 of a bit pattern, of whose integer the lower 32 bits count."""
    return np.uint32(pattern).view(np.float32)


@intrinsic
def write_run(typingctx, line, at, weights, begin, left, step):  # type: ignore[no-untyped-def]
    """line[at : at + RUN] = left + weights[begin : begin + RUN] * step, as one vector operation.

    In plain numba this is RUN scalar operations, because line and weights might overlap.
    """

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        element = context.get_value_type(line.dtype)
        vector = ir.VectorType(element, RUN)

        def pointer(array_type, array, index):  # type: ignore[no-untyped-def]
            data = context.make_array(array_type)(context, builder, array).data
            return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())

        def splat(value):  # type: ignore[no-untyped-def]
            one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), RUN), [0] * RUN)
            return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)

        weight = builder.load(pointer(weights, args[2], args[3]), align=line.dtype.bitwidth // 8)
        product = builder.fmul(weight, splat(args[5]), flags=("contract",))
        value = builder.fadd(splat(args[4]), product, flags=("contract",))
        builder.store(value, pointer(line, args[0], args[1]), align=line.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(line, types.intp, weights, types.intp, line.dtype, line.dtype), codegen


@njit(**FAST)
def widen(f32, bits, kind, begin, step, n, row):  # type: ignore[no-untyped-def]
    """Copy n logits, from position begin of the memory and step apart, to the float32 buffer row.

    As slices of contiguous memory: LLVM vectorises no loop over a strided array, nor one whose index may be negative.
    """
    if kind == 0:
        source = f32[begin : begin + (n - 1) * step + 1]
        if step == 1:
            for x in range(n):
                row[x] = source[x]
        else:
            for x in range(n):
                row[x] = source[x * step]
        return
    pattern = bits[begin : begin + (n - 1) * step + 1]
    if kind == 1:  # bfloat16 is the upper half of a float32
        for x in range(n):
            row[x] = as_float(np.uint32(pattern[x * step]) << 16)
    else:  # float16: move exponent and mantissa into place, then correct the exponent's bias by a multiplication
        for x in range(n):
            u = np.uint32(pattern[x * step])
            magnitude = np.uint32((u & 0x7FFF) << 13)
            value = as_float(magnitude) * np.float32(5.192296858534828e33)  # 2^112, exact, subnormals too
            special = as_float(magnitude | 0x70000000)  # infinity and NaN
            value = special if magnitude >= 0x0F800000 else value
            row[x] = as_float(pattern_of(value) | ((u & 0x8000) << 16))


@njit(**FAST)
def read_row(f32, bits, kind, strides, b, c, r, first, n, row):  # type: ignore[no-untyped-def]
    """n logits of class c in the low-resolution row r of image b, from column first on, and the last of them again."""
    widen(f32, bits, kind, b * strides[0] + c * strides[1] + r * strides[2] + first * strides[3], strides[3], n, row)
    row[n] = row[n - 1]


@njit
def aligned(rows, columns, like):  # type: ignore[no-untyped-def]
    """Uninitialised [rows, columns] of the dtype of like, from the begin of a cache line on."""
    memory = np.empty(rows * columns + 64 // like.itemsize, like.dtype)
    begin = -memory.ctypes.data % 64 // like.itemsize
    return memory[begin : begin + rows * columns].reshape((rows, columns))


def memory(logits: Tensor) -> tuple[np.ndarray, np.ndarray, int]:
    """The memory of logits as `widen` reads it: float32 or uint16 bit patterns, the other empty, and which kind it is.

    0 float32, 1 bfloat16, 2 float16.
    """
    extent = 1 + sum((n - 1) * step for n, step in zip(logits.shape, logits.stride(), strict=True))
    flat = logits.as_strided((extent,), (1,))
    if logits.dtype == torch.float32:
        return flat.numpy(), np.empty(0, np.uint16), 0
    return np.empty(0, np.float32), flat.view(torch.uint16).numpy(), 1 + (logits.dtype == torch.float16)


def bands(low: np.ndarray) -> np.ndarray:
    """Where runs of output rows begin that lie between the same two input rows (low, of each), and their end: int64."""
    begins = [0]
    for y in range(1, len(low)):
        if low[y] != low[y - 1] or y - begins[-1] == BAND_ROWS:
            begins.append(y)
    return np.array([*begins, len(low)])


def mode_of(low: np.ndarray) -> int:
    """How a row is upsampled whose pixels lie to the right of the positions low."""
    return CELLS if np.diff(low).max(initial=0) <= 1 and int(np.bincount(low).max()) <= RUN else GATHER
