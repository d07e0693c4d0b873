"""What is said of the machine that the tests run on."""

import torch

from meal_gpu import machine


def test_the_machine_card_is_complete():
    card = machine.card()
    assert card["torch"] == torch.__version__.split("+")[0] or card["torch"] == torch.__version__
    assert {"meal_gpu", "python", "platform", "cpu", "cores", "threads", "memory_gb", "timm", "umap-learn"} <= set(card)
    assert all(value not in (None, "", 0) for value in card.values())


def test_free_memory_is_less_than_all_of_it():
    total = machine.card()["memory_gb"]
    assert isinstance(total, float)
    assert 0 < machine.free_bytes(torch.device("cpu")) < total * 1e9
