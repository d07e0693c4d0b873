"""``meal-gpu export``: what a run was trained on, as a data set that our reader and others' read back to the bit."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_config
from typer.testing import CliRunner

from meal_gpu import cli
from meal_gpu.config import Config
from meal_gpu.data.classes import VOID
from meal_gpu.data.ingest import ingest
from meal_gpu.engine.outputs import sums_of
from meal_gpu.errors import InputError, LabelsMissingError
from meal_gpu.folders.export import export
from meal_gpu.launch import resume, run
from meal_gpu.records import read_rounds

RNG = np.random.default_rng(9)
SIZE = (48, 64)


def draw(root: Path, sizes: list[tuple[int, int]], suffix: str = ".png", values: tuple[int, ...] = (0, 1, 2),
         masks: int | None = None, prefix: str = "") -> None:
    for i, size in enumerate(sizes):
        for folder in (f"{prefix}images", f"{prefix}masks"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        coarse = RNG.choice(np.array(values, np.uint8), (6, 8))
        mask = np.array(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.NEAREST))
        Image.fromarray(RNG.integers(0, 256, (*size, 3), np.uint8)).save(root / f"{prefix}images" / f"i{i}{suffix}")
        if masks is None or i < masks:
            Image.fromarray(mask).save(root / f"{prefix}masks" / f"i{i}.png")


def config(tmp_path: Path, people: bool = False, **data: object) -> Config:
    return tiny_config(tmp_path, **{"train.epochs": 1, "train.final_epochs": 1}, data={
        "dataset": "folder", "root": str(tmp_path / "own"), "image_size": list(SIZE), "grid": [2, 2],
        "val_images": None, "class_names": ["sky", "road", "tree"], **data}, query={
        "strategy": "random", "rounds": 1, "n_initial_images": 2, "n_query": 3, "n_informative": 8,
        "oracle": "people" if people else "simulated"})


def same_labels(path: Path, out: Path, tmp_path: Path, exact: bool = True) -> None:
    """The exported data set, opened by its own config: labels of the revealed patches, and of nothing else."""
    loaded = Config.load(out / "dataset.yaml", [f"data.store={tmp_path / 'again'}"])
    grid, store = loaded.data.tiling(), ingest(loaded.data).train
    names = {name: i for i, name in enumerate(store.names)}
    assert store.masks is not None
    left = np.array(store.masks)
    for record in read_rounds(path / "seed-0"):
        patches = []
        for patch in record["queried"]:
            y0, x0, y1, x1 = patch["box"]
            patches.append(left[names[patch["image"]], y0:y1, x0:x1].copy())
            left[names[patch["image"]], y0:y1, x0:x1] = VOID
        if exact:
            assert sums_of(torch.from_numpy(np.stack(patches))) == record["labels"]
    # What the grid leaves over belongs to no patch; a file's pixel there may lie in the box of the last one.
    assert (left[:, : grid.rows * grid.patch_height, : grid.cols * grid.patch_width] == VOID).all()


SIZES = [SIZE] * 5


@pytest.mark.parametrize(("sizes", "data"), [
    (SIZES, {}),
    ([(96, 128), (50, 67), (131, 77), (200, 48), (48, 64)], {}),
    ([(96, 128), (50, 67), (131, 77), (200, 100), (48, 64)], {"resize": "fit"}),
    ([(100, 130), (60, 70), (96, 128)], {"tile": [48, 64]}),
    ([(101, 133)] * 5, {"image_size": [35, 47], "grid": [3, 4]}),
    ([(30, 40)] * 5, {}),
], ids=["one size", "stretched", "fitted", "tiles", "odd", "smaller"])
def test_labels_come_back_as_they_were_trained(tmp_path, sizes, data):
    draw(tmp_path / "own", sizes)
    path, out = run(config(tmp_path, **data), tmp_path / "run"), tmp_path / "out"
    told = export(path, out)
    same_labels(path, out, tmp_path)
    n = sum(len(record["queried"]) for record in read_rounds(path / "seed-0"))
    assert told[0].startswith(f"{n} patches of ")
    for file in (out / "images").iterdir():
        assert file.read_bytes() == (tmp_path / "own" / "images" / file.name).read_bytes()
        with Image.open(out / "masks" / f"{file.stem}.png") as mask, Image.open(file) as image:
            assert mask.size == image.size
            labelled = np.array(mask) != VOID
            truth = np.array(Image.open(tmp_path / "own" / "masks" / f"{file.stem}.png"))
            assert labelled.any()
            # At the file's own size it is what somebody drew, not what was left of it at the network's.
            assert (np.array(mask) == truth)[labelled].all()


def test_values_void_and_validation(tmp_path):
    draw(tmp_path / "own", SIZES, ".jpg", (7, 26, 9))
    draw(tmp_path / "own", [(60, 50)] * 2, ".jpg", (7, 26, 9), prefix="val_")
    values = {"sky": 7, "road": 26, "tree": [8], "void": 9}
    path = run(config(tmp_path, mask_values=values, val_images="val_images", absent_classes="allow"),
               tmp_path / "run")
    out = tmp_path / "out"
    told = export(path, out)
    assert "2 validation images, labelled whole." in told
    same_labels(path, out, tmp_path)
    truth = np.array(Image.open(tmp_path / "own" / "val_masks" / "i1.png"))
    found = np.array(Image.open(out / "val_masks" / "i1.png"))
    np.testing.assert_array_equal(found, np.vectorize({7: 0, 26: 1, 9: VOID}.get)(truth))
    table = json.loads((out / "classes.json").read_text())
    assert [(one["name"], one["value"]) for one in table["classes"]] == [("sky", 0), ("road", 1), ("tree", 2)]
    splits = {name: (out / "splits" / f"{name}.txt").read_text().split() for name in ("train", "val", "unlabelled")}
    assert sorted(splits["train"] + splits["unlabelled"]) == [f"i{i}" for i in range(5)]
    assert splits["val"] == ["i0", "i1"]
    assert sorted(file.stem for file in (out / "images").iterdir()) == sorted(splits["train"])


def test_coco_is_read_by_pycocotools(tmp_path):
    pycocotools = pytest.importorskip("pycocotools.coco")
    draw(tmp_path / "own", [(60, 70)] * 5)
    out = tmp_path / "out"
    export(run(config(tmp_path), tmp_path / "run"), out)
    held = pycocotools.COCO(str(out / "coco" / "train.json"))
    assert [held.cats[i]["name"] for i in sorted(held.cats)] == ["sky", "road", "tree"]
    for image in held.imgs.values():
        mask = np.array(Image.open(out / "masks" / f"{Path(image['file_name']).stem}.png"))
        assert (out / image["file_name"]).is_file()
        found = np.full(mask.shape, VOID, np.uint8)
        for annotation in held.loadAnns(held.getAnnIds(image["id"])):
            region = held.annToMask(annotation).astype(bool)
            found[region] = annotation["category_id"] - 1
            assert annotation["area"] == region.sum()
            rows, cols = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
            assert annotation["bbox"] == [cols[0], rows[0], np.ptp(cols) + 1, np.ptp(rows) + 1]
        np.testing.assert_array_equal(found, mask)
        labelled = held.annToMask({"image_id": image["id"], "segmentation": image["labelled"]}).astype(bool)
        np.testing.assert_array_equal(labelled, mask != VOID)


def test_what_people_drew_at_the_files_own_size(tmp_path):
    """A run that began with masks of some: both kinds of labels come out at full size."""
    draw(tmp_path / "own", [(96, 128)] * 5, masks=2)
    path, out = tmp_path / "run", tmp_path / "out"
    with pytest.raises(LabelsMissingError):
        run(config(tmp_path, people=True, unlabelled="ask"), path)
    export(path, tmp_path / "first")
    same_labels(path, tmp_path / "first", tmp_path / "one")
    place, drawn = path / "seed-0" / "to-label" / "round-01", {}
    for item in json.loads((place / "query.json").read_text())["items"]:
        y0, x0, y1, x1 = item["original"]["box"]
        mask = RNG.integers(0, 3, (y1 - y0, x1 - x0)).astype(np.uint8)
        mask[:5] = 255
        Image.fromarray(mask).save(place / "masks" / item["file"])
        drawn[item["image"], y0, x0] = mask
    resume(path)
    told = export(path, out)
    assert told[0].startswith("11 patches of ")
    assert not any("are enlarged" in line for line in told)
    same_labels(path, out, tmp_path / "two")
    for (image, y0, x0), mask in drawn.items():
        found = np.array(Image.open(out / "masks" / f"{image}.png"))
        np.testing.assert_array_equal(found[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]], mask)


@pytest.mark.parametrize("original", [True, False])
def test_neighbours_whose_boxes_share_pixels(tmp_path, original):
    """Where a patch is no whole number of the file's pixels, each keeps those that the network saw of it."""
    draw(tmp_path / "own", [(45, 61)] * 4, masks=0)
    path, out = tmp_path / "run", tmp_path / "out"
    with pytest.raises(LabelsMissingError):
        run(config(tmp_path, people=True, masks=None, image_size=[35, 47], grid=[3, 4]), path)
    place = path / "seed-0" / "to-label" / "round-00"
    for item in json.loads((place / "query.json").read_text())["items"]:
        y0, x0, y1, x1 = item["original"]["box"] if original else item["box"]
        mask = RNG.integers(0, 3, (y1 - y0, x1 - x0)).astype(np.uint8)
        Image.fromarray(mask).save(place / "masks" / item["file"])
    with pytest.raises(LabelsMissingError):
        resume(path)
    told = export(path, out)
    assert any("24 were labelled at 47 x 35 pixels" in line for line in told) != original
    same_labels(path, out, tmp_path)


def test_sub_folders(tmp_path):
    draw(tmp_path / "own", SIZES)
    for kind in ("images", "masks"):
        (tmp_path / "own" / kind / "day").mkdir()
        for i in range(3):
            (tmp_path / "own" / kind / f"i{i}.png").rename(tmp_path / "own" / kind / "day" / f"i{i}.png")
    path = run(config(tmp_path, images="images/**/*", masks="masks/{dir}/{stem}.png"), tmp_path / "run")
    out = tmp_path / "out"
    export(path, out)
    same_labels(path, out, tmp_path)


def test_the_export_trains(tmp_path):
    draw(tmp_path / "own", SIZES)
    out = tmp_path / "out"
    export(run(config(tmp_path), tmp_path / "run"), out)
    trained = Config.load(out / "dataset.yaml", [f"data.store={tmp_path / 'store'}", "device=cpu"])
    record = read_rounds(run(trained, tmp_path / "again") / "seed-0")[0]
    assert record["n_labelled"] == 4 * len((out / "splits" / "train.txt").read_text().split())


@pytest.mark.camvid
def test_camvid(tmp_path, camvid_root):
    """A data set that has a reader of its own is a folder afterwards: 8 real images, labelled in part."""
    root = tmp_path / "camvid"
    for split, n in (("train", 6), ("val", 2)):
        for kind in (split, f"{split}annot"):
            (root / kind).mkdir(parents=True)
            for file in sorted((camvid_root / kind).glob("*.png"))[:n]:
                (root / kind / file.name).write_bytes(file.read_bytes())
    loaded = config(tmp_path).revised("data", dataset="camvid", root=root, class_names=None, image_size=(180, 240))
    path, out = run(loaded, tmp_path / "run"), tmp_path / "out"
    told = export(path, out)
    assert "2 validation images, labelled whole." in told
    same_labels(path, out, tmp_path)


def test_nothing_is_overwritten_and_what_is_there_is_whole(tmp_path):
    draw(tmp_path / "own", SIZES)
    path, out = run(config(tmp_path), tmp_path / "run"), tmp_path / "out"
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "left").write_text("by a kill")
    out.mkdir()
    export(path, out)
    assert not (tmp_path / "out.partial").exists()
    assert not (out / "left").exists()
    with pytest.raises(InputError, match="is there and not empty, and nothing is overwritten"):
        export(path, out)


def test_what_cannot_be(tmp_path):
    draw(tmp_path / "own", SIZES)
    path = run(config(tmp_path), tmp_path / "run")
    with pytest.raises(InputError, match=r"--seed is 5, and the seeds of this run are 0"):
        export(path, tmp_path / "out", seed=5)
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(
        tmp_path / "own" / "masks" / f"{read_rounds(path / 'seed-0')[0]['queried'][0]['image']}.png")
    with pytest.raises(InputError, match="that round 0 was trained on"):
        export(path, tmp_path / "out")
    with pytest.raises(InputError, match="holds no run"):
        export(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path):
    draw(tmp_path / "own", SIZES)
    path = run(config(tmp_path), tmp_path / "run")
    result = CliRunner().invoke(cli.app, ["export", str(path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, (result.output, result.exception)
    assert "images, masks, splits, coco, classes.json, dataset.yaml" in " ".join(result.output.split())
