"""The normalisation, and that every way rounds it alike."""

import numpy as np
import pytest
import torch
from tiny import CPU, noise
from torch._subclasses.fake_tensor import FakeTensorMode

from meal_gpu.data.frames import HeldFrames, StreamedFrames
from meal_gpu.data.pixels import MEAN_255, STD_255, normalise, statistics
from meal_gpu.grid import Grid
from meal_gpu.kernels import cut_frames
from meal_gpu.machine.transfers import Transfers

MEAN = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64)
STD = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64)


def test_normalise_is_imagenets():
    images = noise(2, 5, 7)
    expected = (images.double() / 255 - MEAN) / STD
    torch.testing.assert_close(normalise(images).double(), expected.permute(0, 3, 1, 2), atol=1e-6, rtol=0)
    assert normalise(images).is_contiguous(memory_format=torch.channels_last)


def test_the_kernel_gives_the_same_bits_for_every_value():
    """All 256 values of all three channels, at every place in a vector: widths around the kernel's tile."""
    for width in (1, 5, 256, 257, 600):
        values = torch.arange(256).view(256, 1, 1, 1).add(torch.arange(width * 3).view(1, 1, width, 3)).to(torch.uint8)
        found = cut_frames(values, torch.arange(256), (1, 1), statistics(CPU))
        assert torch.equal(found.permute(0, 3, 1, 2), normalise(values))


@pytest.mark.parametrize("tiles", [(1, 1), (3, 5)])
def test_any_number_of_threads_cuts_the_same_frames(tiles):
    """Images large enough for every thread to have runs of its own; frames in any order, some twice."""
    images, n = noise(6, 93, 160), 6 * tiles[0] * tiles[1]
    frames = torch.randint(0, n, (2 * n,), generator=torch.Generator().manual_seed(0))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 2):  # more than numba has are clipped
            torch.set_num_threads(threads)
            results.append([cut_frames(images, frames, tiles), cut_frames(images, frames, tiles, statistics(CPU))])
    finally:
        torch.set_num_threads(before)
    for cut, normalised in results[1:]:
        assert torch.equal(cut, results[0][0])
        assert torch.equal(normalised, results[0][1])


@pytest.mark.parametrize("frames", [[0, -1], [90, 3], [0, 1, 2, 91]])
def test_frames_that_are_not_there_are_refused(frames):
    """Memory behind the images would be read: two images of 45 patches have none below 0 or above 89."""
    with pytest.raises(ValueError, match=f"frames {min(frames)} to {max(frames)} .* 0 to 89"):
        cut_frames(noise(2, 93, 160), torch.tensor(frames), (5, 9))


def test_every_way_gives_the_same_bits_for_every_value(tmp_path):
    """All 256 values of all three channels: nothing else can come. Held and cut here, cut where PyTorch gathers (as on
    a GPU), streamed by DALI; each operation rounded for itself, as NumPy does it. Rounded once for both, as DALI does
    on a GPU, half of them differ."""
    pytest.importorskip("nvidia.dali")
    values = np.repeat(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), 3, axis=3)
    mean, deviation = np.array([MEAN_255, STD_255], np.float32)
    scale = np.float32(1) / deviation
    expected = torch.from_numpy((values.astype(np.float32) - mean) * scale)
    grid = Grid(2, 2, 16, 16)
    (tmp_path / "values").write_bytes(values.tobytes())
    file = np.memmap(tmp_path / "values", np.uint8, "r", shape=values.shape)
    ways = {"held": HeldFrames.of(torch.from_numpy(values), grid, "image", CPU),
            "mapped": HeldFrames.of(file, grid, "image", CPU), "streamed": StreamedFrames(grid, "image", CPU, file)}
    found = {name: next(frames.scan(1))[1] for name, frames in ways.items()}
    found |= {"by batches": next(ways["streamed"].read([torch.tensor([0])])),
              "a tensor": normalise(torch.from_numpy(values))}
    for name, pixels in found.items():
        assert torch.equal(pixels.permute(0, 2, 3, 1), expected), name
    once = (values.astype(np.float64) * scale - (mean * scale).astype(np.float64)).astype(np.float32)
    assert 300 < int((once != expected.numpy()).sum()) < 400


def test_the_reciprocal_is_taken_on_the_host(monkeypatch):
    """Division on a GPU is another's; one copy brings both statistics there."""
    with FakeTensorMode(), Transfers() as counted:
        mean, scale = statistics(torch.device("cuda"))
    assert (mean.device.type, scale.shape) == ("cuda", (3,))
    assert sum(counted.sends.values()) == 1
