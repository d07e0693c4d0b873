"""Large files are cut into images: each tile is its part of the file, to the bit, and what lies beyond is void."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from habits import RNG, Folder
from PIL import Image

from meal_gpu.data import sheet, tiles
from meal_gpu.data.datasets import open_dataset
from meal_gpu.data.fit import FILL, blank_patches, extents
from meal_gpu.data.imagefile import Reading, read_image
from meal_gpu.errors import InputError
from meal_gpu.grid import Grid

TILE = (16, 20)
LARGE = RNG.integers(0, 256, (40, 50, 3), np.uint8)
IDS = RNG.integers(0, 3, (40, 50)).astype(np.uint8)
KEYS: dict[str, Any] = {"tile": TILE, "image_size": TILE}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
@pytest.mark.parametrize("loader", ["torchvision", "dali"])
def test_a_tile_is_its_part_of_the_file(folder: Folder, suffix: str, loader: str) -> None:
    """An orthophoto was one image, squashed to the network's size."""
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    folder.add("map", LARGE, IDS, suffix).add("small", LARGE[:16, :20], IDS[:16, :20])
    stores = folder.ingest(loader=loader, **KEYS)
    corners = [(y, x) for y in (0, 16, 32) for x in (0, 20, 40)]
    assert stores.train.names == (*(f"map_y{y}_x{x}" for y, x in corners), "small_y0_x0")
    assert stores.train.masks is not None
    for (y, x), image, mask in zip(corners, stores.train.images, stores.train.masks, strict=False):
        part, ids = LARGE[y : y + 16, x : x + 20], IDS[y : y + 16, x : x + 20]
        np.testing.assert_array_equal(image[: part.shape[0], : part.shape[1]], part)
        np.testing.assert_array_equal(mask[: part.shape[0], : part.shape[1]], ids)
        assert (image[part.shape[0] :] == FILL).all()
        assert (mask[:, part.shape[1] :] == 255).all()
    assert "2 files of the pool are cut into 10 images of 20 x 16" in stores.dataset.left_out[0]
    assert "5 reach beyond" in stores.dataset.left_out[0]


def test_patches_beyond_the_edge_are_not_asked_for(folder: Folder) -> None:
    folder.add("map", LARGE, IDS)
    stores = folder.ingest(**KEYS)
    there = extents(stores.train.sources, folder.data(**KEYS))
    assert there is not None
    assert there.tolist() == [[16, 20], [16, 20], [16, 10]] * 2 + [[8, 20], [8, 20], [8, 10]]
    blank = blank_patches(there, Grid(2, 2, *TILE))
    assert blank[2].tolist() == [False, True] * 2
    assert blank[8].tolist() == [False, True, True, True]
    scaled = extents(stores.train.sources, folder.data(tile=TILE, image_size=(32, 40)))
    assert scaled is not None
    assert scaled[8].tolist() == [16, 20]


def test_files_that_lose_most_of_their_pixels_are_told_of(folder: Folder) -> None:
    from meal_gpu.data.census import report

    folder.add("map", LARGE, IDS).add("small")
    data = folder.data(image_size=(10, 12))
    assert any("1 of 2 images of the pool are reduced to a quarter of their sides or less; data.tile: [10, 12]" in line
               for line in report(data, folder.ingest(image_size=(10, 12))))
    data = folder.data(**KEYS)
    assert not any("quarter" in line for line in report(data, folder.ingest(**KEYS)))


def test_validation_is_cut_file_by_file(folder: Folder) -> None:
    folder.add("map", LARGE, IDS)
    for name in ("val_images", "val_masks"):
        (folder.root / name).mkdir()
    Image.fromarray(LARGE[::-1]).save(folder.root / "val_images" / "other.png")
    Image.fromarray(IDS[::-1]).save(folder.root / "val_masks" / "other.png")
    stores = folder.ingest(val_images="val_images", val_masks="val_masks", **KEYS)
    assert stores.val is not None
    assert len(stores.val.names) == 9
    assert not set(stores.val.names) & set(stores.train.names)
    np.testing.assert_array_equal(stores.val.images[0], LARGE[::-1][:16, :20])


def test_records_name_the_file_and_the_box_in_it(folder: Folder) -> None:
    from meal_gpu.data.tiles import find

    folder.add("map", LARGE, IDS, ".tif")
    samples = open_dataset(folder.data(tile=TILE, image_size=(32, 40))).train
    place = find(4 * 4 + 3, Grid(2, 2, 32, 40), samples)
    assert place == {"image": "map_y16_x20", "row": 1, "col": 1, "box": [16, 20, 32, 40], "source": "map.tif",
                     "source_box": [24, 30, 32, 40]}


def test_a_file_is_decoded_once_and_let_go(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, kept = [], []
    monkeypatch.setattr(tiles, "open_sheet", lambda path, reading: opened.append(path) or sheet.open_sheet(
        path, reading))
    folder.add("map", LARGE, IDS).add("nap", LARGE, IDS)
    made = tiles.Sheets.__init__
    monkeypatch.setattr(tiles.Sheets, "__init__", lambda self, *given: (kept.append(self), made(self, *given))[1])
    folder.ingest(**KEYS)
    assert sorted(path.stem for path in opened) == ["map", "nap"]
    assert all(file.sheet is None and file.labels is None for held in kept for file in held._files.values())


def test_a_bad_file_is_named_once(folder: Folder) -> None:
    folder.add("map", LARGE, IDS).add("nap", LARGE, IDS[:20])
    message = folder.refused(**KEYS)
    assert message.count("nap.png") == 2  # mask and image
    path = folder.root / "images" / "map.png"
    path.write_bytes(path.read_bytes()[:200])
    assert "map.png" in folder.refused(**KEYS)
    path.write_bytes(b"nothing")
    assert "map.png" in folder.refused(**KEYS)


def test_an_orientation_is_applied_before_cutting(folder: Folder) -> None:
    exif = Image.Exif()
    exif[274] = 6
    folder.add("map", LARGE, np.rot90(IDS, -1), exif=exif)
    stores = folder.ingest(**KEYS)
    assert len(stores.train.names) == 4 * 2
    np.testing.assert_array_equal(stores.train.images[0], np.rot90(LARGE, -1)[:16, :20])
    folder.add("map", LARGE, IDS, exif=exif)
    assert len(folder.ingest(exif="ignore", **KEYS).train.names) == 9


@pytest.mark.parametrize("options", [
    {}, {"rowsperstrip": 7}, {"tile": (16, 32)}, {"compression": "zlib", "predictor": True, "rowsperstrip": 5},
    {"compression": "zlib", "tile": (32, 16)}, {"bigtiff": True}, {"byteorder": ">"}], ids=str)
@pytest.mark.parametrize("bands", [None, (4, 3, 2), (2,)])
def test_a_tiff_file_is_read_in_parts(tmp_path: Path, options: dict[str, Any], bands: tuple[int, ...] | None,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which no more is read than a cut touches."""
    file = tmp_path / "a.tif"
    samples = LARGE if bands is None else RNG.integers(0, 256, (40, 50, 5), np.uint8)
    tifffile.imwrite(file, samples, photometric="rgb", **options)
    reading = Reading(bands=bands)
    whole = read_image(file, reading)
    found = sheet.open_sheet(file, reading)
    assert isinstance(found, sheet._Parts)
    assert found.size == sheet.read_size(file, reading) == (40, 50)
    for box in [(0, 0, 40, 50), (0, 0, 16, 20), (16, 20, 32, 40), (39, 49, 40, 50), (5, 0, 6, 50)]:
        np.testing.assert_array_equal(found.cut(box), whole[box[0] : box[2], box[1] : box[3]])
    read = []
    decode = found.page.decode
    monkeypatch.setattr(found, "page", type("Page", (), {
        "dataoffsets": found.page.dataoffsets, "databytecounts": found.page.databytecounts,
        "decode": lambda self, data, i: read.append(i) or decode(data, i)})())
    found.cut((0, 0, 5, 10))
    assert len(read) == 1


@pytest.mark.parametrize("made", ["lzw", "jpeg", "grey", "planar", "palette", "alpha"])
def test_every_other_tiff_file_has_the_pixels_of_a_whole_reading(tmp_path: Path, made: str) -> None:
    file = tmp_path / "a.tif"
    image = Image.fromarray(LARGE)
    if made == "planar":
        tifffile.imwrite(file, np.moveaxis(LARGE, -1, 0), photometric="rgb", planarconfig="separate")
    elif made == "alpha":
        image.convert("RGBA").save(file)
    else:
        mode = {"grey": "L", "palette": "P"}.get(made, "RGB")
        compression = {"lzw": "tiff_lzw", "jpeg": "jpeg"}.get(made)
        image.convert(mode).save(file, compression=compression)
    whole, found = read_image(file), sheet.open_sheet(file, Reading())
    np.testing.assert_array_equal(found.cut((3, 5, 33, 47)), whole[3:33, 5:47])


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, LARGE, photometric="rgb", compression="zlib", rowsperstrip=8)
    content = bytearray(file.read_bytes())
    with tifffile.TiffFile(file) as held:
        at = held.pages[0].dataoffsets[2]
    content[at : at + 40] = bytes(40)
    file.write_bytes(content)
    found = sheet.open_sheet(file, Reading())
    with pytest.raises(InputError, match=r"a\.tif cannot be decoded"):
        found.cut((16, 0, 24, 50))


def test_tiles_and_fit_do_not_go_together(folder: Folder) -> None:
    with pytest.raises(ValueError, match=r"data\.resize is 'fit' and data\.tile"):
        folder.data(resize="fit", **KEYS)
