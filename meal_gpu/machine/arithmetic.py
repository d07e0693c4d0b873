"""How CUDA rounds and in which order it adds: PyTorch's global switches, set in this one place, when a run resolves.

By default cuDNN rounds the inputs of float32 convolutions to TF32 (10 bits of mantissa instead of 23) while matrix
products stay float32, and the backward passes of convolutions add in an order that changes from run to run. Either
makes a run another one than its config says.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import InputError, first_line

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""cuBLAS repeats itself only with a workspace of fixed size; PyTorch reads this with its first matrix product."""


def settle(tf32: bool, deterministic: bool) -> None:
    """Set the precision of float32 on CUDA and whether what is computed again gives the same bits."""
    _round_to_tf32(tf32)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = False  # it would choose by the clock, in each process anew
    if deterministic:
        os.environ.setdefault(WORKSPACE, ":4096:8")


def settled() -> dict[str, bool | str]:
    """The switches as they are, for whoever wants to know that nobody has changed them since."""
    found: dict[str, bool | str] = {
        "tf32 in convolutions": torch.backends.cudnn.allow_tf32,
        "tf32 in products": torch.backends.cuda.matmul.allow_tf32,
        "deterministic": torch.backends.cudnn.deterministic, "benchmark": torch.backends.cudnn.benchmark}
    for name, switch in _newer():
        found[f"{name} precision"] = switch.fp32_precision
    return found


@contextmanager
def repeatable(wanted: bool) -> Iterator[None]:
    """Let PyTorch refuse what it could only compute in a changing order; for training, where all of ours passes.

    Raises `InputError` where somebody's network has such an operation.
    """
    switch: Any = torch.utils.deterministic
    before, filled = torch.are_deterministic_algorithms_enabled(), switch.fill_uninitialized_memory
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    if wanted:
        torch.use_deterministic_algorithms(True)
        switch.fill_uninitialized_memory = False  # a launch for each new tensor, and no bit differs
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise InputError(f"The network cannot be trained so that equal runs are equal on this device "
                         f"({first_line(error)}): use model.deterministic: false, or another operation.") from error
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        switch.fill_uninitialized_memory = filled


@contextmanager
def ieee() -> Iterator[None]:
    """float32 without TF32 for a while, as a reference."""
    before = bool(torch.backends.cudnn.allow_tf32)
    _round_to_tf32(False)
    try:
        yield
    finally:
        _round_to_tf32(before)


def _round_to_tf32(allowed: bool) -> None:
    """Both of PyTorch's interfaces, the older first: it leaves a convolution's precision to whatever was said of all
    operations, and whichever of the two is asked later raises where they disagree."""
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed
    for _, switch in _newer():
        switch.fp32_precision = "tf32" if allowed else "ieee"


def _newer() -> list[tuple[str, Any]]:
    """The switches per operation that PyTorch has from 2.9 on."""
    switches = [("conv", getattr(torch.backends.cudnn, "conv", None)),
                ("rnn", getattr(torch.backends.cudnn, "rnn", None)), ("matmul", torch.backends.cuda.matmul)]
    return [(name, switch) for name, switch in switches if hasattr(switch, "fp32_precision")]
