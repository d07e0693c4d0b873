"""Dropout that takes a quarter of the random draws on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.library.custom_op("meal_gpu::random_bits", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _random_bits(n: int, device: torch.device) -> Tensor:
    """int64 ``[n]``, all bits at random. An operator of its own, since `torch.compile` does not know ``random_``."""
    return torch.empty(n, dtype=torch.int64, device=device).random_(-(2**63), None)


@_random_bits.register_fake
def _(n: int, device: torch.device) -> Tensor:
    return torch.empty(n, dtype=torch.int64, device=device)


class Dropout(nn.Module):
    """Dropout that draws 16 random bits per element, four elements to a draw.

    PyTorch draws a float per element, on the CPU in one thread: a seventh of a training step. On CUDA it draws, masks
    and scales in one kernel, where this would be five. ``p`` is rounded to 1/65536, and kept values are scaled by the
    rounded probability.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.dropped = round(p * 65536)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if x.is_cuda:
            return F.dropout(x, self.dropped / 65536)
        x = x.permute(0, 2, 3, 1)  # channels_last as it lies in memory
        draws = _random_bits(-(-x.numel() // 4), x.device)
        keep = draws.view(torch.int16)[: x.numel()].view(x.shape) >= self.dropped - 32768
        return (x * (keep * x.new_full((), 65536 / (65536 - self.dropped)))).permute(0, 3, 1, 2)
