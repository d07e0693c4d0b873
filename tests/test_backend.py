"""The choices of a run and their reasons, on the machine that the tests run on."""

import pytest
import torch

from meal_gpu.backend import machine, resolve
from meal_gpu.config import Config
from meal_gpu.errors import InputError

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")


def test_what_is_asked_for_is_taken():
    backend = resolve(Config.load({}, ["device=cpu", "model.precision=bfloat16", "umap.backend=umap-learn",
                                       "data.budget_gb=1.5"]))
    assert backend.device == torch.device("cpu")
    assert backend.dtype == torch.bfloat16
    assert backend.budget_bytes == 1_500_000_000
    assert {backend.device_reason, backend.dtype_reason, backend.umap_reason} == {"asked for"}
    assert backend.choices()["memory budget"].startswith("1.5 GB")


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_autocast_multiplies_in_the_chosen_precision(precision, dtype):
    backend = resolve(Config.load({}, ["device=cpu", f"model.precision={precision}"]))
    x = torch.randn(3, 3)
    with backend.autocast():
        assert (x @ x).dtype == dtype
    assert (x @ x).dtype == torch.float32


@no_cuda
def test_cuda_that_is_not_there_is_refused_and_auto_takes_the_cpu():
    with pytest.raises(InputError, match=r"device is 'cuda', but .*Use device: cpu or auto"):
        resolve(Config.load({}, ["device=cuda"]))
    backend = resolve(Config())
    assert backend.device.type == "cpu"
    assert "CUDA" in backend.device_reason


def test_cuml_is_refused_while_there_is_no_code_for_it():
    with pytest.raises(InputError, match=r"Use umap.backend: auto or umap-learn"):
        resolve(Config.load({}, ["umap.backend=cuml", "device=cpu"]))


def test_the_budget_is_half_of_what_is_free():
    budget = resolve(Config.load({}, ["device=cpu"])).budget_bytes
    total = machine()["memory_gb"]
    assert isinstance(total, float)
    assert 0 < budget <= total * 1e9 / 2


def test_the_machine_card_is_complete():
    card = machine()
    assert card["torch"] == torch.__version__.split("+")[0] or card["torch"] == torch.__version__
    assert {"meal_gpu", "python", "platform", "cpu", "cores", "threads", "memory_gb", "timm", "umap-learn"} <= set(card)
    assert all(value not in (None, "", 0) for value in card.values())
