"""The CUDA kernels without a GPU: nvcc compiles entropy.cu to PTX, and the PTX itself runs on the CPU (ptxrun).

It is launched as the program would launch it. What none of this proves: speed, and CuPy's behaviour on a device.
"""

import ctypes
import os
import re
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from meal_gpu.kernels import entropy_cuda, reference
from meal_gpu.kernels.entropy_cuda import OPTIONS, THREADS, Plan, Variant, launch_plan

PTXRUN = Path(__file__).resolve().parents[3] / "shared" / "tools" / "ptxrun"
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
FLAGS = ("-O3", *OPTIONS, "-ftz=true")  # -ftz=true is what CuPy adds

AVAILABLE = PTXRUN.exists() and shutil.which("nvcc") is not None
needs_ptx = [
    pytest.mark.ptx,
    pytest.mark.skipif(
        not AVAILABLE and os.environ.get("MEAL_GPU_REQUIRE_DATA") != "1",
        reason=f"needs nvcc and the runner at {PTXRUN}",
    ),
]
pytestmark = needs_ptx

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


def runner() -> Any:
    sys.path.insert(0, str(PTXRUN))
    try:
        import ptxrun
    finally:
        sys.path.remove(str(PTXRUN))
    return ptxrun


class Kernels:
    """Modules of variants, compiled in parallel at first use and kept for the session."""

    def __init__(self, arch: str, **options: bool) -> None:
        self.arch, self.options = arch, options
        self.modules: dict[Variant, Any] = {}

    def compile(self, variants: list[Variant], edit: Callable[[str], str] = lambda text: text) -> "Kernels":
        def build(part: list[Variant]) -> None:
            ptx = runner().nvcc(edit(entropy_cuda.source(part)), self.arch, FLAGS)
            module = runner().Module(ptx, **self.options)
            self.modules.update(dict.fromkeys(part, module))

        variants = sorted(set(variants), key=lambda v: (-v.classes, v.name))
        parts = [p for p in (variants[i::4] for i in range(4)) if p]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(build, parts))
        return self

    def run(
        self,
        x: torch.Tensor,
        shape: str,
        score: str = "entropy",
        align: bool = True,
        with_map: bool = True,
        **order: Any,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Sums and map, by the two launches of the program's plan. Buffers begin as NaN: nothing may be left out."""
        plan = plan_of(x, shape, score, align, with_map)
        module = self.modules[plan.variant]
        _, _, size, grid = SHAPES[shape]
        extent = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
        memory = torch.as_strided(x, (extent,), (1,))
        raw = memory.numpy() if x.dtype == F32 else memory.view(torch.uint16).numpy()
        partials = np.full(plan.partials, np.nan)
        pixels = np.full((x.shape[0], *size), np.nan, np.float32) if with_map else None
        sums = np.full((x.shape[0], *grid), np.nan, np.float32)
        arguments = [raw, partials, pixels, *plan.scalars]
        self.stats = module.launch(
            plan.variant.name, plan.grid, THREADS, arguments, shared=plan.shared_bytes, warn=False, **order
        )
        more = module.launch("sum_partials", plan.sum_grid, THREADS, [partials, sums, *plan.sum_scalars], **order)
        self.stats = {key: self.stats[key] + more[key] for key in more}
        return sums, pixels


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


def check(actual: np.ndarray, expected: torch.Tensor, rtol: float = 1e-5) -> None:
    """Relative error of every element; what is below 1e-30 in the reference has underflown in float32 legitimately."""
    np.testing.assert_allclose(actual, expected.numpy(), rtol=rtol, atol=1e-30)


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_equals_the_reference(arch: str, classes: int, dtype: torch.dtype) -> None:
    """Sums, and every pixel of the map, at logits of scale 1, 20 and 60, with bounds checks; layouts and align_corners
    alternate."""
    kernels = entropy_kernels(arch)
    layouts = ("contiguous", "channels_last", "padded")
    runs = 0
    for shape, (_, _, size, grid) in SHAPES.items():
        if plan_of(logits(classes, dtype, shape, 1), shape).variant not in kernels.modules:
            continue
        for i, scale in enumerate((1, 20, 60)):
            x = logits(classes, dtype, shape, scale, layouts[(i + classes) % 3])
            align = (i + len(shape)) % 2 == 0
            sums, pixels = kernels.run(x, shape, align=align)
            expected_sums, expected_pixels = reference.patch_entropy(x, size, grid, align_corners=align)
            check(sums, expected_sums)
            check(pixels, expected_pixels, 1.5e-5)  # of one pixel, whose rounding nothing averages
            runs += 1
            if scale == 1:  # without a map, tiles beyond the grid are not launched
                assert np.array_equal(kernels.run(x, shape, align=align, with_map=False)[0], sums)
    assert runs >= 3 * 5


@pytest.mark.parametrize("shape", ["x4", "remainder", "tiles"])
@pytest.mark.parametrize("score", OTHER_SCORES)
def test_other_scores(score: str, shape: str) -> None:
    _, _, size, grid = SHAPES[shape]
    for scale in (1, 20, 60):
        x = logits(11, F32, shape, scale)
        sums, pixels = entropy_kernels("sm_90").run(x, shape, score)
        expected_sums, expected_pixels = reference.patch_entropy(x, size, grid, score=score)
        check(sums, expected_sums)
        check(pixels, expected_pixels, 1.5e-5)
    x = logits(19, BF16, "identity", 5)
    check(
        entropy_kernels("sm_90").run(x, "identity", "margin")[0],
        reference.patch_entropy(x, (13, 21), (3, 2), score="margin")[0],
    )


@pytest.mark.parametrize("shape", ["remainder", "identity"])
def test_more_classes_than_registers(shape: str) -> None:
    _, _, size, grid = SHAPES[shape]
    for scale in (1, 60):
        x = logits(100, BF16, shape, scale, "channels_last")
        sums, pixels = entropy_kernels("sm_90").run(x, shape)
        expected_sums, expected_pixels = reference.patch_entropy(x, size, grid)
        check(sums, expected_sums)
        check(pixels, expected_pixels)


@pytest.mark.parametrize("value", [0.0, 3.5, 1e4, -1e4])
def test_constant_logits_are_uniform(value: float) -> None:
    for shape in ("x4", "identity"):
        x = torch.full_like(logits(11, F32, shape, 1), value)
        _, _, size, grid = SHAPES[shape]
        check(entropy_kernels("sm_90").run(x, shape)[0], reference.patch_entropy(x, size, grid)[0], 1e-6)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("value", [1.0, 1e4, -1e4])
def test_one_hot_logits(value: float, classes: int) -> None:
    """Each position has another class, so that between positions there are ties, certainty and what lies between."""
    for shape in ("remainder", "tiles"):
        B, (h, w), size, grid = SHAPES[shape]
        hot = torch.arange(B * h * w).reshape(B, h, w) % classes
        x = value * torch.nn.functional.one_hot(hot, classes).permute(0, 3, 1, 2).float()
        check(entropy_kernels("sm_90").run(x, shape)[0], reference.patch_entropy(x, size, grid)[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("shape", ["remainder", "identity"])
def test_non_finite_only_where_the_reference_is(bad: float, shape: str) -> None:
    _, _, size, grid = SHAPES[shape]
    x = logits(11, F32, shape, 1)
    x[0, 4, 3, 2] = bad
    scores = reference.SCORES if shape == "remainder" and bad != float("-inf") else ("entropy",)
    for score in scores:
        sums, pixels = entropy_kernels("sm_90").run(x, shape, score)
        expected_sums, expected_pixels = reference.patch_entropy(x, size, grid, score=score)
        assert np.array_equal(np.isfinite(sums), expected_sums.isfinite().numpy())
        assert np.array_equal(np.isfinite(pixels), expected_pixels.isfinite().numpy())
        assert not np.isfinite(sums).all()


# One shape per template mode (and the float64 path): few enough pixels for the race detector.
TEMPLATES = {
    "staged": (11, BF16, "remainder", 1),
    "staged, careful": (11, BF16, "remainder", 60),
    "staged, tiles": (11, BF16, "tiles", 1),
    "identity": (11, F32, "identity", 1),
    "direct": (11, F16, "direct", 1),
    "staged, loop": (100, BF16, "remainder", 1),
    "identity, loop": (100, BF16, "identity", 1),
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_any_thread_order_gives_the_same_bits(template: str) -> None:
    classes, dtype, shape, scale = TEMPLATES[template]
    x = logits(classes, dtype, shape, scale, "channels_last")
    expected, expected_map = entropy_kernels("sm_90").run(x, shape)
    orders: list[dict[str, Any]] = [{"order": "rand", "seed": seed} for seed in range(4)]
    for order in ({"order": "rev"}, *orders):
        sums, pixels = entropy_kernels("sm_90").run(x, shape, **order)
        assert np.array_equal(sums, expected)
        assert np.array_equal(pixels, expected_map)


@cache
def racing_kernels(arch: str) -> Kernels:
    variants = [plan_of(logits(C, dtype, shape, 1), shape).variant for C, dtype, shape, _ in TEMPLATES.values()]
    return Kernels(arch, race=True).compile(variants)


@pytest.mark.parametrize("template", TEMPLATES)
def test_no_races(template: str) -> None:
    classes, dtype, shape, scale = TEMPLATES[template]
    kernels = racing_kernels("sm_90")
    kernels.run(logits(classes, dtype, shape, scale), shape)
    assert kernels.stats["races"] == 0
    assert kernels.stats["undefined_shfl"] == 0
    assert kernels.stats["divergent_bar"] == 0
    assert kernels.stats["barriers"] > 0


def test_worst_case_error_of_the_approximate_functions() -> None:
    """ex2, lg2 and rcp with the largest error that PTX allows them."""
    cases = [(19, BF16, "tiles"), (2, F32, "x4"), (11, F32, "identity")]
    noisy = Kernels("sm_90", noise=True).compile([plan_of(logits(C, d, s, 1), s).variant for C, d, s in cases])
    for classes, dtype, shape in cases:
        _, _, size, grid = SHAPES[shape]
        for scale in (1, 20, 60):
            x = logits(classes, dtype, shape, scale)
            check(noisy.run(x, shape)[0], reference.patch_entropy(x, size, grid)[0])


# What must not go unnoticed: (text, replacement, how it is caught)
MUTATIONS = {
    "barrier after staging removed": ("careful = __syncthreads_or(", "careful = (", "races"),
    "barrier before the block's sum removed": (
        "    __syncthreads();\n    if (threadIdx.x == 0) {",
        "    if (threadIdx.x == 0) {",
        "races",
    ),
    "shuffle begins at the wrong offset": ("int step = 16; step > 0", "int step = 8; step > 0", "values"),
    "shuffle in the wrong direction": ("__shfl_xor_sync(", "__shfl_up_sync(", "values"),
    "staging one position too far": ("position < rows * columns;", "position <= rows * columns;", "bounds"),
    "next row one too far": (
        "(ty.high - first_y) * window_w * (P / 4)",
        "(ty.high - first_y + 1) * window_w * (P / 4)",
        "values",
    ),
    "a row of the tile left out": (
        "min(y_from + thread_rows, y_end)",
        "min(y_from + thread_rows, y_end) - 1",
        "values",
    ),
    "tap off by one": ("t.low + 1 < n_in ?", "t.low + 1 <= n_in ?", "values"),
}


def verdicts(edit: Callable[[str], str]) -> set[str]:
    """What the checks above say of an edited kernel, on one shape (which has full warps and several tiles)."""
    x = logits(3, F32, "tiles", 1)
    found = set()
    try:
        kernels = Kernels("sm_90", race=True).compile([plan_of(x, "tiles").variant], edit)
        sums, pixels = kernels.run(x, "tiles")
        found |= {"races"} if kernels.stats["races"] else set()
        expected_sums, expected_pixels = reference.patch_entropy(x, *SHAPES["tiles"][2:])
        check(sums, expected_sums)
        check(pixels, expected_pixels, 1.5e-5)
    except runner().PTXFault:
        found.add("bounds")
    except AssertionError:
        found.add("values")
    return found


def test_the_unedited_kernel_passes() -> None:
    assert verdicts(lambda text: text) == set()


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutations_are_caught(mutation: str) -> None:
    old, new, caught_by = MUTATIONS[mutation]
    assert old in entropy_cuda.source([])
    assert caught_by in verdicts(lambda text: text.replace(old, new))


# Multiprocessor limits: registers, shared memory in bytes, threads (CUDA C++ programming guide, table of capabilities).
LIMITS = {"sm_80": (65536, 164 * 1024, 2048), "sm_90": (65536, 228 * 1024, 2048), "sm_100": (65536, 228 * 1024, 2048)}


def occupancy(arch: str, registers: int, shared_bytes: int) -> int:
    """Blocks per multiprocessor: registers are given out 8 per thread at a time, shared memory with 1 KiB per block."""
    all_registers, all_shared, all_threads = LIMITS[arch]
    by_registers = all_registers // (-(-registers // 8) * 8 * THREADS)
    return min(by_registers, all_shared // (shared_bytes + 1024), all_threads // THREADS)


@pytest.mark.parametrize("arch", LIMITS)
def test_registers_spills_and_occupancy(arch: str) -> None:
    """0 spill bytes and no local memory up to 32 classes; as many blocks per multiprocessor as the notes say."""
    full = (1024, 2048), (4, 4)
    blocks = {2: 9, 11: 6, 19: 5, 32: 3}  # of the staged kernel, at least
    variants = [Variant(C, "BFloat16", "entropy", mode) for C in (*blocks, 64) for mode in ("STAGED", "IDENTITY")]
    variants += [Variant(19, "Float32", s, "STAGED") for s in OTHER_SCORES] + [
        Variant(19, "Float16", "entropy", "DIRECT")
    ]
    text = runner().ptxas(runner().nvcc(entropy_cuda.source(variants), arch, FLAGS), arch)
    found = {
        name: (int(frame), int(stores), int(loads), int(registers), int(shared or 0))
        for name, frame, stores, loads, registers, shared in re.findall(
            r"properties for (\w+)\n\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
            r".*?Used (\d+) registers(?:.*?(\d+) bytes smem)?",
            text,
        )
    }
    assert set(found) == {"sum_partials", *(v.name for v in variants)}
    for variant in variants:
        frame, stores, loads, registers, static = found[variant.name]
        if variant.classes <= 32:
            assert (frame, stores, loads) == (0, 0, 0), variant
        assert registers <= 168
        if variant.mode == "STAGED":
            shape = (1, variant.classes, 256, 512)
            plan = launch_plan(shape, (0, 1, 0, variant.classes), BF16, *full, "entropy", True, False)
            assert plan.shared_bytes + static <= 48 * 1024
            expected = blocks.get(variant.classes, 3)
            assert occupancy(arch, registers, plan.shared_bytes + static) >= min(expected, 5 if arch == "sm_80" else 9)
            print(arch, variant.name, registers, "registers", occupancy(arch, registers, plan.shared_bytes + static))


def test_nvrtc_compiles_it_as_cupy_would() -> None:
    """NVRTC itself, with CuPy's options and no include path; its PTX gives what nvcc's gives."""
    libraries = list(Path(torch.__file__).parents[1].glob("nvidia/*/lib/libnvrtc.so.1*"))
    if not libraries:
        pytest.skip("no NVRTC beside torch")
    nvrtc = ctypes.CDLL(str(libraries[0]))
    variant = plan_of(logits(11, F32, "tiles", 1), "tiles").variant
    program = ctypes.c_void_p()
    text = entropy_cuda.source([variant]).encode()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, b"entropy.cu", 0, None, None) == 0
    options = [o.encode() for o in (*OPTIONS, "-ftz=true", "-arch=compute_90")]
    status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    assert status == 0, log.value.decode()
    assert b"warning" not in log.value, log.value.decode()
    nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetPTX(program, ptx)
    kernels = Kernels("sm_90")
    kernels.modules[variant] = runner().Module(ptx.value.decode())
    x = logits(11, F32, "tiles", 1)
    assert np.array_equal(kernels.run(x, "tiles")[0], entropy_kernels("sm_90").run(x, "tiles")[0])


class FakeCupy:
    """Stands for CuPy: compiles with nvcc and runs on the CPU what it is asked to launch, at the given addresses."""

    def __init__(self, memory: list[torch.Tensor]) -> None:
        self.arrays = {t.data_ptr(): (t if t.dtype.itemsize != 2 else t.view(torch.uint16)).numpy() for t in memory}
        self.streams: list[int] = []
        self.cuda = types.SimpleNamespace(Stream=types.SimpleNamespace(from_external=self.from_external))

    def from_external(self, stream: Any) -> Any:
        self.streams.append(stream.cuda_stream)
        return nullcontext()

    def RawModule(self, *, code: str, options: tuple[str, ...], backend: str) -> Any:  # noqa: N802
        assert backend == "nvrtc"
        module = runner().Module(runner().nvcc(code, "sm_90", (*options, "-ftz=true")))

        def get_function(name: str) -> Callable[..., None]:
            def launch(grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...], shared_mem: int = 0) -> None:
                # CuPy copies NumPy scalars as they are: each must have the size of its parameter.
                sizes = [p.nbytes for p in module.kernels[name][1].params]
                assert sizes == [a.nbytes for a in arguments]
                known = [(self.arrays[int(a)] if int(a) else None) if isinstance(a, np.uintp) else a for a in arguments]
                module.launch(name, grid, block, known, shared=shared_mem)

            return launch

        return types.SimpleNamespace(get_function=get_function)


@pytest.fixture
def clean_caches() -> Iterator[None]:
    for cached in (entropy_cuda._kernels, entropy_cuda._cupy):
        cached.cache_clear()
    entropy_cuda._workspaces.clear()
    yield
    entropy_cuda._workspaces.clear()
    entropy_cuda._kernels.cache_clear()


@pytest.mark.usefixtures("clean_caches")
def test_the_wrapper_launches_what_was_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """`entropy_cuda.patch_entropy` itself, with CuPy and torch.cuda replaced: addresses, sizes, stream, reuse."""
    x = logits(3, BF16, "remainder", 1)
    sums, pixels, workspace = torch.zeros(2, 4, 5), torch.zeros(2, 29, 33), torch.zeros(4096, dtype=torch.float64)
    cupy = FakeCupy([x, sums, pixels, workspace])
    monkeypatch.setattr(entropy_cuda, "_cupy", lambda: cupy)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=77))
    asked = []

    def one_workspace(elements: int, device: torch.device, stream: int) -> torch.Tensor:
        asked.append((elements, stream))
        return workspace

    monkeypatch.setattr(entropy_cuda, "_workspace", one_workspace)
    entropy_cuda.patch_entropy(x, sums, pixels, (29, 33), "entropy", True)
    expected_sums, expected_pixels = reference.patch_entropy(x, (29, 33), (4, 5))
    check(sums.numpy(), expected_sums)
    check(pixels.numpy(), expected_pixels)
    pixels.zero_()
    entropy_cuda.patch_entropy(x, sums.zero_(), None, (29, 33), "entropy", True)
    check(sums.numpy(), expected_sums)
    assert not pixels.any()
    assert cupy.streams == [77, 77]
    assert asked == [(2 * 4 * 5, 77)] * 2
