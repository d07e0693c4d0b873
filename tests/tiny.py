"""Builders of things so small that a whole run takes seconds."""

from pathlib import Path
from typing import Any

import torch

from meal_gpu.config import Config, ModelConfig
from meal_gpu.data.frames import HeldFrames
from meal_gpu.grid import Grid
from meal_gpu.machine.backend import Backend
from meal_gpu.network.features import Features
from meal_gpu.network.model import DeepLabV3Plus
from meal_gpu.selfcheck.checks_network import TOY

CPU = torch.device("cpu")
BACKBONE = "mobilenetv2_035"
"""0.25 million parameters; its maps have 8 channels at stride 4 and 112 at stride 16."""

TINY: dict[str, Any] = {
    **TOY, "device": "cpu", "data": {**TOY["data"], "n_images": 6},
    "query": {**TOY["query"], "strategy": "meal", "n_query": 4, "n_informative": 8},
}
"""The run that `meal-gpu selfcheck` makes, on fewer scenes."""


def tiny_config(tmp_path: Path, **overrides: Any) -> Config:
    """A run on six demo scenes that writes nothing outside ``tmp_path``.

    Override by section, ``train={"epochs": 1}``, or by key, ``**{"train.epochs": 1}``.
    """
    values = {name: dict(value) if isinstance(value, dict) else value for name, value in TINY.items()}
    values["data"]["store"] = str(tmp_path / "store")
    for key, value in overrides.items():
        section, _, name = key.partition(".")
        if name:
            values.setdefault(section, {})[name] = value
        elif isinstance(value, dict):
            values[section] = {**values.get(section, {}), **value}
        else:
            values[section] = value
    return Config.load(values)


def tiny_backend(dtype: torch.dtype = torch.float32) -> Backend:
    return Backend(CPU, "asked for", dtype, "asked for", umap="umap-learn", umap_reason="asked for", kmeans="sklearn",
                   kmeans_reason="asked for", loader="torchvision", loader_reason="asked for", stream="mapped",
                   stream_reason="asked for", budget_bytes=10**9)


def tiny_model(num_classes: int = 3, seed: int = 0, **changes: Any) -> DeepLabV3Plus:
    """A network with random weights; ``seed`` makes it the same every time."""
    torch.manual_seed(seed)
    return DeepLabV3Plus(num_classes, ModelConfig(**{"backbone": BACKBONE, "weights": "none", **changes}))


def stir_norms(model: torch.nn.Module, seed: int = 0) -> None:
    """Give every batch-norm statistics and an affine map of its own, as training does.

    With their initial values a batch-norm maps 0 to 0, and a test could not tell a zero that was padded before it from
    one that was padded after it.
    """
    draw = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            n = module.num_features
            module.running_mean.copy_(torch.randn(n, generator=draw) * 0.3)
            module.running_var.copy_(torch.rand(n, generator=draw) + 0.5)
            with torch.no_grad():
                module.weight.copy_(torch.rand(n, generator=draw) + 0.5)
                module.bias.copy_(torch.randn(n, generator=draw) * 0.3 + 0.2)


def stirred_model(num_classes: int = 5, seed: int = 1) -> DeepLabV3Plus:
    """A network in eval mode whose head's batch-norms have statistics of their own."""
    model = tiny_model(num_classes, seed).eval()
    stir_norms(model.aspp)
    stir_norms(model.decoder)
    return model


def noise(n: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """uint8 ``[n, H, W, 3]``"""
    return torch.randint(0, 256, (n, height, width, 3), generator=torch.Generator().manual_seed(seed),
                         dtype=torch.uint8)


def tiny_features(model: DeepLabV3Plus, images: torch.Tensor, grid: tuple[int, int], context: str = "image",
                  cached: bool = False, backend: Backend | None = None) -> Features:
    tiling = Grid(*grid, *images.shape[1:3])
    return Features.of(HeldFrames.of(images, tiling, context, CPU), model, backend or tiny_backend(), cached)
