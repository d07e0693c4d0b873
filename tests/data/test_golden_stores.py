"""Stores of the two published layouts hold the same bytes as ever: how files are read may grow, never move a pixel."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from meal_gpu.config import DataConfig
from meal_gpu.data.ingest import ingest
from meal_gpu.data.store import read_manifest

GOLDEN = {
    "camvid": ("7ad6d33c524db858d73e8ad5", "b9dce0d6351190888b4e5894"),
    "cityscapes": ("af7af733dda3b0fd9e8a750e", "e1c285394482999a987032c1"),
    "folder": ("7ad6d33c524db858d73e8ad5", "65e5dafb346eb664e98789b5"),
}
"""BLAKE2b of ``images.u8`` and ``masks.u8`` of both splits, of files whose size is the store's."""


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("loader", ["dali", "torchvision"])
def test_the_bytes_of_a_store_are_the_same_as_ever(name: str, loader: str, request: pytest.FixtureRequest,
                                                   tmp_path: Path) -> None:
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    make: Callable[..., Path] = request.getfixturevalue(f"make_{name}")
    keys = {"class_names": ["road", "tree", "car"]} if name == "folder" else {}
    data = DataConfig.model_validate({"dataset": name, "root": make(size=(24, 32)), "store": tmp_path / "store",
                                      "image_size": (24, 32), "loader": loader, **keys})
    stores = ingest(data)
    found = []
    for file in ("images.u8", "masks.u8"):
        digest = hashlib.blake2b(digest_size=12)
        for store in filter(None, (stores.train, stores.val)):
            digest.update((store.path / file).read_bytes())
        found.append(digest.hexdigest())
    assert tuple(found) == GOLDEN[name]
    # Other settings would be another directory: everybody's stores would be decoded again.
    assert set(read_manifest(stores.train.path)["settings"]) == {
        "format", "dataset", "split", "image_size", "images", "masks", "to_class", "decoder"}
