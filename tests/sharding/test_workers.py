"""Shards on real workers: queries are those of one process, whoever dies."""

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
import pytest
import torch
from camvid import thinned
from tiny import CPU, noise, tiny_backend, tiny_config, tiny_model

from meal_gpu.config import Config
from meal_gpu.data.frames import HeldFrames
from meal_gpu.data.store import write_images
from meal_gpu.engine.acquire import acquire
from meal_gpu.engine.experiment import prepare
from meal_gpu.engine.learning import learn
from meal_gpu.engine.oracle import SimulatedOracle
from meal_gpu.engine.rounds import initial_patches
from meal_gpu.errors import InputError
from meal_gpu.grid import Grid
from meal_gpu.launch import resume, run
from meal_gpu.network import features as features_module
from meal_gpu.network.features import Features
from meal_gpu.records import read_rounds
from meal_gpu.sharding import cluster, forking
from meal_gpu.sharding.shards import Shards
from meal_gpu.sharding.workers import Workers
from meal_gpu.stages.predict import predict
from meal_gpu.stages.ranking import top
from meal_gpu.strategies.select import STRATEGIES, find_strategy
from meal_gpu.timing import StageClock

pytestmark = pytest.mark.usefixtures("one_thread")


DASK = [sys.executable, "-m", "dask"]


@pytest.mark.camvid
def test_queries_on_camvid_are_those_of_one_process(camvid_root, weights_file, tmp_path, monkeypatch):
    """6 images of half the size, frozen and finetuned, on 1, 2, 3 and 5 processes that are added one after another.

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
    monkeypatch.setattr(features_module, "BATCH_PIXELS", 2 * 180 * 240)
    root = thinned(camvid_root, tmp_path / "camvid", every=62)
    experiments, expected = [], []
    for frozen in (True, False):
        experiment = prepare(Config.load("camvid", [
            f"data.root={root}", f"model.weights={weights_file}", f"data.store={tmp_path / 'store'}", "seeds=[0]",
            "device=cpu", "data.image_size=[180, 240]", "query.n_query=8", "query.n_informative=40", "train.epochs=1",
            "query.n_initial_images=1", f"model.freeze_backbone={str(frozen).lower()}"]))
        pool, masks = experiment.new_pool(), experiment.stores.train.masks
        ids = initial_patches(experiment, 0)
        pool.reveal(ids, SimulatedOracle(masks, experiment.grid).label(0, ids))
        experiment.val = None
        model, _ = learn(experiment, pool, 0, 0, StageClock(CPU))
        experiments.append((experiment, pool, model))

    def queries():
        found = []
        for experiment, pool, model in experiments:
            for name in ("entropy", "own") if experiment.train.frozen else ("entropy",):
                experiment.strategy = find_strategy(name)
                query = acquire(experiment, pool, model, 0, 0, StageClock(CPU))
                found.append((query.ids.numpy().tobytes(),
                              None if query.scores is None else query.scores.numpy().tobytes()))
            # What Φ is fitted on and places: UMAP itself would take longer than everything else.
            experiment.__dict__.pop("embeddings", None)
            found.append(experiment.embeddings.vectors.numpy().tobytes())
        return found

    expected = queries()
    with cluster._starting(1, forking.method(1)), distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, **{**cluster.COMMON, "dashboard_address": None}) as local:
        for n in (1, 2, 3, 5):
            local.scale(n)
            with distributed.Client(local) as client:
                client.wait_for_workers(n)
                workers = Workers(nullcontext(client))
                for experiment, _, _ in experiments:
                    features = experiment.train.frozen or experiment.train.features(experiment.pretrained)
                    experiment.shards = Shards.of(workers, experiment.config, experiment.backend,
                                                  experiment.stores.train.path, experiment.train.frames, features.batch)
                    assert len(experiment.shards.ranges) == n
                assert queries() == expected


def timeless(directory: Path) -> list[dict]:
    return [{key: value for key, value in json.loads(line).items() if key not in ("seconds", "peak_bytes", "check")}
            for line in (directory / "seed-0" / "rounds.jsonl").read_text().splitlines()]


@pytest.fixture
def noisy(tmp_path):
    """``noisy(client)`` -> 160 frames on its workers, one to a batch so that scoring takes seconds; and the truth."""
    images = noise(160, 64, 96)
    write_images(tmp_path, images.numpy())
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
                               "--death-timeout", "30"], stderr=subprocess.DEVNULL, env=environment)
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
