"""A pool on workers: any cut of it gives one process's queries, whatever dies."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import distributed
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_camvid import thinned
from tiny import CPU, noise, stir_norms, tiny_backend, tiny_config, tiny_model

from meal_gpu.config import Config
from meal_gpu.data.frames import HeldFrames
from meal_gpu.engine import experiment as experiment_module
from meal_gpu.engine.acquire import acquire
from meal_gpu.engine.experiment import prepare
from meal_gpu.engine.oracle import SimulatedOracle
from meal_gpu.engine.rounds import initial_patches, learn
from meal_gpu.errors import InputError
from meal_gpu.grid import Grid
from meal_gpu.launch import resume, run
from meal_gpu.network import features as features_module
from meal_gpu.network.features import Features
from meal_gpu.records import read_rounds
from meal_gpu.sharding import cluster, shards
from meal_gpu.sharding import held_shard as holder
from meal_gpu.sharding.shards import Shards, even
from meal_gpu.sharding.workers import Workers
from meal_gpu.stages.embed import Embedding
from meal_gpu.stages.predict import predict
from meal_gpu.stages.ranking import merge, top
from meal_gpu.stages.select import STRATEGIES, find_strategy
from meal_gpu.timing import StageClock, no_progress

DASK = [sys.executable, "-m", "dask"]


pytestmark = pytest.mark.usefixtures("one_thread")


# --- the merge --------------------------------------------------------------------------------------------------------


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


# --- any ranges -------------------------------------------------------------------------------------------------------


class Here:
    """The tasks of `Workers`, done by this process."""

    share_memory = False

    def __len__(self):
        return 3

    def broadcast(self, data):
        return data

    def ask(self, function, asked, shared, progress, stage, total):
        return [function(True, frozenset(part for part, _ in asked), part, *args, shared, progress)
                for part, args in asked]

    def everywhere(self, function, *args):
        function(*args)


RANGES = [[(0, 7)], even(7, 2), [(0, 1), (1, 6), (6, 7)]]


@pytest.mark.parametrize("context", ["image", "patch"])
@pytest.mark.parametrize("frozen", [True, False])
def test_any_ranges_give_the_bits_of_one_process(tmp_path, context, frozen):
    """7 images in a store: every operation that a query uses, and whole fields for strategies that read these."""
    images = noise(7, 64, 96)
    (tmp_path / "images.u8").write_bytes(images.numpy().tobytes())
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
    (tmp_path / "images.u8").write_bytes(images.numpy().tobytes())
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
    (tmp_path / "images.u8").write_bytes(images.numpy().tobytes())
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
    monkeypatch.setattr(experiment_module, "fit", lambda vectors, *args: Embedding(vectors[:, :2],
                                                                                   lambda more: more[:, :2] + 1))
    config = tiny_config(tmp_path, **{"umap.fit_at_most": 20, "data.loader": "torchvision"})
    experiment = prepare(config)
    queries, planes = [], []
    for sharded in (False, True):
        experiment._embeddings.clear()
        experiment.__dict__.pop("_pretrained", None)
        experiment.__dict__.pop("pretrained_vectors", None)
        if sharded:
            experiment.shards = Shards.of(Here(), config, experiment.backend, experiment.stores.train.path,
                                          experiment.frames, experiment.frozen_features.batch, even(6, 3))
        pool, ids = experiment.new_pool(), initial_patches(experiment, 0)
        pool.reveal(ids, torch.zeros(len(ids), 32, 32, dtype=torch.uint8))
        query = acquire(experiment, pool, experiment.new_model(0, 0), 0, 0, StageClock(CPU))
        queries.append((query.ids.tolist(), query.scores.tolist()))
        planes.append(query.embedded)
        assert experiment.embedding(0).ids.tolist() == sorted(set(experiment.embedding(0).ids.tolist()))
    assert queries[0] == queries[1]
    assert all(torch.equal(planes[0][name], planes[1][name]) for name in planes[0])
    assert planes[0]["points"].shape == (20, 2)
    vectors = experiment.pretrained_vectors
    assert torch.equal(planes[0]["points"], vectors[planes[0]["point_ids"]][:, :2])
    assert torch.equal(planes[0]["round_0_points"], vectors[planes[0]["round_0_candidates"]][:, :2] + 1)
    experiment.shards.close()
    directory = run(config, tmp_path / "run")  # its report draws the sample, and the others where they were placed
    assert len(np.load(directory / "seed-0" / "embedding.npz")["point_ids"]) == 20
    assert "Near patches look alike" in (directory / "report.html").read_text()


# --- real workers -----------------------------------------------------------------------------------------------------


@pytest.mark.camvid
def test_queries_on_camvid_are_those_of_one_process(camvid_root, weights_file, tmp_path, monkeypatch):
    """6 images of the real size, frozen and finetuned, on 1, 2, 3 and 5 processes that are added one after another.

    Two images to a batch, so that 5 processes fill few with repeats. ``most_of_an_image`` reads whole fields, as a
    strategy of one's own may.
    """
    def most_of_an_image(view, n):
        mean = torch.zeros(6).index_add_(0, view.image, view.score)
        order = torch.argsort((mean[view.image] + view.probabilities[:, 0]).masked_fill(~view.free, -1),
                              descending=True, stable=True)
        return order[:n]

    monkeypatch.setitem(STRATEGIES, "own", replace(STRATEGIES["entropy"], choose=most_of_an_image,
                                                   needs=frozenset({"score", "probabilities"})))
    monkeypatch.setattr(features_module, "BATCH_PIXELS", 2 * 360 * 480)
    root = thinned(camvid_root, tmp_path / "camvid", every=62)
    experiments, expected = [], []
    for frozen in (True, False):
        experiment = prepare(Config.load("camvid", [
            f"data.root={root}", f"model.weights={weights_file}", f"data.store={tmp_path / 'store'}", "seeds=[0]",
            "device=cpu", "query.n_query=8", "query.n_informative=40", "train.epochs=1", "query.n_initial_images=1",
            f"model.freeze_backbone={str(frozen).lower()}"]))
        pool, masks = experiment.new_pool(), experiment.stores.train.masks
        ids = initial_patches(experiment, 0)
        pool.reveal(ids, SimulatedOracle(masks, experiment.grid).label(0, ids))
        experiment.val_frames = None
        model, _ = learn(experiment, pool, 0, 0, StageClock(CPU))
        experiments.append((experiment, pool, model))

    def queries():
        found = []
        for experiment, pool, model in experiments:
            for name in ("entropy", "own") if experiment.frozen_features else ("entropy",):
                experiment.strategy = find_strategy(name)
                query = acquire(experiment, pool, model, 0, 0, StageClock(CPU))
                found.append((query.ids.numpy().tobytes(),
                              None if query.scores is None else query.scores.numpy().tobytes()))
            # What Φ is fitted on and places: UMAP itself would take longer than everything else.
            for name in ("_pretrained", "pretrained_vectors"):
                experiment.__dict__.pop(name, None)
            found.append(experiment.pretrained_vectors.numpy().tobytes())
        return found

    expected = queries()
    with cluster._spawning(1), distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, **{**cluster.COMMON, "dashboard_address": None}) as local:
        for n in (1, 2, 3, 5):
            local.scale(n)
            with distributed.Client(local) as client:
                client.wait_for_workers(n)
                workers = Workers(nullcontext(client))
                for experiment, _, _ in experiments:
                    features = experiment.frozen_features or experiment.features(experiment.pretrained)
                    experiment.shards = Shards.of(workers, experiment.config, experiment.backend,
                                                  experiment.stores.train.path, experiment.frames, features.batch)
                    assert len(experiment.shards.ranges) == n
                assert queries() == expected


def timeless(directory: Path) -> list[dict]:
    return [{key: value for key, value in json.loads(line).items() if key not in ("seconds", "peak_bytes")}
            for line in (directory / "seed-0" / "rounds.jsonl").read_text().splitlines()]


@pytest.fixture
def noisy(tmp_path):
    """``noisy(client)`` -> 160 frames on its workers, one to a batch so that scoring takes seconds; and the truth."""
    images = noise(160, 64, 96)
    (tmp_path / "images.u8").write_bytes(images.numpy().tobytes())
    config = tiny_config(tmp_path, **{"query.scoring": "sharded", "model.cache_features": "never"})
    model, backend = tiny_model(3).eval(), tiny_backend()
    frames = HeldFrames.of(images, Grid(2, 3, 64, 96), "image", CPU)
    features = replace(Features.of(frames, model, backend, cached=False), batch=2)
    score = predict(model, features, {"score"}, "entropy", backend).score
    expected = top(score, torch.ones(960, dtype=torch.bool), 960, 50)

    def split(client):
        return Shards.of(Workers(nullcontext(client)), config, backend, tmp_path, frames, 2), model, expected

    return split


def impatient(dask_scheduler):
    """`distributed.scheduler.worker-ttl`, five minutes by default, for workers that have imported everything."""
    dask_scheduler.worker_ttl = 8
    distributed.scheduler.PeriodicCallback(dask_scheduler.check_worker_ttl, 1000).start()


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_worker_lost_in_the_middle_of_scoring(noisy, sign):
    """Its shard is made again elsewhere, and the next round has its shards where workers are."""
    with cluster.local(2, 1) as client:
        split, model, expected = noisy(client)
        split.open(model)
        if sign == signal.SIGSTOP:
            client.run_on_scheduler(impatient)
        [pid, _] = client.run(os.getpid).values()
        lost = []

        def shoot(stage, done, total):
            if stage == "score" and not lost:
                lost.append((done, total))
                os.kill(pid, sign)

        seen = split.look(model, {"score"}, torch.ones(960, dtype=torch.bool), 50, shoot)
        assert 0 < lost[0][0] < lost[0][1]
        assert torch.equal(seen.best(50), expected)
        if sign == signal.SIGSTOP:
            client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "worker_ttl", 300))
        client.wait_for_workers(2)
        again = split.look(model, {"score"}, torch.ones(960, dtype=torch.bool), 50)
        assert torch.equal(again.best(50), expected)
        assert len(set(split.workers._homes.values())) == 2


def test_the_only_worker_killed_takes_the_weights_with_it(noisy):
    with cluster.local(1, 1) as client:
        split, model, expected = noisy(client)
        split.open(model)
        [pid] = client.run(os.getpid).values()
        lost = []

        def shoot(stage, done, total):
            if stage == "score" and not lost:
                lost.append(done)
                os.kill(pid, signal.SIGKILL)

        seen = split.look(model, {"score"}, torch.ones(960, dtype=torch.bool), 50, shoot)
        assert lost
        assert torch.equal(seen.best(50), expected)


def test_a_lost_scheduler_stops_it_and_resume_goes_on(tmp_path):
    """The scheduler and the worker run by themselves, as on a cluster; what was finished stays as it is."""
    file, out = tmp_path / "scheduler.json", tmp_path / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    scheduler = subprocess.Popen([*DASK, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
                                  "--scheduler-file", file], stderr=subprocess.DEVNULL, env=environment)
    worker = subprocess.Popen([*DASK, "worker", "--scheduler-file", file, "--nthreads", "1", "--no-dashboard",
                               "--death-timeout", "5"], stderr=subprocess.DEVNULL, env=environment)
    try:
        while not file.exists():
            time.sleep(0.1)
        address = json.loads(file.read_text())["address"]
        config = tiny_config(tmp_path, **{"query.strategy": "entropy", "query.scoring": "sharded",
                                          "query.workers": address})
        with pytest.raises(InputError, match=r"connection to the scheduler tcp://.* is lost\. All finished rounds are"):
            run(config, out, observe=lambda seed, record: scheduler.kill())
    finally:
        for process in (scheduler, worker):
            process.kill()
            process.wait()
    begun = (out / "seed-0" / "rounds.jsonl").read_bytes()
    assert [record["round"] for record in read_rounds(out / "seed-0")] == [0]
    resume(out, ["query.scoring=local", "query.workers=null"])
    assert (out / "seed-0" / "rounds.jsonl").read_bytes().startswith(begun)
    whole = run(config.model_copy(update={"query": config.query.model_copy(update={
        "scoring": "local", "workers": None})}), tmp_path / "whole")
    assert timeless(out) == timeless(whole)
    assert json.loads((out / "environment.json").read_text())["scoring"] == "sharded, 1 parts"


# --- what is refused --------------------------------------------------------------------------------------------------


def test_where_workers_come_from(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_S", 0.5)

    def config(where):
        return tiny_config(tmp_path, **{"query.scoring": "sharded", "query.workers": where})

    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"no CUDA device is usable here"):
            prepare(config("cuda"))
    with pytest.raises(InputError, match=r"No Dask scheduler answers at tcp://127.0.0.1:9"):
        prepare(config("tcp://127.0.0.1:9"))
    with (distributed.LocalCluster(n_workers=0, processes=False, protocol="tcp", dashboard_address=None) as empty,
          pytest.raises(InputError, match=r"The scheduler tcp://.* has no workers")):
        prepare(config(empty.scheduler_address))
    assert not list(tmp_path.rglob("images.u8"))  # before long work
    for wrong in (0, -1, "many", True, 1.5):
        with pytest.raises(InputError, match=r"query.workers is .*Give a number of processes"):
            config(wrong)
    with pytest.raises(InputError, match=r"query.workers is 2 and query.scoring is 'local'"):
        tiny_config(tmp_path, **{"query.workers": 2})


def test_the_command_line_names_one_place(tmp_path, monkeypatch):
    from meal_gpu import cli

    def call(*words):
        shown = io.StringIO()
        monkeypatch.setattr(cli, "errors", cli.Console(file=shown))
        monkeypatch.setattr(sys, "argv", ["meal-gpu", "run", "demo", "--out", str(tmp_path / "run"), *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, shown.getvalue()

    if not torch.cuda.is_available():
        code, text = call("--cuda")
        assert code == 2
        assert text.startswith("error --cuda: no CUDA device is usable here")
        assert text.count("\n") == 1
    code, text = call("--cuda", "--workers", "2")
    assert code == 2
    assert "give one of them" in text
    assert not (tmp_path / "run").exists()


