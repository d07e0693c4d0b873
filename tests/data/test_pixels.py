"""The normalisation, and that DALI rounds it alike."""

import numpy as np
import pytest
import torch
from tiny import CPU, noise

from meal_gpu.data.pixels import normalise, statistics
from meal_gpu.kernels import cut_frames

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


def test_dali_gives_the_same_bits_for_every_value():
    """All 256 values of all three channels: nothing else can come."""
    pytest.importorskip("nvidia.dali")
    from meal_gpu.data.dali import FrameReader

    values = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    (frames,) = FrameReader((16, 16), None, True, CPU, 1).read([[values]])
    assert torch.equal(frames.permute(0, 3, 1, 2), normalise(torch.from_numpy(values)[None]))
