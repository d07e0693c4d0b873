"""Who labels: masks that are there already, or people through a folder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import noise

from meal_gpu.data.listing import Sample
from meal_gpu.data.rules import Rules
from meal_gpu.engine.oracle import PeopleOracle, SimulatedOracle
from meal_gpu.errors import InputError, LabelsMissingError
from meal_gpu.grid import Grid

GRID = Grid(2, 3, 17, 25)  # patches of 8 x 8, a remainder on both axes
NAMES = ["seq_01", "seq_02", "seq_03"]
SAMPLES = [Sample(name, Path(name), None) for name in NAMES]
IMAGES = noise(3, 17, 25).numpy()
# CamVid's way: ids 0, 1, 2 are classes, 11 is void, everything else is a mistake.
TO_CLASS = np.full(256, 254, np.uint8)
TO_CLASS[[0, 1, 2, 11]] = [0, 1, 2, 255]
RULES = Rules(TO_CLASS, ("road", "tree", "car"), shown={0x804080: 0})


@given(st.integers(1, 4), st.integers(1, 4), st.integers(8, 20), st.integers(8, 20), st.data())
def test_the_simulated_oracle_shows_the_masks(rows, cols, height, width, data):
    grid = Grid(rows, cols, height, width)
    masks = np.random.default_rng(0).integers(0, 256, (3, height, width), np.uint8)
    ids = data.draw(st.lists(st.integers(0, 3 * grid.cells - 1), max_size=6))
    labels = SimulatedOracle(masks, grid).label(0, torch.tensor(ids, dtype=torch.int64))
    assert labels.shape == (len(ids), grid.patch_height, grid.patch_width)
    assert labels.dtype == torch.uint8
    for patch, label in zip(ids, labels.numpy(), strict=True):
        y, x = patch % grid.cells // cols * grid.patch_height, patch % cols * grid.patch_width
        mask = masks[patch // grid.cells]
        np.testing.assert_array_equal(label, mask[y : y + grid.patch_height, x : x + grid.patch_width])


@pytest.fixture
def oracle(tmp_path) -> PeopleOracle:
    return PeopleOracle(tmp_path, IMAGES, SAMPLES, GRID, RULES)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "to-label" / "round-03"


IDS = torch.tensor([13, 0, 11])  # seq_03 (0, 1), seq_01 (0, 0), seq_02 (1, 2)
FILES = ["seq_03_r0_c1.png", "seq_01_r0_c0.png", "seq_02_r1_c2.png"]
BOXES = [[0, 8, 8, 16], [0, 0, 8, 8], [8, 16, 16, 24]]


def answer(folder, values, files=FILES) -> None:
    for file, value in zip(files, values, strict=True):
        Image.fromarray(np.asarray(value, np.uint8)).save(folder / "masks" / file)


def test_the_query_goes_out_as_images_and_a_list(oracle, folder):
    with pytest.raises(LabelsMissingError) as waiting:
        oracle.label(3, IDS)
    assert (waiting.value.directory, waiting.value.missing, waiting.value.wanted) == (folder / "masks", 3, 3)
    assert "3 of 3 masks are missing" in str(waiting.value)
    query = json.loads((folder / "query.json").read_text())
    assert [patch["file"] for patch in query] == FILES
    assert [patch["id"] for patch in query] == IDS.tolist()
    assert [patch["image"] for patch in query] == ["seq_03", "seq_01", "seq_02"]
    assert [patch["box"] for patch in query] == BOXES
    assert sorted(file.name for file in (folder / "images").iterdir()) == sorted(FILES)
    for file, image, (y0, x0, y1, x1) in zip(FILES, (2, 0, 1), BOXES, strict=True):
        np.testing.assert_array_equal(np.array(Image.open(folder / "images" / file)), IMAGES[image, y0:y1, x0:x1])


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
        (folder / "images" / FILES[0]).unlink(missing_ok=True)
    assert (folder / "query.json").read_text().endswith("]  ")
    assert not (folder / "images" / FILES[0]).exists()


def test_a_query_that_was_interrupted_is_written_again(oracle, folder):
    """Its list comes last: without it the images may be incomplete."""
    with pytest.raises(LabelsMissingError):
        oracle.label(3, IDS)
    (folder / "query.json").unlink()
    (folder / "images" / FILES[2]).unlink()
    with pytest.raises(LabelsMissingError):
        oracle.label(3, IDS)
    assert (folder / "images" / FILES[2]).exists()
    assert (folder / "query.json").exists()


def test_rounds_have_folders_of_their_own(oracle, folder):
    for k in (3, 12):
        with pytest.raises(LabelsMissingError):
            oracle.label(k, IDS)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["round-03", "round-12"]


@pytest.mark.parametrize(("mask", "message"), [
    (np.zeros((8, 9), np.uint8), r"seq_01_r0_c0.png is 9 x 8 pixels \(width x height\), its patch 8 x 8"),
    (np.zeros((17, 25), np.uint8), "is 25 x 17 pixels"),
    (np.full((8, 8), 7, np.uint8), r"seq_01_r0_c0.png holds the class id 7 .*Allowed ids: 0-2, 11"),
    (np.full((8, 8), 255, np.uint8), r"holds the class id 255 .*Allowed ids: 0-2, 11"),
    (np.zeros((8, 8, 3), np.uint8), "seq_01_r0_c0.png is a PNG of Pillow mode RGB, so it holds colours"),
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


def test_counts_are_told_before_training_and_a_class_whose_share_jumps_is_named(oracle, tmp_path, caplog):
    caplog.set_level("INFO", "meal_gpu")
    labelled(oracle, 0, 1, tmp_path)
    assert "Labels of round 0: tree 100.0 %" in caplog.text
    assert "jumps" not in caplog.text
    labelled(oracle, 1, 2, tmp_path)
    assert "share of car jumps from 0 % of all labels before to 100 % in round 1" in caplog.text
    assert "classes.json" in caplog.text


def test_brush_masks_of_one_class_and_void_are_named(oracle, tmp_path, caplog):
    with pytest.raises(LabelsMissingError):
        oracle.label(0, IDS)
    values = np.zeros((8, 8))
    values[:4] = 11
    answer(tmp_path / "to-label" / "round-00", [values] * 3)
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
