"""Files as people have them. Each test is a habit of real users; its name says what is right."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from habits import IDS, RNG, SIZE, Folder
from PIL import Image

from meal_gpu.data.imagefile import read_mask
from meal_gpu.errors import InputError

# --- 1: masks of 0 and 255 --------------------------------------------------------------------------------------------


def counted(folder: Folder, **keys: Any) -> None:
    from meal_gpu.data.census import check_classes

    check_classes(folder.data(**keys), folder.ingest(**keys))


def test_masks_of_0_and_255_stop_before_anything_is_trained(folder: Folder) -> None:
    """Two names, and 255 is void: the object had no pixel, IoU 0 after 25 epochs, and not a word."""
    folder.add("a", mask=np.where(IDS > 0, 255, 0).astype(np.uint8))
    names = {"class_names": ["background", "object"]}
    with pytest.raises(InputError) as caught:
        counted(folder, **names)
    assert "mask_values: {background: 0, object: 255}" in str(caught.value)
    values = {"class_names": None, "mask_values": {"background": 0, "object": 255}}
    counted(folder, **values)
    np.testing.assert_array_equal(folder.masks(**values)[0], np.where(IDS > 0, 1, 0))


def test_a_class_without_a_pixel_stops_before_anything_is_trained(folder: Folder) -> None:
    folder.add("a", mask=np.where(IDS == 1, 0, IDS).astype(np.uint8)).add("b")
    with pytest.raises(InputError, match=r"'tree'.*no pixel.*data\.absent_classes: allow"):
        counted(folder)
    counted(folder, absent_classes="allow")


def test_pixels_per_class_are_counted_once_and_kept(folder: Folder) -> None:
    from meal_gpu.data.census import census

    folder.add("a", mask=IDS).add("b", mask=np.full(SIZE, 255, np.uint8)).add("c")
    store = folder.ingest().train
    found = census(store)
    assert found.pixels == ((IDS == 0).sum() + IDS.size, (IDS == 1).sum(), (IDS == 2).sum())
    assert found.images == (2, 1, 1)
    assert (found.void_pixels, found.void_images) == (IDS.size, 1)
    assert store.counts is not None
    # A store of before, without counts, says the same.
    from dataclasses import replace
    assert census(replace(store, counts=None, sources=None)).pixels == found.pixels


def test_counts_survive_what_is_taken_over(folder: Folder) -> None:
    from meal_gpu.data.census import census

    folder.add("a", mask=IDS).ingest()
    folder.add("b", mask=IDS)
    found = census(folder.ingest().train)
    assert found.images == (2, 2, 2)
    assert found.sizes == {SIZE: 2}


# --- 2: indexed PNG masks ---------------------------------------------------------------------------------------------


def indexed(values: np.ndarray, colours: list[tuple[int, int, int]]) -> Image.Image:
    image = Image.fromarray(values.astype(np.uint8))
    image.putpalette([part for colour in colours for part in colour])
    return image


def test_a_grey_id_mask_that_was_saved_with_a_palette_holds_its_greys(folder: Folder) -> None:
    """It looks the same in every viewer, and its indices are others: 0 % of the pixels were right."""
    used = [2, 0, 1]
    folder.add("a", mask=indexed(np.array([1, 2, 0])[IDS], [(v, v, v) for v in used]))
    np.testing.assert_array_equal(folder.masks()[0], IDS)


def test_a_palette_of_the_data_sets_class_colours_holds_classes(folder: Folder) -> None:
    colours = {"road": [128, 64, 128], "tree": [0, 142, 0], "car": [0, 0, 142]}
    order = [(0, 0, 142), (128, 64, 128), (0, 142, 0)]  # in the order of an editor
    folder.add("a", mask=indexed(np.array([1, 2, 0])[IDS], order))
    np.testing.assert_array_equal(folder.masks(class_names=colours)[0], IDS)


def test_a_palette_that_only_colours_ids_holds_ids(folder: Folder) -> None:
    voc = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
    folder.add("a", mask=indexed(IDS, voc)).add("b", mask=indexed(IDS, [(v, v, v) for v in range(256)]))
    folder.add("c", mask=indexed(np.zeros(SIZE), voc))
    np.testing.assert_array_equal(folder.masks()[:2], [IDS, IDS])


def test_black_and_white_is_two_stories(folder: Folder) -> None:
    folder.add("a", mask=indexed(IDS > 0, [(0, 0, 0), (255, 255, 255)]))
    message = folder.refused(class_names=["background", "object"])
    assert "a.png" in message
    assert "as indices" in message
    assert "as colours" in message
    assert "data.palette" in message
    masks = folder.masks(class_names=["background", "object"], palette="index")
    np.testing.assert_array_equal(masks[0], IDS > 0)


def test_palettes_that_differ_between_files_are_refused(folder: Folder) -> None:
    folder.add("a", mask=indexed(IDS, [(9, 0, 0), (0, 9, 0), (0, 0, 9)]))
    folder.add("b", mask=indexed(IDS, [(0, 9, 0), (9, 0, 0), (0, 0, 9)]))
    message = folder.refused()
    assert "a.png" in message
    assert "b.png" in message
    assert "palette" in message
    assert len(folder.masks(palette="index")) == 2


# --- 3 and 4: EXIF ----------------------------------------------------------------------------------------------------


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_exif_is_applied_or_ignored_as_the_config_says(folder: Folder, suffix: str,
                                                       caplog: pytest.LogCaptureFixture) -> None:
    from meal_gpu.data.census import report

    pixels = RNG.integers(0, 256, (*SIZE, 3), np.uint8)
    folder.add("a", Image.fromarray(pixels), IDS, suffix, exif=orientation(3)).add("b")
    np.testing.assert_array_equal(folder.ingest().train.images[0], pixels[::-1, ::-1])
    np.testing.assert_array_equal(folder.ingest(exif="ignore").train.images[0], pixels)
    assert any("1 of 2 images" in line and "turned" in line and "data.exif" in line
               for line in report(folder.data(), folder.ingest()))
    assert any("1 of 2 images" in line and "not turned" in line
               for line in report(folder.data(exif="ignore"), folder.ingest(exif="ignore")))


def test_a_jpegs_orientation_can_be_ignored(folder: Folder) -> None:
    pixels = np.kron(RNG.integers(0, 256, (3, 4, 3), np.uint8), np.ones((4, 4, 1), np.uint8))
    folder.add("a", Image.fromarray(pixels), IDS, ".jpg", exif=orientation(3), quality=95)
    raw = np.array(Image.open(folder.root / "images" / "a.jpg"))
    np.testing.assert_array_equal(folder.ingest(exif="ignore").train.images[0], raw)


def test_where_one_reading_of_the_orientation_fits_the_mask_the_error_says_so(folder: Folder) -> None:
    folder.add("a", exif=orientation(6))
    assert "data.exif: ignore" in folder.refused()
    folder.ingest(exif="ignore")


DAMAGED = {
    "no tiff header": b"Exif\0\0nonsense",
    "cut": b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01",
    "far offset": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    "wrong type": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x01\0\0\0ab\0\0\0\0\0\0",
    "orientation 9": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0\0\0\0\0",
}


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("exif", DAMAGED.values(), ids=list(DAMAGED))
def test_an_exif_block_that_cannot_be_read_is_no_orientation(folder: Folder, exif: bytes, suffix: str) -> None:
    pixels = Image.fromarray(np.full((*SIZE, 3), 77, np.uint8))
    folder.add("a", pixels, suffix=suffix, exif=exif, **({"lossless": True} if suffix == ".webp" else {}))
    assert np.abs(folder.ingest().train.images[0].astype(int) - 77).max() <= 1


# --- 6: large images --------------------------------------------------------------------------------------------------


def test_a_large_image_is_read_and_a_too_large_one_is_called_large(folder: Folder) -> None:
    mask = folder.root / "large.png"
    Image.new("L", (20_000, 9_400), 50).save(mask, compress_level=1)  # 188 megapixels: to Pillow alone a bomb
    assert read_mask(mask)[-1, -1] == 50
    folder.add("a", np.zeros((20, 30, 3), np.uint8), np.zeros((20, 30), np.uint8))
    message = folder.refused(max_megapixels=0.0005)
    assert "a.png is too large: 30 x 20 pixels" in message
    assert "data.max_megapixels" in message
    assert "damaged" not in message
    folder.ingest(max_megapixels=0.0006)


# --- 16: many bad files -----------------------------------------------------------------------------------------------


def test_all_bad_files_are_named_in_one_start(folder: Folder) -> None:
    for i in range(15):
        folder.add(f"i{i:02d}")
    for i in (0, 3, 14):
        (folder.root / "images" / f"i{i:02d}.png").write_bytes(b"no image")
    message = folder.refused()
    assert "3 of 15" in message
    assert all(f"i{i:02d}.png" in message for i in (0, 3, 14))
    for i in range(12):
        (folder.root / "images" / f"i{i:02d}.png").write_bytes(b"no image")
    message = folder.refused()
    assert "13 of 15" in message
    assert message.count("is not an image") == 10
    assert "3 more" in message


# --- what is told before anything is paid for -------------------------------------------------------------------------


def test_the_report_counts_what_a_person_should_see(folder: Folder) -> None:
    from meal_gpu.data.census import report

    same = RNG.integers(0, 256, (*SIZE, 3), np.uint8)
    folder.add("a", same, IDS).add("b", same, IDS)
    folder.add("c", np.zeros((48, 24, 3), np.uint8), np.zeros((48, 24), np.uint8))
    text = "\n".join(report(folder.data(), folder.ingest()))
    assert "3 images in the pool, 0 for validation" in text
    assert "in 3" in text
    assert "16 x 12 (2), 24 x 48 (1); 1 of 3 are resized to 16 x 12" in text
    assert "1 of 3 images of the pool change their aspect ratio by more than 10 %" in text
    assert "2 images of the pool are not the only ones with their pixels: a = b" in text


def test_check_writes_a_page_of_overlays_and_says_what_would_stop_a_run(folder: Folder, tmp_path: Path) -> None:
    from meal_gpu.config import Config
    from meal_gpu.engine.check import check

    for i in range(25):
        folder.add(f"<i>{i:02d}", mask=np.where(IDS == 1, 255, IDS).astype(np.uint8))
    config = Config.load({"data": folder.data().model_dump(mode="json")})
    lines, problem = check(config, tmp_path / "check.html")
    assert problem is not None
    assert "'tree'" in str(problem)
    page = (tmp_path / "check.html").read_text()
    assert page.count("data:image/webp") == 2 * 20
    assert "A run would stop here" in page
    assert all(name in page for name in ("road", "tree", "car", "&lt;i&gt;00"))
    assert "<i>00" not in page
    assert 3 <= len(lines) <= 10
