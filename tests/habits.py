"""A data set as a person has it: images and masks as they are given."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from meal_gpu.config import DataConfig
from meal_gpu.data.ingest import Stores, ingest
from meal_gpu.errors import InputError

RNG = np.random.default_rng(0)
SIZE = (12, 16)
IDS = RNG.integers(0, 3, SIZE).astype(np.uint8)
Picture = Image.Image | np.ndarray


class Folder:
    """A data set that a person has: images and masks as they are given, three classes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("images", "masks"):
            (root / name).mkdir(parents=True)

    def add(self, name: str, image: Picture | None = None, mask: Picture | None = None,
            suffix: str = ".png", **options: Any) -> "Folder":
        image = RNG.integers(0, 256, (*SIZE, 3), np.uint8) if image is None else image
        mask = np.zeros(SIZE, np.uint8) if mask is None else mask
        for what, folder, end, more in ((image, "images", suffix, options), (mask, "masks", ".png", {})):
            picture = Image.fromarray(what) if isinstance(what, np.ndarray) else what
            picture.save(self.root / folder / f"{name}{end}", **more)
        return self

    def data(self, **keys: Any) -> DataConfig:
        return DataConfig.model_validate({
            "dataset": "folder", "root": self.root, "store": self.root / "store", "image_size": SIZE, "grid": (2, 2),
            "val_images": None, "val_masks": None, "class_names": ["road", "tree", "car"], "loader": "torchvision",
            **keys})

    def ingest(self, **keys: Any) -> Stores:
        return ingest(self.data(**keys))

    def masks(self, **keys: Any) -> np.ndarray:
        masks = self.ingest(**keys).train.masks
        assert masks is not None
        return masks

    def refused(self, **keys: Any) -> str:
        with pytest.raises(InputError) as caught:
            self.ingest(**keys)
        return str(caught.value)
