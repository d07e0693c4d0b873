"""Dropout: rate, scale, independence and gradient."""

import pytest
import torch

from meal_gpu.network.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_rate_and_scale(p, dtype):
    torch.manual_seed(0)
    n = 400_000
    x = torch.full((4, 10, 100, n // 4000), 2.0, dtype=dtype)
    y = Dropout(p).train()(x)
    assert y.dtype == dtype
    assert y.shape == x.shape
    kept = y[y != 0]
    assert abs(1 - len(kept) / n - p) < 5 * (p * (1 - p) / n) ** 0.5
    torch.testing.assert_close(kept.float(), torch.full_like(kept.float(), 2 / (1 - p)), rtol=1e-2 if
                               dtype == torch.bfloat16 else 1e-4, atol=0)


def test_dropout_drops_elements_independently():
    """Neighbours in memory come from one draw of 64 bits: they must not be alike."""
    torch.manual_seed(1)
    n = 300_000
    kept = (Dropout(0.5).train()(torch.ones(1, 4, 1, n)) != 0).double()
    correlation = torch.corrcoef(kept.view(4, n))
    assert (correlation - torch.eye(4)).abs().max() < 5 / n**0.5
    assert (kept.view(4, n).mean(1) - 0.5).abs().max() < 5 * 0.5 / n**0.5


def test_dropout_is_the_identity_in_eval_and_the_seeds_function_in_training():
    x = torch.randn(2, 3, 5, 7)  # 210 elements: not a multiple of four
    dropout = Dropout(0.5)
    assert dropout.eval()(x) is x
    dropout.train()
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append(dropout(x))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_dropouts_gradient_is_its_mask():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 7, requires_grad=True)
    y = Dropout(0.5).train()(x)
    y.sum().backward()
    assert torch.equal(x.grad, torch.where(y != 0, 2.0, 0.0))
