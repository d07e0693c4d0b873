"""What numba compiles, begun by another process before this one has imported anything that is large."""

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

from .limits import usable_cores

_log = logging.getLogger("meal_gpu")
PARTS = ("runs", "normalise", "confusion", "entropy", "umap")
"""Names in `warm_up.PARTS` that a run on the CPU with a frozen backbone needs, in the order of need."""


@contextlib.contextmanager
def compiling_ahead() -> Iterator[None]:
    """For a short run: `warm_up` begins only when PyTorch is imported and the data are known, ten seconds later.

    Where all is compiled already, it ends when it has seen that.
    """
    process = started(PARTS, subprocess.DEVNULL, {})  # without it `warm_up` does all of it
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.communicate()


def started(names: Sequence[str], said: int, environment: dict[str, str]) -> "subprocess.Popen[bytes] | None":
    """A process that compiles these, says each name when it is done, and ends with whoever holds its input.

    None with a single core, and where no process can be had. ``said``: its output, as `subprocess` has it.
    """
    if usable_cores() < 2 or not sys.executable:
        return None
    begin = "import os, sys; sys.path[:] = sys.argv.pop(1).split(os.pathsep); from meal_gpu.machine import warm_up"
    command = [sys.executable, "-c", f"{begin}; warm_up.compile_parts(sys.argv[1:])", os.pathsep.join(sys.path), *names]
    try:
        return subprocess.Popen(command, env={**os.environ, **environment}, stdin=subprocess.PIPE, stdout=said,
                                stderr=subprocess.DEVNULL)
    except OSError as error:  # no more processes, no memory for one
        _log.debug("not compiled in a process of its own: %s", error)
        return None
