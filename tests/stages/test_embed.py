"""The embedding: reproducible, robust where there is little to embed, and near to what it embeds.

Fits are small (umap-learn compiles its approximate neighbour search above 4096 vectors) and shared between tests.
"""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.manifold import trustworthiness

from meal_gpu.config import UmapConfig
from meal_gpu.stages.embed import Embedding, _check, fit, fit_cached

CONFIG = UmapConfig()


def roll(n: int, seed: int) -> torch.Tensor:
    """A rolled-up sheet, turned into 32 dimensions, with a little noise: float32 ``[n, 32]``."""
    rng = np.random.default_rng(seed)
    angle = 1.5 * np.pi * (1 + 2 * rng.random(n))
    sheet = np.stack([angle * np.cos(angle), 15 * rng.random(n), angle * np.sin(angle)], 1)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((32, 32)))[0][:3]
    return torch.from_numpy((sheet @ turn + 0.02 * rng.standard_normal((n, 32))).astype(np.float32))


@pytest.fixture(scope="module")
def vectors() -> torch.Tensor:
    return roll(300, 1)


@pytest.fixture(scope="module")
def fitted(vectors) -> Embedding:
    return fit(vectors, CONFIG, seed=3)


def test_neighbours_in_the_plane_are_neighbours_in_feature_space(vectors, fitted):
    """Trustworthiness, not coordinates: those differ between versions. A random plane has about 0.5."""
    assert fitted.points.shape == (300, 2)
    assert fitted.points.dtype == torch.float32
    assert trustworthiness(vectors.numpy(), fitted.points.numpy(), n_neighbors=10) > 0.95


def test_a_seed_gives_the_same_points(vectors, fitted):
    torch.rand(7)
    np.random.seed(5)  # noqa: NPY002  what others draw from the global generator must not matter
    assert torch.equal(fit(vectors.clone(), CONFIG, seed=3).points, fitted.points)
    assert not torch.equal(fit(vectors, CONFIG, seed=4).points, fitted.points)


def test_placing_does_not_depend_on_what_was_placed_before(vectors, fitted):
    first, second = roll(40, 2), roll(25, 3)
    before = fitted.points.clone()
    placed = fitted.place(first)
    for _ in range(2):
        fitted.place(second)
        np.random.rand(3)  # noqa: NPY002
        assert torch.equal(fitted.place(first), placed)
    assert torch.equal(fit(vectors, CONFIG, seed=3).place(first), placed), "a resumed run places like this"
    assert torch.equal(fitted.points, before)
    assert placed.shape == (40, 2)
    assert placed.dtype == torch.float32


def test_placed_vectors_lie_with_their_neighbours(vectors, fitted):
    """Vectors close to fitted ones are placed nearer to those than to nine of ten others."""
    index = torch.arange(0, 300, 10)
    placed = fitted.place(vectors[index] + 0.01)
    rank = (torch.cdist(placed, fitted.points).argsort(1) == index[:, None]).nonzero()[:, 1]
    assert rank.double().mean() < 30


def test_the_fitted_vectors_are_placed_where_they_are(vectors, fitted):
    placed = fitted.place(vectors)
    assert torch.equal(placed, fitted.points)
    placed.zero_()  # what a caller does to its copy stays there
    assert bool(fitted.points.any())
    assert bool(fitted.place(vectors).any())


# From one candidate (query.n_query: 1) to a few more than n_neighbors.
@pytest.mark.parametrize("n", [*range(1, 10), 15, 16, 17, 20])
@pytest.mark.parametrize("kind", ["different", "equal", "half equal"])
def test_few_vectors_can_be_embedded(n, kind):
    vectors = torch.randn(n, 16, generator=torch.Generator().manual_seed(n))
    if kind != "different":
        vectors[n // 2 if kind == "half equal" else 0 :] = vectors[0]
    points = fit(vectors, CONFIG, seed=0).points
    assert points.shape == (n, 2)
    assert points.isfinite().all()
    assert torch.equal(fit(vectors, CONFIG, seed=0).points, points)
    if kind == "different" and n > 1:
        assert len(points.unique(dim=0)) == n


@pytest.mark.parametrize("components", [3, 8])
def test_more_dimensions_than_two(components):
    config = UmapConfig(n_components=components)
    for n in (2, components, components + 2, components + 4, 40):
        points = fit(roll(n, 1), config, seed=0).points
        assert points.shape == (n, components)
        assert points.isfinite().all()


@pytest.mark.parametrize("metric", ["manhattan", "chebyshev", "canberra", "braycurtis", "cosine", "correlation"])
def test_every_allowed_metric_embeds_and_places(metric):
    embedding = fit(roll(30, 1), UmapConfig(metric=metric), seed=0)
    assert embedding.points.isfinite().all()
    assert embedding.place(roll(4, 2)).isfinite().all()


def test_a_cached_embedding_is_the_fitted_one_and_comes_from_its_file(vectors, fitted, tmp_path):
    directory = tmp_path / "embeddings"
    assert torch.equal(fit_cached(vectors, CONFIG, 3, directory).points, fitted.points)
    (file,) = directory.iterdir()
    np.testing.assert_array_equal(np.load(file)["points"], fitted.points.numpy())
    marked = np.full((300, 2), 7, np.float32)
    np.savez(file, points=marked, check=_check(file.stem, marked))
    np.testing.assert_array_equal(fit_cached(vectors, CONFIG, 3, directory).points.numpy(), marked)


def test_whatever_changes_an_embedding_changes_its_file(tmp_path):
    vectors = roll(20, 1)
    moved = vectors.clone()
    moved[7, 3] = torch.nextafter(moved[7, 3], torch.tensor(9.0))
    for known, (x, config, seed) in enumerate([
            (vectors, CONFIG, 0), (moved, CONFIG, 0), (vectors, CONFIG, 1), (vectors, UmapConfig(n_neighbors=7), 0),
            (vectors, UmapConfig(min_dist=0.2), 0), (vectors, UmapConfig(metric="cosine"), 0),
            (vectors.reshape(40, 16), CONFIG, 0), (vectors[:10], CONFIG, 0)]):
        assert len(fit_cached(x, config, seed, tmp_path).points) == len(x)
        assert len(list(tmp_path.iterdir())) == known + 1


def test_a_cached_embedding_belongs_to_the_library_that_made_it(tmp_path, monkeypatch):
    """A run that goes on where another library is used must not find this one's points, whatever the config asks."""
    vectors = roll(20, 1)
    ours = fit_cached(vectors, CONFIG, 0, tmp_path).points
    assert torch.equal(fit_cached(vectors, UmapConfig(backend="umap-learn"), 0, tmp_path).points, ours)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr("meal_gpu.machine.rapids.fit_umap", lambda features, config, seed: (torch.ones(20, 2), None))
    assert torch.equal(fit_cached(vectors, CONFIG, 0, tmp_path, "cuml").points, torch.ones(20, 2))
    assert len(list(tmp_path.iterdir())) == 2


def test_what_cannot_place_says_so(tmp_path):
    fit_cached(roll(20, 1), CONFIG, 0, tmp_path)
    for embedding in (fit(roll(2, 1), CONFIG, 0), fit_cached(roll(20, 1), CONFIG, 0, tmp_path)):
        with pytest.raises(RuntimeError, match="cannot place"):
            embedding.place(roll(3, 2))


def sealed(file: Path, points: np.ndarray) -> None:
    np.savez(file, points=points, check=_check(file.stem, points))


DAMAGE = {
    "emptied": lambda file, points: file.write_bytes(b""),
    "half": lambda file, points: file.write_bytes(file.read_bytes()[:-5]),
    "text": lambda file, points: file.write_bytes(b"half a file"),
    "shape": lambda file, points: sealed(file, points[:9]),
    "type": lambda file, points: sealed(file, points.astype(np.float64)),
    "not finite": lambda file, points: sealed(file, np.where(points > 0, np.nan, points).astype(np.float32)),
    "other points": lambda file, points: np.savez(file, points=points + 1, check=_check(file.stem, points)),
    "of another seed": lambda file, points: np.savez(file, points=points, check=_check("0" * 24, points)),
    "no check": lambda file, points: np.savez(file, points=points),
    "large": lambda file, points: np.savez_compressed(file, points=points, more=np.zeros(10**8, np.uint8)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_fitted_again(vectors, fitted, tmp_path, caplog, monkeypatch, damage):
    monkeypatch.setattr("meal_gpu.stages.embed.fit", lambda *args: fitted)
    fit_cached(vectors, CONFIG, 3, tmp_path)
    (file,) = tmp_path.iterdir()
    DAMAGE[damage](file, fitted.points.numpy())
    assert torch.equal(fit_cached(vectors, CONFIG, 3, tmp_path).points, fitted.points)
    np.testing.assert_array_equal(np.load(file)["points"], fitted.points.numpy())
    [line] = [record.message for record in caplog.records if "is fitted again" in record.message]
    assert str(file) in line


def test_a_cache_that_is_a_directory_keeps_nothing(vectors, fitted, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("meal_gpu.stages.embed.fit", lambda *args: fitted)
    fit_cached(vectors, CONFIG, 3, tmp_path)
    (file,) = tmp_path.iterdir()
    file.unlink()
    file.mkdir()
    assert torch.equal(fit_cached(vectors, CONFIG, 3, tmp_path).points, fitted.points)
    assert "is not kept" in caplog.text


def test_clusters_stay_apart():
    """Three tight groups far from each other: every point's nearest neighbour is of its group."""
    centres = 20 * torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    group = torch.arange(120) % 3
    vectors = centres[group] + torch.randn(120, 32, generator=torch.Generator().manual_seed(1))
    distance = torch.cdist(points := fit(vectors, CONFIG, 0).points, points)
    distance.fill_diagonal_(torch.inf)
    assert torch.equal(group[distance.argmin(1)], group)
    spread = [distance[group == i][:, group == i].masked_fill(torch.eye(40, dtype=torch.bool), 0).max() for i in
              range(3)]
    apart = [distance[group == i][:, group == j].min() for i, j in itertools.combinations(range(3), 2)]
    assert min(apart) > max(spread) / 3
