"""MEAL: which image patches to label next.

`run` and `Config` do what the command line does; the stages are public functions of their modules.
"""

from typing import TYPE_CHECKING, Any

from .config import Config
from .errors import InputError

if TYPE_CHECKING:
    from .launch import resume, run
    from .stages.pool import Pool

__all__ = ["Config", "InputError", "Pool", "resume", "run"]


def __getattr__(name: str) -> Any:
    """Import what needs PyTorch only when it is asked for: ``meal-gpu --help`` should not wait for it."""
    if name in ("run", "resume"):
        from . import launch

        return getattr(launch, name)
    if name == "Pool":
        from .stages.pool import Pool

        return Pool
    raise AttributeError(f"module 'meal_gpu' has no attribute '{name}'")
