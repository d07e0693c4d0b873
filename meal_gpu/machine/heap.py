"""The C library's heap, and what becomes of memory that is freed.

A forward pass makes and frees tensors of tens of megabytes, one per operation. glibc gives such blocks back to the
system at once and is given other pages for the next, each of which is a fault and is filled with zeros before it is
overwritten: on two cores that was a quarter to a third of a backbone's time, and a tenth to a fifth of a decoder's.
"""

import contextlib
import ctypes
import os
from collections.abc import Mapping

KEPT_BYTES = 2**30
"""Of the free memory at the heap's end so much stays with the process."""
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h
_CHOSEN_BY = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def keep_freed(environment: Mapping[str, str] = os.environ) -> bool:
    """Let this process use freed memory again, large blocks too, instead of asking the system for others.

    False, and nothing changes, where the C library is not glibc or the environment says how its heap is to behave
    (``MALLOC_…_``, ``GLIBC_TUNABLES``).
    """
    if any(name in environment for name in _CHOSEN_BY) or "glibc.malloc" in environment.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no glibc: macOS, musl, Windows
        return False
    return bool(mallopt(_TRIM_THRESHOLD, KEPT_BYTES)) and bool(mallopt(_MMAP_MAX, 0))


def give_back() -> None:
    """Give all free memory of the heap to the system, so that what a stage takes can be seen."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
