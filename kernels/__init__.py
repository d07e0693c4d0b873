"""Kernels: what low-resolution logits say of patches and of the truth, and patches out of images, each in one pass.

`patch_entropy` (uncertainty), `confusion_counts` (evaluation) and `cut_frames` check their arguments and let the
tensor's device choose the implementation: `entropy_cpu`, `confusion_cpu` and `cut_cpu` (numba), or `entropy_cuda`,
`confusion_cuda` (CUDA C++) and PyTorch's gather. `reference` has the float64 definitions, `cost` the counts of bytes,
exponentials and FLOPs. Nothing here imports the rest of meal_gpu.
"""

from collections.abc import Callable
from typing import Any, Literal, overload

import torch
from torch import Tensor

from .op import confusion_add, cut_frames_out, patch_entropy_out
from .reference import SCORES

__all__ = ["MAX_CLASSES", "SCORES", "confusion_counts", "cut_frames", "patch_entropy"]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_CLASSES = 256


@overload
def patch_entropy(
    logits: Tensor,
    size: tuple[int, int],
    grid: tuple[int, int],
    *,
    score: str = ...,
    align_corners: bool = ...,
    return_map: Literal[False] = ...,
    out: Tensor | None = ...,
) -> Tensor: ...


@overload
def patch_entropy(
    logits: Tensor,
    size: tuple[int, int],
    grid: tuple[int, int],
    *,
    score: str = ...,
    align_corners: bool = ...,
    return_map: Literal[True],
    out: tuple[Tensor, Tensor] | None = ...,
) -> tuple[Tensor, Tensor]: ...


def patch_entropy(
    logits: Tensor,
    size: tuple[int, int],
    grid: tuple[int, int],
    *,
    score: str = "entropy",
    align_corners: bool = True,
    return_map: bool = False,
    out: Tensor | tuple[Tensor, Tensor] | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Uncertainty of every patch of a batch of images, summed over the patch's pixels.

    Bilinear upsampling of the logits to `size`, softmax over the classes, the score of every pixel (for the entropy:
    equation 1 of the paper) and its sum per patch happen in one pass: neither the upsampled logits nor, unless asked
    for, the per-pixel scores are ever stored.

    Parameters
    ----------
    logits : Tensor [B, C, h, w], float32, float16 or bfloat16, CPU or CUDA
        Unnormalised class scores, 2 <= C <= 256. Any strides; contiguous and channels_last are both read directly.
        Arithmetic is float32, interpolation float64 where logits are beyond 48. A NaN or infinite logit makes the
        entropy of the pixels that it touches, and of their patches, non-finite.
    size : (H, W), pixels
        Size of the image to upsample to, as ``torch.nn.functional.interpolate(mode="bilinear")`` does; ``(h, w)`` means
        no upsampling.
    grid : (rows, cols)
        Every patch has H // rows x W // cols pixels, and patch (r, c) begins at multiples of that. The remaining bottom
        rows (at most rows - 1) and right columns (at most cols - 1) belong to no patch.
    score : str
        Per pixel, with class probabilities p1 >= p2 >= ...: ``"entropy"``, -sum p log p in nats;
        ``"least_confidence"``, 1 - p1; ``"margin"``, 1 - (p1 - p2); ``"ratio"``, p2 / p1; ``"confidence"``, p1, of
        which alone higher is not more uncertain. All are summed over the patch: divide by (H // rows) * (W // cols)
        for the mean.
    align_corners : bool
        As in ``interpolate``.
    return_map : bool
        Also return the score of every pixel.
    out : Tensor, or (Tensor, Tensor) with return_map
        Buffers for the results, float32, contiguous, on the device of the logits.

    Returns
    -------
    sums : Tensor [B, rows, cols], float32
        Accumulated in float32 along a row of pixels and in float64 over the rows, in an order that depends on the
        shapes alone: repeated calls agree bit for bit. Not differentiable.
    map : Tensor [B, H, W], float32
        Only with `return_map`.

    Raises
    ------
    TypeError, ValueError
        For arguments outside of the above.
    """
    B = _check_logits(logits)
    H, W = _pair("size", "(height, width) of the image in pixels", size)
    rows, cols = _pair("grid", "(rows, columns) of patches", grid)
    if rows > H or cols > W:
        raise ValueError(
            f"grid {rows} x {cols} on an image of {H} x {W} pixels: a patch needs a pixel; use fewer patches"
        )
    if score not in SCORES:
        raise ValueError(f"score {score!r}: choose one of {', '.join(SCORES)}")
    if out is None:
        sums = logits.new_empty((B, rows, cols), dtype=torch.float32)
        pixels = logits.new_empty((B, H, W), dtype=torch.float32) if return_map else None
    elif return_map:
        if not (isinstance(out, tuple) and len(out) == 2):
            raise TypeError(f"out is a {type(out).__name__}: with return_map give a pair of tensors (sums, map)")
        sums = _check_out("out[0]", out[0], (B, rows, cols), logits.device)
        pixels = _check_out("out[1]", out[1], (B, H, W), logits.device)
    else:
        sums, pixels = _check_out("out", out, (B, rows, cols), logits.device), None
    patch_entropy_out(logits.detach(), sums, pixels, H, W, score, align_corners)
    return sums if pixels is None else (sums, pixels)


def confusion_counts(
    logits: Tensor,
    truth: Tensor,
    size: tuple[int, int],
    *,
    align_corners: bool = True,
    counts: Tensor | None = None,
) -> Tensor:
    """How often each class is predicted where each is true: an evaluation, from low-resolution logits.

    Bilinear upsampling of the logits to `size`, the class of the largest at every pixel, and the histogram of (truth,
    prediction) happen in one pass: nothing of full resolution is ever stored. The host is not waited for.

    Parameters
    ----------
    logits : Tensor [B, C, h, w], float32, float16 or bfloat16, CPU or CUDA
        As in `patch_entropy`. Arithmetic is float32, that of ``torch.nn.functional.interpolate`` on the CPU; on a CPU
        with fused multiply-adds predictions are, to the last pixel, those of ``interpolate(logits.float(), size,
        mode="bilinear")`` and ``argmax(1)`` for channels_last logits of at least 4 classes. Elsewhere (other layouts,
        CUDA) torch adds up in another order, and a pixel where two classes are closer than an ulp may differ.
        As with ``argmax``, the first of equal classes is predicted, and where logits are NaN the first NaN.
    truth : Tensor [B, height, width], uint8, on the device of the logits
        Class of every pixel; values from C on (void) are left out. Any strides. It may be smaller than `size`: then the
        image's remaining bottom rows and right columns are not counted.
    size : (H, W), pixels
        Size of the image to upsample to; ``(h, w)`` means no upsampling.
    align_corners : bool
        As in ``interpolate``.
    counts : Tensor [C, C], int64, contiguous, on the device of the logits
        Counts to add to, in place; zeros by default.

    Returns
    -------
    Tensor [C, C], int64
        ``[truth, prediction]``; `counts` where they were given. Exact, whatever the order: repeated calls agree.

    Raises
    ------
    TypeError, ValueError
        For arguments outside of the above.
    """
    B = _check_logits(logits)
    H, W = _pair("size", "(height, width) of the image in pixels", size)
    if not isinstance(truth, Tensor) or truth.dtype != torch.uint8:
        given = truth.dtype if isinstance(truth, Tensor) else f"a {type(truth).__name__}"
        raise TypeError(f"truth is {given}: give a torch.uint8 tensor [batch, height, width]")
    if truth.ndim != 3 or len(truth) != B or truth.shape[1] > H or truth.shape[2] > W or truth.device != logits.device:
        raise ValueError(
            f"truth is {tuple(truth.shape)} on {truth.device}: give [{B}, height, width] on {logits.device}, at most "
            f"the {H} x {W} pixels of size"
        )
    C = logits.shape[1]
    if counts is None:
        counts = logits.new_zeros((C, C), dtype=torch.int64)
    else:
        _check_out("counts", counts, (C, C), logits.device, torch.int64)
    confusion_add(logits.detach(), truth, counts, H, W, align_corners)
    return counts


def cut_frames(
    images: Tensor,
    frames: Tensor,
    grid: tuple[int, int],
    statistics: tuple[Tensor, Tensor] | None = None,
    new: Callable[[tuple[int, ...], torch.dtype], Tensor] | None = None,
) -> Tensor:
    """Patches of images, or whole images, as they are or normalised.

    Parameters
    ----------
    images : Tensor [N, H, W, 3] or [N, H, W], uint8, contiguous
    frames : Tensor [B], int64, on the images' device
        ``image * rows * cols + row * cols + col``, in any order. Neighbours that follow each other are fastest.
    grid : (rows, cols)
        Patches have H // rows x W // cols pixels, as in `patch_entropy`. (1, 1) means whole images.
    statistics : (mean, scale), Tensors [3], float32, on the images' device
        Give ``(value - mean) * scale``, each operation rounded to float32, instead of the values.
    new : function of (shape, dtype)
        Gives the memory of the result on the CPU; ``torch.empty`` by default.

    Returns
    -------
    Tensor [B, h, w, 3] or [B, h, w], uint8, or float32 with statistics; on the images' device.

    Raises
    ------
    TypeError, ValueError
        For images of another layout or type. On the CPU also for frames that are not there.
    """
    (rows, cols), (height, width) = grid, images.shape[1:3]
    if images.dtype != torch.uint8 or not images.is_contiguous() or images.shape[3:] not in ((), (3,)):
        raise TypeError(
            f"images are {images.dtype} {tuple(images.shape)}: give contiguous uint8 [N, H, W, 3] or [N, H, W]"
        )
    if statistics is not None and images.ndim != 4:
        raise ValueError("only images of three channels can be normalised")
    if images.device.type == "cpu":
        shape = (len(frames), height // rows, width // cols, *images.shape[3:])
        dtype = torch.uint8 if statistics is None else torch.float32
        out = torch.empty(shape, dtype=dtype) if new is None else new(shape, dtype)
        cut_frames_out(images, frames, rows, cols, *(statistics or (None, None)), out)
        return out
    if grid == (1, 1):
        pixels = images[frames]
    else:
        tiles = images[:, : height // rows * rows, : width // cols * cols]
        tiles = tiles.unflatten(2, (cols, width // cols)).unflatten(1, (rows, height // rows))
        cell = frames % (rows * cols)
        pixels = tiles[frames // (rows * cols), cell // cols, :, cell % cols]
    if statistics is None:
        return pixels
    return pixels.float().sub_(statistics[0]).mul_(statistics[1])


def _check_logits(logits: Any) -> int:
    """Raise unless the logits are acceptable; return the batch size."""
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits are a {type(logits).__name__}: give a torch.Tensor [batch, classes, height, width]")
    if logits.ndim != 4 or 0 in logits.shape[2:]:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}: give [batch, classes, height, width], none of them empty"
        )
    if not 2 <= logits.shape[1] <= MAX_CLASSES:
        raise ValueError(f"logits have {logits.shape[1]} classes (dimension 1): 2 to {MAX_CLASSES} are supported")
    if logits.dtype not in DTYPES:
        raise TypeError(f"logits are {logits.dtype}: convert them to float32, float16 or bfloat16")
    if logits.device.type not in ("cpu", "cuda"):
        raise ValueError(f"logits are on {logits.device}: move them to the CPU or to a CUDA device")
    return logits.shape[0]


def _pair(name: str, meaning: str, value: Any) -> tuple[int, int]:
    """Value as two positive ints."""
    if (
        not isinstance(value, (tuple, list, torch.Size))
        or len(value) != 2
        or not all(isinstance(v, int) for v in value)
    ):
        raise TypeError(f"{name} is {value!r}: give two integers, {meaning}")
    if min(value) < 1:
        raise ValueError(f"{name} is {tuple(value)}: both of {meaning} must be at least 1")
    return value[0], value[1]


def _check_out(
    name: str, out: Any, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    if not isinstance(out, Tensor):
        raise TypeError(f"{name} is a {type(out).__name__}: give a torch.Tensor (a pair of them with return_map)")
    if tuple(out.shape) != shape or out.dtype != dtype or out.device != device or not out.is_contiguous():
        raise ValueError(
            f"{name} is {out.dtype} {tuple(out.shape)} on {out.device}, "
            f"{'' if out.is_contiguous() else 'not '}contiguous: give a contiguous {dtype} {shape} on {device}"
        )
    return out
