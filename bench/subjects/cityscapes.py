"""Data sets in Cityscapes' own layout and shape, generated on the spot: folders, PNG files, labelIds.

The pictures are the demo's street scenes with more of a camera's noise, so that their files are about as large as a
camera's: an image of 1024 × 2048 pixels takes 2.3 MB in Cityscapes.
"""

from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from meal_gpu.data.datasets import CITYSCAPES
from meal_gpu.data.scenes import CLASSES, draw_scene
from meal_gpu.files import write_atomic
from meal_gpu.grid import Size
from meal_gpu.machine.limits import usable_cores

NOISE = 1.2
"""Standard deviation in levels."""
_SCENES = 8
"""Scenes that are drawn; images are these, shifted sideways, each with noise of its own."""
_NAMES = {"pavement": "sidewalk", "tree": "vegetation", "sign": "traffic sign", "pedestrian": "person",
          "bicyclist": "bicycle"}
_LABEL_IDS = np.zeros(256, np.uint8)  # 0 is void in labelIds
_LABEL_IDS[: len(CLASSES)] = [CITYSCAPES[_NAMES.get(name, name)][0] for name in CLASSES]


def write(root: Path, n_train: int, n_val: int, size: Size) -> Path:
    """Write ``n_train`` and ``n_val`` images of ``size`` and their labelIds below ``root``; what is there is kept."""
    jobs = [(root, split, i, size) for split, n in (("train", n_train), ("val", n_val)) for i in range(n)
            if not all(path.exists() for path in paths(root, split, i))]
    with ProcessPoolExecutor(usable_cores(), get_context("spawn")) as workers:
        for _ in workers.map(_write, jobs, chunksize=8):  # raises what a worker raised
            pass
    return root


def paths(root: Path, split: str, i: int) -> tuple[Path, Path]:
    """Image and labelIds of one sample. A city has a hundred."""
    city = f"city{i // 100:03d}"
    stem = f"{city}_{i % 100:06d}_000019"
    return (root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png",
            root / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png")


def picture(i: int, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 ``[H, W, 3]`` and labelIds uint8 ``[H, W]``: a function of the number and the size."""
    (image, classes), rng = _scene(i % _SCENES, size), np.random.default_rng([i, *size])
    shift = int(rng.integers(0, size[1]))
    noise = (NOISE * rng.standard_normal(image.shape, np.float32)).round().astype(np.int16)
    return np.roll((image + noise).clip(0, 255).astype(np.uint8), shift, 1), np.roll(_LABEL_IDS[classes], shift, 1)


@cache
def _scene(i: int, size: Size) -> tuple[np.ndarray, np.ndarray]:
    return draw_scene(i, 0, size)


def _write(job: tuple[Path, str, int, Size]) -> None:
    root, split, i, size = job
    number = 2 * i + (split == "val")
    for path, pixels in zip(paths(root, split, i), picture(number, size), strict=True):
        write_atomic(path, partial(Image.fromarray(pixels).save, format="PNG", compress_level=3))
