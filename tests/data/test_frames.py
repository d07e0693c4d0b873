"""Frames, held and streamed, against plain slices: equal to the last bit, whatever brings them."""

import gc
import importlib.util
import mmap
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import CPU, noise

from meal_gpu.data.frames import HeldFrames, StreamedFrames, as_tensor, resident
from meal_gpu.data.pixels import normalise
from meal_gpu.data.store import release
from meal_gpu.grid import Grid

# Rows, columns and sizes that divide, that leave a remainder, a single patch, patches of two pixels.
STREAMS = {"dali": lambda grid, context, file: StreamedFrames(grid, context, CPU, file),
           "mapped": lambda grid, context, file: HeldFrames.of(file, grid, context, CPU)}
if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
    STREAMS["dali"] = lambda *args: pytest.skip("NVIDIA DALI is not installed")
"""What brings frames of a mapped file."""
GRIDS = [Grid(2, 3, 24, 36), Grid(3, 4, 25, 39), Grid(1, 1, 8, 12), Grid(5, 4, 10, 8)]


@st.composite
def pools(draw) -> tuple[torch.Tensor, Grid]:
    rows, cols = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    height, width = draw(st.integers(2 * rows, 20)), draw(st.integers(2 * cols, 20))
    return noise(draw(st.integers(1, 4)), height, width, seed=draw(st.integers(0, 9))), Grid(rows, cols, height, width)


def patch_of(images: torch.Tensor, grid: Grid, patch: int) -> torch.Tensor:
    image, cell = grid.split(patch)
    y0, x0, y1, x1 = grid.box(cell)
    return images[image, y0:y1, x0:x1]


def plain(images: torch.Tensor, grid: Grid, context: str) -> torch.Tensor:
    """All frames, by slicing."""
    if context == "image":
        return images
    return torch.stack([patch_of(images, grid, patch) for patch in range(len(images) * grid.cells)])


def mapped(images: torch.Tensor, file: Path) -> np.memmap:
    file.write_bytes(images.numpy().tobytes())
    return np.memmap(file, np.uint8, "r", shape=tuple(images.shape))


@given(pools(), st.data())
def test_held_frames_are_plain_slices(pool, data):
    """Both contexts, images and masks, any order of indices and repeated ones, grids that leave a remainder."""
    images, grid = pool
    for pixels in (images, images[..., 0].contiguous()):
        frames = HeldFrames.of(pixels, grid, "image", CPU)
        index = torch.tensor(data.draw(st.lists(st.integers(0, len(images) - 1), min_size=1, max_size=5)))
        assert (frames.count, frames.grid) == (len(images), grid)
        assert torch.equal(frames[index], pixels[index])
        assert torch.equal(frames.cut(slice(0, len(images))), pixels)

        frames = HeldFrames.of(pixels, grid, "patch", CPU)
        assert frames.count == len(images) * grid.cells
        assert frames.grid == Grid(1, 1, grid.patch_height, grid.patch_width)
        ids = data.draw(st.lists(st.integers(0, frames.count - 1), min_size=1, max_size=5))
        for patch, frame in zip(ids, frames[torch.tensor(ids)], strict=True):
            assert torch.equal(frame, patch_of(pixels, grid, patch))
        last = frames.cut(slice(frames.count - grid.cells, frames.count))
        assert torch.equal(last, plain(pixels, grid, "patch")[-grid.cells :])


@pytest.mark.parametrize("context", ["patch", "image"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("kind", ["held", "mapped", "streamed", "resident"])
def test_every_way_gives_the_same_bits(tmp_path, kind, grid, context):
    """A pass in whole images, a batch larger than the pool, and reading in any order, also twice the same."""
    if kind == "streamed":
        pytest.importorskip("nvidia.dali")
    images = noise(5, grid.height, grid.width)
    file = mapped(images, tmp_path / "images")
    frames = {
        "held": lambda: HeldFrames.of(images, grid, context, CPU),
        "mapped": lambda: HeldFrames.of(file, grid, context, CPU),
        "streamed": lambda: StreamedFrames(grid, context, CPU, file),
        "resident": lambda: HeldFrames.of(resident(file, CPU, "mapped"), grid, context, CPU),
    }[kind]()
    expected = normalise(plain(images, grid, context))
    for size in (2 * frames.per_image, 1, 10**6, 2 * frames.per_image):  # the last goes through a pipeline again
        seen = list(frames.scan(size))
        assert [i for part, _ in seen for i in range(part.start, part.stop)] == list(range(frames.count))
        assert all(len(pixels) == part.stop - part.start for part, pixels in seen)
        assert all(len(pixels) <= max(size, frames.per_image) for _, pixels in seen)
        assert torch.equal(torch.cat([pixels for _, pixels in seen]), expected)
        assert all(pixels.permute(0, 2, 3, 1).is_contiguous() for _, pixels in seen)
    batches = [torch.tensor([frames.count - 1, 0, 0]), torch.tensor([1 % frames.count])]
    for _ in range(2):
        for batch, pixels in zip(batches, frames.read(batches), strict=True):
            assert torch.equal(pixels, expected[batch])


@pytest.mark.parametrize("way", ["dali", "mapped"])
def test_a_pass_that_was_left_does_not_disturb_the_next(tmp_path, way):
    """An error in the middle of a pass must not leave frames behind in the pipeline."""
    images, grid = noise(6, 8, 8), Grid(1, 1, 8, 8)
    frames = STREAMS[way](grid, "image", mapped(images, tmp_path / "images"))
    for _ in frames.scan(2):
        break
    assert torch.equal(torch.cat([pixels for _, pixels in frames.scan(2)]), normalise(images))
    passes = frames.scan(2), frames.scan(2)  # two at once
    for (_, a), (_, b) in zip(*passes, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("way", ["dali", "mapped"])
def test_frames_that_were_handed_out_stay_as_they_are(tmp_path, way):
    """The next batch must not be written where the last one still is in use, be it only by a view or for a gradient."""
    images, grid = noise(12, 16, 16), Grid(2, 2, 16, 16)
    frames = STREAMS[way](grid, "image", mapped(images, tmp_path / "images"))
    kept = [pixels for _, pixels in frames.scan(1)]
    assert torch.equal(torch.cat(kept), normalise(images))
    views = [pixels[0, 1, 3:5] for _, pixels in frames.scan(1)]
    assert torch.equal(torch.stack(views), normalise(images)[:, 1, 3:5])
    weight = torch.ones(3, 1, 1, requires_grad=True)
    products = [(pixels * weight).sum((0, 2, 3)) for _, pixels in frames.scan(1)]  # autograd saves the pixels
    torch.stack(products).sum().backward()
    torch.testing.assert_close(weight.grad.flatten(), normalise(images).sum((0, 2, 3)))


def test_a_pass_uses_the_same_memory_again():
    """Whoever has done with a batch before asking for the next pays for one block, and whoever has not for two."""
    frames = HeldFrames.of(noise(12, 16, 16), Grid(2, 2, 16, 16), "patch", CPU)

    def addresses() -> Iterator[int]:
        for _, pixels in frames.scan(4):
            address = pixels.data_ptr()
            del pixels
            yield address

    assert len(set(addresses())) == 1
    assert len({pixels.data_ptr() for _, pixels in frames.scan(4)}) <= 2


@pytest.mark.parametrize("stream", ["dali", "mapped"])
def test_a_resident_pool_is_a_copy_of_the_store(tmp_path, stream):
    if stream == "dali":
        pytest.importorskip("nvidia.dali")
    images = noise(7, 13, 11)
    file = mapped(images, tmp_path / "images")
    held = resident(file, CPU, stream)
    assert torch.equal(held, images)
    assert held.data_ptr() != file.ctypes.data


@pytest.mark.parametrize("way", ["dali", "mapped"])
def test_streaming_holds_no_more_memory_the_longer_it_goes(tmp_path, way):
    """Pages of the store that have been read are given back: 96 MB go by, a few stay."""
    n, grid = 64, Grid(2, 2, 500, 1000)
    file = tmp_path / "images"
    with file.open("wb") as stream:
        for i in range(n):
            stream.write(np.full(grid.height * grid.width * 3, i, np.uint8).tobytes())
    images = np.memmap(file, np.uint8, "r", shape=(n, grid.height, grid.width, 3))

    def held() -> int:
        """Of the mapping: a word per page, whose highest bit says that it is there. smaps walks the whole process."""
        with Path("/proc/self/pagemap").open("rb") as stream:
            stream.seek(images.ctypes.data // mmap.PAGESIZE * 8)
            pages = np.frombuffer(stream.read(-(-images.nbytes // mmap.PAGESIZE) * 8), np.uint64)
        return int((pages >> np.uint64(63)).sum()) * mmap.PAGESIZE

    peak = 0
    frames = STREAMS[way](grid, "image", images)
    for _, pixels in frames.scan(1):
        peak = max(peak, held())
        assert pixels[0, 0].min() == pixels[0, 0].max()
    assert peak < 12e6
    assert peak > 0 or way == "mapped"  # which gives a batch's pages back before it hands the frames out
    assert held() < 5e6  # a fault maps the file's large page around it, of 2 MB here
    for batch, pixels in zip(range(n), frames.read([torch.tensor([i]) for i in range(n)]), strict=True):
        assert torch.equal(pixels, normalise(torch.full((1, *images.shape[1:]), batch, dtype=torch.uint8)))
        assert held() < 12e6


@pytest.fixture
def pretended_gpu(monkeypatch):
    """Streaming to a device that is not there: the pipeline is the real one, on the CPU; the streams it is given."""
    dali = pytest.importorskip("nvidia.dali.pipeline")
    from meal_gpu.data import dali as wrapped

    real, outputs, given = wrapped._reading, dali.Pipeline.outputs, []

    def on_the_cpu(*args, gpu, **kwargs):
        assert gpu
        return real(*args, gpu=False, **(kwargs | {"device_id": None}))

    def handed_over(pipe, cuda_stream=None):
        given.append(cuda_stream)
        return outputs(pipe)

    monkeypatch.setattr(wrapped, "_reading", on_the_cpu)
    monkeypatch.setattr(dali.Pipeline, "outputs", handed_over)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(device))
    return given


class Stream:
    """Of a device that has passed everything but what was recorded last."""

    def __init__(self, device):
        self.device = device

    def record_event(self):
        return Event()


class Event:
    made: ClassVar[list["Event"]] = []

    def __init__(self):
        self.waited = False
        Event.made.append(self)

    def query(self):
        return self.waited

    def synchronize(self):
        self.waited = True


def test_batches_come_on_the_stream_that_uses_them(tmp_path, pretended_gpu):
    """DALI takes it by position only: a keyword is an input of the pipeline, and refused at the first image."""
    from meal_gpu.data.dali import FrameReader

    images = noise(5, 8, 8)
    read = FrameReader((8, 8), None, torch.device("cuda"), 2).read
    batches = [images.numpy()[i : i + 2] for i in (0, 2, 4)]
    assert torch.equal(torch.cat([pixels.clone() for pixels in read(batches)]), images)
    assert [stream.device.type for stream in pretended_gpu] == ["cuda"] * 4  # the last says that there is no more


def test_what_the_device_may_still_read_is_not_given_back(pretended_gpu, monkeypatch):
    """Pixels are DALI's own memory. A device that lags: its last batches are kept, and whoever ends waits for them."""
    from meal_gpu.data import dali

    monkeypatch.setattr(Event, "made", [])
    images = noise(10, 8, 8)
    reader = dali.FrameReader((8, 8), None, torch.device("cuda"), 1)
    held, gone = [], []
    for pixels in reader.read([images.numpy()[i : i + 1] for i in range(10)]):
        held.append(weakref.ref(pixels))
        del pixels
        gone.append([event.waited for event in Event.made].count(True))
        gc.collect()
        alive = sum(ref() is not None for ref in held)
        assert alive == min(len(held), dali._READ_LATE + 1)
    assert gone == [0] * (dali._READ_LATE + 1) + list(range(1, 10 - dali._READ_LATE))  # and waited for before that
    assert len(reader._read_late) == dali._READ_LATE
    del reader
    gc.collect()
    assert all(event.waited for event in Event.made)
    assert all(ref() is None for ref in held)


def test_one_pipeline_serves_batches_of_any_size(tmp_path, monkeypatch):
    """It has threads and buffers of its own: scans and reads of all sizes share it, and only a larger batch ends it."""
    dali = pytest.importorskip("meal_gpu.data.dali")
    made, real = [], dali.FrameReader
    monkeypatch.setattr(dali, "FrameReader", lambda *args: made.append(args) or real(*args))
    images, grid = noise(70, 8, 8), Grid(2, 2, 8, 8)
    frames, expected = StreamedFrames(grid, "image", CPU, mapped(images, tmp_path / "images")), normalise(images)
    for size in (1, 3, 7, 2):
        assert torch.equal(torch.cat([pixels for _, pixels in frames.scan(size)]), expected)
        [pixels] = frames.read([torch.arange(size)])
        assert torch.equal(pixels, expected[:size])
    assert len(made) == 1
    for _ in range(2):
        [pixels] = frames.read([torch.arange(66)])
        assert torch.equal(pixels, expected[:66])
    assert len(made) == 2


def test_releasing_keeps_the_pixels_and_ignores_what_is_no_file(tmp_path):
    images = noise(3, 40, 50)
    file = mapped(images, tmp_path / "images")
    assert isinstance(file.base, mmap.mmap)
    for first, last in ((0, 1), (1, 3), (2, 2), (0, 3)):
        release(file, first, last)
        assert np.array_equal(file, images.numpy())
    release(images.numpy(), 0, 3)
    assert np.array_equal(file, images.numpy())


def test_masks_are_cut_where_the_mapped_file_may_be_released(tmp_path):
    masks = noise(4, 6, 6)[..., 0].contiguous()
    frames = HeldFrames.of(mapped(masks, tmp_path / "masks"), Grid(2, 3, 6, 6), "image", CPU)
    assert torch.equal(torch.cat([frames.cut(slice(i, i + 2)) for i in (0, 2)]), masks)


@pytest.mark.parametrize("context", ["patch", "image"])
def test_held_frames_copy_no_pixel(context):
    images = noise(2, 11, 13)
    assert HeldFrames.of(images, Grid(2, 3, 11, 13), context, CPU).images.data_ptr() == images.data_ptr()


def test_a_read_only_memmap_is_shared_without_a_warning(tmp_path, recwarn):
    tensor = as_tensor(mapped(torch.arange(48, dtype=torch.uint8).view(4, 2, 2, 3), tmp_path / "images"))
    assert tensor[3, 1, 1].tolist() == [45, 46, 47]
    assert not recwarn.list


def test_patches_that_are_read_ahead_are_not_freed(tmp_path):
    """Cut patches are arrays of their own, and the pipeline reads them later than they are handed over."""
    pytest.importorskip("nvidia.dali")
    images, grid = noise(8, 200, 300), Grid(2, 2, 200, 300)
    frames = StreamedFrames(grid, "patch", CPU, mapped(images, tmp_path / "images"))
    expected = normalise(plain(images, grid, "patch"))
    batches = [torch.tensor([i % 32, (7 * i) % 32]) for i in range(40)]
    for batch, pixels in zip(batches, frames.read(batches), strict=True):
        rubbish = [np.full((100, 150, 3), 7, np.uint8) for _ in range(4)]  # takes what was freed
        assert torch.equal(pixels, expected[batch])
        del rubbish
