"""The tiling: every pixel of the patches in exactly one of them, and ids that go there and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meal_gpu.errors import InputError
from meal_gpu.grid import Grid


@st.composite
def grids(draw) -> Grid:
    rows, cols = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    return Grid(rows, cols, draw(st.integers(2 * rows, 70)), draw(st.integers(2 * cols, 70)))


@given(grids())
def test_patches_tile_all_but_the_remainder(grid):
    hits = np.zeros((grid.height, grid.width), int)
    for y0, x0, y1, x1 in grid.boxes():
        assert (y1 - y0, x1 - x0) == (grid.patch_height, grid.patch_width)
        assert min(y0, x0) >= 0
        hits[y0:y1, x0:x1] += 1
    inside = np.zeros_like(hits)
    inside[: grid.height - grid.height % grid.rows, : grid.width - grid.width % grid.cols] = 1
    np.testing.assert_array_equal(hits, inside)
    assert hits.sum() == grid.cells * grid.patch_pixels


@given(grids(), st.integers(0, 5))
def test_ids_are_image_then_row_then_column(grid, image):
    names = [f"image {i}" for i in range(6)]
    patch = image * grid.cells
    for row in range(grid.rows):
        for col in range(grid.cols):
            where = grid.describe(patch, names)
            assert (where["image"], where["row"], where["col"]) == (names[image], row, col)
            y, x = row * grid.patch_height, col * grid.patch_width
            assert where["box"] == [y, x, y + grid.patch_height, x + grid.patch_width]
            assert grid.split(patch) == (image, row * grid.cols + col)
            patch += 1


def test_an_example_that_does_not_divide():
    grid = Grid(3, 4, 100, 130)
    assert (grid.patch_height, grid.patch_width) == (33, 32)
    assert grid.box(11) == (66, 96, 99, 128)


# A patch has at least 2 x 2 pixels; a grid at least one patch.
@pytest.mark.parametrize(("rows", "cols", "height", "width"), [(0, 1, 9, 9), (1, 0, 9, 9), (-1, 2, 9, 9), (5, 1, 9, 9),
                                                               (1, 5, 9, 9), (10, 1, 9, 9)])
def test_a_grid_that_does_not_fit_is_refused(rows, cols, height, width):
    with pytest.raises(InputError, match=f"grid of {rows} x {cols} does not fit images of {height} x {width}.*1 to 4"):
        Grid(rows, cols, height, width)
