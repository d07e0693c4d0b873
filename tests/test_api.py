"""What a notebook imports: the list, where each name comes from, and that the import itself costs nothing."""

import importlib
import subprocess
import sys

import pytest

import meal_gpu

HOMES = {
    "run": "launch", "resume": "launch", "Config": "config", "InputError": "errors", "LabelsMissingError": "errors",
    "Pool": "stages.pool", "PoolView": "strategies.select", "Strategy": "strategies.select",
    "STRATEGIES": "strategies.select",
    "DeepLabV3Plus": "network.model", "load_run": "report.runs",
    "query": "library.query", "Manifold": "library.manifold", "Onnx": "library.onnxfile",
}


def test_the_list():
    assert set(meal_gpu.__all__) == {*HOMES, "kernels"} <= set(dir(meal_gpu))
    for name, home in HOMES.items():
        assert getattr(meal_gpu, name) is getattr(importlib.import_module(f"meal_gpu.{home}"), name)
    with pytest.raises(AttributeError, match="has no attribute 'stategies'"):
        meal_gpu.stategies  # noqa: B018


def test_importing_it_imports_nothing():
    """In a fresh interpreter; the kernels come when they are asked for."""
    code = ("import sys; before = set(sys.modules); import meal_gpu; dir(meal_gpu); "
            "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before})); "
            "assert callable(meal_gpu.kernels.patch_entropy)")
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    heavy = {"torch", "numba", "numpy", "pydantic", "rich", "typer", "yaml"}
    assert not heavy & set(ended.stdout.split())
    assert "meal_gpu" in ended.stdout.split()
