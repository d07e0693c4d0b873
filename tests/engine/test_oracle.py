"""Who labels: masks that are there already."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from meal_gpu.engine.oracle import SimulatedOracle
from meal_gpu.grid import Grid


@given(st.integers(1, 4), st.integers(1, 4), st.integers(8, 20), st.integers(8, 20), st.data())
def test_the_simulated_oracle_shows_the_masks(rows, cols, height, width, data):
    grid = Grid(rows, cols, height, width)
    masks = np.random.default_rng(0).integers(0, 256, (3, height, width), np.uint8)
    ids = data.draw(st.lists(st.integers(0, 3 * grid.cells - 1), max_size=6))
    labels = SimulatedOracle(masks, grid).label(0, torch.tensor(ids, dtype=torch.int64))
    assert labels.shape == (len(ids), grid.patch_height, grid.patch_width)
    assert labels.dtype == torch.uint8
    for patch, label in zip(ids, labels.numpy(), strict=True):
        y, x = patch % grid.cells // cols * grid.patch_height, patch % cols * grid.patch_width
        mask = masks[patch // grid.cells]
        np.testing.assert_array_equal(label, mask[y : y + grid.patch_height, x : x + grid.patch_width])
