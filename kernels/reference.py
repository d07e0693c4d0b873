"""Float64 definitions of the kernels, obvious on purpose: tests and benchmarks compare with these.

The paper's equation 1 at pixel (u, v) is ``H = -sum_c P_c log P_c`` with P the softmax over classes, in nats. With
m = max_c x_c, S = sum_c e^(x_c - m) and T = sum_c (x_c - m) e^(x_c - m) that is ``H = log S - T / S``: no epsilon.
"""

import numpy as np
import torch
from torch import Tensor

SCORES = ("entropy", "least_confidence", "margin", "confidence", "ratio")
# Upsampling in float32 is off by about 2e-7 of the largest logit. Where one is beyond this, the kernels do it in higher
# precision: it is what a relative error of 1e-5 of the smallest entropies needs. Trained networks stay below.
FLOAT32_LIMIT = 48.0


def taps(n_in: int, n_out: int, align_corners: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Linear resampling of an axis: ``out[i] = (1 - weight[i]) * in[low[i]] + weight[i] * in[high[i]]``.

    The positions are those of ``torch.nn.functional.interpolate``, but computed with integers, so that low is never off
    by one and weight is the correctly rounded float64. Returns low, high (int64) and weight (float64), each [n_out].
    """
    i = np.arange(n_out, dtype=np.int64)
    if align_corners:  # position = i (n_in - 1) / (n_out - 1)
        numerator, denominator = i * (n_in - 1), max(n_out - 1, 1)
    else:  # position = (i + 1/2) n_in / n_out - 1/2, not below 0
        numerator, denominator = np.maximum((2 * i + 1) * n_in - n_out, 0), 2 * n_out
    low = numerator // denominator
    return low, np.minimum(low + 1, n_in - 1), (numerator - low * denominator) / denominator


def step32(n_in: int, n_out: int, align_corners: bool) -> np.float32:
    """Distance, in input positions, between two neighbouring output positions, as `taps32` has it."""
    if align_corners:
        return np.float32(n_in - 1) / np.float32(n_out - 1) if n_out > 1 else np.float32(0)
    return np.float32(n_in) / np.float32(n_out)


def taps32(n_in: int, n_out: int, align_corners: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`taps` as torch computes them for float32 tensors, bit for bit: low, high (int64), rest, weight (float32).

    Positions in float32 are off by up to 1e-7 of the side, and so are the weights: more than the rounding of an
    interpolated logit, and enough to decide between two classes.
    """
    i = np.arange(n_out)
    if n_in == n_out:
        return i, i, np.ones(n_out, np.float32), np.zeros(n_out, np.float32)
    step = step32(n_in, n_out, align_corners)
    if align_corners:
        position = step * i.astype(np.float32)
    else:  # a fused multiply-add: the product of two float32 is exact in float64, and so is this difference
        position = np.maximum((np.float64(step) * (i + 0.5) - 0.5).astype(np.float32), np.float32(0))
    low = np.minimum(position.astype(np.int64), n_in - 1)
    weight = np.clip(position - low.astype(np.float32), np.float32(0), np.float32(1))
    return low, np.minimum(low + 1, n_in - 1), np.float32(1) - weight, weight


FIRST, REST = (2, 3, 1, 0), (1, 0, 2, 3)
"""Orders in which torch's CPU adds up the corners (upper left, upper right, lower left, lower right) of channels_last
tensors: of classes that fill a vector of the processor, and of those that are left over. One product, three FMAs."""


def vector_classes(classes: int) -> int:
    """How many of the classes torch takes in vectors on this processor (checked with AVX2 and AVX-512's width)."""
    lanes = 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8
    return classes // lanes * lanes


def upsample32(logits: Tensor, size: tuple[int, int], align_corners: bool, split: int) -> Tensor:
    """Bilinear resize of logits [B, C, h, w] to float32 [B, C, H, W] with the arithmetic of the confusion kernels.

    It is that of ``torch.nn.functional.interpolate`` of a channels_last float32 tensor of at least four classes, on a
    CPU with fused multiply-adds, where the first ``split = vector_classes(C)`` classes are added up in the order FIRST,
    the others in that of REST; on CUDA split is 0. Another order is off by an ulp, which two classes may be apart.
    """
    x = logits.float().cpu().numpy()
    y0, y1, ry, wy = taps32(x.shape[2], size[0], align_corners)
    x0, x1, rx, wx = taps32(x.shape[3], size[1], align_corners)
    weights = [(row[:, None] * column).astype(np.float64) for row in (ry, wy) for column in (rx, wx)]
    out = np.empty((*x.shape[:2], *size), np.float32)
    for classes, order in ((slice(0, split), FIRST), (slice(split, None), REST)):
        corners = [x[:, classes, rows][..., columns] for rows in (y0, y1) for columns in (x0, x1)]
        with np.errstate(invalid="ignore"):  # infinite logits
            value = weights[order[0]].astype(np.float32) * corners[order[0]]
            for i in order[1:]:  # the product is exact in float64, the sum is rounded there once more: as good as fused
                value = (weights[i] * corners[i] + value).astype(np.float32)
        out[:, classes] = value
    return torch.from_numpy(out)


def confusion(logits: Tensor, truth: Tensor, size: tuple[int, int], align_corners: bool = True) -> Tensor:
    """Counts int64 [C, C] of `meal_gpu.kernels.confusion_counts`, interpolated in float64 on the CPU.

    Where two classes are closer than float32 can tell, the kernels may say the other.
    """
    (_, height, width), classes = truth.shape, logits.shape[1]
    return count(upsample(logits, size, align_corners).argmax(1)[:, :height, :width], truth.cpu(), classes)


def count(prediction: Tensor, truth: Tensor, classes: int) -> Tensor:
    """int64 [truth, prediction]; truth that is no class is left out."""
    truth = truth.long()  # as uint8, 256 would be 0
    known = truth < classes
    bins = truth[known] * classes + prediction[known]
    return torch.bincount(bins, minlength=classes * classes).view(classes, classes)


def upsample(logits: Tensor, size: tuple[int, int], align_corners: bool = True) -> Tensor:
    """Bilinear resize of logits [B, C, h, w] to float64 [B, C, H, W]; ``size == (h, w)`` copies."""
    x = logits.double().cpu()
    if x.shape[2:] == size:
        return x
    y0, y1, wy = (torch.from_numpy(t) for t in taps(x.shape[2], size[0], align_corners))
    x0, x1, wx = (torch.from_numpy(t) for t in taps(x.shape[3], size[1], align_corners))
    x = (1 - wy)[:, None] * x[:, :, y0] + wy[:, None] * x[:, :, y1]
    return (1 - wx) * x[..., x0] + wx * x[..., x1]


def score_map(logits: Tensor, size: tuple[int, int], *, score: str = "entropy", align_corners: bool = True) -> Tensor:
    """Score of every pixel, float64 [B, H, W]; the scores are defined in `meal_gpu.kernels.patch_entropy`."""
    x = upsample(logits, size, align_corners)
    x = x - x.amax(1, keepdim=True)
    e = x.exp()
    S = e.sum(1)
    # The sum over all classes but the (first) largest keeps 1 - p1 exact where p1 is nearly 1.
    rest = e.scatter(1, x.argmax(1, keepdim=True), 0.0)
    second, rest = rest.amax(1), rest.sum(1)
    if score == "entropy":
        return rest.log1p() - (x * e).sum(1) / S
    if score == "least_confidence":  # 1 - p1
        return rest / S
    if score == "margin":  # 1 - (p1 - p2)
        return (rest + second) / S
    if score == "confidence":  # p1
        return 1 / S
    if score == "ratio":  # p2 / p1
        return second / e.amax(1)
    raise ValueError(f"score {score!r} is not one of {SCORES}")


def patch_sums(pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Sums of a map [B, H, W] over a rows x cols grid of equal patches, float64 [B, rows, cols].

    Patches have H // rows x W // cols pixels and start at multiples of that; what remains at the bottom and at the
    right belongs to no patch.
    """
    (B, H, W), (rows, cols) = pixels.shape, grid
    ph, pw = H // rows, W // cols
    return pixels[:, : rows * ph, : cols * pw].double().reshape(B, rows, ph, cols, pw).sum((2, 4))


def patch_entropy(
    logits: Tensor, size: tuple[int, int], grid: tuple[int, int], *, score: str = "entropy", align_corners: bool = True
) -> tuple[Tensor, Tensor]:
    """Sums [B, rows, cols] and map [B, H, W] of `meal_gpu.kernels.patch_entropy` in float64 on the CPU."""
    pixels = score_map(logits, size, score=score, align_corners=align_corners)
    return patch_sums(pixels, grid), pixels
