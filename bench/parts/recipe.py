"""What a training step of each part of the recipe costs beside a plain one: ``python -m meal_gpu.bench.parts.recipe``.

On noise of CamVid's size with the frozen backbone of ``camvid``, whose features a plain step reads from a cache. The
parts take turns, and each is divided by the plain step of its turn: processors' time, which neighbours on a shared
machine take less from than from the clock's.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from meal_gpu.config import Config, TrainConfig
from meal_gpu.data.frames import HeldFrames
from meal_gpu.files import write_atomic
from meal_gpu.machine.backend import resolve
from meal_gpu.machine.card import card
from meal_gpu.network.build import build
from meal_gpu.network.features import Features
from meal_gpu.stages.lessons import Lessons
from meal_gpu.stages.recipe import MovingMean, optimiser_of
from meal_gpu.stages.train import train_epoch
from meal_gpu.sweepfile import load_points

from ..timing.measure import quantile

SWEEP = Path(__file__).resolve().parents[1] / "results" / "camvid_recipe" / "small.yaml"
IMAGES, TURNS = 24, 5


def step_of(config: Config, features: Features) -> Callable[[], None]:
    """One step of a training by this config, on labelled patches of as many images as a batch has patches."""
    torch.manual_seed(0)
    model, grid = build(11, config.model.without_weights), features.frames.grid
    order, batch = torch.Generator().manual_seed(0), torch.arange(config.train.batch_size)
    images = torch.arange(features.frames.count)
    ids = images * grid.cells + images % grid.cells
    labels = torch.randint(0, 11, (len(ids), grid.patch_height, grid.patch_width), generator=order, dtype=torch.uint8)
    optimiser, mean = optimiser_of(model, config.train), MovingMean(model, config.train.ema)
    lessons = Lessons.of(model, features, ids, ids, labels, config.train, order, mean)

    def step() -> None:
        train_epoch(model.train(), features, ids, labels, [batch], ids, optimiser, features.backend, mean.follow,
                    lessons)

    return step


def measured(config: Config, images: int = IMAGES, turns: int = TURNS) -> dict[str, list[float]]:
    """Of each part by its name: a step's time over that of a plain one beside it; 20 %, median, 80 % of the turns."""
    points = {point.name.partition("-seed-")[0]: point.config.train for point in load_points(SWEEP)}
    plain, *_ = points
    backend, grid = resolve(config), config.data.tiling()
    noise = torch.randint(0, 256, (images, grid.height, grid.width, 3), dtype=torch.uint8)
    features = Features.of(HeldFrames.of(noise, grid, "image", backend.device), build(11, config.model), backend,
                           cached=True)
    batch = {"batch_size": config.train.batch_size}
    steps = {part: step_of(config.revised("train", **train.model_dump() | batch), features)
             for part, train in points.items() if part == plain or _of_a_step(train) != _of_a_step(points[plain])}
    ratios: dict[str, list[float]] = {part: [] for part in steps}
    for turn in range(turns + 1):  # the first is not counted
        seconds = {part: _timed(step) for part, step in steps.items()}
        for part in steps if turn else ():
            ratios[part].append(seconds[part] / seconds[plain])
    return {part: [quantile(values, at) for at in (0.2, 0.5, 0.8)] for part, values in ratios.items()}


def main() -> None:
    config, machine = Config.load("camvid", ["device=cpu", "model.weights=none"]), card()
    height, width = config.data.image_size
    text = json.dumps({
        "what": f"{config.train.batch_size} patches of images of {height} x {width} pixels, frozen backbone, "
                f"{resolve(config).dtype}".replace("torch.", ""),
        "cpu": machine["cpu"], "threads": torch.get_num_threads(), "torch": torch.__version__.partition("+")[0],
        "turns": TURNS, "steps": measured(config)}, indent=1)
    if len(sys.argv) > 1:
        write_atomic(Path(sys.argv[1]), (text + "\n").encode())
    else:
        print(text)


def _of_a_step(train: TrainConfig) -> TrainConfig:
    """Without what changes how many steps there are, and their rates."""
    return train.model_copy(update={"min_steps": 0, "schedule": "step"})


def _timed(step: Callable[[], None]) -> float:
    began = time.process_time()
    step()
    return time.process_time() - began


if __name__ == "__main__":
    main()
