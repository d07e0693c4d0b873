"""The two greedy loops against brute force in float64: every pick, with ties, duplicates and starts."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from meal_gpu.strategies.greedy import BLOCK, cosine, cover, rbf, spread, top_hat, unit


def points(m: int, d: int, seed: int, values: int | None = None) -> torch.Tensor:
    """float32; of few ``values``, so that many are equal."""
    draw = torch.Generator().manual_seed(seed)
    if values is not None:
        return torch.randint(values, (m, d), generator=draw).float()
    return torch.randn(m, d, generator=draw)


def brute_spread(rows: np.ndarray, n: int, weight: np.ndarray, centres: np.ndarray) -> list[int]:
    """The largest weight · D², one after another, each distance anew."""
    picked: list[int] = []
    for _ in range(n):
        known = np.concatenate([centres, rows[picked]])
        best, index = (-1.0, -1.0, 0.0), -1
        for i in range(len(rows)):
            if i in picked:
                continue
            nearest = min((((rows[i] - row) ** 2).sum() for row in known), default=1.0)
            # By weight alone where all that are left lie on picked ones; by index where that is 0, too.
            if (key := (weight[i] * nearest, weight[i] if weight[i] * nearest == 0 else 0.0, 0.0)) > best:
                best, index = key, i
        if best[0] == 0:
            rest = [i for i in range(len(rows)) if i not in picked]
            index = max(rest, key=lambda i: (weight[i], -i))
        picked.append(index)
    return picked


@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 3), st.booleans(), st.sampled_from([None, 2]),
       st.integers(0, 999))
def test_the_farthest_are_those_of_brute_force(m, d, k, weighted, values, seed):
    rows = points(m, d, seed, values)
    weight = torch.rand(m, generator=torch.Generator().manual_seed(seed)) if weighted else None
    centres = points(k, d, seed + 1, values)
    found = spread([rows], m, weight=weight, centres=[centres]).tolist()
    weights = np.ones(m) if weight is None else weight.double().numpy()
    assert found == brute_spread(rows.double().numpy(), m, weights, centres.double().numpy())


@given(st.integers(2, 10), st.integers(1, 3), st.integers(1, 3), st.integers(0, 3), st.integers(0, 999))
def test_two_factors_are_the_outer_products_that_are_never_made(m, a, b, k, seed):
    left, right = points(m, a, seed), points(m, b, seed + 1)
    others = points(k, a, seed + 2), points(k, b, seed + 3)
    whole = torch.einsum("ia,ib->iab", left, right).flatten(1)
    started = torch.einsum("ia,ib->iab", *others).flatten(1)
    assert torch.equal(spread([left, right], m, centres=others), spread([whole], m, centres=[started]))


def test_draws_follow_weight_times_squared_distance():
    rows, weight = torch.tensor([[0.0], [1.0], [2.0], [4.0]]), torch.tensor([1.0, 2.0, 1.0, 0.5])
    draws = torch.rand(4000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first, second = np.zeros(4), np.zeros(4)
    for uniforms in draws:
        picked = spread([rows], 2, uniforms, weight=weight).tolist()
        first[picked[0]] += 1
        second[picked[1]] += picked[0] == 0
    assert chisquare(first, 4000 * weight.double().numpy() / 4.5).pvalue > 1e-3
    mass = np.array([2 * 1, 1 * 4, 0.5 * 16])
    assert chisquare(second[1:], second[1:].sum() * mass / mass.sum()).pvalue > 1e-3


def test_centres_come_in_blocks(monkeypatch):
    rows, centres = points(40, 3, 0), points(30, 3, 1)
    whole = spread([rows], 10, centres=[centres])
    monkeypatch.setattr("meal_gpu.strategies.greedy.BLOCK", 80)
    assert BLOCK > 80
    assert torch.equal(spread([rows], 10, centres=[centres]), whole)


def test_what_lies_on_a_centre_comes_last():
    rows = torch.tensor([[5.0, 5], [0, 0], [5, 5], [1, 0]])
    assert spread([rows], 4, centres=[rows[:1]]).tolist() == [1, 3, 0, 2]


KERNELS = {"cosine": cosine, "rbf": rbf(0.7), "top-hat": top_hat(0.9)}


def brute_cover(rows: np.ndarray, candidates: list[int], n: int, similar: np.ndarray, weight: np.ndarray,
                start: list[int]) -> list[int]:
    picked: list[int] = []
    for _ in range(n):
        gains = {}
        for i in candidates:
            if i not in picked:
                speak = similar[[*start, *picked, i]].max(0)
                gains[i] = (weight * speak).sum()
        best = max(gains.values())
        picked.append(next(i for i in candidates if i in gains and gains[i] >= best - 1e-9 * max(1.0, best)))
    return picked


@pytest.mark.parametrize("name", sorted(KERNELS))
@given(m=st.integers(2, 12), k=st.integers(0, 2), weighted=st.booleans(), seed=st.integers(0, 999))
def test_coverage_is_that_of_brute_force(name, m, k, weighted, seed):
    rows = unit(points(m, 3, seed))
    draw = torch.Generator().manual_seed(seed)
    start = torch.randperm(m, generator=draw)[:k]
    candidates = torch.randperm(m, generator=draw)[: max(1, m - 2)].sort().values
    weight = torch.rand(m, generator=draw) if weighted else None
    similar = KERNELS[name](rows.double(), rows.double()).numpy()
    weights = np.ones(m) if weight is None else weight.double().numpy()
    found = cover(rows, candidates, len(candidates), KERNELS[name], weight, start).tolist()
    expected = brute_cover(rows.numpy(), candidates.tolist(), len(candidates), similar, weights, start.tolist())
    gain = [np.float64((weights * similar[[*start.tolist(), *order]].max(0)).sum())
            for order in (found[: i + 1] for i in range(len(found)))]
    best = [np.float64((weights * similar[[*start.tolist(), *expected[: i + 1]]].max(0)).sum())
            for i in range(len(found))]
    assert sorted(found) == sorted(expected)
    assert all(math.isclose(one, other, rel_tol=1e-5) for one, other in zip(gain, best, strict=True))


def test_every_row_can_be_picked_whatever_the_blocks(monkeypatch):
    """A public implementation gives the rows behind its last whole block no edges: they are never picked."""
    rows = unit(torch.eye(13))
    weight = torch.arange(13.0)
    candidates = torch.arange(13)
    for block, kept in ((2**24, 2**27), (5 * 13, 2**27), (5 * 13, 0)):
        monkeypatch.setattr("meal_gpu.strategies.greedy.BLOCK", block)
        monkeypatch.setattr("meal_gpu.strategies.greedy.KEPT", kept)
        assert cover(rows, candidates, 13, cosine, weight).tolist() == [*range(12, 0, -1), 0]


@given(m=st.integers(2, 40), n=st.integers(1, 20), values=st.sampled_from([None, 2]), k=st.integers(0, 3),
       seed=st.integers(0, 999))
def test_gains_of_before_change_nothing(m, n, values, k, seed):
    """With what is kept and looked at lazily, and without: the same picks, also of equal rows, and when nothing is
    left to gain."""
    rows = unit(points(m, 3, seed, values) + 0.1)
    weight = torch.randint(0, 3, (m,), generator=torch.Generator().manual_seed(seed)).float()
    arguments = rows, torch.arange(m), min(n, m), rbf(0.8), weight, torch.arange(min(k, m))
    with pytest.MonkeyPatch.context() as patch:
        found = cover(*arguments).tolist()
        patch.setattr("meal_gpu.strategies.greedy.KEPT", 0)
        assert cover(*arguments).tolist() == found


def test_more_than_there_are():
    with pytest.raises(ValueError, match="cannot pick 3 of 2"):
        spread([points(2, 2, 0)], 3)
    with pytest.raises(ValueError, match="cannot pick 3 of 2"):
        cover(points(5, 2, 0), torch.arange(2), 3, cosine)
