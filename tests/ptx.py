"""CUDA kernels without a GPU: nvcc makes PTX of them, and ptxrun executes the PTX on the CPU.

What this does not prove: speed, and CuPy's behaviour on a device.
"""

import os
import shutil
import sys
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from meal_gpu.kernels import entropy_cuda
from meal_gpu.kernels.entropy_cuda import Variant, launch_plan
from meal_gpu.kernels.nvrtc import OPTIONS, THREADS

PTXRUN = Path(__file__).resolve().parents[2] / "shared" / "tools" / "ptxrun"
FLAGS = ("-O3", *OPTIONS, "-ftz=true")  # -ftz=true is what CuPy adds

AVAILABLE = PTXRUN.exists() and shutil.which("nvcc") is not None
needs_ptx = [
    pytest.mark.ptx,
    pytest.mark.skipif(
        not AVAILABLE and os.environ.get("MEAL_GPU_REQUIRE_DATA") != "1",
        reason=f"needs nvcc and the runner at {PTXRUN}",
    ),
]


def runner() -> Any:
    sys.path.insert(0, str(PTXRUN))
    try:
        import ptxrun
    finally:
        sys.path.remove(str(PTXRUN))
    return ptxrun


def load(source: str, arch: str, flags: tuple[str, ...] = FLAGS, **options: bool) -> Any:
    """A module of the kernels in ``source``; ``race=True`` detects races, ``noise=True`` errs as far as PTX allows."""
    return runner().Module(runner().nvcc(source, arch, flags), **options)


def memory_of(x: torch.Tensor) -> np.ndarray:
    """What a kernel finds at ``x``'s address, gaps between its rows included; 16-bit floats as uint16."""
    extent = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    memory = torch.as_strided(x, (extent,), (1,))
    return (memory.view(torch.uint16) if x.dtype.itemsize == 2 else memory).numpy()


def check(actual: np.ndarray, expected: torch.Tensor, rtol: float = 1e-5) -> None:
    """Relative error of every element; what is below 1e-30 in the reference has underflown in float32 legitimately."""
    np.testing.assert_allclose(actual, expected.numpy(), rtol=rtol, atol=1e-30)


Launch = Callable[[Callable[[str], str]], tuple[bool, int]]
"""Compiles and runs an edited kernel: whether its values are right, and its races."""


def verdicts(launch: Launch, edit: Callable[[str], str] = lambda text: text) -> set[str]:
    """What is found of a kernel: any of ``bounds``, ``races``, ``values``."""
    try:
        right, races = launch(edit)
    except runner().PTXFault:
        return {"bounds"}
    return {name for name, found in (("values", not right), ("races", races)) if found}


def assert_caught(mutation: tuple[str, str, str], source: str, launch: Launch) -> None:
    """Of an edit (text, replacement, how it is caught), that the checks find it."""
    old, new, how = mutation
    assert old in source
    assert how in verdicts(launch, lambda text: text.replace(old, new))


class Kernels:
    """Modules of variants of entropy.cu, compiled in parallel."""

    def __init__(self, arch: str, **options: bool) -> None:
        self.arch, self.options = arch, options
        self.modules: dict[Variant, Any] = {}

    def compile(self, variants: list[Variant], edit: Callable[[str], str] = lambda text: text) -> "Kernels":
        def build(part: list[Variant]) -> None:
            module = load(edit(entropy_cuda.source(part)), self.arch, **self.options)
            self.modules.update(dict.fromkeys(part, module))

        variants = sorted(set(variants), key=lambda v: (-v.classes, v.name))
        parts = [p for p in (variants[i::4] for i in range(4)) if p]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(build, parts))
        return self

    def run(
        self,
        x: torch.Tensor,
        size: tuple[int, int],
        grid: tuple[int, int],
        score: str = "entropy",
        align: bool = True,
        with_map: bool = True,
        **order: Any,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Sums and map, by the two launches of the program's plan. Buffers begin as NaN: nothing may be left out."""
        plan = launch_plan(tuple(x.shape), x.stride(), x.dtype, size, grid, score, align, with_map)
        module = self.modules[plan.variant]
        partials = np.full(plan.partials, np.nan)
        pixels = np.full((x.shape[0], *size), np.nan, np.float32) if with_map else None
        sums = np.full((x.shape[0], *grid), np.nan, np.float32)
        arguments = [memory_of(x), partials, pixels, *plan.scalars]
        self.stats = module.launch(
            plan.variant.name, plan.grid, THREADS, arguments, shared=plan.shared_bytes, warn=False, **order
        )
        more = module.launch("sum_partials", plan.sum_grid, THREADS, [partials, sums, *plan.sum_scalars], **order)
        self.stats = {key: self.stats[key] + more[key] for key in more}
        return sums, pixels


class FakeCupy:
    """Stands for CuPy: compiles with nvcc and runs on the CPU what it is asked to launch, at the given addresses."""

    def __init__(self, memory: list[torch.Tensor]) -> None:
        self.arrays: dict[int, np.ndarray] = {}
        for tensor in memory:
            self.add(tensor)
        self.streams: list[int] = []
        self.cuda = types.SimpleNamespace(Stream=types.SimpleNamespace(from_external=self.from_external))

    def add(self, tensor: torch.Tensor) -> None:
        view = tensor if tensor.dtype.itemsize != 2 else tensor.view(torch.uint16)
        self.arrays[tensor.data_ptr()] = view.numpy()

    def from_external(self, stream: Any) -> Any:
        self.streams.append(stream.cuda_stream)
        return nullcontext()

    def RawModule(self, *, code: str, options: tuple[str, ...], backend: str) -> Any:  # noqa: N802
        assert backend == "nvrtc"
        module = load(code, "sm_90", (*options, "-ftz=true"))

        def get_function(name: str) -> Callable[..., None]:
            def launch(grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...], shared_mem: int = 0) -> None:
                # CuPy copies NumPy scalars as they are: each must have the size of its parameter.
                sizes = [p.nbytes for p in module.kernels[name][1].params]
                assert sizes == [a.nbytes for a in arguments]
                known = [(self.arrays[int(a)] if int(a) else None) if isinstance(a, np.uintp) else a for a in arguments]
                module.launch(name, grid, block, known, shared=shared_mem)

            return launch

        return types.SimpleNamespace(get_function=get_function)
