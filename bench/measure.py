"""Timing of alternatives in one process: interleaved, so that a busy or throttling machine slows all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of each round of one alternative."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        return min(self.seconds)

    def ratio(self, other: "Timing") -> float:
        """How many times faster than `other`: the median over the rounds, of which each ran both."""
        return statistics.median(o / s for o, s in zip(other.seconds, self.seconds, strict=True))


def interleaved(
    alternatives: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 1,
    synchronize: Callable[[], None] | None = None,
) -> dict[str, Timing]:
    """Time every alternative once per round, after warm-up rounds that are not counted.

    The order alternates, so that none always runs after the same neighbour. `synchronize` waits for asynchronous work
    (``torch.cuda.synchronize``).
    """
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    names = list(alternatives)
    for index in range(warmup + rounds):
        for name in names if index % 2 else reversed(names):
            if synchronize:
                synchronize()
            start = time.perf_counter()
            with torch.inference_mode():
                alternatives[name]()
            if synchronize:
                synchronize()
            if index >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}
