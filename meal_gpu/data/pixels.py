"""What the network is given for a pixel: ImageNet's normalisation, the same bits from every path."""

import torch
from torch import Tensor

MEAN_255 = tuple(255 * mean for mean in (0.485, 0.456, 0.406))
STD_255 = tuple(255 * std for std in (0.229, 0.224, 0.225))
"""ImageNet's statistics, which the backbone's weights expect, for values 0 … 255."""


def statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """ImageNet's mean and the reciprocal of its deviation, float32 ``[3]``, on a device."""
    mean, deviation = torch.tensor([MEAN_255, STD_255])
    mean, scale = torch.stack([mean, 1 / deviation]).to(device)
    return mean, scale


def normalise(images: Tensor, known: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """uint8 RGB ``[B, H, W, 3]`` → float32 ``[B, 3, H, W]`` in channels_last, with ImageNet's mean and deviation.

    Subtract, then multiply by the reciprocal, each rounded to float32: that is what `kernels.cut_frames` does, so that
    a resident pool and a stream give frames of equal bits. (DALI on a GPU would round once for both: half of the pairs
    of value and channel come out otherwise.) ``known`` are the `statistics` on the device; without them each call
    sends them there.
    """
    mean, scale = known or statistics(images.device)
    return images.float().sub_(mean).mul_(scale).permute(0, 3, 1, 2)
