"""Labels that are there before a run: who is held out for validation, which patches count, what the store holds."""

from pathlib import Path

import numpy as np
import pytest
from habits import Folder
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from meal_gpu.data.census import census, report
from meal_gpu.data.classes import VOID
from meal_gpu.data.datasets import open_dataset
from meal_gpu.data.labelled import hold_out, labelled_cells
from meal_gpu.data.listing import Sample
from meal_gpu.errors import InputError
from meal_gpu.grid import Grid

SIZE = (12, 16)


def samples(n: int, labelled: int) -> list[Sample]:
    return [Sample(f"i{i}", Path(f"i{i}.png"), Path(f"m{i}.png") if i < labelled else None) for i in range(n)]


@given(st.integers(0, 40), st.integers(0, 40), st.floats(0.01, 0.99))
def test_a_share_of_the_labelled_images_is_held_out(n, labelled, fraction):
    everything = samples(n, labelled)
    train, val = hold_out(everything, fraction)
    assert sorted((*train, *val), key=everything.index) == everything
    assert all(sample.mask is not None for sample in val)
    there = min(n, labelled)
    assert len(val) == (min(max(1, round(fraction * there)), there - 1) if there else 0)


def test_one_image_more_moves_one_image_at_most():
    for n in range(5, 40):
        before = {sample.name for sample in hold_out(samples(n, n), 0.3)[1]}
        after = {sample.name for sample in hold_out(samples(n + 1, n + 1), 0.3)[1]}
        assert len(before - after) <= 1


def test_a_patch_with_any_label_counts():
    masks = np.full((3, 13, 17), VOID, np.uint8)  # the last row and column belong to no patch
    masks[1, 0, 0] = masks[1, 11, 15] = masks[2, 12, 16] = 0
    found = labelled_cells(masks, [1, 2], Grid(2, 2, 13, 17))
    assert found.tolist() == [[True, False, False, True], [False] * 4]


def some(folder: Folder, n: int = 6, labelled: int = 4) -> Folder:
    for i in range(n):
        folder.add(f"i{i}", mask=np.random.default_rng(i).integers(0, 3, SIZE).astype(np.uint8))
        if i >= labelled:
            (folder.root / "masks" / f"i{i}.png").unlink()
    return folder


def test_an_image_without_mask_says_what_can_be_done(folder):
    assert "data.unlabelled: ask" in some(folder).refused()
    assert "data.unlabelled: ask" in folder.refused(images="images/**/*.png", masks="masks/{stem}.png")


@pytest.mark.parametrize("keys", [{}, {"images": "images/*.png", "masks": "masks/{stem}.png"}])
def test_images_without_masks_are_void_in_the_store_and_counted_as_nothing(folder, keys):
    stores = some(folder).ingest(unlabelled="ask", **keys)
    assert stores.dataset.given == ("i0", "i1", "i2", "i3")
    masks = stores.train.masks
    assert masks is not None
    for i in range(4):
        np.testing.assert_array_equal(masks[i], np.array(Image.open(folder.root / "masks" / f"i{i}.png")))
    assert (np.asarray(masks[4:]) == VOID).all()
    found = census(stores.train, 3)
    assert sum(found.pixels) == 4 * SIZE[0] * SIZE[1]
    assert found.void_pixels == 0
    assert "4 of 6 images of the pool have masks" in "\n".join(report(folder.data(unlabelled="ask"), stores))
    stores.train.verify()


def test_a_mask_that_comes_later_is_read_and_the_rest_taken_over(folder, caplog):
    caplog.set_level("INFO", "meal_gpu")
    some(folder).ingest(unlabelled="ask")
    Image.fromarray(np.ones(SIZE, np.uint8)).save(folder.root / "masks" / "i5.png")
    masks = folder.masks(unlabelled="ask")
    assert (masks[5] == 1).all()
    assert (masks[4] == VOID).all()
    assert "Taken over from the previous store: 5 unchanged images." in caplog.text


def test_no_mask_at_all_begins_with_random_images(folder):
    assert open_dataset(some(folder, labelled=0).data(unlabelled="ask")).given is None


def test_held_out_images_leave_the_pool(folder):
    data = some(folder).data(unlabelled="ask", val_fraction=0.5)
    dataset = open_dataset(data)
    assert [len(dataset.train), len(dataset.val)] == [4, 2]
    assert {sample.name for sample in dataset.val} < {"i0", "i1", "i2", "i3"}
    assert dataset.left_out[0] == "2 of 4 labelled files are held out for validation (data.val_fraction: 0.5)."
    stores = folder.ingest(unlabelled="ask", val_fraction=0.5)
    assert stores.val is not None
    assert stores.val.names == tuple(sample.name for sample in dataset.val)


def test_tiles_of_a_file_are_on_one_side(folder):
    dataset = open_dataset(some(folder).data(unlabelled="ask", val_fraction=0.5, tile=(6, 8), image_size=(6, 8)))
    assert [len(dataset.train), len(dataset.val)] == [16, 8]
    assert not {sample.image for sample in dataset.train} & {sample.image for sample in dataset.val}
    assert len(dataset.given) == 8


def test_keys_that_contradict_each_other(folder):
    from meal_gpu.config import Config

    whole = {"dataset": "folder", "root": str(folder.root), "class_names": ["a", "b"]}
    assert Config.load({"data": {**whole, "val_fraction": 0.2}}).data.val_images is None
    with pytest.raises(InputError, match=r"data.val_fraction is 0.2 and data.val_images is 'there'"):
        Config.load({"data": {**whole, "val_fraction": 0.2, "val_images": "there"}})
    for key, value in (("val_fraction", 0.2), ("unlabelled", "ask")):
        with pytest.raises(InputError, match=f"data.{key} is for data.dataset: folder"):
            Config.load({"data": {"dataset": "camvid", "root": "there", "val_images": None, key: value}})
