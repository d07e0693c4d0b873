"""How entropy.cu is compiled, and how the program hands it to CuPy."""

import ctypes
import re
import types
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from entropy_cases import BF16, F32, OTHER_SCORES, SHAPES, entropy_kernels, logits, plan_of
from ptx import FLAGS, FakeCupy, Kernels, check, needs_ptx, runner

from meal_gpu.kernels import entropy_cuda, nvrtc, reference
from meal_gpu.kernels.entropy_cuda import Variant, launch_plan
from meal_gpu.kernels.nvrtc import OPTIONS, THREADS

pytestmark = needs_ptx


# Multiprocessor limits: registers, shared memory in bytes, threads (CUDA C++ programming guide, table of capabilities).
LIMITS = {"sm_75": (65536, 64 * 1024, 1024), "sm_80": (65536, 164 * 1024, 2048), "sm_90": (65536, 228 * 1024, 2048),
          "sm_100": (65536, 228 * 1024, 2048)}
ENOUGH = {"sm_75": 1, "sm_80": 5}
"""Blocks per multiprocessor that are not asked for, where shared memory is what bounds them."""


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
            assert occupancy(arch, registers, plan.shared_bytes + static) >= min(expected, ENOUGH.get(arch, 9))
            print(arch, variant.name, registers, "registers", occupancy(arch, registers, plan.shared_bytes + static))


def test_nvrtc_compiles_it_as_cupy_would() -> None:
    """NVRTC itself, with CuPy's options and no include path; its PTX gives what nvcc's gives."""
    libraries = list(Path(torch.__file__).parents[1].glob("nvidia/*/lib/libnvrtc.so.1*"))
    if not libraries:
        pytest.skip("no NVRTC beside torch")
    compiler = ctypes.CDLL(str(libraries[0]))
    variant = plan_of(logits(11, F32, "tiles", 1), "tiles").variant
    program = ctypes.c_void_p()
    text = entropy_cuda.source([variant]).encode()
    assert compiler.nvrtcCreateProgram(ctypes.byref(program), text, b"entropy.cu", 0, None, None) == 0
    options = [o.encode() for o in (*OPTIONS, "-ftz=true", "-arch=compute_90")]
    status = compiler.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    compiler.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    compiler.nvrtcGetProgramLog(program, log)
    assert status == 0, log.value.decode()
    assert b"warning" not in log.value, log.value.decode()
    compiler.nvrtcGetPTXSize(program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    compiler.nvrtcGetPTX(program, ptx)
    kernels = Kernels("sm_90")
    kernels.modules[variant] = runner().Module(ptx.value.decode())
    x = logits(11, F32, "tiles", 1)
    size, grid = SHAPES["tiles"][2:]
    assert np.array_equal(kernels.run(x, size, grid)[0], entropy_kernels("sm_90").run(x, size, grid)[0])


@pytest.fixture
def clean_caches() -> Iterator[None]:
    for cached in (entropy_cuda._kernels, nvrtc._cupy):
        cached.cache_clear()
    yield
    entropy_cuda._kernels.cache_clear()


@pytest.mark.usefixtures("clean_caches")
def test_the_wrapper_launches_what_was_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """`entropy_cuda.patch_entropy` itself, with CuPy and torch.cuda replaced: addresses, sizes, stream."""
    x = logits(3, BF16, "remainder", 1)
    sums, pixels = torch.zeros(2, 4, 5), torch.zeros(2, 29, 33)
    cupy = FakeCupy([x, sums, pixels])
    monkeypatch.setattr(nvrtc, "_cupy", lambda: cupy)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=77))
    made = []

    def workspace(elements: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        made.append(elements)
        memory = torch.full((elements,), torch.nan, dtype=dtype, device=device)
        cupy.add(memory)
        return memory

    monkeypatch.setattr(torch, "empty", workspace)
    entropy_cuda.patch_entropy(x, sums, pixels, (29, 33), "entropy", True)
    expected_sums, expected_pixels = reference.patch_entropy(x, (29, 33), (4, 5))
    check(sums.numpy(), expected_sums)
    check(pixels.numpy(), expected_pixels)
    pixels.zero_()
    entropy_cuda.patch_entropy(x, sums.zero_(), None, (29, 33), "entropy", True)
    check(sums.numpy(), expected_sums)
    assert not pixels.any()
    assert cupy.streams == [77, 77]
    assert made == [2 * 4 * 5] * 2
