"""Worker processes of this machine: forked from one that has imported everything and done nothing else.

Importing takes ten seconds of a core, in each worker, and again in each that takes a dead one's place. Forked, it is
done once, and the code is in memory once. PyTorch's notes on processes name this way for CUDA too, as long as the
process that is forked has not touched the device.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver

from ..machine.limits import usable_cores

IMPORTED = ["distributed", "meal_gpu.launch", "meal_gpu.sharding.workers", "meal_gpu.sweep.jobs"]
"""What a worker finds imported. What is not installed is left out."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
"""Read by libraries when they are imported."""
_begun: int | None = None
"""Threads of each process that is forked; None: there is nothing to fork yet."""


def share(workers: int) -> int:
    """Threads of each of so many workers of this machine, for `begin` before PyTorch is there to be asked."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return max((int(given) if given.isdigit() else usable_cores()) // workers, 1)


def begin(threads: int) -> None:
    """Begin the process to fork, which imports while this one goes on; once. For workers of so many threads."""
    global _begun
    if _begun is not None or sys.platform != "linux":
        return
    _begun = threads
    # It would look into the current directory before everything else, whatever lies there.
    path = {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with _environment({**dict.fromkeys(THREADS, str(threads)), **path}):
        forkserver.set_forkserver_preload(IMPORTED)
        forkserver.ensure_running()


def method(threads: int) -> str:
    """How workers of so many threads begin, in `multiprocessing`'s words.

    In a program that starts clusters of several kinds, those with another number of threads than the first are spawned.
    """
    begin(threads)
    return "forkserver" if threads == _begun else "spawn"


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]
