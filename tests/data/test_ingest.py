"""The store holds the files' pixels; files that do not belong together are refused by name."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stores import Configure, Make, check, check_resized, refused

from meal_gpu.config import DataConfig
from meal_gpu.data.build import build, writing
from meal_gpu.data.datasets import VOID, open_dataset, read_image, read_mask
from meal_gpu.data.ingest import _plan, ingest
from meal_gpu.data.store import Store
from meal_gpu.errors import InputError


def test_a_store_holds_the_pixels_of_the_files(config: Configure) -> None:
    data, calls = config(), []
    stores = ingest(data, lambda *call: calls.append(call))
    check(stores.train, data)
    check(stores.val, data, "val")
    assert stores.train.names == tuple(s.name for s in stores.dataset.train)
    assert (stores.train.images.shape, stores.train.images.dtype) == ((4, 24, 32, 3), np.uint8)
    assert isinstance(stores.train.images, np.memmap)
    assert VOID in stores.train.masks  # type: ignore[operator]
    assert ("ingest train", 4, 4) in calls
    assert calls[-1] == ("ingest val", 2, 2)
    with pytest.raises(ValueError, match="read-only"):
        stores.train.images[0] = 0


@pytest.mark.camvid
def test_real_camvid(camvid_root: Path, tmp_path: Path) -> None:
    data = DataConfig(dataset="camvid", root=camvid_root, store=tmp_path)
    stores = ingest(data)
    assert stores.val is not None
    for store, samples in ((stores.train, stores.dataset.train), (stores.val, stores.dataset.val)):
        assert store.masks is not None
        assert store.images.shape == (len(samples), 360, 480, 3)
        for i in range(0, len(samples), 20):
            assert samples[i].mask is not None
            np.testing.assert_array_equal(store.images[i], np.array(Image.open(samples[i].image)))
            ids = np.array(Image.open(samples[i].mask))
            np.testing.assert_array_equal(store.masks[i], np.where(ids == 11, VOID, ids))
        store.verify()


@pytest.mark.parametrize("size", [(12, 16), (10, 32), (48, 64), (25, 33)])
def test_resizing_is_bilinear_for_images_and_nearest_for_masks(size: tuple[int, int], config: Configure) -> None:
    data = config(image_size=size)
    check(ingest(data).train, data, resized=True)


def test_images_of_many_sizes_without_masks(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        pixels = rng.integers(0, 256, (10 + 7 * i, 50 - 6 * i, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    data = DataConfig(dataset="folder", root=tmp_path, masks=None, val_images=None, class_names=["a", "b"],
                      image_size=(20, 30), store=tmp_path / "store")
    stores = ingest(data)
    assert stores.val is None
    assert stores.train.masks is None
    for i in range(5):
        pixels = Image.open(tmp_path / "images" / f"{i}.png").resize((30, 20), Image.Resampling.BILINEAR)
        check_resized(stores.train.images[i : i + 1], np.array(pixels)[None])
    stores.train.verify()


def test_cityscapes_and_demo_go_through_the_same_door(make_cityscapes: Make, tmp_path: Path) -> None:
    city = DataConfig(dataset="cityscapes", root=make_cityscapes(), store=tmp_path, image_size=(20, 40))
    stores = ingest(city)
    check(stores.train, city, resized=True)
    assert set(np.unique(stores.train.masks)) <= {*range(19), VOID}
    demo = DataConfig(store=tmp_path, image_size=(32, 48), n_images=3, n_val_images=1)
    check(ingest(demo).train, demo)


def test_the_default_place_is_the_cache_directory(config: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
                                                  ) -> None:
    data = config(store=None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = ingest(data).train.path
    assert path.parent == tmp_path / "cache" / "meal-gpu"
    assert path.name.startswith("camvid-train-24x32-")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert ingest(data).train.path.parent == tmp_path / "home" / ".cache" / "meal-gpu"


def test_read_functions_are_what_the_store_is_made_of(config: Configure) -> None:
    data = config()
    stores = ingest(data)
    sample = stores.dataset.train[3]
    assert sample.mask is not None
    assert stores.train.masks is not None
    np.testing.assert_array_equal(stores.train.images[3], read_image(sample.image))
    np.testing.assert_array_equal(stores.train.masks[3], stores.dataset.to_class[read_mask(sample.mask)])


def test_mask_of_another_size(config: Configure) -> None:
    data = config()
    assert data.root is not None
    mask = data.root / "trainannot" / "seq_00002.png"
    Image.fromarray(np.zeros((24, 31), np.uint8)).save(mask)
    message = refused(data)
    assert f"{mask} is 31 x 24 pixels" in message
    assert "is 32 x 24" in message


def test_class_id_outside_the_table(config: Configure) -> None:
    data = config()
    assert data.root is not None
    mask = data.root / "trainannot" / "seq_00002.png"
    ids = np.zeros((24, 32), np.uint8)
    ids[5, 7], ids[6, 1] = 12, 200
    Image.fromarray(ids).save(mask)
    assert (f"{mask} holds the class id 12 (first at x=7, y=5; 2 pixels are outside the table). Allowed ids: 0-11."
            in refused(data))


def test_class_id_254_and_255_are_not_taken_for_the_marks_of_the_table(config: Configure) -> None:
    data = config()
    assert data.root is not None
    for value in (254, 255):
        Image.fromarray(np.full((24, 32), value, np.uint8)).save(data.root / "trainannot" / "seq_00000.png")
        assert f"holds the class id {value}" in refused(data)


def test_a_bad_file_is_named_and_repairing_it_goes_on(config: Configure, caplog: pytest.LogCaptureFixture) -> None:
    data = config(n=8)
    assert data.root is not None
    bad = data.root / "train" / "seq_00006.png"
    good = bad.read_bytes()
    bad.write_bytes(good[:200])
    assert str(bad) in refused(data)
    bad.write_bytes(good)
    with caplog.at_level(logging.INFO, "meal_gpu"):
        check(ingest(data).train, data)
    assert "7 of 8 images are there" in caplog.text


def test_a_file_removed_between_listing_and_reading(config: Configure) -> None:
    """What was decoded before it is kept."""
    data = config()
    dataset, calls = open_dataset(data), []

    def remove(stage: str, done: int, total: int) -> None:
        calls.append(done)

    gone = dataset.train[1].image
    content = gone.read_bytes()
    stamp = os.stat(gone)
    plan = _plan(dataset, "train", dataset.train, data, False)
    gone.unlink()
    with pytest.raises(InputError, match=r"seq_00001.png does not exist \(any more\)"), writing(plan):
        build(plan, remove)
    gone.write_bytes(content)
    os.utime(gone, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with writing(plan):
        build(plan, remove)
    check(Store.open(plan.path), data)
    assert calls[-1] == 4
