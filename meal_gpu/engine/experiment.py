"""An experiment made ready: data, device, networks and constants that all of its seeds and rounds share."""

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from ..config import Config
from ..data.datasets import Dataset, cache_dir, open_dataset
from ..data.frames import Frames, HeldFrames
from ..data.ingest import Stores, ingest
from ..errors import InputError
from ..grid import Grid
from ..machine.backend import Backend, announce, resolve
from ..network.features import Features, batch_size, frames_of
from ..network.model import DeepLabV3Plus
from ..planning.sizing import Placement, measure, place
from ..randomness import derive, generator
from ..sharding.shards import Sharded, Shards, start
from ..stages.embed import Embedding, fit, fit_cached
from ..stages.pool import Pool
from ..stages.predict import Predictions, predict
from ..stages.select import Strategy, find_strategy
from ..timing import Progress, no_progress


@dataclass
class Experiment:
    """See `prepare`, which makes one."""

    config: Config
    backend: Backend
    stores: Stores
    strategy: Strategy
    placement: Placement
    frames: Frames
    """The pool as the network sees it."""
    pretrained: DeepLabV3Plus
    """A network with the pretrained backbone; its head is never used."""
    frozen_features: Features | None
    """Of the pool, where the backbone is frozen."""
    frozen_val_features: Features | None
    val_frames: Frames | None
    val_masks: HeldFrames | None
    progress: Progress
    shards: Shards | None = None
    """The pool on workers, where ``query.scoring`` is ``sharded``."""
    _exit: ExitStack = field(default_factory=ExitStack)
    _embeddings: dict[int, Embedding] = field(default_factory=dict)

    def close(self) -> None:
        """Send the workers home, where there are any."""
        self._exit.close()

    @property
    def grid(self) -> Grid:
        return self.config.data.tiling()

    @property
    def num_classes(self) -> int:
        return len(self.stores.dataset.class_names)

    def epochs(self, k: int) -> int:
        """Epochs of round k."""
        train = self.config.train
        return train.final_epochs if k == self.config.query.rounds else train.epochs

    def new_pool(self) -> Pool:
        """The pool with nothing labelled."""
        return Pool(self.frames, self.stores.train.names)

    def new_model(self, seed: int, round_: int) -> DeepLabV3Plus:
        """A network as training starts from it: pretrained backbone, random head; a function of seed and round.

        Leaves PyTorch's global generator, which dropout draws from, in a state that is a function of both as well.
        """
        torch.manual_seed(derive(seed, round_, "train"))
        model = DeepLabV3Plus(self.num_classes, self.config.model.without_weights)
        model.backbone.load_state_dict(self.pretrained.backbone.state_dict())
        return model.to(self.backend.device)

    def features(self, model: DeepLabV3Plus) -> Features:
        """Of the pool's frames, for a network of this experiment."""
        return self.frozen_features or Features.of(self.frames, model, self.backend, cached=False)

    def val_features(self, model: DeepLabV3Plus) -> Features | None:
        if self.val_frames is None:
            return None
        return self.frozen_val_features or Features.of(self.val_frames, model, self.backend, cached=False)

    def look(self, model: DeepLabV3Plus, needs: set[str], free: Tensor) -> Predictions | Sharded:
        """One pass over the pool, by this process or by the workers that hold it (paper, Step 1).

        ``needs`` as in `predict`; ``free`` bool ``[n_patches]``: what may be asked for. A frozen backbone's vectors are
        constants, taken from `pretrained_vectors`.
        """
        query = self.config.query
        if self.shards is not None and needs:
            return self.shards.look(model, needs, free, query.n_informative, self.progress)
        frozen = self.config.model.freeze_backbone
        return predict(model, self.features(model), needs, query.score, self.backend, self.progress,
                       (lambda: self.pretrained_vectors) if frozen else None)

    def embedding(self, seed: int) -> Embedding:
        """Φ of Step 0, fitted on the pretrained vectors of the whole pool, or of a sample of it; once per seed."""
        if seed not in self._embeddings:
            self.progress("embed", 0, 1)
            settings = self.config.umap, derive(seed, 0, "umap") % 2**32
            n, most = len(self.stores.train.names) * self.grid.cells, self.config.umap.fit_at_most
            if n > most:
                ids = torch.randperm(n, generator=generator(seed, 0, "umap sample"))[:most].sort().values
                ids = ids.to(self.backend.device)
                phi = fit(self._pretrained.rows("features", ids), *settings, self.backend.umap)
                self._embeddings[seed] = replace(phi, ids=ids)
            elif self.config.model.freeze_backbone:  # only looked up, so its points are all that is needed
                cache = cache_dir(self.config.data) / "embeddings"
                self._embeddings[seed] = fit_cached(self.pretrained_vectors, *settings, cache, self.backend.umap)
            else:
                self._embeddings[seed] = fit(self.pretrained_vectors, *settings, self.backend.umap)
            self.progress("embed", 1, 1)
        return self._embeddings[seed]

    @cached_property
    def pretrained_vectors(self) -> Tensor:
        """Feature vectors of all patches under the pretrained backbone, float32 ``[n_patches, C]`` (Step 0)."""
        held = self._pretrained.features
        assert held is not None
        return held() if callable(held) else held

    @cached_property
    def _pretrained(self) -> Predictions | Sharded:
        if self.shards is not None:
            return self.shards.look(self.pretrained, {"features"}, torch.ones(0, dtype=torch.bool), 0, self.progress)
        return predict(self.pretrained, self.features(self.pretrained), {"features"}, self.config.query.score,
                       self.backend, lambda _, done, total: self.progress("features", done, total))


def prepare(config: Config, progress: Progress = no_progress, dataset: Dataset | None = None) -> Experiment:
    """Check everything that can be checked before long work, ingest what is not in the store, load the network.

    ``dataset`` stands in for the configured one, such as a part of it. Raises `InputError` for bad input of any kind.
    `Experiment.close` when it is done with.
    """
    with ExitStack() as stack:
        experiment = _prepare(config, progress, dataset, stack)
        experiment._exit = stack.pop_all()
        return experiment


def _prepare(config: Config, progress: Progress, dataset: Dataset | None, stack: ExitStack) -> Experiment:
    strategy = find_strategy(config.query.strategy)
    backend = resolve(config)
    announce(backend, config)
    dataset = dataset or open_dataset(config.data)
    check_feasible(config, dataset)
    workers = None
    if config.query.scoring == "sharded":
        workers = start(config)
        stack.callback(workers.close)
    torch.manual_seed(derive(0, 0, "backbone"))  # for weights: none, where it is drawn; all seeds share it
    pretrained = DeepLabV3Plus(2, config.model).to(backend.device).eval()
    stores = ingest(config.data, progress, dataset, backend.device.type == "cuda")
    val = stores.val if stores.val is not None and stores.val.masks is not None else None
    sizes = measure(config, backend, pretrained, len(stores.train.names), len(val.names) if val else 0)
    placement = place(config, sizes, backend.budget_bytes, workers is not None)

    def frozen(frames: Frames, cached: bool, stage: str) -> Features | None:
        if not config.model.freeze_backbone:
            return None
        return Features.of(frames, pretrained, backend, cached, stage, progress)

    frames = frames_of(stores.train.images, config, backend, placement.images)
    shards = None
    if workers is not None:
        shards = Shards.of(workers, config, backend, stores.train.path, frames, batch_size(frames))
        stack.callback(shards.close)
        shards.open(pretrained, progress)
    features = frozen(frames, placement.cache, "features")
    if shards is not None and features is not None:
        features = replace(features, memo={})
    val_frames = val_masks = val_features = None
    if val is not None and val.masks is not None:
        val_frames = frames_of(val.images, config, backend, placement.val_images)
        val_features = frozen(val_frames, placement.val_cache, "val features")
        val_masks = HeldFrames.of(val.masks, config.data.tiling(), config.data.context, backend.device)
    return Experiment(config, backend, stores, strategy, placement, frames, pretrained, features, val_features,
                      val_frames, val_masks, progress, shards)


def check_feasible(config: Config, dataset: Dataset) -> None:
    """Raise `InputError` for a run that asks for more patches, or for other labels, than the data set has."""
    _check_budget(config, len(dataset.train))
    _check_oracle(config, dataset)


def _check_budget(config: Config, n_images: int) -> None:
    query, cells = config.query, config.data.tiling().cells
    if query.n_initial_images > n_images:
        raise InputError(f"query.n_initial_images is {query.n_initial_images}, and the pool has {n_images} images.")
    initial = (query.n_initial_images or n_images) * cells
    wanted = initial + query.rounds * query.n_query
    if wanted > n_images * cells:
        raise InputError(
            f"The run asks for {initial} initial patches and {query.rounds} rounds of {query.n_query}, {wanted} in "
            f"all, but the pool has {n_images} images x {cells} = {n_images * cells} patches. Lower query.rounds, "
            "query.n_query or query.n_initial_images, or use a finer data.grid.")


def _check_oracle(config: Config, dataset: Dataset) -> None:
    people = config.query.oracle == "people"
    if people and len(config.seeds) > 1:
        raise InputError(f"query.oracle is 'people' and seeds are {config.seeds}: people label one run. Give one seed.")
    if not people and dataset.train[0].mask is None:
        raise InputError("The pool has no masks to simulate an oracle with. Give data.masks, or use query.oracle: "
                         "people.")
