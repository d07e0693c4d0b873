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

IMPORTED = ["distributed", "meal_gpu.launch", "meal_gpu.sharding.workers", "meal_gpu.sweep.jobs"]
"""What a worker finds imported. What is not installed is left out."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
"""Read by libraries when they are imported."""
_begun: int | None = None
"""Threads of each process that is forked; None: there is nothing to fork yet."""


def method(threads: int) -> str:
    """How workers of so many threads begin, in `multiprocessing`'s words. The first call begins what is forked.

    In a program that starts clusters of several kinds, those with another number of threads than the first are spawned.
    """
    global _begun
    if _begun is None and sys.platform == "linux":
        _begin(threads)
        _begun = threads
    return "forkserver" if threads == _begun else "spawn"


def _begin(threads: int) -> None:
    # It would look into the current directory before everything else, whatever lies there.
    path = {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with environment_kept(*THREADS, *path):
        os.environ.update({**dict.fromkeys(THREADS, str(threads)), **path})
        forkserver.set_forkserver_preload(IMPORTED)
        forkserver.ensure_running()


@contextmanager
def environment_kept(*names: str) -> Iterator[None]:
    """What is set of these variables inside is as it was afterwards."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in names:
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)
