"""An experiment made ready: data, device, networks and constants that all of its seeds and rounds share."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from ..config import Config
from ..data.census import check_classes, report
from ..data.datasets import Dataset, open_dataset
from ..data.frames import Frames, HeldFrames, resident
from ..data.ingest import Stores, ingest
from ..errors import InputError
from ..grid import Grid
from ..machine.backend import Backend, announce, resolve
from ..machine.card import set_threads
from ..machine.warm_up import warm_up
from ..network.build import build, needs_classes
from ..network.factory import find
from ..network.features import Features, batch_size, frames_of
from ..network.interface import Network
from ..network.own import OwnNetwork
from ..planning.sizing import Placement, measure, place
from ..randomness import derive, generator, of_member
from ..sharding.shards import Sharded, Shards, start
from ..stages.calibrate import held_out, temperature
from ..stages.pool import Pool
from ..stages.predict import PLAIN, How, Predictions, predict
from ..stages.statistics import OF_INPUTS
from ..strategies.select import Strategy
from ..strategies.wrapped import asked_for
from ..timing import Progress, no_progress
from .askable import Askable
from .beginning import check_start
from .embeddings import Embeddings
from .feasible import check_feasible
from .splits import Split, Validation

_log = logging.getLogger("meal_gpu")

OWN = ("seeds", "train", "query")
"""The sections of a config that an experiment's pool, network and features do not depend on; see `unlike`."""
NOT_OWN = ("query.kmeans", "query.scoring", "query.workers")
"""Keys of these sections that they do depend on."""


@dataclass
class Experiment:
    """See `prepare`, which makes one."""

    config: Config
    backend: Backend
    stores: Stores
    askable: Askable
    """Which of the pool's patches anybody is asked for."""
    strategy: Strategy
    placement: Placement
    pretrained: Network
    """A network with the pretrained backbone; its head is never used."""
    train: Split
    """The pool's images."""
    val: Validation | None
    progress: Progress
    shards: Shards | None = None
    """The pool on workers, where ``query.scoring`` is ``sharded``."""
    _exit: ExitStack = field(default_factory=ExitStack)

    def close(self) -> None:
        """Send the workers home, where there are any, and give the process its number of threads back."""
        self._exit.close()

    def like(self, config: Config, progress: Progress) -> "Experiment":
        """This one's data, network and features for another config; `unlike` must find nothing.

        Raises `InputError` where the other asks for more than there is.
        """
        assert not unlike(self.config, config)
        check_asked(self.pretrained, config)
        self.askable.check_budget(config)
        return replace(self, config=config, strategy=asked_for(config.query), progress=progress)

    @property
    def grid(self) -> Grid:
        return self.config.data.tiling()

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.stores.dataset.class_names

    def epochs(self, k: int) -> int:
        """Epochs of round k."""
        train = self.config.train
        return train.final_epochs if k == self.config.query.rounds else train.epochs

    def new_pool(self) -> Pool:
        """The pool with nothing labelled."""
        return Pool(self.train.frames, self.train.names, self.askable.blank)

    @cached_property
    def _filled(self) -> Tensor | None:
        found = self.askable.filled
        return None if found is None else found.to(self.backend.device)

    def new_model(self, seed: int, round_: int, member: int = 0) -> Network:
        """A network as training starts from it: pretrained backbone, random head; a function of seed and round, and of
        which ``member`` of an ensemble it is.

        Leaves PyTorch's global generator, which dropout draws from, in a state that is a function of these as well.
        """
        torch.manual_seed(derive(seed, round_, of_member("train", member)))
        model = build(len(self.class_names), self.config.model.without_weights)
        model.begin_as(self.pretrained)
        return model.to(self.backend.device)

    def look(self, model: Network, needs: set[str], free: Tensor, how: How = PLAIN,
             members: Sequence[Network] = ()) -> Predictions | Sharded:
        """One pass over the pool, by this process or by the workers that hold it (paper, Step 1).

        ``needs`` and ``members`` as in `predict`; ``free`` bool ``[n_patches]``: what may be asked for. A frozen
        backbone's vectors are constants, those of `embeddings`.
        """
        query = self.config.query
        if self.shards is not None and needs:
            return self.shards.look(model, needs, free, query.n_informative, self.progress, how, members)
        vectors = (lambda: self.embeddings.vectors) if self.config.model.freeze_backbone else None
        return predict(model, self.train.features(model), needs, query.score, self.backend, self.progress, vectors,
                       self._filled, how, members)

    def held_out(self, pool: Pool, seed: int, k: int) -> Tensor | None:
        """Which labelled patches round k does not train on: bool ``[n]`` beside ``pool.labelled_ids``; None where the
        strategy needs no temperature."""
        query = self.config.query
        if "temperature" not in self.strategy.needs or k >= query.rounds:
            return None
        return held_out(pool.labelled_ids, self.grid.cells, query.hold_out, generator(seed, k, "held out"))

    def temperature(self, pool: Pool, model: Network, seed: int, k: int) -> float:
        """Of a network that was trained without these."""
        held = self.held_out(pool, seed, k)
        if held is None or not bool(held.any()):
            return 1.0
        return temperature(model, self.train.features(model), pool.labelled_ids[held], pool.labels[held], self.backend)

    @cached_property
    def embeddings(self) -> Embeddings:
        return Embeddings(self.config, self.backend, len(self.train.names) * self.grid.cells, self._look_pretrained,
                          self.progress)

    def _look_pretrained(self) -> Predictions | Sharded:
        """One pass over the pool for the vectors of Step 0."""
        if self.shards is not None:
            return self.shards.look(self.pretrained, {"features"}, torch.ones(0, dtype=torch.bool), 0, self.progress)
        return predict(self.pretrained, self.train.features(self.pretrained), {"features"}, self.config.query.score,
                       self.backend, lambda _, done, total: self.progress("features", done, total))


def check_asked(network: Network, config: Config) -> None:
    """Raise `InputError` where somebody's network lacks what the query asks of it."""
    if not isinstance(network, OwnNetwork):
        return
    query = config.query
    start, needs = check_start(query), asked_for(query).needs
    inside = needs & (OF_INPUTS | {"bald"})
    if inside:
        raise InputError(f"query.strategy '{query.strategy}' looks inside the network ({', '.join(sorted(inside))}), "
                         "which takes the one that ships. Use a strategy that looks at logits and features.")
    if needs & {"features", "embedding"}:
        network.check_features(f"query.strategy '{query.strategy}' looks at features")
    if start is not None and "features" in start.needs:
        network.check_features(f"query.start '{query.start}' looks at features")
    if query.min_distance:
        network.check_features(f"query.min_distance {query.min_distance:g} compares features")


def unlike(config: Config, other: Config) -> list[str]:
    """The keys in which runs differ that therefore cannot share one experiment, by `Experiment.like`."""
    mine, its = config.flat(), other.flat()
    not_own = (*NOT_OWN, "query.score") if config.query.scoring == "sharded" else NOT_OWN  # workers are told it once
    return [key for key in mine if mine[key] != its[key] and (key.partition(".")[0] not in OWN or key in not_own)]


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
    stack.callback(set_threads(config.threads))
    strategy = asked_for(config.query)
    backend = resolve(config, strategy.embeds)
    announce(backend, config)
    dataset = dataset or open_dataset(config.data)
    check_feasible(config, dataset)
    embeds = backend.umap == "umap-learn" and strategy.embeds
    # While images are read and networks are trained.
    warm_up(backend.device, "score" in strategy.needs, embeds, placing=not config.model.freeze_backbone)
    workers = None
    if config.query.scoring == "sharded":
        workers = start(config)
        stack.callback(workers.close)
    torch.manual_seed(derive(0, 0, "backbone"))  # for weights: none, where it is drawn; all seeds share it
    classes = len(dataset.class_names) if needs_classes(config.model) else 2
    pretrained = build(classes, config.model).to(backend.device).eval()
    if isinstance(pretrained, OwnNetwork):
        frame = config.data.tiling().within(config.data.context)
        _log.info("%s", pretrained.check(frame.height, frame.width))
    check_asked(pretrained, config)
    if config.train.factory is not None:
        find("train.factory", config.train.factory, config.model.path)
    stores = ingest(config.data, progress, dataset, backend.device.type == "cuda")
    for line in report(config.data, stores):
        _log.info("%s", line)
    check_classes(config.data, stores)
    askable = Askable(config.data, stores)
    check_start(config.query)
    askable.check_budget(config)
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
        shards = Shards.of(workers, config, backend, stores.train.path, frames, batch_size(frames, backend))
        stack.callback(shards.close)
        shards.open(pretrained, progress)
    features = frozen(frames, placement.cache, "features")
    if shards is not None and features is not None:
        features = replace(features, memo={})
    train, validation = Split(stores.train.names, frames, features, backend), None
    if val is not None and val.masks is not None:
        frames = frames_of(val.images, config, backend, placement.val_images)
        held = resident(val.masks, backend.device, "mapped") if placement.val_masks == "resident" else val.masks
        masks = HeldFrames.of(held, config.data.tiling(), config.data.context, backend.device)
        validation = Validation(val.names, frames, frozen(frames, placement.val_cache, "val features"), backend, masks)
    return Experiment(config, backend, stores, askable, strategy, placement, pretrained, train, validation, progress,
                      shards)
