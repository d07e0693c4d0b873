"""What numba compiles, begun by another process before this one has imported anything that is large."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

from .limits import usable_cores

PARTS = ("runs", "normalise", "confusion", "entropy", "umap")
"""Names in `warm_up.PARTS` that a run on the CPU with a frozen backbone needs, in the order of need."""


@contextlib.contextmanager
def compiling_ahead() -> Iterator[None]:
    """For a short run: `warm_up` begins only when PyTorch is imported and the data are known, ten seconds later.

    Where all is compiled already, it ends when it has seen that.
    """
    process = None
    if usable_cores() > 1 and sys.executable:
        with contextlib.suppress(OSError):  # then `warm_up` does it
            process = subprocess.Popen(command(PARTS), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.communicate()


def command(names: Sequence[str]) -> list[str]:
    """Of a process that compiles these, says each name when it is done, and ends with whoever holds its input."""
    begin = "import os, sys; sys.path[:] = sys.argv.pop(1).split(os.pathsep); from meal_gpu.machine import warm_up"
    return [sys.executable, "-c", f"{begin}; warm_up.compile_parts(sys.argv[1:])", os.pathsep.join(sys.path), *names]
