"""`patch_entropy` on the CPU against the float64 reference, and its promises: arguments, threads, precision."""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import numpy as np
import pytest
import torch

from meal_gpu.kernels import SCORES, entropy_cpu, exp_cpu, patch_entropy, reference, rows_cpu
from meal_gpu.kernels.reference import taps

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Why these: a grid that divides and ×4; a remainder in both axes; no upsampling; one pixel and one row; a single cell
# stretched; shrinking (the pixel by pixel path); more than 8 pixels per cell; wider than a tile by a little.
SHAPES = {
    "x4": (2, (16, 20), (64, 80), (4, 4)),
    "remainder": (2, (7, 9), (29, 33), (4, 5)),
    "identity": (2, (13, 21), (13, 21), (3, 2)),
    "one-pixel": (1, (1, 1), (1, 1), (1, 1)),
    "one-row": (1, (1, 9), (1, 40), (1, 3)),
    "one-cell": (1, (1, 1), (11, 150), (2, 2)),
    "shrink": (1, (40, 300), (13, 131), (2, 2)),
    "x16": (1, (3, 10), (48, 160), (3, 3)),
    "tile+1": (1, (5, 33), (18, 129), (2, 129)),
}


def check(actual: torch.Tensor, expected: torch.Tensor, rtol: float = 1e-5) -> None:
    """Relative error of every element; what is below 1e-30 in the reference has underflown in float32 legitimately."""
    torch.testing.assert_close(actual.double(), expected, rtol=rtol, atol=1e-30, equal_nan=True)


def random_logits(classes: int, shape: str, scale: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    B, (h, w), *_ = SHAPES[shape]
    generator = torch.Generator().manual_seed(classes * 1000 + int(scale))
    return (scale * torch.randn(B, classes, h, w, generator=generator)).to(dtype)


@pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "centres"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("classes", [2, 11, 19, 64])
def test_equals_the_reference(classes: int, shape: str, align_corners: bool) -> None:
    """Every score and dtype at three scales; every pixel of the map too."""
    _, _, size, grid = SHAPES[shape]
    for scale in (1, 20, 60):
        for dtype in DTYPES:
            x = random_logits(classes, shape, scale, dtype)
            for score in SCORES:
                sums, pixels = patch_entropy(x, size, grid, score=score, align_corners=align_corners, return_map=True)
                expected_sums, expected_pixels = reference.patch_entropy(
                    x, size, grid, score=score, align_corners=align_corners
                )
                check(sums, expected_sums)
                check(pixels, expected_pixels)
                assert torch.equal(sums, patch_entropy(x, size, grid, score=score, align_corners=align_corners))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [0.0, 1e4, -1e4, 3.5])
def test_constant_logits_are_uniform(value: float, dtype: torch.dtype) -> None:
    x = torch.full((1, 19, 6, 7), value, dtype=dtype)
    sums = patch_entropy(x, (24, 28), (2, 2))
    np.testing.assert_allclose(sums, 12 * 14 * np.log(19), rtol=1e-6)


@pytest.mark.parametrize("classes", [2, 11, 19, 64])
@pytest.mark.parametrize("value", [1.0, 1e4, -1e4])
def test_one_hot_logits(value: float, classes: int) -> None:
    """Each cell has another class; at 1e4 the pixels between cells are ties or certain, exactly as in the reference."""
    h, w = 6, 9
    hot = torch.arange(h * w).reshape(h, w) % classes
    x = value * torch.nn.functional.one_hot(hot, classes).permute(2, 0, 1)[None].float()
    for size in ((6, 9), (11, 17), (24, 36)):
        for score in SCORES:
            check(patch_entropy(x, size, (2, 3), score=score), reference.patch_entropy(x, size, (2, 3), score=score)[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("size", [(8, 12), (29, 45)])
def test_non_finite_only_where_the_reference_is(bad: float, size: tuple[int, int]) -> None:
    x = torch.randn(1, 11, 8, 12, generator=torch.Generator().manual_seed(3))
    x[0, 4, 2, 3] = bad
    for score in SCORES if bad != float("-inf") else ("entropy",):  # the others have a limit there
        sums, pixels = patch_entropy(x, size, (4, 4), score=score, return_map=True)
        expected_sums, expected_pixels = reference.patch_entropy(x, size, (4, 4), score=score)
        assert torch.equal(sums.isfinite(), expected_sums.isfinite())
        assert torch.equal(pixels.isfinite(), expected_pixels.isfinite())
        assert not sums.isfinite().all()
        assert sums.isfinite().any()


def test_memory_layouts_agree_bitwise() -> None:
    for dtype in DTYPES:
        x = torch.randn(2, 11, 12, 15, generator=torch.Generator().manual_seed(4)).to(dtype)
        expected = patch_entropy(x, (48, 60), (4, 4))
        padded = torch.zeros(2, 11, 14, 17, dtype=dtype)
        padded[:, :, 1:-1, 1:-1] = x
        for same in (x.contiguous(memory_format=torch.channels_last), padded[:, :, 1:-1, 1:-1], x.mT.contiguous().mT):
            assert torch.equal(patch_entropy(same, (48, 60), (4, 4)), expected)
        row = x[:, :, :1]
        assert torch.equal(
            patch_entropy(row.expand(2, 11, 9, 15), (33, 60), (1, 2)),
            patch_entropy(row.expand(2, 11, 9, 15).contiguous(), (33, 60), (1, 2)),
        )


def test_any_number_of_threads_gives_the_same_bits() -> None:
    x = 5 * torch.randn(2, 19, 33, 41, generator=torch.Generator().manual_seed(5))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 2):  # more than numba has are clipped
            torch.set_num_threads(threads)
            results.append(patch_entropy(x, (130, 164), (4, 4), return_map=True))
    finally:
        torch.set_num_threads(before)
    for sums, pixels in results[1:]:
        assert torch.equal(sums, results[0][0])
        assert torch.equal(pixels, results[0][1])


def test_out_is_written_and_returned() -> None:
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(6))
    sums, pixels = torch.empty(2, 2, 2), torch.empty(2, 8, 10)
    assert patch_entropy(x, (8, 10), (2, 2), out=sums) is sums
    assert torch.equal(sums, patch_entropy(x, (8, 10), (2, 2)))
    sums.fill_(-1)
    result = patch_entropy(x, (8, 10), (2, 2), return_map=True, out=(sums, pixels))
    assert result[0] is sums
    assert result[1] is pixels
    check(pixels, reference.score_map(x, (8, 10)))


def test_empty_batch() -> None:
    sums, pixels = patch_entropy(torch.empty(0, 5, 4, 4), (8, 8), (2, 2), return_map=True)
    assert sums.shape == (0, 2, 2)
    assert pixels.shape == (0, 8, 8)


def test_does_not_need_or_give_gradients() -> None:
    x = torch.randn(1, 3, 4, 4, requires_grad=True)
    assert not patch_entropy(x, (8, 8), (2, 2)).requires_grad


GOOD = torch.zeros(1, 3, 4, 5)


@pytest.mark.parametrize(
    ("error", "says", "arguments"),
    [
        (TypeError, "give a torch.Tensor", {"logits": np.zeros((1, 3, 4, 5))}),
        (ValueError, r"\(3, 4, 5\)", {"logits": GOOD[0]}),
        (ValueError, "1 classes.*2 to", {"logits": GOOD[:, :1]}),
        (ValueError, "classes", {"logits": torch.zeros(1, 257, 2, 2)}),
        (ValueError, "empty", {"logits": torch.zeros(1, 3, 0, 5)}),
        (TypeError, "float64.*convert", {"logits": GOOD.double()}),
        (TypeError, "int64", {"logits": GOOD.long()}),
        (ValueError, "meta.*move", {"logits": GOOD.to("meta")}),
        (TypeError, "size.*two integers", {"size": 8}),
        (TypeError, "size", {"size": (8.0, 10)}),
        (ValueError, "at least 1", {"size": (0, 10)}),
        (ValueError, "grid", {"grid": (2, 0)}),
        (ValueError, "fewer patches", {"grid": (9, 2)}),
        (ValueError, "fewer patches", {"grid": (2, 11)}),
        (ValueError, "entropy, least_confidence, margin, confidence", {"score": "variance"}),
        (ValueError, r"\(1, 2, 2\)", {"out": torch.empty(1, 2, 3)}),
        (ValueError, "float32", {"out": torch.empty(1, 2, 2, dtype=torch.float64)}),
        (ValueError, "not contiguous", {"out": torch.empty(1, 2, 2, 2)[..., 0]}),
        (TypeError, "pair", {"out": torch.empty(1, 2, 2), "return_map": True}),
        (TypeError, "out", {"out": (torch.empty(1, 2, 2), torch.empty(1, 8, 10))}),
    ],
)
def test_bad_arguments(error: type[Exception], says: str, arguments: dict) -> None:
    good = {"logits": GOOD, "size": (8, 10), "grid": (2, 2)}
    with pytest.raises(error, match=says):
        patch_entropy(**(good | arguments))


def elementwise(function: Callable, x: np.ndarray) -> np.ndarray:
    """The compiled scalar function of float32 on an array."""

    @numba.njit
    def loop(x: np.ndarray, y: np.ndarray) -> None:
        for i in range(x.size):
            y[i] = function(x[i])

    y = np.empty_like(x)
    loop(x, y)
    return y


def test_exp_error_bound() -> None:
    """The stated bound of the polynomial on its whole range, exact zeros below, NaN kept."""
    x = np.concatenate([-np.logspace(-8, np.log10(87.3), 400_000), np.linspace(-87.3, 0, 400_000)]).astype(np.float32)
    ours = elementwise(exp_cpu.exp, x)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(ours / exact - 1).max() <= exp_cpu.EXP_MAX_REL_ERROR
    assert elementwise(exp_cpu.exp, np.float32([0])) == 1
    assert not elementwise(exp_cpu.exp, np.float32([-88.1, -1e4, -np.inf])).any()
    assert np.isnan(elementwise(exp_cpu.exp, np.float32([np.nan])))


def test_log1p_error_bound() -> None:
    s = np.concatenate([[0], np.logspace(-38, np.log10(255), 400_000)]).astype(np.float32)
    ours = elementwise(exp_cpu.log1p, s)
    exact = np.log1p(s.astype(np.float64))
    assert ours[0] == 0
    assert np.abs(ours[1:] / exact[1:] - 1).max() <= 3e-7


def test_float16_is_widened_exactly() -> None:
    """All 65536 bit patterns, as the only logit beside 0 of a two-class pixel without upsampling."""
    bits = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.float16)
    row = np.zeros(65536, np.float32)
    rows_cpu.widen(np.empty(0, np.float32), bits.view(torch.uint16).numpy(), 2, 0, 1, 65536, row)
    np.testing.assert_array_equal(row, bits.float().numpy())


def test_taps_are_cached_per_shape_not_per_call() -> None:
    entropy_cpu.plan.cache_clear()
    x = torch.randn(1, 3, 4, 4)
    for _ in range(3):
        patch_entropy(x, (16, 16), (2, 2))
    assert entropy_cpu.plan.cache_info().misses == 1
    low, _, _ = taps(4, 16, True)
    assert low.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3]


def test_one_specialisation_serves_everything() -> None:
    assert len(entropy_cpu.KERNELS["float32"]().signatures) == 1


def test_float64_is_not_compiled_before_a_logit_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was half of what a first run compiled for the scores, and large logits are rare."""
    asked: list[str] = []

    def watched(real: str) -> Callable[[], Any]:
        kernel = entropy_cpu.KERNELS[real]
        return lambda: (asked.append(real), kernel())[1]

    monkeypatch.setattr(entropy_cpu, "KERNELS", {real: watched(real) for real in ("float32", "float64")})
    x = torch.randn(2, 3, 8, 8)
    patch_entropy(x, (32, 32), (2, 2))
    assert asked == ["float32"]
    x[1, 2, 3, 3] = 1e3
    patch_entropy(x, (32, 32), (2, 2))
    assert asked == ["float32", "float32", "float64"]
    patch_entropy(x, (8, 8), (2, 2))
    assert asked[3:] == ["float32"]


def test_vector_code(tmp_path: Path) -> None:
    """Compiled afresh (cached code has no assembly): packed polynomials, and no call of a scalar exp or log."""
    code = ("from meal_gpu.kernels import entropy_cpu as e\n"
            "for kernel in e.KERNELS.values(): print(*kernel().inspect_asm().values())")
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    assembly = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert re.search("_band|_scores", assembly)
    assert not re.findall(r"(?:call|bl)\w*\s+\S*(?:exp|log)\w*", assembly)
    symbols = set(re.findall(r"\b\w*(?:expf|exp2f|log1pf|logf|expm1)\b", assembly))
    assert not symbols
    if platform.machine() == "x86_64":
        flags = llvmlite.binding.get_host_cpu_features()
        register = "zmm" if flags.get("avx512f") else "ymm" if flags.get("avx2") else "xmm"
        packed = re.findall(rf"\tv?(?:fmadd\w+|mul)ps\s.*%{register}", assembly)
        # A polynomial of degree 5 in each of the two loops (entropy; the other scores), for float32 and for float64
        # interpolation: at least 4 x 5 packed multiply-adds of the widest kind.
        assert len(packed) >= 20


def test_importing_is_light() -> None:
    """Neither numba nor CuPy is imported before a tensor needs them."""
    code = "import sys, meal_gpu.kernels; sys.exit(any(m in sys.modules for m in ('numba', 'cupy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
