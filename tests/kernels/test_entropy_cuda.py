"""What entropy.cu computes, against the float64 reference; launched as the program would launch it."""

from functools import cache

import numpy as np
import pytest
import torch
from entropy_cases import BF16, CLASSES, F16, F32, OTHER_SCORES, SHAPES, entropy_kernels, logits, plan_of
from ptx import Kernels, check, needs_ptx

from meal_gpu.kernels import reference

pytestmark = needs_ptx


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
            sums, pixels = kernels.run(x, size, grid, align=align)
            expected_sums, expected_pixels = reference.patch_entropy(x, size, grid, align_corners=align)
            check(sums, expected_sums)
            check(pixels, expected_pixels, 1.5e-5)  # of one pixel, whose rounding nothing averages
            runs += 1
            if scale == 1:  # without a map, tiles beyond the grid are not launched
                assert np.array_equal(kernels.run(x, size, grid, align=align, with_map=False)[0], sums)
    assert runs >= 3 * 5


@pytest.mark.parametrize("shape", ["x4", "remainder", "tiles"])
@pytest.mark.parametrize("score", OTHER_SCORES)
def test_other_scores(score: str, shape: str) -> None:
    _, _, size, grid = SHAPES[shape]
    for scale in (1, 20, 60):
        x = logits(11, F32, shape, scale)
        sums, pixels = entropy_kernels("sm_90").run(x, size, grid, score)
        expected_sums, expected_pixels = reference.patch_entropy(x, size, grid, score=score)
        check(sums, expected_sums)
        check(pixels, expected_pixels, 1.5e-5)
    x = logits(19, BF16, "identity", 5)
    check(
        entropy_kernels("sm_90").run(x, (13, 21), (3, 2), "margin")[0],
        reference.patch_entropy(x, (13, 21), (3, 2), score="margin")[0],
    )


@pytest.mark.parametrize("shape", ["remainder", "identity"])
def test_more_classes_than_registers(shape: str) -> None:
    _, _, size, grid = SHAPES[shape]
    for scale in (1, 60):
        x = logits(100, BF16, shape, scale, "channels_last")
        sums, pixels = entropy_kernels("sm_90").run(x, size, grid)
        expected_sums, expected_pixels = reference.patch_entropy(x, size, grid)
        check(sums, expected_sums)
        check(pixels, expected_pixels)


@pytest.mark.parametrize("score", ["entropy", "ratio"])
@pytest.mark.parametrize("shape", ["remainder", "identity"])
def test_before_sm_80_a_comparison_stands_for_the_minimum_that_keeps_a_nan(shape: str, score: str) -> None:
    """The same bits as on sm_90, and not finite wherever that is not: a NaN or an infinity first, last and between."""
    _, _, size, grid = SHAPES[shape]
    old, new = (modern_and_old(arch) for arch in ("sm_75", "sm_90"))
    for scale in (1, 60):
        x = logits(11, F32, shape, scale)
        assert all(map(np.array_equal, old.run(x, size, grid, score), new.run(x, size, grid, score)))
    for value in (float("nan"), float("inf"), float("-inf")):
        for classes in ([0], [4], [10], [0, 10], [3, 4]):
            x = logits(11, F32, shape, 1)
            x[0, classes, 3, 2] = value
            sums, pixels = old.run(x, size, grid, score)
            expected_sums, expected_pixels = new.run(x, size, grid, score)
            assert np.array_equal(sums, expected_sums, equal_nan=True)
            assert np.array_equal(pixels, expected_pixels, equal_nan=True)
            assert not np.isfinite(sums).all() or (score == "ratio" and value < 0)  # where it has a limit


@cache
def modern_and_old(arch: str) -> Kernels:
    return Kernels(arch).compile([plan_of(logits(11, F32, s, 1), s, score).variant
                                  for s in ("remainder", "identity") for score in ("entropy", "ratio")])


@pytest.mark.parametrize("value", [0.0, 3.5, 1e4, -1e4])
def test_constant_logits_are_uniform(value: float) -> None:
    for shape in ("x4", "identity"):
        x = torch.full_like(logits(11, F32, shape, 1), value)
        _, _, size, grid = SHAPES[shape]
        check(entropy_kernels("sm_90").run(x, size, grid)[0], reference.patch_entropy(x, size, grid)[0], 1e-6)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("value", [1.0, 1e4, -1e4])
def test_one_hot_logits(value: float, classes: int) -> None:
    """Each position has another class, so that between positions there are ties, certainty and what lies between."""
    for shape in ("remainder", "tiles"):
        B, (h, w), size, grid = SHAPES[shape]
        hot = torch.arange(B * h * w).reshape(B, h, w) % classes
        x = value * torch.nn.functional.one_hot(hot, classes).permute(0, 3, 1, 2).float()
        check(entropy_kernels("sm_90").run(x, size, grid)[0], reference.patch_entropy(x, size, grid)[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("shape", ["remainder", "identity"])
def test_non_finite_only_where_the_reference_is(bad: float, shape: str) -> None:
    _, _, size, grid = SHAPES[shape]
    x = logits(11, F32, shape, 1)
    x[0, 4, 3, 2] = bad
    scores = reference.SCORES if shape == "remainder" and bad != float("-inf") else ("entropy",)
    for score in scores:
        sums, pixels = entropy_kernels("sm_90").run(x, size, grid, score)
        expected_sums, expected_pixels = reference.patch_entropy(x, size, grid, score=score)
        assert np.array_equal(np.isfinite(sums), expected_sums.isfinite().numpy())
        assert np.array_equal(np.isfinite(pixels), expected_pixels.isfinite().numpy())
        assert not np.isfinite(sums).all()
