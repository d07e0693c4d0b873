"""Paths as people give them, and where what can be made again is kept, on machines that have no home directory too."""

import logging
import os
from pathlib import Path

from .errors import InputError

_log = logging.getLogger("meal_gpu")
_told = set[str]()


def expand(path: str | Path) -> Path:
    """The path, with ``~`` and ``~user`` at its beginning replaced; whatever takes a path from people calls this.

    Raises `InputError` where there is no such home directory.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{str(path)!r} begins with ~, and there is no such home directory here (HOME is not set, or "
                         "no user has that name). Give the whole path; ./~ begins a file of that name.") from None


def settle_home() -> None:
    """Give this process a home directory where it has none: libraries ask for one, some of them while being imported.

    Where there is one that cannot be written, those are told of another place that would fail there.
    """
    home = home_directory()
    if home is not None and may_write(home / ".cache"):
        return
    from .kernels.folders import private_folder

    if home is None:
        folder = private_folder("home")
        if folder is not None:
            os.environ["HOME"] = str(folder)
            tell_once(f"There is no home directory: {folder} is taken for one. HOME names another.")
        return
    for name in ("CUPY_CACHE_DIR", "TRITON_CACHE_DIR"):
        folder = private_folder(name.lower())
        if folder is not None:
            os.environ.setdefault(name, str(folder))


def user_cache() -> Path:
    """``meal-gpu`` in ``$XDG_CACHE_HOME``, else in ``~/.cache``, else, and that is told, among the temporary files.

    Raises `InputError` where there is none at all.
    """
    chosen = os.environ.get("XDG_CACHE_HOME")
    if chosen:
        return Path(chosen) / "meal-gpu"
    home = home_directory()
    usual = home / ".cache" / "meal-gpu" if home is not None else None
    if usual is not None and (usual.is_dir() or may_write(usual)):
        return usual
    from .kernels.folders import private_folder

    folder, why = private_folder("cache"), f"{home} cannot be written" if home else "there is no home directory"
    if folder is None:
        raise InputError(f"Nothing can be kept: {why}, nor are there temporary files of one's own. Set XDG_CACHE_HOME "
                         "or data.store to a directory that can be written.")
    tell_once(f"Decoded images and weights are kept in {folder}: {why}. XDG_CACHE_HOME names another place.")
    return folder


def home_directory() -> Path | None:
    """None where neither HOME nor the list of users has one, as in containers that run under any number."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def may_write(path: Path) -> bool:
    """Whether a directory could be made or written there, by what its nearest parent allows."""
    there = nearest(path)
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids)


def nearest(path: Path) -> Path:
    """The path, or the first directory above it that is there."""
    path = path.absolute()
    return next((folder for folder in (path, *path.parents) if os.path.lexists(folder)), path)


def tell_once(line: str) -> None:
    """Log a line, once in a process."""
    if line not in _told:
        _told.add(line)
        _log.warning("%s", line)
