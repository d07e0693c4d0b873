"""The classes that labels were made with come back beside them: a table that is not the run's is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from meal_gpu.data.listing import Sample
from meal_gpu.data.rules import Rules
from meal_gpu.errors import InputError, LabelsMissingError
from meal_gpu.grid import Grid
from meal_gpu.journal import read_journal
from meal_gpu.labelling.classfile import check_table, write_table
from meal_gpu.labelling.people import PeopleOracle

TO_CLASS = np.full(256, 254, np.uint8)
TO_CLASS[[0, 1, 2, 255]] = [0, 1, 2, 255]
RULES = Rules(TO_CLASS, ("road", "tree", "car"), shown={0x804080: 0, 0x00FF00: 1, 0x0000FF: 2})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "masks").mkdir()
    write_table(tmp_path, RULES)
    return tmp_path


def refused(folder: Path, name: str, text: str) -> str:
    (folder / "masks" / name).write_text(text)
    with pytest.raises(InputError) as caught:
        check_table(folder, RULES)
    return str(caught.value)


def test_the_table_that_went_out_comes_back(folder):
    check_table(folder, RULES)
    (folder / "masks" / "classes.json").write_bytes((folder / "classes.json").read_bytes())
    (folder / "masks" / "classes.txt").write_text("road\ntree\ncar\n\n")
    (folder / "masks" / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:128,64,128::\ntree:0,255,0::\n")
    check_table(folder, RULES)


def test_ids_that_start_at_1_are_refused(folder):
    """Their masks hold 1, 2, 3 for the run's 0, 1, 2: two of three classes were accepted, shifted by one."""
    message = refused(folder, "classes.txt", "background\nroad\ntree\ncar\n")
    assert "masks/classes.txt gives the id 0 to 'background'" in message
    assert "the classes of this run give it to 'road'" in message
    assert "'road'" in refused(folder, "classes.txt", "tree\nroad\ncar\n")


def test_more_classes_than_the_run_has_are_refused(folder):
    (folder / "masks" / "classes.txt").write_text("road\ntree\ncar\nsomething else\n")
    check_table(folder, RULES)  # an id that is no class: whoever uses it is refused by the mask
    assert "the id 3 to 'car'" in refused(folder, "classes.txt", "road\ntree\nkar\ncar\n".replace("kar", "car"))


def test_another_table_in_json_is_refused(folder):
    table = json.loads((folder / "classes.json").read_text())
    table["classes"][0]["name"], table["classes"][2]["name"] = "car", "road"
    message = refused(folder, "classes.json", json.dumps(table))
    assert "the id 0 to 'car'" in message
    (folder / "masks" / "classes.json").unlink()
    table["classes"][0]["name"], table["classes"][2]["name"] = "road", "car"
    table["void"]["values"] = [254, 2]
    (folder / "classes.json").write_text(json.dumps(table))
    with pytest.raises(InputError, match=r"the id 2 to 'void', and .* to 'car'"):
        check_table(folder, RULES)


def test_colours_that_are_other_classes_are_refused(folder):
    message = refused(folder, "labelmap.txt", "# label:color_rgb:parts:actions\ntree:128,64,128::\n")
    assert "the colour [128, 64, 128] to 'tree', and the classes of this run give it to 'road'" in message


@pytest.mark.parametrize(("name", "text"), [("classes.json", "[]"), ("classes.json", "{"), ("labelmap.txt", "road"),
                                            ("classes.json", '{"classes": [{"name": "a", "values": [700]}]}')])
def test_what_is_no_table_is_named(folder, name, text):
    assert f"masks/{name}" in refused(folder, name, text)


def test_labels_with_another_table_stop_a_run_before_it_trains(tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "seed-0").mkdir()
    oracle = PeopleOracle(tmp_path / "seed-0", [Sample("a", tmp_path / "a.png", None)], Grid(1, 1, 8, 8), RULES)
    with pytest.raises(LabelsMissingError):
        oracle.label(0, torch.tensor([0]))
    masks = tmp_path / "seed-0" / "to-label" / "round-00" / "masks"
    Image.fromarray(np.ones((8, 8), np.uint8)).save(masks / "a_r0_c0.png")
    (masks / "classes.txt").write_text("background\nroad\ntree\ncar\n")
    with pytest.raises(InputError, match="background"):
        oracle.label(0, torch.tensor([0]))
    assert read_journal(tmp_path / "seed-0") == []
