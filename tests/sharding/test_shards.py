"""A pool in parts: any cut of it gives one process's queries."""


import numpy as np
import pytest
import torch
from here import Here
from hypothesis import given
from hypothesis import strategies as st
from tiny import CPU, noise, stir_norms, tiny_backend, tiny_config, tiny_model

from meal_gpu.data.frames import HeldFrames
from meal_gpu.data.store import write_images
from meal_gpu.engine import embeddings
from meal_gpu.engine.acquire import acquire
from meal_gpu.engine.experiment import prepare
from meal_gpu.engine.rounds import initial_patches
from meal_gpu.errors import InputError
from meal_gpu.grid import Grid
from meal_gpu.launch import run
from meal_gpu.network.features import Features
from meal_gpu.sharding import held_shard as holder
from meal_gpu.sharding import shards
from meal_gpu.sharding.shards import Shards, even
from meal_gpu.stages.embed import Embedding
from meal_gpu.stages.predict import predict
from meal_gpu.stages.ranking import merge, top
from meal_gpu.timing import StageClock, no_progress

pytestmark = pytest.mark.usefixtures("one_thread")


@given(st.data(), st.integers(1, 40), st.integers(1, 6), st.integers(1, 45))
def test_the_first_of_the_parts_are_the_first_of_the_whole(data, n_patches, n_parts, n):
    """Any patches in any part, scores from four values (so that most are tied, also across parts), some labelled."""
    score = torch.tensor(data.draw(st.lists(st.sampled_from([0.0, -0.0, 0.5, 1.0, float("nan")]), min_size=n_patches,
                                            max_size=n_patches)))
    part = torch.tensor(data.draw(st.lists(st.integers(0, n_parts - 1), min_size=n_patches, max_size=n_patches)))
    free = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n_patches, max_size=n_patches)))
    firsts = [top(score, mine, int(mine.sum()), n) for mine in (free & (part == i) for i in range(n_parts))]
    ids = torch.cat(data.draw(st.permutations(firsts)))
    expected = top(score, free, int(free.sum()), n)
    assert ids[merge(ids, score[ids], n)].tolist() == expected.tolist()


@given(st.integers(1, 50), st.integers(1, 60))
def test_ranges_cover_the_pool_evenly(n_images, n):
    ranges = even(n_images, n)
    assert [i for first, last in ranges for i in range(first, last)] == list(range(n_images))
    assert len(ranges) == min(n, n_images)
    assert max(last - first for first, last in ranges) - min(last - first for first, last in ranges) <= 1


RANGES = [[(0, 7)], even(7, 2), [(0, 1), (1, 6), (6, 7)]]


@pytest.mark.parametrize("context", ["image", "patch"])
@pytest.mark.parametrize("frozen", [True, False])
def test_any_ranges_give_the_bits_of_one_process(tmp_path, context, frozen):
    """7 images in a store: every operation that a query uses, and whole fields for strategies that read these."""
    images = noise(7, 64, 96)
    write_images(tmp_path, images.numpy())
    config = tiny_config(tmp_path, **{"data.context": context, "data.loader": "torchvision",
                                      "model.freeze_backbone": frozen, "query.scoring": "sharded"})
    model, backend = tiny_model(4, freeze_backbone=frozen), tiny_backend()
    stir_norms(model)
    frames = HeldFrames.of(images, Grid(2, 3, 64, 96), context, CPU)
    features = Features.of(frames, model.eval(), backend, cached=False)
    needs = {"score", "features", "probabilities"}
    whole = predict(model, features, needs, "entropy", backend)
    free = torch.rand(42, generator=torch.Generator().manual_seed(0)) > 0.2
    order = top(whole.score, free, int(free.sum()), 42)
    for ranges in RANGES:
        split = Shards.of(Here(), config, backend, tmp_path, frames, features.batch, ranges)
        seen = split.look(model, needs, free, 8)
        assert torch.equal(seen.best(5), order[:5])
        assert torch.equal(seen.best(8), order[:8])
        for name in ("score", "features", "probabilities"):
            ids = torch.tensor([41, 3, 3, 17, 0])
            assert torch.equal(seen.rows(name, ids), whole.rows(name, ids))
            assert torch.equal(getattr(seen, name)(), getattr(whole, name))
        assert torch.equal(seen.rows("score", order[:8]), whole.score[order[:8]])
        assert torch.equal(seen.best(100), order)  # more than came along
        assert seen.bad(CPU) == -1
        split.close()
        assert holder._holder is None


def test_the_first_patch_that_is_not_finite_is_found_over_all_shards(tmp_path):
    images = noise(6, 64, 96)
    write_images(tmp_path, images.numpy())
    config, backend, model = tiny_config(tmp_path, **{"query.scoring": "sharded"}), tiny_backend(), tiny_model(3)
    frames = HeldFrames.of(images, Grid(2, 3, 64, 96), "image", CPU)
    split = Shards.of(Here(), config, backend, tmp_path, frames, 6)
    split.open(model.eval())
    holder._holder.shards[2, 4].features.cache[1][1] = torch.nan  # image 3
    holder._holder.shards[4, 6].features.cache[1][0] = torch.nan
    assert split.look(model, {"score"}, torch.ones(36, dtype=torch.bool), 8).bad(CPU) == 18
    split.close()


def test_a_worker_keeps_one_run_and_what_it_shall_hold(tmp_path):
    images = noise(4, 64, 96)
    write_images(tmp_path, images.numpy())
    config, backend, model = tiny_config(tmp_path, **{"query.scoring": "sharded"}), tiny_backend(), tiny_model(3).eval()
    frames = HeldFrames.of(images, Grid(2, 3, 64, 96), "image", CPU)
    first, second = (Shards.of(Here(), config, backend, tmp_path, frames, 4, even(4, 4)) for _ in range(2))
    first.open(model)
    assert sorted(holder._holder.shards) == even(4, 4)
    weights, look = shards.to_bytes(model), holder.Pass(1, 3, frozenset())

    def ask(home, mine, shard, job):
        holder.answer(home, frozenset(mine), shard, job, look, holder.ready, weights, no_progress)

    ask(False, {(1, 2)}, (1, 2), first.job)  # a stand-in drops nothing
    assert len(holder._holder.shards) == 4
    ask(True, {(1, 2), (2, 3)}, (1, 2), first.job)
    assert sorted(holder._holder.shards) == [(1, 2), (2, 3)]
    ask(True, {(0, 1)}, (0, 1), second.job)
    assert list(holder._holder.shards) == [(0, 1)]
    first.close()
    assert list(holder._holder.shards) == [(0, 1)]
    second.close()
    assert holder._holder is None


def test_a_store_that_a_worker_does_not_see_is_named(tmp_path):
    frames = HeldFrames.of(noise(2, 64, 96), Grid(2, 3, 64, 96), "image", CPU)
    split = Shards.of(Here(), tiny_config(tmp_path), tiny_backend(), tmp_path / "elsewhere", frames, 2)
    with pytest.raises(InputError, match=r"elsewhere.images.u8 cannot be read: No such file .* as data.store"):
        split.open(tiny_model(3))


def test_a_large_pool_is_embedded_by_a_sample(tmp_path, monkeypatch):
    """Φ of 20 of 36 patches: the same sample and vectors from shards; the others are placed when they are candidates.

    In place of UMAP, which would compile for seconds, the first two columns.
    """
    monkeypatch.setattr(embeddings, "fit", lambda vectors, *args: Embedding(vectors[:, :2],
                                                                                   lambda more: more[:, :2] + 1))
    config = tiny_config(tmp_path, **{"umap.fit_at_most": 20, "data.loader": "torchvision"})
    experiment = prepare(config)
    queries, planes = [], []
    for sharded in (False, True):
        experiment.__dict__.pop("embeddings", None)
        if sharded:
            experiment.shards = Shards.of(Here(), config, experiment.backend, experiment.stores.train.path,
                                          experiment.train.frames, experiment.train.frozen.batch, even(6, 3))
        pool, ids = experiment.new_pool(), initial_patches(experiment, 0)
        pool.reveal(ids, torch.zeros(len(ids), 32, 32, dtype=torch.uint8))
        query = acquire(experiment, pool, experiment.new_model(0, 0), 0, 0, StageClock(CPU))
        queries.append((query.ids.tolist(), query.scores.tolist()))
        planes.append(query.embedded)
        assert experiment.embeddings.of(0).ids.tolist() == sorted(set(experiment.embeddings.of(0).ids.tolist()))
    assert queries[0] == queries[1]
    assert all(torch.equal(planes[0][name], planes[1][name]) for name in planes[0])
    assert planes[0]["points"].shape == (20, 2)
    vectors = experiment.embeddings.vectors
    assert torch.equal(planes[0]["points"], vectors[planes[0]["point_ids"]][:, :2])
    assert torch.equal(planes[0]["round_0_points"], vectors[planes[0]["round_0_candidates"]][:, :2] + 1)
    experiment.shards.close()
    directory = run(config, tmp_path / "run")  # its report draws the sample, and the others where they were placed
    assert len(np.load(directory / "seed-0" / "embedding.npz")["point_ids"]) == 20
    assert "Near patches look alike" in (directory / "report.html").read_text()
