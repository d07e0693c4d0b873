"""``meal-gpu predict``: masks at the images' own sizes, by the network and in the way in which the run was trained."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import tiny_config
from typer.testing import CliRunner

from meal_gpu import cli
from meal_gpu.data.datasets import open_dataset
from meal_gpu.data.decode import decode_each, open_decoder
from meal_gpu.errors import InputError
from meal_gpu.folders import predict as module
from meal_gpu.folders.predict import predict
from meal_gpu.launch import run
from meal_gpu.network.model import DeepLabV3Plus

RNG = np.random.default_rng(3)
SIZE = (48, 64)
VALUES = {"sky": 9, "road": 4, "tree": 200}


def blocks(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """An image whose brightness is its class."""
    classes = np.array(Image.fromarray(RNG.integers(0, 3, (3, 4), np.uint8)).resize(size[::-1], 0))
    shade = (classes * 90 + 30)[..., None] + RNG.integers(-9, 10, (*size, 3))
    return shade.astype(np.uint8), np.array([9, 4, 200], np.uint8)[classes]


def trained(tmp_path: Path, **data: object) -> Path:
    """A run on images in a folder, whose masks hold values that are no indices."""
    root = tmp_path / "own"
    for i in range(4):
        image, mask = blocks(SIZE)
        for folder, pixels in (("images", image), ("masks", mask)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / folder / f"{i}.png")
    config = tiny_config(tmp_path, **{"train.epochs": 1, "train.final_epochs": 8, "train.lr": 0.003}, data={
        "dataset": "folder", "root": str(root), "image_size": list(SIZE), "grid": [2, 2], "val_images": None,
        "mask_values": VALUES, "n_images": 24, **data}, query={
        "strategy": "random", "rounds": 0, "n_initial_images": 3})
    return run(config, tmp_path / "run")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("plain"))


def others(tmp_path: Path, *sizes: tuple[int, int], suffix: str = ".png") -> Path:
    folder = tmp_path / "others"
    folder.mkdir()
    for i, size in enumerate(sizes):
        Image.fromarray(blocks(size)[0]).save(folder / f"new_{i}{suffix}")
    return folder


def masks(out: Path) -> dict[str, np.ndarray]:
    found = {}
    for file in sorted((out / "masks").rglob("*.png")):
        with Image.open(file) as image:
            assert image.mode == "L"
            found[file.relative_to(out / "masks").with_suffix("").as_posix()] = np.array(image)
    return found


def network(run: Path) -> DeepLabV3Plus:
    from meal_gpu.records import read_config

    model = DeepLabV3Plus(3, read_config(run).model.without_weights)
    model.load_state_dict(load_file(run / "seed-0" / "model.safetensors"))
    return model.eval()


def test_images_of_the_networks_size_get_what_it_says(plain, tmp_path):
    folder, out = others(tmp_path, SIZE, SIZE, SIZE), tmp_path / "out"
    told = predict(plain, folder, out)
    found = masks(out)
    images = np.stack([np.array(Image.open(folder / f"new_{i}.png")) for i in range(3)])
    with torch.no_grad():
        expected = network(plain)(torch.from_numpy(images)).argmax(1).numpy()
    for i in range(3):
        wanted = np.array([9, 4, 200], np.uint8)[expected[i]]
        assert (found[f"new_{i}"] == wanted).mean() > 0.999
    assert told[0].startswith("3 masks written to")
    assert "by the network of round 0" in told[0]
    assert "Values: 9 sky, 4 road, 200 tree." in told


def test_every_size_comes_back_as_it_went_in(plain, tmp_path):
    sizes = [(48, 64), (96, 128), (31, 77), (500, 10), (1, 1), (3, 200)]
    folder, out = others(tmp_path, *sizes), tmp_path / "out"
    told = predict(plain, folder, out)
    found = masks(out)
    assert [found[f"new_{i}"].shape for i in range(len(sizes))] == sizes
    assert all(set(np.unique(mask)) <= set(VALUES.values()) for mask in found.values())
    assert "1 images are of 64 x 48 pixels (width x height), as the network sees them." in told
    assert any(line.startswith("5 were resized to 64 x 48 pixels") for line in told)


def test_a_larger_image_of_the_same_scene_has_the_same_classes(plain, tmp_path):
    folder = others(tmp_path, SIZE)
    with Image.open(folder / "new_0.png") as image:
        image.resize((256, 192), Image.Resampling.BICUBIC).save(folder / "new_1.png")
    predict(plain, folder, tmp_path / "out")
    found = masks(tmp_path / "out")
    up = np.array(Image.fromarray(found["new_0"]).resize((256, 192), Image.Resampling.NEAREST))
    assert (up == found["new_1"]).mean() > 0.9


def test_patches_alone_and_what_the_grid_leaves_over(tmp_path):
    """Context: patch. Each patch is what the network says of it alone; the last rows and columns go with their patch.
    """
    path = trained(tmp_path, context="patch", image_size=[50, 66], grid=[3, 4])
    folder, out = others(tmp_path, (50, 66)), tmp_path / "out"
    told = predict(path, folder, out)
    assert "Each patch was seen alone, as in training (data.context: patch)." in told
    found = masks(out)["new_0"]
    image = np.array(Image.open(folder / "new_0.png"))
    patches = np.stack([image[y : y + 16, x : x + 16] for y in (0, 16, 32) for x in (0, 16, 32, 48)])
    with torch.no_grad():
        expected = network(path)(torch.from_numpy(patches)).argmax(1).numpy()
    whole = np.array([9, 4, 200])[expected].reshape(3, 4, 16, 16).transpose(0, 2, 1, 3).reshape(48, 64)
    assert (found[:48, :64] == whole).mean() > 0.999
    np.testing.assert_array_equal(found[48:, :64], np.repeat(found[47:48, :64], 2, 0))
    np.testing.assert_array_equal(found[:, 64:], np.repeat(found[:, 63:64], 2, 1))


def test_images_that_are_fitted(tmp_path):
    path = trained(tmp_path, resize="fit")
    folder, out = others(tmp_path, (48, 64), (120, 40), (24, 32)), tmp_path / "out"
    told = predict(path, folder, out)
    found = masks(out)
    assert [mask.shape for mask in found.values()] == [(48, 64), (120, 40), (24, 32)]
    assert any(line.startswith("2 were fitted into 64 x 48 pixels") for line in told)
    data = module._opened(_config(path), folder)
    [decoded] = decode_each(data.train[1:2], SIZE, data.rules(_config(path).data), open_decoder("torchvision", SIZE))
    with torch.no_grad():
        seen = network(path)(torch.from_numpy(decoded.image[None])).argmax(1)[0].numpy()
    inner = np.array([9, 4, 200], np.uint8)[seen][:48, :16]
    small = np.array(Image.fromarray(found["new_1"]).resize((16, 48), Image.Resampling.NEAREST))
    assert (small == inner).mean() > 0.85  # edges move by the resizing


def _config(path: Path):
    from meal_gpu.records import read_config

    return read_config(path)


def test_files_that_are_cut_into_tiles(tmp_path):
    path = trained(tmp_path, tile=[48, 64])
    folder, out = others(tmp_path, (100, 130), (48, 64), (20, 30)), tmp_path / "out"
    told = predict(path, folder, out)
    found = masks(out)
    assert [mask.shape for mask in found.values()] == [(100, 130), (48, 64), (20, 30)]
    assert "3 were cut into 11 tiles of 64 x 48 pixels (width x height; data.tile), as in training." in told
    with Image.open(folder / "new_0.png") as image:
        image.crop((64, 48, 128, 96)).save(folder / "tile.png")
    predict(path, folder, tmp_path / "again")
    np.testing.assert_array_equal(masks(tmp_path / "again")["tile"], found["new_0"][48:96, 64:128])


def test_overlays(plain, tmp_path):
    folder, out = others(tmp_path, SIZE, (90, 100), suffix=".jpg"), tmp_path / "out"
    predict(plain, folder, out, overlays=True)
    with Image.open(out / "overlays" / "new_1.jpg") as shown:
        assert shown.size == (100, 90)
        picture = np.array(Image.open(folder / "new_1.jpg")).astype(int)
        palette = open_dataset(_config(plain).data).palette
        index = np.vectorize({9: 0, 4: 1, 200: 2}.get)(masks(out)["new_1"])
        assert np.abs(np.array(shown).astype(int) - (picture // 2 + palette[index] // 2)).mean() < 8


def test_sub_folders_and_a_turned_image(plain, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("day", "night"):
        (tmp_path / "others" / name).mkdir(parents=True)
        Image.fromarray(blocks(SIZE)[0]).save(tmp_path / "others" / name / "a.jpg", exif=exif.tobytes())
    predict(plain, tmp_path / "others", tmp_path / "out")
    assert {name: mask.shape for name, mask in masks(tmp_path / "out").items()} == {
        "day/a": (64, 48), "night/a": (64, 48)}


def test_who_is_interrupted_calls_again(plain, tmp_path, monkeypatch):
    folder, out = others(tmp_path, *[SIZE, (30, 40)] * 3), tmp_path / "out"
    predict(plain, folder, tmp_path / "whole")
    saved = module._save

    def third(job, sample, classes):
        if len(list((out / "masks").glob("*.png"))) == 3:
            raise KeyboardInterrupt
        saved(job, sample, classes)

    monkeypatch.setattr(module, "_save", third)
    with pytest.raises(KeyboardInterrupt):
        predict(plain, folder, out)
    monkeypatch.undo()
    before = {file: file.stat().st_mtime_ns for file in (out / "masks").iterdir()}
    assert len(before) == 3
    told = predict(plain, folder, out)
    assert told[0].startswith("3 masks written")
    assert told[1] == "3 were there already, by the same network."
    assert all(file.stat().st_mtime_ns == then for file, then in before.items())
    for name, mask in masks(tmp_path / "whole").items():
        np.testing.assert_array_equal(masks(out)[name], mask)
    predict(plain, folder, out, overlays=True)  # asked for later: the masks are made again for them
    assert len(list((out / "overlays").iterdir())) == 6


def test_who_is_killed_leaves_whole_masks(plain, tmp_path):
    folder, out = others(tmp_path, *[(600, 800)] * 12), tmp_path / "out"
    call = [sys.executable, "-m", "meal_gpu.cli", "predict", str(plain), "--images", str(folder), "--out", str(out)]
    with subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and len(list((out / "masks").glob("new_*.png"))) < 2:
            time.sleep(0.005)
        process.kill()
    there = masks(out)  # each can be read, whatever moment it was
    assert len(there) >= 2
    told = predict(plain, folder, out)
    assert told[-1].startswith("Values") or "Left out" in told[-1]
    assert [mask.shape for mask in masks(out).values()] == [(600, 800)] * 12
    for name, mask in there.items():
        np.testing.assert_array_equal(masks(out)[name], mask)


def test_nothing_of_others_is_overwritten(plain, tmp_path):
    folder = others(tmp_path, SIZE)
    for out in (folder, folder / "..", tmp_path / "others"):
        with pytest.raises(InputError, match=r"where the images are|is not empty and holds no predictions"):
            predict(plain, folder, out)
    full = tmp_path / "full"
    full.mkdir()
    (full / "new_0.png").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no predictions"):
        predict(plain, folder, full)
    assert (full / "new_0.png").read_text() == "mine"
    out = tmp_path / "out"
    predict(plain, folder, out)
    other = shutil.copytree(plain, tmp_path / "copy")
    state = load_file(other / "seed-0" / "model.safetensors")
    from safetensors.torch import save_file

    save_file({name: value + 1 if value.is_floating_point() else value for name, value in state.items()},
              other / "seed-0" / "model.safetensors")
    with pytest.raises(InputError, match="holds predictions of another network or run"):
        predict(other, folder, out)
    (out / "predictions.json").write_text("{")
    with pytest.raises(InputError, match="predictions"):
        predict(plain, folder, out)


def test_bad_images_are_named_after_the_others_are_done(plain, tmp_path):
    folder, out = others(tmp_path, SIZE, SIZE, SIZE), tmp_path / "out"
    (folder / "new_1.png").write_bytes((folder / "new_1.png").read_bytes()[:200])
    with pytest.raises(InputError, match=r"new_1\.png"):
        predict(plain, folder, out)
    assert sorted(masks(out)) == ["new_0", "new_2"]


def test_what_cannot_be(plain, tmp_path):
    folder = others(tmp_path, SIZE)
    with pytest.raises(InputError, match="holds no run"):
        predict(tmp_path, folder, tmp_path / "out")
    with pytest.raises(InputError, match=r"--seed is 7, and the seeds of this run are 0"):
        predict(plain, folder, tmp_path / "out", seed=7)
    with pytest.raises(InputError, match="would make it another run"):
        predict(plain, folder, tmp_path / "out", overrides=["data.image_size=[4,4]"])
    other = shutil.copytree(plain, tmp_path / "copy")
    (other / "seed-0" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="is not a network of this run"):
        predict(other, folder, tmp_path / "out")
    (other / "seed-0" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="has not finished a round"):
        predict(other, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_and_a_run_on_another_data_set(tmp_path):
    """Demo scenes have no folder; their network is of use for a folder all the same, without the data set."""
    path = run(tiny_config(tmp_path, query={"strategy": "random", "rounds": 0}), tmp_path / "run")
    shutil.rmtree(tmp_path / "store")
    folder, out = others(tmp_path, (40, 50)), tmp_path / "out"
    result = CliRunner().invoke(cli.app, ["predict", str(path), "--images", str(folder), "--out", str(out),
                                          "--overlays", "--set", "device=cpu"])
    assert result.exit_code == 0, (result.output, result.exception)
    assert "1 masks written" in result.output
    assert masks(out)["new_0"].shape == (40, 50)
