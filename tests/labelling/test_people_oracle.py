"""People through a folder: what goes out, and masks that are dropped into it."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import noise

from meal_gpu.data.listing import Sample
from meal_gpu.data.rules import Rules
from meal_gpu.errors import InputError, LabelsMissingError
from meal_gpu.grid import Grid
from meal_gpu.labelling.people import PeopleOracle

GRID = Grid(2, 3, 17, 25)  # patches of 8 x 8, a remainder on both axes
NAMES = ["seq_01", "seq_02", "seq_03"]
IMAGES = noise(3, 17, 25).numpy()
# CamVid's way: ids 0, 1, 2 are classes, 11 is void, everything else is a mistake.
TO_CLASS = np.full(256, 254, np.uint8)
TO_CLASS[[0, 1, 2, 11]] = [0, 1, 2, 255]
RULES = Rules(TO_CLASS, ("road", "tree", "car"), shown={0x804080: 0})


def oracle_in(directory: Path) -> PeopleOracle:
    samples = []
    for name, pixels in zip(NAMES, IMAGES, strict=True):
        file = directory.parent / f"{name}.png"
        Image.fromarray(pixels).save(file)
        samples.append(Sample(name, file, None))
    directory.mkdir(exist_ok=True)
    return PeopleOracle(directory, samples, GRID, RULES)


@pytest.fixture
def seed(tmp_path):
    return tmp_path / "seed-0"


@pytest.fixture
def oracle(seed) -> PeopleOracle:
    return oracle_in(seed)


@pytest.fixture
def folder(seed):
    return seed / "to-label" / "round-03"


IDS = torch.tensor([13, 0, 11])  # seq_03 (0, 1), seq_01 (0, 0), seq_02 (1, 2)
FILES = ["seq_03_r0_c1.png", "seq_01_r0_c0.png", "seq_02_r1_c2.png"]
BOXES = [[0, 8, 8, 16], [0, 0, 8, 8], [8, 16, 16, 24]]


def answer(folder, values, files=FILES) -> None:
    for file, value in zip(files, values, strict=True):
        Image.fromarray(np.asarray(value, np.uint8)).save(folder / "masks" / file)


def test_the_query_goes_out_as_windows_and_a_list(oracle, folder):
    with pytest.raises(LabelsMissingError) as waiting:
        oracle.label(3, IDS)
    assert (waiting.value.directory, waiting.value.missing, waiting.value.wanted) == (folder / "masks", 3, 3)
    assert "3 of 3 masks are missing" in str(waiting.value)
    query = json.loads((folder / "query.json").read_text())
    assert (query["schema"], query["round"], query["query"]) == (1, 3, "round-03")
    assert [(row["name"], row["values"]) for row in query["classes"]] == [("road", [0]), ("tree", [1]), ("car", [2])]
    assert (query["void"]["name"], query["void"]["values"]) == ("void", [11])
    items = query["items"]
    assert [item["file"] for item in items] == FILES
    assert [item["patch"] for item in items] == IDS.tolist()
    assert [item["image"] for item in items] == ["seq_03", "seq_01", "seq_02"]
    assert [item["box"] for item in items] == [item["original"]["box"] for item in items] == BOXES
    assert [item["original"]["window"] for item in items] == [[0, 4, 12, 20], [0, 0, 12, 12], [4, 12, 17, 25]]
    ids = [item["id"] for item in items]
    assert all(re.fullmatch(rf"r03-000{i}-[0-9a-f]{{8}}", id_) for i, id_ in enumerate(ids, start=1))
    assert sorted(file.name for file in (folder / "images").iterdir()) == [f"{id_}.png" for id_ in ids]
    for item, image in zip(items, (2, 0, 1), strict=True):
        y0, x0, y1, x1 = item["original"]["window"]
        shown = np.array(Image.open(folder / "images" / f"{item['id']}.png"))
        np.testing.assert_array_equal(shown, IMAGES[image, y0:y1, x0:x1])


def test_masks_come_in_as_classes_in_the_order_of_the_query(oracle, folder):
    with pytest.raises(LabelsMissingError):
        oracle.label(3, IDS)
    masks = np.random.default_rng(0).choice([0, 1, 2, 11], (3, 8, 8)).astype(np.uint8)
    for k in range(3):
        with pytest.raises(LabelsMissingError) as waiting:
            oracle.label(3, IDS)
        assert waiting.value.missing == 3 - k
        answer(folder, masks[k : k + 1], FILES[k : k + 1])
    labels = oracle.label(3, IDS)
    assert labels.dtype == torch.uint8
    np.testing.assert_array_equal(labels.numpy(), np.where(masks == 11, 255, masks))


def test_the_query_is_written_once(oracle, folder):
    """What a person has opened, moved or marked in the folder stays as it is."""
    for _ in range(2):
        with pytest.raises(LabelsMissingError):
            oracle.label(3, IDS)
        (folder / "query.json").write_text((folder / "query.json").read_text() + " ")
        shutil.rmtree(folder / "images", ignore_errors=True)
    assert (folder / "query.json").read_text().endswith("}\n  ")
    assert not (folder / "images").exists()


def test_a_query_that_was_interrupted_is_written_again(oracle, folder):
    """Its list comes last: without it the images may be incomplete."""
    with pytest.raises(LabelsMissingError):
        oracle.label(3, IDS)
    answer(folder, [np.ones((8, 8))], FILES[:1])
    before = sorted((folder / "images").iterdir())
    (folder / "query.json").unlink()
    before[2].unlink()
    with pytest.raises(LabelsMissingError) as waiting:
        oracle.label(3, IDS)
    assert waiting.value.missing == 2
    assert sorted((folder / "images").iterdir()) == before
    assert (folder / "query.json").exists()


def test_rounds_have_folders_of_their_own(oracle, folder):
    for k in (3, 12):
        with pytest.raises(LabelsMissingError):
            oracle.label(k, IDS)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["round-03", "round-12"]  # and nothing beside


@pytest.mark.parametrize(("mask", "message"), [
    (np.zeros((8, 9), np.uint8), r"seq_01_r0_c0.png is 9 x 8 pixels \(width x height\), its patch 12 x 12 or 8 x 8"),
    (np.zeros((17, 25), np.uint8), "is 25 x 17 pixels"),
    (np.full((8, 8), 7, np.uint8), r"seq_01_r0_c0.png holds the class id 7 .*Allowed ids: 0-2, 11"),
    (np.full((8, 8), 255, np.uint8), r"holds the class id 255 .*Allowed ids: 0-2, 11"),
    (np.full((8, 8, 3), 7, np.uint8), r"seq_01_r0_c0.png has 1 colours that are in no class, most .* \[7, 7, 7\]"),
])
def test_masks_that_do_not_fit_are_refused_by_name(oracle, folder, mask, message):
    with pytest.raises(LabelsMissingError):
        oracle.label(3, IDS)
    good = np.zeros((8, 8), np.uint8)
    answer(folder, [good, mask, good])
    with pytest.raises(InputError, match=message):
        oracle.label(3, IDS)
    answer(folder, [good, good, good])
    assert not oracle.label(3, IDS).any()


def test_a_mask_that_is_half_written_is_refused_by_name(oracle, folder):
    with pytest.raises(LabelsMissingError):
        oracle.label(3, IDS)
    answer(folder, np.zeros((3, 8, 8)))
    content = (folder / "masks" / FILES[1]).read_bytes()
    (folder / "masks" / FILES[1]).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"seq_01_r0_c0.png is truncated"):
        oracle.label(3, IDS)


def test_a_folder_that_asks_for_other_patches_is_refused(oracle, folder):
    """Left there by another run, or images were added to the data set since: its masks are of other patches."""
    with pytest.raises(LabelsMissingError):
        oracle.label(3, IDS)
    with pytest.raises(InputError, match=r"query.json asks for other patches than round 3 of this run"):
        oracle.label(3, IDS + 1)


def test_the_class_table_goes_out_with_the_query(oracle, folder):
    """Tools number classes in their own ways: ids from 1 were accepted, shifted, and nobody was told the table."""
    with pytest.raises(LabelsMissingError):
        oracle.label(3, IDS)
    table = json.loads((folder / "classes.json").read_text())
    assert table["classes"][0] == {"name": "road", "values": [0], "colours": [[128, 64, 128]]}
    assert [(entry["name"], entry["values"]) for entry in table["classes"]] == [("road", [0]), ("tree", [1]),
                                                                              ("car", [2])]
    assert table["void"]["values"] == [11]


def labelled(oracle, round_, value, directory) -> None:
    with pytest.raises(LabelsMissingError):
        oracle.label(round_, IDS)
    answer(directory / "to-label" / f"round-{round_:02d}", [np.full((8, 8), value)] * 3)
    oracle.label(round_, IDS)


def test_counts_are_told_before_training_and_a_class_whose_share_jumps_is_named(oracle, seed, caplog):
    caplog.set_level("INFO", "meal_gpu")
    labelled(oracle, 0, 1, seed)
    assert "Labels of round 0: tree 100.0 %" in caplog.text
    assert "jumps" not in caplog.text
    labelled(oracle, 1, 2, seed)
    assert "share of car jumps from 0 % of all labels before to 100 % in round 1" in caplog.text
    assert "classes.json" in caplog.text


def test_brush_masks_of_one_class_and_void_are_named(oracle, seed, caplog):
    with pytest.raises(LabelsMissingError):
        oracle.label(0, IDS)
    values = np.zeros((8, 8))
    values[:4] = 11
    answer(seed / "to-label" / "round-00", [values] * 3)
    oracle.label(0, IDS)
    assert "hold only road and void" in caplog.text


def test_a_labellers_indexed_mask_is_read_as_the_data_sets_own_are(oracle, folder):
    with pytest.raises(LabelsMissingError):
        oracle.label(3, IDS)
    values = np.zeros((8, 8), np.uint8)
    values[:4] = 1
    image = Image.fromarray(values)
    image.putpalette([2, 2, 2, 1, 1, 1])
    for file in FILES:
        image.save(folder / "masks" / file)
    assert (oracle.label(3, IDS)[0].numpy() == np.where(values, 1, 2)).all()
