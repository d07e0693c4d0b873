"""The book-keeping of the pool."""

import pytest
import torch
from tiny import CPU, noise

from meal_gpu.data.frames import HeldFrames
from meal_gpu.grid import Grid
from meal_gpu.stages.pool import Pool


@pytest.fixture
def pool() -> Pool:
    return Pool(HeldFrames.of(noise(3, 8, 9), Grid(2, 2, 8, 9), "patch", CPU), ["a", "b", "c"])


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


def test_revealing_nothing_changes_nothing(pool):
    pool.reveal(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4, 4, dtype=torch.uint8))
    assert pool.free.all()


@pytest.mark.parametrize(("ids", "given_labels", "message"), [
    ([3, 3], labels(0, 0), r"distinct and in 0 \.\.\. 11: \[3, 3\]"),
    ([12], labels(0), r"distinct and in 0 \.\.\. 11: \[12\]"),
    ([-1], labels(0), r"distinct and in 0 \.\.\. 11: \[-1\]"),
    ([1, 5], labels(0, 0), r"already labelled, or beside the image: \[5\]"),
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
