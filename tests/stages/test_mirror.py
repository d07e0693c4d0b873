"""Self-consistency: what is seen in the mirror, which loss it has, beside which patches, and that runs repeat."""

import pytest
import torch
import torch.nn.functional as F
from test_train import BACKEND, Toy, equal, order, state
from tiny import noise, stir_norms, tiny_config

from meal_gpu.config import Config, TrainConfig
from meal_gpu.data.frames import HeldFrames
from meal_gpu.data.pixels import normalise
from meal_gpu.errors import InputError
from meal_gpu.grid import Grid
from meal_gpu.launch import run
from meal_gpu.records import read_rounds
from meal_gpu.report import load_run
from meal_gpu.report.paper import _departures
from meal_gpu.report.words import setting
from meal_gpu.stages.lessons import Lesson, Lessons
from meal_gpu.stages.mirror import cells_in_mirror, pixels_in_mirror
from meal_gpu.stages.recipe import MovingMean
from meal_gpu.stages.train import cross_entropy, patch_loss

# --- what is seen -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [Grid(2, 2, 32, 48), Grid(2, 3, 33, 50), Grid(1, 1, 16, 17), Grid(3, 5, 48, 83)])
def test_patches_come_to_lie_on_patches(grid):
    """Also where the grid covers less than the frame, whose rest shows what lies beside the other edge."""
    pixels = normalise(noise(2, grid.height, grid.width))
    seen = pixels_in_mirror(pixels, grid)
    assert seen.shape == pixels.shape
    assert seen.is_contiguous(memory_format=torch.channels_last)
    cells = torch.arange(grid.cells)
    others = cells_in_mirror(cells, grid)
    assert torch.equal(cells_in_mirror(others, grid), cells)
    for cell, other in zip(cells.tolist(), others.tolist(), strict=True):
        (y0, x0, y1, x1), (v0, u0, v1, u1) = grid.box(cell), grid.box(other)
        assert (v0, v1) == (y0, y1)
        assert torch.equal(seen[:, :, v0:v1, u0:u1], pixels[:, :, y0:y1, x0:x1].flip(3))
    over = grid.width - grid.cols * grid.patch_width
    assert torch.equal(seen[..., grid.width - over :], pixels[..., :over])


def lessons_of(toy: Toy, seed: int = 0, **config) -> Lessons:
    settings = TrainConfig(**{"consistency": 1.0, **config})
    return Lessons.of(toy.model, toy.features, toy.ids, toy.ids, toy.labels, settings, order(seed),
                      MovingMean(toy.model, settings.ema))


def lesson(toy: Toy, **config) -> Lesson:
    [found] = lessons_of(toy, **config).read(toy.model.train(), [torch.tensor([0, 3, 1])])
    return found


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "finetuned"])
@pytest.mark.parametrize("context", ["image", "patch"])
def test_their_maps_are_those_of_the_frames_in_the_mirror(context, frozen):
    toy = Toy(context, freeze_backbone=frozen)
    frames, own = toy.features.frames, toy.ids[[0, 3, 1]]
    [found] = lessons_of(toy).read(toy.model.eval(), [torch.tensor([0, 3, 1])])  # norms take no batch into account
    ids = torch.cat([own, lessons_of(toy).unlabelled.beside(own)])
    pixels = next(frames.read([ids // frames.grid.cells]))
    low, high = toy.model.features(pixels.flip(3))
    torch.testing.assert_close(found.mirrored.low, low, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.mirrored.high, high, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.mirrored.cells, cells_in_mirror(ids % frames.grid.cells, frames.grid))


@pytest.mark.parametrize("changed", [{}, {"flip": True, "colour": 0.3}], ids=["plain", "changed"])
def test_an_unlabelled_patch_stands_beside_each_labelled_one(changed):
    toy = Toy()
    found = lesson(toy, **changed)
    assert found.labelled == 3
    assert torch.equal(found.labels[3:], torch.full_like(found.labels[3:], 255))
    assert len(found.low) == len(found.cells) == len(found.mirrored.cells) == 6
    if not changed:
        assert torch.equal(found.labels[:3], toy.labels[[0, 3, 1]])


def test_pseudo_labelled_patches_are_those_beside():
    toy = Toy()
    found = lesson(toy, ema=0.9, pseudo_labels=2, pseudo_threshold=0.0)
    assert len(found.labels) == len(found.mirrored.cells) == 9
    assert not bool((found.labels[3:] == 255).any())


# --- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [1.0, 0.25])
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "finetuned"])
def test_gradients_are_those_of_equal(frozen, weight):
    """Against its loss on whole images: CE(z, y) + CE(z', y) + MSE(z, z' held) + MSE(z', z held)."""
    toy = Toy(freeze_backbone=frozen)
    stir_norms(toy.model.aspp, 3)
    stir_norms(toy.model.decoder, 3)
    model, grid = toy.model.eval(), toy.grid  # eval: windows have the norms of whole images
    found = next(lessons_of(toy, consistency=weight).read(model, [torch.tensor([0, 3, 1])]))
    model.zero_grad()
    loss = patch_loss(model, found.low, found.high, toy.features.windows, found.cells, found.labels, BACKEND,
                      found.labelled, found.mirrored)
    loss.backward()
    mine = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model.zero_grad()
    unlabelled = lessons_of(toy, consistency=weight).unlabelled.beside(toy.ids[[0, 3, 1]])
    ids = torch.cat([toy.ids[[0, 3, 1]], unlabelled])
    pixels = next(toy.features.frames.read([ids // 4]))
    logits = []
    for seen in (pixels, pixels.flip(3)):
        whole = F.interpolate(model.logits(*model.features(seen)), (32, 48), mode="bilinear", align_corners=True)
        logits.append(whole)
    logits[1] = logits[1].flip(3)
    one, two = (torch.stack([z[:, y0:y1, x0:x1].permute(1, 2, 0) for z, (y0, x0, y1, x1) in
                             zip(whole, map(grid.box, (ids % 4).tolist()), strict=True)]) for whole in logits)
    apart = F.mse_loss(one, two.detach()) + F.mse_loss(two, one.detach())
    labels = cross_entropy(one[:3], found.labels[:3]) + cross_entropy(two[:3], found.labels[:3])
    (labels + weight * apart).backward()
    assert mine
    for name, p in model.named_parameters():
        if name in mine:
            torch.testing.assert_close(mine[name], p.grad, rtol=2e-3, atol=1e-5 + 1e-3 * float(p.grad.abs().max()))
    torch.testing.assert_close(loss.detach(), (labels + weight * apart / 2).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "finetuned"])
def test_a_training_with_it_ends_elsewhere_and_repeats_itself(frozen):
    ends = []
    for weight in (0.0, 1.0, 1.0):
        toy = Toy(freeze_backbone=frozen)
        toy.train(2, consistency=weight)
        ends.append(state(toy.model))
    assert not equal(*ends[:2])
    assert equal(*ends[1:])


def test_it_brings_both_views_together():
    """Trained with it, a network says of noise images and their mirror images more alike than trained without."""
    apart = []
    for weight in (0.0, 10.0):
        toy = Toy()
        toy.train(30, consistency=weight, lr=1e-3)
        toy.model.eval()
        pixels = next(toy.features.frames.read([torch.arange(6)]))
        with torch.no_grad():
            one, two = (toy.model.logits(*toy.model.features(seen)) for seen in (pixels, pixels.flip(3)))
        apart.append(float(F.mse_loss(one, two.flip(3))))
    assert apart[1] < apart[0] / 2


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_with_it_repeats_itself_and_says_so(tmp_path):
    config = tiny_config(tmp_path, **{"query.strategy": "equal", "query.rounds": 1, "seeds": [0],
                                      "train.consistency": 1.0})
    runs = [run(config, tmp_path / name) for name in ("one", "two")]
    one, two = ([{key: value for key, value in record.items() if key not in ("seconds", "peak_bytes", "check")}
                 for record in read_rounds(directory / "seed-0")] for directory in runs)
    assert one == two
    assert "consistency with the images in a mirror, also on an unlabelled patch beside each (1)" in setting(
        load_run(runs[0]))
    assert "train.consistency 1.0 (paper: 0.0)" in _departures(config)


def test_its_frozen_backbone_sees_pixels_in_every_step(monkeypatch):
    read, asked = HeldFrames.read, []
    monkeypatch.setattr(HeldFrames, "read", lambda frames, batches: asked.append(frames) or read(frames, batches))
    Toy().train(1, consistency=1.0)
    assert asked


@pytest.mark.parametrize(("values", "message"), [
    ({"train": {"consistency": -1}}, "train.consistency is -1"),
    ({"train": {"consistency": 1}, "model": {"compile": "graphs"}}, "or leave out train.consistency"),
])
def test_what_does_not_go_together_is_refused(values, message):
    with pytest.raises(InputError) as caught:
        Config.load(values)
    assert message in str(caught.value)
