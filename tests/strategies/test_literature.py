"""Strategies of the literature against plain versions of themselves, with ties, duplicates and nothing to go by."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from views import FREE, LABELLED, featured, fields_of, pool, view

from meal_gpu.strategies.greedy import rbf
from meal_gpu.strategies.literature import LITERATURE
from meal_gpu.strategies.scores import turn


def distances(vectors: torch.Tensor) -> np.ndarray:
    rows = vectors.double().numpy()
    return np.sqrt(((rows[:, None] - rows[None]) ** 2).sum(-1))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", sorted(LITERATURE))
@given(free=st.lists(st.integers(0, 23), min_size=3, max_size=24, unique=True), n=st.integers(1, 3),
       seed=st.integers(0, 99), equal=st.booleans())
def test_what_comes_back_is_free_and_distinct_and_repeats(name, free, n, seed, equal):
    """Equal vectors and equal scores, too."""
    def made():
        one = pool(free, seed)
        if equal:
            same = {name: torch.ones_like(values) for name, values in fields_of(24).items()}
            one = dataclasses.replace(featured(one, torch.ones(24, 5), **same), score=torch.full((24,), 0.5),
                                      place=lambda ids: torch.zeros(len(ids), 2))
        return one

    found = [LITERATURE[name].choose(made(), n).tolist() for _ in range(2)]
    assert found[0] == found[1]
    assert len(set(found[0])) == n
    assert set(found[0]) <= set(free)


def test_random_spread_takes_one_of_every_image_before_a_second_of_any():
    found = LITERATURE["random_spread"].choose(pool(), 20).tolist()
    images = [i // 4 for i in found]
    assert len(set(images[:6])) == 6
    assert sorted(found) == FREE
    seen = {tuple(LITERATURE["random_spread"].choose(pool(seed=seed), 3).tolist()) for seed in range(20)}
    assert len(seen) > 10


def test_coreset_is_the_farthest_from_all_that_is_labelled_or_chosen():
    one = pool()
    apart, known = distances(one.features), list(LABELLED)
    expected = []
    for _ in range(6):
        best = max((i for i in FREE if i not in expected), key=lambda i: (apart[i, known].min(), -i))
        expected.append(best)
        known.append(best)
    assert LITERATURE["coreset"].choose(one, 6).tolist() == expected


def test_meal_repel_does_not_buy_what_is_covered():
    """Candidates in two heaps, of which one has a label: the first pick is of the other."""
    points = torch.zeros(24, 2)
    points[12:] = torch.tensor([100.0, 0])
    points += 1e-3 * torch.randn(24, 2, generator=torch.Generator().manual_seed(0))
    first = {name: [LITERATURE["meal_repel"].choose(view([i for i in range(24) if i != 14], seed=seed, points=points,
                                                         n_informative=20), 1).item() // 12 for seed in range(30)]
             for name in ("repel",)}
    assert set(first["repel"]) == {0}


def test_meal_weighted_never_takes_what_is_certain():
    score = torch.zeros(24)
    score[[2, 9, 20]] = 1.0
    found = LITERATURE["meal_weighted"].choose(view(list(range(24)), score=score), 3).tolist()
    assert sorted(found) == [2, 9, 20]


def greedy_cover(similar: np.ndarray, candidates: list[int], n: int, weight: np.ndarray, start: list[int]) -> list[int]:
    picked: list[int] = []
    covered = similar[start].max(0) if start else np.zeros(len(similar))
    for _ in range(n):
        best = max((i for i in candidates if i not in picked),
                   key=lambda i: (weight * np.maximum(similar[i] - covered, 0)).sum())
        picked.append(best)
        covered = np.maximum(covered, similar[best])
    return picked


def directions(vectors: torch.Tensor) -> np.ndarray:
    rows = vectors.double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_suggestive_covers_the_pool_from_the_most_uncertain():
    one = pool(n_informative=9)
    rows = directions(one.features)
    candidates = sorted(FREE, key=lambda i: -float(one.score[i]))[:9]
    expected = greedy_cover(np.maximum(rows @ rows.T, 0), candidates, 5, np.ones(24), [])
    assert LITERATURE["suggestive"].choose(one, 5).tolist() == expected


def test_maxherding_covers_what_labels_do_not():
    one = pool()
    rows = directions(one.features)
    similar = np.exp(-((rows[:, None] - rows[None]) ** 2).sum(-1))
    assert LITERATURE["maxherding"].choose(one, 6).tolist() == greedy_cover(similar, FREE, 6, np.ones(24), LABELLED)


@pytest.mark.parametrize("near", [False, True], ids=["apart", "near-duplicates labelled"])
def test_uherding_weighs_coverage_by_uncertainty(near):
    one = pool()
    if near:  # the least distance of labelled ones would be a width of 0
        one.features[4] = one.features[3]
    rows = directions(one.features)
    labelled = rows[LABELLED]
    apart = np.sqrt(((labelled[:, None] - labelled[None]) ** 2).sum(-1)) + np.diag(np.full(4, np.inf))
    width = np.quantile(apart.min(1), 0.1)
    width = width if width > 1e-3 else 1.0
    similar = np.exp(-((rows[:, None] - rows[None]) ** 2).sum(-1) / width**2)
    order = sorted(FREE, key=lambda i: -float(one.score[i]))
    expected = greedy_cover(similar, order, 6, one.score.double().numpy(), LABELLED)
    assert LITERATURE["uherding"].choose(one, 6).tolist() == expected
    assert rbf(width)(torch.from_numpy(rows[:1]), torch.from_numpy(rows)).numpy() == pytest.approx(similar[:1])


def test_typiclust_takes_the_middle_of_large_clusters_without_labels():
    """Four heaps; the largest holds a label. The densest point of each other is its middle."""
    draw = torch.Generator().manual_seed(0)
    sizes, middles = [9, 7, 6, 2], torch.tensor([[0.0, 0], [50, 0], [0, 50], [50, 50]])
    vectors = torch.cat([middle + torch.randn(size, 2, generator=draw) for middle, size in
                         zip(middles, sizes, strict=True)])
    one = featured(view([i for i in range(24) if i != 0]), vectors)
    found = LITERATURE["typiclust"].choose(one, 3).tolist()
    heaps = [int(np.searchsorted(np.cumsum(sizes), i, side="right")) for i in found]
    assert heaps == [1, 2, 3] or sorted(heaps) == [0, 1, 2]
    assert heaps[:2] == [1, 2]
    apart = distances(vectors)
    for heap, patch in zip(heaps[:2], found, strict=False):
        first = int(np.cumsum([0, *sizes])[heap])
        members = list(range(first, first + sizes[heap]))
        assert patch == min(members, key=lambda i: apart[i, members].sum())


@given(st.lists(st.integers(0, 4), max_size=12))
def test_turns_count_within_groups(groups):
    expected = [groups[:i].count(group) for i, group in enumerate(groups)]
    assert turn(torch.tensor(groups, dtype=torch.int64)).tolist() == expected


def test_badge_begins_with_the_longest_gradient_and_draws_by_squared_distance():
    one = pool()
    rows = one.of("gradient", None).double().numpy()
    found = LITERATURE["badge"].choose(one, 6).tolist()
    uniforms = pool().uniforms(6).tolist()
    expected = [max(FREE, key=lambda i: ((rows[i] ** 2).sum(), -i))]
    for u in uniforms[1:]:
        mass = np.array([min(((rows[i] - rows[j]) ** 2).sum() for j in expected) if i in FREE else 0.0
                         for i in range(24)])
        expected.append(int(np.searchsorted(mass.cumsum(), u * mass.sum(), side="right")))
    assert found == expected


def test_badge_of_means_is_seeding_of_outer_products():
    one = pool()
    whole = torch.einsum("ia,ib->iab", one.of("residual", None).double(), one.of("inputs", None).double()).flatten(1)
    other = featured(pool(), one.features, gradient=whole)
    assert LITERATURE["badge_mean"].choose(one, 6).tolist() == LITERATURE["badge"].choose(other, 6).tolist()


@pytest.mark.parametrize("copies", [1, 23])
def test_badge_never_takes_a_patch_twice_however_many_are_equal(copies):
    rows = torch.ones(24, 12)
    rows[copies:] = torch.randn(24 - copies, 12, generator=torch.Generator().manual_seed(0))
    one = featured(view(list(range(24))), torch.ones(24, 2), gradient=rows)
    assert sorted(LITERATURE["badge"].choose(one, 24).tolist()) == list(range(24))


@pytest.mark.parametrize("dense", [0, 500])
def test_spectral_takes_the_middle_of_each_group(dense, monkeypatch):
    """Three groups of 40, as rings that k-means would cut."""
    monkeypatch.setattr("meal_gpu.strategies.clusters.DENSE", dense)
    angle = torch.linspace(0, 6.28, 41)[:40]
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    vectors = torch.cat([ring, 10 * ring, 100 * ring])
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    one = featured(view(list(range(120)), n=120), vectors[order])
    found = LITERATURE["spectral"].choose(one, 3)
    assert sorted((order[found] // 40).tolist()) == [0, 1, 2]
