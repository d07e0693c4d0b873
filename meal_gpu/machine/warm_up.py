"""What numba compiles, compiled while other work goes on: a minute of a first run, seconds of every later one."""

import functools
import logging
import sys
import threading
from collections.abc import Callable

import torch

from ..kernels import confusion_cpu, cut_cpu, entropy_cpu

SWITCH_S = 2e-4
_log = logging.getLogger("meal_gpu")


def warm_up(device: torch.device, scores: bool, embeds: bool, placing: bool) -> threading.Thread:
    """Compile in a thread what a run on the device will call, or load it from numba's cache, in the order of need.

    ``scores``: the pool's uncertainty; ``embeds``: umap-learn is one of it; ``placing``: also for vectors that no fit
    has seen.
    """
    steps: list[Callable[[], object]] = []
    if device.type == "cpu":
        # First what is needed first: numba compiles one thing at a time, and whoever needs another waits for it.
        steps += [functools.partial(cut_cpu.kernel, part) for part in cut_cpu.READING]
        steps.append(confusion_cpu.kernel)
        if scores:
            steps.append(entropy_cpu.kernel)
    if embeds:
        from .umap_learn import compile_ahead

        steps.append(functools.partial(compile_ahead, placing))
    thread = threading.Thread(target=_take, args=(steps,), name="warm-up")
    thread.start()
    return thread


def _take(steps: list[Callable[[], object]]) -> None:
    # Compiling is Python from end to end, and whoever trains meanwhile asks for the interpreter after each operation:
    # by default it is handed over after 5 ms at the earliest, which is longer than most operations.
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        for step in steps:
            if not threading.main_thread().is_alive():  # the process ends
                return
            try:
                step()
            except Exception as error:  # whoever needs it will do it, or say what is wrong
                _log.debug("not compiled ahead: %s", error)
    finally:
        sys.setswitchinterval(before)
