"""Logits, shapes and compiled variants that the tests of entropy.cu share."""

from functools import cache

import torch
from ptx import Kernels

from meal_gpu.kernels import reference
from meal_gpu.kernels.entropy_cuda import Plan, Variant, launch_plan

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16

# name: batch, low-resolution size, size, grid. Why these: x4 with a grid that divides, patches of 16 columns (4 groups
# of rows per block); remainders in both axes (cells beyond the grid, for the map only); several tiles per patch in both
# axes (patches wider than 128 columns, of more than 32 rows, neither a multiple); no upsampling, with a remainder; a
# single pixel; one row; one cell stretched; moderate shrinking (staged, window wider than the tile); shrinking whose
# window exceeds shared memory (direct).
SHAPES: dict[str, tuple[int, tuple[int, int], tuple[int, int], tuple[int, int]]] = {
    "x4": (2, (16, 16), (64, 64), (4, 4)),
    "remainder": (2, (7, 9), (29, 33), (4, 5)),
    "tiles": (1, (11, 38), (43, 151), (1, 1)),
    "identity": (2, (13, 21), (13, 21), (3, 2)),
    "one-pixel": (1, (1, 1), (1, 1), (1, 1)),
    "one-row": (1, (1, 9), (1, 40), (1, 3)),
    "one-cell": (1, (1, 1), (11, 70), (2, 2)),
    "shrink": (1, (40, 90), (13, 31), (2, 2)),
    "direct": (1, (150, 400), (4, 9), (1, 2)),
}
CLASSES = (2, 11, 19, 64)
OTHER_SCORES = tuple(s for s in reference.SCORES if s != "entropy")


def plan_of(x: torch.Tensor, shape: str, score: str = "entropy", align: bool = True, with_map: bool = True) -> Plan:
    _, _, size, grid = SHAPES[shape]
    return launch_plan(tuple(x.shape), x.stride(), x.dtype, size, grid, score, align, with_map)


def logits(classes: int, dtype: torch.dtype, shape: str, scale: float, layout: str = "contiguous") -> torch.Tensor:
    B, (h, w), *_ = SHAPES[shape]
    generator = torch.Generator().manual_seed(classes + 100 * int(scale))
    x = (scale * torch.randn(B, classes, h, w, generator=generator)).to(dtype)
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "padded":  # strides that are neither
        wide = torch.full((B, h + 1, classes + 3, 2 * w), torch.nan, dtype=dtype)
        view = wide[:, :h, 1 : classes + 1, ::2].permute(0, 2, 1, 3)
        return view.copy_(x)
    return x


@cache
def entropy_kernels(arch: str) -> Kernels:
    variants = [
        plan_of(logits(C, dtype, shape, 1), shape).variant
        for C in CLASSES
        for dtype in (F32, F16, BF16)
        for shape in ("x4", "identity" if (C, dtype) in IDENTITY else "x4", "direct" if (C, dtype) in DIRECT else "x4")
    ]
    variants += [Variant(11, "Float32", score, "STAGED") for score in OTHER_SCORES]
    variants += [Variant(19, "BFloat16", "margin", "IDENTITY"), Variant(100, "BFloat16", "entropy", "STAGED")]
    variants += [Variant(100, "BFloat16", "entropy", "IDENTITY")]
    return Kernels(arch).compile(variants)


# Not every pair of these modes, because compiling each takes a second: every class count and dtype occurs.
IDENTITY = {(2, F16), (11, F32), (19, BF16), (64, F32)}
DIRECT = {(2, BF16), (11, F16), (19, F32)}
