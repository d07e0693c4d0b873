"""Pseudo-labels: whose, beside which true labels, and what they add to the loss."""

import pytest
import torch
import torch.nn.functional as F
from test_train import BACKEND, Toy, equal, order, state
from tiny import stir_norms, tiny_config

from meal_gpu.config import Config, TrainConfig
from meal_gpu.errors import InputError
from meal_gpu.launch import run
from meal_gpu.records import read_rounds
from meal_gpu.report import load_run
from meal_gpu.report.paper import _departures
from meal_gpu.report.words import setting
from meal_gpu.stages.augment import Augmentation
from meal_gpu.stages.lessons import Lessons
from meal_gpu.stages.recipe import MovingMean
from meal_gpu.stages.teacher import Teacher
from meal_gpu.stages.train import patch_loss
from meal_gpu.stages.unlabelled import Unlabelled


def beside(toy: Toy) -> Unlabelled:
    return Unlabelled(2, toy.ids, 6, toy.grid, order())


def stirred(**model) -> tuple[Toy, MovingMean]:
    """A network whose mean is another: weights and statistics were stirred after it was made."""
    toy = Toy(**model)
    stir_norms(toy.model.aspp, 1)
    stir_norms(toy.model.decoder, 1)
    mean = MovingMean(toy.model, 0.9)
    stir_norms(toy.model.aspp, 2)
    stir_norms(toy.model.decoder, 2)
    return toy, mean


# --- what they say ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "finetuned"])
@pytest.mark.parametrize("context", ["image", "patch"])
def test_labels_are_those_of_the_mean_in_eval_mode(context, frozen):
    """Against a whole forward of a network that has the mean's weights; the network in training stays as it was."""
    toy, mean = stirred(context=context, freeze_backbone=frozen)
    own, ids = state(toy.model), torch.tensor([1, 10, 23])
    with mean.in_place():
        frames = toy.features.frames
        pixels = next(frames.read([ids // frames.grid.cells]))
        with torch.no_grad():
            toy.model.eval()
            logits = toy.model.logits(*toy.model.features(pixels))
        size = (frames.grid.height, frames.grid.width)
        whole = F.interpolate(logits, size, mode="bilinear", align_corners=True).softmax(1)
    boxes = [frames.grid.box(cell) for cell in (ids % frames.grid.cells).tolist()]
    expected = torch.stack([p[:, y0:y1, x0:x1] for p, (y0, x0, y1, x1) in zip(whole, boxes, strict=True)])
    threshold = float(expected.max(1).values.median())
    toy.model.train()
    teacher = Teacher(toy.features, threshold, mean)
    (same, labels), (nobody, none) = teacher.read(toy.model, [ids, ids[:0]])
    assert torch.equal(same, ids)
    assert len(nobody) == 0
    assert toy.model.training
    assert equal(own, state(toy.model))
    sure, says = expected.max(1)
    clear = (sure - threshold).abs() > 1e-4  # the windows round differently
    assert torch.equal(labels[clear], torch.where(sure >= threshold, says, 255).to(torch.uint8)[clear])
    assert 0.4 < float((labels == 255).float().mean()) < 0.6
    assert none.shape == (0, *labels.shape[1:])


@pytest.mark.parametrize("context", ["image", "patch"])
def test_nothing_is_said_of_pixels_beside_an_image(context):
    toy, mean = stirred(context=context)
    filled = torch.tensor([16, 24]).repeat(24, 1)
    filled[10], filled[23] = torch.tensor([16, 7]), torch.tensor([5, 24])
    [(_, labels), (_, none), (_, last)] = Teacher(toy.features, 0.0, mean, filled).read(
        toy.model, [torch.tensor([1, 10]), torch.tensor([], dtype=torch.int64), torch.tensor([23])])
    expected = torch.zeros(3, 16, 24, dtype=torch.bool)
    expected[1, :, 7:], expected[2, 5:] = True, True
    assert torch.equal(torch.cat([labels, none, last]) == 255, expected)


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_adds_what_is_believed_by_its_part():
    toy = Toy()
    toy.model.eval()
    low, high = next(toy.features.read(toy.model, [toy.ids // 4]))
    labels = toy.labels.clone()
    labels[4:, :4] = 255
    windows, cells = toy.features.windows, toy.ids % 4

    def loss(which: slice, labelled: int | None = None) -> torch.Tensor:
        return patch_loss(toy.model, low[which], high[which], windows, cells[which], labels[which], BACKEND, labelled)

    believed = 1 - 4 / 16
    expected = loss(slice(0, 4)) + believed * loss(slice(4, 6))
    torch.testing.assert_close(loss(slice(0, 6), 4), expected)
    assert torch.equal(loss(slice(0, 4), 4), loss(slice(0, 4)))
    labels[4:] = 255
    torch.testing.assert_close(loss(slice(0, 6), 4), loss(slice(0, 4)))


@pytest.mark.parametrize("changed", [False, True], ids=["plain", "changed"])
def test_true_labels_come_first_and_stay(changed):
    toy, mean = stirred()
    settings = TrainConfig()
    augmentation = Augmentation(toy.features, toy.ids, toy.labels, settings, order()) if changed else None
    lessons = Lessons(toy.features, toy.ids, toy.labels, augmentation, beside(toy), Teacher(toy.features, 0.0, mean))
    batches = [torch.tensor([0, 3, 1]), torch.tensor([5, 2, 4])]
    for batch, lesson in zip(batches, lessons.read(toy.model.train(), batches), strict=True):
        assert lesson.labelled == 3
        assert torch.equal(lesson.labels[:3], toy.labels[batch])
        assert torch.equal(lesson.cells[:3], toy.ids[batch] % 4)
        assert len(lesson.labels) == len(lesson.low) == len(lesson.cells) == 9
        assert not bool((lesson.labels[3:] == 255).any())


def test_a_threshold_that_nothing_reaches_leaves_the_loss_of_the_true_labels():
    """But not the step's norms, which see the other patches too."""
    toy, mean = stirred()
    lesson = next(Lessons(toy.features, toy.ids, toy.labels, None, beside(toy), Teacher(toy.features, 1.0, mean)).read(
        toy.model.train(), [torch.arange(4)]))
    assert bool((lesson.labels[4:] == 255).all())


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "finetuned"])
def test_a_training_learns_from_them(frozen):
    """Its weights differ from those of one without; the mean's weights do not stay in the network."""
    ends = []
    for config in ({}, {"pseudo_labels": 1, "pseudo_threshold": 0.0}):
        toy = Toy(freeze_backbone=frozen)
        toy.train(2, ema=0.5, batch_size=3, **config)
        ends.append(state(toy.model))
    assert not equal(*ends)


def test_where_everything_is_labelled_there_is_nothing_to_teach():
    ends = []
    for config in ({}, {"pseudo_labels": 2, "pseudo_threshold": 0.0}):
        toy = Toy()
        toy.ids, toy.labels = torch.arange(24), toy.labels.repeat(4, 1, 1)
        toy.train(1, ema=0.5, batch_size=8, **config)
        ends.append(state(toy.model))
    assert equal(*ends)


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_with_them_repeats_itself_and_says_so(tmp_path):
    config = tiny_config(tmp_path, **{"query.strategy": "random", "query.rounds": 1, "seeds": [0], "train.ema": 0.9,
                                      "train.pseudo_labels": 2, "train.pseudo_threshold": 0.2, "train.scale": 1.5})
    runs = [run(config, tmp_path / name) for name in ("one", "two")]
    one, two = ([{key: value for key, value in record.items() if key not in ("seconds", "peak_bytes", "check")}
                 for record in read_rounds(directory / "seed-0")] for directory in runs)
    assert one == two
    assert "pseudo-labels on 2 more patches beside each (from a probability of 0.2)" in setting(load_run(runs[0]))
    assert {"train.pseudo_labels 2 (paper: 0)"} <= set(_departures(config))


@pytest.mark.parametrize(("values", "message"), [
    ({"train": {"pseudo_labels": 1}}, "it is the mean of the weights that labels. Use train.ema: 0.99"),
    ({"train": {"pseudo_labels": -1}}, "train.pseudo_labels is -1"),
    ({"train": {"pseudo_labels": 1, "ema": 0.9}, "model": {"compile": "graphs"}}, "Use model.compile: none"),
])
def test_what_does_not_go_together_is_refused(values, message):
    with pytest.raises(InputError) as caught:
        Config.load(values)
    assert message in str(caught.value)
