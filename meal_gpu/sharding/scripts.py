"""Scripts that start workers: each worker's process imports the script, and must not start workers in its turn."""

import multiprocessing
import sys
from pathlib import Path

from ..errors import InputError

_GUARDS = ("__name__", "parent_process", "current_process")
"""One of them stands in every script that tells its own start from an import."""


def check_guarded() -> None:
    """Raise `InputError` where the main script would start these workers again in each of them.

    In a worker that is just importing it, end that process.
    """
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        print(_advice(file), file=sys.stderr, flush=True)  # a forked process ends without a word
        raise SystemExit(1)
    if file is None or not _at_top_level():
        return
    try:
        text = Path(file).read_text("utf-8", "replace")
    except OSError:
        return
    if not any(word in text for word in _GUARDS):
        raise InputError(_advice(file))


def _at_top_level() -> bool:
    """Whether the main script's own lines are what is being run."""
    frame, main = sys._getframe(1), vars(sys.modules["__main__"])
    while frame is not None:
        if frame.f_globals is main and frame.f_code.co_name == "<module>":
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def _advice(file: str | None) -> str:
    return (f"{file or 'This script'} starts worker processes, each of which imports it and would start workers again: "
            'put what it does under  if __name__ == "__main__":')
