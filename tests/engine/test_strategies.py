"""Every strategy in the engine: sharded as in one process, twice the same, and what a run begins with."""

import numpy as np
import pytest
import torch
from here import Here
from tiny import CPU, tiny_config

from meal_gpu.engine import acquire as acquire_module
from meal_gpu.engine import embeddings
from meal_gpu.engine.acquire import acquire
from meal_gpu.engine.experiment import Experiment, prepare
from meal_gpu.engine.rounds import initial_patches
from meal_gpu.errors import InputError
from meal_gpu.launch import resume, run
from meal_gpu.records import read_rounds
from meal_gpu.sharding.shards import Shards
from meal_gpu.stages.embed import Embedding
from meal_gpu.stages.members import DISAGREEMENTS
from meal_gpu.strategies.select import STRATEGIES
from meal_gpu.strategies.wrapped import asked_for
from meal_gpu.timing import StageClock

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An experiment on seven scenes, whose plane is the first two features; two images and more are labelled."""
    path = tmp_path_factory.mktemp("strategies")
    with pytest.MonkeyPatch.context() as patch:
        plane = Embedding(torch.zeros(0, 2), lambda more: more[:, :2])
        patch.setattr(embeddings, "fit_cached", lambda vectors, *args: Embedding(vectors[:, :2]))
        patch.setattr(acquire_module, "fit", lambda vectors, *args: Embedding(vectors[:, :2], plane.place))
        config = tiny_config(path, **{"data.n_images": 7, "data.loader": "torchvision", "query.samples": 3})
        experiment = prepare(config)
        pool = experiment.new_pool()
        ids = torch.cat([initial_patches(experiment, 0), torch.tensor([30, 3, 17])]).unique()
        draw = torch.Generator().manual_seed(0)
        pool.reveal(ids, torch.randint(0, 3, (len(ids), 32, 32), generator=draw, dtype=torch.uint8))
        yield experiment, pool, [experiment.new_model(0, 0, member) for member in range(3)]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_any_ranges_give_one_processs_query(made, name):
    experiment, pool, (model, *others) = made
    members = others if STRATEGIES[name].needs & DISAGREEMENTS.keys() else []
    found = []
    for around in ({}, {"per_image": 1, "class_quota": 0.5}):
        experiment.config = experiment.config.revised("query", strategy=name, **{"per_image": 0, "class_quota": 0.0,
                                                                                **around})
        experiment.strategy = asked_for(experiment.config.query)
        for ranges in (None, None, [(0, 7)], [(0, 1), (1, 5), (5, 7)]):
            experiment.shards = None if ranges is None else Shards.of(
                Here(), experiment.config, experiment.backend, experiment.stores.train.path, experiment.train.frames,
                experiment.train.frozen.batch, ranges)
            query = acquire(experiment, pool, model, 0, 1, StageClock(CPU), members)
            found.append((query.ids.tolist(), None if query.scores is None else query.scores.tolist()))
            if experiment.shards is not None:
                experiment.shards.close()
                experiment.shards = None
        assert all(one == found[-4] for one in found[-3:])
        assert bool(pool.free[query.ids].all())
        assert len(query.ids.unique()) == 4
    pools = {"mirrored": 2, "flip_js": 2}
    strategy = STRATEGIES[name]
    passes = 0 if not strategy.needs else max(pools.get(need, 1) for need in strategy.needs)
    assert query.looked["passes"].get("pool", 0) == max(passes, 1)  # the quota looks at probabilities
    assert ("samples_last" in query.looked["passes"]) == (name == "bald")
    assert query.looked["passes"].get("members", 0) == len(members)


@pytest.mark.parametrize("frozen", [True, False])
def test_an_ensemble_is_trained_in_every_round_and_asks_alike_on_workers(tmp_path, frozen, monkeypatch):
    """The members begin elsewhere and see the labels in another order; the first is the network of any other run."""
    base = {"query.rounds": 1, "model.freeze_backbone": frozen, "data.loader": "torchvision"}
    plain = read_rounds(run(tiny_config(tmp_path, **base, **{"query.strategy": "entropy"}), tmp_path / "p") / "seed-0")
    seen = []
    look = Experiment.look
    monkeypatch.setattr(Experiment, "look", lambda self, model, needs, free, how, members: (
        seen.append([one.decoder.classify.weight.clone() for one in (model, *members)])
        or look(self, model, needs, free, how, members)))
    ensemble = {**base, "query.strategy": "ensemble", "query.members": 3}
    local = read_rounds(run(tiny_config(tmp_path, **ensemble), tmp_path / "local") / "seed-0")
    assert len(seen) == 1
    weights = seen[0]
    assert len(weights) == 3
    assert not any(torch.equal(weights[i], weights[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert local[0]["history"] == plain[0]["history"]
    assert local[0]["passes"] == {"pool": 1, "members": 2}
    assert "passes" not in local[1]
    sharded = run(tiny_config(tmp_path, **ensemble, **{"query.scoring": "sharded", "query.workers": 2}),
                  tmp_path / "two")
    assert read_rounds(sharded / "seed-0")[0]["next_query"] == local[0]["next_query"]


# --- what a run begins with -------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("start", ["random", "random_spread", "coreset", "kmeans", "typiclust", "maxherding"])
def test_a_run_may_begin_with_patches_of_many_images(tmp_path, start):
    config = tiny_config(tmp_path, **{"query.start": start, "query.n_initial_images": 2})
    ids = [initial_patches(prepare(config), seed).tolist() for seed in (0, 0, 1)]
    cells = config.data.tiling().cells
    assert len(set(ids[0])) == len(ids[0]) == 2 * cells
    assert ids[0] == ids[1]
    if start != "maxherding":  # it draws among more patches than there are here
        assert ids[0] != ids[2]
    if start == "random_spread":
        assert np.bincount(np.array(ids[0]) // cells, minlength=6).min() >= 2 * cells // 6


def test_it_is_what_round_0_labels_and_goes_on_with(tmp_path):
    config = tiny_config(tmp_path, **{"query.start": "random_spread", "query.strategy": "random", "query.rounds": 1})
    out = run(config, tmp_path / "run")
    records = read_rounds(out / "seed-0")
    assert [patch["id"] for patch in records[0]["queried"]] == initial_patches(prepare(config), 0).tolist()
    resume(out)
    assert read_rounds(out / "seed-0") == records


@pytest.mark.parametrize(("start", "said"), [("entropy", "looks at a trained network \\(score\\)"),
                                             ("image", "query.start is 'image'"),
                                             ("bald", "Allowed: images, random")])
def test_a_start_that_needs_a_network_is_refused(tmp_path, start, said):
    with pytest.raises(InputError, match=said):
        prepare(tiny_config(tmp_path, **{"query.start": start}))
