"""What the numba kernels share: how they are compiled, where that is kept, and how many threads they use."""

import functools
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
import torch
from numba import get_num_threads, njit, set_num_threads
from numba.core.compiler_lock import global_compiler_lock
from numba.core.config import NUMBA_NUM_THREADS
from numba.misc.appdirs import AppDirs

from .folders import private_folder, writable

_log = logging.getLogger("meal_gpu")


class Awaited:
    """Something that another process may be compiling."""

    elsewhere: threading.Event | None = None
    """Set when that has compiled it into numba's cache, or has given up."""

    def wait(self) -> None:
        """Till then; whoever needs it does."""
        if self.elsewhere is not None:
            self.elsewhere.wait()


class Kernel(Awaited):
    """A numba function that is compiled once in a process, or loaded from numba's cache; compiling takes seconds."""

    def __init__(self, function: Callable[..., Any], signature: str, **options: Any) -> None:
        self.function, self.signature, self.options = function, signature, options
        self._compiled: Any = None
        self._once = threading.Lock()

    def __call__(self) -> Any:
        """The compiled function."""
        if self._compiled is None:
            self.wait()
            with self._once:
                if self._compiled is None:
                    self._compiled = self._compile()
        return self._compiled

    def _compile(self) -> Any:
        settle_cache()
        try:
            return njit(self.signature, cache=True, **self.options)(self.function)
        except RuntimeError as error:  # nothing can be written, not even a temporary folder
            if "cache" not in str(error):
                raise
            return njit(self.signature, **self.options)(self.function)

    def missing(self) -> bool:
        """It has to be compiled, and will be kept."""
        if self._compiled is not None:
            return False
        settle_cache()
        try:
            return not_kept(njit(cache=True, **self.options)(self.function), self.signature)
        except RuntimeError:
            return False


def not_kept(dispatcher: Any, signature: Any) -> bool:
    """Numba's cache is to keep what this function is compiled to for these arguments, and does not have it."""
    store = dispatcher._cache
    with global_compiler_lock:  # as numba loads; two threads that do would meet in its registries
        return store.cache_path is not None and store.load_overload(signature, dispatcher.targetctx) is None


@functools.cache
def settle_cache() -> Path | None:
    """See to it that numba can keep what it compiles. The folder, where it is another than numba would take.

    Numba takes ``NUMBA_CACHE_DIR``, else the folder of the source, else the user's cache; where none can be written it
    raises, in the middle of an import of whoever asks for its cache.
    """
    if numba.config.CACHE_DIR and writable(Path(numba.config.CACHE_DIR)):
        return None
    users = Path(AppDirs(appname="numba", appauthor=False).user_cache_dir)
    if users.is_absolute() and writable(users):  # with no home it would be a folder named ~, here
        return None
    where, folder = numba.config.CACHE_DIR or users, private_folder("numba")
    if folder is not None:
        numba.config.CACHE_DIR = str(folder)
        _log.warning("Compiled code is kept in %s: %s cannot be written. NUMBA_CACHE_DIR names another place.", folder,
                     where)
    else:
        _log.warning("Compiled code cannot be kept (%s cannot be written), and every start compiles for a minute. Set "
                     "NUMBA_CACHE_DIR to a folder that can be written.", where)
    return folder


@contextmanager
def torch_threads() -> Iterator[None]:
    """As many threads as torch has (``torch.set_num_threads``), for numba's kernels that are called inside."""
    before, wanted = get_num_threads(), min(torch.get_num_threads(), NUMBA_NUM_THREADS)
    if wanted == before:  # each of numba's calls takes microseconds, as many as a small batch
        yield
        return
    set_num_threads(wanted)
    try:
        yield
    finally:
        set_num_threads(before)
