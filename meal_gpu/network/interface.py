"""What the engine asks of a network: ours (`model.DeepLabV3Plus`), or somebody's (`own.OwnNetwork`)."""

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..grid import Grid, Size
from .windows import Windows

Shape = tuple[int, int, int]
"""Channels, height and width of a feature map."""
Upsampling = tuple[Tensor, Tensor]
"""Row and column matrices from stride 16 to stride 4, ``[1, h4, 3 * h16]`` and ``[1, w4, 3 * w16]``."""


class Network(nn.Module):
    """A network in two parts: pixels → two maps, and these → logits, of whole frames or of windows on patches."""

    classes: int
    freeze_backbone: bool
    """Its maps are constants: they are computed once."""
    align_corners: bool = True
    """How its logits and maps are interpolated to the images' size."""

    @abstractmethod
    def features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised RGB ``[B, 3, H, W]`` → maps ``[B, C, h, w]``, (low, high); of the high ones means are embedded."""

    @abstractmethod
    def logits(self, low: Tensor, high: Tensor, up: Upsampling | None = None) -> Tensor:
        """Maps of whole frames → logits ``[B, classes, h, w]``."""

    @abstractmethod
    def window_logits(self, low: Tensor, high: Tensor, at: Windows) -> Tensor:
        """Maps of frames → logits of one window of each, which ``at.rows.pixels`` and ``cols`` interpolate."""

    @abstractmethod
    def map_shapes(self, height: int, width: int) -> tuple[Shape, Shape]:
        """Of both maps of a frame."""

    @abstractmethod
    def logits_size(self, height: int, width: int) -> Size:
        """Of the logits of a frame."""

    @abstractmethod
    def windows(self, grid: Grid, device: torch.device) -> Windows:
        """The windows of `window_logits` on the patches of a frame."""

    @abstractmethod
    def constant(self, name: str) -> bool:
        """Whether that entry of the state is the same before and after every training."""

    @abstractmethod
    def begin_as(self, pretrained: "Network") -> None:
        """Take what every training begins with from the network that all trainings of an experiment share."""

    def written(self) -> Iterator[tuple[str, Tensor]]:
        """Its state on the host, for a file: no two tensors share memory, as tied weights do."""
        seen: set[int] = set()
        for name, value in self.state_dict().items():
            held = value.detach().contiguous().cpu()
            place = held.untyped_storage().data_ptr()
            yield name, held.clone() if place in seen else held
            seen.add(place)
