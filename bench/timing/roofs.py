"""What this machine can do at best: its card, and the measured roofs that benchmarks divide by."""

import io
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit, prange
from PIL import Image

from meal_gpu.kernels.jit import torch_threads
from meal_gpu.machine import card as machine_card
from meal_gpu.machine import limits
from meal_gpu.planning.roofline import Roofs

from .measure import Effort, interleaved, last_level_cache

_CHUNK = 4096  # float32 per thread: 16 KiB, in the L1 cache
_REPEATS = 4096  # passes over a chunk
_UPDATES = 200_000
ROOF_EFFORT = Effort(1.5, 3, 9, 0.3)
_EX2_TIMES = 512
_EX2 = f"""template <typename T> T ex2(T x) {{
    float a = x;
    for (int i = 0; i < {_EX2_TIMES}; ++i) asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(a) : "f"(-a));
    return a;
}}"""
"""A GPU's exponentials: nothing but the instruction that the kernels use, of a value in a register."""


def card() -> dict[str, Any]:
    """The machine and the code that was measured."""
    known = {**machine_card.card(), "commit": _commit(),
             "last_level_cache_bytes": last_level_cache(torch.device("cpu"))}
    driver = Path("/proc/driver/nvidia/version")
    if "gpu" in known and driver.is_file():
        known["driver"] = driver.read_text().splitlines()[0]
    return known


def _commit() -> str | None:
    """The commit of the working tree, with ``+`` where files differ from it; None outside of one."""
    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True,
                              check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def measure_roofs(device: torch.device, dtype: torch.dtype, images: Sequence[Path] = (),
                  effort: Effort = ROOF_EFFORT) -> Roofs:
    """Measure all roofs, the best of a few samples each.

    Memory: a copy eight times the last-level cache. Exp: in cache, the better of torch's and the CPU kernel's; on CUDA
    the unit's own instruction. FLOP:
    the best of large products and a wide convolution in ``dtype``. Decode: Pillow on all cores, ``images`` from
    memory. Host: tiny operations of torch; updates of points by one core.
    """
    source = torch.ones(min(2**28, 2 * last_level_cache(device)), device=device)
    target = torch.empty_like(source)
    tiny = torch.zeros(1, device=device)
    work: dict[str, tuple[str, float, Callable[[], object]]] = {
        "copy": ("bytes", 2 * source.nbytes, lambda: target.copy_(source)),
        "dispatch": ("dispatches", 1000, lambda: [tiny.add_(1) for _ in range(1000)]),
        "updates": ("updates", _UPDATES, _layout(_UPDATES)),
        **_exps(device), **_products(device, dtype),
    }
    if images:
        files = [file.read_bytes() for file in images]
        work["decode"] = ("pixels", sum(map(_pixels, files)), lambda: _decode_all(files))
    with torch_threads(), torch.inference_mode():
        timings = interleaved({name: call for name, (_, _, call) in work.items()}, effort, device)
    best: dict[str, float] = {}
    for name, (kind, count, _) in work.items():
        best[kind] = max(best.get(kind, 0.0), count / timings[name].best)
    return Roofs(torch.get_num_threads(), str(dtype).removeprefix("torch."), **best)


def _exps(device: torch.device) -> dict[str, tuple[str, float, Callable[[], object]]]:
    """Exponentials of buffers in cache, again and again."""
    threads = torch.get_num_threads()
    if device.type == "cuda":
        wide = torch.zeros(2**22, device=device)
        # torch.exp reads and writes every value, which takes longer than the exponential: 0.5 of 4 T/s on an H100.
        unit = torch.cuda.jiterator._create_jit_fn(_EX2)
        return {"ex2": ("exps", _EX2_TIMES * wide.numel(), lambda: unit(wide))}
    x = np.linspace(-20, 0, threads * _CHUNK, dtype=np.float32).reshape(threads, _CHUNK)
    y = np.empty_like(x)
    loop = _exp_loop()
    flat = torch.from_numpy(x.reshape(-1)).repeat(16)  # 64 K per thread: torch uses its threads, still in the L2 cache
    out = torch.empty_like(flat)
    return {"kernel's exp": ("exps", x.size * _REPEATS, lambda: loop(x, y, _REPEATS)),
            "exp": ("exps", flat.numel() * 256, lambda: [torch.exp(flat, out=out) for _ in range(256)])}


def _products(device: torch.device, dtype: torch.dtype) -> dict[str, tuple[str, float, Callable[[], object]]]:
    """A square product and the decoder's kind of convolution, large enough to be limited by arithmetic alone."""
    n, (batch, side) = (8192, (64, 128)) if device.type == "cuda" else (1536, (1, 96))
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    maps = torch.randn(batch, 256, side, side, device=device).to(dtype, memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 3, 3, device=device).to(dtype, memory_format=torch.channels_last)
    return {"product": ("flops", 2 * n**3, lambda: a @ b),
            "convolution": ("flops", 2 * batch * side**2 * 256 * 256 * 9, lambda: F.conv2d(maps, weight, padding=1))}


@cache
def _exp_loop() -> Any:
    """Exponentials of a buffer in the L1 cache on all threads: only the kernel's polynomial."""
    from meal_gpu.kernels.exp_cpu import exp

    @njit(fastmath={"contract"}, error_model="numpy")
    def one(x: Any, y: Any, repeats: int) -> None:
        for _ in range(repeats):
            for k in range(x.size):
                y[k] = exp(x[k])

    @njit(parallel=True)
    def loop(x: Any, y: Any, repeats: int) -> None:
        for thread in prange(x.shape[0]):
            one(x[thread], y[thread], repeats)

    return loop


def _layout(n: int) -> Callable[[], object]:
    """Moves of points in the plane as UMAP's layout makes them: read a pair, a power, a division, write one."""
    @njit(fastmath=True, error_model="numpy")
    def move(points: Any, heads: Any, tails: Any) -> None:
        for k in range(heads.size):
            i, j = heads[k], tails[k]
            dx, dy = points[i, 0] - points[j, 0], points[i, 1] - points[j, 1]
            d2 = dx * dx + dy * dy + np.float32(1e-3)
            pull = np.float32(-1.4) * d2 ** np.float32(-0.2) / (np.float32(1) + d2 ** np.float32(0.8))
            points[i, 0] += np.float32(1e-3) * min(max(pull * dx, np.float32(-4)), np.float32(4))
            points[i, 1] += np.float32(1e-3) * min(max(pull * dy, np.float32(-4)), np.float32(4))

    rng = np.random.default_rng(0)
    points = rng.random((5000, 2), np.float32)
    heads, tails = (rng.integers(0, len(points), n) for _ in range(2))
    return lambda: move(points, heads, tails)


def _pixels(file: bytes) -> int:
    with Image.open(io.BytesIO(file)) as image:
        return image.width * image.height


def _decode_all(files: Sequence[bytes]) -> None:
    def decode(file: bytes) -> None:
        Image.open(io.BytesIO(file)).load()

    with ThreadPoolExecutor(limits.usable_cores()) as threads:
        list(threads.map(decode, files))
