"""What this machine is: processors, memory, packages."""

import contextlib
import functools
import importlib.metadata
import os
import platform
from collections.abc import Callable
from pathlib import Path

import torch

from . import limits


def card() -> dict[str, object]:
    """The machine card that goes into ``environment.json`` and benchmark results."""
    packages = ("torch", "timm", "numba", "umap-learn", "scikit-learn", "numpy")
    extra = ("cupy-cuda13x", "cuml-cu13")
    found: dict[str, object] = {
        "meal_gpu": _version("meal-gpu"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": limits.usable_cores(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(total_bytes() / 1e9, 1),
        **{name: _version(name) for name in packages},
    }
    for name in extra:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["gpu_memory_gb"] = round(torch.cuda.mem_get_info()[1] / 1e9, 1)
        found["cuda"] = torch.version.cuda
    return found


def _version(package: str) -> str:
    """A copy of the sources that nobody installed has none, and is no reason to stop."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def settle_threads(root: Path = limits.ROOT) -> None:
    """No more threads than `limits.usable_cores`, unless somebody has said how many. PyTorch does not look at a
    container's share of the processor, and threads that have used it up wait for the next tenth of a second, all of
    them."""
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > limits.usable_cores(root):
        torch.set_num_threads(limits.usable_cores(root))


def set_threads(wanted: int | str) -> Callable[[], None]:
    """So many threads in this process from now on; ``auto`` leaves them as they are, see `settle_threads`.

    What is returned gives back as many as there were, where anything was changed. No context manager: the generator of
    one that nobody leaves is closed when it is collected, and the number would change in the middle of whatever runs
    then.
    """
    before = torch.get_num_threads()
    if not isinstance(wanted, int):
        return lambda: None
    torch.set_num_threads(wanted)
    return functools.partial(torch.set_num_threads, before)


def processes() -> int:
    """How many on this machine, where nobody says: one per four threads."""
    return max(torch.get_num_threads() // 4, 1)


def free_bytes(device: torch.device, root: Path = limits.ROOT) -> int:
    """Memory of the device that nobody uses; on the CPU what the system can give without swapping, and the container
    without being killed."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = (root / "proc/meminfo").read_text("ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = _installed_bytes() // 2
    limit = limits.memory(root)
    return free if limit is None else min(free, limit.free)


def host_memory(root: Path = limits.ROOT) -> str:
    """How much there is and who says so, for people."""
    free, total, limit = free_bytes(torch.device("cpu"), root), total_bytes(root), limits.memory(root)
    limited = limit is not None and limit.total < _installed_bytes()
    of = f"of the {total / 1e9:.1f} GB that the container may take" if limited else f"of {total / 1e9:.1f} GB"
    return f"{free / 1e9:.1f} GB free {of}"


def total_bytes(root: Path = limits.ROOT) -> int:
    """Of host memory: what is built in, or what the container may take."""
    limit = limits.memory(root)
    return _installed_bytes() if limit is None else min(_installed_bytes(), limit.total)


def _installed_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
