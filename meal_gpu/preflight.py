"""Whether a run could start here, before a job waits hours for its turn: all that is wrong, in one go.

Everything is tried as the run would use it, and nothing stays that was not there: no image is decoded, no weights are
downloaded, no directory is made.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from . import locks
from .config import Config
from .data.datasets import Dataset, cache_dir, open_dataset
from .data.ingest import changed, missing_bytes
from .engine.feasible import check_budget, check_feasible
from .errors import InputError
from .kernels.jit import settle_cache
from .launch import check_new, default_directory
from .machine.backend import Backend, resolve
from .machine.card import card, free_bytes, host_memory
from .network import pretrained
from .network.backbone import create_backbone, weights_file
from .paths import expand, may_write, nearest
from .planning.estimate import describe as estimated
from .planning.sizing import Extent, Needs, gigabytes, needs
from .sharding import cluster
from .strategies.select import find_strategy

T = TypeVar("T")


@dataclass
class Findings:
    """What was found."""

    fine: dict[str, str] = field(default_factory=dict)
    """What was tried, and what came of it."""
    wrong: dict[str, str] = field(default_factory=dict)
    """Why the run could not start, or would not come to its end."""
    before: list[Mapping[str, object]] = field(default_factory=list)

    @property
    def tables(self) -> list[Mapping[str, object]]:
        """Choices, needs and times, the machine, and what was tried."""
        return [*self.before, self.fine]

    def tried(self, name: str, work: Callable[[], T]) -> T | None:
        """What ``work`` returns, a text of which is what there is to say; None where it is refused."""
        try:
            found = work()
        except InputError as error:
            self.wrong[name] = str(error)
            return None
        except OSError as error:
            self.wrong[name] = f"{error.filename or ''}: {error.strerror or error}".removeprefix(": ")
            return None
        if isinstance(found, str):
            self.fine[name] = found
        return found


def preflight(config: Config, out: Path | None = None) -> Findings:
    """Try what a run of ``config`` in the directory ``out`` will need."""
    found = Findings()
    strategy = found.tried("strategy", lambda: find_strategy(config.query.strategy))
    backend = found.tried("device", lambda: resolve(config, strategy is None or strategy.embeds))
    dataset = None
    if config.data.dataset != "demo":  # to list its scenes is to draw them
        dataset = found.tried("data", lambda: open_dataset(config.data))
    listed = config.data.dataset == "demo" or dataset is not None
    extent = found.tried("first image", lambda: Extent.of(config, dataset)) if listed else None
    needed: Needs | None = None
    if backend is not None:
        found.before.append(backend.choices())
        if extent is not None:
            needed = found.tried("network", lambda: needs(config, backend, extent))
            if needed is not None:
                found.before.append(needed.described)
            if needed is not None and config.model.factory is None:
                found.before.append(estimated(config, backend, extent))
    found.before.append({"memory": host_memory(), **card()})
    if extent is not None:
        found.tried("data", lambda: _data(config, dataset, extent))
    gpu = backend is not None and backend.device.type == "cuda"
    found.tried("store", lambda: _store(config, dataset, needed, gpu))
    found.tried("run directory", lambda: _directory(out or default_directory(config), needed))
    found.tried("compiled code", _compiled)
    found.tried("weights", lambda: _weights(config))
    if backend is not None and needed is not None:
        found.tried("memory", lambda: _memory(config, backend, needed))
    if config.query.scoring == "sharded":
        found.tried("workers", lambda: _workers(config))
    return found


def _data(config: Config, dataset: Dataset | None, extent: Extent) -> str:
    if dataset is None:
        check_budget(config, extent.n_images)
        return f"{extent.n_images + extent.n_val:,} scenes, drawn when the run starts"
    check_feasible(config, dataset)
    effective = os.access in os.supports_effective_ids
    samples = [sample for sample in (*dataset.train, *dataset.val) if not sample.gone]
    files = [file for sample in samples for file in (sample.image, sample.mask) if file]
    closed = [file for file in files if not os.access(file, os.R_OK, effective_ids=effective)]
    if closed:
        raise InputError(f"{closed[0]} cannot be read, nor can {len(closed) - 1:,} more of {len(files):,} files: let "
                         "this user read them." if len(closed) > 1 else f"{closed[0]} cannot be read: let this user "
                         "read it.")
    news = "".join(f". {line}" for line in changed(dataset, config.data))
    return f"{len(files):,} files listed, all may be read; meal-gpu check looks into them{news}"


def _store(config: Config, dataset: Dataset | None, needed: Needs | None, gpu: bool) -> str:
    """The store, and the embeddings that are kept beside it."""
    place = cache_dir(config.data).absolute()
    if not may_write(place):
        raise InputError(f"{place} cannot be written. Set data.store to a directory that can.")
    missing = missing_bytes(config.data, dataset, gpu) if dataset is not None else needed.store if needed else 0
    how = locks.kind(nearest(place))
    return f"{place}: {_room(place, missing, 'data.store')}; locked {how}"


def _directory(directory: Path, needed: Needs | None) -> str:
    directory = expand(directory).absolute()
    there = nearest(directory)
    if not there.is_dir():
        raise InputError(f"{there} is no directory: give another --out.")
    check_new(directory)
    if not may_write(directory):
        raise InputError(f"{there} cannot be written: give another --out.")
    how = locks.kind(there)
    return f"{directory}: {_room(directory, needed.results if needed else 0, '--out')}; locked {how}"


def _room(place: Path, need: int, key: str) -> str:
    free = shutil.disk_usage(nearest(place)).free
    if need > free:
        raise InputError(f"{place} needs {gigabytes(need)}, and {gigabytes(free)} are free. Free some, or give another "
                         f"{key}.")
    return f"{gigabytes(need) if need else 'nothing'} to write, {gigabytes(free)} free"


def _compiled() -> str:
    folder = settle_cache()
    return "kept by numba where it likes" if folder is None else f"kept in {folder}"


def _weights(config: Config) -> str:
    model = config.model
    if model.factory is not None:
        return f"those that {model.factory} gives its network"
    if model.weights == "none":
        return "none: random ones"
    if model.weights != "imagenet":
        create_backbone(model)
        return str(weights_file(model))
    source = pretrained.Source.of(model.backbone)
    if source is None:
        raise InputError(f"model.weights is 'imagenet', and timm has none of {model.backbone}. Use model.weights: "
                         "none, or a .safetensors file.")
    kept = pretrained.find(source)
    if kept is not None:
        return str(kept)
    trouble = pretrained.unreachable(source.url)
    if trouble is not None:
        raise InputError(pretrained.missing(source, model.backbone, trouble))
    return f"not here yet; they will be downloaded: {source.url} can be reached"


def _memory(config: Config, backend: Backend, needed: Needs) -> str:
    free, where = free_bytes(backend.device), "" if backend.device.type == "cpu" else " on the GPU"
    if needed.device > free:
        raise InputError(f"the run needs {gigabytes(needed.device)} at its peak{where}, and {gigabytes(free)} are "
                         "free. Use data.placement: streamed and model.cache_features: auto, a smaller "
                         "train.batch_size or data.image_size, or more memory.")
    return f"{gigabytes(needed.device)} needed at the peak{where}, {gigabytes(free)} free"


def _workers(config: Config) -> str:
    place = config.query.workers
    if isinstance(place, str) and place != "cuda":
        with cluster.connected(place) as client:
            n = len(cluster.workers_of(client, ""))
        if not n:
            raise InputError(f"The scheduler at {place} has no workers yet. Start some with: dask worker {place} "
                             "--nthreads 1 --nworkers N")
        return f"{n} at {place}"
    cluster.dask("distributed", "dask")
    if place == "cuda":
        if not torch.cuda.is_available():
            raise InputError("query.workers is 'cuda', and no CUDA device is usable here.")
        cluster.dask("dask_cuda", "dask-cuda")
        return f"one on each of {torch.cuda.device_count()} GPUs"
    return "processes of this machine"
