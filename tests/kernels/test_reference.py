"""The float64 reference itself, against independent definitions (torch's interpolate, torch's entropy, hand sums)."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from meal_gpu.kernels import reference


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    "sizes", [(1, 1), (1, 7), (7, 1), (5, 5), (5, 20), (23, 90), (30, 120), (9, 4), (2, 3), (64, 1023)]
)
def test_taps_are_those_of_interpolate(sizes: tuple[int, int], align_corners: bool) -> None:
    """Interpolating the identity matrix gives torch's own weights."""
    n_in, n_out = sizes
    eye = torch.eye(n_in, dtype=torch.float64)[None]  # row i is the unit vector i
    low, high, weight = reference.taps(n_in, n_out, align_corners)
    ours = (1 - weight) * eye[0].numpy()[:, low] + weight * eye[0].numpy()[:, high]
    square = torch.cat([eye, eye])[:, None]  # [2, 1, n_in, n_in], resized along one axis only
    theirs = F.interpolate(square, size=(n_in, n_out), mode="bilinear", align_corners=align_corners)
    np.testing.assert_allclose(ours, theirs[1, 0].numpy(), atol=1e-12)
    assert low.min() >= 0
    assert high.max() < n_in
    assert weight.min() >= 0
    assert weight.max() < 1


@pytest.mark.parametrize("align_corners", [True, False])
def test_upsample_is_interpolate(align_corners: bool) -> None:
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    theirs = F.interpolate(x, size=(17, 9), mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(reference.upsample(x, (17, 9), align_corners), theirs, rtol=1e-12, atol=1e-12)


def test_entropy_is_equation_1() -> None:
    """-sum p log p through torch.special.entr, which shares nothing with the reference."""
    x = 3 * torch.randn(2, 19, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.special.entr(x.softmax(1)).sum(1)
    torch.testing.assert_close(reference.score_map(x, (4, 5)), expected, rtol=1e-12, atol=0)


def test_scores_by_hand() -> None:
    """Probabilities 1/2, 1/4, 1/4 and a uniform pixel."""
    x = torch.tensor([[math.log(0.5), 0.0], [math.log(0.25), 0.0], [math.log(0.25), 0.0]], dtype=torch.float64)
    x = x.reshape(1, 3, 1, 2)
    expected = {
        "entropy": [1.5 * math.log(2), math.log(3)],
        "least_confidence": [0.5, 2 / 3],
        "margin": [0.75, 1.0],
        "confidence": [0.5, 1 / 3],
        "ratio": [0.5, 1.0],
    }
    assert set(expected) == set(reference.SCORES)
    for score, values in expected.items():
        np.testing.assert_allclose(reference.score_map(x, (1, 2), score=score)[0, 0].numpy(), values, rtol=1e-14)


def test_tiny_probabilities_keep_their_precision() -> None:
    """p = e^-40 beside 1: the entropy is 41 e^-40, which 1 + e^-40 == 1 would lose."""
    x = torch.tensor([0.0, -40.0], dtype=torch.float64).reshape(1, 2, 1, 1)
    for score, expected in (("entropy", 41), ("least_confidence", 1), ("margin", 2), ("ratio", 1)):
        assert reference.score_map(x, (1, 1), score=score).item() == pytest.approx(expected * math.exp(-40), rel=1e-12)


def test_patch_sums_leave_the_remainder_out() -> None:
    pixels = torch.arange(7 * 8, dtype=torch.float64).reshape(1, 7, 8)
    sums = reference.patch_sums(pixels, (3, 3))  # patches of 2 x 2 pixels; row 6 and columns 6, 7 are in none
    for r in range(3):
        for c in range(3):
            assert sums[0, r, c] == pixels[0, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].sum()
