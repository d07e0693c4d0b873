"""Which classes masks are found to hold, by ids, values, palettes and colours; and that they are read so."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from meal_gpu.config import DataConfig
from meal_gpu.data.classes import VOID
from meal_gpu.data.datasets import CAMVID
from meal_gpu.data.imagefile import Reading
from meal_gpu.data.ingest import ingest
from meal_gpu.data.maskvalues import classes_of, look, named, parse_classes
from meal_gpu.errors import InputError
from meal_gpu.timing import no_progress

SIZE = (12, 16)
RNG = np.random.default_rng(2)
RED, BLUE = [200, 0, 0], [0, 0, 200]


def pick(values: list[int]) -> np.ndarray:
    """Every value is there."""
    pixels = np.resize(np.array(values, np.uint8), SIZE[0] * SIZE[1])
    return RNG.permutation(pixels).reshape(SIZE)


def painted(indices: np.ndarray, palette: list[list[int]]) -> Image.Image:
    made = Image.fromarray(indices).convert("L")
    made = Image.frombytes("P", made.size, made.tobytes())
    made.putpalette([part for colour in palette for part in colour])
    return made


def coloured(indices: np.ndarray, palette: list[list[int]]) -> Image.Image:
    return Image.fromarray(np.array(palette, np.uint8)[indices])


def written(tmp_path: Path, *masks: Image.Image | np.ndarray) -> list[Path]:
    files = []
    for i, mask in enumerate(masks):
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (*SIZE, 3), np.uint8)).save(tmp_path / "images" / f"{i}.png")
        files.append(tmp_path / "masks" / f"{i}.png")
        (Image.fromarray(mask) if isinstance(mask, np.ndarray) else mask).save(files[-1])
    return files


def found(tmp_path: Path, given: str | None, *masks: Image.Image | np.ndarray) -> tuple[dict, np.ndarray]:
    """The keys, and the masks as a store made by them holds them."""
    seen = look(written(tmp_path, *masks), Reading(), no_progress)
    keys = dict(classes_of(seen, None if given is None else parse_classes(given), False).keys)
    store = ingest(DataConfig.model_validate({
        "dataset": "folder", "root": tmp_path, "store": tmp_path / "store", "image_size": SIZE, "grid": (2, 2),
        "val_images": None, "loader": "torchvision", **keys})).train
    assert store.masks is not None
    return keys, np.array(store.masks)


@pytest.mark.parametrize(("values", "given", "keys", "index"), [
    ([0, 1, 2], "a,b,c", {"class_names": ["a", "b", "c"]}, {0: 0, 1: 1, 2: 2}),
    ([0, 1, 2, 255], "a,b,c", {"class_names": ["a", "b", "c"]}, {0: 0, 1: 1, 2: 2, 255: VOID}),
    ([0, 1, 2, 3], "a,b,c", {"class_names": ["a", "b", "c"], "ignore_index": 3}, {0: 0, 1: 1, 2: 2, 3: VOID}),
    ([0, 1, 2, 255], "a,b", {"mask_values": {"a": 0, "b": 1, "void": [2, 255]}}, {0: 0, 1: 1, 2: VOID, 255: VOID}),
    ([0, 3], "a,b,c", {"class_names": ["a", "b", "c"], "ignore_index": 3, "absent_classes": "allow"}, {0: 0, 3: VOID}),
    ([0, 255], "a,b", {"mask_values": {"a": 0, "b": 255}}, {0: 0, 255: 1}),
    ([7, 11, 26], "a,b,c", {"mask_values": {"a": 7, "b": 11, "c": 26}}, {7: 0, 11: 1, 26: 2}),
    ([7, 11, 26], "a=26,b=7", {"mask_values": {"a": 26, "b": 7, "void": [11, 255]}}, {26: 0, 7: 1, 11: VOID}),
    ([0, 2], "a,b,c", {"class_names": ["a", "b", "c"], "absent_classes": "allow"}, {0: 0, 2: 2}),
    ([0, 1, 2], None, {"class_names": ["class_0", "class_1", "class_2"]}, {0: 0, 1: 1, 2: 2}),
    ([0, 1, 255], None, {"class_names": ["class_0", "class_1"]}, {0: 0, 1: 1, 255: VOID}),
    ([7, 26, 255], None, {"mask_values": {"class_7": 7, "class_26": 26}}, {7: 0, 26: 1, 255: VOID}),
    ([0, 255], None, {"mask_values": {"background": 0, "object": 255}}, {0: 0, 255: 1}),
])
def test_values(tmp_path, values, given, keys, index):
    mask = pick(values)
    made, [read] = found(tmp_path, given, mask)
    assert made == keys
    np.testing.assert_array_equal(read, np.vectorize(index.get)(mask))


def test_a_palette_that_all_share_is_decoration(tmp_path):
    indices = pick([0, 1])
    keys, [read] = found(tmp_path, "a,b", painted(indices, [[0, 0, 0], [255, 255, 255]]))
    assert keys == {"palette": "index", "class_names": ["a", "b"]}
    np.testing.assert_array_equal(read, indices)


def test_a_palette_of_its_own_greys_needs_no_word(tmp_path):
    keys, _ = found(tmp_path, "a,b", painted(pick([0, 1]), [[0, 0, 0], [1, 1, 1]]))
    assert keys == {"class_names": ["a", "b"]}


def test_palettes_that_differ_are_read_by_their_colours(tmp_path):
    one, other = pick([0, 1]), pick([0, 1])
    keys, read = found(tmp_path, "a=#c80000,b=#0000c8", painted(one, [RED, BLUE]), painted(other, [BLUE, RED]))
    assert keys == {"palette": "colour", "mask_colours": {"a": RED, "b": BLUE}}
    np.testing.assert_array_equal(read[0], one)
    np.testing.assert_array_equal(read[1], 1 - other)


def test_greys_of_palettes_that_differ_are_ids(tmp_path):
    one, other = pick([0, 1]), pick([0, 1])
    greys = [[7, 7, 7], [26, 26, 26]]
    keys, read = found(tmp_path, "a,b", painted(one, greys), painted(other, greys[::-1]))
    assert keys == {"palette": "colour", "mask_values": {"a": 7, "b": 26}}
    np.testing.assert_array_equal(read[0], one)
    np.testing.assert_array_equal(read[1], 1 - other)


def test_colours_are_counted_and_black_beside_them_is_void(tmp_path):
    indices = pick([0, 1, 1, 2])
    keys, [read] = found(tmp_path, None, coloured(indices, [RED, BLUE, [0, 0, 0]]))
    assert keys == {"mask_colours": {"class_1": BLUE, "class_2": RED, "void": [0, 0, 0]}}
    np.testing.assert_array_equal(read, np.array([1, 0, VOID])[indices])


def test_one_colour_on_black_is_an_object(tmp_path):
    indices = pick([0, 1])
    keys, [read] = found(tmp_path, None, coloured(indices, [[0, 0, 0], RED]))
    assert keys == {"mask_colours": {"class_1": RED, "background": [0, 0, 0]}}
    np.testing.assert_array_equal(read, 1 - indices)


def test_published_colours_are_known(tmp_path):
    indices = pick([0, 1, 2])
    palette = [list(CAMVID[name]) for name in ("Road", "Car", "Sky")]
    keys, _ = found(tmp_path / "one", None, coloured(indices, palette))
    assert {name: CAMVID[name] for name in keys["mask_colours"]} == {
        name: tuple(colour) for name, colour in keys["mask_colours"].items()}
    assert set(keys["mask_colours"]) == {"Road", "Car", "Sky"}
    keys, [read] = found(tmp_path / "two", None, painted(indices, palette))
    assert keys["mask_values"] == {"Road": 0, "Car": 1, "Sky": 2}
    np.testing.assert_array_equal(read, indices)


def test_colours_that_are_named(tmp_path):
    keys, [read] = found(tmp_path, "road=#c80000,car=#0000c8", coloured(pick([0, 1, 2]), [RED, BLUE, [1, 2, 3]]))
    assert keys == {"mask_colours": {"road": RED, "car": BLUE, "void": [[1, 2, 3]]}}
    assert set(np.unique(read)) == {0, 1, VOID}


@pytest.mark.parametrize(("given", "masks", "message"), [
    ("a,b", [coloured(pick([0, 1]), [RED, BLUE])], r"#0000c8, #c80000.*cannot be told by names alone"),
    ("a=#ff0000,b=#00ff00", [pick([0, 1])], r"gives colours, and the masks hold the values 0, 1"),
    ("a,b", [pick([0, 4, 9])], r"The masks hold 3 values, 0, 4, 9, and --classes has 2 names"),
    ("a,b,c", [pick([0, 1, 3])], r"The masks hold 3 values, 0, 1, 3, and --classes has 3 names"),  # 3: c, or void?
    (None, [pick([0])], r"The masks hold the one value 0"),
    (None, [coloured(pick([0]), [RED])], r"have the one colour \[200, 0, 0\]"),
    (None, [pick(list(range(100)))], r"hold 100 different values, which are hardly classes"),
    (None, [pick([0, 1]), coloured(pick([0, 1]), [RED, BLUE])], r"1 of 2 masks are in colour"),
    (None, [painted(pick([0, 1]), [RED, BLUE]), painted(pick([0, 1]), [BLUE, RED]), pick([0, 1])],
     r"2 of 3 masks have palettes, which differ, and the others have none"),
    (None, [Image.fromarray(RNG.integers(0, 256, (64, 96, 3), np.uint8))], r"has 6,1\d\d colours: it is a photograph"),
    (None, [Image.new("I;16", (16, 12))], r"with more than 8 bits per pixel"),
])
def test_what_cannot_be_told(tmp_path, given, masks, message):
    with pytest.raises(InputError, match=message):
        classes_of(look(written(tmp_path, *masks), Reading(), no_progress),
                   None if given is None else parse_classes(given), False)


@pytest.mark.parametrize(("given", "message"), [
    ("road,", "has ''"), ("road=300", "has 'road=300'"), ("road=#12345", "has 'road=#12345'"),
    ("road=red", "has 'road=red'"), ("a,b,a", "names 'a' twice"), ("a=1,b", "to some names and not to others"),
])
def test_names_that_are_none(given, message):
    with pytest.raises(InputError, match=message):
        parse_classes(given)


def test_names_without_masks():
    assert named(parse_classes(" road , car ")).keys == {"class_names": ["road", "car"]}
    assert named(parse_classes("road=7,car=26")).keys == {"mask_values": {"road": 7, "car": 26}}
    assert named(parse_classes("road=#804080,car=#000000")).keys == {
        "mask_colours": {"road": [128, 64, 128], "car": [0, 0, 0]}}
