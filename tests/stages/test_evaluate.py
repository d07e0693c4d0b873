"""mIoU against torchmetrics and scikit-learn, and the pixels that it is taken over."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, jaccard_score
from tiny import CPU, noise, tiny_backend, tiny_features, tiny_model
from torchmetrics.classification import MulticlassJaccardIndex

from meal_gpu.data.frames import HeldFrames
from meal_gpu.data.pixels import normalise
from meal_gpu.grid import Grid
from meal_gpu.kernels import confusion_counts
from meal_gpu.stages.evaluate import Score, evaluate


def confusion_of(truth: torch.Tensor, prediction: torch.Tensor, classes: int,
                 counts: torch.Tensor | None = None) -> torch.Tensor:
    """Of a row of pixels whose logits say the prediction, and nothing else."""
    logits = F.one_hot(prediction.long(), classes).T.float()[None, :, None]
    return confusion_counts(logits, truth.to(torch.uint8)[None, None], (1, len(truth)), counts=counts)


@st.composite
def labellings(draw) -> tuple[int, np.ndarray, np.ndarray]:
    """2, 11 or 19 classes; truth with void, both drawn from some of the classes only, so that classes are absent."""
    classes = draw(st.sampled_from([2, 11, 19]))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    n = draw(st.integers(1, 300))
    held, said = (rng.choice(classes, rng.integers(1, classes + 1), replace=False) for _ in range(2))
    truth = rng.choice(held, n).astype(np.uint8)
    truth[rng.random(n) < draw(st.sampled_from([0, 0.3]))] = 255
    return classes, truth, rng.choice(said, n).astype(np.int64)


@settings(max_examples=150)
@given(labellings())
def test_iou_agrees_with_scikit_learn_and_torchmetrics(labelling):
    classes, truth, prediction = labelling
    confusion = confusion_of(torch.from_numpy(truth), torch.from_numpy(prediction), classes)
    score = Score.of(confusion)
    valid = truth != 255
    if not valid.any():
        assert score.miou is None
        assert score.iou == (None,) * classes
        return
    np.testing.assert_array_equal(confusion, confusion_matrix(truth[valid], prediction[valid], labels=range(classes)))
    present = sorted({*truth[valid].tolist(), *prediction[valid].tolist()})
    assert [c for c, iou in enumerate(score.iou) if iou is not None] == present
    np.testing.assert_allclose([score.iou[c] for c in present],
                               jaccard_score(truth[valid], prediction[valid], labels=present, average=None))
    metric = MulticlassJaccardIndex(classes, average="macro", ignore_index=255)
    metric.update(torch.from_numpy(prediction), torch.from_numpy(truth).long())
    assert score.miou == pytest.approx(float(metric.compute()), abs=1e-6)


@given(labellings(), st.integers(1, 7))
def test_counting_in_parts_is_counting_at_once(labelling, parts):
    classes, truth, prediction = labelling
    whole = confusion_of(torch.from_numpy(truth), torch.from_numpy(prediction), classes)
    added = torch.zeros_like(whole)
    for a, b in zip(np.array_split(truth, parts), np.array_split(prediction, parts), strict=True):
        if len(a):
            confusion_of(torch.from_numpy(a), torch.from_numpy(b), classes, added)
    assert torch.equal(added, whole)
    assert int(whole.sum()) == int((truth != 255).sum())


def test_absent_classes_are_left_out_and_wrong_ones_count():
    """By hand: class 0 is right twice, class 1 never true, class 2 absent (said where void is), class 3 missed."""
    score = Score.of(confusion_of(torch.tensor([0, 0, 0, 3, 255]), torch.tensor([0, 0, 1, 0, 2]), 4))
    assert score.iou == (2 / 4, 0.0, None, 0.0)
    assert score.miou == pytest.approx(0.5 / 3)


@pytest.fixture(scope="module")
def model():
    return tiny_model(num_classes=4, seed=2).eval()


@pytest.mark.parametrize("context", ["image", "patch"])
@pytest.mark.parametrize(("size", "grid"), [((64, 96), (2, 3)), ((57, 83), (3, 4))], ids=str)
def test_one_matrix_over_the_split_without_the_remainder(model, size, grid, context):
    """Against scikit-learn on predictions made frame by frame, cut to the pixels that belong to patches."""
    images, tiling = noise(3, *size), Grid(*grid, *size)
    rng = np.random.default_rng(0)
    masks = rng.choice([0, 1, 3, 255], (3, *size)).astype(np.uint8)
    masks[1] = np.where(masks[1] == 3, 0, masks[1])  # images differ in their classes: means over images differ too
    height, width = grid[0] * tiling.patch_height, grid[1] * tiling.patch_width
    predicted = np.zeros((3, height, width), int)
    with torch.no_grad():
        if context == "image":
            predicted[:] = model(images).argmax(1)[:, :height, :width]
        else:
            for i, image in enumerate(images):
                for y0, x0, y1, x1 in tiling.boxes():
                    predicted[i, y0:y1, x0:x1] = model(image[None, y0:y1, x0:x1]).argmax(1)[0]
    truth = masks[:, :height, :width]
    valid = truth != 255
    expected = confusion_matrix(truth[valid], predicted[valid], labels=range(4))
    expected = Score.of(torch.from_numpy(expected))

    features = tiny_features(model, images, grid, context)
    frames = HeldFrames.of(torch.from_numpy(masks), tiling, context, CPU)
    score = evaluate(model, features, frames, 4, tiny_backend())
    assert [iou is None for iou in score.iou] == [iou is None for iou in expected.iou]
    for found, wanted in zip(score.iou, expected.iou, strict=True):
        # A pixel in a thousand may lie on a border between classes, where the order of additions decides.
        assert found == wanted is None or found == pytest.approx(wanted, abs=2e-3)
    per_image = np.mean([Score.of(torch.from_numpy(confusion_matrix(
        truth[i][valid[i]], predicted[i][valid[i]], labels=range(4)))).miou for i in range(3)])
    assert abs(per_image - score.miou) > 1e-3


def test_the_remainder_does_not_count(model):
    """Masks that hold classes in the remainder alone are void everywhere else."""
    tiling = Grid(3, 4, 57, 83)
    masks = torch.zeros(2, 57, 83, dtype=torch.uint8)
    masks[:, : 3 * 19, : 4 * 20] = 255
    images = noise(2, 57, 83)
    for context in ("image", "patch"):
        frames = HeldFrames.of(masks, tiling, context, CPU)
        score = evaluate(model, tiny_features(model, images, (3, 4), context), frames, 4, tiny_backend())
        assert score.miou is None


def test_both_contexts_see_the_same_truth(model):
    """The predictions differ, the pixels that are counted do not: a class is absent in both or in none."""
    tiling, images = Grid(2, 3, 65, 97), noise(2, 65, 97)
    masks = torch.from_numpy(np.random.default_rng(1).choice([0, 1, 255], (2, 65, 97)).astype(np.uint8))
    counted = {}
    for context in ("image", "patch"):
        seen = []
        frames = HeldFrames.of(masks, tiling, context, CPU)
        evaluate(model, tiny_features(model, images, (2, 3), context), frames, 4, tiny_backend(),
                 lambda *args, seen=seen: seen.append(args))
        assert seen[-1] == ("evaluate", frames.count, frames.count)
        index = torch.arange(frames.count)
        counted[context] = torch.bincount(frames[index][:, : 64 if context == "image" else None,
                                                        : 96 if context == "image" else None].flatten(), minlength=256)
    assert torch.equal(counted["image"], counted["patch"])


def test_evaluating_changes_nothing(model):
    tiling, images = Grid(1, 1, 32, 32), noise(1, 32, 32)
    masks = HeldFrames.of(torch.zeros(1, 32, 32, dtype=torch.uint8), tiling, "image", CPU)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    first = evaluate(model, tiny_features(model, images, (1, 1)), masks, 4, tiny_backend())
    model.train()
    assert evaluate(model, tiny_features(model, images, (1, 1)), masks, 4, tiny_backend()) == first
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_interpolated_logits_decide_not_interpolated_classes(model):
    """The prediction is the arg-max of upsampled logits at every pixel, as in the network's own forward."""
    images = noise(1, 64, 64)
    with torch.no_grad():
        low, high = model.features(normalise(images))
        up = F.interpolate(model.logits(low, high), (64, 64), mode="bilinear", align_corners=True).argmax(1)
    masks = HeldFrames.of(up.to(torch.uint8), Grid(1, 1, 64, 64), "image", CPU)
    assert evaluate(model, tiny_features(model, images, (1, 1)), masks, 4, tiny_backend()).miou == 1.0
