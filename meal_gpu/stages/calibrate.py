"""How sure a network may be: one temperature for its logits, fitted on labelled images that it was not trained on."""

import math

import torch
from torch import Tensor

from ..machine.backend import Backend
from ..network.features import Features
from ..network.interface import Network
from ..network.windows import along

TEMPERATURES = torch.logspace(-1, 1, 49, dtype=torch.float64)
PIXELS = 65_536
"""Labelled pixels that a temperature is fitted on at most, evenly taken: they are correlated anyway."""


def held_out(ids: Tensor, cells: int, part: float, draw: torch.Generator) -> Tensor:
    """Which labelled patches are not trained on: bool ``[n]``, on the device of ``ids``; whole images, a ``part`` of
    these and at least one; none where fewer than two images, or fewer than two patches, would be left."""
    images = ids.cpu() // cells
    distinct = images.unique()
    n = max(1, math.floor(part * len(distinct)))
    chosen = distinct[torch.randperm(len(distinct), generator=draw)[:n]]
    held = torch.isin(images, chosen)
    if len(distinct) - n < 1 or int((~held).sum()) < 2:
        held = torch.zeros_like(held)
    return held.to(ids.device)


@torch.no_grad()
def temperature(model: Network, features: Features, ids: Tensor, labels: Tensor, backend: Backend) -> float:
    """The temperature of least cross-entropy on patches ``ids`` int64 ``[n]`` with their labels; 1 where nothing is
    labelled of them. It leaves every prediction as it is.
    """
    model.eval()
    cells, windows, device = features.frames.grid.cells, features.windows, features.frames.device
    logits, truth = [], []
    parts = ids.cpu().split(features.batch)
    for part, masks, maps in zip(parts, labels.split(features.batch),
                                 features.read(model, [part // cells for part in parts]), strict=True):
        at = windows.of((part % cells).to(device))
        with backend.autocast():
            small = model.window_logits(*maps, at)
        pixels = along(at.rows.pixels, at.cols.pixels, small.float().permute(0, 2, 3, 1)).flatten(0, 2)
        known = masks.flatten().to(device) != 255
        logits.append(pixels[known])
        truth.append(masks.flatten().to(device)[known].long())
    if not sum(map(len, truth)):
        return 1.0
    return fitted(torch.cat(logits), torch.cat(truth))


def fitted(logits: Tensor, truth: Tensor) -> float:
    """Of `TEMPERATURES` that of least cross-entropy: logits float32 ``[n, C]``, classes int64 ``[n]``."""
    step = max(1, len(truth) // PIXELS)
    logits, truth = logits[::step].double(), truth[::step]
    losses = torch.stack([torch.nn.functional.cross_entropy(logits / t, truth) for t in TEMPERATURES.tolist()])
    return float(TEMPERATURES[int(losses.argmin())])
