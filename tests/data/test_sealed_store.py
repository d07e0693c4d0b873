"""What a store holds is compared with its checksums wherever it is first read, whichever way it is read."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stores import Make

from meal_gpu.config import DataConfig
from meal_gpu.data.frames import HeldFrames, StreamedFrames, resident
from meal_gpu.data.ingest import ingest
from meal_gpu.data.store import Store, compare, map_images
from meal_gpu.engine.oracle import SimulatedOracle
from meal_gpu.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture
def data(tmp_path: Path, make_camvid: Make) -> DataConfig:
    return DataConfig(dataset="camvid", root=make_camvid(), store=tmp_path / "store", image_size=(24, 32), grid=(2, 2),
                      loader="torchvision")


def flip(file: Path, at: int, value: int | None = None) -> None:
    content = bytearray(file.read_bytes())
    content[at] = content[at] ^ 1 if value is None else value
    file.write_bytes(content)


def held(store: Store, data: DataConfig, context: str = "image") -> HeldFrames:
    return HeldFrames.of(store.images, data.tiling(), context, CPU)


def streamed(store: Store, data: DataConfig, context: str) -> StreamedFrames:
    pytest.importorskip("nvidia.dali")
    return StreamedFrames(data.tiling(), context, CPU, store.images)


WAYS: dict[str, Callable[[Store, DataConfig], object]] = {
    "scan": lambda store, data: list(held(store, data).scan(2)),
    "scan of patches": lambda store, data: list(held(store, data, "patch").scan(8)),
    "read": lambda store, data: list(held(store, data).read([torch.tensor([0, 2])])),
    "read of patches": lambda store, data: list(held(store, data, "patch").read([torch.tensor([0, 9])])),
    "passed": lambda store, data: list(held(store, data).passed([slice(0, 4)])),
    "cut": lambda store, data: held(store, data).cut(slice(0, 4)),
    "resident": lambda store, data: resident(store.images, CPU, "mapped"),
    "streamed scan": lambda store, data: list(streamed(store, data, "image").scan(2)),
    "streamed patches": lambda store, data: list(streamed(store, data, "patch").scan(8)),
    "streamed read": lambda store, data: list(streamed(store, data, "patch").read([torch.tensor([0, 9])])),
    "a worker's range": lambda store, data: list(HeldFrames.of(
        map_images(store.path, 1, 4, data.image_size), data.tiling(), "image", CPU).scan(1)),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_flipped_byte_is_found_where_it_is_read(data, way):
    store = ingest(data).train
    WAYS[way](store, data)
    flip(store.path / "images.u8", 2 * 24 * 32 * 3 + 100)
    damaged = ingest(data).train  # as another process opens it
    with pytest.raises(InputError, match=rf"image seq_00002 in the store .*is damaged.*rm -r {damaged.path}"):
        WAYS[way](damaged, data)


def test_what_was_compared_is_not_compared_again(data):
    store = ingest(data).train
    compare(store.images, 0, 4)
    flip(store.path / "images.u8", 5)
    compare(store.images, 0, 4)  # this process has seen it whole
    assert store.images.checksums.compared.all()
    compare(np.zeros((4, 2, 2)), 0, 4)  # no store's


@pytest.mark.parametrize("value", [None, 200])
def test_a_damaged_mask_is_found_where_it_is_revealed(data, value):
    """Of another value, which trains another network, and outside the classes, which ended in a traceback."""
    store = ingest(data).train
    flip(store.path / "masks.u8", 24 * 32 + 7, value)
    damaged = ingest(data).train
    oracle = SimulatedOracle(damaged.masks, data.tiling())
    oracle.label(0, torch.tensor([0, 8]))
    with pytest.raises(InputError, match=r"mask of seq_00001 in the store"):
        oracle.label(1, torch.tensor([4]))


@pytest.mark.parametrize(("key", "value"), [("image_size", [32, 24]), ("image_size", [-24, -32]), ("names", ["a"]),
                                            ("sources", [[9, 9, 1]] * 4), ("counts", [[1] * 256] * 2)])
def test_an_edited_manifest_is_not_believed(data, caplog, key, value):
    caplog.set_level("INFO", "meal_gpu")
    store = ingest(data).train
    file = store.path / "manifest.json"
    whole = file.read_bytes()
    manifest = json.loads(whole)
    file.write_bytes(json.dumps({**manifest, key: value}).encode())
    again = ingest(data).train
    assert file.read_bytes() == whole
    assert "is rebuilt: it is damaged: its manifest was changed" in caplog.text
    again.verify()


def test_a_swapped_size_is_not_verified_in_a_store_of_before(data):
    """Such manifests have no checksum of their own."""
    store = ingest(data).train
    file = store.path / "manifest.json"
    manifest = json.loads(file.read_bytes())
    del manifest["check"]
    file.write_bytes(json.dumps(manifest).encode())
    Store.open(store.path).verify()
    file.write_bytes(json.dumps({**manifest, "image_size": [32, 24]}).encode())
    with pytest.raises(ValueError, match="contradicts itself in the size"):
        Store.open(store.path)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "emptied": lambda file: file.write_bytes(b""),
    "truncated": lambda file: os.truncate(file, file.stat().st_size // 2),
    "a directory": lambda file: (file.unlink(), file.mkdir()),
    "a link": lambda file: (file.rename(file.parent.parent / "elsewhere"),
                            file.symlink_to(file.parent.parent / "elsewhere")),
    "nested": lambda file: file.write_bytes(b"[" * 200_000),
    "gone": lambda file: file.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["images.u8", "masks.u8", "manifest.json"])
def test_a_damaged_store_is_rebuilt(data, name, damage):
    store = ingest(data).train
    whole = {file.name: file.read_bytes() for file in store.path.iterdir()}
    DAMAGE[damage](store.path / name)
    again = ingest(data).train
    again.verify()
    assert {file.name: file.read_bytes() for file in again.path.iterdir()} == whole
    elsewhere = again.path.parent / "elsewhere"
    assert not elsewhere.exists() or elsewhere.read_bytes() == whole[name]  # what a link led to is left alone


@pytest.mark.parametrize("damage", ["a file", "a link"])
@pytest.mark.parametrize("end", ["", ".old"])
def test_what_stands_in_a_stores_place_is_replaced(data, tmp_path, end, damage):
    store = ingest(data).train
    place, kept = store.path.with_name(store.path.name + end), tmp_path / "kept"
    kept.mkdir()
    (kept / "mine").write_text("mine")
    if not end:
        store.path.rename(tmp_path / "moved")
    else:
        (store.path / "images.u8").unlink()
    if damage == "a file":
        place.write_text("x")
    else:
        place.symlink_to(kept)
    ingest(data).train.verify()
    assert (kept / "mine").read_text() == "mine"
    assert [file.name for file in kept.iterdir()] == ["mine"]


def partial_of(data: DataConfig, tmp_path: Path) -> Path:
    """Where the next build writes: the store as it was is moved away."""
    store = ingest(data).train
    store.path.rename(tmp_path / "moved")
    return store.path.with_name(store.path.name + ".partial")


def test_a_build_writes_through_no_link(data, tmp_path):
    partial, kept = partial_of(data, tmp_path), tmp_path / "kept"
    kept.mkdir()
    partial.symlink_to(kept)
    with pytest.raises(InputError, match=r"\.partial is a symbolic link .*nothing is written through"):
        ingest(data)
    assert not list(kept.iterdir())
    partial.unlink()
    partial.mkdir()
    (tmp_path / "precious").write_text("precious")
    (partial / "images.u8").symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match=r"images\.u8 is a symbolic link"):
        ingest(data)
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("index", [10**30, 4, -1, 1.5, True, "0", None])
def test_a_journal_of_strange_indices_is_continued(data, tmp_path, index):
    store = ingest(data).train
    whole = (store.path / "images.u8").read_bytes()
    names = (store.path / "manifest.json").read_bytes()
    partial = store.path.with_name(store.path.name + ".partial")
    (store.path / "manifest.json").unlink()
    store.path.rename(partial)
    manifest = json.loads(names)
    header = {"settings": manifest["settings"],
              "names": hashlib.blake2b("\n".join(manifest["names"]).encode(), digest_size=16).hexdigest()}
    line = [index, manifest["stamps"][0], manifest["checksums"][0], manifest["sources"][0]]
    (partial / "journal.jsonl").write_text(json.dumps(header) + "\n" + json.dumps(line) + "\n" + "[" * 99_999 + "\n")
    again = ingest(data).train
    again.verify()
    assert (again.path / "images.u8").read_bytes() == whole


@pytest.mark.parametrize("what", ["fifo", "device", "bomb"])
def test_only_regular_files_of_a_known_size_are_decoded(tmp_path, make_folder, what):
    root = make_folder()
    file = root / "images" / "img1.png"
    file.unlink()
    if what == "fifo":
        os.mkfifo(file)
    elif what == "device":
        file.symlink_to("/dev/zero")
    else:
        Image.new("1", (13_000, 13_000)).save(file)
        assert file.stat().st_size < 500_000
    config = DataConfig(dataset="folder", root=root, store=tmp_path / "store", image_size=(24, 32), grid=(2, 2),
                        class_names=["a", "b", "c"], loader="torchvision", max_megapixels=100)
    with pytest.raises(InputError) as caught:
        ingest(config)
    expected = {"fifo": "named pipe", "device": "a device", "bomb": "169 megapixels"}[what]
    assert expected in str(caught.value)
    assert "img1" in str(caught.value)
