"""What a worker holds of a sharded pool, and the tasks that ask it. See `shards`.

It can all be made again from its `Job`: whatever is lost with a worker is made again by another.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load as from_safetensors
from torch import Tensor

from ..config import Config
from ..data.fit import extents, partly_filled
from ..data.frames import Frames
from ..data.store import map_images, read_manifest
from ..machine.backend import Backend, resolve
from ..network.build import build
from ..network.features import Features, frames_of
from ..network.interface import Network
from ..planning.sizing import measure, place
from ..stages.predict import PLAIN, How, Predictions, predict
from ..stages.ranking import top
from ..timing import Progress

Shard = tuple[int, int]
"""Images ``first … last - 1`` of the pool."""
KEPT = 2
"""Passes whose results a worker keeps: a round's, and the one under the pretrained backbone that Φ is fitted on."""


@dataclass(frozen=True)
class Job:
    """What a worker needs to hold a part of a run's pool, as it is sent there."""

    run: str
    config: str
    """YAML."""
    store: str
    batch: int
    """Frames per forward pass, as in one process: see `Features.scan`."""


@dataclass(frozen=True)
class Pass:
    """One pass of a network over the pool."""

    number: int
    classes: int
    needs: frozenset[str]
    how: How = PLAIN


@dataclass
class Held:
    """A shard in the worker that holds it."""

    frames: Frames
    features: Features
    filled: Tensor | None = None
    """See `predict`."""
    vectors: Tensor | None = None
    """A frozen backbone's feature vectors: constants."""
    seen: dict[int, Predictions] = field(default_factory=dict)
    """By the number of the pass; the `KEPT` last."""


class Holder:
    """What a worker holds of a run."""

    def __init__(self, job: Job) -> None:
        self.job, self.config = job, Config.load(yaml.safe_load(job.config))
        self.backend: Backend = resolve(self.config, embeds=False)
        self.shards: dict[Shard, Held] = {}
        self._networks: dict[int, list[Network]] = {}
        """By the number of classes: one, and the others of its ensemble."""

    def look(self, shard: Shard, pass_: Pass, weights: bytes, progress: Progress) -> Predictions:
        """A pass over a shard, once."""
        held = self.shards.get(shard)
        if held is None or pass_.number not in held.seen:
            model, *members = self._loaded(pass_.classes, weights)
            held = held or self._hold(shard, model, progress)
            scan = functools.partial(predict, model, held.features, score=self.config.query.score, backend=self.backend,
                                     progress=progress, filled=held.filled, how=pass_.how, members=members)

            def vectors() -> Tensor:
                if held.vectors is None:
                    held.vectors = scan(needs={"features"}).features
                assert held.vectors is not None
                return held.vectors

            seen = scan(needs=pass_.needs, vectors=vectors if self.config.model.freeze_backbone else None)
            held.seen = dict([*held.seen.items(), (pass_.number, seen)][-KEPT:])
        return held.seen[pass_.number]

    def _loaded(self, classes: int, weights: bytes) -> list[Network]:
        """The networks of `shards.to_bytes`."""
        states, networks = states_of(from_safetensors(weights)), self._networks.setdefault(classes, [])
        while len(networks) < len(states):
            networks.append(build(classes, self.config.model.without_weights).to(self.backend.device).eval())
        for network, state in zip(networks, states, strict=False):
            network.load_state_dict(state)
        return networks[: len(states)]

    def _hold(self, shard: Shard, model: Network, progress: Progress) -> Held:
        config, backend = self.config, self.backend
        images = map_images(Path(self.job.store), *shard, config.data.image_size)
        where = place(config, measure(config, backend, model, len(images), 0), backend.budget_bytes)
        frames = frames_of(images, config, backend, where.images)
        features = Features.of(frames, model, backend, where.cache, "features", progress, self.job.batch)
        self.shards[shard] = Held(frames, features, self._filled(shard))
        return self.shards[shard]

    def _filled(self, shard: Shard) -> Tensor | None:
        """The manifest, which names every image, is read only where images may not fill their frames."""
        data = self.config.data
        if data.resize != "fit" and data.tile is None:
            return None
        sources = read_manifest(Path(self.job.store)).get("sources")
        found = None if sources is None else partly_filled(extents(sources[slice(*shard)], data), data.tiling())
        return None if found is None else torch.from_numpy(found).to(self.backend.device)


def member_key(i: int, name: str) -> str:
    """Of an entry of another member's state, among those of the first network's."""
    return f"member {i} {name}"


def states_of(held: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The first network's state, and those of the others: what is not sent of these is the first one's."""
    members: dict[int, dict[str, Tensor]] = {}
    for key in [key for key in held if key.startswith("member ")]:
        _, i, name = key.split(" ", 2)
        members.setdefault(int(i), {})[name] = held.pop(key)
    return [held, *({**held, **members[i]} for i in sorted(members))]


_holder: Holder | None = None
"""In a worker: of one run at a time."""


def answer(home: bool, mine: frozenset[Shard], shard: Shard, job: Job, pass_: Pass,
           question: Callable[[Predictions], Any], weights: bytes, progress: Progress) -> Any:
    """The task of a worker: make the shard where it is not held, look at it once per pass, and answer about it.

    ``home`` says that the shard is to stay with this worker; ``mine`` are all shards that are to stay with it.
    """
    global _holder
    if _holder is None or _holder.job.run != job.run:
        _holder = Holder(job)
    for other in [other for other in _holder.shards if home and other not in mine]:
        del _holder.shards[other]
    return question(_holder.look(shard, pass_, weights, progress))


def forget(run: str) -> None:
    """Drop what this worker holds of a run."""
    global _holder
    if _holder is not None and _holder.job.run == run:
        _holder = None


def nothing(*args: Any) -> None:
    """An empty task: its time is what scheduling costs."""


def ready(seen: Predictions) -> None:
    """Asks nothing; afterwards the shard is held."""


def ranked(labelled: np.ndarray, n: int, seen: Predictions) -> tuple[np.ndarray, np.ndarray, int]:
    """Ids int64 and scores float32 of the shard's n most uncertain patches, and the first patch that is not finite.

    Ids count within the shard; ``labelled`` are those that may not be asked for.
    """
    if seen.score is None:
        known = (seen.features, seen.probabilities, *seen.measured.values())
        device = next(values.device for values in known if values is not None)
        return np.empty(0, np.int64), np.empty(0, np.float32), int(seen.bad(device))
    score = seen.score
    free = torch.ones(len(score), dtype=torch.bool, device=score.device)
    free[torch.from_numpy(labelled).to(score.device)] = False
    ids = top(score, free, len(score) - len(labelled), n)
    return ids.cpu().numpy(), score[ids].cpu().numpy(), int(seen.bad(score.device))


def rows(name: str, ids: np.ndarray | None, seen: Predictions) -> np.ndarray:
    """Rows of a field, of all patches of the shard without ``ids``."""
    values = seen.whole(name)
    return (values if ids is None else values[torch.from_numpy(ids).to(values.device)]).cpu().numpy()
