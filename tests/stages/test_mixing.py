"""ClassMix: which classes go where, pixels with their labels, and true labels onto true ones."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_train import Toy, equal, order, state
from tiny import CPU, noise, tiny_config

from meal_gpu.config import Config
from meal_gpu.data.frames import HeldFrames
from meal_gpu.data.pixels import normalise
from meal_gpu.errors import InputError
from meal_gpu.grid import Grid
from meal_gpu.launch import run
from meal_gpu.records import read_rounds
from meal_gpu.report import load_run
from meal_gpu.report.paper import _departures
from meal_gpu.report.words import setting
from meal_gpu.stages.mixing import Mixing

GRID = Grid(2, 3, 33, 50)


@given(st.integers(0, 9), st.integers(0, 5), st.integers(0, 9))
def test_labelled_patches_have_labelled_partners(seed, others, more):
    labelled = more + 2
    [partners] = Mixing(1.0, 4, GRID, order(seed), CPU).drawn([labelled], [others])
    index = partners.index.tolist()
    assert all(other != own for own, other in enumerate(index))
    assert all(other < labelled for other in index[:labelled])
    assert all(other < labelled + others for other in index)


def test_part_of_them_is_given_something_by_draws_of_the_seed_alone():
    drawn = [Mixing(0.3, 4, GRID, order(seed), CPU).drawn([3000, 500], [1000, 0]) for seed in (0, 0, 1)]
    given = (drawn[0][0].index != torch.arange(4000)).float().mean()
    assert 0.27 < float(given) < 0.33
    assert torch.equal(drawn[0][1].index, drawn[1][1].index)
    assert torch.equal(drawn[0][1].ranks, drawn[1][1].ranks)
    assert not torch.equal(drawn[0][1].index, drawn[2][1].index)
    assert len(drawn[0][0].index[:3000].unique()) > 1500  # partners are spread


@pytest.mark.parametrize("seed", range(6))
def test_it_is_that_of_a_plain_loop(seed):
    """Six pictures with patches anywhere; the fifth has one class, the sixth void alone: nothing of them is taken."""
    pixels, cells = normalise(noise(6, 33, 50, seed)), torch.randint(0, 6, (6,), generator=order(seed))
    labels = torch.randint(0, 5, (6, 16, 16), generator=order(seed), dtype=torch.uint8)
    labels[labels == 4] = 255
    labels[4], labels[5] = 2, 255
    mixing = Mixing(0.8, 4, GRID, order(seed), CPU)
    [partners] = mixing.drawn([4], [2])
    before = pixels.clone()
    pictures, found = mixing(pixels, labels, cells, partners)
    assert torch.equal(pixels, before)
    assert pictures.is_contiguous(memory_format=torch.channels_last)
    for own, (other, ranks) in enumerate(zip(partners.index.tolist(), partners.ranks.tolist(), strict=True)):
        there = sorted(set(labels[other].flatten().tolist()) - {255}, key=lambda c: ranks[c])
        taken = there[: len(there) // 2]
        (y0, x0, _, _), (v0, u0, _, _) = GRID.box(int(cells[own])), GRID.box(int(cells[other]))
        picture, known = before[own].clone(), labels[own].clone()
        for i in range(16):
            for j in range(16):
                if int(labels[other, i, j]) in taken:
                    picture[:, y0 + i, x0 + j], known[i, j] = before[other][:, v0 + i, u0 + j], labels[other, i, j]
        assert torch.equal(pictures[own], picture)
        assert torch.equal(found[own], known)


def test_its_own_partner_stays_as_it_is():
    pixels, labels = normalise(noise(3, 33, 50)), torch.randint(0, 4, (3, 16, 16), generator=order(), dtype=torch.uint8)
    mixing = Mixing(0.0, 4, GRID, order(), CPU)
    pictures, found = mixing(pixels, labels, torch.tensor([0, 3, 5]), mixing.drawn([3], [0])[0])
    assert torch.equal(pictures, pixels)
    assert torch.equal(found, labels)


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "finetuned"])
def test_a_training_with_it_sees_other_pixels(frozen, monkeypatch):
    read, asked, ends = HeldFrames.read, [], []
    monkeypatch.setattr(HeldFrames, "read", lambda frames, batches: asked.append(frames) or read(frames, batches))
    for part in (0.0, 1.0):
        toy = Toy(freeze_backbone=frozen)
        toy.train(2, classmix=part)
        ends.append(state(toy.model))
    assert asked
    assert not equal(*ends)


def test_a_run_with_it_repeats_itself_and_says_so(tmp_path):
    config = tiny_config(tmp_path, **{"query.strategy": "random", "query.rounds": 1, "seeds": [0], "train.ema": 0.9,
                                      "train.classmix": 0.5, "train.pseudo_labels": 1, "train.pseudo_threshold": 0.2})
    runs = [run(config, tmp_path / name) for name in ("one", "two")]
    one, two = ([{key: value for key, value in record.items() if key not in ("seconds", "peak_bytes", "check")}
                 for record in read_rounds(directory / "seed-0")] for directory in runs)
    assert one == two
    assert "ClassMix on 50%" in setting(load_run(runs[0]))
    assert "train.classmix 0.5 (paper: 0.0)" in _departures(config)


def test_more_than_all_is_refused():
    with pytest.raises(InputError, match=r"train\.classmix is 1\.5"):
        Config.load({"train": {"classmix": 1.5}})
