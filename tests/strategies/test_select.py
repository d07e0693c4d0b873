"""The strategies: against references, in chances, at ties, and with nothing to go by."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from sklearn.exceptions import ConvergenceWarning
from views import drawn, view

from meal_gpu.errors import InputError
from meal_gpu.stages.ranking import rank_keys
from meal_gpu.strategies.select import (
    STRATEGIES,
    PoolView,
    Strategy,
    find_strategy,
    represent,
    seed_kmeans,
    snap_kmeans,
)

ALMOST_ONE = float(np.nextafter(1.0, 0.0))

# --- the view ---------------------------------------------------------------------------------------------------------


def test_the_view_holds_no_ground_truth():
    """All that a strategy can reach, by name: nothing here is made of masks that are not revealed."""
    assert [field.name for field in dataclasses.fields(PoolView)] == [
        "image", "cell", "free", "n_free", "labelled", "query", "uniforms", "score", "features", "probabilities",
        "place", "fit", "seed", "kmeans", "best", "n_labelled", "of", "clicks", "round", "rounds",
        "adjust"]


@given(st.lists(st.integers(0, 23), min_size=1, max_size=24, unique=True), st.integers(1, 30), st.integers(0, 99))
def test_the_most_uncertain_are_sorted_by_score_then_by_id(free, n, seed):
    """Scores from five values, so that most are tied; fewer free than wanted gives what there is."""
    score = torch.randint(0, 5, (24,), generator=torch.Generator().manual_seed(seed)).float()
    expected = sorted(free, key=lambda patch: (-float(score[patch]), patch))[:n]
    assert view(free, score=score).most_uncertain(n).tolist() == expected


@given(st.lists(st.floats(width=32, allow_nan=False) | st.sampled_from([0.0, -0.0]), min_size=1, max_size=40))
def test_keys_order_any_scores_as_the_numbers_do_and_ties_by_id(scores):
    """Scores may be negative, of either zero, or infinite: the order is Python's own."""
    order = sorted(range(len(scores)), key=lambda patch: (-scores[patch], patch))
    assert torch.argsort(rank_keys(torch.tensor(scores)), descending=True).tolist() == order


# --- k-means++ --------------------------------------------------------------------------------------------------------


def reference_seeding(points: np.ndarray, n: int, uniforms: np.ndarray) -> list[int]:
    """Arthur & Vassilvitskii with loops: sum up D² until a share u of the total is passed."""
    picked: list[int] = []
    for u in uniforms[:n]:
        weights = []
        for i, point in enumerate(points):
            if i in picked:
                weights.append(0.0)
            elif not picked:
                weights.append(1.0)
            else:
                weights.append(min(float(((point - points[j]) ** 2).sum()) for j in picked))
        if sum(weights) == 0:
            weights = [float(i not in picked) for i in range(len(points))]
        total, mass = sum(weights), 0.0
        for i, weight in enumerate(weights):
            mass += weight
            if mass > u * total or (mass >= total and weight > 0):
                picked.append(i)
                break
    return picked


@given(st.integers(1, 12), st.integers(0, 10**6), st.integers(1, 3), st.sampled_from([1, 3, 1000]), st.data())
@settings(max_examples=200)
def test_seeding_equals_the_reference(m, seed, dimensions, spread, data):
    """Whole coordinates, so that sums are exact; few values, so that points coincide; uniforms at both ends too."""
    n = data.draw(st.integers(1, m))
    rng = np.random.default_rng(seed)
    points = rng.integers(-spread, spread + 1, (m, dimensions)).astype(float)
    ends = st.sampled_from([0.0, 0.5, ALMOST_ONE])
    uniforms = np.array(data.draw(st.lists(ends | st.floats(0, ALMOST_ONE), min_size=n, max_size=n)))
    found = seed_kmeans(torch.from_numpy(points), n, torch.from_numpy(uniforms)).tolist()
    assert found == reference_seeding(points, n, uniforms)


@pytest.mark.parametrize("seed", range(5))
def test_seeding_equals_the_reference_on_float32_points(seed):
    """200 candidates and 32 picks, as a round of the paper has."""
    points = torch.randn(200, 2, generator=torch.Generator().manual_seed(seed)) * 5
    uniforms = drawn(seed)(32)
    assert seed_kmeans(points, 32, uniforms).tolist() == reference_seeding(points.double().numpy(), 32,
                                                                          uniforms.numpy())


@given(st.integers(1, 30), st.sampled_from([1, 2, 3, 30]), st.integers(0, 10**6), st.data())
def test_picks_are_distinct_however_the_points_coincide(m, different, seed, data):
    n = data.draw(st.integers(1, m))
    draw = torch.Generator().manual_seed(seed)
    points = torch.randn(different, 2, generator=draw)[torch.randint(0, different, (m,), generator=draw)]
    uniforms = torch.rand(n, generator=draw, dtype=torch.float64)
    uniforms[torch.rand(n, generator=draw) < 0.3] = ALMOST_ONE
    picked = seed_kmeans(points, n, uniforms)
    assert picked.dtype == torch.int64
    assert len(set(picked.tolist())) == n
    assert 0 <= min(picked.tolist()) <= max(picked.tolist()) < m
    # As many different places as there are, before any place comes twice.
    places = min(n, len(points.unique(dim=0)))
    assert len(points[picked[:places]].unique(dim=0)) == places


def test_the_first_pick_is_uniform_and_the_second_goes_by_squared_distance():
    """Counted over evenly spaced uniforms, where shares are exact but for one at each border."""
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [3.0, 4.0], [1.0, 0.0], [0.0, 0.0]])
    K = 1200
    every = (torch.arange(K, dtype=torch.float64) + 0.5) / K
    first = torch.stack([seed_kmeans(points, 1, u.view(1)) for u in every]).flatten()
    assert torch.bincount(first, minlength=6).tolist() == [K // 6] * 6
    second = torch.stack([seed_kmeans(points, 2, torch.tensor([0.0, u]))[1] for u in every])
    squared = torch.tensor([0.0, 1, 4, 25, 1, 0])
    counts = torch.bincount(second, minlength=6)
    assert (counts - K * squared / squared.sum()).abs().max() <= 1


def test_chances_with_a_real_generator():
    """A chi-square test on first and second picks over 4000 draws; the seeds are fixed, so it passes or fails alike."""
    points = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    uniforms, chances = drawn(1)(8000).view(4000, 2), np.zeros((4, 4))
    for a in range(4):
        squared = (points[:, 0] - points[a, 0]).numpy() ** 2
        chances[a] = squared / squared.sum() / 4
    counts = np.zeros((4, 4))
    for u in uniforms:
        a, b = seed_kmeans(points, 2, u).tolist()
        counts[a, b] += 1
    off = ~np.eye(4, dtype=bool)
    assert counts[~off].sum() == 0
    assert chisquare(counts[off], 4000 * chances[off]).pvalue > 1e-3


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_uniforms_next_to_one_pick_the_last_row_with_any_mass(scale):
    """u * total may round up to the total; the rows at the end lie on a picked one and must not be drawn."""
    points = torch.tensor([[0.0, 0.0], [0.1, 0.3], [0.7, 0.1], [0.0, 0.0], [0.0, 0.0]], dtype=torch.float64) * scale
    uniforms = torch.tensor([0.0, ALMOST_ONE, ALMOST_ONE, ALMOST_ONE, ALMOST_ONE])
    assert seed_kmeans(points, 3, uniforms).tolist() == [0, 2, 1]
    assert sorted(seed_kmeans(points, 5, uniforms.double()).tolist()) == [0, 1, 2, 3, 4]


def test_more_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="cannot pick 4 of 3 points"):
        seed_kmeans(torch.zeros(3, 2), 4, torch.zeros(4, dtype=torch.float64))


def test_seeding_spreads_more_than_chance():
    """What it is for: of 200 candidates in 8 groups of unequal size, 8 picks meet more groups than 8 random ones do."""
    draw = torch.Generator().manual_seed(0)
    sizes = torch.tensor([100, 40, 20, 15, 10, 7, 5, 3])
    group = torch.repeat_interleave(torch.arange(8), sizes)
    points = 10 * torch.randn(8, 2, generator=draw)[group] + 0.3 * torch.randn(200, 2, generator=draw)
    met = [len(group[seed_kmeans(points, 8, drawn(seed)(8))].unique()) for seed in range(50)]
    chance = [len(group[torch.randperm(200, generator=draw)[:8]].unique()) for _ in range(50)]
    assert np.mean(met) > np.mean(chance) + 2


# --- k-means ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 25), st.sampled_from([1, 3, 25]), st.integers(0, 10**6), st.data())
@settings(max_examples=40)
def test_snapped_centroids_are_distinct(m, different, seed, data):
    n = data.draw(st.integers(1, m))
    draw = torch.Generator().manual_seed(seed)
    points = torch.randn(different, 2, generator=draw)[torch.randint(0, different, (m,), generator=draw)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different points than clusters
        picked = snap_kmeans(points, n, seed)
    assert len(set(picked.tolist())) == n
    assert 0 <= min(picked.tolist()) <= max(picked.tolist()) < m


def test_snapped_centroids_are_the_middles_of_groups():
    """Three groups of five, far apart, each with one point exactly at its mean."""
    offsets = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1], [0, 0]])
    points = torch.cat([offsets + centre for centre in torch.tensor([[0.0, 0], [100, 0], [0, 100]])])
    assert sorted(snap_kmeans(points, 3, 0).tolist()) == [4, 9, 14]
    assert sorted(snap_kmeans(points + 1e4, 3, 0).tolist()) == [4, 9, 14]


def test_a_centroid_that_is_no_number_takes_what_is_left(monkeypatch):
    """Libraries leave NaN for an empty cluster, and as the smallest number NaN would win every comparison."""
    points = torch.tensor([[0.0, 0], [5, 0], [0, 5]])
    found = torch.tensor([[torch.nan, torch.nan], [0, 5], [torch.nan, 0]], dtype=torch.float64)
    monkeypatch.setattr("meal_gpu.strategies.kmeans._centroids", lambda *args: found)
    assert sorted(snap_kmeans(points, 3, 0).tolist()) == [0, 1, 2]
    assert snap_kmeans(points, 3, 0)[1] == 2


def test_the_selector_is_the_configured_one():
    points = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    free = list(range(24))
    seeded = represent(points, 5, view(free, selector="seeding"))
    assert torch.equal(seeded, seed_kmeans(points, 5, drawn(0)(5)))
    clustered = represent(points, 5, view(free, selector="kmeans"))
    assert torch.equal(clustered, snap_kmeans(points, 5, 0))
    other = represent(points, 5, dataclasses.replace(view(free, selector="kmeans"), seed=7))
    assert torch.equal(other, snap_kmeans(points, 5, 7))


# --- strategies -------------------------------------------------------------------------------------------------------


@given(st.sampled_from(sorted(STRATEGIES)), st.lists(st.integers(0, 23), min_size=3, max_size=24, unique=True),
       st.integers(0, 999), st.sampled_from(["seeding", "kmeans"]))
def test_every_strategy_returns_distinct_free_ids_and_repeats_itself(name, free, seed, selector):
    n = min(3, len(free))
    found = [STRATEGIES[name].choose(view(free, seed=seed, selector=selector), n) for _ in range(2)]
    assert found[0].dtype == torch.int64
    assert len(found[0]) == len(set(found[0].tolist())) == n
    assert set(found[0].tolist()) <= set(free)
    assert torch.equal(*found)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_all_that_is_left_can_be_asked_for(name):
    assert sorted(STRATEGIES[name].choose(view([2, 9, 17]), 3).tolist()) == [2, 9, 17]


def test_random_is_uniform():
    """Every free patch, and every first of them, equally often over 3000 rounds: a chi-square test with fixed seeds."""
    free = [1, 2, 5, 8, 13, 21]
    draws = torch.stack([STRATEGIES["random"].choose(
        dataclasses.replace(view(free), uniforms=drawn(0, k)), 2) for k in range(3000)])
    for column in range(2):
        counts = torch.bincount(draws[:, column], minlength=24)
        assert counts.sum() == counts[free].sum()
        assert chisquare(counts[free]).pvalue > 1e-3


def test_entropy_takes_the_highest_scores():
    score = torch.tensor([0.1, 0.9, 0.5, 0.9, 0.7, 0.2] * 4)
    assert STRATEGIES["entropy"].choose(view([0, 3, 1, 7, 10, 4], score=score), 4).tolist() == [1, 3, 7, 4]


@pytest.mark.parametrize("name", ["meal", "meal_ft"])
def test_meal_embeds_the_candidates_and_no_others(name):
    """The plane is asked for the N_I most uncertain, in that order; what comes back are rows of those."""
    asked = []
    pool = view(list(range(4, 24)), n_informative=6)
    points = pool.features

    def plane(ids: torch.Tensor) -> torch.Tensor:
        asked.append(ids)
        return points[ids]

    pool = dataclasses.replace(pool, place=plane, fit=plane)
    found = STRATEGIES[name].choose(pool, 3)
    candidates = pool.most_uncertain(6)
    assert len(asked) == 1
    assert torch.equal(asked[0], candidates)
    assert torch.equal(found, candidates[seed_kmeans(points[candidates], 3, drawn(0)(3))])


def test_golden_selections():
    """Frozen numbers: another version must choose the same patches, or a run cannot be gone on with."""
    ids = torch.arange(24.0)
    score = (ids * 7 % 24) / 24
    points = torch.stack([ids * 5 % 11, ids * 3 % 7], 1)
    pool = view([patch for patch in range(24) if patch % 5], score=score, points=points)
    found = {name: STRATEGIES[name].choose(dataclasses.replace(pool, uniforms=drawn(11, 2)), 4).tolist()
             for name in ("random", "entropy", "meal", "meal_ft")}
    assert found == {"random": [21, 9, 6, 18], "entropy": [17, 3, 13, 6], "meal": [9, 13, 3, 16],
                     "meal_ft": [9, 13, 3, 16]}
    candidates = pool.most_uncertain(8)
    picked = reference_seeding(points[candidates].double().numpy(), 4, drawn(11, 2)(4).numpy())
    assert found["meal"] == candidates[picked].tolist()


@pytest.mark.parametrize(("name", "hint"), [("mael", "Did you mean 'meal'?"), ("entropie", "'entropy'?"),
                                            ("xyzzy", "")])
def test_an_unknown_strategy_is_named_with_the_nearest(name, hint):
    with pytest.raises(InputError) as error:
        find_strategy(name)
    assert str(error.value).startswith(f"query.strategy is '{name}'.")
    assert hint in str(error.value)
    assert "Allowed: random, entropy, meal, meal_ft, " in str(error.value)


def test_a_strategy_declares_what_it_needs():
    """Each runs on a view that holds its needs and nothing else."""
    free = list(range(24))
    whole = view(free)
    for strategy in STRATEGIES.values():
        assert isinstance(strategy, Strategy)
        bare = dataclasses.replace(
            whole, uniforms=drawn(0), score=whole.score if "score" in strategy.needs else None,
            features=whole.features if "features" in strategy.needs else None,
            place=whole.place if "embedding" in strategy.needs else None,
            probabilities=whole.probabilities if "probabilities" in strategy.needs else None,
            fit=whole.fit if "features" in strategy.needs else None,
            of=lambda name, ids, needs=strategy.needs: whole.of(name if name in needs else "nothing", ids))
        assert len(strategy.choose(bare, 3)) == 3
    assert STRATEGIES["random"].needs == frozenset()


def test_lloyds_sums_are_added_by_one_thread(monkeypatch):
    """With several, of more than 256 points, whichever is done first adds first: equal runs would differ."""
    import sklearn.cluster
    from threadpoolctl import threadpool_info, threadpool_limits

    def threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "openmp"}

    seen = []

    class Watched(sklearn.cluster.KMeans):
        def fit(self, points):
            seen.append(threads())
            return super().fit(points)

    monkeypatch.setattr(sklearn.cluster, "KMeans", Watched)
    points = torch.randn(600, 2, generator=torch.Generator().manual_seed(0))
    with threadpool_limits(2, user_api="openmp"):
        assert threads() == {2}
        picked = [snap_kmeans(points, 8, 0, "sklearn") for _ in range(2)]
        assert threads() == {2}
    assert seen == [{1}, {1}]
    assert torch.equal(*picked)
