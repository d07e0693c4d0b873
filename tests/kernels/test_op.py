"""The operator in torch: opcheck, FakeTensorMode with a CUDA device, torch.compile, a missing CuPy; plans and costs."""

import builtins
import gc
import types
import weakref
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from meal_gpu.kernels import SCORES, cost, entropy_cuda, nvrtc, patch_entropy, reference
from meal_gpu.kernels.entropy_cuda import ROWS_PER_THREAD, SHARED_BYTES, Plan, launch_plan
from meal_gpu.kernels.nvrtc import THREADS
from meal_gpu.kernels.op import patch_entropy_out


def sample(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("with_map", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype: torch.dtype, with_map: bool) -> None:
    """Schema (what is mutated), fake implementation, autograd registration, tracing with dynamic shapes."""
    x = sample(2, 5, 6, 7, dtype=dtype)
    pixels = torch.empty(2, 24, 28) if with_map else None
    torch.library.opcheck(patch_entropy_out, (x, torch.empty(2, 2, 3), pixels, 24, 28, "entropy", True))


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "cpu"])
def test_fake_tensors(device: str) -> None:
    """Nothing runs, nothing lands on another device, and nothing asks for a value."""
    with FakeTensorMode():
        x = torch.empty(3, 11, 23, 30, device=device, dtype=torch.bfloat16)
        sums, pixels = patch_entropy(x, (90, 120), (1, 2), return_map=True)
        ids = patch_entropy(x, (90, 120), (1, 2)).flatten().topk(4).indices
    for result, shape in ((sums, (3, 1, 2)), (pixels, (3, 90, 120)), (ids, (4,))):
        assert result.shape == shape
        assert result.device == x.device
    assert sums.dtype == pixels.dtype == torch.float32


def test_inside_torch_compile() -> None:
    """The operator is traced without a graph break, and writes its buffers also there."""

    def score(x: torch.Tensor) -> torch.Tensor:
        return patch_entropy(2 * x, (24, 28), (2, 3)) + 1

    x = sample(2, 5, 6, 7)
    compiled = torch.compile(score, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), score(x), rtol=0, atol=0)


class Made(TorchDispatchMode):
    """Remembers the tensors that are made, without keeping them."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[weakref.ref[torch.Tensor]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.tensors += [weakref.ref(value) for value in tree_leaves(result) if isinstance(value, torch.Tensor)]
        return result


def test_nothing_that_a_call_makes_outlives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph may be recorded around it: what it makes lies in the graph's own pool, and PyTorch refuses a graph of
    which anything is left there that is no output. Twice on each of two streams, with CuPy and the driver replaced."""
    launched: list[tuple[int, int]] = []

    class Launches:
        def __init__(self, **module: Any) -> None:
            self.stream = 0

        def get_function(self, name: str) -> Any:
            return lambda grid, block, arguments, shared_mem=0: launched.append((streams[-1], len(arguments)))

    streams = [11]
    stream = types.SimpleNamespace(from_external=lambda stream: nullcontext())
    cupy = types.SimpleNamespace(RawModule=Launches, cuda=types.SimpleNamespace(Stream=stream))
    monkeypatch.setattr(nvrtc, "_cupy", lambda: cupy)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=streams[-1]))
    entropy_cuda._kernels.cache_clear()
    logits, sums = sample(2, 5, 6, 7), torch.empty(2, 2, 3)
    with Made() as made:
        for number in (11, 11, 12, 12):
            streams.append(number)
            entropy_cuda.patch_entropy(logits, sums, None, (24, 28), "entropy", True)
    entropy_cuda._kernels.cache_clear()
    gc.collect()
    assert [number for number, _ in launched] == [11] * 4 + [12] * 4  # two kernels in each call
    assert len(made.tensors) == 4  # the workspace of each call
    assert [made for made in made.tensors if made() is not None] == []


def test_missing_cupy_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_cupy(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "cupy":
            raise ImportError("No module named 'cupy'")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_cupy)
    nvrtc._cupy.cache_clear()
    with pytest.raises(ImportError, match=r"meal-gpu\[cuda\]"):
        entropy_cuda.patch_entropy(sample(1, 3, 2, 2), torch.empty(1, 1, 1), None, (4, 4), "entropy", True)


def plan(
    C: int, h: int, w: int, size: tuple[int, int], grid: tuple[int, int], with_map: bool = False, B: int = 1
) -> Plan:
    return launch_plan((B, C, h, w), (C * h * w, h * w, w, 1), torch.bfloat16, size, grid, "entropy", True, with_map)


@pytest.mark.parametrize(
    ("arguments", "mode"),
    [
        ((19, 256, 512, (1024, 2048), (4, 4)), "STAGED"),
        ((11, 23, 30, (90, 120), (1, 1)), "STAGED"),
        ((11, 90, 120, (90, 120), (1, 1)), "IDENTITY"),
        ((64, 256, 512, (1024, 2048), (4, 4)), "STAGED"),
        ((256, 64, 64, (256, 256), (4, 4)), "STAGED"),
        ((19, 1024, 2048, (64, 128), (2, 2)), "DIRECT"),
        ((2, 7, 9, (29, 33), (29, 33)), "STAGED"),
        ((3, 1, 1, (40, 200), (1, 1)), "STAGED"),
    ],
)
@pytest.mark.parametrize("with_map", [False, True])
def test_plans_fit_and_cover(arguments: Any, mode: str, with_map: bool) -> None:
    """Shared memory within its limit; the tiles of a patch cover it; a thread sums at most 32 rows."""
    _, h, w, (H, W), (rows, cols) = arguments
    p = plan(*arguments, with_map, B=2)
    names = (
        "h w H W align patch_h patch_w rows cols cells_y cells_x log_tile_w thread_rows window_h window_w reciprocal"
    )
    at = dict(zip(names.split(), (int(s) for s in p.scalars[4:]), strict=True))
    assert p.variant.mode == mode
    assert p.shared_bytes <= SHARED_BYTES
    assert (p.shared_bytes > 0) == (mode == "STAGED")
    assert at["thread_rows"] <= ROWS_PER_THREAD
    assert at["log_tile_w"] in (5, 6, 7)
    blocks, tiles_y, tiles_x = p.grid
    tile_w, tile_h = 2 ** at["log_tile_w"], (THREADS >> at["log_tile_w"]) * at["thread_rows"]
    assert tile_w * (tiles_x - 1) < at["patch_w"] == W // cols <= tile_w * tiles_x
    assert tile_h * (tiles_y - 1) < at["patch_h"] == H // rows <= tile_h * tiles_y
    if with_map:
        assert at["cells_y"] * at["patch_h"] >= H
        assert at["cells_x"] * at["patch_w"] >= W
    else:
        assert (at["cells_y"], at["cells_x"]) == (rows, cols)
    assert blocks == 2 * at["cells_y"] * at["cells_x"]
    assert p.partials == 2 * rows * cols * tiles_y * tiles_x
    if mode == "STAGED":  # the window holds whatever tile of the plan
        positions = np.arange(at["window_h"] * at["window_w"], dtype=np.uint64)
        rows_of_positions = positions * np.uint64(at["reciprocal"]) >> np.uint64(32)  # as the kernel divides
        assert np.array_equal(rows_of_positions, positions // np.uint64(at["window_w"]))
        for n_in, n_out, n, window in ((h, H, "rows", "window_h"), (w, W, "columns", "window_w")):
            span = min(tile_h, at["patch_h"]) if n == "rows" else min(tile_w, at["patch_w"])
            low, high, _ = reference.taps(n_in, n_out, True)
            assert max(high[min(i + span, n_out) - 1] - low[i] + 1 for i in range(n_out)) <= at[window]


def test_plan_refuses_what_32_bits_cannot_hold() -> None:
    with pytest.raises(ValueError, match="32768"):
        plan(2, 32768, 4, (65536, 4), (1, 1))
    with pytest.raises(ValueError, match="smaller batch"):
        plan(2, 8, 8, (1024, 1024), (1024, 1024), B=4096)
    with pytest.raises(ValueError, match="finer grid"):
        plan(2, 2, 8, (4, 128 * 65536), (1, 1))


def test_cost_counts() -> None:
    """By hand for 2 classes, 1 x 2 positions to 1 x 4 pixels, 2 patches, float16."""
    c = cost.patch_entropy((1, 2, 1, 2), (1, 4), (1, 2), item_bytes=2)
    assert c.pixels == 4
    assert c.bytes_read == 2 * 2 * 2
    assert c.bytes_written == 2 * 4
    assert c.exps == 4
    # per pixel: 1 loser x (max, min, subtraction, addition, multiply-add) + 20 + 2 classes x vertical multiply-add;
    # horizontally: 1 row x 4 columns x 2 classes x 4
    assert c.flops == 4 * (6 + 20 + 4) + 4 * 2 * 4
    full = cost.patch_entropy((1, 19, 256, 512), (1024, 2048), (4, 4), item_bytes=2, return_map=True)
    assert full.exps == 1024 * 2048 * 18
    assert full.bytes_moved == 19 * 256 * 512 * 2 + 16 * 4 + 1024 * 2048 * 4
    none = cost.patch_entropy((1, 19, 64, 64), (64, 64), (4, 4), item_bytes=2)
    assert none.flops == 64 * 64 * (18 * 6 + 20)
    costs = [cost.patch_entropy((1, 19, 64, 64), (64, 64), (4, 4), item_bytes=2, score=s).flops for s in SCORES]
    assert costs[0] > costs[2] > costs[1] == costs[3] > costs[4]
    assert cost.patch_entropy((1, 19, 64, 64), (64, 64), (4, 4), item_bytes=2, score="ratio").exps == 64 * 64
