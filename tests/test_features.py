"""Feature maps cached and fresh, and the patch vectors of equation 2 against upsampling as written."""

import pytest
import torch
import torch.nn.functional as F
from tiny import CPU, noise, tiny_backend, tiny_features, tiny_model

from meal_gpu.features import BATCH_PIXELS, Features, batch_size, cache_bytes
from meal_gpu.grid import Grid
from meal_gpu.pool import Frames

# A grid that divides; odd sizes with a remainder; a patch smaller than a cell of the map; one patch.
SIZES = [((64, 96), (2, 3)), ((57, 83), (3, 4)), ((33, 47), (5, 4)), ((40, 40), (1, 1))]


@pytest.fixture(scope="module")
def model():
    return tiny_model().eval()


@pytest.mark.parametrize("context", ["image", "patch"])
@pytest.mark.parametrize(("size", "grid"), SIZES, ids=str)
def test_patch_vectors_are_means_of_the_upsampled_maps(model, size, grid, context):
    """F of equation 2, by interpolating the maps to every pixel in float64 and averaging the patch's."""
    images, tiling = noise(3, *size), Grid(*grid, *size)
    features = tiny_features(model, images, grid, context)
    index = torch.arange(features.frames.count)
    with torch.no_grad():
        _, high = features.get(model, index)
        vectors = features.patch_vectors(high)
        assert vectors.shape == (3 * tiling.cells, 112)
        for patch in range(3 * tiling.cells):
            image, cell = tiling.split(patch)
            y0, x0, y1, x1 = tiling.box(cell)
            if context == "image":
                frame = images[image : image + 1]
            else:
                frame, (y0, x0, y1, x1) = images[image : image + 1, y0:y1, x0:x1], (0, 0, y1 - y0, x1 - x0)
            maps = model.features(frame)[1].double()
            up = F.interpolate(maps, frame.shape[1:3], mode="bilinear", align_corners=True)
            torch.testing.assert_close(vectors[patch].double(), up[0, :, y0:y1, x0:x1].mean((1, 2)), atol=2e-5,
                                       rtol=1e-4)


@pytest.mark.parametrize("context", ["image", "patch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cached_maps_are_the_fresh_ones(model, context, dtype):
    images, backend = noise(5, 64, 96), tiny_backend(dtype)
    fresh = tiny_features(model, images, (2, 3), context, cached=False, backend=backend)
    cached = tiny_features(model, images, (2, 3), context, cached=True, backend=backend)
    assert fresh.cache is None
    assert cached.low_size == fresh.low_size
    assert cached.high_size == fresh.high_size
    index = torch.tensor([4, 0, 4, 2])
    with torch.no_grad(), backend.autocast():
        for a, b in zip(cached.get(model, index), fresh.get(model, index), strict=True):
            assert a.dtype == dtype
            # Rounded to the autocast dtype; another batch may make the processor add in another order.
            torch.testing.assert_close(a.float(), b.float(), rtol=1e-4 if dtype == torch.float32 else 0.02,
                                       atol=1e-5 if dtype == torch.float32 else 0.02)


def test_cached_features_do_not_look_at_images_again(model):
    images = noise(2, 32, 32)
    cached = tiny_features(model, images, (1, 1), cached=True)
    before = cached.get(model, torch.tensor([0, 1]))[1].clone()
    images.zero_()
    assert torch.equal(cached.get(model, torch.tensor([0, 1]))[1], before)


def test_the_bytes_of_a_cache_are_foretold(model):
    features = tiny_features(model, noise(3, 57, 83), (2, 2), cached=True)
    low, high = model.features(features.frames[torch.tensor([0])])
    assert cache_bytes(features.frames, low, high, torch.float32) == sum(part.nbytes for part in features.cache)


def test_progress_counts_all_frames(model):
    seen = []
    frames = Frames.of(noise(3, 32, 32), Grid(1, 1, 32, 32), "image", CPU)
    Features.of(frames, model, tiny_backend(), True, "val features", lambda *args: seen.append(args))
    assert seen[-1] == ("val features", 3, 3)


def test_a_batch_is_never_empty():
    assert batch_size(Grid(4, 4, 360, 480)) == 8
    assert batch_size(Grid(1, 1, 4000, 4000)) == 1
    assert batch_size(Grid(1, 1, 90, 120)) == BATCH_PIXELS // 10_800
