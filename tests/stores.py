"""What a store must hold, by Pillow and NumPy alone; and changes to the files that it was made of."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from meal_gpu.config import DataConfig
from meal_gpu.data.datasets import open_dataset
from meal_gpu.data.ingest import ingest
from meal_gpu.data.store import Store
from meal_gpu.errors import InputError

Make = Callable[..., Path]
Configure = Callable[..., DataConfig]


def expected(data: DataConfig, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """What a store must hold, by Pillow and NumPy alone."""
    dataset, (height, width) = open_dataset(data), data.image_size
    images, masks = [], []
    for sample in getattr(dataset, split):
        images.append(np.array(Image.open(sample.image).resize((width, height), Image.Resampling.BILINEAR)))
        ids = np.array(Image.open(sample.mask).resize((width, height), Image.Resampling.NEAREST))
        masks.append(dataset.to_class[ids])
    return np.array(images), np.array(masks)


def check(store: Store | None, data: DataConfig, split: str = "train", resized: bool = False) -> None:
    """Equal to the byte where nothing is resized; else see `check_resized`."""
    assert store is not None
    assert store.masks is not None
    images, masks = expected(data, split)
    if resized:
        check_resized(store.images, images)
    else:
        np.testing.assert_array_equal(store.images, images)
    np.testing.assert_array_equal(store.masks, masks)
    store.verify()


def check_resized(found: np.ndarray, by_pillow: np.ndarray) -> None:
    """Within one level of Pillow's bilinear filter with antialiasing.

    Not at the border, where decoders differ in what they take for the pixels outside of the image.
    """
    assert found.shape == by_pillow.shape
    inner = np.abs(found.astype(int) - by_pillow)[:, 2:-2, 2:-2]
    assert inner.size > 0
    assert inner.max() <= 1


def refused(data: DataConfig) -> str:
    with pytest.raises(InputError) as caught:
        ingest(data)
    return str(caught.value)


def touch(root: Path) -> None:
    os.utime(root / "train" / "seq_00001.png", ns=(1, 1))


def change(root: Path) -> None:
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(root / "train" / "seq_00001.png")


def change_mask(root: Path) -> None:
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(root / "trainannot" / "seq_00001.png")


def add(root: Path) -> None:
    for name in ("train", "trainannot"):
        shutil.copy(root / name / "seq_00001.png", root / name / "seq_000005.png")


def remove(root: Path) -> None:
    for name in ("train", "trainannot"):
        (root / name / "seq_00001.png").unlink()
