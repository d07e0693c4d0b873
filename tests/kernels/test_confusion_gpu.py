"""The confusion kernel on a CUDA device against its arithmetic on the CPU. Needs torch, cupy, numpy, numba, pytest."""

import pytest
import torch

from meal_gpu.kernels import confusion_counts, confusion_cpu, reference

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

# Batch, low-resolution size, size, pixels of the truth: CamVid and Cityscapes whole and as patches; odd sizes with a
# remainder; no upsampling; one pixel; one cell stretched; shrinking, staged and straight from global memory.
SHAPES = [
    (4, (90, 120), (360, 480), (360, 480)),
    (2, (128, 256), (512, 1024), (512, 1024)),
    (1, (256, 512), (1024, 2048), (1024, 2048)),
    (16, (23, 30), (90, 120), (90, 120)),
    (3, (23, 30), (90, 117), (88, 112)),
    (2, (13, 21), (13, 21), (12, 20)),
    (1, (1, 1), (1, 1), (1, 1)),
    (1, (1, 1), (11, 300), (11, 300)),
    (2, (40, 90), (13, 31), (12, 31)),
    (2, (150, 600), (4, 9), (4, 8)),
]


def sample(B: int, C: int, size: tuple[int, int], truth: tuple[int, int], dtype: torch.dtype) -> tuple:
    """Logits that are multiples of 1/8, so that classes tie, and truth with void."""
    generator = torch.Generator().manual_seed(C)
    x = ((24 * torch.randn(B, C, *size, generator=generator)).round() / 8).to(dtype)
    values = torch.tensor([*range(min(C, 255)), 255], dtype=torch.uint8)
    return x, values[torch.randint(0, len(values), (B, *truth), generator=generator)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("classes", [2, 11, 19, 64, 65, 256])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_cpu_to_the_last_pixel(shape: tuple, classes: int, dtype: torch.dtype) -> None:
    """Both layouts, align_corners and a truth of other strides; the CPU adds up in the order that CUDA has."""
    B, low, size, counted = shape
    if B * classes * low[0] * low[1] > 5e7:
        pytest.skip("much, and nothing new")
    x, truth = sample(B, classes, low, counted, dtype)
    for align_corners in (True, False):
        expected = torch.zeros(classes, classes, dtype=torch.int64)
        confusion_cpu.confusion(x, truth, expected, size, align_corners, split=0)
        for layout in (torch.contiguous_format, torch.channels_last):
            device = x.cuda().contiguous(memory_format=layout)
            for given in (truth.cuda(), truth.mT.contiguous().cuda().mT):
                counts = confusion_counts(device, given, size, align_corners=align_corners)
                assert torch.equal(counts.cpu(), expected)


def test_agrees_with_float64_where_a_class_is_clearly_the_largest() -> None:
    x, truth = sample(2, 19, (128, 256), (512, 1024), torch.float32)
    x += 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    first, second = reference.upsample(x, (512, 1024)).topk(2, dim=1).values.unbind(1)
    truth[first - second < 1e-3] = 255
    counts = confusion_counts(x.cuda(), truth.cuda(), (512, 1024))
    assert torch.equal(counts.cpu(), reference.confusion(x, truth, (512, 1024)))


def test_what_is_not_finite_counts_as_in_argmax() -> None:
    for bad in (float("nan"), float("inf"), float("-inf")):
        x, truth = sample(2, 11, (23, 30), (90, 120), torch.float32)
        x[0, 4, 3, ::2] = x[0, 9, ::3, 4] = x[1, :, 0, 0] = bad
        prediction = reference.upsample32(x, (90, 120), True, split=0).argmax(1)
        counts = confusion_counts(x.cuda(), truth.cuda(), (90, 120))
        assert torch.equal(counts.cpu(), reference.count(prediction, truth, 11))


def test_adds_to_counts_on_the_current_stream_and_in_a_graph() -> None:
    x, truth = (t.cuda() for t in sample(2, 19, (23, 30), (90, 120), torch.bfloat16))
    expected = confusion_counts(x, truth, (90, 120))
    counts = torch.zeros_like(expected)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        confusion_counts(x, truth, (90, 120), counts=counts)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        confusion_counts(x, truth, (90, 120), counts=counts)
    graph.replay()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(counts, 3 * expected)


def test_an_evaluations_batch_waits_for_nothing() -> None:
    x, truth = (t.cuda() for t in sample(2, 19, (23, 30), (90, 120), torch.bfloat16))
    counts = confusion_counts(x, truth, (90, 120))  # compiled now
    torch.cuda.set_sync_debug_mode("error")
    try:
        confusion_counts(x, truth, (90, 120), counts=counts)
    finally:
        torch.cuda.set_sync_debug_mode("default")
