"""``meal-gpu init``: the config that it writes loads, may start by `info`, and runs."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from meal_gpu import cli
from meal_gpu.config import Config
from meal_gpu.data.datasets import CAMVID
from meal_gpu.errors import InputError, LabelsMissingError
from meal_gpu.folders import proposal
from meal_gpu.folders.begin import begin
from meal_gpu.launch import resume, run
from meal_gpu.records import read_rounds

RNG = np.random.default_rng(11)
FAST = ["device=cpu", "model.backbone=mobilenetv2_035", "model.weights=none", "train.epochs=1", "train.final_epochs=1",
        "query.strategy=entropy", "query.rounds=1", "data.loader=torchvision"]


def draw(root: Path, sizes: list[tuple[int, int]], masks: int = 0, suffix: str = "png") -> Path:
    """Blocks of three greys, and the block's number as its class."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i, (height, width) in enumerate(sizes):
        blocks = RNG.integers(0, 3, (4, 4), np.uint8)
        classes = np.array(Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST))
        shade = np.repeat((classes * 80 + 20)[..., None], 3, axis=2)
        Image.fromarray(shade).save(root / "images" / f"{i}.{suffix}")
        if i < masks:
            Image.fromarray(classes).save(root / "masks" / f"{i}.png")
    return root


def made(tmp_path: Path, root: Path, *more: str) -> tuple[Path, str]:
    """By the command line: the config, and what is said."""
    out = tmp_path / "mine"
    result = CliRunner().invoke(cli.app, ["init", str(out), "--images", str(root / "images"), *more])
    assert result.exit_code == 0, (result.output, result.exception)
    return out / "meal.yaml", result.output


def goes(config: Path, tmp_path: Path) -> Path:
    """`info` finds nothing wrong, and a run comes to its first query or to its end."""
    given = [word for one in FAST for word in ("--set", one)]
    result = CliRunner().invoke(cli.app, ["info", str(config), *given])
    assert result.exit_code == 0, (result.output, result.exception)
    loaded, out = Config.load(config, [*FAST, "seeds=[0]"]), tmp_path / "run"
    if loaded.query.oracle == "people":
        with pytest.raises(LabelsMissingError):
            run(loaded, out)
    else:
        run(loaded, out)
    return out


ONE_SIZE = [(96, 128)] * 8
MIXED = [(96, 128), (96, 128), (128, 96), (60, 80), (96, 128), (200, 100), (96, 130), (96, 128)]


@pytest.mark.parametrize("sizes", [ONE_SIZE, MIXED], ids=["one size", "mixed"])
@pytest.mark.parametrize("masks", [0, 3, 8], ids=["no masks", "some", "all"])
def test_configs_run(tmp_path, sizes, masks):
    root = draw(tmp_path / "street", sizes, masks)
    more = ["--masks", str(root / "masks")] if masks else []
    config, said = made(tmp_path, root, *more, "--classes", "road,tree,car")
    loaded = Config.load(config)
    assert loaded.data.class_names == ["road", "tree", "car"]
    assert loaded.data.image_size == (96, 128)
    assert loaded.data.resize == ("fit" if sizes is MIXED else "stretch")
    assert loaded.query.oracle == ("simulated" if masks == 8 else "people")
    assert (loaded.data.unlabelled == "ask") == (masks == 3)
    assert loaded.data.val_fraction == (0.2 if masks == 8 else 0)
    assert str(config) in said
    out = goes(config, tmp_path)
    rounds = read_rounds(out / "seed-0")
    if masks == 3:
        patches = {(patch["image"], patch["row"], patch["col"]) for patch in rounds[0]["queried"]}
        assert {image for image, *_ in patches} == {"0", "1", "2"}
    elif masks == 8:
        assert len(rounds) == 2
        assert rounds[0]["miou"] is not None
    else:
        query = json.loads((out / "seed-0" / "to-label" / "round-00" / "query.json").read_text())
        assert query


@pytest.mark.camvid
def test_camvid(tmp_path, camvid_root):
    """Eight real images, of which three have masks."""
    for folder, n in (("train", 8), ("trainannot", 3)):
        (tmp_path / folder).mkdir()
        for file in sorted((camvid_root / folder).iterdir())[:n]:
            (tmp_path / folder / file.name).write_bytes(file.read_bytes())
    names = ",".join(CAMVID)
    config = begin(tmp_path / "mine", tmp_path / "train", tmp_path / "trainannot", names).config
    loaded = Config.load(config)
    assert (loaded.data.image_size, loaded.data.ignore_index) == ((360, 480), 11)
    [first] = read_rounds(goes(config, tmp_path) / "seed-0")
    assert first["n_labelled"] == 48
    assert len(first["next_query"]) == 4


def test_without_names_masks_give_the_classes(tmp_path):
    root = draw(tmp_path / "street", ONE_SIZE, 8)
    config, said = made(tmp_path, root, "--masks", str(root / "masks"))
    assert "Classes have no names there" in said
    assert Config.load(config).data.class_names == ["class_0", "class_1", "class_2"]


@pytest.mark.parametrize("masks", [0, 2])
def test_very_large_images_are_cut_into_tiles(tmp_path, masks, monkeypatch):
    root = draw(tmp_path / "street", [(4096, 4000), (4200, 4096)], masks, "jpg")
    monkeypatch.setattr(proposal, "TILE", 512)  # so that a round takes seconds
    config, said = made(tmp_path, root, "--classes", "road,tree,car",
                        *(["--masks", str(root / "masks")] if masks else []))
    loaded = Config.load(config)
    assert loaded.data.tile == loaded.data.image_size == (512, 512)
    assert "files are cut into tiles of 512 x 512 (data.tile)" in said
    if not masks:
        goes(config, tmp_path)


def test_images_that_are_larger_than_is_needed_are_reduced_by_a_whole_number(tmp_path):
    root = draw(tmp_path / "street", [(1080, 1920)] * 3)
    config, said = made(tmp_path, root, "--classes", "road,tree,car")
    assert Config.load(config).data.image_size == (540, 960)
    assert "3 of them are resized to 960 x 540" in said


def test_small_images_have_few_patches(tmp_path):
    root = draw(tmp_path / "street", [(70, 40)] * 6)
    config, _ = made(tmp_path, root, "--classes", "road,tree,car")
    assert Config.load(config).data.grid == (2, 1)
    goes(config, tmp_path)


def test_a_pool_of_few_and_of_many_images(tmp_path):
    for n, rounds, wanted in ((3, 4, 4), (4, 8, 4), (100, 8, 32)):
        root = draw(tmp_path / str(n), [(128, 128)] * n)
        config = Config.load(begin(tmp_path / f"out{n}", root / "images", None, "road,tree").config)
        assert (config.query.rounds, config.query.n_query) == (rounds, wanted)
    root = draw(tmp_path / "two", [(128, 128)] * 2)
    with pytest.raises(InputError, match="There is nothing to choose: 2 images in the pool"):
        begin(tmp_path / "none", root / "images", None, "road,tree")
    assert not (tmp_path / "none").exists()


def test_labels_for_all_then_a_simulated_run_and_its_values(tmp_path):
    """A mask's value may be anything; the class table of the config reads it."""
    root = draw(tmp_path / "street", ONE_SIZE)
    for i in range(8):
        Image.fromarray(RNG.choice([7, 26, 255], (96, 128)).astype(np.uint8)).save(root / "masks" / f"{i}.png")
    config, _ = made(tmp_path, root, "--masks", str(root / "masks"))
    assert Config.load(config).data.mask_values == {"class_7": [7], "class_26": [26]}
    goes(config, tmp_path)


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path):
    root = draw(tmp_path / "street", ONE_SIZE)
    config, _ = made(tmp_path, root, "--classes", "road,tree")
    before = config.read_text()
    with pytest.raises(InputError, match=r"meal.yaml is there already, and is not overwritten"):
        begin(config.parent, root / "images", None, "other,names")
    assert config.read_text() == before
    with pytest.raises(InputError, match="There are no masks to tell the classes by"):
        begin(tmp_path / "second", root / "images")
    assert not (tmp_path / "second").exists()
    (tmp_path / "closed").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        begin(tmp_path / "closed" / "x", root / "images", None, "road,tree")


def test_names_that_yaml_would_misread(tmp_path):
    root = draw(tmp_path / "a place: #1, é", ONE_SIZE)
    config, _ = made(tmp_path, root, "--classes", "yes,no,null,1.5,a: b")
    assert Config.load(config).data.class_names == ["yes", "no", "null", "1.5", "a: b"]
    assert yaml.safe_load(config.read_text())["data"]["root"] == str(root)


def test_the_store_is_beside_the_config_and_the_comments_are_comments(tmp_path):
    root = draw(tmp_path / "new\nline", ONE_SIZE)
    config, _ = made(tmp_path, root, "--classes", "road,tree")
    loaded = Config.load(config)
    assert loaded.data.store == config.parent / "store"
    assert "# Written by: meal-gpu init" in config.read_text()


def test_a_run_goes_on_to_its_end(tmp_path):
    """Labels for some: the query that goes out is answered, and the run ends."""
    root = draw(tmp_path / "street", ONE_SIZE, 3)
    config, _ = made(tmp_path, root, "--masks", str(root / "masks"))
    out = goes(config, tmp_path)
    place = out / "seed-0" / "to-label" / "round-01"
    for patch in json.loads((place / "query.json").read_text())["items"]:
        y0, x0, y1, x1 = patch["box"]
        Image.fromarray(RNG.integers(0, 3, (y1 - y0, x1 - x0), np.uint8)).save(place / "masks" / patch["file"])
    resume(out)
    assert len(read_rounds(out / "seed-0")) == 2
