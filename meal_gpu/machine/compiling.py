"""What ``model.compile`` stands for: graphs that CUDA records, or PyTorch's compiler."""

import importlib.util
import logging
import os
import shutil
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from ..errors import InputError

P = ParamSpec("P")
R = TypeVar("R")


def ready(wanted: str, device: torch.device) -> str:
    """Make ready what ``model.compile`` asks for; what there is to say about it.

    Raises `InputError` where a compiler is missing.
    """
    if wanted == "none":
        return "asked for"
    torch.compiler.reset()  # a process may make many runs, and PyTorch gives up after some shapes of one function
    if wanted == "graphs":
        without = "" if device.type == "cuda" else "; traced, but run one by one: CUDA graphs need CUDA"
        return f"asked for{without}"
    names = (os.environ.get("CC", "cc"), "gcc", "clang") if device.type == "cuda" else (os.environ.get("CXX", "g++"),)
    if not any(map(shutil.which, names)):
        raise InputError(f"model.compile is 'inductor', which needs a {'C' if device.type == 'cuda' else 'C++'} "
                         f"compiler on {device.type}, and {' or '.join(names)} is not there. Install one (Debian: "
                         "g++), or use model.compile: graphs or none.")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise InputError("model.compile is 'inductor', which needs Triton on CUDA, and it is not installed: pip "
                         "install triton, or use model.compile: graphs or none.")
    return "asked for"


def compiled(function: Callable[P, R], way: str, device: torch.device) -> Callable[P, R]:
    """A function of tensors as ``way`` says: itself (``none``), replayed as a CUDA graph, or compiled by inductor.

    A replay of ``graphs`` copies all that the function is given, the network's weights among it, to where the graph
    reads it: that is what lets one recording serve the networks of all rounds. Buffers of a network's own, loaded with
    weights in each round, would save 1 to 5 % of what a batch or step moves (`planning.traffic` counts it).
    """
    if way == "none":
        return function
    if device.type == "cpu":  # it would tell of each graph that it is not recorded
        logging.getLogger("torch._inductor.cudagraph_utils.__cudagraphs").setLevel(logging.ERROR)
    if way == "graphs":
        fast = torch.compile(function, backend="cudagraphs", fullgraph=True, dynamic=False)
    else:
        fast = torch.compile(function, mode="reduce-overhead", fullgraph=True, dynamic=False)

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        torch.compiler.cudagraph_mark_step_begin()
        return fast(*args, **kwargs)

    return call
