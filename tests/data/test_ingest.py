"""The store holds the files' pixels, is rebuilt exactly when it must be, and survives kills, full disks and company."""

import json
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from meal_gpu.config import DataConfig
from meal_gpu.data.build import build, writing
from meal_gpu.data.datasets import VOID, open_dataset, read_image, read_mask
from meal_gpu.data.ingest import _plan, ingest
from meal_gpu.data.store import Store
from meal_gpu.errors import InputError

Make = Callable[..., Path]
Configure = Callable[..., DataConfig]


@pytest.fixture
def config(tmp_path: Path, make_camvid: Make) -> Configure:
    """``config(n=4, size=(24, 32), **keys)`` -> a CamVid-shaped data set of that many images and that size."""

    def make(n: int = 4, n_val: int = 2, size: tuple[int, int] = (24, 32), **keys: Any) -> DataConfig:
        root = make_camvid(n=n, n_val=n_val, size=size)
        return DataConfig.model_validate(
            {"dataset": "camvid", "root": root, "store": tmp_path / "store", "image_size": size, "grid": (2, 2)} | keys)

    return make


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


# --- the pixels -------------------------------------------------------------------------------------------------------


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
    data = DataConfig(dataset="folder", root=tmp_path, masks=None, val_images=None, class_names=["a"],
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


# --- bad content ------------------------------------------------------------------------------------------------------


def refused(data: DataConfig) -> str:
    with pytest.raises(InputError) as caught:
        ingest(data)
    return str(caught.value)


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
    assert "6 of 8 images are there" in caplog.text


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


# --- fresh, stale, damaged --------------------------------------------------------------------------------------------


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


def _touch(root: Path) -> None:
    os.utime(root / "train" / "seq_00001.png", ns=(1, 1))


def _change(root: Path) -> None:
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(root / "train" / "seq_00001.png")


def _change_mask(root: Path) -> None:
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(root / "trainannot" / "seq_00001.png")


def _add(root: Path) -> None:
    for name in ("train", "trainannot"):
        shutil.copy(root / name / "seq_00001.png", root / name / "seq_000005.png")


def _remove(root: Path) -> None:
    for name in ("train", "trainannot"):
        (root / name / "seq_00001.png").unlink()


@pytest.mark.parametrize(("alter", "why", "kept"), [
    (_touch, "the files of seq_00001 have changed", 3), (_change, "the files of seq_00001 have changed", 3),
    (_change_mask, "the files of seq_00001 have changed", 3), (_add, "files were added or removed", 4),
    (_remove, "files were added or removed", 3)])
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
    _add(data.root)
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
    with pytest.raises(InputError, match=rf"the pixels of {name} are not those.*Delete that directory"):
        ingest(data).train.verify()
    shutil.rmtree(store.path)
    check(ingest(data).train, data)


# --- kills, company, full disks ---------------------------------------------------------------------------------------

# Forked from a process that has imported everything and started no thread: quick, and safe with DALI's threads.
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["meal_gpu.data.ingest", "meal_gpu.data.decode", "meal_gpu.data.dali"])


def _lines(store: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in store.glob("*train*.partial/journal.jsonl"))


def test_kill_9_at_any_moment_then_finishing(config: Configure, caplog: pytest.LogCaptureFixture) -> None:
    data = config(n=40, size=(240, 320))
    assert data.store is not None
    seen = []
    for wanted in (2, 9, 20, 33):
        process = FORK.Process(target=ingest, args=(data,))
        process.start()
        while process.is_alive() and _lines(data.store) < wanted:
            time.sleep(0.0005)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        seen.append((process.exitcode, _lines(data.store)))
        assert not list(data.store.glob("*train*/manifest.json"))  # no half-built store looks like a whole one
    assert all(code == -signal.SIGKILL for code, _ in seen)
    assert [lines for _, lines in seen] == sorted(lines for _, lines in seen)
    with caplog.at_level(logging.INFO, "meal_gpu"):
        check(ingest(data).train, data)
    assert f"{seen[-1][1] - 1} of 40 images are there" in caplog.text


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_is_left_of_a_build_the_next_one_is_right(config: Configure, data: st.DataObject) -> None:
    """Lost tails, torn lines and changed bytes, in the journal and in the pixels, as after a power cut."""
    configured = config(n=6, n_val=1)
    assert configured.root is not None
    assert configured.store is not None
    shutil.rmtree(configured.store, ignore_errors=True)
    bad = configured.root / "train" / "seq_00005.png"
    good = bad.read_bytes()
    bad.write_bytes(b"")
    refused(configured)
    bad.write_bytes(good)
    (partial,) = configured.store.glob("*train*.partial")
    for file in sorted(partial.iterdir()):
        content = bytearray(file.read_bytes())
        harm = data.draw(st.sampled_from(["none", "cut", "flip", "zero"]), label=file.name)
        at = data.draw(st.integers(0, len(content) - 1), label="at")
        if harm == "cut":
            content = content[:at]
        elif harm == "flip":
            content[at] ^= data.draw(st.integers(1, 255))
        elif harm == "zero":
            content[at:] = bytes(len(content) - at)
        file.write_bytes(content)
    check(ingest(configured).train, configured)


def test_a_half_built_store_of_another_listing_is_not_continued(config: Configure) -> None:
    data = config(n=6)
    assert data.root is not None
    (data.root / "train" / "seq_00005.png").write_bytes(b"")
    refused(data)
    for i in (0, 5):
        (data.root / "train" / f"seq_0000{i}.png").unlink()
        (data.root / "trainannot" / f"seq_0000{i}.png").unlink()
    check(ingest(data).train, data)


def test_a_source_that_changes_between_kill_and_resume_is_read_again(config: Configure) -> None:
    data = config(n=6)
    assert data.root is not None
    bad = data.root / "train" / "seq_00005.png"
    good = bad.read_bytes()
    bad.write_bytes(b"")
    refused(data)
    bad.write_bytes(good)
    _change(data.root)
    _change_mask(data.root)
    check(ingest(data).train, data)


def _inode(data: DataConfig, queue: Any) -> None:
    store = ingest(data).train
    store.verify()
    queue.put((store.path / "images.u8").stat().st_ino)


def test_three_processes_at_once(config: Configure) -> None:
    data = config(n=30, size=(120, 160))
    queue = FORK.Queue()
    processes = [FORK.Process(target=_inode, args=(data, queue)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len({queue.get() for _ in processes}) == 1  # built once
    check(ingest(data).train, data)


def test_too_small_a_disk_is_noticed_before_anything_is_decoded(config: Configure, tmp_path: Path) -> None:
    data = config(n=4)
    side = int((shutil.disk_usage(tmp_path).free / 4) ** 0.5) // 4 * 4 + 4000  # 4 images of 4 bytes per pixel
    message = refused(data.model_copy(update={"image_size": (side, side)}))
    assert f"No space for decoded images in {tmp_path / 'store'}" in message
    assert f"needs {side * side * 16 / 1e6:,.1f} MB" in message
    assert "data.store" in message


def _limited(data: DataConfig, limit: int, queue: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        ingest(data)
    except InputError as error:
        queue.put(str(error))


def test_no_more_room_in_the_middle_of_a_build(config: Configure, caplog: pytest.LogCaptureFixture) -> None:
    data = config(n=10)
    queue = FORK.Queue()
    process = FORK.Process(target=_limited, args=(data, 24 * 32 * 3 * 6 + 100, queue))
    process.start()
    message = queue.get(timeout=60)
    process.join()
    assert message.startswith("No space for decoded images in")
    with caplog.at_level(logging.INFO, "meal_gpu"):
        check(ingest(data).train, data)
    assert "6 of 10 images are there" in caplog.text


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MB; needs root."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "meal-gpu-test", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no mount command: {error}")
    if done.returncode:
        pytest.skip(f"cannot mount a small file system here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_fills_up_while_building(small_disk: Path, config: Configure) -> None:
    data = config(n=200, n_val=1, store=small_disk)  # 614 kB
    filler = small_disk / "filler"

    def fill(stage: str, done: int, total: int) -> None:
        if not filler.exists():
            filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 100_000))

    with pytest.raises(InputError, match=r"No space for decoded images.*\(No space left on device\)"):
        ingest(data, fill)
    assert "No space" in refused(data)  # noticed up front now
    filler.unlink()
    check(ingest(data).train, data)


def test_a_place_that_cannot_be_written(config: Configure, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = refused(config(store=tmp_path / "file" / "store"))
    assert f"cannot be written below {tmp_path / 'file' / 'store'}" in message
    assert "data.store" in message


def test_opening_a_fresh_store_writes_nothing(config: Configure) -> None:
    data = config()
    path = ingest(data).train.path
    (path.parent / (path.name + ".lock")).unlink()
    before = sorted(path.parent.iterdir())
    check(ingest(data).train, data)
    assert sorted(path.parent.iterdir()) == before  # not even a lock


def test_read_functions_are_what_the_store_is_made_of(config: Configure) -> None:
    data = config()
    stores = ingest(data)
    sample = stores.dataset.train[3]
    assert sample.mask is not None
    assert stores.train.masks is not None
    np.testing.assert_array_equal(stores.train.images[3], read_image(sample.image))
    np.testing.assert_array_equal(stores.train.masks[3], stores.dataset.to_class[read_mask(sample.mask)])


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
