"""entropy.cu in any order of threads, and that these tests would notice mistakes in it."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from entropy_cases import BF16, F16, F32, SHAPES, entropy_kernels, logits, plan_of
from ptx import Kernels, assert_caught, check, needs_ptx, verdicts

from meal_gpu.kernels import entropy_cuda, reference

pytestmark = needs_ptx


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
    expected, expected_map = entropy_kernels("sm_90").run(x, *SHAPES[shape][2:])
    orders: list[dict[str, Any]] = [{"order": "rand", "seed": seed} for seed in range(4)]
    for order in ({"order": "rev"}, *orders):
        sums, pixels = entropy_kernels("sm_90").run(x, *SHAPES[shape][2:], **order)
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
    kernels.run(logits(classes, dtype, shape, scale), *SHAPES[shape][2:])
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
            check(noisy.run(x, size, grid)[0], reference.patch_entropy(x, size, grid)[0])


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


def launch(edit: Callable[[str], str]) -> tuple[bool, int]:
    """On one shape, which has full warps and several tiles."""
    x = logits(3, F32, "tiles", 1)
    kernels = Kernels("sm_90", race=True).compile([plan_of(x, "tiles").variant], edit)
    sums, pixels = kernels.run(x, *SHAPES["tiles"][2:])
    expected_sums, expected_pixels = reference.patch_entropy(x, *SHAPES["tiles"][2:])
    try:
        check(sums, expected_sums)
        check(pixels, expected_pixels, 1.5e-5)
    except AssertionError:
        return False, kernels.stats["races"]
    return True, kernels.stats["races"]


def test_the_unedited_kernel_passes() -> None:
    assert verdicts(launch) == set()


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutations_are_caught(mutation: str) -> None:
    assert_caught(MUTATIONS[mutation], entropy_cuda.source([]), launch)
