"""Unlabelled patches beside labelled ones: of which images, how many, and equal for equal seeds."""

import torch
from test_train import Toy, order

from meal_gpu.stages.unlabelled import Unlabelled


def beside(toy: Toy, count: int = 2, seed: int = 0) -> Unlabelled:
    return Unlabelled(count, toy.ids, 6, toy.grid, order(seed))


def test_they_are_unlabelled_patches_of_the_same_images():
    """Six images of four patches; of the first two patches are labelled, of the last all."""
    toy = Toy()
    toy.ids = torch.tensor([0, 3, 9, 20, 21, 22, 23])
    seen: set[int] = set()
    unlabelled = beside(toy)
    for _ in range(60):
        chosen = unlabelled.beside(torch.tensor([0, 9, 22])).tolist()
        assert [patch // 4 for patch in chosen] == [0, 0, 2, 2]
        assert len(set(chosen)) == 4
        seen |= set(chosen)
    assert seen == {1, 2, 8, 10, 11}
    assert unlabelled.beside(torch.tensor([20, 21])).tolist() == []
    assert len(beside(toy, 9).beside(torch.tensor([0, 9]))) == 5


def test_seeds_choose_their_own_and_equal_seeds_the_same():
    toy = Toy()
    first, again, other = (beside(toy, seed=seed).beside(toy.ids) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_none_lies_beside_its_image():
    """Images that do not fill their frames: of the third column of four patches in a row half is there, of the last
    nothing."""
    toy = Toy()
    filled = torch.tensor([toy.grid.patch_height, toy.grid.patch_width]).repeat(24, 1)
    filled[3::4] = 0
    filled[2::4, 0] //= 2
    filled[6, 0] -= 1  # less than half
    unlabelled = Unlabelled(3, torch.tensor([0, 4]), 6, toy.grid, order(), filled)
    assert sorted(unlabelled.beside(torch.tensor([0])).tolist()) == [1, 2]
    assert unlabelled.beside(torch.tensor([4])).tolist() == [5]


def test_what_there_is_of_a_panorama_is_drawn():
    """All of its patches lie beside it for more than half: those that it reaches are asked for, and learned on."""
    toy = Toy()
    filled = torch.tensor([toy.grid.patch_height, toy.grid.patch_width]).repeat(24, 1)
    filled[:2, 0], filled[2:4, 0] = 3, 0
    unlabelled = Unlabelled(3, torch.tensor([0]), 6, toy.grid, order(), filled)
    assert unlabelled.beside(torch.tensor([0])).tolist() == [1]
