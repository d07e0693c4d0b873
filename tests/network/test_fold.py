"""Batch-norms folded into convolutions: all of them, whatever the backbone, and the network computes what it did."""

import dataclasses

import pytest
import torch
from timm.layers import ScaledStdConv2d
from tiny import noise, stir_norms, tiny_backend, tiny_features, tiny_model
from torch import nn

from meal_gpu.network.fold import foldable, for_scoring
from meal_gpu.network.model import DeepLabV3Plus
from meal_gpu.stages.predict import predict

FOLDED = dataclasses.replace(tiny_backend(), fold_norms=True)


def n_norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / a.std())


# Batch-norm that holds its activation; one beside it; convolutions that pad by themselves; batch-norms before the
# convolutions, where few can be folded; none at all.
@pytest.mark.parametrize(("backbone", "left"), [
    ("mobilenetv2_035", 0), ("resnet10t", 0), ("tf_mobilenetv3_small_minimal_100", 0), ("resnetv2_18", 8),
    ("convnext_atto", 0)])
@torch.no_grad()
def test_a_folded_network_computes_the_same(backbone, left):
    stride = 32 if backbone == "convnext_atto" else 16
    model = tiny_model(3, backbone=backbone, output_stride=stride)
    stir_norms(model)
    model.train()
    before, images = {name: value.clone() for name, value in model.state_dict().items()}, noise(2, 64, 96)
    folded = for_scoring(model, FOLDED)
    assert not model.training
    assert apart(model(images), folded(images)) < 1e-3
    assert n_norms(folded) == left
    assert n_norms(model) == left + len(foldable(model))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("frozen", [True, False])
def test_the_folded_network_follows_the_one_that_is_trained(frozen):
    """Of a frozen backbone nothing can change, so that only the head is folded again."""
    model, images = tiny_model(3, freeze_backbone=frozen), noise(2, 64, 96)
    first = for_scoring(model, FOLDED)
    stir_norms(model if not frozen else nn.ModuleList([model.aspp, model.decoder]), seed=1)
    model.decoder.classify.weight.mul_(2)
    if not frozen:
        model.backbone.conv_stem.weight.mul_(1.5)
    assert for_scoring(model, FOLDED) is first
    assert apart(model.eval()(images), first(images)) < 1e-3


@torch.no_grad()
def test_scores_through_windows_and_through_the_whole_map():
    model, images = tiny_model(3), noise(4, 64, 96)
    stir_norms(model)
    for cached in (True, False):
        features = tiny_features(model, images, (2, 3), cached=cached)
        plain = predict(model, features, {"score", "features", "probabilities"}, "entropy", tiny_backend())
        folded = predict(model, features, {"score", "features", "probabilities"}, "entropy", FOLDED)
        assert torch.allclose(plain.score, folded.score, atol=1e-4)
        assert torch.allclose(plain.probabilities, folded.probabilities, atol=1e-4)
        assert not torch.equal(plain.score, folded.score)
    at = features.windows.of(torch.arange(4))
    low, high = model.features(torch.rand(4, 3, 64, 96))
    assert apart(model.window_logits(low, high, at), for_scoring(model, FOLDED).window_logits(low, high, at)) < 1e-3


def test_what_reads_a_convolution_besides_its_norm_keeps_both():
    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.alone, self.standard = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), ScaledStdConv2d(8, 8, 1)
            self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
            self.twice = nn.Conv2d(8, 8, 1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.used(x)
            y = self.norms[0](y) + y
            y = self.norms[1](self.alone(y))
            y = self.norms[2](self.standard(y))
            return y, self.twice(self.twice(y))

    model = DeepLabV3Plus(3)
    model.backbone = Backbone()
    assert [pair for pair in foldable(model) if pair[0].startswith("backbone")] == [
        ("backbone.alone", "backbone.norms.1")]


def test_without_the_switch_nothing_is_copied():
    model = tiny_model(3).train()
    assert for_scoring(model, tiny_backend()) is model
    assert not model.training
