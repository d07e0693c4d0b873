"""The custom operators ``meal_gpu::patch_entropy_out`` and ``confusion_add``, on CPU and CUDA, and ``cut_frames_out``,
on the CPU.

An operator that writes into buffers serves eager code, `torch.compile`, `FakeTensorMode` and callers who bring their
own buffers. The implementations are imported when a tensor of their device first arrives: numba takes a second to
import, and CuPy may not be installed.
"""

import torch
from torch import Tensor

_library = torch.library.Library("meal_gpu", "FRAGMENT")
_library.define(
    "patch_entropy_out(Tensor logits, Tensor(a!) sums, Tensor(b!)? pixels, int height, int width, str score, "
    "bool align_corners) -> ()"
)
_library.define(
    "confusion_add(Tensor logits, Tensor truth, Tensor(a!) counts, int height, int width, bool align_corners) -> ()"
)
_library.define(
    "cut_frames_out(Tensor images, Tensor frames, int rows, int cols, Tensor? mean, Tensor? scale, Tensor(a!) out) "
    "-> ()"
)


def _cut(
    images: Tensor, frames: Tensor, rows: int, cols: int, mean: Tensor | None, scale: Tensor | None, out: Tensor
) -> None:
    from .cut_cpu import cut

    cut(images, frames, (rows, cols), None if mean is None or scale is None else (mean, scale), out)


def _cpu(
    logits: Tensor, sums: Tensor, pixels: Tensor | None, height: int, width: int, score: str, align_corners: bool
) -> None:
    from .entropy_cpu import patch_entropy

    patch_entropy(logits, sums, pixels, (height, width), score, align_corners)


def _cuda(
    logits: Tensor, sums: Tensor, pixels: Tensor | None, height: int, width: int, score: str, align_corners: bool
) -> None:
    from .entropy_cuda import patch_entropy

    patch_entropy(logits, sums, pixels, (height, width), score, align_corners)


def _fake(
    logits: Tensor, sums: Tensor, pixels: Tensor | None, height: int, width: int, score: str, align_corners: bool
) -> None:
    """Nothing to compute: the outputs exist already."""


def _confusion_cpu(
    logits: Tensor, truth: Tensor, counts: Tensor, height: int, width: int, align_corners: bool
) -> None:
    from .confusion_cpu import confusion

    confusion(logits, truth, counts, (height, width), align_corners)


def _confusion_cuda(
    logits: Tensor, truth: Tensor, counts: Tensor, height: int, width: int, align_corners: bool
) -> None:
    from .confusion_cuda import confusion

    confusion(logits, truth, counts, (height, width), align_corners)


_library.impl("patch_entropy_out", _cpu, "CPU")
_library.impl("patch_entropy_out", _cuda, "CUDA")
torch.library.register_fake("meal_gpu::patch_entropy_out", _fake, lib=_library)

_library.impl("confusion_add", _confusion_cpu, "CPU")
_library.impl("confusion_add", _confusion_cuda, "CUDA")
torch.library.register_fake("meal_gpu::confusion_add", lambda *arguments: None, lib=_library)

_library.impl("cut_frames_out", _cut, "CPU")
torch.library.register_fake("meal_gpu::cut_frames_out", lambda *arguments: None, lib=_library)

confusion_add = torch.ops.meal_gpu.confusion_add.default
cut_frames_out = torch.ops.meal_gpu.cut_frames_out.default
patch_entropy_out = torch.ops.meal_gpu.patch_entropy_out.default
