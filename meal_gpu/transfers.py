"""Who reads device memory from the host, and where: the count behind "one transfer per query".

It works the same whether the tensors are on a GPU, on a CPU, or pretended (`FakeTensorMode`): what would stop a GPU is
known by the call. Reads within kernels and libraries are not seen, and copies to the device are not counted.
"""

import sys
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READS = frozenset({"cpu", "numpy", "tolist", "item", "__bool__", "__int__", "__float__", "__index__", "__array__"})
"""Methods of a tensor that bring it, or a value of it, to the host."""
WAITS = frozenset({"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_consecutive", "unique_dim",
                   "equal", "repeat_interleave"})
"""Operations that stop until the device has said a value, or how large their result is."""
PACKAGE = Path(__file__).parent


class HostReads:
    """While entered, counts the reads by place: ``{"acquire.py: cpu": 1}``."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        self._inside = False
        self._methods, self._operations = _Methods(self), _Operations(self)

    def __enter__(self) -> "HostReads":
        self._methods.__enter__()
        self._operations.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._operations.__exit__(kind, error, trace)
        self._methods.__exit__(kind, error, trace)

    def call(self, name: str, counted: bool, function: Any, args: Any, kwargs: Any) -> Any:
        """Run a function; what is read within a counted one is part of it."""
        if not counted or self._inside:
            return function(*args, **kwargs)
        place = _place()
        if place is not None:
            self.found[f"{place}: {name.strip('_')}"] += 1
        self._inside = True
        try:
            return function(*args, **kwargs)
        finally:
            self._inside = False


class _Methods(TorchFunctionMode):
    """Sees the tensor's methods: on a CPU ``cpu()`` copies nothing, and no operation tells of it."""

    def __init__(self, reads: HostReads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        return self.reads.call(name, name in READS, function, args, kwargs or {})


class _Operations(TorchDispatchMode):
    """Sees what PyTorch itself does below its Python functions: indexing by a mask, copies from device to host."""

    def __init__(self, reads: HostReads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        kwargs = kwargs or {}
        masked = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        to_host = name in ("_to_copy", "copy_") and _to_host(name, args, kwargs)
        return self.reads.call(name, name in WAITS or masked or to_host, function, args, kwargs)


def _to_host(name: str, args: Any, kwargs: Any) -> bool:
    source = args[0] if name == "_to_copy" else args[1]
    target = kwargs.get("device") or source.device if name == "_to_copy" else args[0].device
    return isinstance(source, Tensor) and source.device.type == "cuda" and torch.device(target).type == "cpu"


def _place() -> str | None:
    """The file of this package that is at work; None within the kernels, which read what they are given."""
    frame = sys._getframe(2)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.parent == PACKAGE and file.name != "transfers.py":
            return file.name
        if file.parent.name == "kernels" and file.parent.parent in (PACKAGE, PACKAGE.parent):
            return None
        frame = frame.f_back  # type: ignore[assignment]
    return "outside"
