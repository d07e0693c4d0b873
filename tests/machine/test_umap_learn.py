"""umap-learn without its minute of compiling: the same points, from what is kept between processes."""

import json
import subprocess
import sys
import threading

import numba
import numpy as np
import pytest
import torch
from sklearn.metrics import pairwise_distances

from meal_gpu.config import UmapConfig
from meal_gpu.machine import umap_learn

PROCESS = """
import json
import torch
from numba.core import event

compiled = []

class Heard(event.Listener):
    def on_start(self, event):
        pass

    def on_end(self, event):
        compiled.append(event.data["dispatcher"].py_func.__qualname__)

event.register("numba:compile", Heard())
from meal_gpu.config import UmapConfig
from meal_gpu.machine import umap_learn

umap_learn.COMPILED[True]()
ahead = compiled[:]
x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
points, reducer = umap_learn.fit_umap(x, UmapConfig(), 0)
umap_learn.place_umap(reducer, x[:9] + 0.1)
import pynndescent.rp_trees
print(json.dumps([ahead, compiled[len(ahead):], len(pynndescent.rp_trees.make_bit_tree.signatures)]))
"""


def test_nothing_is_compiled_that_was_compiled_before():
    """By the fit of a first process, where all is ready; and in a second one by nobody."""
    first, second = (json.loads(subprocess.run([sys.executable, "-c", PROCESS], check=True, stdout=subprocess.PIPE,
                                               text=True).stdout) for _ in range(2))
    assert first[1:] == [[], 0]
    assert second == [[], [], 0]


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_points_are_those_of_umap_learn(metric):
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    x[7], x[20:23] = x[3], x[30]  # equal distances are put in order as it does
    points, _ = umap_learn.fit_umap(x, UmapConfig(metric=metric), 5)
    umap = umap_learn.library()
    with pytest.warns(UserWarning, match="n_jobs"):
        theirs = umap.UMAP(n_neighbors=15, min_dist=0.1, metric=metric, random_state=5).fit_transform(x.numpy())
    assert np.array_equal(points.numpy(), theirs)


def test_above_4096_vectors_neighbours_are_exact_and_others_can_be_placed():
    """umap-learn would search by approximation, and compile for a minute and a half in every process."""
    draw = torch.Generator().manual_seed(2)
    group = torch.arange(4100) % 4
    x = 20 * torch.randn(4, 4, generator=draw)[group] + torch.randn(4100, 4, generator=draw)
    points, reducer = umap_learn.fit_umap(x, UmapConfig(n_neighbors=5), 0)
    ours = pairwise_distances(x[:50].numpy(), x.numpy()).argsort(1, kind="stable")[:, :5]
    assert np.array_equal(reducer._knn_indices[:50], ours)
    placed = umap_learn.place_umap(reducer, x[:40] + 0.01)
    assert torch.equal(group[torch.cdist(placed, points).argmin(1)], group[:40])
    import pynndescent.rp_trees

    assert not pynndescent.rp_trees.make_euclidean_tree.signatures, "nobody searched by approximation"


@pytest.mark.parametrize("n", [7, 5000])
def test_the_nearest_come_first_and_of_equals_the_earlier(n):
    rng = np.random.default_rng(0)
    distances = rng.integers(0, 40, (6, n)).astype(np.float32)
    for k in (1, 5):
        assert np.array_equal(umap_learn._first(distances, k), distances.argsort(1, kind="stable")[:, :k])


def test_other_threads_are_not_told_to_keep_anything():
    """They may import what uses numba while umap-learn is being imported."""
    found = {}

    def other() -> None:
        found["there"] = numba.njit(lambda x: x + 1)

    with umap_learn._keeping_compiled():
        held = numba.njit
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    found["later"] = held(lambda x: x + 1)  # a module that was imported meanwhile may hold it
    for function in found.values():
        assert type(function._cache).__name__ == "NullCache"
        assert function(1) == 2
    assert numba.njit is not held
