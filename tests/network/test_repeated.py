"""Frames that a batch repeats: values and gradients of indexing, added in one order whatever the threads do."""

import pytest
import torch

from meal_gpu.network.repeated import repeated


def maps(n: int, channels: int, height: int, width: int, dtype=torch.float32) -> torch.Tensor:
    values = torch.randn(n, channels, height, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    return values.contiguous(memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize("place", [[0], [0, 0, 0], [2, 0, 1], [1, 0, 1, 2, 1]])
def test_values_and_gradients_are_those_of_indexing(place):
    x, index = maps(max(place) + 1, 3, 4, 5, torch.float64), torch.tensor(place)
    torch.testing.assert_close(repeated(x, index), x[index], rtol=0, atol=0)
    assert repeated(x, index).is_contiguous(memory_format=torch.channels_last)
    assert torch.autograd.gradcheck(lambda x: repeated(x, index), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_is_one_with_two_threads(dtype):
    """Four entries of one frame, spread over the batch, so that both threads add to it. In float32
    ``x[index]`` gives other sums in a few of a hundred calls."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        x, index = maps(2, 16, 60, 80, dtype), torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])
        upstream = torch.randn(8, 16, 60, 80, generator=torch.Generator().manual_seed(1)).to(dtype)
        upstream = upstream.contiguous(memory_format=torch.channels_last)
        found = [torch.autograd.grad(repeated(x, index), x, upstream)[0] for _ in range(100)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found)
    expected = torch.stack([upstream[0::2].double().sum(0), upstream[1::2].double().sum(0)])
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(found[0].double(), expected, rtol=tolerance, atol=tolerance)
