"""cuML's settings, with cuML replaced: what it is asked for, over sizes that it does not check itself."""

import sys
import types

import pytest
import torch

from meal_gpu.config import UmapConfig
from meal_gpu.machine import rapids


@pytest.fixture
def asked(monkeypatch):
    """What UMAP is made with."""
    given: list[dict[str, object]] = []

    class UMAP:
        def __init__(self, **settings):
            given.append(settings)

        def fit_transform(self, vectors):
            return torch.zeros(len(vectors), given[-1]["n_components"])

    monkeypatch.setitem(sys.modules, "cuml", types.ModuleType("cuml"))
    monkeypatch.setitem(sys.modules, "cuml.manifold", types.SimpleNamespace(UMAP=UMAP))
    monkeypatch.setattr(rapids, "_ready", lambda x: x)
    monkeypatch.setattr(torch.cuda, "device", lambda device: pytest.MonkeyPatch.context())
    return given


def test_the_spectral_start_is_asked_for_where_its_solver_has_room(asked):
    """cuVS: k = d + 1 eigenvectors, of which it drops one, in min(n - k, max(2 k + 1, 20)) dimensions, more than k."""
    for d in (2, 3, 10, 64):
        for n in range(3, 2 * d + 12):
            rapids.fit_umap(torch.zeros(n, 5), UmapConfig(n_components=d), 0)
            k = d + 1
            room = min(n - k, max(2 * k + 1, 20)) > k
            spectral = asked[-1]["init"] == "spectral"
            assert room or not spectral, (n, d)
            assert spectral == (n >= 2 * d + 4)
            assert asked[-1]["n_neighbors"] <= n - 1


def test_neighbours_are_searched_alike_at_every_size(asked):
    for n in (3, 1000, 60_000):
        rapids.fit_umap(torch.zeros(n, 1), UmapConfig(), 7)
        assert (asked[-1]["build_algo"], asked[-1]["random_state"]) == ("brute_force_knn", 7)
