"""What is said of the machine that the tests run on."""

import gc

import pytest
import torch
from tiny import tiny_config

from meal_gpu.config import Config
from meal_gpu.engine.experiment import prepare
from meal_gpu.errors import InputError
from meal_gpu.machine.backend import resolve
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


def test_a_config_says_how_many_threads_and_gives_them_back(tmp_path):
    before = torch.get_num_threads()
    experiment = prepare(tiny_config(tmp_path, threads=before + 1, **{"query.strategy": "random"}))
    try:
        assert torch.get_num_threads() == before + 1
        resolve(experiment.config)
        assert torch.get_num_threads() == before + 1
        assert card()["threads"] == before + 1
    finally:
        experiment.close()
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("threads", ["auto", 2])
def test_an_experiment_that_nobody_closes_changes_nothing_when_it_is_collected(tmp_path, threads):
    """It would change the number in the middle of another run, whose sums would be of another order from there on."""
    before = torch.get_num_threads()
    left = prepare(tiny_config(tmp_path, threads=threads, **{"query.strategy": "random"}))
    try:
        torch.set_num_threads(3)
        left.ring = left  # collected some time later
        del left
        gc.collect()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "many", None])
def test_a_number_of_threads_that_is_none(threads):
    with pytest.raises(InputError, match=r"threads is .*\. Give a number of threads \(at least 1\), or auto\."):
        Config.load({"threads": threads})
