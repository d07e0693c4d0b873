"""Timing in one process: alternatives interleaved, beside a calibration workload that says how fast the machine was.

A shared or throttling machine slows whatever runs at that moment. So alternatives take turns; from each sample the time
is taken off that its threads stood ready to run while other processes had the processors; and what is left is divided
by that of two small fixed workloads beside it: one of the processors, `Timing.calibrated`, and one of the memory,
`Timing.by_memory`, since neighbours that none of this machine's counters show may take a third of the memory's rate for
a minute and leave the processors alone. `compare` can trust these values where the machine was slower as a whole. What
a stage itself waits for, a disk or a sleep, stays in them.
"""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

T = TypeVar("T")
CPU = torch.device("cpu")
_WINDOW = 2**20
"""float32 values that one call of a calibration copies: 4 MiB."""
_LEAST_SAMPLE = 5e-3
"""Seconds: shorter calls are repeated within a sample until they take so long, or the clock would be what is seen."""


@dataclass(frozen=True)
class Timing:
    """Seconds per call, one entry per sample; equal indices of alternatives were taken side by side."""

    seconds: tuple[float, ...]
    calibrated: tuple[float, ...] = ()
    """The samples, without the time that other processes took, over the processors' calibration around them."""

    by_memory: tuple[float, ...] = ()
    """Likewise over the memory's."""

    lost: float = 0.0
    """Share of the time that other processes took, median over the samples."""

    @classmethod
    def of(cls, samples: Sequence["Sample"]) -> "Timing":
        paced = [(sample.undisturbed, sample.pace) for sample in samples if sample.pace]
        return cls(tuple(sample.seconds for sample in samples),
                   tuple(seconds / pace.processors for seconds, pace in paced),
                   tuple(seconds / pace.memory for seconds, pace in paced),
                   quantile([1 - sample.undisturbed / sample.seconds for sample in samples], 0.5))

    def times(self, n: int) -> "Timing":
        """That of ``n`` calls in a row."""
        seconds, calibrated, by_memory = (
            tuple(n * value for value in unit) for unit in (self.seconds, self.calibrated, self.by_memory))
        return Timing(seconds, calibrated, by_memory, self.lost)

    @property
    def median(self) -> float:
        return quantile(self.seconds, 0.5)

    @property
    def best(self) -> float:
        return min(self.seconds)

    def ratio(self, other: "Timing") -> float:
        """How many times faster than `other`: the median over the rounds, of which each ran both."""
        return quantile(self.ratios(other), 0.5)

    def ratios(self, other: "Timing") -> tuple[float, ...]:
        return tuple(o / s for o, s in zip(other.seconds, self.seconds, strict=True))


def quantile(values: Sequence[float], q: float) -> float:
    return float(np.quantile(values, q))


@dataclass(frozen=True)
class Effort:
    """How long to warm up and to measure one set of alternatives."""

    seconds: float = 3.0
    """Samples are taken for so long, within the bounds on rounds."""
    min_rounds: int = 5
    max_rounds: int = 50
    warmup_seconds: float = 0.5
    """Rounds that are not counted, for so long, and at least one: compilation and caches."""


class Timer:
    """Seconds that a call takes: CUDA events on a CUDA device, the monotonic clock on the CPU.

    The events stand before and after all that the call does, so that host time in it counts on both.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cuda = device.type == "cuda"

    def undisturbed(self, work: Callable[[], object], calls: int = 1) -> tuple[float, float]:
        """Seconds per call, and the same without the time that other processes took from this one's threads."""
        before = stood_ready()
        seconds = self(work, calls)
        after = stood_ready()
        # Threads wait for each other: what the most disturbed of them lost, the call lost at least.
        lost = max((after[thread] - before.get(thread, 0) for thread in after), default=0) / 1e9 / calls
        return seconds, max(seconds - lost, 0.1 * seconds)

    def __call__(self, work: Callable[[], object], calls: int = 1) -> float:
        if self.cuda:
            torch.cuda.synchronize()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            for _ in range(calls):
                work()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1e3 / calls
        begin = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - begin) / calls


def stood_ready() -> dict[str, int]:
    """Per thread of this process, nanoseconds that it was ready to run and had no processor; empty if not told."""
    found = {}
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, IndexError, ValueError):  # the thread has just ended
            found[file.parent.name] = int(file.read_text().split()[1])
    return found


@dataclass(frozen=True)
class Pace:
    """Seconds that the calibration's workloads take now."""

    processors: float
    memory: float


class Calibration:
    """Two fixed workloads: products in cache, a copy in the last one and Python; and a copy beyond the caches.

    They use as many threads as the stages do, so that what takes these away slows them too.
    """

    def __init__(self, device: torch.device) -> None:
        self.timer = Timer(device)
        self.a = torch.full((192, 192), 0.5, device=device)
        self.product = torch.empty_like(self.a)
        size = max(_WINDOW, last_level_cache(device) // 4)  # as much as the cache holds is read, and is written
        source, target = (torch.ones(size, device=device).split(_WINDOW) for _ in range(2))
        self.windows = list(zip(source, target, strict=True))
        self.beyond = rotating(lambda window: window[1].copy_(window[0]), self.windows)
        self.quickest = {work: min(self.timer(work) for _ in range(20)) for work in (self._compute, self.beyond)}

    def _compute(self) -> None:
        for _ in range(8):
            torch.mm(self.a, self.a, out=self.product)
        source, target = self.windows[0]
        target.copy_(source)
        sum(range(5000))

    def pace(self, beside: float) -> Pace:
        """Now, each taken over a tenth of the time of the sample that it stands beside, 2 to 200 calls."""
        return Pace(*(self.timer.undisturbed(work, min(200, max(2, math.ceil(0.1 * beside / quickest))))[1]
                      for work, quickest in self.quickest.items()))


@dataclass(frozen=True)
class Sample:
    """Seconds per call, those without the time that other processes took, and how fast the machine was around it."""

    seconds: float
    undisturbed: float
    pace: Pace | None = None

    @classmethod
    def take(cls, work: Callable[[], object], timer: Timer, calls: int = 1, calibration: Calibration | None = None,
             beside: float = 1.0) -> "Sample":
        """Time ``calls`` of ``work``, which are expected to take ``beside`` seconds together."""
        if calibration is None:
            return cls(*timer.undisturbed(work, calls))
        before, took, after = calibration.pace(beside), timer.undisturbed(work, calls), calibration.pace(beside)
        return cls(*took, Pace((before.processors + after.processors) / 2, (before.memory + after.memory) / 2))


def interleaved(
    alternatives: Mapping[str, Callable[[], object]],
    effort: Effort = Effort(),
    device: torch.device = CPU,
    calibration: Calibration | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Timing]:
    """Time every alternative once per round, after rounds of warm-up that are not counted.

    The order alternates, so that none always runs after the same neighbour. Gradients are as the caller has set them.
    """
    timer, names = Timer(device), list(alternatives)
    begin, quickest = clock(), dict.fromkeys(names, math.inf)
    while True:
        for name in names:
            quickest[name] = min(quickest[name], timer(alternatives[name]))
        if clock() - begin >= effort.warmup_seconds:
            break
    for name in names:  # one call says little of a short one: the first compiles, and any may be interrupted
        for _ in range(10 if quickest[name] < 10 * _LEAST_SAMPLE else 0):
            quickest[name] = min(quickest[name], timer(alternatives[name]))
    calls = {name: max(1, math.ceil(_LEAST_SAMPLE / max(took, 1e-7))) for name, took in quickest.items()}
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    begin = clock()
    for index in range(effort.max_rounds):
        for name in names if index % 2 else reversed(names):
            samples[name].append(Sample.take(alternatives[name], timer, calls[name], calibration,
                                             calls[name] * quickest[name]))
        if index + 1 >= effort.min_rounds and clock() - begin >= effort.seconds:
            break
    return {name: Timing.of(samples[name]) for name in names}


def rotating(work: Callable[[T], object], inputs: Sequence[T]) -> Callable[[], object]:
    """A call on the next of several inputs. With `enough_copies` of them none is in a cache when its turn comes."""
    turn = cycle(inputs)
    return lambda: work(next(turn))


def enough_copies(n_bytes: int, device: torch.device) -> int:
    """How many inputs of n_bytes are twice the last-level cache, at most 64."""
    return max(1, min(64, math.ceil(2 * last_level_cache(device) / max(n_bytes, 1))))


def last_level_cache(device: torch.device) -> int:
    """Bytes of the largest cache that this process runs on; 32 MiB where the machine does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [file.read_text().strip() for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    return max((int(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units), default=32 * 2**20)
