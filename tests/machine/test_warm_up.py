"""What is compiled while other work goes on: what a run will call, whatever happens to one part of it."""

import pytest
import torch

from meal_gpu.kernels import confusion_cpu, entropy_cpu
from meal_gpu.machine import umap_learn
from meal_gpu.machine.warm_up import warm_up


@pytest.fixture
def fresh():
    for kernel in (confusion_cpu.kernel, entropy_cpu.kernel):
        kernel.cache_clear()


def ready() -> list[int]:
    return [kernel.cache_info().currsize for kernel in (confusion_cpu.kernel, entropy_cpu.kernel)]


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(("device", "scores", "expected"), [("cpu", True, [1, 1]), ("cpu", False, [1, 0]),
                                                            ("cuda", True, [0, 0])])
def test_the_kernels_of_a_run_on_the_cpu(device, scores, expected):
    warm_up(torch.device(device), scores, embeds=False, placing=False).join()
    assert ready() == expected


@pytest.mark.usefixtures("fresh")
def test_what_fails_keeps_nothing_else_from_being_ready(monkeypatch):
    """Whoever needs it says what is wrong, in the main thread."""
    asked = []

    def broken():
        raise OSError("no space left")

    monkeypatch.setattr(confusion_cpu, "kernel", broken)
    monkeypatch.setattr(umap_learn, "compile_ahead", asked.append)
    warm_up(torch.device("cpu"), scores=True, embeds=True, placing=True).join()
    assert entropy_cpu.kernel.cache_info().currsize == 1
    assert asked == [True]
