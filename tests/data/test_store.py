"""The store is built again exactly when it must be, and what does not change is kept."""

import json
import logging
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from stores import Configure, Make, add, change, change_mask, check, remove, touch

from meal_gpu.config import DataConfig
from meal_gpu.data.ingest import ingest
from meal_gpu.data.store import Store
from meal_gpu.errors import InputError


def identity(data: DataConfig) -> tuple[int, int]:
    """Inode and time of the training store: a store that was built again has others."""
    status = (ingest(data).train.path / "images.u8").stat()
    return status.st_ino, status.st_mtime_ns


def test_a_fresh_store_is_opened_and_nothing_is_decoded(config: Configure) -> None:
    data = config()
    before, calls = identity(data), []
    ingest(data, lambda *call: calls.append(call))
    assert identity(data) == before
    assert calls == []


@pytest.mark.parametrize(("alter", "why", "kept"), [
    (touch, "the files of seq_00001 have changed", 3), (change, "the files of seq_00001 have changed", 3),
    (change_mask, "the files of seq_00001 have changed", 3), (add, "files were added or removed", 4),
    (remove, "files were added or removed", 3)])
def test_a_stale_store_is_rebuilt_and_keeps_what_did_not_change(
        alter: Callable[[Path], None], why: str, kept: int, config: Configure, caplog: pytest.LogCaptureFixture,
) -> None:
    data = config()
    old = ingest(data).train
    pixels = np.array(old.images)
    assert data.root is not None
    alter(data.root)
    with caplog.at_level(logging.INFO, "meal_gpu"):
        check(ingest(data).train, data)
    assert why in caplog.text
    assert f"previous store: {kept} unchanged images" in caplog.text
    np.testing.assert_array_equal(old.images, pixels)  # who has the old store open keeps reading it
    check(ingest(data).val, data, "val")


def test_damaged_pixels_of_a_stale_store_are_not_taken_over(config: Configure) -> None:
    data = config()
    path = ingest(data).train.path
    pixels = bytearray((path / "images.u8").read_bytes())
    pixels[24 * 32 * 3 * 2 + 5] ^= 1
    (path / "images.u8").write_bytes(pixels)
    assert data.root is not None
    add(data.root)
    check(ingest(data).train, data)


def test_other_settings_have_their_own_store(config: Configure, make_folder: Make, tmp_path: Path) -> None:
    data = config()
    first = ingest(data).train.path
    assert ingest(data.model_copy(update={"image_size": (12, 16)})).train.path != first
    assert ingest(data).train.path == first
    folder = DataConfig(dataset="folder", root=make_folder(), class_names=["a", "b", "c"], store=tmp_path / "store",
                        image_size=(24, 32))
    assert ingest(folder).train.path != ingest(folder.model_copy(update={"masks": None})).train.path
    with pytest.raises(InputError, match="class id 255"):
        ingest(folder.model_copy(update={"ignore_index": 9}))


def _truncate(path: Path) -> None:
    os.truncate(path / "images.u8", 1000)


def _lengthen(path: Path) -> None:
    with open(path / "masks.u8", "ab") as file:
        file.write(b"x")


def _lose(path: Path) -> None:
    (path / "masks.u8").unlink()


def _cut_manifest(path: Path) -> None:
    os.truncate(path / "manifest.json", 200)


def _wrong_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("[1, 2]")


def _poor_manifest(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["checksums"]
    (path / "manifest.json").write_text(json.dumps(manifest))


def _odd_stamps(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["stamps"] = None
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("harm", [_truncate, _lengthen, _lose, _cut_manifest, _wrong_manifest, _poor_manifest,
                                  _odd_stamps])
def test_a_damaged_store_is_rebuilt(harm: Callable[[Path], None], config: Configure, caplog: pytest.LogCaptureFixture
                                    ) -> None:
    data = config()
    path = ingest(data).train.path
    harm(path)
    with caplog.at_level(logging.INFO, "meal_gpu"):
        check(ingest(data).train, data)
    assert f"The store {path} is rebuilt" in caplog.text
    assert sorted(p.name for p in path.parent.iterdir() if path.name in p.name) == [path.name, path.name + ".lock"]


@pytest.mark.parametrize(("file", "row", "name"), [("images.u8", 24 * 32 * 3, "seq_00002"),
                                                   ("masks.u8", 24 * 32, "seq_00001")])
def test_verify_finds_a_flipped_byte_and_names_the_image(file: str, row: int, name: str, config: Configure) -> None:
    data = config()
    store = ingest(data).train
    with open(store.path / file, "r+b") as pixels:
        pixels.seek(int(name[-1]) * row + row // 2)
        byte = pixels.read(1)[0]
        pixels.seek(-1, os.SEEK_CUR)
        pixels.write(bytes([byte ^ 1]))
    with pytest.raises(InputError, match=rf"the pixels of {name} are not those.*rm -r"):
        ingest(data).train.verify()
    shutil.rmtree(store.path)
    check(ingest(data).train, data)


def test_opening_a_fresh_store_writes_nothing(config: Configure) -> None:
    data = config()
    path = ingest(data).train.path
    (path.parent / (path.name + ".lock")).unlink()
    before = sorted(path.parent.iterdir())
    check(ingest(data).train, data)
    assert sorted(path.parent.iterdir()) == before  # not even a lock


def test_opening_a_hundred_thousand_images_reads_none(tmp_path: Path) -> None:
    """A store of 43 GB, all of it a hole in the file system."""
    n, size = 100_000, (300, 480)
    for name, channels in (("images.u8", 3), ("masks.u8", 1)):
        with open(tmp_path / name, "wb") as file:
            file.truncate(n * size[0] * size[1] * channels)
    manifest = {"names": [f"image_{i:06d}" for i in range(n)], "image_size": size, "checksums": [[0, 0]] * n}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    before = resource.getrusage(resource.RUSAGE_SELF)
    store = Store.open(tmp_path)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert (len(store.names), store.images.shape) == (n, (n, *size, 3))
    assert after.ru_inblock == before.ru_inblock
    assert after.ru_maxrss - before.ru_maxrss < 200_000  # KiB: the manifest, not the pixels
    assert store.images[n - 1, 299, 479, 2] == 0
