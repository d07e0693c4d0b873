"""`confusion_counts` on the CPU: torch's own predictions to the last pixel, the float64 reference, its promises."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from meal_gpu.kernels import confusion_counts, confusion_cpu, cost, reference
from meal_gpu.kernels.op import confusion_add

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Batch, low-resolution size, size. Why these: x4; odd sizes; no upsampling; one pixel and one row; a single cell
# stretched; shrinking; more than 8 pixels per cell; wider than a tile by a little.
SHAPES = {
    "x4": (2, (16, 20), (64, 80)),
    "odd": (2, (23, 30), (90, 117)),
    "identity": (2, (13, 21), (13, 21)),
    "one-pixel": (1, (1, 1), (1, 1)),
    "one-row": (1, (1, 9), (1, 40)),
    "one-cell": (1, (1, 1), (11, 150)),
    "shrink": (1, (40, 300), (13, 131)),
    "x16": (1, (3, 10), (48, 160)),
    "tile+1": (1, (5, 33), (18, 129)),
}


def random_logits(classes: int, shape: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    B, (h, w), _ = SHAPES[shape]
    x = 3 * torch.randn(B, classes, h, w, generator=torch.Generator().manual_seed(classes))
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def random_truth(x: torch.Tensor, size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """Some classes and void, in no order."""
    values = torch.tensor([*range(min(x.shape[1], 255)), 255], dtype=torch.uint8)
    return values[torch.randint(0, len(values), (x.shape[0], *size), generator=torch.Generator().manual_seed(seed))]


def chain(x: torch.Tensor, truth: torch.Tensor, size: tuple[int, int], align_corners: bool = True) -> torch.Tensor:
    """What evaluation was before the kernel."""
    up = F.interpolate(x.float(), size, mode="bilinear", align_corners=align_corners)
    prediction = up.argmax(1)[:, : truth.shape[1], : truth.shape[2]]
    return reference.count(prediction, truth, x.shape[1])


@pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "centres"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("classes", [4, 11, 19, 64])
def test_equals_torchs_chain_and_its_arithmetic_bit_for_bit(classes: int, shape: str, align_corners: bool) -> None:
    """Whatever the dtype; logits that are multiples of 1/4 tie often."""
    _, _, size = SHAPES[shape]
    for dtype in DTYPES:
        for coarse in (False, True):
            x = random_logits(classes, shape, dtype)
            x = (4 * x).round() / 4 if coarse else x
            truth = random_truth(x, size)
            ours = confusion_counts(x, truth, size, align_corners=align_corners)
            assert torch.equal(ours, chain(x, truth, size, align_corners))
    up = reference.upsample32(x, size, align_corners, reference.vector_classes(classes))
    assert torch.equal(up, F.interpolate(x.float(), size, mode="bilinear", align_corners=align_corners))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("classes", [2, 3, 19, 256])
def test_equals_the_reference_where_a_class_is_clearly_the_largest(classes: int, shape: str) -> None:
    _, _, size = SHAPES[shape]
    for align_corners in (True, False):
        x = random_logits(classes, shape)
        truth = random_truth(x, size)
        first, second = reference.upsample(x, size, align_corners).topk(2, dim=1).values.unbind(1)
        if classes < 256:
            truth[first - second < 1e-3] = 255
            wrong = 0
        else:
            wrong = 2 * int((first - second < 1e-3).sum())
        ours = confusion_counts(x, truth, size, align_corners=align_corners)
        expected = reference.confusion(x, truth, size, align_corners)
        assert int((ours - expected).abs().sum()) <= wrong
        assert int(ours.sum()) == int((truth.long() < classes).sum())


def test_the_reference_by_hand() -> None:
    """Two classes on 1 x 2 positions stretched to 1 x 3 pixels: 0, a tie in the middle (the first class), 1; void."""
    x = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
    truth = torch.tensor([[[1, 1, 1]], ], dtype=torch.uint8)
    for counted in (reference.confusion, confusion_counts):
        assert counted(x, truth, (1, 3)).tolist() == [[0, 0], [2, 1]]
        assert counted(x, torch.tensor([[[0, 2, 255]]], dtype=torch.uint8), (1, 3)).tolist() == [[1, 0], [0, 0]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("shape", ["identity", "odd"])
def test_what_is_not_finite_counts_as_in_torch(bad: float, shape: str) -> None:
    """The first NaN wins over all; an infinite logit makes NaN where its weight is 0, as in torch."""
    _, _, size = SHAPES[shape]
    x = random_logits(11, shape)
    x[0, 4, 2, 3] = x[0, 9, 2, 4] = x[1, 2, 0, 0] = bad
    truth = random_truth(x, size)
    assert torch.equal(confusion_counts(x, truth, size), chain(x, truth, size))


def test_every_tie_goes_to_the_first_class() -> None:
    x = torch.zeros(1, 7, 5, 6)
    x[:, 3:] = 1
    counts = confusion_counts(x, torch.full((1, 20, 24), 2, dtype=torch.uint8), (20, 24))
    assert counts[2, 3] == 480
    assert counts.sum() == 480


def test_memory_layouts_agree() -> None:
    for dtype in DTYPES:
        x = random_logits(11, "odd", dtype)
        truth = random_truth(x, (90, 117))
        expected = confusion_counts(x, truth, (90, 117))
        padded = torch.zeros(2, 11, 25, 32, dtype=dtype)
        padded[:, :, 1:-1, 1:-1] = x
        for same in (x.contiguous(), padded[:, :, 1:-1, 1:-1], x.mT.contiguous().mT):
            assert torch.equal(confusion_counts(same, truth, (90, 117)), expected)
        wide = torch.full((2, 92, 240), 7, dtype=torch.uint8)
        wide[:, 1:91, 1:235:2] = truth
        assert torch.equal(confusion_counts(x, wide[:, 1:91, 1:235:2], (90, 117)), expected)


def test_the_remainder_beyond_the_truth_is_not_counted() -> None:
    x = random_logits(5, "odd")
    truth = random_truth(x, (88, 112))
    assert torch.equal(confusion_counts(x, truth, (90, 117)), chain(x, truth, (90, 117)))
    whole = torch.full((2, 90, 117), 255, dtype=torch.uint8)
    whole[:, :88, :112] = truth
    assert torch.equal(confusion_counts(x, whole, (90, 117)), confusion_counts(x, truth, (90, 117)))


def test_any_number_of_threads_and_parts_of_a_batch_give_the_same() -> None:
    x = random_logits(19, "odd")
    truth = random_truth(x, (90, 117))
    expected, before = confusion_counts(x, truth, (90, 117)), torch.get_num_threads()
    try:
        for threads in (1, 2, 3):  # more than numba has are clipped
            torch.set_num_threads(threads)
            assert torch.equal(confusion_counts(x, truth, (90, 117)), expected)
    finally:
        torch.set_num_threads(before)
    counts = torch.zeros(19, 19, dtype=torch.int64)
    for i in range(2):
        assert confusion_counts(x[i : i + 1], truth[i : i + 1], (90, 117), counts=counts) is counts
    assert torch.equal(counts, expected)


def test_nothing_to_count() -> None:
    assert not confusion_counts(torch.empty(0, 5, 4, 4), torch.empty(0, 8, 8, dtype=torch.uint8), (8, 8)).any()
    assert not confusion_counts(torch.ones(1, 5, 4, 4), torch.empty(1, 0, 8, dtype=torch.uint8), (8, 8)).any()


GOOD = {"logits": torch.zeros(1, 3, 4, 5), "truth": torch.zeros(1, 8, 10, dtype=torch.uint8), "size": (8, 10)}


@pytest.mark.parametrize(
    ("error", "says", "arguments"),
    [
        (TypeError, "give a torch.Tensor", {"logits": np.zeros((1, 3, 4, 5))}),
        (ValueError, "classes", {"logits": torch.zeros(1, 257, 2, 2)}),
        (TypeError, "size", {"size": (8.0, 10)}),
        (TypeError, "truth is torch.int64", {"truth": torch.zeros(1, 8, 10, dtype=torch.int64)}),
        (TypeError, "truth is a ndarray", {"truth": np.zeros((1, 8, 10), np.uint8)}),
        (ValueError, r"truth is \(2, 8, 10\)", {"truth": torch.zeros(2, 8, 10, dtype=torch.uint8)}),
        (ValueError, "at most the 8 x 10", {"truth": torch.zeros(1, 9, 10, dtype=torch.uint8)}),
        (ValueError, "on meta", {"truth": torch.zeros(1, 8, 10, dtype=torch.uint8, device="meta")}),
        (ValueError, "contiguous torch.int64", {"counts": torch.zeros(3, 3)}),
        (ValueError, "not contiguous", {"counts": torch.zeros(3, 6, dtype=torch.int64)[:, ::2]}),
    ],
)
def test_bad_arguments(error: type[Exception], says: str, arguments: dict) -> None:
    with pytest.raises(error, match=says):
        confusion_counts(**(GOOD | arguments))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype: torch.dtype) -> None:
    """Schema (what is mutated), fake implementation, autograd registration, tracing with dynamic shapes."""
    x = random_logits(5, "x4", dtype)
    torch.library.opcheck(
        confusion_add, (x, random_truth(x, (60, 80)), torch.zeros(5, 5, dtype=torch.int64), 64, 80, True)
    )


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "cpu"])
def test_fake_tensors(device: str) -> None:
    """Nothing runs, nothing lands on another device, and nothing asks for a value."""
    with FakeTensorMode():
        x = torch.empty(3, 11, 23, 30, device=device, dtype=torch.bfloat16)
        counts = confusion_counts(x, torch.empty(3, 90, 120, dtype=torch.uint8, device=device), (90, 120))
    assert counts.shape == (11, 11)
    assert counts.dtype == torch.int64
    assert counts.device == x.device


def test_one_specialisation_and_one_plan_per_shape() -> None:
    confusion_cpu.plan.cache_clear()
    for _ in range(3):
        confusion_counts(**GOOD)
    assert confusion_cpu.plan.cache_info().misses == 1
    assert len(confusion_cpu.KERNEL().signatures) == 1


def test_cost_counts() -> None:
    """By hand for 2 classes on 1 x 2 positions, 1 x 4 pixels of which 3 are counted, float16."""
    c = cost.confusion((1, 2, 1, 2), (1, 4), (1, 3), item_bytes=2)
    assert (c.pixels, c.bytes_read, c.bytes_written, c.exps) == (4, 2 * 2 * 2 + 3, 8 * 4, 0)
    assert c.flops == 3 * (2 * 8 + 4)
