"""The CUDA confusion kernel without a GPU: its PTX runs on the CPU (ptxrun), launched as the program would launch it.

What none of this proves: speed, and CuPy's behaviour on a device.
"""

import re
import types
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from entropy_cases import BF16, F16, F32
from ptx import FLAGS, FakeCupy, assert_caught, needs_ptx, runner, verdicts

from meal_gpu.kernels import confusion_cpu, confusion_cuda, nvrtc, reference
from meal_gpu.kernels.confusion_cuda import SHARED_BYTES, SHARED_CLASSES, Plan, Variant, launch_plan
from meal_gpu.kernels.nvrtc import THREADS

pytestmark = needs_ptx

# name: batch, low-resolution size, size, pixels of the truth. Why these: x4, narrow tiles (4 groups of rows per block);
# odd sizes, with a remainder in both axes; several tiles in both axes, neither a multiple; no upsampling; a single
# pixel; one row; one cell stretched (runs of rows longer than a thread takes at once); moderate shrinking (staged);
# shrinking whose window exceeds shared memory (direct).
SHAPES: dict[str, tuple[int, tuple[int, int], tuple[int, int], tuple[int, int]]] = {
    "x4": (2, (8, 8), (32, 32), (32, 32)),
    "remainder": (2, (7, 9), (29, 33), (28, 30)),
    "tiles": (1, (11, 38), (43, 151), (43, 151)),
    "identity": (2, (13, 21), (13, 21), (12, 20)),
    "one-pixel": (1, (1, 1), (1, 1), (1, 1)),
    "one-row": (1, (1, 9), (1, 40), (1, 39)),
    "one-cell": (1, (1, 1), (11, 70), (11, 70)),
    "shrink": (1, (40, 90), (13, 31), (12, 31)),
    "direct": (1, (150, 600), (4, 9), (4, 8)),
}
DTYPES = {F32: "Float32", F16: "Float16", BF16: "BFloat16"}
VARIANTS = [Variant(dtype, staged) for dtype in DTYPES.values() for staged in (True, False)]
LAYOUTS = ("contiguous", "channels_last", "padded")


def logits(classes: int, dtype: torch.dtype, shape: str, layout: str = "channels_last") -> torch.Tensor:
    """Multiples of 1/4, so that classes tie; in float32 the first two are large, and an ulp apart or equal."""
    B, (h, w), *_ = SHAPES[shape]
    generator = torch.Generator().manual_seed(classes)
    x = (12 * torch.randn(B, classes, h, w, generator=generator)).round() / 4
    if dtype == F32:
        x[:, 0] = x[:, 0] * 0.3 + 6
        x[:, 1] = torch.nextafter(x[:, 0], x[:, 0] + torch.randint(-1, 2, x[:, 0].shape, generator=generator))
    x = x.to(dtype)
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "padded":  # strides that are neither
        wide = torch.full((B, h + 1, classes + 3, 2 * w), torch.nan, dtype=dtype)
        return wide[:, :h, 1 : classes + 1, ::2].permute(0, 2, 1, 3).copy_(x)
    return x


def truth_of(classes: int, shape: str) -> torch.Tensor:
    """Patches of a class, as in a real mask, and void; with strides of its own."""
    B, _, (H, W), (height, width) = SHAPES[shape]
    values = torch.tensor([*range(min(classes, 255)), 255], dtype=torch.uint8)
    coarse = torch.randint(0, len(values), (B, H // 5 + 1, W // 5 + 1), generator=torch.Generator().manual_seed(1))
    fine = values[coarse].repeat_interleave(5, 1).repeat_interleave(5, 2)
    return fine[:, :height, :width]


def plan_of(x: torch.Tensor, truth: torch.Tensor, size: tuple[int, int], align: bool) -> Plan:
    return launch_plan(tuple(x.shape), x.stride(), x.dtype, truth.shape[1:], truth.stride(), size, align)


def words(tensor: torch.Tensor) -> np.ndarray:
    """The memory of a tensor from its first element on."""
    extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    memory = torch.as_strided(tensor, (extent,), (1,))
    return (memory if tensor.dtype not in (F16, BF16) else memory.view(torch.uint16)).numpy()


class Kernels:
    def __init__(self, arch: str, edit: Callable[[str], str] = lambda text: text, variants: Any = VARIANTS,
                 **options: bool) -> None:
        ptx = runner().nvcc(edit(confusion_cuda.source(variants)), arch, FLAGS)
        self.module = runner().Module(ptx, **options)

    def run(self, x: torch.Tensor, truth: torch.Tensor, size: tuple[int, int], align: bool = True,
            **order: Any) -> np.ndarray:
        """Counts on top of ones, by the launch of the program's plan."""
        plan = plan_of(x, truth, size, align)
        counts = np.ones((x.shape[1], x.shape[1]), np.int64)
        self.stats = self.module.launch(plan.variant.name, plan.grid, THREADS,
                                        [words(x), words(truth), counts, *plan.scalars], shared=plan.shared_bytes,
                                        warn=False, **order)
        return counts - 1


@cache
def kernels(arch: str = "sm_90", **options: bool) -> Kernels:
    return Kernels(arch, **options)


def on_the_cpu(x: torch.Tensor, truth: torch.Tensor, size: tuple[int, int], align: bool = True) -> np.ndarray:
    """The numba kernel, adding up in the order that the CUDA kernel has for all classes."""
    counts = torch.zeros(x.shape[1], x.shape[1], dtype=torch.int64)
    confusion_cpu.confusion(x, truth, counts, size, align, split=0)
    return counts.numpy()


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPES.values())
@pytest.mark.parametrize("classes", [2, 11, 19, 64, 65, 256])
@pytest.mark.parametrize("arch", ["sm_75", "sm_90"])
def test_equals_the_cpu_and_its_own_arithmetic_to_the_last_pixel(arch: str, classes: int, dtype: torch.dtype) -> None:
    """With bounds checks; layouts and align_corners alternate, many classes tie, 65 and 256 count in global memory."""
    staged = set()
    for i, (shape, (_, _, size, _)) in enumerate(SHAPES.items()):
        x, truth = logits(classes, dtype, shape, LAYOUTS[(i + classes) % 3]), truth_of(classes, shape)
        align = (i + classes // 2) % 2 == 0
        counts = kernels(arch).run(x, truth, size, align)
        assert np.array_equal(counts, on_the_cpu(x, truth, size, align)), shape
        up = reference.upsample32(x, size, align, split=0)
        prediction = up.argmax(1)[:, : truth.shape[1], : truth.shape[2]]
        assert np.array_equal(counts, reference.count(prediction, truth, classes)), shape
        staged.add(plan_of(x, truth, size, align).variant.staged)
    assert staged == {True, False}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("shape", ["remainder", "identity", "direct"])
def test_what_is_not_finite_counts_as_in_argmax(bad: float, shape: str) -> None:
    _, _, size, _ = SHAPES[shape]
    x, truth = logits(11, F32, shape), truth_of(11, shape)
    x[0, 4, ::3, 2] = x[0, 9, 1, ::2] = bad
    prediction = reference.upsample32(x, size, True, split=0).argmax(1)[:, : truth.shape[1], : truth.shape[2]]
    assert np.array_equal(kernels().run(x, truth, size), reference.count(prediction, truth, 11))


@pytest.mark.parametrize("classes", [11, 65])
@pytest.mark.parametrize("shape", ["remainder", "tiles", "direct"])
def test_any_thread_order_gives_the_same(shape: str, classes: int) -> None:
    x, truth, size = logits(classes, BF16, shape), truth_of(classes, shape), SHAPES[shape][2]
    expected = on_the_cpu(x, truth, size)
    for order in ({"order": "rev"}, *({"order": "rand", "seed": seed} for seed in range(4))):
        assert np.array_equal(kernels().run(x, truth, size, **order), expected)


@pytest.mark.parametrize("classes", [11, 65])
@pytest.mark.parametrize("shape", ["remainder", "tiles", "direct"])
def test_no_races(shape: str, classes: int) -> None:
    racing = kernels(race=True)
    racing.run(logits(classes, BF16, shape), truth_of(classes, shape), SHAPES[shape][2])
    assert racing.stats["races"] == 0
    assert racing.stats["divergent_bar"] == 0
    assert racing.stats["barriers"] > 0
    assert racing.stats["atomics"] > 0


# What must not go unnoticed: (text, replacement, how it is caught)
MUTATIONS = {
    "barrier after staging removed": ("    __syncthreads();\n\n    Tap tx", "    Tap tx", "races"),
    "barrier before the block's counts removed": (
        "    __syncthreads();\n    for (int i = threadIdx.x; i < C", "    for (int i = threadIdx.x; i < C", "races"),
    "histogram not cleared": ("histogram[i] = 0;", ";", "values"),
    "a histogram added without an atomic": ("atomicAdd(histogram + held, run);", "histogram[held] += run;", "races"),
    "void counted": ("if (is >= C) continue;", "if (is > C) continue;", "bounds"),
    "the last of equal classes": ("if (!(v <= best", "if (!(v < best", "values"),
    "columns beyond the tile counted": ("if (k >= rows || !active) continue;", "if (k >= rows) continue;", "values"),
    "last run forgotten": ("    if (run) {\n        if (in_shared)", "    if (0) {\n        if (in_shared)", "values"),
    "rows of two bands taken together": (" && ty.low == low;", ";", "values"),
    "a row of the tile left out": ("min(y_from + thread_rows,", "min(y_from + thread_rows - 1,", "values"),
    "staging one element too far": ("i < n; i += THREADS", "i <= n; i += THREADS", "bounds"),
    "corners exchanged": ("fused(weights[k][2], p,", "fused(weights[k][2], q,", "values"),
    "another order of additions": ("fused(weights[k][0], a, product(weights[k][1], b))",
                                   "fused(weights[k][1], b, product(weights[k][0], a))", "values"),
}  # fmt: skip


def launch(edit: Callable[[str], str]) -> tuple[bool, int]:
    """On a shape of several tiles."""
    shape = "tiles"
    x, truth, size = logits(7, F32, shape), truth_of(7, shape), SHAPES[shape][2]
    truth[:, :, ::9] = 7  # void just beyond the classes
    x[:, 2:] = torch.where(torch.rand(x[:, 2:].shape, generator=torch.Generator().manual_seed(0)) < 0.3, 9.0, x[:, 2:])
    edited = Kernels("sm_90", edit, [Variant("Float32", True)], race=True)
    counts = edited.run(x, truth, size)
    return np.array_equal(counts, on_the_cpu(x, truth, size)), edited.stats["races"]


def test_the_unedited_kernel_passes() -> None:
    assert verdicts(launch) == set()


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutations_are_caught(mutation: str) -> None:
    assert_caught(MUTATIONS[mutation], confusion_cuda.source([]), launch)


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90", "sm_100"])
def test_registers_and_no_spills(arch: str) -> None:
    """As many registers as leave room for six blocks of a multiprocessor of 65,536."""
    text = runner().ptxas(runner().nvcc(confusion_cuda.source(VARIANTS), arch, FLAGS), arch)
    found = {name: tuple(map(int, numbers)) for name, *numbers in re.findall(
        r"properties for (\w+)\n\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
        r".*?Used (\d+) registers", text)}
    assert set(found) == {v.name for v in VARIANTS}
    for name, (frame, stores, loads, registers) in found.items():
        assert (frame, stores, loads) == (0, 0, 0), name
        assert registers <= 80, name
        print(arch, name, registers)


@pytest.mark.parametrize("classes", [2, 19, 64, 65, 256])
@pytest.mark.parametrize("shape", [((256, 512), (1024, 2048)), ((128, 256), (512, 1024)), ((90, 120), (360, 480)),
                                   ((23, 30), (90, 120)), ((512, 512), (64, 64)), ((1, 1), (7, 300))], ids=str)
def test_plans_fit_and_cover(shape: Any, classes: int) -> None:
    (h, w), (H, W) = shape
    x = torch.empty(2, classes, h, w, device="meta")
    truth = torch.empty(2, H - 1, W, dtype=torch.uint8, device="meta")
    for align in (True, False):
        plan = plan_of(x, truth, (H, W), align)
        log_tile_w, thread_rows, window_h, window_w, pitch = (int(s) for s in plan.scalars[17:22])
        histogram = 4 * classes * classes if classes <= SHARED_CLASSES else 0
        assert window_h * window_w * pitch * 4 + histogram <= plan.shared_bytes <= SHARED_BYTES
        assert plan.variant.staged == (window_h > 0)
        images, tiles_y, tiles_x = plan.grid
        tile_h, tile_w = (THREADS >> log_tile_w) * thread_rows, 1 << log_tile_w
        assert images == 2
        assert tile_h * (tiles_y - 1) < H - 1 <= tile_h * tiles_y
        assert tile_w * (tiles_x - 1) < W <= tile_w * tiles_x
        assert window_h * window_w * classes < 2**16  # what dividing by a product is exact for
        for n, by in zip((classes, max(window_w, 2)), plan.scalars[-2:], strict=True):
            every = np.arange(2**16, dtype=np.uint64)
            assert np.array_equal(every * np.uint64(by) >> np.uint64(32), every // np.uint64(n))


def test_plan_refuses_what_float32_cannot_place() -> None:
    with pytest.raises(ValueError, match="below 8388608"):
        launch_plan((1, 2, 1, 2), (4, 2, 2, 1), F32, (1, 2**23), (2**23, 2**23, 1), (1, 2**23), True)


def test_the_wrapper_launches_what_was_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """`confusion_cuda.confusion` itself, with CuPy and torch.cuda replaced: addresses, sizes, stream; adds up."""
    x, truth, size = logits(3, BF16, "remainder"), truth_of(3, "remainder").contiguous(), (29, 33)
    counts = torch.zeros(3, 3, dtype=torch.int64)
    cupy = FakeCupy([torch.as_strided(x, (x.numel(),), (1,)), truth, counts])
    confusion_cuda._kernel.cache_clear()
    monkeypatch.setattr(nvrtc, "_cupy", lambda: cupy)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=77))
    for times in (1, 2):
        confusion_cuda.confusion(x, truth, counts, size, True)
        assert np.array_equal(counts, times * on_the_cpu(x, truth, size))
    confusion_cuda._kernel.cache_clear()
    assert cupy.streams == [77, 77]
