"""Where the time of a round goes, and how far a long stage has come."""

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

Progress = Callable[[str, int, int], None]
"""``progress(stage, done, total)``: called now and then by whatever takes long."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Report nothing."""


class StageClock:
    """Seconds per stage of one round.

    On CUDA a stage ends with a synchronisation, so that its work is charged to it and not to whoever waits next.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def peak_bytes(device: torch.device) -> dict[str, int]:
    """Highest memory use of this process so far, in bytes: resident on the host, allocated on the device."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB on Linux
    peaks = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        peaks["device"] = torch.cuda.max_memory_allocated(device)
    return peaks
