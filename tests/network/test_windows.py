"""The matrices of windows against torch's interpolation and against plain slicing of padded maps."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from meal_gpu.grid import Grid
from meal_gpu.network.windows import Windows, along, axis_windows, bilinear_matrix, taps

RATES = (6, 12, 18)


def torch_matrix(n_out: int, n_in: int) -> np.ndarray:
    """torch's own 1-D interpolation of the unit vectors, float64."""
    unit = torch.eye(n_in, dtype=torch.float64)[None]
    return F.interpolate(unit, n_out, mode="linear", align_corners=True)[0].T.numpy()


@given(st.integers(1, 400), st.integers(1, 120))
def test_bilinear_matrix_is_torchs_interpolation(n_out, n_in):
    matrix = bilinear_matrix(n_out, n_in)
    np.testing.assert_allclose(matrix, torch_matrix(n_out, n_in), atol=1e-11)
    np.testing.assert_allclose(matrix.sum(1), 1)
    assert ((matrix > -1e-12).all(), np.count_nonzero(matrix, axis=1).max() <= 2) == (True, True)


def test_taps_are_the_neighbouring_rows():
    matrix = np.arange(12.0).reshape(4, 3) + 1
    found = taps(matrix)
    np.testing.assert_array_equal(found[:, 1], matrix)
    np.testing.assert_array_equal(found[1:, 0], matrix[:-1])
    np.testing.assert_array_equal(found[:-1, 2], matrix[1:])
    assert not found[0, 0].any()
    assert not found[-1, 2].any()


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.integers(1, 5), st.integers(1, 3),
       st.booleans())
def test_along_is_one_product_per_axis(batch, m, h, n, w, channels, shared):
    draw = torch.Generator().manual_seed(batch + 10 * m + 100 * h)
    rows, cols, x = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in (
        (1 if shared else batch, m, h), (1 if shared else batch, n, w), (batch, h, w, channels)))
    expected = torch.einsum("bmh,bnw,bhwc->bmnc", rows.expand(batch, -1, -1), cols.expand(batch, -1, -1), x)
    torch.testing.assert_close(along(rows, cols, x), expected)


@st.composite
def axes(draw) -> tuple[int, int, int, int, int]:
    """Pixels, patch, patches, cells at stride 4 and at stride 16: not only the sizes that backbones make of pixels."""
    n_patches = draw(st.integers(1, 6))
    patch = draw(st.integers(2, 40))
    n_pixels = patch * n_patches + draw(st.integers(0, n_patches - 1))
    n4 = draw(st.sampled_from([-(-n_pixels // 4), max(n_pixels // 4, 1), n_pixels, draw(st.integers(1, 60))]))
    n16 = draw(st.sampled_from([-(-n4 // 4), max(n4 // 4, 1), -(-n4 // 2), n4, draw(st.integers(1, 20))]))
    return n_pixels, patch, n_patches, n4, n16


@settings(max_examples=200)
@given(axes())
def test_every_matrix_takes_what_it_says(axis):
    """By composition: what a window computes of a signal is a slice of what the padded whole signal gives."""
    n_pixels, patch, n_patches, n4, n16 = axis
    at = axis_windows(n_pixels, patch, n_patches, n4, n16, RATES)
    draw = np.random.default_rng(n_pixels * 1000 + n4)
    low, high = draw.standard_normal(n4), draw.standard_normal(n16)
    padded_high = np.pad(high, 18)
    up = bilinear_matrix(n4, n16) @ high
    for i in range(n_patches):
        one = {name: value[i].double().numpy() for name, value in vars(at).items()}

        # The stride-16 cells are a run of the map, each read with its taps, zero outside.
        cells = one["high"].argmax(1)
        np.testing.assert_array_equal(one["high"] @ high, high[cells])
        np.testing.assert_array_equal(np.diff(cells), 1)
        for r, rate in enumerate(RATES):
            expected = [padded_high[18 + cells + tap * rate] for tap in (-1, 0, 1)]
            np.testing.assert_array_equal(one["atrous"][r] @ high, np.concatenate(expected))

        # The interpolated map's three taps, from those cells alone, for the window and its halo inside the map.
        halo = one["mid_place"]
        m1 = halo.shape[1]
        kernel = draw.standard_normal(3)
        products = np.concatenate([kernel[dy] * (one["high"] @ high)[None] for dy in range(3)]).reshape(3, -1)
        fused = one["up"] @ products.reshape(-1)
        whole = np.convolve(np.pad(up, 1), kernel[::-1], "valid")
        starts = [s for s in range(n4 - m1 + 1) if np.allclose(whole[s : s + m1], fused, atol=1e-5)]
        assert starts

        # Low-level cells, placed for the convolution: a window of the zero-padded map with one more cell each side.
        placed = one["low_place"] @ (one["low"] @ low)
        padded_low = np.pad(low, 1)
        starts = [s for s in starts if np.array_equal(placed, padded_low[s : s + m1 + 2])]
        assert len(starts) == 1 or n4 == 1

        # And the second convolution's input likewise, around the cells that the pixels are interpolated from.
        second = halo @ low[starts[0] : starts[0] + m1]
        pixels = bilinear_matrix(n_pixels, n4)[i * patch : (i + 1) * patch]
        m = one["pixels"].shape[1]
        fits = [s for s in range(n4 - m + 1)
                if np.array_equal(second, padded_low[s : s + m + 2])
                and np.allclose(one["pixels"] @ low[s : s + m], pixels @ low, atol=1e-5)]
        assert len(fits) == 1


@given(axes())
def test_windows_are_as_small_as_the_widest_patch_needs(axis):
    n_pixels, patch, n_patches, n4, n16 = axis
    at = axis_windows(n_pixels, patch, n_patches, n4, n16, RATES)
    needed = max(np.ptp(np.flatnonzero(torch_matrix(n_pixels, n4)[i * patch : (i + 1) * patch].any(0))) + 1
                 for i in range(n_patches))
    m = at.pixels.shape[2]
    assert needed - 1 <= m <= needed + 1  # a coordinate that is an integer but for rounding may touch one cell more
    assert at.up.shape[1] == min(m + 2, n4)
    assert at.low.shape[1] == min(m + 4, n4)
    assert all(value.dtype == torch.float32 for value in vars(at).values())


@given(st.integers(1, 4), st.integers(1, 4), st.lists(st.integers(0, 15), min_size=1, max_size=6))
def test_of_takes_rows_and_columns_of_cells(rows, cols, cells):
    grid = Grid(rows, cols, 37, 50)
    assume(max(cells) < grid.cells)
    windows = Windows.of_grid(grid, (10, 13), (3, 4), RATES, torch.device("cpu"))
    at = windows.of(torch.tensor(cells))
    for b, cell in enumerate(cells):
        for name, value in vars(at.rows).items():
            assert torch.equal(value[b], getattr(windows.rows, name)[cell // cols])
        for name, value in vars(at.cols).items():
            assert torch.equal(value[b], getattr(windows.cols, name)[cell % cols])


@pytest.mark.parametrize(("pixels", "patch", "cells", "cost"), [
    # CamVid's rows and columns: a window with its halo of 2 is a third of the map, not the whole of it.
    (360, 90, 90, 28), (480, 120, 120, 36),
])
def test_the_cost_of_a_window(pixels, patch, cells, cost):
    at = axis_windows(pixels, patch, 4, cells, cells // 4 + 1, RATES)
    assert at.low.shape[1] <= cost
