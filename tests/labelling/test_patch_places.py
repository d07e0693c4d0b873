"""Where patches lie in their files, and labels that come from there: as the data set's own masks would be read."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from meal_gpu.config import DataConfig
from meal_gpu.data.decode import read_sample
from meal_gpu.data.listing import Sample
from meal_gpu.data.maskfile import nearest, nearest_index
from meal_gpu.data.rules import Rules
from meal_gpu.data.tiles import cut
from meal_gpu.labelling.places import place

TO_CLASS = np.arange(256, dtype=np.uint8)
NAMES = tuple(f"class {i}" for i in range(250))


@given(st.integers(1, 300), st.integers(1, 300))
def test_the_index_is_what_pillow_takes(source, target):
    line = np.arange(source, dtype=np.int64) % 251
    at = nearest_index(source, target)
    np.testing.assert_array_equal(line[at], nearest(line.astype(np.uint8)[None], (1, target))[0])


def files(folder: Path, height: int, width: int, exif: int = 1) -> Sample:
    draw = np.random.default_rng(height * 1000 + width)
    image = Image.fromarray(draw.integers(0, 256, (height, width, 3), np.uint8))
    tags = image.getexif()
    tags[0x0112] = exif
    image.save(folder / "a.png", exif=tags)
    turned = (width, height) if exif >= 5 else (height, width)
    Image.fromarray(draw.integers(0, 200, turned).astype(np.uint8)).save(folder / "a_mask.png")
    return Sample("a", folder / "a.png", folder / "a_mask.png")


def check(sample: Sample, data: DataConfig) -> None:
    """Labels cut out of the mask at a patch's box are, sampled, those of a data set with that mask."""
    rules = Rules.of(data, TO_CLASS, NAMES, np.zeros((250, 3), np.uint8), {})
    grid = data.tiling()
    for part in cut([sample], data.tile, rules.reading) if data.tile else [sample]:
        whole = np.array(Image.open(sample.mask))
        expected = read_sample(part, data.image_size, rules).mask
        for cell in range(grid.cells):
            found = place(part, cell, grid, rules)
            assert found.size == whole.shape
            y0, x0, y1, x1 = found.box
            assert 0 <= found.window[0] <= y0 < y1 <= found.window[2] <= whole.shape[0]
            assert 0 <= found.window[1] <= x0 < x1 <= found.window[3] <= whole.shape[1]
            top, left, bottom, right = grid.box(cell)
            np.testing.assert_array_equal(found.to_patch(whole[y0:y1, x0:x1]), expected[top:bottom, left:right])
            patch = np.random.default_rng(cell).integers(0, 99, (grid.patch_height, grid.patch_width)).astype(np.uint8)
            back = found.from_patch(patch)
            assert back.shape == found.shape
            again, there = found.to_patch(back), (found.rows >= 0)[:, None] & (found.cols >= 0)[None]
            # Where images are made larger, one pixel is sampled twice.
            if data.tile is None and grid.height <= whole.shape[0] and grid.width <= whole.shape[1]:
                np.testing.assert_array_equal(again[there], patch[there])


@settings(max_examples=25, deadline=None)
@given(st.integers(5, 90), st.integers(5, 90), st.integers(8, 60), st.integers(8, 60), st.sampled_from([1, 2, 3, 4]),
       st.sampled_from(["stretch", "fit"]), st.sampled_from([1, 3, 6, 8]))
def test_labels_at_the_original_size_train_as_the_data_sets_own(tmp_path_factory, height, width, rows, cols, cells,
                                                                resize, exif):
    folder = tmp_path_factory.mktemp("files")
    check(files(folder, height, width, exif), DataConfig(image_size=(rows, cols), grid=(cells, cells), resize=resize))


@settings(max_examples=10, deadline=None)
@given(st.integers(20, 60), st.integers(20, 60), st.integers(14, 50), st.integers(14, 50), st.sampled_from([1, 2, 3]))
def test_tiles_too(tmp_path_factory, height, width, rows, cols, cells):
    folder = tmp_path_factory.mktemp("files")
    check(files(folder, height, width), DataConfig(image_size=(24, 32), grid=(cells, cells), tile=(rows, cols)))


def test_a_window_is_the_patch_and_half_a_patch_around_it(tmp_path):
    data = DataConfig(image_size=(40, 60), grid=(4, 4))
    rules = Rules.of(data, TO_CLASS, NAMES, np.zeros((250, 3), np.uint8), {})
    sample = files(tmp_path, 80, 120)
    middle, corner = (place(sample, cell, data.tiling(), rules) for cell in (5, 15))
    assert middle.box == (20, 30, 40, 60)
    assert middle.window == (10, 15, 50, 75)
    assert middle.inside == (slice(10, 30), slice(15, 45))
    assert corner.window == (50, 75, 80, 120)


@pytest.mark.parametrize("size", [(40, 60), (20, 32), (83, 121)])
def test_patches_of_an_image_cover_it(tmp_path, size):
    data = DataConfig(image_size=(40, 60), grid=(4, 4))
    rules = Rules.of(data, TO_CLASS, NAMES, np.zeros((250, 3), np.uint8), {})
    sample, seen = files(tmp_path, *size), np.zeros(size, int)
    for cell in range(16):
        y0, x0, y1, x1 = place(sample, cell, data.tiling(), rules).box
        seen[y0:y1, x0:x1] += 1
    assert (seen > 0).all()
    if size[0] % 4 == size[1] % 4 == 0:
        assert (seen == 1).all()
