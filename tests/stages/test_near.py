"""Near-duplicates: counted as a loop over all pairs would, in units that do not depend on the features' scale."""

import pytest
import torch

from meal_gpu.stages import near
from meal_gpu.stages.near import Nearness


def pool(n: int = 60, scale: float = 1.0) -> torch.Tensor:
    """float32 ``[n, 5]``: every third one lies close to the one before it."""
    draw = torch.Generator().manual_seed(0)
    vectors = torch.randn(n, 5, generator=draw) * scale + 100 * scale
    vectors[2::3] = vectors[1::3] + 0.02 * scale
    return vectors


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_the_count_is_that_of_a_loop_over_all_pairs(scale, monkeypatch):
    vectors = pool(scale=scale)
    monkeypatch.setattr(near, "_BLOCK", 7 * len(vectors))
    x = vectors.double()
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    typical = distances.square().mean().sqrt()  # over ordered pairs, each with itself too
    expected = int(((distances / typical < 0.2).sum(1) > 1).sum())
    found = Nearness.of(vectors).count(0.2)
    assert 40 <= expected < 60
    assert (found.found, found.of) == (expected, 60)
    ids = torch.tensor([3, 10, 31])
    nearness = Nearness.of(vectors)
    assert nearness.within(ids, 0.2).tolist() == (distances[ids] / typical < 0.2).any(0).tolist()
    assert nearness.pairs(ids, 0.2).tolist() == (distances[ids][:, ids] / typical < 0.2).tolist()


def test_a_large_pool_is_judged_by_a_part_of_it(monkeypatch):
    monkeypatch.setattr(near, "PAIRS", 60 * 20)
    found = Nearness.of(pool()).count(0.2)
    assert found.of == 20
    assert "20 patches, drawn evenly from 60," in found.words(60)


def test_equal_vectors_are_near_whatever_the_unit():
    vectors = torch.full((4, 3), 7.3)
    nearness = Nearness.of(vectors)
    assert nearness.count().found == 4
    assert nearness.within(torch.tensor([1]), 0.2).all()
    assert Nearness.of(torch.tensor([[0.0], [1.0]])).count().found == 0
