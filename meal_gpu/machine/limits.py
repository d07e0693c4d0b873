"""What a container may use of its machine: the limits of its control groups, of both versions, and of those above.

Every function takes the root of the file system, so that another one can be given.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
NONE = 2**60
"""From so many bytes on a limit is none: version 1 has a number of that size where nobody set one."""


@dataclass(frozen=True)
class Memory:
    """The tightest limits, in bytes; perhaps of two groups."""

    total: int
    free: int
    """What may be taken before the system kills: the pages of files that it would drop first count as free."""


def memory(root: Path = ROOT) -> Memory | None:
    """None where nothing limits it."""
    found = []
    for folder in _groups("memory", root):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        if limit is None or limit >= NONE:
            continue
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
        stat = dict(line.split()[:2] for line in _text(folder / "memory.stat").splitlines() if " " in line)
        dropped = stat.get("total_inactive_file", stat.get("inactive_file", "0"))  # v1's first counts groups below too
        found.append((limit, max(limit - max(used - int(dropped), 0), 0)))
    return Memory(min(limit for limit, _ in found), min(free for _, free in found)) if found else None


def cores(root: Path = ROOT) -> float | None:
    """Of processor time, such as 1.5; None where nothing limits it."""
    found = []
    for folder in _groups("cpu", root):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        quota = quota or _text(folder / "cpu.cfs_quota_us")
        period = period or _text(folder / "cpu.cfs_period_us") or "100000"
        if quota.isdigit() and int(quota) and int(period):  # else "max", or -1
            found.append(int(quota) / int(period))
    return min(found, default=None)


def usable_cores(root: Path = ROOT) -> int:
    """Cores that this process may use: those that it is bound to, and no more than its container is given time of."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = cores(root)
    return bound if given is None else max(min(bound, int(given)), 1)


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of this process's groups, from its own up to the one that is mounted."""
    places: dict[str, str] = {}  # by controller, "" for version 2
    for line in _text(root / "proc/self/cgroup").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            places |= dict.fromkeys(parts[1].split(","), parts[2])
    for line in _text(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields, described = left.split(), right.split()
        if len(fields) < 5 or len(described) < 3:
            continue
        one = described[0] == "cgroup" and controller in described[2].split(",")
        place = places.get(controller if one else "")
        if place is None or not (one or described[0] == "cgroup2"):
            continue
        top, mount = (_unescaped(field) for field in fields[3:5])
        folder = mounted = root / mount.lstrip("/")
        below = Path(place)
        if ".." not in below.parts and below.is_relative_to(top):  # else the container sees its own group as the mount
            folder = mounted / below.relative_to(top)
        if not folder.is_dir():
            folder = mounted
        while True:
            yield folder
            if folder == mounted:
                break
            folder = folder.parent


def _unescaped(field: str) -> str:
    return re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), field)


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if text.isdigit() else None
