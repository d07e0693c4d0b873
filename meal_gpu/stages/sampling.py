"""What networks with dropped units disagree about (BALD): several samples of one network, in one pass over the pool.

A sample is a network: its dropped units are the same in every frame, and a function of the seed alone, so that a
patch's value depends neither on the frames beside it nor on who holds it. Samples are taken batch by batch, and of
each only running sums are kept.
"""

import torch
from torch import Tensor

from ..machine.backend import Backend
from ..network.interface import Upsampling
from ..network.model import DeepLabV3Plus
from ..randomness import derive

COSTS = {"last": 0.003, "decoder": 0.37, "all": 0.81}
"""Part of a forward pass that each sample costs beyond the first pass: the dropout before the last 1 × 1 convolution
alone, also that before the second 3 × 3 convolution, or all three. Of the default network, by counted products."""


def mutual_information(network: DeepLabV3Plus, low: Tensor, high: Tensor, up: Upsampling, where: str, samples: int,
                       seed: int, backend: Backend) -> Tensor:
    """H(mean p) - mean H(p) over samples, nats, float32 ``[B, h4, w4]``, at least 0.

    Batch-norm stays in eval mode. Probabilities are averaged, not logits, in float32.
    """
    decoder, dropped = network.decoder, _Dropped(seed, high.device)
    with backend.autocast():
        aspp = network.aspp(high)
        fused = decoder.fused(low, aspp, up)
        inputs = decoder.inputs(fused)
    mean, of_each = torch.zeros((), device=high.device), torch.zeros((), device=high.device)
    for sample in range(samples):
        with backend.autocast():
            if where == "all":
                fused = decoder.fused(low, dropped(aspp, network.aspp.dropout.dropped, sample, "aspp"), up)
            if where != "last":
                inputs = decoder.inputs(dropped(fused, decoder.fuse_dropout.dropped, sample, "fuse"))
            logits = decoder.classify(dropped(inputs, decoder.refine_dropout.dropped, sample, "refine"))
        p = logits.float().softmax(1)
        mean, of_each = mean + p / samples, of_each + torch.special.entr(p).sum(1) / samples
    return (torch.special.entr(mean).sum(1) - of_each).clamp_min(0)


class _Dropped:
    """Dropout whose units are a function of the seed, the sample and the place."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed, self.device = seed, device

    def __call__(self, x: Tensor, dropped: int, sample: int, place: str) -> Tensor:
        """x ``[B, C, h, w]`` with ``dropped`` of 65,536 units 0, and the others scaled, alike in the whole batch."""
        channels, height, width = x.shape[1:]
        draw = torch.Generator(self.device).manual_seed(derive(self.seed, sample, place))
        n = channels * height * width
        bits = torch.empty(-(-n // 4), dtype=torch.int64, device=self.device).random_(-(2**63), None, generator=draw)
        kept = bits.view(torch.int16)[:n].view(1, height, width, channels) >= dropped - 32768
        scale = kept * x.new_full((), 65536 / (65536 - dropped))
        return x * scale.permute(0, 3, 1, 2)
