"""MEAL: which image patches to label next.

`run` and `resume` do what the command line does, `load_run` reads what they leave. `query` chooses patches for a
network of your own, and `Manifold` is what it keeps between rounds. `STRATEGIES` takes a `Strategy` of
your own: a function of a `PoolView`. ``kernels.patch_entropy`` scores logits.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import kernels
    from .config import Config
    from .errors import InputError, LabelsMissingError
    from .launch import resume, run
    from .library.manifold import Manifold
    from .library.onnxfile import Onnx
    from .library.query import query
    from .network.model import DeepLabV3Plus
    from .report import load_run
    from .stages.pool import Pool
    from .strategies.select import STRATEGIES, PoolView, Strategy

__all__ = ["STRATEGIES", "Config", "DeepLabV3Plus", "InputError", "LabelsMissingError", "Manifold", "Onnx", "Pool",
           "PoolView", "Strategy", "kernels", "load_run", "query", "resume", "run"]

_HOMES = {
    "Config": "config", "InputError": "errors", "LabelsMissingError": "errors", "resume": "launch", "run": "launch",
    "DeepLabV3Plus": "network.model", "load_run": "report", "Pool": "stages.pool", "STRATEGIES": "strategies.select",
    "Manifold": "library.manifold", "Onnx": "library.onnxfile", "query": "library.query",
    "PoolView": "strategies.select", "Strategy": "strategies.select",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is asked for: PyTorch takes seconds, and ``meal-gpu --help`` should not wait for it."""
    if name == "kernels":
        return import_module(".kernels", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module 'meal_gpu' has no attribute '{name}'")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
