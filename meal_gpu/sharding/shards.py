"""A pool that has outgrown one process: ranges of its images, each held by a worker of Dask.

A worker opens its range of the store once and keeps what one process would keep of the whole pool: images or a frozen
backbone's features. In a round it gets the weights, scores its range, and sends the ids and scores of its N_I most
uncertain patches. Everything else of a pass stays with it, and is sent when somebody asks: feature vectors of the
candidates, or a whole field for a strategy that reads one.

What a patch scores does not depend on the frames that come with it (`Features.scan`), and ties go to the lower id
everywhere (`ranking`): so any ranges on any number of workers give one process's queries, byte for byte, where
workers use as many threads as it did.
"""

import functools
import itertools
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from ..config import Config
from ..data.frames import Frames
from ..errors import InputError
from ..machine.backend import Backend
from ..machine.card import processes
from ..network.interface import Network
from ..paths import expand
from ..stages.predict import PLAIN, How, Predictions
from ..stages.ranking import merge
from ..timing import Progress, no_progress
from . import cluster
from .held_shard import Job, Pass, Shard, answer, forget, member_key, ranked, ready, rows
from .workers import Broadcast, Workers


@dataclass
class Shards:
    """The pool on the workers."""

    workers: Workers
    job: Job
    ranges: Sequence[Shard]
    """They cover the pool without overlap, in the order of ids."""
    cells: int
    device: torch.device
    """Where results are delivered."""
    frames: int
    """Of the whole pool, for progress."""
    passes: int = 0

    @classmethod
    def of(cls, workers: Workers, config: Config, backend: Backend, store: Path, frames: Frames, batch: int,
           ranges: Sequence[Shard] | None = None) -> "Shards":
        """Cut a pool into equal ranges, one per worker, or into those given."""
        settled = config.revised("model", precision=backend.precision)  # not what another processor would choose
        if settled.model.factory is not None:  # where this process finds it
            settled = settled.revised("model", path=str(expand(settled.model.path or ".").absolute()))
        if workers.sharers > 1:
            settled = backend.shared(settled, workers.sharers)
        job = Job(uuid.uuid4().hex, settled.dump(), str(store.absolute()), batch)
        return cls(workers, job, ranges or even(frames.n_images, len(workers)), frames.images_grid.cells,
                   frames.device, frames.count)

    def open(self, model: Network, progress: Progress = no_progress) -> None:
        """Open all shards now and compute a frozen backbone's features: what is wrong shows before long work begins."""
        weights = self.workers.broadcast(to_bytes(model))
        self._ask(self._pass(model, set()), weights, range(len(self.ranges)), lambda shard: ready, progress, "features")

    def look(self, model: Network, needs: set[str], free: Tensor, n: int,
             progress: Progress = no_progress, how: How = PLAIN, members: Sequence[Network] = ()) -> "Sharded":
        """`predict` on the workers; of the patches that are ``free``, bool ``[n_patches]``, the n first come along."""
        weights = self.workers.broadcast(to_bytes(model, members))
        return Sharded(self, self._pass(model, needs, how), weights, free, n, progress)

    def close(self) -> None:
        self.workers.everywhere(forget, self.job.run)

    def _pass(self, model: Network, needs: set[str], how: How = PLAIN) -> Pass:
        self.passes += 1
        return Pass(self.passes, model.classes, frozenset(needs), how)

    def _ask(self, pass_: Pass, weights: Broadcast, which: Iterable[int],
             question: Callable[[int], Callable[[Predictions], Any]], progress: Progress, stage: str) -> list[Any]:
        """Put a question to some shards; answers in their order."""
        asked = [(self.ranges[i], (self.job, pass_, question(i))) for i in which]
        return self.workers.ask(answer, asked, weights, progress, stage, self.frames)


class Sharded:
    """What the workers found in a pass: the operations of `Predictions`, with the fields left where they are."""

    def __init__(self, shards: Shards, pass_: Pass, weights: Broadcast, free: Tensor, n: int,
                 progress: Progress) -> None:
        self.shards, self.pass_, self.weights, self.n, self.progress = shards, pass_, weights, n, progress
        self.firsts = np.array([first * shards.cells for first, _ in shards.ranges])
        """The first id of each shard."""
        labelled = (~free).nonzero().squeeze(1).cpu().numpy()
        self.labelled = np.split(labelled, np.searchsorted(labelled, self.firsts[1:]))
        self._rank(n)

    def _rank(self, n: int) -> None:
        answers = self._ask(range(len(self.firsts)), lambda i: functools.partial(
            ranked, self.labelled[i] - self.firsts[i], n))
        ids = torch.from_numpy(np.concatenate([first + found[0] for first, found in zip(self.firsts, answers,
                                                                                       strict=True)]))
        scores = torch.from_numpy(np.concatenate([found[1] for found in answers]))
        order = merge(ids, scores, n)
        self.n, self.ids, self.scores = n, ids[order], scores[order]
        self._bad = min((int(first) + found[2] for first, found in zip(self.firsts, answers, strict=True)
                         if found[2] >= 0), default=-1)

    def best(self, n: int) -> Tensor:
        """The n free patches of highest score, int64, highest first; all if there are fewer."""
        assert "score" in self.pass_.needs, "declare the need of 'score' in STRATEGIES"
        if n > self.n:
            self._rank(n)
        return self.ids[:n].to(self.shards.device)

    def bad(self, device: torch.device) -> Tensor:
        """See `Predictions.bad`."""
        return torch.full((), self._bad, device=device)

    def rows(self, name: str, ids: Tensor) -> Tensor:
        """A field's rows for patches ``ids``, from the shards that hold them."""
        wanted = ids.cpu().numpy() % (self.shards.ranges[-1][1] * self.shards.cells)  # -1 is the last, as in a tensor
        if name == "score":
            known = dict(zip(self.ids.tolist(), self.scores.tolist(), strict=True))
            if all(patch in known for patch in wanted.tolist()):
                return torch.tensor([known[patch] for patch in wanted.tolist()], device=self.shards.device)
        at = np.searchsorted(self.firsts, wanted, side="right") - 1
        which = np.unique(at)
        parts = self._ask(which.tolist(), lambda i: functools.partial(rows, name, wanted[at == i] - self.firsts[i]))
        found = np.empty((len(wanted), *parts[0].shape[1:]), parts[0].dtype)
        for i, part in zip(which, parts, strict=True):
            found[at == i] = part
        return torch.from_numpy(found).to(self.shards.device)

    @property
    def score(self) -> Callable[[], Tensor] | None:
        return self._fetched("score")

    @property
    def features(self) -> Callable[[], Tensor] | None:
        return self._fetched("features")

    @property
    def probabilities(self) -> Callable[[], Tensor] | None:
        return self._fetched("probabilities")

    def whole(self, name: str) -> Tensor:
        """A field of the whole pool, in the order of ids."""
        parts = self._ask(range(len(self.firsts)), lambda i: functools.partial(rows, name, None))
        return torch.from_numpy(np.concatenate(parts)).to(self.shards.device)

    def _fetched(self, name: str) -> Callable[[], Tensor] | None:
        return functools.partial(self.whole, name) if name in self.pass_.needs else None

    def _ask(self, which: Iterable[int], question: Callable[[int], Callable[[Predictions], Any]]) -> list[Any]:
        return self.shards._ask(self.pass_, self.weights, which, question, self.progress, "score")


def even(n_images: int, n: int) -> list[Shard]:
    """Cut images into n ranges of equal length, one more or less; fewer where there are not so many images."""
    cuts = [round(i * n_images / n) for i in range(n + 1)]
    return [(first, last) for first, last in itertools.pairwise(cuts) if last > first]


def to_bytes(model: Network, members: Sequence[Network] = ()) -> bytes:
    """The weights of a network, and of the others of its ensemble what a training may change."""
    state = dict(model.written())
    for i, member in enumerate(members):
        state |= {member_key(i, name): value for name, value in member.written() if not member.constant(name)}
    return to_safetensors(state)


def start(config: Config) -> Workers:
    """The workers that ``query.workers`` names. Raises `InputError` where there are none."""
    wanted = config.query.workers
    place = processes() if wanted is None else wanted
    return Workers(cluster.at(place), share_memory=isinstance(place, int), share_gpu=place == "cuda")


def check_local(config: Config, doing: str) -> None:
    """Raise `InputError` where a config shards its pool; ``doing`` says what needs it in one process."""
    if config.query.scoring == "sharded":
        raise InputError(f"query.scoring is 'sharded', and {doing}. Use query.scoring: local.")
