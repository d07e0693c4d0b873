"""Float64 definitions of the kernels, obvious on purpose: tests and benchmarks compare with these.

The paper's equation 1 at pixel (u, v) is ``H = -sum_c P_c log P_c`` with P the softmax over classes, in nats. With
m = max_c x_c, S = sum_c e^(x_c - m) and T = sum_c (x_c - m) e^(x_c - m) that is ``H = log S - T / S``: no epsilon.
"""

import numpy as np
import torch
from torch import Tensor

SCORES = ("entropy", "least_confidence", "margin", "confidence")
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
