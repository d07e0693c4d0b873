"""What this machine can do at best: its name, and the measured roofs that benchmarks divide by."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import get_num_threads, njit, prange, set_num_threads
from numba.core.config import NUMBA_NUM_THREADS

from .measure import interleaved

_CHUNK = 4096  # float32 per thread: 16 KiB, in the L1 cache
_REPEATS = 4096  # passes over a chunk
_STREAM_BYTES = 256 * 2**20  # far beyond the caches


@dataclass(frozen=True)
class Roof:
    """Measured limits of this machine with its current number of threads."""

    threads: int
    exps_per_second: float
    bytes_per_second: float

    def seconds(self, exps: int, bytes_moved: int) -> float:
        """The least time for that work: the slower of the two, as if they overlapped perfectly."""
        return max(exps / self.exps_per_second, bytes_moved / self.bytes_per_second)


@cache
def _exp_loop() -> Any:
    """Exponentials of a buffer in the L1 cache, again and again, on all threads: only the kernel's polynomial."""
    from meal_gpu.kernels.entropy_cpu import _exp

    @njit(fastmath={"contract"}, error_model="numpy")
    def one(x: Any, y: Any, repeats: int) -> None:
        for _ in range(repeats):
            for k in range(x.size):
                y[k] = _exp(x[k])

    @njit(parallel=True)
    def loop(x: Any, y: Any, repeats: int) -> None:
        for thread in prange(x.shape[0]):
            one(x[thread], y[thread], repeats)

    return loop


def measure_roof(rounds: int = 5) -> Roof:
    """Exponentials per second (the better of torch's and the kernel's, in cache), bytes per second (a large copy)."""
    threads = torch.get_num_threads()
    x = np.linspace(-20, 0, threads * _CHUNK, dtype=np.float32).reshape(threads, _CHUNK)
    y = np.empty_like(x)
    loop, before = _exp_loop(), get_num_threads()
    flat = torch.from_numpy(x.reshape(-1))
    wide = flat.repeat(16)  # 64 K per thread: enough for torch to use its threads, still in the L2 cache
    into = torch.empty_like(wide)
    source = torch.ones(_STREAM_BYTES // 4)
    target = torch.empty_like(source)
    torch_repeats = _REPEATS // 16

    def torch_exps() -> None:
        for _ in range(torch_repeats):
            torch.exp(wide, out=into)

    work: dict[str, Callable[[], object]] = {
        "kernel": lambda: loop(x, y, _REPEATS),
        "torch": torch_exps,
        "copy": lambda: target.copy_(source),
    }
    set_num_threads(min(threads, NUMBA_NUM_THREADS))
    try:
        timings = interleaved(work, rounds=rounds)
    finally:
        set_num_threads(before)
    exps = max(x.size * _REPEATS / timings["kernel"].best, wide.numel() * torch_repeats / timings["torch"].best)
    return Roof(threads, exps, 2 * _STREAM_BYTES / timings["copy"].best)
