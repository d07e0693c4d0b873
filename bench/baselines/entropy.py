"""Patch entropy in PyTorch's own operations, over logits that were upsampled to every pixel before."""

import torch.nn.functional as F
from torch import Tensor


def upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x.float(), size=size, mode="bilinear", align_corners=True)


def full_resolution(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Entropy of full-resolution logits, summed per patch, as one writes it: the paper's equation 1, step by step."""
    log_p = F.log_softmax(x, 1)
    entropy = -(log_p.exp() * log_p).sum(1)
    (B, H, W), (rows, cols) = entropy.shape, grid
    ph, pw = H // rows, W // cols
    return entropy[:, : rows * ph, : cols * pw].reshape(B, rows, ph, cols, pw).sum((2, 4))


def plain_loop(logits: Tensor, size: tuple[int, int], grid: tuple[int, int], align_corners: bool) -> Tensor:
    """Mean entropy per patch ``[B, rows, cols]`` of logits ``[B, C, h, w]`` at any stride, as one writes it."""
    full = F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)
    p = full.softmax(1)
    entropy = -(p * p.clamp_min(1e-30).log()).sum(1)
    (rows, cols), (H, W) = grid, size
    ph, pw = H // rows, W // cols
    return entropy[:, : rows * ph, : cols * pw].reshape(-1, rows, ph, cols, pw).mean((2, 4))


def logsumexp_form(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """The same with log S - T / S, which a compiler can fuse into fewer passes."""
    m = x.amax(1, keepdim=True)
    d = x - m
    e = d.exp()
    S = e.sum(1)
    entropy = S.log() - (d * e).sum(1) / S
    (B, H, W), (rows, cols) = entropy.shape, grid
    ph, pw = H // rows, W // cols
    return entropy[:, : rows * ph, : cols * pw].reshape(B, rows, ph, cols, pw).sum((2, 4))
