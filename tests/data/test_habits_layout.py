"""Folders as people have them: names, layouts, mixed sizes. Each test is a habit; its name says what is right."""

from pathlib import Path

import numpy as np
import pytest
from habits import IDS, SIZE, Folder
from PIL import Image

from meal_gpu.config import DataConfig

# --- 7: names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a b", "100% {stem}", "x[1]", "-rf", "‮txt", "a\nb", "'\"<&>", "n" * 240, "日本語"])
def test_any_name_that_the_file_system_allows_works(name: str, folder: Folder) -> None:
    folder.add(name, mask=IDS)
    stores = folder.ingest()
    assert stores.train.names == (name,)
    np.testing.assert_array_equal(stores.train.masks[0], IDS)


def test_names_that_differ_in_unicode_normalisation_pair_up(folder: Folder) -> None:
    folder.add("a", mask=IDS)
    (folder.root / "images" / "a.png").rename(folder.root / "images" / "caf\u00e9.png")
    (folder.root / "masks" / "a.png").rename(folder.root / "masks" / "cafe\u0301.png")
    np.testing.assert_array_equal(folder.masks()[0], IDS)
    (folder.root / "images" / "cafe\u0301.png").write_bytes((folder.root / "images" / "caf\u00e9.png").read_bytes())
    assert "caf\u00e9.png has no mask" in folder.refused()  # the mask belongs to the image of its own spelling


def test_a_name_that_is_no_text_is_named(folder: Folder) -> None:
    folder.add("a")
    (folder.root / "images" / "a.png").rename(folder.root / "images" / "a\udcff.png")
    assert "not UTF-8" in folder.refused()


def test_braces_in_the_root_are_no_pattern(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "{x} [1]")
    folder.add("a").add("b")
    (folder.root / "masks" / "b.png").unlink()
    assert "b.png has no mask" in folder.refused()


# --- 8: layouts -------------------------------------------------------------------------------------------------------


def test_what_is_left_out_is_counted_and_told(folder: Folder) -> None:
    """Three files at the top and six below them ran on three, without a word."""
    from meal_gpu.data.census import report

    for i in range(3):
        folder.add(f"i{i}", mask=IDS)
    for city in ("bonn", "ulm"):
        (folder.root / "images" / city).mkdir()
        (folder.root / "masks" / city).mkdir()
        for i in range(3):
            folder.add(f"{city}/i{i}", mask=IDS)
    (folder.root / "images" / "notes.txt").write_text("")
    (folder.root / "images" / ".hidden.png").write_text("")
    text = "\n".join(report(folder.data(), folder.ingest()))
    assert "6 in sub-folders" in text
    assert "1 ending in .txt" in text
    assert "1 hidden" in text
    assert "data.images: images/**/*" in text
    stores = folder.ingest(images="images/**/*")
    assert len(stores.train.names) == 9
    assert {"i0", "bonn/i0", "ulm/i2"} <= set(stores.train.names)
    assert (stores.train.masks == IDS).all()


@pytest.mark.parametrize(("images", "masks", "image", "mask"), [
    ("images/*.png", "masks/{stem}_mask.png", "images/{}.png", "masks/{}_mask.png"),
    ("images", "masks/{stem}_labelIds.png", "images/{}.png", "masks/{}_labelIds.png"),
    ("all/*", "all/{stem}_mask.png", "all/{}.png", "all/{}_mask.png"),
    ("all/*.jpg", "all/{stem}.png", "all/{}.jpg", "all/{}.png"),
    ("*/images/*.png", "{dir}/../masks/{stem}.png", "a/images/{}.png", "a/masks/{}.png"),
    ("images/**/*.png", "masks/{dir}/{stem}.png", "images/a/b/{}.png", "masks/a/b/{}.png"),
])
def test_layouts_are_patterns(images: str, masks: str, image: str, mask: str, tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for i in range(3):
        for place, array in ((image, np.full((*SIZE, 3), 50 * i, np.uint8)), (mask, (IDS + i) % 3)):
            path = tmp_path / place.format(f"x{i}")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(path)
    stores = folder.ingest(images=images, masks=masks)
    assert len(stores.train.names) == 3
    for i in range(3):
        assert abs(int(stores.train.images[i, 0, 0, 0]) - 50 * i) <= 1
        np.testing.assert_array_equal(stores.train.masks[i], (IDS + i) % 3)
    (tmp_path / mask.format("x1")).unlink()
    assert "x1" in folder.refused(images=images, masks=masks)


def test_masks_in_colour_are_read_by_a_table(folder: Folder) -> None:
    colours = {"road": [128, 64, 128], "tree": [0, 142, 0], "car": [0, 0, 142], "void": [0, 0, 0]}
    shown = np.array([*colours.values()], np.uint8)[IDS]
    shown[0, :3] = 0
    folder.add("a", mask=shown)
    masks = folder.masks(class_names=colours)
    np.testing.assert_array_equal(masks[0, 1:], IDS[1:])
    assert (masks[0, 0, :3] == 255).all()
    shown[5, 5] = 1, 2, 3
    folder.add("a", mask=shown)
    assert "[1, 2, 3] (1 pixels)" in folder.refused(class_names=colours)


# --- 9: mixed sizes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loader", ["dali", "torchvision"])
def test_a_portrait_keeps_its_aspect_ratio(loader: str, folder: Folder) -> None:
    """A disc of 400 pixels became one of 32 x 16."""
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    y, x = np.mgrid[:96, :48]
    disc = (y - 40) ** 2 + (x - 24) ** 2 < 18**2
    folder.add("a", np.where(disc[..., None], [255, 0, 0], [0, 0, 255]).astype(np.uint8), disc.astype(np.uint8))
    folder.add("b", np.full((12, 16, 3), 9, np.uint8), IDS)
    keys = {"resize": "fit", "image_size": (48, 64), "loader": loader}
    stores = folder.ingest(**keys)
    masks, images = stores.train.masks, stores.train.images
    found = masks[0] == 1
    assert abs(int(found.any(1).sum()) - int(found.any(0).sum())) <= 1  # as high as wide
    np.testing.assert_array_equal(masks[0][:, 24:], 255)
    assert (masks[0][:, :24] != 255).all()
    assert (images[0][found][:, 0] > 120).mean() > 0.9
    assert (images[1] == 9).all()
    np.testing.assert_array_equal(masks[1], np.kron(IDS, np.ones((4, 4), np.uint8)))


def test_patches_beside_an_image_are_never_free() -> None:
    from meal_gpu.data.fit import blank_patches, extents
    from meal_gpu.grid import Grid

    data = DataConfig.model_validate({"image_size": (48, 64), "resize": "fit"})
    there = extents([[96, 48, 1], [12, 16, 1], None, [10, 100, 1]], data)
    assert there is not None
    blank = blank_patches(there, Grid(2, 4, 48, 64))
    assert blank.reshape(4, 2, 4).tolist() == [
        [[False, False, True, True]] * 2, [[False] * 4] * 2, [[False] * 4] * 2, [[False] * 4, [True] * 4]]
