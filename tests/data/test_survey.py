"""What a folder is found to hold: where images and masks stand, and how their files must be read."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from meal_gpu.config import DataConfig
from meal_gpu.data.datasets import open_dataset
from meal_gpu.data.ingest import ingest
from meal_gpu.data.maskvalues import Meaning
from meal_gpu.data.survey import Survey, survey
from meal_gpu.errors import InputError

RNG = np.random.default_rng(5)
NAMES = [Meaning("road"), Meaning("tree"), Meaning("car")]


def image(file: Path, size: tuple[int, int] = (24, 32), **options: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (*size, 3), np.uint8)).save(file, **options)


def mask(file: Path, size: tuple[int, int] = (24, 32), values: tuple[int, ...] = (0, 1, 2)) -> np.ndarray:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.choice(values, size).astype(np.uint8)
    Image.fromarray(pixels).save(file)
    return pixels


def read(found: Survey, tmp_path: Path, size: tuple[int, int] = (24, 32)) -> dict[str, np.ndarray | None]:
    """Masks as a store of these keys holds them, by their images' names."""
    data = DataConfig.model_validate({"dataset": "folder", "unlabelled": "ask", "image_size": size, "grid": (2, 2),
                                      "loader": "torchvision", "store": tmp_path / "store", **found.keys,
                                      **found.classes.keys})
    store = ingest(data).train
    masks = [None] * len(store.names) if store.masks is None else store.masks
    return dict(zip(store.names, masks, strict=True))


@pytest.mark.parametrize(("images", "masks", "keys"), [
    ("pics/{}.jpg", "gt/{}.png", {"images": "pics", "masks": "gt"}),
    ("pics/{}.png", "gt/{}_labels.png", {"images": "pics", "masks": "gt/{stem}_labels.png"}),
    ("pics/{}.png", "pics/{}_mask.png", {"images": "pics/*", "masks": "pics/{stem}_mask.png"}),
    ("pics/day/{}.png", "gt/day/{}.png", {"images": "pics/**/*", "masks": "gt/{dir}/{stem}.png"}),
    ("pics/day/{}.png", "gt/{}_m.png", {"images": "pics/**/*", "masks": "gt/{stem}_m.png"}),
    ("pics/day/{}.png", "pics/day/{}_m.png", {"images": "pics/**/*", "masks": "pics/{dir}/{stem}_m.png"}),
    ("set/a/pics/{}.png", "other/gt/{}.png", {"images": "set/a/pics", "masks": "other/gt"}),
])
def test_where_images_and_masks_stand(tmp_path, images, masks, keys):
    drawn = {}
    for i in ("1", "10", "11", "2"):
        image(tmp_path / images.format(i))
        drawn[i] = mask(tmp_path / masks.format(i))
    where = ("pics" if images.startswith("pics") else "set/a/pics", "gt" if masks.startswith("gt") else
             "pics" if masks.startswith("pics") else "other/gt")
    found = survey(*(tmp_path / name for name in where), None)
    assert {key: found.keys[key] for key in keys} == keys
    assert [len(found.samples), found.n_masks] == [4, 4]
    for name, pixels in read(found, tmp_path).items():
        np.testing.assert_array_equal(pixels, drawn[name.rpartition("/")[2]])


def test_masks_of_some(tmp_path):
    for i in range(5):
        image(tmp_path / "images" / f"{i}.png")
    mask(tmp_path / "masks" / "3.png")
    found = survey(tmp_path / "images", tmp_path / "masks", NAMES)
    assert found.n_masks == 1
    assert found.sizes == ((24, 32),) * 5


def test_folders_that_are_called_as_validation_is(tmp_path):
    for prefix, n in (("", 4), ("val_", 3)):
        for i in range(n):
            image(tmp_path / f"{prefix}images" / f"{i}.png")
            mask(tmp_path / f"{prefix}masks" / f"{i}.png")
    found = survey(tmp_path / "images", tmp_path / "masks", NAMES)
    assert found.n_val == 3
    assert found.keys["val_masks"] == "val_masks"
    (tmp_path / "val_masks" / "1.png").unlink()  # no validation set then, rather than half of one
    found = survey(tmp_path / "images", tmp_path / "masks", NAMES)
    assert (found.n_val, found.keys["val_images"]) == (0, None)


@pytest.mark.camvid
def test_camvid(camvid_root):
    found = survey(camvid_root / "train", camvid_root / "trainannot", None)
    assert (len(found.samples), found.n_masks, found.n_val) == (367, 367, 101)
    assert found.keys["val_masks"] == "valannot"
    assert found.classes.keys == {"class_names": [f"class_{i}" for i in range(12)]}
    names = [Meaning(name) for name in "abcdefghijk"]
    assert survey(camvid_root / "train", camvid_root / "trainannot", names).classes.keys == {
        "class_names": list("abcdefghijk"), "ignore_index": 11}


def turned(file: Path, orientation: int = 6) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image(file, exif=exif.tobytes())


@pytest.mark.parametrize(("size", "keys"), [((32, 24), {}), ((24, 32), {"exif": "ignore"})])
def test_masks_say_whether_images_are_turned(tmp_path, size, keys):
    for i in range(3):
        turned(tmp_path / "images" / f"{i}.jpg")
        mask(tmp_path / "masks" / f"{i}.png", size)
    found = survey(tmp_path / "images", tmp_path / "masks", NAMES)
    assert found.sizes == (size,) * 3
    assert {key: found.keys[key] for key in ("exif",) if key in found.keys} == keys
    assert read(found, tmp_path, size)


def test_bands(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    (tmp_path / "images").mkdir()
    for i in range(3):
        tifffile.imwrite(tmp_path / "images" / f"{i}.tif", RNG.integers(0, 256, (24, 32, 6), np.uint8),
                         photometric="minisblack", planarconfig="contig")
    found = survey(tmp_path / "images", None, NAMES)
    assert found.keys["bands"] == [1, 2, 3]
    assert "Say which are, in data.bands" in found.told[0]
    assert read(found, tmp_path)


def test_what_is_refused(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    with pytest.raises(InputError, match="holds no images, nor do folders in it"):
        survey(folder, None, NAMES)
    with pytest.raises(InputError, match="does not exist"):
        survey(tmp_path / "imags", None, NAMES)
    for i in range(3):
        image(folder / f"{i}.png")
    with pytest.raises(InputError, match="There are no masks to tell the classes by"):
        survey(folder, None, None)
    (tmp_path / "masks").mkdir()
    with pytest.raises(InputError, match="holds no mask yet"):
        survey(folder, tmp_path / "masks", None)
    assert survey(folder, tmp_path / "masks", NAMES).n_masks == 0
    mask(tmp_path / "masks" / "other.png")
    with pytest.raises(InputError, match=r"other.png is a mask without image|No mask in .* belongs to an image"):
        survey(folder, tmp_path / "masks", NAMES)
    (tmp_path / "masks" / "other.png").unlink()
    mask(tmp_path / "masks" / "1.png", (32, 24))
    with pytest.raises(InputError, match=r"1\.png is 24 x 32 pixels \(width x height\), its image .* is 32 x 24"):
        survey(folder, tmp_path / "masks", NAMES)
    Image.fromarray(RNG.integers(0, 60000, (24, 32)).astype(np.uint16)).save(folder / "2.png")
    (folder / "0.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"2 of 3 images cannot be used:") as error:
        survey(folder, None, NAMES)
    assert "2.png has more than 8 bits per channel" in str(error.value)
    assert "0.png is empty" in str(error.value)


def test_a_folder_whose_name_is_a_pattern(tmp_path):
    image(tmp_path / "im{a}ges" / "1.png")
    with pytest.raises(InputError, match="rename the folder"):
        survey(tmp_path / "im{a}ges", None, NAMES)


def test_nothing_is_decoded_of_images(tmp_path):
    """A file of 900 megapixels is seen by its header, and may then be read."""
    for i in range(3):
        image(tmp_path / "images" / f"{i}.png")
    Image.new("1", (30000, 30000)).save(tmp_path / "images" / "huge.png")
    found = survey(tmp_path / "images", None, NAMES)
    assert found.keys["max_megapixels"] == 900
    keys = {"dataset": "folder", **found.keys, **found.classes.keys}
    assert len(open_dataset(DataConfig.model_validate(keys)).train) == 4
