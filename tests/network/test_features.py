"""Feature maps cached and fresh, and the patch vectors of equation 2 against upsampling as written."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny import CPU, noise, tiny_backend, tiny_features, tiny_model

from meal_gpu.data.frames import HeldFrames
from meal_gpu.data.pixels import normalise
from meal_gpu.grid import Grid
from meal_gpu.network.features import (
    BATCH_PIXELS,
    PEAK_BYTES,
    Features,
    batch_pixels,
    batch_size,
    filled,
    images_per_batch,
)

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
    with torch.no_grad():
        vectors = torch.cat([features.patch_vectors(high) for _, (_, high) in features.scan(model)])
        assert vectors.shape == (3 * tiling.cells, 112)
        for patch in range(3 * tiling.cells):
            image, cell = tiling.split(patch)
            y0, x0, y1, x1 = tiling.box(cell)
            if context == "image":
                frame = images[image : image + 1]
            else:
                frame, (y0, x0, y1, x1) = images[image : image + 1, y0:y1, x0:x1], (0, 0, y1 - y0, x1 - x0)
            maps = model.features(normalise(frame))[1].double()
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
    with torch.no_grad():
        for given in (lambda f: f.read(model, [torch.tensor([4, 0, 4, 2]), torch.tensor([3])]),
                      lambda f: (maps for _, maps in f.scan(model))):
            for ours, theirs in zip(given(cached), given(fresh), strict=True):
                for a, b in zip(ours, theirs, strict=True):
                    assert a.dtype == dtype
                    # Rounded to the autocast dtype; another batch may make the processor add in another order, and
                    # what cancels to nearly 0 then keeps the error of its parts: some 1e-6 of the largest value.
                    error, largest = float((a.float() - b.float()).abs().max()), float(b.float().abs().max())
                    assert error <= largest * (2e-5 if dtype == torch.float32 else 0.02)


@pytest.mark.parametrize("cached", [True, False])
def test_a_pass_goes_over_all_frames_in_order(model, cached):
    features = tiny_features(model, noise(5, 64, 96), (2, 3), "patch", cached)
    with torch.no_grad():
        seen = [frames for frames, (low, high) in features.scan(model) if len(low) == len(high) == features.batch]
    assert [i for frames in seen for i in range(frames.start, frames.stop)] == list(range(30))


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("context", ["image", "patch"])
def test_a_frame_has_the_same_maps_whatever_comes_with_it(model, context, cached, monkeypatch):
    """7 images in batches of 3: the last holds one. Alone in a batch of that size it must give the same bits."""
    monkeypatch.setattr("meal_gpu.network.features.BATCH_PIXELS", 3 * 64 * 96)
    images = noise(7, 64, 96)

    def maps(some):
        features = tiny_features(model, some, (2, 3), context, cached)
        with torch.no_grad():
            return [(frames, pair) for frames, pair in features.scan(model)], features

    whole, features = maps(images)
    per_image = features.frames.per_image
    assert [len(low) for _, (low, _) in whole] == [3 * per_image] * 3
    frames, last = whole[-1]
    assert frames == slice(6 * per_image, 7 * per_image)
    ((_, repeated),), _ = maps(images[[6, 6, 6]])
    for a, b in zip(last, repeated, strict=True):
        assert torch.equal(a[:per_image], b[:per_image])
        assert a.permute(0, 2, 3, 1).is_contiguous()


def test_a_batch_is_filled_with_its_last_entry():
    batch = torch.arange(24.0).view(2, 2, 3, 2).permute(0, 3, 1, 2)  # channels last
    full = filled(batch, 5)
    assert torch.equal(full, batch[[0, 1, 1, 1, 1]])
    assert full.permute(0, 2, 3, 1).is_contiguous()
    assert filled(batch, 2) is batch


def test_cached_features_do_not_look_at_images_again(model):
    images = noise(2, 32, 32)
    cached = tiny_features(model, images, (1, 1), cached=True)
    both = torch.tensor([0, 1])
    before = next(cached.read(model, [both]))[1].clone()
    images.zero_()
    assert torch.equal(next(cached.read(model, [both]))[1], before)


def test_progress_counts_all_frames(model):
    seen = []
    frames = HeldFrames.of(noise(3, 32, 32), Grid(1, 1, 32, 32), "image", CPU)
    Features.of(frames, model, tiny_backend(), True, "val features", lambda *args: seen.append(args))
    assert seen[-1] == ("val features", 3, 3)


def test_a_batch_is_never_empty():
    assert images_per_batch(Grid(4, 4, 360, 480), BATCH_PIXELS) == 8
    assert images_per_batch(Grid(1, 1, 4000, 4000), BATCH_PIXELS) == 1
    assert images_per_batch(Grid(1, 1, 90, 120), BATCH_PIXELS) == BATCH_PIXELS // 10_800


@pytest.mark.parametrize(("context", "n_images", "expected"), [("image", 20, 8), ("image", 5, 5), ("patch", 20, 128),
                                                               ("patch", 5, 80)])
def test_a_batch_holds_whole_images_and_no_more_than_there_are(context, n_images, expected):
    frames = HeldFrames.of(torch.empty(n_images, 360, 480, 3, dtype=torch.uint8), Grid(4, 4, 360, 480), context, CPU)
    assert batch_size(frames, tiny_backend()) == expected


@pytest.mark.parametrize(("budget_gb", "images"), [(40, 32), (21.6, 32), (21.4, 16), (12, 16), (6, 8), (0.1, 2)])
def test_batches_on_cuda_follow_the_memory_budget(budget_gb, images):
    """512 x 1024: 32 images of which a quarter of the budget holds the peak, else halves; never below a CPU's 2."""
    backend = replace(tiny_backend(), device=torch.device("cuda"), budget_bytes=int(budget_gb * 1e9))
    pixels = batch_pixels(backend)
    assert images_per_batch(Grid(4, 4, 512, 1024), pixels) == images
    assert pixels <= max(BATCH_PIXELS, backend.budget_bytes / 4 / PEAK_BYTES)
    assert batch_pixels(tiny_backend()) == BATCH_PIXELS


@pytest.mark.parametrize(("n_images", "expected"), [(500, 32), (101, 26), (33, 17), (32, 32), (5, 5)])
def test_batches_on_cuda_are_alike(n_images, expected):
    """The last is filled up with repeats, so that 33 images are two batches of 17, not 32 and 32."""
    backend = replace(tiny_backend(), device=torch.device("cuda"), budget_bytes=10**11)
    frames = HeldFrames.of(torch.empty(n_images, 512, 1024, 3, dtype=torch.uint8), Grid(4, 4, 512, 1024), "image", CPU)
    assert batch_size(frames, backend) == expected
    assert -(-n_images // expected) == -(-n_images // 32)
