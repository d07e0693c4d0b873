"""Noise on scores, so that a query is drawn and not only taken from the top (Kirsch et al., 2021)."""

import torch
from torch import Tensor

from .view import PoolView


def with_noise(score: Tensor, power: float, view: PoolView) -> Tensor:
    """Scores whose highest n are n draws without replacement, with chances ~ score ^ power; float32, at most 1.

    It is score · exp(Gumbel / power), by its maximum. Below 0 a score counts as 0, and that as 1e-12.
    """
    uniforms = view.uniforms(len(score)).to(score.device).clamp(1e-300, 1 - 1e-16)
    gumbel = -torch.log(-torch.log(uniforms))
    logs = (score.double().clamp_min(0) + 1e-12).log() + gumbel / power
    return (logs - logs.max()).exp().float()
