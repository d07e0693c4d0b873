"""What the network is given for a pixel: ImageNet's normalisation, the same bits from every path."""

import torch
from torch import Tensor

MEAN_255 = tuple(255 * mean for mean in (0.485, 0.456, 0.406))
STD_255 = tuple(255 * std for std in (0.229, 0.224, 0.225))
"""ImageNet's statistics, which the backbone's weights expect, for values 0 … 255."""


def normalise(images: Tensor) -> Tensor:
    """uint8 RGB ``[B, H, W, 3]`` → float32 ``[B, 3, H, W]`` in channels_last, with ImageNet's mean and deviation.

    Subtract, then multiply by the reciprocal, each rounded to float32: that is what DALI does, so that frames are equal
    to the last bit whether they come from a resident pool or a stream.
    """
    mean = torch.tensor(MEAN_255, device=images.device)
    scale = 1 / torch.tensor(STD_255, device=images.device)
    return images.float().sub_(mean).mul_(scale).permute(0, 3, 1, 2)
