"""Budgets of launches and bytes, at Cityscapes' sizes: counted on tensors without memory, so that no GPU is needed."""

import pytest
import torch
import torch.nn.functional as F

from meal_gpu.config import Config
from meal_gpu.network.features import DEVICE_BATCH_PIXELS, images_per_batch
from meal_gpu.planning.traffic import Traffic, of_stages

MB = 10**6


@pytest.fixture(scope="module", params=[(512, 1024), (1024, 2048)], ids=["512x1024", "1024x2048"])
def counted(request):
    """The stages' traffic with a frozen backbone, the images of a batch, and how many times 512 × 1024 an image is."""
    height, width = request.param
    config = Config.load("cityscapes", [f"data.image_size=[{height},{width}]"])
    images = images_per_batch(config.data.tiling(), DEVICE_BATCH_PIXELS)
    return of_stages(config, 19), images, height * width // (512 * 1024)


def test_scoring(counted):
    """Per image 404 and 1616 MB, of which the logits are 2.5 MB and 10."""
    stages, images, scale = counted
    assert stages["scoring"].launches <= 52
    assert stages["scoring"].bytes <= images * scale * 430 * MB
    assert stages["scoring"].largest[0] <= images * scale * 17 * MB


def test_evaluation(counted):
    """As scoring: behind the logits one kernel reads them and the truth, where 15 moved 146 MB an image."""
    stages, images, scale = counted
    assert stages["evaluation"].launches <= 52
    assert stages["evaluation"].bytes <= images * scale * 430 * MB
    assert stages["evaluation"].bytes - stages["scoring"].bytes <= images * scale * 3 * MB
    assert stages["evaluation"].largest[0] <= images * scale * 17 * MB


def test_a_step_of_training(counted):
    """Eight patches. The largest are their pixels' logits in float32, which the loss needs: 80 MB at full size."""
    stages, _, scale = counted
    assert stages["training"].launches <= 230
    assert stages["training"].bytes <= scale * 1720 * MB
    assert stages["training"].largest[0] <= scale * 20 * MB


def test_what_graphs_would_copy(counted):
    """PyTorch copies all that a recorded graph is given at each replay: the head's weights, 16 MB, and the maps, 2.9 MB
    of 512 x 1024 pixels. 109 MB for a batch that moves 13 GB, 40 MB for a step that moves 1.7."""
    stages, images, scale = counted
    head, maps = 16.0 * MB, 2.884 * MB * scale
    for name, n, most in (("scoring", images, 0.02), ("evaluation", images, 0.02), ("training", 8, 0.06)):
        assert head + n * maps < stages[name].copied < 1.02 * (head + n * maps) + 2 * MB * scale, name
        assert 2 * stages[name].copied <= most * stages[name].bytes, name


def test_no_constant_is_copied_and_no_loss_is_one_thread_block(counted):
    for name, traffic in counted[0].items():
        assert traffic.expanded <= 20 * MB, name
        assert traffic.one_block_rows <= 16_384, name


@pytest.mark.parametrize("context", ["image", "patch"])
def test_nothing_in_a_finetuning_step_adds_in_an_order_of_its_own(context):
    """What PyTorch documents to be so: scatters of numbers that are no integers, and interpolation's backward pass."""
    config = Config.load("cityscapes", ["model.freeze_backbone=false", f"data.context={context}"])
    names = of_stages(config, 19)["training"].names
    assert {"convolution_backward", "bmm"} < names
    assert not {name for name in names if any(part in name for part in (
        "index_put", "index_add", "scatter", "put_", "upsample", "bincount", "embedding", "pool"))}


def test_what_is_counted():
    with Traffic() as traffic:
        x = torch.zeros(10, 10)
        y = x.view(100)[:50] + 1.0
        assert traffic.launches == 2  # the zeros and the sum
        assert traffic.bytes == 400 + 200 + 200
        assert traffic.largest == (400, "zeros")
        y.view(1, 50).expand(30, 50).clone()
        assert traffic.expanded == 30 * 50 * 4
        assert traffic.largest == (6000, "clone")
        with torch.enable_grad():
            logits = torch.zeros(7, 3, requires_grad=True)
            target = torch.zeros(7, dtype=torch.int64)
            F.cross_entropy(logits, target, reduction="none").sum().backward()
            assert traffic.one_block_rows == 0
            F.cross_entropy(logits, target, reduction="sum").backward()
        assert traffic.one_block_rows == 7
