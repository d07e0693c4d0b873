"""Folders for what is compiled, where the usual ones cannot be written."""

import os
import tempfile
from pathlib import Path


def private_folder(name: str) -> Path | None:
    """A folder of this user's alone among the temporary ones, the same in every process; None where it cannot be.

    What lies there is loaded as code: a folder that somebody else has put there is not used.
    """
    try:
        user = os.getuid() if hasattr(os, "getuid") else "user"
        root = Path(tempfile.gettempdir()) / f"meal-gpu-{user}"
        root.mkdir(mode=0o700, exist_ok=True)
        status = root.lstat()
        if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022 or root.is_symlink()):
            return None
        folder = root / name
        folder.mkdir(exist_ok=True)
    except OSError:
        return None
    return folder


def writable(folder: Path) -> bool:
    """Whether files can be made in a folder, which is made where it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
