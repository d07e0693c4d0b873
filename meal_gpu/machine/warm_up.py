"""What numba compiles, compiled while other work goes on: a minute of a first run, seconds of every later one."""

import contextlib
import fcntl
import hashlib
import logging
import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numba
import torch

from ..kernels import confusion_cpu, cut_cpu, entropy_cpu
from ..kernels.folders import private_folder
from .ahead import started
from .umap_learn import COMPILED

SWITCH_S = 2e-4
LOOK_S = 0.2
"""How often it is looked whether the process ends, while another one compiles."""
_log = logging.getLogger("meal_gpu")


class Part(Protocol):
    """Something that is compiled, or loaded from numba's cache, when it is called: a `Kernel`, or UMAP."""

    elsewhere: threading.Event | None

    def __call__(self) -> object: ...
    def missing(self) -> bool: ...


PARTS: dict[str, Part] = {
    "runs": cut_cpu.READING[0], "normalise": cut_cpu.READING[1],
    "confusion": confusion_cpu.KERNEL, "entropy": entropy_cpu.KERNELS["float32"],
    "umap": COMPILED[False], "placing": COMPILED[True],
}  # fmt: skip
"""In the order of need. The first two are needed at once, before another process could have them."""
AT_ONCE = ("runs", "normalise")
SLOW_TO_ASK = ("umap", "placing")
"""Whether they have to be compiled is known once umap-learn is imported."""


def warm_up(device: torch.device, scores: bool, embeds: bool, placing: bool) -> threading.Thread:
    """Compile or load in a thread what a run on the device will call.

    ``scores``: the pool's uncertainty; ``embeds``: umap-learn is one of it; ``placing``: also for vectors that no fit
    has seen.
    """
    names: list[str] = []
    if device.type == "cpu":
        names += ["runs", "normalise", "confusion", *(["entropy"] if scores else [])]
    if embeds:
        names.append("placing" if placing else "umap")
    thread = threading.Thread(target=_take, args=(names,), name="warm-up")
    thread.start()
    return thread


def _take(names: Sequence[str]) -> None:
    # Loading is Python from end to end, and whoever trains meanwhile asks for the interpreter after each operation:
    # by default it is handed over after 5 ms at the earliest, which is longer than most operations.
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        asked = [i for i, name in enumerate(names) if name not in AT_ONCE + SLOW_TO_ASK]
        first = next((i for i in asked if _missing(names[i])), len(names))
        with _elsewhere(names[first:]) as rest:
            for name in names[:first]:
                if name in SLOW_TO_ASK and _missing(name):
                    with _elsewhere([name]) as late:
                        _load(late)
                else:
                    _load([name])
            _load(rest)
    finally:
        sys.setswitchinterval(before)


def _load(names: Iterable[str]) -> None:
    for name in names:
        if _process_ends():
            return
        try:
            PARTS[name]()
        except Exception as error:  # whoever needs it will do it, or say what is wrong
            _log.debug("not compiled ahead: %s: %s", name, error)


def _missing(name: str) -> bool:
    try:
        return not _process_ends() and PARTS[name].missing()
    except Exception as error:  # such as an import while the process ends
        _log.debug("not known whether it is compiled: %s: %s", name, error)
        return False


def _process_ends() -> bool:
    return not threading.main_thread().is_alive()


@contextlib.contextmanager
def _elsewhere(names: Sequence[str]) -> Iterator[Iterable[str]]:
    """Compile these in a process of its own, and give the name of each when numba's cache has it.

    In a thread it would take as long again from whoever trains: compiling holds the interpreter. If the other process
    fails, what is left is compiled here.
    """
    where = {"NUMBA_CACHE_DIR": numba.config.CACHE_DIR} if numba.config.CACHE_DIR else {}
    process = started(names, subprocess.PIPE, where) if names else None
    if process is None:
        yield names
        return
    events = {name: threading.Event() for name in names}
    for name, event in events.items():
        PARTS[name].elsewhere = event
    try:
        yield _compiled(process, events)
    finally:
        process.kill()
        process.communicate()
        for event in events.values():
            event.set()


def _compiled(process: "subprocess.Popen[bytes]", events: dict[str, threading.Event]) -> Iterator[str]:
    assert process.stdout is not None
    for name, event in events.items():
        while not select.select([process.stdout], [], [], LOOK_S)[0]:
            if _process_ends():
                return
        process.stdout.readline()  # its name; nothing, if the process has ended
        event.set()
        yield name


def compile_parts(names: Sequence[str]) -> None:
    """The other process: it says each name when it is done, and ends when whoever started it does."""
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    for name in names:
        with _in_turn():
            PARTS[name]()
        print(name, flush=True)


@contextlib.contextmanager
def _in_turn() -> Iterator[None]:
    """Of runs that start at once, as a sweep's do, one compiles, and the others find it in numba's cache."""
    cache = hashlib.sha256(numba.config.CACHE_DIR.encode()).hexdigest()[:16]
    folder = private_folder("compiling")
    with contextlib.ExitStack() as stack:
        if folder is not None:
            # Not `locks.locked`, which asks again and again: whoever compiles takes the lock for its next part at once.
            with contextlib.suppress(OSError):  # where there are no locks, each compiles for itself
                fcntl.flock(stack.enter_context((folder / cache).open("w")), fcntl.LOCK_EX)
        yield
