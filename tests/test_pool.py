"""Frames against plain slices, and the book-keeping of the pool."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CPU, noise

from meal_gpu.grid import Grid
from meal_gpu.pool import Frames, Pool, as_tensor


@st.composite
def pools(draw) -> tuple[torch.Tensor, Grid]:
    rows, cols = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    height, width = draw(st.integers(2 * rows, 20)), draw(st.integers(2 * cols, 20))
    return noise(draw(st.integers(1, 4)), height, width, seed=draw(st.integers(0, 9))), Grid(rows, cols, height, width)


@settings(deadline=None)
@given(pools(), st.data())
def test_frames_are_plain_slices(pool, data):
    """Both contexts, images and masks, any order of indices and repeated ones, grids that leave a remainder."""
    images, grid = pool
    for pixels in (images, images[..., 0]):
        frames = Frames.of(pixels, grid, "image", CPU)
        index = torch.tensor(data.draw(st.lists(st.integers(0, len(images) - 1), min_size=1, max_size=5)))
        assert (frames.count, frames.grid) == (len(images), grid)
        assert torch.equal(frames[index], pixels[index])

        frames = Frames.of(pixels, grid, "patch", CPU)
        assert frames.count == len(images) * grid.cells
        assert frames.grid == Grid(1, 1, grid.patch_height, grid.patch_width)
        ids = data.draw(st.lists(st.integers(0, frames.count - 1), min_size=1, max_size=5))
        found = frames[torch.tensor(ids)]
        for patch, frame in zip(ids, found, strict=True):
            image, cell = grid.split(patch)
            y0, x0, y1, x1 = grid.box(cell)
            assert torch.equal(frame, pixels[image, y0:y1, x0:x1])


@pytest.mark.parametrize("context", ["patch", "image"])
def test_frames_copy_no_pixel(context):
    images = noise(2, 11, 13)
    assert Frames.of(images, Grid(2, 3, 11, 13), context, CPU).pixels.data_ptr() == images.data_ptr()


@given(st.integers(1, 9))
@settings(deadline=None)
def test_batches_are_all_frames_in_order(size):
    frames = Frames.of(noise(5, 4, 4), Grid(1, 1, 4, 4), "image", CPU)
    batches = list(frames.batches(size))
    assert torch.cat(batches).tolist() == list(range(5))
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)


def test_a_read_only_memmap_is_shared_without_a_warning(tmp_path, recwarn):
    file = tmp_path / "images"
    file.write_bytes(bytes(range(48)))
    tensor = as_tensor(np.memmap(file, np.uint8, "r", shape=(4, 2, 2, 3)))
    assert tensor[3, 1, 1].tolist() == [45, 46, 47]
    assert not recwarn.list


@pytest.fixture
def pool() -> Pool:
    return Pool(noise(3, 8, 9), ["a", "b", "c"], Grid(2, 2, 8, 9), CPU)


def labels(*values: int) -> torch.Tensor:
    return torch.stack([torch.full((4, 4), value, dtype=torch.uint8) for value in values])


def test_revealing_keeps_ids_and_labels_together_in_order(pool):
    assert pool.n_patches == 12
    assert pool.free.all()
    pool.reveal(torch.tensor([7, 0]), labels(1, 2))
    pool.reveal(torch.tensor([11]), labels(3))
    assert pool.labelled_ids.tolist() == [7, 0, 11]
    assert pool.labels[:, 0, 0].tolist() == [1, 2, 3]
    assert pool.labelled.nonzero().tolist() == [[0, 0], [1, 3], [2, 3]]
    assert (~pool.free).nonzero().squeeze(1).tolist() == [0, 7, 11]
    assert pool.fraction == 0.25
    assert pool.frames("patch").count == 12


def test_revealing_nothing_changes_nothing(pool):
    pool.reveal(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4, 4, dtype=torch.uint8))
    assert pool.free.all()


@pytest.mark.parametrize(("ids", "given_labels", "message"), [
    ([3, 3], labels(0, 0), r"distinct and in 0 \.\.\. 11: \[3, 3\]"),
    ([12], labels(0), r"distinct and in 0 \.\.\. 11: \[12\]"),
    ([-1], labels(0), r"distinct and in 0 \.\.\. 11: \[-1\]"),
    ([1, 5], labels(0, 0), r"already labelled: \[5\]"),
    ([1], labels(0, 0), r"uint8 \[1, 4, 4\], not torch.uint8 \[2, 4, 4\]"),
    ([1], torch.zeros(1, 4, 5, dtype=torch.uint8), r"uint8 \[1, 4, 4\], not torch.uint8 \[1, 4, 5\]"),
    ([1], torch.zeros(1, 4, 4, dtype=torch.int64), r"uint8 \[1, 4, 4\], not torch.int64"),
])
def test_what_cannot_be_revealed_is_refused_and_changes_nothing(pool, ids, given_labels, message):
    pool.reveal(torch.tensor([5]), labels(1))
    with pytest.raises(ValueError, match=message):
        pool.reveal(torch.tensor(ids), given_labels)
    assert pool.labelled_ids.tolist() == [5]
    assert int(pool.labelled.sum()) == len(pool.labels) == 1
