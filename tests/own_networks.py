"""Networks and trainings of somebody's, as a config names them: ``own_networks:plain`` with model.path: tests."""

import torch
import torch.nn.functional as F
from torch import nn


class Plain(nn.Module):
    """Logits alone, at stride 4, with batch-norm over a pooled map, which needs two values in training."""

    def __init__(self, classes: int, width: int = 8) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, width, 3, 4, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1), nn.BatchNorm2d(width))
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Conv2d(width, classes, 1))
        self.spare = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.backbone(x)
        return self.head(maps + self.pool(maps))


class Staged(nn.Module):
    """In two parts, of which the first is frozen: with ``maps`` 1 or 2 of them."""

    def __init__(self, classes: int, maps: int = 2, leak: bool = False) -> None:
        super().__init__()
        self.maps, self.leak = maps, leak
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 4, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(6, 10, 3, 2, 1), nn.BatchNorm2d(10), nn.ReLU(), nn.Dropout(0.5))
        self.up = nn.Sequential(nn.Conv2d(10, 6, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Conv2d(6, classes, 1)

    def features(self, x):
        low = self.stem(x)
        high = self.deep(low)
        if self.leak:
            high = high + self.head.bias.sum()
        return (low, high) if self.maps == 2 else high

    def logits(self, *maps):
        up = self.up(maps[-1])
        return self.head(maps[0] + F.interpolate(up, maps[0].shape[2:])) if len(maps) == 2 else self.head(up)

    def trainable(self):
        return [*self.up.parameters(), *self.head.parameters()]


class Headless(nn.Module):
    """Without a module of a known name; one is called `features`, and is never used."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 4, 1), nn.ReLU(), nn.Conv2d(6, classes, 1))
        self.features = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def headless(classes: int) -> nn.Module:
    return Headless(classes)


def plain(classes: int, **more) -> nn.Module:
    return Plain(classes, **more)


def staged(classes: int, **more) -> nn.Module:
    return Staged(classes, **more)


def wrong(classes: int, kind: str):
    """Networks that cannot be used."""

    class Wrong(Plain):
        def forward(self, x):
            made = super().forward(x.relu_() if kind == "writes" else x)
            return {"probabilities": lambda: made.softmax(1), "nan": lambda: made / 0 * 0,
                    "dict": lambda: {"scores": made}, "elsewhere": lambda: made.to("meta"),
                    "fails": lambda: made @ x}.get(kind, lambda: made)()

    return "a string" if kind == "no module" else Wrong(classes + (kind == "channels"))


def train(network: nn.Module, patches) -> nn.Module:
    """A loop of one's own: whole images, of which what is labelled counts."""
    images = torch.from_numpy(patches.images).permute(0, 3, 1, 2).float() / 255
    masks = patches.masks().long()
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.05)
    for _ in range(patches.epochs):
        logits = network(images) if not hasattr(network, "features") else network.logits(*network.features(images))
        full = F.interpolate(logits, masks.shape[1:], mode="bilinear")
        F.cross_entropy(full, masks, ignore_index=255).backward()
        optimiser.step()
        optimiser.zero_grad()
    return network


def train_another(network, patches):
    return nn.Linear(2, 2)


def train_nothing(network, patches):
    return None


def train_copy(network, patches):
    """A copy, as trainers return that average weights; on the way it says what it was given."""
    import copy

    y0, x0, y1, x1 = patches.boxes[0].tolist()
    assert patches.labels.shape[1:] == (y1 - y0, x1 - x0)
    assert len(patches.labels) == len(patches.boxes) == len(patches.index)
    assert len(patches.names) == len(patches.images) == int(patches.index.max()) + 1
    assert patches.evaluate() is not None
    return train(copy.deepcopy(network), patches)


def train_what_is_frozen(network, patches):
    with torch.no_grad():
        network.stem[0].weight.add_(1)
    return network
