"""``meal-gpu bench scale --workers 1,2``: scoring a pool on real workers, and a simulated scale-out to 256 of them.

Measured: rounds on processes of this machine, what they send (serialised sizes), and the scheduler's cost of a task.
Simulated: 10 million patches on up to 256 workers. Ranking a shard and merging are the real code on synthetic scores,
done here one shard after another; a shard's forward passes take the recorded time per patch, a task the recorded time
of the scheduler, and bytes the time that a stated bandwidth gives them.
"""

import math
import pickle
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from meal_gpu.config import Config
from meal_gpu.data.frames import HeldFrames
from meal_gpu.data.store import write_images
from meal_gpu.grid import Grid
from meal_gpu.machine.backend import resolve
from meal_gpu.network.features import batch_size
from meal_gpu.network.model import DeepLabV3Plus
from meal_gpu.planning.roofline import Roofs
from meal_gpu.sharding.cluster import local
from meal_gpu.sharding.held_shard import nothing, ranked
from meal_gpu.sharding.shards import Shards, even, to_bytes
from meal_gpu.sharding.workers import Workers
from meal_gpu.stages.predict import Predictions
from meal_gpu.stages.ranking import merge, top
from meal_gpu.timing import no_progress

from ..result import Chart, Curve, Result, Stage, Times, WrongResultError
from ..timing.measure import quantile, stood_ready
from ..timing.roofs import card

IMAGE = (128, 176)
"""As in `scale`: 16 patches of 32 × 44."""
SIMULATED = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PATCHES = 10_000_000
BANDWIDTH = 1.25e9
"""Bytes per second of the network in the simulation: 10 Gbit/s."""
FASTER = 300
"""The second simulated machine scores so many times faster than a core here. An assumption that nobody has measured."""
TASKS = 64
"""Over so many the scheduler's cost is averaged."""


@dataclass(frozen=True)
class Measured:
    """Rounds on n workers."""

    n: int
    seconds: tuple[float, ...]
    """From the network on this side to the merged candidates."""
    undisturbed: tuple[float, ...]
    """Without the time in which the worker that lost most of it stood ready and other processes had the processors."""
    broadcast: tuple[float, ...]
    """Of these, for the weights to be everywhere."""
    task: float
    """Seconds per question that nothing has to be computed for."""


@dataclass(frozen=True)
class Simulated:
    """A round on n workers that are not there; seconds and bytes."""

    n: int
    scoring: float
    network: float
    scheduler: float
    merging: float
    bytes: int

    @property
    def overhead(self) -> float:
        """What grows with the workers."""
        return self.network + self.scheduler + self.merging


def run(config: Config, workers: Sequence[int], rounds: int = 5, n_images: int = 128, patches: int = PATCHES,
        simulated: Sequence[int] = SIMULATED, tell: Callable[[str], None] = lambda text: None) -> Result:
    """Measure on each number of real workers, each a process with one thread; simulate the others."""
    config = (config.model_copy(update={"device": "cpu"})
              .revised("data", context="image", image_size=IMAGE)
              .revised("model", weights="none", cache_features="never")
              .revised("query", scoring="sharded", workers=None))
    backend, grid = resolve(config), Grid(*config.data.grid, *IMAGE)
    torch.manual_seed(0)
    model = DeepLabV3Plus(19, config.model).eval()
    items, n_best = n_images * grid.cells, config.query.n_informative
    images = np.random.default_rng(0).integers(0, 256, (n_images, *IMAGE, 3), np.uint8)
    found: list[Measured] = []
    first: Tensor | None = None
    with tempfile.TemporaryDirectory(prefix="meal-gpu-noise-") as folder:
        write_images(Path(folder), images)
        frames = HeldFrames.of(images, grid, "image", backend.device)
        for n in workers:
            tell(f"{n} workers")
            held = Workers(local(n, 1), share_memory=True)
            try:
                shards = Shards.of(held, config, backend, Path(folder), frames, batch_size(frames, backend))
                one, best = _measure(shards, model, items, n_best, rounds)
            finally:
                held.close()
            if first is not None and not torch.equal(best, first):
                raise WrongResultError(f"{n} workers chose other candidates than {workers[0]}")
            first = best
            found.append(one)
    weights = len(to_bytes(model))
    answer = len(pickle.dumps(ranked(np.empty(0, np.int64), n_best, Predictions(torch.rand(n_best)))))
    per_patch = quantile(found[0].undisturbed, 0.5) * found[0].n / items
    task = max(one.task for one in found)
    tell("simulated workers")
    slow = [_simulate(n, patches, n_best, per_patch, task, weights, answer) for n in simulated]
    fast = [Simulated(s.n, s.scoring / FASTER, s.network, s.scheduler, s.merging, s.bytes) for s in slow]
    stages = tuple(Stage(name=f"score, {one.n} worker{'s' * (one.n > 1)}", items=items, unit="patches",
                         times=_times(one), note=_note(one, weights, answer)) for one in found)
    inputs = (f"{patches:,} patches, {per_patch * 1e3:.3g} ms per patch and worker, {task * 1e3:.3g} ms per task "
              f"(both measured here), {BANDWIDTH * 8 / 1e9:g} Gbit/s (assumed; weights leave over one link), "
              f"{weights / 1e6:.3g} MB of weights, {n_best} candidates")
    return Result(
        part="scale", subject=f"{config.model.backbone}, {items:,} patches of noise on "
        f"{', '.join(map(str, workers))} workers of one thread",
        settings={"workers": list(workers), "n_images": n_images, "n_informative": n_best, "simulated": list(simulated),
                  "simulated_patches": patches, "bandwidth_bytes_per_second": BANDWIDTH, "faster": FASTER,
                  "backbone": config.model.backbone, "precision": str(backend.dtype), "rounds": rounds},
        machine=card(), device="cpu", roofs=Roofs(1, backend.precision), stages=stages,
        charts=(_chart("workers as fast as a core here", slow, inputs),
                _chart(f"workers {FASTER} times as fast (assumed)", fast, inputs), _bytes(slow, inputs)),
        notes=(f"SIMULATED: {inputs}.", _crossing("as fast as a core here", slow),
               _crossing(f"{FASTER} times as fast (assumed)", fast)))


def _measure(shards: Shards, model: DeepLabV3Plus, items: int, n_best: int, rounds: int) -> tuple[Measured, Tensor]:
    shards.open(model)
    free = torch.ones(items, dtype=torch.bool)
    seconds: list[float] = []
    undisturbed: list[float] = []
    broadcast: list[float] = []
    for i in range(rounds + 1):
        begin = time.perf_counter()
        shards.workers.broadcast(to_bytes(model)).future()
        sent = time.perf_counter() - begin
        ready = shards.workers.everywhere(stood_ready)
        begin = time.perf_counter()
        best = shards.look(model, {"score"}, free, n_best).best(n_best)
        took = time.perf_counter() - begin
        lost = max((after - ready.get(address, {}).get(thread, 0)
                    for address, threads in shards.workers.everywhere(stood_ready).items()
                    for thread, after in threads.items()), default=0) / 1e9
        if i:  # the first warms up
            broadcast.append(sent)
            seconds.append(took)
            undisturbed.append(max(took - lost, 0.1 * took))
    shared = shards.workers.broadcast(b"")
    tasks = []
    for _ in range(3):
        begin = time.perf_counter()
        shards.workers.ask(nothing, [((-i, 0), ()) for i in range(1, TASKS + 1)], shared, no_progress, "", 0)
        tasks.append((time.perf_counter() - begin) / TASKS)
    return Measured(len(shards.workers), tuple(seconds), tuple(undisturbed), tuple(broadcast), min(tasks)), best


def _simulate(n: int, patches: int, n_best: int, per_patch: float, task: float, weights: int, answer: int) -> Simulated:
    """A round on n workers: the slowest shard's time, and what this side does for all of them."""
    draw = torch.Generator().manual_seed(0)
    score = torch.rand(patches, generator=draw)
    labelled = torch.randperm(patches, generator=draw)[:1000].sort().values
    free = torch.ones(patches, dtype=torch.bool)
    free[labelled] = False
    ranges, none = even(patches, n), np.empty(0, np.int64)
    firsts = np.array([first for first, _ in ranges])
    slowest, answers = 0.0, []
    for first, last in ranges:
        known = labelled[(labelled >= first) & (labelled < last)].numpy() - first
        begin = time.perf_counter()
        answers.append(ranked(known if len(known) else none, n_best, Predictions(score[first:last])))
        slowest = max(slowest, time.perf_counter() - begin)
    begin = time.perf_counter()
    taken = (~free).nonzero().squeeze(1).numpy()
    np.split(taken, np.searchsorted(taken, firsts[1:]))
    ids = torch.from_numpy(np.concatenate([first + found[0] for first, found in zip(firsts, answers, strict=True)]))
    scores = torch.from_numpy(np.concatenate([found[1] for found in answers]))
    best = ids[merge(ids, scores, n_best)]
    merging = time.perf_counter() - begin
    if not torch.equal(best, top(score, free, patches - 1000, n_best)):
        raise WrongResultError(f"{n} simulated workers chose other candidates than one process")
    moved = n * (weights + answer)
    return Simulated(n, per_patch * math.ceil(patches / n) + slowest, moved / BANDWIDTH, n * task, merging, moved)


def _times(one: Measured) -> Times:
    return Times(seconds=one.seconds, lost=quantile([1 - b / a for a, b in zip(one.seconds, one.undisturbed,
                                                                              strict=True)], 0.5))


def _note(one: Measured, weights: int, answer: int) -> str:
    return (f"{quantile(one.undisturbed, 0.5) * 1e3:,.0f} ms without what other processes took; weights to all workers "
            f"{quantile(one.broadcast, 0.5) * 1e3:.3g} ms; {one.n} x {weights:,} bytes there, {one.n} x {answer:,} "
            f"back; {one.task * 1e3:.3g} ms per task of the scheduler")


def _chart(title: str, rounds: Sequence[Simulated], inputs: str) -> Chart:
    xs = tuple(float(one.n) for one in rounds)
    curves = {"round": [one.scoring + one.overhead for one in rounds], "scoring": [one.scoring for one in rounds],
              "network": [one.network for one in rounds], "scheduler": [one.scheduler for one in rounds],
              "merge": [one.merging for one in rounds]}
    return Chart(title=f"Simulated: {title}", x="workers", y="seconds", note=f"Simulated: {inputs}.",
                 curves=tuple(Curve(name=name, xs=xs, ys=tuple(ys)) for name, ys in curves.items()))


def _bytes(rounds: Sequence[Simulated], inputs: str) -> Chart:
    curve = Curve(name="bytes", xs=tuple(float(one.n) for one in rounds), ys=tuple(float(one.bytes) for one in rounds))
    return Chart(title="Simulated: bytes", x="workers", y="bytes sent in a round", note=f"Simulated: {inputs}.",
                 curves=(curve,))


def _crossing(which: str, rounds: Sequence[Simulated]) -> str:
    """Where more workers stop helping."""
    past = next((one for one in rounds if one.overhead >= one.scoring), None)
    if past is None:
        last = rounds[-1]
        return (f"SIMULATED, workers {which}: up to {last.n} workers scoring is what a round waits for "
                f"({last.scoring:,.1f} s, against {last.overhead:,.1f} s for network, scheduler and merge).")
    parts = {"network": past.network, "scheduler": past.scheduler, "merge": past.merging}
    most = max(parts, key=parts.__getitem__)
    return (f"SIMULATED, workers {which}: from {past.n} workers on network, scheduler and merge "
            f"({past.overhead:,.2f} s) take longer than scoring ({past.scoring:,.2f} s); most of it is the {most}.")
