"""The weights that ship as ``model.weights: demo``: a backbone that has learned on drawn street scenes.

    python -m meal_gpu.configs.backbone [FILE]        # default: configs/demo.safetensors

``demo_backbone.yaml`` says on which scenes and how. One thread computes, so that the number of cores changes nothing:
on one machine, with equal versions of PyTorch and NumPy, the file is the same every time. Another processor rounds
differently, and training carries that into every bit.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save

import meal_gpu
from meal_gpu.files import write_atomic
from meal_gpu.network.backbone import SHIPPED
from meal_gpu.report import load_run

PREFIX = "backbone."


def make(file: Path, overrides: list[str] | None = None) -> float:
    """Train by ``demo_backbone.yaml``, keep the backbone in ``file``, and return the network's mIoU on other scenes."""
    config = meal_gpu.Config.load("demo_backbone", overrides)
    assert config.model.backbone == SHIPPED["demo"]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if config.data.store is None:
            config = config.revised("data", store=Path(folder) / "store")
        run = meal_gpu.run(config, Path(folder) / "run", _say)
        trained = load_file(run / "seed-0" / "model.safetensors")
        miou = load_run(run).seeds[0].rounds[-1].miou
    weights = {name.removeprefix(PREFIX): value for name, value in trained.items() if name.startswith(PREFIX)}
    # One entry: safetensors writes several in an order that changes.
    write_atomic(file, save(weights, {"origin": "python -m meal_gpu.configs.backbone; Apache-2.0"}))
    return float(miou or 0)


def _say(stage: str, done: int, total: int) -> None:
    if stage == "train":
        print(f"epoch {done} of {total}", flush=True)


def main() -> None:
    if len(sys.argv) > 2:
        sys.exit("Usage: python -m meal_gpu.configs.backbone [FILE]")
    file = Path(sys.argv[1]) if len(sys.argv) == 2 else Path(__file__).with_name("demo.safetensors")
    start, cpu = time.perf_counter(), time.process_time()
    miou = make(file)
    print(f"{file}: {file.stat().st_size / 1e6:.2f} MB, mIoU {miou:.3f} on validation scenes, "
          f"{time.perf_counter() - start:.0f} s, {time.process_time() - cpu:.0f} s of the processor")


if __name__ == "__main__":
    main()
