"""A pool in Cityscapes' form without Cityscapes: drawn street scenes of 2048 × 1024 in its folders, with its ids."""

from pathlib import Path

import numpy as np
from PIL import Image

from meal_gpu.scenes import CLASSES, draw_scene

LABEL_IDS = {"sky": 23, "building": 11, "pole": 17, "road": 7, "pavement": 8, "tree": 21, "sign": 20,
             "traffic light": 19, "car": 26, "pedestrian": 24, "bicyclist": 25}
SIZE = (1024, 2048)


def draw_cityscapes(root: Path, n: int, n_val: int, size: tuple[int, int] = SIZE) -> None:
    """Write n scenes for the pool and n_val for validation: 11 of the 19 classes occur, the network has all 19."""
    table = np.zeros(256, np.uint8)  # 0 is "unlabeled": void
    table[: len(CLASSES)] = [LABEL_IDS[name] for name in CLASSES]
    for split, (name, count) in enumerate((("train", n), ("val", n_val))):
        images, masks = root / "leftImg8bit" / name / "drawn", root / "gtFine" / name / "drawn"
        for folder in (images, masks):
            folder.mkdir(parents=True)
        for index in range(count):
            pixels, ids = draw_scene(index, split, size)
            stem = f"drawn_{index:06d}_000019"
            Image.fromarray(pixels).save(images / f"{stem}_leftImg8bit.png")
            Image.fromarray(table[ids]).save(masks / f"{stem}_gtFine_labelIds.png")
