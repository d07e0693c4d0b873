"""What goes between host and device, and where: the count behind "one transfer per query".

A copy to the device stops the host too, unless it is ``non_blocking``: PyTorch waits until the stream has come to it.
Reads are counted the same whether the tensors are on a GPU, on a CPU, or pretended (`FakeTensorMode`): what would stop
a GPU is known by the call. Copies to the device are known by the devices, so that they are counted on a GPU and on a
pretended one. What happens within kernels and libraries is not seen.
"""

import sys
from collections import Counter
from collections.abc import Sequence
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
MAKES = frozenset({"tensor", "as_tensor"})
"""Functions that make a tensor of Python numbers, which they send where it is wanted."""
PACKAGE = Path(__file__).resolve().parents[1]


class Transfers:
    """While entered, counts by place: ``reads == {"acquire.py: cpu": 1}``."""

    def __init__(self) -> None:
        self.reads: Counter[str] = Counter()
        """Of device memory by the host, and waits for it."""
        self.sends: Counter[str] = Counter()
        """Copies from the host to the device."""
        self.blocked: Counter[str] = Counter()
        """Those of the sends that the host waits for."""
        self._inside = False
        self._methods, self._operations = _Methods(self), _Operations(self)

    def __enter__(self) -> "Transfers":
        self._methods.__enter__()
        self._operations.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._operations.__exit__(kind, error, trace)
        self._methods.__exit__(kind, error, trace)

    @property
    def waits(self) -> int:
        """How often the host stopped until the device had come so far."""
        return sum(self.reads.values()) + sum(self.blocked.values())

    def call(self, name: str, counts: Sequence[Counter[str]], function: Any, args: Any, kwargs: Any) -> Any:
        """Run a function, counted in all of ``counts``; what is read within a counted one is part of it."""
        if not counts or self._inside:
            return function(*args, **kwargs)
        place = _place()
        if place is not None:
            for counter in counts:
                counter[f"{place}: {name.strip('_')}"] += 1
        self._inside = True
        try:
            return function(*args, **kwargs)
        finally:
            self._inside = False


class _Methods(TorchFunctionMode):
    """Sees the tensor's methods: on a CPU ``cpu()`` copies nothing, and no operation tells of it."""

    def __init__(self, counted: Transfers) -> None:
        super().__init__()
        self.counted = counted

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(function, "__name__", ""), kwargs or {}
        counts = [self.counted.reads] if name in READS else []
        if name in MAKES and torch.device(kwargs.get("device") or "cpu").type == "cuda":
            counts = [self.counted.sends, self.counted.blocked]
        return self.counted.call(name, counts, function, args, kwargs)


class _Operations(TorchDispatchMode):
    """Sees what PyTorch itself does below its Python functions: indexing by a mask, copies between the two."""

    def __init__(self, counted: Transfers) -> None:
        super().__init__()
        self.counted = counted

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        kwargs = kwargs or {}
        masked = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        way = _way(name, args, kwargs) if name in ("_to_copy", "copy_") else None
        counts = [self.counted.reads] if name in WAITS or masked or way == ("cuda", "cpu") else []
        if way == ("cpu", "cuda"):
            ahead = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
            counts = [self.counted.sends] if ahead else [self.counted.sends, self.counted.blocked]
        return self.counted.call(name, counts, function, args, kwargs)


def _way(name: str, args: Any, kwargs: Any) -> tuple[str, str] | None:
    """The kinds of device that a copy goes from and to."""
    source = args[0] if name == "_to_copy" else args[1]
    if not isinstance(source, Tensor):
        return None
    target = kwargs.get("device") or source.device if name == "_to_copy" else args[0].device
    return source.device.type, torch.device(target).type


def _place() -> str | None:
    """The file of this package that is at work; None within the kernels, which read what they are given."""
    frame = sys._getframe(2)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.parent.name == "kernels" and file.parent.parent in (PACKAGE, PACKAGE.parent):
            return None
        if PACKAGE in file.parents and file.name != "transfers.py" and PACKAGE / "bench" not in file.parents:
            return file.name
        frame = frame.f_back  # type: ignore[assignment]
    return "outside"
