"""The highest memory that a stage takes, on the host and on the device."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from meal_gpu.machine.heap import give_back

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_SAMPLE_SECONDS = 0.002


@dataclass
class Peak:
    """Filled when `peak` ends. None where the machine does not tell."""

    host_bytes: int | None = None
    """Resident memory of the process at its highest."""
    host_added_bytes: int | None = None
    """By how much that exceeds what was resident before."""
    device_bytes: int | None = None
    """Allocated by torch on the device at the highest; None on the CPU."""
    how: str = ""
    """``VmHWM``: the kernel's own mark, reset before. ``sampled`` every 2 ms where it cannot be reset."""


@contextmanager
def peak(device: torch.device) -> Iterator[Peak]:
    """Watch the memory of what runs inside. Not to be nested: there is one mark per process."""
    found = Peak()
    give_back()  # what earlier stages freed, and this one would use again, is memory that it takes
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    before = resident("VmRSS")
    if before is None:  # no /proc: only the device tells
        yield found
    elif _reset():
        yield found
        found.how, found.host_bytes = "VmHWM", resident("VmHWM")
    else:
        with _sampled() as highest:
            yield found
        found.how, found.host_bytes = "sampled", highest[0]
    if before is not None and found.host_bytes is not None:
        found.host_added_bytes = max(0, found.host_bytes - before)
    if device.type == "cuda":
        found.device_bytes = torch.cuda.max_memory_allocated(device)


def _reset() -> bool:
    """Set the kernel's mark back to what is resident now."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


@contextmanager
def _sampled() -> Iterator[list[int]]:
    highest, stop = [resident("VmRSS") or 0], threading.Event()

    def watch() -> None:
        while not stop.wait(_SAMPLE_SECONDS):
            highest[0] = max(highest[0], resident("VmRSS") or 0)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield highest
    finally:
        stop.set()
        thread.join()


def alone(module: str, job: str) -> tuple[float, Peak]:
    """Seconds and memory of what a module does with ``job`` in a process of its own.

    Its last line is JSON: seconds, bytes that were resident when everything was imported and nothing begun, and at the
    highest. Raises `CalledProcessError` where it fails.
    """
    done = subprocess.run([sys.executable, "-m", module, job], check=True, stdout=subprocess.PIPE, text=True)
    seconds, before, highest = json.loads(done.stdout.splitlines()[-1])
    return seconds, Peak(highest, highest - before, None, "VmHWM")


def resident(key: str) -> int | None:
    """Bytes that ``/proc`` gives for this process: ``VmRSS`` (now) or ``VmHWM`` (the highest); None without it."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":")), None)
