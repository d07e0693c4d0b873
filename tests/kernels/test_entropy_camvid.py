"""Patch entropy of logits that look like a network's: linear maps of colours and gradients of real CamVid images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ptx import Kernels, check, needs_ptx

from meal_gpu.kernels import SCORES, patch_entropy, reference
from meal_gpu.kernels.entropy_cuda import launch_plan

pytestmark = pytest.mark.camvid
SIZE, GRID = (360, 480), (4, 4)


@pytest.fixture(scope="module")
def logits(camvid_root: Path) -> torch.Tensor:
    """[2, 11, 90, 120] float32: spatially coherent, with confident regions and uncertain edges, up to about 30."""
    images = []
    for path in sorted((camvid_root / "val").glob("*.png"))[:2]:
        pixels = np.asarray(Image.open(path).convert("RGB").resize((120, 90), Image.Resampling.BOX), np.float32) / 255
        x = torch.from_numpy(pixels).permute(2, 0, 1)
        dy, dx = torch.gradient(x, dim=(1, 2))
        images.append(torch.cat([x - 0.5, 4 * dx, 4 * dy, 8 * (dx * dx + dy * dy)]))
    features = torch.stack(images)
    weights = 12 * torch.randn(11, features.shape[1], 1, 1, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.conv2d(features, weights)


def test_logits_are_mixed(logits: torch.Tensor) -> None:
    """Sure and unsure pixels both occur, so that the comparisons below mean something."""
    entropy = reference.score_map(logits, SIZE)
    assert entropy.quantile(0.1) < 0.05
    assert entropy.quantile(0.9) > 0.7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("score", SCORES)
def test_cpu(logits: torch.Tensor, score: str, dtype: torch.dtype) -> None:
    x = logits.to(dtype)
    sums, pixels = patch_entropy(x, SIZE, GRID, score=score, return_map=True)
    expected_sums, expected_pixels = reference.patch_entropy(x, SIZE, GRID, score=score)
    check(sums.numpy(), expected_sums)
    check(pixels.numpy(), expected_pixels)


class TestCuda:
    pytestmark = needs_ptx

    def test_cuda_kernel(self, logits: torch.Tensor) -> None:
        x = logits.bfloat16().contiguous(memory_format=torch.channels_last)
        plan = launch_plan(tuple(x.shape), x.stride(), x.dtype, SIZE, GRID, "entropy", True, True)
        kernels = Kernels("sm_90").compile([plan.variant])
        sums, pixels = kernels.run(x, SIZE, GRID)
        expected_sums, expected_pixels = reference.patch_entropy(x, SIZE, GRID)
        check(sums, expected_sums)
        check(pixels, expected_pixels)
