"""Every statistic of a pass against plain definitions in float64, cell by cell, patch by patch."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from scipy.stats import spearmanr
from tiny import CPU, noise, stirred_model, tiny_backend, tiny_features, tiny_model

from meal_gpu.data.pixels import normalise
from meal_gpu.grid import Grid
from meal_gpu.kernels import patch_entropy
from meal_gpu.stages.predict import How, predict
from meal_gpu.stages.statistics import STATISTICS, Tiles, components, measure

# A grid that divides the map, CamVid's half rows in small, remainders on both axes, and one patch.
GRIDS = [Grid(2, 3, 64, 96), Grid(4, 4, 72, 96), Grid(3, 4, 57, 83), Grid(1, 1, 40, 44)]
PLAIN = sorted(set(STATISTICS) - {"boundary", "components"})


def maps(grid: Grid, classes: int = 5, channels: int = 6, seed: int = 0, blocks: int = 1) -> tuple[torch.Tensor, ...]:
    """Logits and inputs of two images; ``blocks`` makes regions."""
    draw = torch.Generator().manual_seed(seed)
    h, w = -(-grid.height // 4), -(-grid.width // 4)
    logits = 2 * torch.randn(2, classes, -(-h // blocks), -(-w // blocks), generator=draw)
    logits = logits.repeat_interleave(blocks, 2).repeat_interleave(blocks, 3)[:, :, :h, :w]
    return logits, torch.rand(2, channels, h, w, generator=draw)


def cellwise(logits: np.ndarray, phi: np.ndarray) -> dict[str, np.ndarray]:
    """Per image, what each cell has of a statistic: ``[k, h, w]``. One cell after another."""
    classes, h, w = logits.shape
    p = np.exp(logits - logits.max(0))
    p /= p.sum(0)
    made = {name: np.zeros((k, h, w)) for name, k in {
        "entropy": 1, "least_confidence": 1, "margin": 1, "ratio": 1, "histogram": classes, "class_entropy": classes,
        "impurity": 1, "ripu": 1, "residual": classes, "inputs": len(phi), "gradient_norm": 1,
        "gradient": classes * len(phi)}.items()}
    hot = np.zeros_like(p)
    entropy = -(p * np.log(p)).sum(0)
    for y in range(h):
        for x in range(w):
            hot[logits[:, y, x].argmax(), y, x] = 1
    for y in range(h):
        for x in range(w):
            one = p[:, y, x]
            best, second = sorted(one)[::-1][:2]
            near = np.s_[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            share = hot[:, near[0], near[1]].mean((1, 2))
            mixed = -sum(s * np.log(s) for s in share if s > 0) / np.log(classes)
            delta = one - hot[:, y, x]
            outer = np.outer(delta, phi[:, y, x])
            for name, value in {
                    "entropy": entropy[y, x], "least_confidence": 1 - best, "margin": 1 - (best - second),
                    "ratio": second / best, "histogram": hot[:, y, x], "class_entropy": one * entropy[y, x],
                    "impurity": mixed, "ripu": mixed * entropy[near].mean() / np.log(classes), "residual": delta,
                    "inputs": phi[:, y, x], "gradient_norm": np.linalg.norm(outer), "gradient": outer.ravel()}.items():
                made[name][:, y, x] = value
    return made


def per_patch(cells: np.ndarray, grid: Grid) -> np.ndarray:
    """``[k, h, w]`` interpolated to the image, and averaged over the pixels of each patch: ``[cells, k]``."""
    up = F.interpolate(torch.from_numpy(cells)[None], (grid.height, grid.width), mode="bilinear", align_corners=True)[0]
    return np.stack([up[:, y0:y1, x0:x1].mean((1, 2)).numpy() for y0, x0, y1, x1 in grid.boxes()])


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_means_over_patches_are_those_of_float64(grid):
    logits, phi = maps(grid)
    found = measure(PLAIN, logits, phi, Tiles.of(grid, logits.shape[2:], CPU))
    assert set(found) == set(PLAIN)
    expected = [cellwise(one.double().numpy(), given.double().numpy()) for one, given in zip(logits, phi, strict=True)]
    for name in PLAIN:
        values = np.concatenate([per_patch(one[name], grid) for one in expected])
        assert found[name].dtype == torch.float32
        np.testing.assert_allclose(found[name].reshape(len(values), -1).numpy(), values, rtol=2e-4, atol=2e-5,
                                   err_msg=name)


def where(grid: Grid, size: tuple[int, int]) -> np.ndarray:
    """The patch of each cell's centre, -1 for none: ``[h, w]``."""
    found = -np.ones(size, int)
    for y in range(size[0]):
        for x in range(size[1]):
            at = y * (grid.height - 1) / (size[0] - 1), x * (grid.width - 1) / (size[1] - 1)
            for cell, (y0, x0, y1, x1) in enumerate(grid.boxes()):
                if y0 - 0.5 <= at[0] < y1 - 0.5 and x0 - 0.5 <= at[1] < x1 - 0.5:
                    found[y, x] = cell
    return found


@pytest.mark.parametrize("blocks", [1, 4])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_boundaries_and_components_are_counted_in_each_patch(grid, blocks):
    logits, _ = maps(grid, classes=3, blocks=blocks)
    size = logits.shape[2:]
    found = measure(["boundary", "components"], logits, None, Tiles.of(grid, size, CPU))
    place = where(grid, size)
    step = [(grid.height - 1) / (size[0] - 1), (grid.width - 1) / (size[1] - 1)]
    for image, classes in enumerate(logits.argmax(1).numpy()):
        for cell in range(grid.cells):
            mine, length = place == cell, 0.0
            for y, x in zip(*mine.nonzero(), strict=True):
                for dy, dx, side in ((0, 1, step[0]), (1, 0, step[1])):
                    inside = y + dy < size[0] and x + dx < size[1] and mine[y + dy, x + dx]
                    length += side * (inside and classes[y, x] != classes[y + dy, x + dx])
            patch = image * grid.cells + cell
            assert found["boundary"][patch] == pytest.approx(length)
            count = sum(ndimage.label(mine & (classes == c))[1] for c in range(3))
            assert found["components"][patch] == count


@pytest.mark.parametrize("seed", range(3))
def test_long_and_winding_regions_are_one(seed):
    """A comb, a spiral and noise: what hooks onto neighbours' roots must come to the end."""
    comb = torch.zeros(32, 32, dtype=torch.int64)
    comb[1::2] = 1
    comb[1::4, -1] = comb[3::4, 0] = 0  # the even rows are one snake
    spiral = torch.zeros(32, 32, dtype=torch.int64)
    y = x = 0
    dy, dx, spiral[0, 0] = 0, 1, 1
    for _ in range(600):
        ahead = y + 2 * dy, x + 2 * dx
        if not (0 <= y + dy < 32 and 0 <= x + dx < 32) or (0 <= ahead[0] < 32 and 0 <= ahead[1] < 32
                                                           and spiral[ahead] == 1):
            dy, dx = dx, -dy
        y, x = y + dy, x + dx
        spiral[y, x] = 1
    noisy = torch.randint(0, 2, (32, 32), generator=torch.Generator().manual_seed(seed))
    classes = torch.stack([comb, spiral, noisy])
    found = components(classes, Tiles.of(Grid(1, 1, 128, 128), (32, 32), CPU))
    expected = [sum(ndimage.label(one.numpy() == c)[1] for c in range(2)) for one in classes]
    assert found.tolist() == expected


def test_a_gradient_is_no_outer_product_of_means():
    """Two public mistakes: both name the wrong patch of these.

    A confident patch of two classes half and half has hardly a gradient, and its class mixture looks as if it had; an
    unsure boundary, predicted from both sides, has one, and the means of its parts cancel.
    """
    grid, (h, w) = Grid(1, 2, 32, 64), (8, 16)
    logits, phi = torch.zeros(1, 2, h, w), torch.rand(1, 4, h, w, generator=torch.Generator().manual_seed(0)) * 0.1
    sides = torch.arange(w) // 4 % 2  # left and right half of each patch
    phi[:, 0] += (sides == 0).float()
    phi[:, 1] += (sides == 1).float()
    strength = torch.cat([torch.full((8,), 12.0), torch.full((8,), 0.4)])  # sure on the left, unsure on the right
    logits[0, 0] = torch.where(sides == 0, strength, -strength)
    found = measure(["gradient", "residual", "inputs", "probabilities", "gradient_norm"], logits, phi,
                    Tiles.of(grid, (h, w), CPU))
    exact = found["gradient"].norm(dim=1)
    assert exact[1] > 20 * exact[0]
    assert found["gradient_norm"][1] > 20 * found["gradient_norm"][0]
    means = found["residual"].norm(dim=1) * found["inputs"].norm(dim=1)
    assert means[1] < 0.2 * exact[1]  # what cancels
    p = F.interpolate(logits.softmax(1), (32, 64), mode="bilinear", align_corners=True)
    mixture = torch.stack([p[0, :, :, :32].mean((1, 2)), p[0, :, :, 32:].mean((1, 2))])
    wrong = mixture - F.one_hot(mixture.argmax(1), 2)
    assert wrong[0].norm() > 0.9 * wrong[1].norm()  # the mixture takes the sure one for as good


# --- in the pass ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return stirred_model()


BACKEND = tiny_backend()


@pytest.mark.parametrize("context", ["image", "patch"])
def test_a_pass_gives_what_it_is_asked_for_in_the_order_of_ids(model, context):
    images, tiling = noise(3, 57, 83), Grid(3, 4, 57, 83)
    features = dataclasses.replace(tiny_features(model, images, (3, 4), context), batch=2 if context == "image" else 24)
    found = predict(model, features, set(STATISTICS) | {"score"}, "entropy", BACKEND)
    assert set(found.measured) == set(STATISTICS)
    frames = images if context == "image" else torch.stack([image[y0:y1, x0:x1] for image in images
                                                            for y0, x0, y1, x1 in tiling.boxes()])
    grid = tiling.within(context)
    with torch.no_grad():
        low, high = model.features(normalise(frames))
        phi = model.decoder.inputs(model.decoder.fused(low, model.aspp(high)))
        logits = model.decoder.classify(phi)
        assert torch.allclose(logits, model.logits(low, high), atol=1e-6)
    expected = measure(STATISTICS, logits, phi, Tiles.of(grid, logits.shape[2:], CPU))
    for name in STATISTICS:
        torch.testing.assert_close(found.whole(name), expected[name], rtol=1e-3, atol=1e-4, msg=name)
    alone = predict(model, features, {"ratio"}, "entropy", BACKEND)
    assert set(alone.measured) == {"ratio"}
    assert alone.score is None
    assert torch.equal(found.score, predict(model, features, {"score"}, "entropy", BACKEND).score)


def test_stride_four_orders_patches_as_full_size_does(model):
    """Ranks, over smooth maps as networks give them; the score is that of full size."""
    draw = torch.Generator().manual_seed(0)
    coarse = 3 * torch.randn(12, 5, 6, 8, generator=draw) * torch.rand(12, 1, 6, 8, generator=draw) ** 2
    logits = F.interpolate(coarse, (18, 24), mode="bilinear", align_corners=True)
    grid = Grid(4, 4, 72, 96)
    found = measure(["entropy", "margin"], logits, None, Tiles.of(grid, (18, 24), CPU))
    for name in ("entropy", "margin"):
        full = patch_entropy(logits, (72, 96), (4, 4), score=name).flatten()
        assert spearmanr(full, found[name]).statistic > 0.98


def test_a_temperature_divides_the_logits_before_everything(model):
    features = tiny_features(model, noise(2, 57, 83), (3, 4))
    found = predict(model, features, {"score", "probabilities", "ratio"}, "entropy", BACKEND, how=How(temperature=3.0))
    cooler = tiny_model(num_classes=5, seed=1).eval()
    cooler.load_state_dict(model.state_dict())
    with torch.no_grad():
        cooler.decoder.classify.weight /= 3
        cooler.decoder.classify.bias /= 3
    expected = predict(cooler, features, {"score", "probabilities", "ratio"}, "entropy", BACKEND)
    for name in ("score", "probabilities", "ratio"):
        torch.testing.assert_close(found.whole(name), expected.whole(name), rtol=1e-4, atol=1e-5)


def test_in_a_mirror_frames_are_seen_turned_and_told_as_they_are(model):
    """A second pass, of the pixels, also where the maps of a frozen backbone are kept."""
    images = noise(2, 57, 83)
    for cached in (False, True):
        features = tiny_features(model, images, (3, 4), cached=cached)
        found = predict(model, features, {"score", "mirrored", "flip_js"}, "entropy", BACKEND)
        with torch.no_grad():
            seen = model.logits(*model.features(normalise(images))).double()
            logits = model.logits(*model.features(normalise(images.flip(2)))).flip(3)
        full = F.interpolate(logits.double(), (57, 83), mode="bilinear", align_corners=True)
        entropy = -(full.softmax(1) * full.log_softmax(1)).sum(1)
        expected = [entropy[i, y0:y1, x0:x1].mean() for i in range(2) for y0, x0, y1, x1 in Grid(3, 4, 57, 83).boxes()]
        torch.testing.assert_close(found.whole("mirrored").double(), torch.stack(expected), rtol=1e-4, atol=1e-5)
        p, q = seen.softmax(1), logits.double().softmax(1)
        js = sum((one * (one / ((p + q) / 2)).log()).sum(1) / 2 for one in (p, q))
        js = F.interpolate(js[:, None], (57, 83), mode="bilinear", align_corners=True)[:, 0]
        expected = [js[i, y0:y1, x0:x1].mean() for i in range(2) for y0, x0, y1, x1 in Grid(3, 4, 57, 83).boxes()]
        torch.testing.assert_close(found.whole("flip_js").double(), torch.stack(expected), rtol=1e-3, atol=1e-6)
        alone = predict(model, features, {"flip_js"}, "entropy", BACKEND)
        assert set(alone.measured) == {"flip_js"}
        assert alone.score is None
        assert torch.equal(found.score, predict(model, features, {"score"}, "entropy", BACKEND).score)


@pytest.mark.parametrize("where", ["last", "decoder", "all"])
def test_samples_disagree_by_their_mutual_information(model, where):
    """Against samples that are taken one by one, by dropout modules that are turned on."""
    images = noise(2, 57, 83)
    features = tiny_features(model, images, (3, 4))
    how = How(dropout=where, samples=3, seed=11)
    found = predict(model, features, {"bald"}, "entropy", BACKEND, how=how)
    from meal_gpu.stages.sampling import _Dropped

    dropped = _Dropped(11, CPU)
    places = {"aspp": model.aspp.dropout, "fuse": model.decoder.fuse_dropout, "refine": model.decoder.refine_dropout}
    used = {"last": ["refine"], "decoder": ["fuse", "refine"], "all": ["aspp", "fuse", "refine"]}[where]
    p = []
    with torch.no_grad():
        low, high = model.features(normalise(images))
        for sample in range(3):
            hooks = [places[name].register_forward_hook(
                lambda module, given, made, name=name, sample=sample: dropped(made, module.dropped, sample, name))
                for name in used]
            p.append(model.logits(low, high).double().softmax(1))
            for hook in hooks:
                hook.remove()
    mean = torch.stack(p).mean(0)
    mi = torch.special.entr(mean).sum(1) - torch.stack([torch.special.entr(one).sum(1) for one in p]).mean(0)
    up = F.interpolate(mi[:, None], (57, 83), mode="bilinear", align_corners=True)[:, 0]
    expected = [up[i, y0:y1, x0:x1].mean() for i in range(2) for y0, x0, y1, x1 in Grid(3, 4, 57, 83).boxes()]
    torch.testing.assert_close(found.whole("bald").double(), torch.stack(expected), rtol=1e-3, atol=1e-6)
    assert found.whole("bald").min() > 0
    parts = predict(model, dataclasses.replace(features, batch=1), {"bald"}, "entropy", BACKEND, how=how)
    torch.testing.assert_close(parts.whole("bald"), found.whole("bald"), rtol=1e-3, atol=1e-6)


def test_dropped_units_are_as_many_as_they_should_be_and_the_rest_is_scaled():
    from meal_gpu.stages.sampling import _Dropped

    made = _Dropped(0, CPU)(torch.ones(2, 64, 50, 40), 6554, 0, "refine")
    assert (made[0] == made[1]).all()
    share = (made == 0).double().mean()
    assert abs(share - 0.1) < 0.002
    assert made.max() == pytest.approx(65536 / (65536 - 6554))
    assert not torch.equal(made, _Dropped(0, CPU)(torch.ones(2, 64, 50, 40), 6554, 1, "refine"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_statistics_that_are_not_finite_are_found(model, value):
    features = tiny_features(model, noise(2, 64, 96), (2, 3), "patch", cached=True)
    features.cache[1][7, 0, 0, 5] = value
    for name in ("entropy", "ratio", "gradient"):
        assert predict(model, features, {name}, "entropy", BACKEND).bad(CPU) == 7
