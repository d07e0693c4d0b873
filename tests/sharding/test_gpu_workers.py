"""Workers of a machine with GPUs, on one without: what they are started with must be what starts them."""

import os
import signal
import sys
import types
import warnings
from contextlib import nullcontext

import distributed
import pytest
import torch

from meal_gpu.config import Config
from meal_gpu.sharding import cluster, shards


class StandIn(distributed.LocalCluster):
    """Does with its arguments what `dask_cuda.LocalCUDACluster` 26.10 does: its preload and words come after ours."""

    def __init__(self, threads_per_worker, **kwargs):
        super().__init__(n_workers=0, threads_per_worker=threads_per_worker, processes=True, **kwargs)
        options = self.new_spec["options"]
        options["preload"] = options.get("preload", []) + ["signal"]  # noqa: RUF005  as there
        self.scale(1)
        self.sync(self._correct_state)


def facts() -> tuple[str | None, bool]:
    """Of a worker: the threads it was given, and whether our preload has run."""
    return os.environ.get("OMP_NUM_THREADS"), signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_worker_starts_where_a_library_adds_to_our_values(monkeypatch):
    """`preload` was a word once, and Dask-CUDA adds a list to it."""
    monkeypatch.setitem(sys.modules, "dask_cuda", types.SimpleNamespace(LocalCUDACluster=StandIn))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with cluster.cuda(1) as client:
        client.wait_for_workers(1, timeout=60)
        assert set(client.run(facts).values()) == {("1", True)}
        monkeypatch.setitem(cluster.COMMON, "preload", "meal_gpu.sharding.cluster")
        with pytest.raises(TypeError, match="can only concatenate str"), cluster.cuda(1):
            pass


@pytest.mark.parametrize(("place", "sharers"), [("cuda", 2), (3, 4), ("tcp://elsewhere:8786", 1)])
def test_the_memory_beside_a_run_is_divided(monkeypatch, place, sharers):
    """On GPU 0 the first worker and the run itself would each take half of what is free, the worker of what is left."""
    client = types.SimpleNamespace(subscribe_topic=lambda *args: None)
    monkeypatch.setattr(cluster, "at", lambda place: nullcontext(client))
    monkeypatch.setattr(shards.Workers, "_await_workers", lambda self, seconds: None)
    monkeypatch.setattr(shards.Workers, "__len__", lambda self: 3)
    workers = shards.start(Config.load({}, ["query.scoring=sharded", f"query.workers={place}"]))
    assert workers.sharers == sharers


def test_a_worker_of_dask_cuda_starts(monkeypatch):
    """Dask-CUDA itself: only the driver's management library, which it asks for memory and cores, is replaced."""
    utils = pytest.importorskip("dask_cuda.utils", reason="without the extra meal-gpu[cuda] there is no Dask-CUDA")
    real = utils.pynvml
    one_gpu = types.SimpleNamespace(
        NVMLError=real.NVMLError, NVMLError_NotSupported=real.NVMLError_NotSupported, nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 1, nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda handle: types.SimpleNamespace(total=2**34),
        nvmlDeviceGetCpuAffinity=lambda handle, words: [1] + [0] * (words - 1))
    monkeypatch.setattr(utils, "pynvml", one_gpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with warnings.catch_warnings(), cluster.cuda(1) as client:
        client.wait_for_workers(1, timeout=60)
        assert set(client.run(facts).values()) == {("1", True)}
        assert set(client.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"]).values()) == {"0"}
