"""What is compiled while other work goes on: what a run will call, whatever happens to one part of it."""

import pytest
import torch

from meal_gpu.kernels import confusion_cpu, cut_cpu, entropy_cpu
from meal_gpu.machine import umap_learn
from meal_gpu.machine.warm_up import warm_up

KERNELS = (cut_cpu.kernel, confusion_cpu.kernel, entropy_cpu.kernel)


@pytest.fixture
def fresh():
    for kernel in KERNELS:
        kernel.cache_clear()


def ready() -> list[int]:
    return [kernel.cache_info().currsize for kernel in KERNELS]


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(("device", "scores", "expected"), [("cpu", True, [2, 1, 1]), ("cpu", False, [2, 1, 0]),
                                                            ("cuda", True, [0, 0, 0])])
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


@pytest.mark.usefixtures("fresh")
def test_what_is_needed_first_is_compiled_first(monkeypatch):
    """Numba compiles one thing at a time: reading the first images waited for the kernel of scores."""
    asked = []
    monkeypatch.setattr(cut_cpu, "kernel", lambda part: asked.append(part.__name__))
    monkeypatch.setattr(confusion_cpu, "kernel", lambda: asked.append("confusion"))
    monkeypatch.setattr(entropy_cpu, "kernel", lambda: asked.append("entropy"))
    monkeypatch.setattr(umap_learn, "compile_ahead", lambda placing: asked.append("umap"))
    warm_up(torch.device("cpu"), scores=True, embeds=True, placing=False).join()
    assert asked == ["_runs", "_normalise", "confusion", "entropy", "umap"]
