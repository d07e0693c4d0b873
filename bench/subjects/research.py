"""The baseline: active learning as research code writes it, in float32 and eager PyTorch.

Images are decoded from their files in every pass; backbone and decoder see whole images; the entropy is softmax and
logarithm at full resolution, step by step; no features are kept. It does the engine's work: from equal weights it must
come to equal scores, losses and predictions, which is checked before anything is timed.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from meal_gpu.data.datasets import Sample
from meal_gpu.grid import Grid
from meal_gpu.network.model import DeepLabV3Plus

from ..result import WrongResultError

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


class PlainNetwork(nn.Module):
    """DeepLabV3+ as it is written down, with the weights of ours: upsample, concatenate, convolve."""

    def __init__(self, ours: DeepLabV3Plus) -> None:
        super().__init__()
        self.ours = copy.deepcopy(ours).float().to(memory_format=torch.contiguous_format)

    def train(self, mode: bool = True) -> "PlainNetwork":
        super().train(mode)
        self.ours.train(mode)  # which keeps a frozen backbone in eval mode
        return self

    def forward(self, images: Tensor) -> Tensor:
        """float32 ``[B, 3, H, W]``, normalised → logits ``[B, classes, H, W]``."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.ours.freeze_backbone):
            low, high = self.ours.backbone(images)
        return F.interpolate(self.head(low, high), images.shape[2:], mode="bilinear", align_corners=True)

    def head(self, low: Tensor, high: Tensor) -> Tensor:
        """Maps of the backbone → logits at stride 4."""
        decoder = self.ours.decoder
        x = F.interpolate(self.ours.aspp(high), low.shape[2:], mode="bilinear", align_corners=True)
        x = decoder.fuse(torch.cat([decoder.low(low), x], 1))
        x = decoder.refine(F.dropout(x, 0.5, self.training))
        logits: Tensor = decoder.classify(F.dropout(x, 0.1, self.training))
        return logits


@dataclass(frozen=True)
class Research:
    """A pool of files, and the loops over it. Frames are images or, with ``context: patch``, patches."""

    samples: Sequence[Sample]
    to_class: np.ndarray
    grid: Grid
    """Of the images."""
    context: str
    device: torch.device
    kept: Mapping[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Images and masks that are in memory."""

    def given(self, pixels: Mapping[int, np.ndarray]) -> "Research":
        """The same, with some images in memory, uint8 ``[H, W, 3]``, and their masks decoded once.

        Raises `WrongResultError` where they are not what is decoded here. Libraries do not resize to the same bits: a
        resized pixel may be a level off, and more in the two rows and columns at the border.
        """
        for index, image in pixels.items():
            decoded, resized = self._decoded(index)
            differ = np.abs(decoded.astype(int) - image)
            worst = int(differ[2:-2, 2:-2].max()) if resized else int(differ.max())
            if worst > resized:
                raise WrongResultError(f"{self.samples[index].image} differs by {worst} levels from what the store has")
        return replace(self, kept={index: (self._normalised(image), self.mask(index))
                                   for index, image in pixels.items()})

    @property
    def size(self) -> tuple[int, int]:
        return self.grid.height, self.grid.width

    def image(self, index: int) -> Tensor:
        """Decode, resize, scale, normalise: float32 ``[3, H, W]``."""
        if index in self.kept:
            return self.kept[index][0]
        return self._normalised(self._decoded(index)[0])

    def _decoded(self, index: int) -> tuple[np.ndarray, bool]:
        """uint8 ``[H, W, 3]``, and whether the file is of another size."""
        with Image.open(self.samples[index].image) as file:
            picture = file.convert("RGB")
        resized = picture.size != self.size[::-1]
        if resized:
            picture = picture.resize(self.size[::-1], Image.Resampling.BILINEAR)
        return np.array(picture), resized

    @staticmethod
    def _normalised(pixels: np.ndarray) -> Tensor:
        return (torch.from_numpy(pixels).permute(2, 0, 1).float() / 255 - MEAN) / STD

    def mask(self, index: int) -> Tensor:
        """int64 ``[H, W]``, 255 = void."""
        if index in self.kept:
            return self.kept[index][1]
        path = self.samples[index].mask
        assert path is not None
        with Image.open(path) as file:
            ids = Image.fromarray(self.to_class[np.array(file)]).resize(self.size[::-1], Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(ids)).long()

    def frames(self, images: Sequence[int]) -> Tensor:
        """All frames of some images, float32 ``[B, 3, h, w]`` on the device."""
        pixels = torch.stack([self.image(index) for index in images]).to(self.device)
        return pixels if self.context == "image" else self._tiles(pixels).transpose(1, 2).flatten(0, 1)

    def masks(self, images: Sequence[int]) -> Tensor:
        """Of `frames`, int64 ``[B, h, w]``."""
        ids = torch.stack([self.mask(index) for index in images]).to(self.device)
        return ids if self.context == "image" else self._tiles(ids[:, None]).squeeze(1).flatten(0, 1)

    def _tiles(self, x: Tensor) -> Tensor:
        """[N, C, H, W] → [N, C, cells, h, w]"""
        grid = self.grid
        x = x[:, :, : grid.rows * grid.patch_height, : grid.cols * grid.patch_width]
        x = x.unflatten(3, (grid.cols, grid.patch_width)).unflatten(2, (grid.rows, grid.patch_height))
        return x.permute(0, 1, 2, 4, 3, 5).flatten(2, 3)

    @torch.no_grad()
    def scores(self, network: nn.Module, images: Sequence[int]) -> Tensor:
        """Mean entropy of every patch of some images, float32 ``[n * cells]``."""
        network.eval()
        return torch.cat([self.entropy(network(self.frames([index]))).flatten() for index in images])

    def entropy(self, logits: Tensor) -> Tensor:
        """Logits of frames ``[B, C, h, w]`` → mean entropy per patch ``[B, cells of a frame]``."""
        p = logits.softmax(1)
        entropy = -(p * torch.log(p.clamp_min(1e-38))).sum(1, keepdim=True)
        if self.context == "patch":
            return entropy.mean((1, 2, 3)).unsqueeze(1)
        return self._tiles(entropy).mean((3, 4)).squeeze(1)

    def loss(self, network: nn.Module, ids: Sequence[int]) -> Tensor:
        """Mean cross-entropy over the pixels of patches: all else of their images is ignored."""
        images, cells = [i // self.grid.cells for i in ids], [i % self.grid.cells for i in ids]
        if self.context == "patch":
            frames, masks = self.frames(images), self.masks(images)
            at = torch.tensor([n * self.grid.cells + cell for n, cell in enumerate(cells)], device=self.device)
            return F.cross_entropy(network(frames[at]), masks[at], ignore_index=255)
        masks = self.masks(images)
        only = torch.full_like(masks, 255)
        for n, cell in enumerate(cells):
            y0, x0, y1, x1 = self.grid.box(cell)
            only[n, y0:y1, x0:x1] = masks[n, y0:y1, x0:x1]
        return F.cross_entropy(network(self.frames(images)), only, ignore_index=255)

    def epoch(self, network: nn.Module, optimiser: torch.optim.Optimizer, ids: Sequence[int], batch: int) -> None:
        """Train on patches in their order; an incomplete last batch is left out."""
        network.train()
        for first in range(0, len(ids) - batch + 1, batch):
            optimiser.zero_grad()
            self.loss(network, ids[first : first + batch]).backward()
            optimiser.step()

    @torch.no_grad()
    def confusion(self, network: nn.Module, images: Sequence[int], classes: int) -> Tensor:
        """int64 ``[truth, prediction]`` over the pixels of some images' patches."""
        network.eval()
        counts = torch.zeros(classes, classes, dtype=torch.int64)
        grid = self.grid
        for index in images:
            prediction, truth = network(self.frames([index])).argmax(1), self.masks([index])
            if self.context == "image":
                inside = slice(grid.rows * grid.patch_height), slice(grid.cols * grid.patch_width)
                prediction, truth = prediction[:, *inside], truth[:, *inside]
            known = truth < classes
            pairs = (truth[known] * classes + prediction[known]).cpu()
            counts += torch.bincount(pairs, minlength=classes**2).view(classes, classes)
        return counts
