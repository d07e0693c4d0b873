"""What the CUDA kernels share on the host: their text, its compilation by NVRTC through CuPy, torch's stream.

CuPy is imported when the first CUDA tensor arrives; it compiles a kernel at its first use, in a second, and caches
it on disk (CUPY_CACHE_DIR).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import resources
from typing import Any

import torch

THREADS = 128  # per block, as in common.cu
MAX_GRID = 2**31 - 1
OPTIONS = ("-std=c++17",)  # CuPy adds -ftz=true and the architecture
DTYPES = {torch.float32: "Float32", torch.float16: "Float16", torch.bfloat16: "BFloat16"}


def text(file: str, instances: Iterable[str]) -> str:
    """The text of a kernel file, with what it shares before it and the given lines behind it."""
    folder = resources.files(__package__)
    return "\n".join(((folder / "common.cu").read_text(), (folder / file).read_text(), *instances, ""))


def candidates(tile_w: int, thread_rows: int) -> Iterable[tuple[int, int]]:
    """(tile width, rows per thread), from the one with the smallest halo to smaller ones."""
    while tile_w >= 32:
        rows = thread_rows
        while rows >= 1:
            yield tile_w, rows
            rows //= 2
        tile_w //= 2


def pitch(classes: int) -> int:
    """Floats between one position and the next in a staged window: a multiple of 4, for 16-byte loads; and an odd one,
    so that 8 neighbouring positions fall into different banks."""
    return ((classes + 3) // 4 | 1) * 4


@cache
def _cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise ImportError(
            "logits on a CUDA device need CuPy, which is not installed: pip install 'meal-gpu[cuda]', or move the "
            "logits to the CPU"
        ) from error
    return cupy


def functions(code: str, *names: str) -> tuple[Any, ...]:
    """The compiled kernels of those names, loaded on the current device."""
    module = _cupy().RawModule(code=code, options=OPTIONS, backend="nvrtc")
    return tuple(module.get_function(name) for name in names)


@contextmanager
def on_torchs_stream(device: torch.device) -> Iterator[None]:
    """Launches within go to the current stream that torch has on the device."""
    cupy = _cupy()  # where it is not installed, that is what is said
    with torch.cuda.device(device), cupy.cuda.Stream.from_external(torch.cuda.current_stream(device)):
        yield
