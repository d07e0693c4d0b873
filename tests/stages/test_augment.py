"""Augmentation: pixels and labels move together, by the numbers drawn, and colours are those of torchvision."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_train import BACKEND, Toy, order
from tiny import CPU, noise, tiny_config
from torchvision.transforms.v2 import functional as tv

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
from meal_gpu.stages.augment import Augmentation, Changes, Known, drawn, moved, recoloured
from meal_gpu.stages.lessons import Lessons
from meal_gpu.stages.train import train_epoch

GRID = Grid(2, 3, 33, 50)
"""With a row and two columns left over: patches of 16 x 16."""
EVERY = {"flip": True, "scale": 2.0, "colour": 0.5}


def changes(grid=GRID, n=40, seed=0, **config) -> tuple[torch.Tensor, Changes]:
    cells = torch.randint(0, grid.cells, (n,), generator=order(seed))
    return cells, drawn(cells, grid, TrainConfig(**config), order(seed))


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_with_all_parts_off_nothing_changes():
    cells, found = changes()
    assert torch.equal(found.axes, torch.tensor([1.0, 0, 1, 0]).expand(40, 4))
    assert torch.equal(found.colours, torch.ones(40, 3))
    assert torch.equal(found.cells, cells)


def test_a_part_draws_the_same_beside_others():
    _, all_of_it = changes(**EVERY)
    assert torch.equal(all_of_it.colours, changes(colour=0.5)[1].colours)
    flips, zooms = changes(flip=True)[1], changes(scale=2.0)[1]
    assert torch.equal(all_of_it.axes[:, 2] < 0, flips.axes[:, 2] < 0)
    assert torch.equal(all_of_it.axes[:, 2].abs(), zooms.axes[:, 2])
    assert torch.equal(all_of_it.axes[:, :2], zooms.axes[:, :2])


def test_they_are_spread_over_what_was_asked_for():
    _, found = changes(n=4000, **EVERY)
    zoom = found.axes[:, 0].log2()
    assert 0.45 < (found.axes[:, 2] < 0).float().mean() < 0.55
    assert -1 <= zoom.min() < -0.99
    assert 0.99 < zoom.max() <= 1
    assert abs(float(zoom.mean())) < 0.03
    assert found.colours.min() >= 0.5
    assert found.colours.max() <= 1.5
    assert abs(float(found.colours.mean()) - 1) < 0.03


@given(st.integers(0, 999))
def test_a_window_lies_in_its_patch_or_around_it(seed):
    """Zoomed in it shows a part of its own patch; zoomed out it shows all of it."""
    cells, found = changes(n=20, seed=seed, flip=True, scale=3.0)
    for cell, now, (down, top, across, left) in zip(cells.tolist(), found.cells.tolist(), found.axes.tolist(),
                                                    strict=True):
        y0, x0, y1, x1 = GRID.box(cell)
        v0, u0, v1, u1 = GRID.box(now)
        shown = [v * down + top for v in (v0, v1)] + sorted(u * across + left for u in (u0, u1))
        inner, outer = ((shown, (y0, y1, x0, x1)) if down <= 1 else ((y0, y1, x0, x1), shown))
        for first, last in ((0, 1), (2, 3)):
            assert outer[first] <= inner[first] + 1e-4
            assert inner[last] <= outer[last] + 1e-4


# --- pixels -----------------------------------------------------------------------------------------------------------


def plainly(image: torch.Tensor, axes: list[float]) -> torch.Tensor:
    """Pixel by pixel, in float64; mirrored at the frame's edges."""
    height, width = image.shape[1:]
    out, (down, top, across, left) = torch.zeros_like(image, dtype=torch.float64), axes
    for i in range(height):
        for j in range(width):
            y, x = (i + 0.5) * down + top, (j + 0.5) * across + left
            while not 0 <= y <= height:
                y = -y if y < 0 else 2 * height - y
            while not 0 <= x <= width:
                x = -x if x < 0 else 2 * width - x
            y, x = min(max(y - 0.5, 0), height - 1), min(max(x - 0.5, 0), width - 1)
            for v, wy in ((math.floor(y), 1 - y % 1), (min(math.floor(y) + 1, height - 1), y % 1)):
                for u, wx in ((math.floor(x), 1 - x % 1), (min(math.floor(x) + 1, width - 1), x % 1)):
                    out[:, i, j] += wy * wx * image[:, v, u].double()
    return out


def test_pixels_are_those_of_a_plain_loop():
    pixels = normalise(noise(4, 33, 50))
    _, found = changes(n=4, flip=True, scale=4.0)
    pictures = moved(pixels, found.axes)
    assert pictures.is_contiguous(memory_format=torch.channels_last)
    for picture, image, axes in zip(pictures, pixels, found.axes.tolist(), strict=True):
        torch.testing.assert_close(picture.double(), plainly(image, axes), rtol=1e-4, atol=1e-4)


def test_a_flip_alone_is_exact():
    pixels = normalise(noise(40, 32, 48))
    cells, found = changes(Grid(2, 3, 32, 48), flip=True)
    pictures, flipped = moved(pixels, found.axes), found.axes[:, 2] < 0
    assert torch.equal(pictures[flipped], pixels[flipped].flip(3))
    assert torch.equal(pictures[~flipped], pixels[~flipped])
    assert torch.equal(found.cells, torch.where(flipped, cells // 3 * 3 + 2 - cells % 3, cells))


def test_colours_are_torchvisions():
    images = noise(5, 20, 30)
    factors = torch.tensor([[1.0, 1, 1], [0.5, 1.5, 0.7], [1.5, 0.5, 1.6], [0, 1, 1], [1.2, 2, 0]])
    found = recoloured(normalise(images), factors, Known.on(CPU))
    for picture, image, (brighter, sharper, richer) in zip(found, images, factors.tolist(), strict=True):
        expected = tv.adjust_brightness(image.permute(2, 0, 1).float() / 255, brighter)
        expected = tv.adjust_saturation(tv.adjust_contrast(expected, sharper), richer)
        known = Known.on(CPU)
        torch.testing.assert_close((picture / known.scale + known.mean) / 255, expected, rtol=1e-4, atol=2e-4)


# --- labels -----------------------------------------------------------------------------------------------------------


def augmented(labelled: torch.Tensor, labels: torch.Tensor, images: torch.Tensor, grid: Grid, context="image",
              **config) -> Augmentation:
    toy = Toy()
    features = type(toy.features).of(HeldFrames.of(images, grid, context, CPU), toy.model, BACKEND, False)
    return Augmentation(features, labelled, labels, TrainConfig(**config), order())


def lessons_of(toy: Toy, augmentation: Augmentation | None) -> Lessons:
    return Lessons(toy.features, toy.ids, toy.labels, augmentation)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("context", ["image", "patch"])
def test_labels_follow_their_pixels(seed, context):
    """A frame says at every pixel where it is; each labelled pixel of a window has the label of the place it shows."""
    grid, within = GRID, GRID.within(context)
    truth = torch.randint(0, 4, (3, grid.height, grid.width), generator=order(seed), dtype=torch.uint8)
    truth[torch.rand(truth.shape, generator=order(seed + 1)) < 0.1] = 255  # void stays void
    ids = torch.randperm(3 * grid.cells, generator=order(seed))[:9]
    labelled = set(ids.tolist())
    labels = HeldFrames.of(truth, grid, "patch", CPU)[ids]
    lesson = augmented(ids, labels, noise(3, grid.height, grid.width), grid, context, flip=True, scale=2.0)
    found = drawn(ids % within.cells, within, lesson.config, order(seed))
    frames = (ids // within.cells).tolist()
    windows = lesson.labels_of(ids, found, labels)
    for frame, now, (down, top, across, left), window in zip(frames, found.cells.tolist(),
                                                             found.axes.tolist(), windows, strict=True):
        v0, u0, _, _ = within.box(now)
        for i in range(0, within.patch_height, 5):
            for j in range(0, within.patch_width, 5):
                y, x = (v0 + i + 0.5) * down + top, (u0 + j + 0.5) * across + left
                if min(abs(y - round(y)), abs(x - round(x))) < 1e-3:
                    continue  # on an edge between two pixels
                y, x, expected = math.floor(y), math.floor(x), 255
                if 0 <= y < within.rows * within.patch_height and 0 <= x < within.cols * within.patch_width:
                    patch = (frame * within.cells + y // within.patch_height * within.cols + x // within.patch_width)
                    if patch in labelled:
                        image, cell = grid.split(patch)
                        y0, x0, _, _ = grid.box(cell)
                        expected = int(truth[image, y0 + y % within.patch_height, x0 + x % within.patch_width])
                assert int(window[i, j]) == expected


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("frozen", "batches"), [
    (True, [[0, 1, 2, 3], [2, 5, 4, 1]]),  # 0 and 1 are of one frame
    (False, [[0, 2, 3, 4], [1, 3, 5, 2]]),
], ids=["frozen", "finetuned"])
def test_a_training_whose_changes_change_nothing_is_the_plain_one(frozen, batches):
    """Through the backbone, patch by patch, and yet the same losses."""
    losses = []
    for forced in (False, True):
        toy = Toy(freeze_backbone=frozen)
        torch.manual_seed(0)
        changed = Augmentation(toy.features, toy.ids, toy.labels, TrainConfig(), order()) if forced else None
        optimiser = torch.optim.SGD([p for p in toy.model.parameters() if p.requires_grad], 1e-3)
        losses.append(train_epoch(toy.model.train(), toy.features, toy.ids, toy.labels,
                                  [torch.tensor(batch) for batch in batches], toy.ids, optimiser, BACKEND,
                                  lessons=lessons_of(toy, changed)))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=0)


def test_every_epoch_and_every_seed_draws_its_own_and_equal_seeds_the_same():
    toy = Toy()

    def pictures(seed: int) -> list[torch.Tensor]:
        lessons = lessons_of(toy, Augmentation(toy.features, toy.ids, toy.labels, TrainConfig(**EVERY), order(seed)))
        return [next(lessons.read(toy.model.eval(), [torch.arange(6)])).low for _ in range(2)]

    first, second = pictures(0)
    assert not torch.equal(first, second)
    assert all(torch.equal(one, other) for one, other in zip((first, second), pictures(0), strict=True))
    assert not torch.equal(first, pictures(1)[0])


@pytest.mark.parametrize("part", [{"flip": True}, {"scale": 2.0}, {"colour": 0.5}, {}], ids=str)
def test_each_part_alone_trains_on_other_images_and_none_leaves_them(part, monkeypatch):
    toy, asked = Toy(), []
    read = HeldFrames.read
    monkeypatch.setattr(HeldFrames, "read", lambda frames, batches: asked.append(frames) or read(frames, batches))
    toy.train(2, **part)
    assert bool(asked) is bool(part)


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_with_all_of_it_repeats_itself_and_says_so(tmp_path):
    config = tiny_config(tmp_path, **{"query.strategy": "random", "query.rounds": 1, "seeds": [0],
                                      "train.flip": True, "train.scale": 2.0, "train.colour": 0.4})
    runs = [run(config, tmp_path / name) for name in ("one", "two")]
    one, two = ([{key: value for key, value in record.items() if key not in ("seconds", "peak_bytes", "check")}
                 for record in read_rounds(directory / "seed-0")] for directory in runs)
    assert one == two
    assert "with flips, zooms up to 2 and other colours (0.4)" in setting(load_run(runs[0]))
    assert {"train.flip True (paper: False)", "train.scale 2.0 (paper: 1.0)",
            "train.colour 0.4 (paper: 0.0)"} <= set(_departures(config))


@pytest.mark.parametrize(("train", "message"), [
    ({"scale": 0.5}, "train.scale is 0.5"), ({"scale": 9}, "train.scale is 9"), ({"flip": 2}, "train.flip is 2"),
    ({"colour": 1.5}, "train.colour is 1.5"),
])
def test_what_makes_no_sense_is_refused(train, message):
    with pytest.raises(InputError) as caught:
        Config.load({"train": train})
    assert message in str(caught.value)
