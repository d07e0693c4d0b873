"""What the numba kernels share: how they are compiled, and how many threads they use."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from numba import get_num_threads, njit, set_num_threads
from numba.core.config import NUMBA_NUM_THREADS


def compiled(function: Callable[..., Any], signature: str, **options: Any) -> Any:
    """The compiled function, from numba's cache where it is there; compiling takes seconds."""
    try:
        return njit(signature, cache=True, **options)(function)
    except RuntimeError as error:  # neither the package's folder nor the user's cache can be written
        if "cache" not in str(error):
            raise
        return njit(signature, **options)(function)


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
