"""Small data sets to be ingested."""

from pathlib import Path
from typing import Any

import pytest
from habits import Folder
from stores import Configure, Make

from meal_gpu.config import DataConfig


@pytest.fixture
def config(tmp_path: Path, make_camvid: Make) -> Configure:
    """``config(n=4, size=(24, 32), **keys)`` -> a CamVid-shaped data set of that many images and that size."""

    def make(n: int = 4, n_val: int = 2, size: tuple[int, int] = (24, 32), **keys: Any) -> DataConfig:
        root = make_camvid(n=n, n_val=n_val, size=size)
        return DataConfig.model_validate(
            {"dataset": "camvid", "root": root, "store": tmp_path / "store", "image_size": size, "grid": (2, 2)} | keys)

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)
