"""The table of the recipe's parts: made of the files of runs, and the page is as the command writes it."""

import json
import shutil

import pytest

from meal_gpu.bench.parts import recipe as steps
from meal_gpu.bench.show import recipe
from meal_gpu.config import Config
from meal_gpu.errors import InputError
from meal_gpu.sweepfile import load_points


def test_the_page_is_up_to_date():
    """Run `python -m meal_gpu.bench.show.recipe` where this fails."""
    text = recipe.PAGE.read_text()
    assert text == recipe.HERE.updated(text, recipe.table())


def test_what_ran_is_in_the_table_and_what_did_not_is_named(tmp_path):
    shutil.copy(recipe.RESULTS / recipe.SWEEP, tmp_path)
    iou = dict.fromkeys(recipe.RARE, 0.1) | {"Sky": 0.9, "Pole": None}
    for name, miou in (("plain", 0.4), ("flip", 0.43), ("min_steps", 0.5)):
        folder = tmp_path / f"{name}-seed-0"
        folder.mkdir()
        last = {"n_labelled": 288, "fraction": 0.049, "miou": 0.9, "last": {"miou": miou, "iou": iou}}
        (folder / "rounds.jsonl").write_text(json.dumps(last) + "\n")
    (tmp_path / recipe.STEPS).write_text(json.dumps({
        "steps": {"flip": [1.9, 2.0, 2.25]}, "what": "8 patches", "cpu": "Some", "threads": 1, "torch": "2.14"}))
    text = recipe.table(tmp_path)
    assert "| plain | – | 0.400 |  | 0.075 | 288 | – |" in text
    assert "| flip | `train.flip: true` | 0.430 | +0.030 | 0.075 | 288 | × 2.00 (1.90–2.25) |" in text
    assert "| min_steps | `train.min_steps: 576` | 0.500 | +0.100 | 0.075 | 576 | – |" in text
    assert "Not measured yet: `cosine`, `ema`" in text
    assert "8 patches; processors' time in turns, over that of a plain step beside it, median (20–80 %); Some" in text


def test_without_the_plain_run_nothing_is_compared(tmp_path):
    shutil.copy(recipe.RESULTS / recipe.SWEEP, tmp_path)
    assert "Not measured yet: `plain`" in recipe.table(tmp_path)


def test_a_page_without_marks_is_refused():
    with pytest.raises(InputError, match="lacks the marks"):
        recipe.HERE.updated("# Results", "")


def test_the_parts_are_those_of_the_whole_recipe():
    """What is measured alone is what `camvid_modern` sets, and consistency; the sweep that ships has the same parts."""
    modern, plain = Config.load("camvid_modern").flat(), Config.load("camvid").flat()
    on = {key for key in modern if key.startswith("train.") and modern[key] != plain[key]} - {"train.eval_every"}
    on.add("train.consistency")
    alone = [point.config.flat() for point in load_points("recipe_camvid") if point.name.startswith("alone-")]
    small = [point.config.flat() for point in load_points(recipe.RESULTS / recipe.SWEEP)]
    for points in (alone, small):
        first, *others = points
        assert {key for point in others for key in point if point[key] != first[key]} - {"query.start"} == on
    whole = Config.load("camvid_modern")
    assert whole.query.n_initial_images * whole.data.tiling().cells + whole.query.rounds * whole.query.n_query == 288


def test_steps_are_taken():
    """The measuring itself, on few tiny images."""
    config = Config.load("camvid", ["device=cpu", "model.weights=none", "data.image_size=[32, 48]", "data.grid=[2, 2]",
                                    "model.backbone=mobilenetv2_035", "train.batch_size=4"])
    found = steps.measured(config, images=8, turns=1)
    assert found["plain"] == [1, 1, 1]
    assert set(found) == {"plain", "adamw", "ema", "flip", "scale", "colour", "pseudo_labels", "classmix",
                          "consistency"}
