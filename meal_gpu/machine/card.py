"""What this machine is: processors, memory, packages."""

import contextlib
import importlib.metadata
import os
import platform
from pathlib import Path

import torch


def card() -> dict[str, object]:
    """The machine card that goes into ``environment.json`` and benchmark results."""
    packages = ("torch", "timm", "numba", "umap-learn", "scikit-learn", "numpy")
    extra = ("cupy-cuda13x", "cuml-cu13")
    found: dict[str, object] = {
        "meal_gpu": _version("meal-gpu"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(_total_host_bytes() / 1e9, 1),
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


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes() -> int:
    """How many on this machine, where nobody says: one per four threads."""
    return max(torch.get_num_threads() // 4, 1)


def free_bytes(device: torch.device) -> int:
    """Memory of the device that nobody uses; on the CPU what the system can give without swapping."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return _total_host_bytes() // 2


def _total_host_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
