"""Where a file's pixels lie in the map of logits: against PyTorch's interpolation, and a search by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from meal_gpu.folders.enlarge import Axis, beside_each_other, classes_at

SIDE = st.integers(1, 40)


def interpolated(maps: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=True)[0].argmax(0).numpy()


@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 12), st.integers(1, 12))
def test_a_file_of_the_frames_size_is_what_is_evaluated(height, width, h, w):
    maps = torch.randn(5, h, w, generator=torch.Generator().manual_seed(h * w))
    found = classes_at(maps, Axis.of(height, height, height, h), Axis.of(width, width, width, w))
    expected = interpolated(maps, (height, width))
    assert (found != expected).mean() < 0.01  # equal but where two logits are, up to rounding


@given(SIDE, SIDE, st.integers(1, 40), st.integers(1, 9), st.integers(1, 4))
def test_places_by_hand(pixels, seen, more, cells, parts):
    frame = max(seen, parts) + more
    axis = Axis.of(pixels, seen, frame, cells, parts)
    part = frame // parts
    for i in range(pixels):
        at = min(max((i + 0.5) * seen / pixels - 0.5, 0), seen - 1)
        number = min(int((at + 0.5) // part), parts - 1)
        within = min(max(at - number * part, 0), part - 1)
        cell = number * cells + (within * (cells - 1) / (part - 1) if part > 1 else 0)
        assert float(axis.lower[i] + axis.weight[i]) == pytest.approx(cell, abs=1e-4)
        assert axis.lower[i] // cells == number


def test_parts_do_not_look_into_each_other():
    """At the seam of two patches each pixel takes its own patch's map."""
    maps = torch.zeros(2, 1, 8)
    maps[0, :, :4], maps[1, :, 4:] = 1, 1
    found = classes_at(maps, Axis.of(4, 4, 4, 1), Axis.of(16, 16, 16, 4, 2))
    assert (found == np.repeat([0, 1], 8)).all()


def test_what_is_left_over_goes_with_the_last_part():
    maps = torch.zeros(3, 1, 6)
    for i in range(3):
        maps[i, :, 2 * i : 2 * i + 2] = 1
    found = classes_at(maps, Axis.of(1, 1, 1, 1), Axis.of(20, 20, 20, 2, 3))
    assert found[0].tolist() == [0] * 6 + [1] * 6 + [2] * 8


def test_an_edge_in_the_frame_is_where_it_is_in_the_file():
    maps = torch.zeros(2, 5, 5)
    maps[0, :, :3], maps[1, :, 3:] = 1, 1
    for width in (16, 64, 200):
        found = classes_at(maps, Axis.of(4, 16, 16, 5), Axis.of(width, 16, 16, 5))
        # The logits cross half way between cells 2 and 3, at 2.5 / 4 * 15 + 0.5 of 16 pixels.
        assert abs(found[0].argmax() - width * (2.5 / 4 * 15 + 0.5) / 16) <= 1


def test_memory_is_taken_in_parts(monkeypatch):
    import meal_gpu.folders.enlarge as module

    maps = torch.randn(4, 9, 7, generator=torch.Generator().manual_seed(0))
    axes = Axis.of(50, 36, 36, 9), Axis.of(30, 28, 28, 7)
    whole = classes_at(maps, *axes)
    monkeypatch.setattr(module, "_BYTES", 1)
    np.testing.assert_array_equal(classes_at(maps, *axes), whole)


def test_maps_lie_as_their_patches_do():
    maps = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 2, 3, 4)
    found = beside_each_other(maps, 2, 3)
    assert found.shape == (2, 6, 12)
    assert found[0, ::3, ::4].tolist() == [[0, 1, 2], [3, 4, 5]]
