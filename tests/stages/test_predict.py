"""One pass over the pool against the whole chain in float64, pixel by pixel."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny import CPU, noise, stirred_model, tiny_backend, tiny_features

from meal_gpu.data.pixels import normalise
from meal_gpu.grid import Grid
from meal_gpu.stages.predict import Predictions, patch_maps, predict

SIZES = [((64, 96), (2, 3)), ((57, 83), (3, 4))]  # a grid that divides; odd sizes with a remainder on both axes
BACKEND = tiny_backend()


@pytest.fixture(scope="module")
def model():
    return stirred_model()


def frames_of(images: torch.Tensor, grid: Grid, context: str) -> list[torch.Tensor]:
    """What the network sees, and per patch where it lies in it: plain slices."""
    if context == "image":
        return [image[None] for image in images]
    return [image[None, y0:y1, x0:x1] for image in images for y0, x0, y1, x1 in grid.boxes()]


def full_logits(model, images: torch.Tensor, grid: Grid, context: str) -> list[torch.Tensor]:
    """Float64 logits ``[C, patch_height, patch_width]`` of every patch, through the network's own forward."""
    found = []
    for frame in frames_of(images, grid, context):
        low, high = model.features(normalise(frame))
        logits = F.interpolate(model.logits(low, high).double(), frame.shape[1:3], mode="bilinear", align_corners=True)
        boxes = grid.boxes() if context == "image" else [(0, 0, *frame.shape[1:3])]
        found += [logits[0, :, y0:y1, x0:x1] for y0, x0, y1, x1 in boxes]
    return found


def uncertainty(logits: torch.Tensor, score: str) -> float:
    log_p = logits.log_softmax(0)
    top = log_p.exp().topk(2, dim=0).values
    return float({"entropy": -(log_p.exp() * log_p).sum(0), "least_confidence": 1 - top[0],
                  "margin": 1 - (top[0] - top[1]), "ratio": top[1] / top[0]}[score].mean())


@pytest.mark.parametrize("context", ["image", "patch"])
@pytest.mark.parametrize(("size", "grid"), SIZES, ids=str)
@pytest.mark.parametrize("score", ["entropy", "least_confidence", "margin", "ratio"])
def test_scores_are_means_over_the_patchs_pixels(model, size, grid, context, score):
    images, tiling = noise(2, *size), Grid(*grid, *size)
    found = predict(model, tiny_features(model, images, grid, context), {"score"}, score, BACKEND)
    with torch.no_grad():
        expected = [uncertainty(logits, score) for logits in full_logits(model, images, tiling, context)]
    torch.testing.assert_close(found.score, torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert len(set(expected)) == 2 * tiling.cells  # patches differ, so an order that is wrong would be seen
    assert found.features is found.probabilities is None


def test_features_and_probabilities_come_in_the_order_of_ids(model):
    images, tiling = noise(2, 57, 83), Grid(3, 4, 57, 83)
    features = tiny_features(model, images, (3, 4))
    found = predict(model, features, {"features", "probabilities", "score"}, "entropy", BACKEND)
    with torch.no_grad():
        low, high = model.features(normalise(images))
        assert torch.allclose(found.features, features.patch_vectors(high), atol=1e-5)
        p = model.logits(low, high).double().softmax(1)
        up = F.interpolate(p, (57, 83), mode="bilinear", align_corners=True)
    for patch in range(2 * tiling.cells):
        image, cell = tiling.split(patch)
        y0, x0, y1, x1 = tiling.box(cell)
        torch.testing.assert_close(found.probabilities[patch].double(), up[image, :, y0:y1, x0:x1].mean((1, 2)),
                                   atol=1e-5, rtol=0)
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(2 * tiling.cells))


def test_nothing_is_computed_that_nobody_asked_for(model):
    """Counted at the network: no pass at all, the backbone alone, or the head too."""
    features = tiny_features(model, noise(2, 32, 48), (2, 2))
    passes = {"backbone": 0, "decoder": 0}
    hooks = [getattr(model, name).register_forward_hook(
        lambda *_, name=name: passes.__setitem__(name, passes[name] + 1)) for name in passes]
    try:
        assert predict(model, features, set(), "entropy", BACKEND) == Predictions()
        assert predict(model, features, {"embedding"}, "entropy", BACKEND) == Predictions()
        assert passes == {"backbone": 0, "decoder": 0}
        assert predict(model, features, {"features"}, "entropy", BACKEND).score is None
        assert passes == {"backbone": 1, "decoder": 0}
        predict(model, features, {"score", "probabilities"}, "entropy", BACKEND)
        assert passes == {"backbone": 2, "decoder": 1}
    finally:
        for hook in hooks:
            hook.remove()


def test_a_training_network_is_scored_in_eval_mode(model):
    features = tiny_features(model, noise(2, 32, 48), (2, 2))
    first = predict(model, features, {"score"}, "entropy", BACKEND).score
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.equal(predict(model, features, {"score"}, "entropy", BACKEND).score, first)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("context", ["image", "patch"])
@pytest.mark.parametrize(("size", "grid"), SIZES, ids=str)
def test_patch_maps_are_crops_of_the_whole_image(model, size, grid, context):
    images, tiling = noise(2, *size), Grid(*grid, *size)
    ids = torch.tensor([tiling.cells + 3, 0, tiling.cells - 1, 2 * tiling.cells - 1])
    found = patch_maps(model, tiny_features(model, images, grid, context), ids, BACKEND)
    with torch.no_grad():
        whole = full_logits(model, images, tiling, context)
    assert found.prediction.dtype == torch.uint8
    for i, patch in enumerate(ids.tolist()):
        log_p = whole[patch].log_softmax(0)
        torch.testing.assert_close(found.entropy[i].double(), -(log_p.exp() * log_p).sum(0), atol=1e-3, rtol=1e-3)
        first, second = whole[patch].topk(2, dim=0).values
        clear = (first - second) > 1e-3 * whole[patch].abs().max()
        assert clear.double().mean() > 0.9
        assert torch.equal(found.prediction[i][clear].long(), whole[patch].argmax(0)[clear])


def test_the_map_and_the_score_agree(model):
    features = tiny_features(model, noise(2, 57, 83), (3, 4))
    ids = torch.arange(24)
    score = predict(model, features, {"score"}, "entropy", BACKEND).score
    torch.testing.assert_close(patch_maps(model, features, ids, BACKEND).entropy.mean((1, 2)), score, rtol=1e-3,
                               atol=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_found_where_it_is(model, value):
    """Put into the cached features of one frame, which is a patch here."""
    features = tiny_features(model, noise(2, 64, 96), (2, 3), "patch", cached=True)
    assert predict(model, features, {"score"}, "entropy", BACKEND).bad(CPU) == -1
    features.cache[1][7, 0, 0, 5] = value
    found = predict(model, features, {"score"}, "entropy", BACKEND)
    assert found.bad(CPU) == 7
    features.cache[1][4] = float("nan")
    assert predict(model, features, {"score"}, "entropy", BACKEND).bad(CPU) == 4


def test_whatever_was_computed_is_judged():
    """A strategy may need features or probabilities alone."""
    good, bad = torch.ones(4, 3), torch.ones(4, 3)
    bad[2, 1] = float("nan")
    assert Predictions().bad(CPU) == -1
    assert Predictions(features=good, probabilities=good, score=good[:, 0]).bad(CPU) == -1
    assert Predictions(features=bad).bad(CPU) == 2
    assert Predictions(features=good, probabilities=bad).bad(CPU) == 2
    assert Predictions(score=torch.tensor([0, float("inf"), 0, 0]), features=bad).bad(CPU) == 1


def test_cached_and_fresh_features_score_alike(model):
    images = noise(3, 64, 96)
    fresh, cached = (predict(model, tiny_features(model, images, (2, 3), cached=cached), {"score"}, "entropy",
                             BACKEND).score for cached in (False, True))
    assert torch.equal(fresh, cached)


def test_several_batches_are_one_pool(model):
    features = tiny_features(model, noise(5, 32, 48), (2, 2))
    whole = predict(model, features, {"score", "features"}, "entropy", BACKEND)
    seen = []
    parts = predict(model, replace(features, batch=2), {"score", "features"}, "entropy", BACKEND,
                    lambda *args: seen.append(args))
    for name in ("score", "features"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-4, atol=1e-5)
    assert seen == [("score", 2, 5), ("score", 4, 5), ("score", 5, 5)]
