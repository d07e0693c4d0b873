"""What the stages are timed on: a pool made ready, and a slice of it.

All that depends on how frames are read stands here.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from meal_gpu.config import Config
from meal_gpu.data.datasets import Dataset, Sample, open_dataset
from meal_gpu.data.frames import Frames, HeldFrames
from meal_gpu.engine.experiment import Experiment, prepare
from meal_gpu.engine.oracle import SimulatedOracle
from meal_gpu.engine.rounds import initial_patches
from meal_gpu.errors import InputError
from meal_gpu.network.features import (
    BATCH_PIXELS,
    Features,
    batch_pixels,
    batch_size,
    frames_of,
    images_per_batch,
)
from meal_gpu.network.model import DeepLabV3Plus
from meal_gpu.planning.network_cost import Network
from meal_gpu.randomness import derive, generator
from meal_gpu.sharding.shards import check_local
from meal_gpu.stages.embed import Embedding, fit
from meal_gpu.stages.evaluate import Score, evaluate
from meal_gpu.stages.predict import predict
from meal_gpu.stages.train import train
from meal_gpu.strategies.select import PoolView

from .research import PlainNetwork, Research

TRAINED = 32
"""Patches of the timed epoch, and of the short training that gives the network something to say."""


@dataclass
class Ground:
    """A pool made ready, and a slice of it that the stages over images are timed on."""

    experiment: Experiment
    folder: Path
    """For what is written while measuring."""
    n: int
    n_val: int
    """Images of the slices of the pool and of the validation split; 0 without one."""
    model: DeepLabV3Plus
    frames: Frames
    features: Features
    val_features: Features | None
    val_masks: HeldFrames | None
    ids: Tensor
    """Labelled patches of the slice, int64 ``[TRAINED]``, on the device."""
    labels: Tensor
    network: Network
    vectors: Tensor
    """Of the whole pool."""
    phi: Embedding

    @classmethod
    def of(cls, config: Config, folder: Path, images: int = 0) -> "Ground":
        """Ingest, compute features, fit the embedding, train a little: all that the stages need to be warm."""
        check_local(config, "bench measures the stages of one process (for workers: bench scale --workers)")
        experiment = prepare(config, dataset=limited(config, images))
        train_store, val = experiment.stores.train, experiment.stores.val
        if train_store.masks is None:
            raise InputError("This pool has no masks: a round cannot be measured without labels. Use a labelled data "
                             "set; its throughput is that of any pool of equal size.")
        grid, device = experiment.grid, experiment.backend.device
        frames_at_once = 3 * batch_size(experiment.train.frames, experiment.backend)
        wanted = max(2, math.ceil(frames_at_once / experiment.train.frames.per_image))

        n, frozen = min(wanted, len(train_store.names)), config.model.freeze_backbone
        n_val = min(wanted, len(val.names)) if val is not None and val.masks is not None else 0
        frames = part_of(experiment, train_store.images[:n])
        model = experiment.new_model(config.seeds[0], 0)
        assert isinstance(model, DeepLabV3Plus)  # the command line refuses a factory
        cached = frozen and (experiment.train.frozen is None or experiment.train.frozen.cache is not None)
        features = Features.of(frames, model, experiment.backend, cached)
        val_features = val_masks = None
        if n_val and val is not None and val.masks is not None:
            val_frames = part_of(experiment, val.images[:n_val])
            val_features = Features.of(val_frames, model, experiment.backend, cached)
            val_masks = masks_of(experiment, val.masks[:n_val])
        order = torch.randperm(n * grid.cells, generator=generator(config.seeds[0], 0, "bench"))
        ids = order[: min(TRAINED, len(order))]
        labels = SimulatedOracle(train_store.masks, grid).label(0, ids)
        vectors = experiment.embeddings.vectors
        phi = fit(vectors, config.umap, derive(config.seeds[0], 0, "umap") % 2**32, experiment.backend.umap)
        network = Network.of(config, len(experiment.class_names), experiment.backend.dtype,
                             batch_pixels(experiment.backend))
        ground = cls(experiment, folder, n, n_val, model, frames, features, val_features, val_masks, ids.to(device),
                     labels.to(device), network, vectors, phi)
        ground.learn(model, len(ids), epochs=4)
        return ground

    @property
    def config(self) -> Config:
        return self.experiment.config

    @property
    def pool(self) -> int:
        """Images of the whole pool."""
        return len(self.experiment.stores.train.names)

    @property
    def frozen(self) -> bool:
        return self.config.model.freeze_backbone

    def learn(self, model: DeepLabV3Plus, ids: int, epochs: int = 1) -> None:
        """Train a network on the first labelled patches."""
        train(model, self.features, self.ids[:ids], self.labels[:ids], self.config.train, epochs,
              self.experiment.backend, generator(0, 0, "order"), lambda: None)

    def research(self, val: bool = False) -> Research:
        dataset = self.experiment.stores.dataset
        return Research(dataset.val if val else dataset.train, dataset.to_class, self.experiment.grid,
                        self.config.data.context, self.experiment.backend.device)

    def alike(self, images: Iterable[int], val: bool = False) -> Research:
        """Research code on the store's pixels, to compare results with; see `Research.given`."""
        store = self.experiment.stores.val if val else self.experiment.stores.train
        assert store is not None
        return self.research(val).given({index: np.array(store.images[index]) for index in sorted(set(images))})

    def plain(self) -> PlainNetwork:
        return PlainNetwork(self.model).to(self.experiment.backend.device)

    @cached_property
    def exact(self) -> "Ground":
        """The same in float32: what the engine computes there, baselines in float32 compute to rounding."""
        backend = replace(self.experiment.backend, dtype=torch.float32)
        features = Features.of(self.frames, self.model, backend, self.features.cache is not None)
        return replace(self, experiment=replace(self.experiment, backend=backend), features=features)

    def part(self, n: int) -> Features:
        """The features of the first n images."""
        frames = part_of(self.experiment, self.experiment.stores.train.images[:n])
        return Features.of(frames, self.model, self.experiment.backend, self.features.cache is not None)

    def val_part(self, n: int) -> tuple[Features, HeldFrames]:
        val = self.experiment.stores.val
        assert val is not None
        assert val.masks is not None
        frames, masks = part_of(self.experiment, val.images[:n]), masks_of(self.experiment, val.masks[:n])
        return Features.of(frames, self.model, self.experiment.backend, self.features.cache is not None), masks

    def view(self, score: Tensor) -> PoolView:
        """The whole pool with the initial images labelled."""
        experiment = self.experiment
        cells, device = experiment.grid.cells, experiment.backend.device
        ids = torch.arange(self.pool * cells, device=device)
        free = torch.ones(len(ids), dtype=torch.bool, device=device)
        labelled = initial_patches(experiment, self.config.seeds[0])
        free[labelled.to(device)] = False
        draw = generator(self.config.seeds[0], 0, "select")
        uniforms = torch.rand(self.config.query.n_query, generator=draw, dtype=torch.float64).to(device)
        return PoolView(image=ids // cells, cell=ids % cells, free=free, n_free=len(ids) - len(labelled),
                        labelled=~free, n_labelled=len(labelled), query=self.config.query, score=score,
                        uniforms=lambda n: uniforms[:n], kmeans=experiment.backend.kmeans)


def part_of(experiment: Experiment, images: np.ndarray) -> Frames:
    """Frames of some images, brought to the device as the experiment brings its pool."""
    return frames_of(images, experiment.config, experiment.backend, experiment.placement.images)


def masks_of(experiment: Experiment, masks: np.ndarray) -> HeldFrames:
    return HeldFrames.of(masks, experiment.grid, experiment.config.data.context, experiment.backend.device)


def limited(config: Config, images: int) -> Dataset:
    """The data set, or evenly spaced images of it: so many of the pool, and as large a share of the others."""
    dataset = open_dataset(config.data)
    if not 0 < images < len(dataset.train):
        return dataset

    def every(samples: tuple[Sample, ...], n: int) -> tuple[Sample, ...]:
        return tuple(samples[i * len(samples) // n] for i in range(n))

    return replace(dataset, train=every(dataset.train, images),
                   val=every(dataset.val, math.ceil(len(dataset.val) * images / len(dataset.train))))


def maps_of(features: Features, model: DeepLabV3Plus) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over the maps of all frames, and the repeats behind the last."""
    for _, maps in features.scan(model):
        yield maps


def read_all(frames: Frames) -> None:
    """One pass over the frames' pixels, as training and scoring do: a batch is done with when the next is asked for."""
    size = images_per_batch(frames.images_grid, BATCH_PIXELS) * frames.per_image
    deque(frames.scan(size), maxlen=0)


def scores_of(ground: Ground, features: Features) -> Tensor:
    found = predict(ground.model, features, {"score"}, "entropy", ground.experiment.backend).score
    assert found is not None
    return found


def evaluate_part(ground: Ground, features: Features, masks: HeldFrames) -> Score:
    return evaluate(ground.model, features, masks, len(ground.experiment.class_names), ground.experiment.backend)


def labelled_patches(ground: Ground) -> tuple[int, int]:
    """How many are labelled in the first round, and in the middle of a run."""
    query, cells = ground.config.query, ground.experiment.grid.cells
    initial = (query.n_initial_images or ground.pool) * cells
    return initial, initial + query.rounds // 2 * query.n_query
