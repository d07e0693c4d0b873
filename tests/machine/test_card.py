"""What is said of the machine that the tests run on."""

import torch

from meal_gpu.machine.card import card, free_bytes


def test_the_machine_card_is_complete():
    found = card()
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert set(found) >= {"meal_gpu", "python", "platform", "cpu", "cores", "threads", "memory_gb", "timm",
                          "umap-learn"}
    assert all(value not in (None, "", 0) for value in found.values())


def test_free_memory_is_less_than_all_of_it():
    total = card()["memory_gb"]
    assert isinstance(total, float)
    assert 0 < free_bytes(torch.device("cpu")) < total * 1e9
