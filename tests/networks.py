"""Somebody's small networks and their inputs, and what `meal_gpu.query` must find, by a plain loop in float64."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

GRID, SIZE, N = (2, 3), (64, 96), 5
FREE = 6 * N


class Small(nn.Module):
    """Logits at a stride of ``2 ** deep``; batch-norm, so that its mode matters."""

    def __init__(self, classes: int = 4, deep: int = 2, width: int = 8) -> None:
        super().__init__()
        layers = [nn.Sequential(nn.Conv2d(3 if i == 0 else width, width, 3, 2 if i < deep else 1, 1),
                                nn.BatchNorm2d(width), nn.ReLU()) for i in range(max(deep, 1))]
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * self.head(self.body(x))


def small(**kwargs) -> Small:
    torch.manual_seed(0)
    return Small(**kwargs)


def inputs(seed: int = 0, n: int = N, size: tuple[int, int] = SIZE) -> torch.Tensor:
    """What networks are given: low frequencies, so that patches differ."""
    draw = torch.Generator().manual_seed(seed)
    rough = torch.randn(n, 3, 4, 6, generator=draw)
    return F.interpolate(rough, size, mode="bicubic") + 0.1 * torch.randn(n, 3, *size, generator=draw)


def plain(network, images, size, grid, score="entropy", align=False, maps=None):
    """Mean scores per patch (and means of maps), by softmax at full resolution in float64, image by image."""
    scores, vectors = [], []
    for image in images:
        with torch.no_grad():
            logits = network(image[None])
            logits = logits if isinstance(logits, torch.Tensor) else (
                logits["out"] if "out" in logits else logits["logits"])
            full = F.interpolate(logits.double(), size, mode="bilinear", align_corners=align)[0]
        p = full.softmax(0)
        top = p.topk(2, 0).values
        each = {"entropy": -(p * p.log()).sum(0), "least_confidence": 1 - top[0], "margin": 1 - (top[0] - top[1]),
                "ratio": top[1] / top[0]}
        height, width = size[0] // grid[0], size[1] // grid[1]
        for row in range(grid[0]):
            for col in range(grid[1]):
                where = np.s_[row * height : (row + 1) * height, col * width : (col + 1) * width]
                scores.append(each[score][where].mean())
                if maps is not None:
                    with torch.no_grad():
                        whole = F.interpolate(maps(image[None]).double(), size, mode="bilinear", align_corners=align)[0]
                    vectors.append(whole[:, where[0], where[1]].mean((1, 2)))
    return torch.stack(scores), torch.stack(vectors) if vectors else None


def near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool(((found.double() - expected).abs() / expected.abs().clamp_min(1e-3)).max() < 2e-5)
