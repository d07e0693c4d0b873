"""``meal-gpu bench data``: decoding once against decoding again, and reading frames from the store.

Decoding is compared with what research code does: Pillow in PyTorch's DataLoader, and torchvision. Everything reads
from the page cache, on all cores, and is compared with Pillow's pixels before it is timed.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from meal_gpu.data.datasets import Sample
from meal_gpu.data.decode import decode_all, open_decoder
from meal_gpu.data.frames import Frames, HeldFrames, StreamedFrames, as_tensor
from meal_gpu.data.imagefile import read_image
from meal_gpu.data.pixels import normalise
from meal_gpu.data.rules import Rules
from meal_gpu.grid import Grid, Size
from meal_gpu.machine.backend import find_loader
from meal_gpu.machine.limits import usable_cores
from meal_gpu.network.features import BATCH_PIXELS, images_per_batch
from meal_gpu.planning.roofline import Roofs, Work

from ..result import Baseline, Result, Stage, WrongResultError, baseline, stage
from ..subjects.cityscapes import picture
from ..timing.measure import CPU, Calibration, Effort, interleaved
from ..timing.memory import peak
from ..timing.roofs import card, measure_roofs

REPEATS = 8
"""The store holds each image so many times, to be far larger than the caches."""
AGAIN = "decode the PNGs again"
JPEG_TOLERANCE = 2
"""Levels: what JPEG decoders may differ by."""


@dataclass(frozen=True)
class Case:
    """``n`` images of one size, in a grid."""

    size: Size
    n: int
    grid: Size = (4, 4)

    @property
    def name(self) -> str:
        return f"{self.size[0]}x{self.size[1]}"


CASES = (Case((360, 480), 48), Case((1024, 2048), 8))


class Files(torch.utils.data.Dataset[Tensor]):
    """Images as research code reads them: Pillow, one at a time."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> Tensor:
        return torch.from_numpy(np.array(Image.open(self.samples[i].image).convert("RGB")))


def run(effort: Effort, cases: tuple[Case, ...] = CASES, device: torch.device = CPU,
        tell: Callable[[str], None] = lambda text: None) -> Result:
    """Measure all cases; ``tell`` hears what is being done."""
    loader, _ = find_loader("auto")
    with TemporaryDirectory() as folder:
        stages, first = [], None
        for case in cases:
            tell(f"drawing {case.n} images of {case.name}")
            images = np.stack([picture(i, case.size)[0] for i in range(case.n)])
            png = _written(Path(folder), images, "png")
            if first is None:
                first = [sample.image for sample in png]
                roofs, calibration = measure_roofs(device, torch.float32, first, effort), Calibration(device)
            tell(f"decoding and reading {case.name}")
            for kind, samples in (("PNG", png), ("JPEG", _written(Path(folder), images, "jpg"))):
                stages.append(_decoding(f"ingest {kind} {case.name}", samples, case, loader, effort, device, roofs,
                                        calibration))
            stages += _reading(case, images, png, Path(folder), loader, effort, device, roofs, calibration)
    return Result(part="data", subject="decoding once, and reading frames from the store",
                  settings={"cases": [[*case.size, case.n, *case.grid] for case in cases], "loader": loader},
                  machine=card(), device=str(device), roofs=roofs, stages=tuple(stages))


def _written(folder: Path, images: np.ndarray, suffix: str) -> list[Sample]:
    samples = []
    for i, pixels in enumerate(images):
        path = folder / f"{images.shape[1]}-{i}.{suffix}"
        Image.fromarray(pixels).save(path, compress_level=6, quality=90)
        samples.append(Sample(path.stem, path, None))
    return samples


def _decoding(name: str, samples: list[Sample], case: Case, loader: str, effort: Effort, device: torch.device,
              roofs: Roofs, calibration: Calibration) -> Stage:
    rules = Rules(np.arange(256, dtype=np.uint8))

    def ours(decoder_name: str) -> Callable[[], list[np.ndarray]]:
        decoder = open_decoder(decoder_name, case.size)
        return lambda: [image for image, *_ in decode_all(samples, case.size, rules, decoder)]

    batches = torch.utils.data.DataLoader(Files(samples), batch_size=8, num_workers=usable_cores(),
                                          persistent_workers=True)
    threads = ThreadPoolExecutor(usable_cores())
    calls: dict[str, Callable[[], Iterable[Any]]] = {
        "ours": ours(loader),
        "Pillow + DataLoader": lambda: torch.cat(list(batches)),
        "Pillow, threads": lambda: list(threads.map(lambda sample: np.array(Image.open(sample.image)), samples)),
        "torchvision": lambda: list(threads.map(_torchvision, samples)),
    }
    expected = [read_image(sample.image) for sample in samples]
    bound = 0 if name.startswith("ingest PNG") else JPEG_TOLERANCE
    errors = {}
    for key, call in calls.items():
        errors[key] = max(int(np.abs(np.asarray(found).astype(int) - wanted).max())
                          for found, wanted in zip(call(), expected, strict=True))
        if errors[key] > bound:
            raise WrongResultError(f"{name}: {key} differs from Pillow by {errors[key]} levels")
    with peak(device) as memory:
        calls["ours"]()
    timings = interleaved(calls, effort, device, calibration)
    checked = f"pixels against Pillow's, at most {bound} levels"
    others = tuple(baseline(key, timings["ours"], timings[key], errors[key], checked)
                   for key in calls if key != "ours")
    pixels = len(samples) * case.size[0] * case.size[1]
    megabytes = sum(sample.image.stat().st_size for sample in samples) / len(samples) / 1e6
    work = Work(bytes=3 * pixels, pixels=pixels) if name.startswith("ingest PNG") else Work(bytes=3 * pixels)
    return stage(name, len(samples), "images", timings["ours"], roofs, work, memory, baselines=others,
                 note=f"{loader}; files of {megabytes:.2f} MB, checked and decoded")


def _torchvision(sample: Sample) -> np.ndarray:
    from torchvision.io import ImageReadMode, decode_image

    return decode_image(str(sample.image), ImageReadMode.RGB).permute(1, 2, 0).numpy()


def _reading(case: Case, images: np.ndarray, png: list[Sample], folder: Path, loader: str, effort: Effort,
             device: torch.device, roofs: Roofs, calibration: Calibration) -> Iterator[Stage]:
    """Patches and images, resident and streamed, against decoding again and against copying the page cache.

    Every pass is over the whole store; the files are decoded once per sample, and their time is taken as many times as
    the store holds them. Nothing of them is in a processor's cache when its turn comes.
    """
    file = folder / f"{case.name}.u8"
    with file.open("wb") as stream:
        for _ in range(REPEATS):
            stream.write(images.data)
    n = REPEATS * len(images)
    store = np.memmap(file, np.uint8, "r", shape=(n, *images.shape[1:]))
    held = torch.from_numpy(np.tile(images, (REPEATS, 1, 1, 1))).to(device)
    grid = Grid(*case.grid, *case.size)
    threads = ThreadPoolExecutor(usable_cores())
    step = images_per_batch(grid, BATCH_PIXELS)
    parts = [slice(first, min(first + step, n)) for first in range(0, n, step)]
    buffer = torch.empty(step, *images.shape[1:], dtype=torch.uint8)
    values = n * images[0].size

    def decode_again() -> Iterator[np.ndarray]:
        return threads.map(lambda sample: np.array(Image.open(sample.image)), png)

    def copied() -> None:
        """The pages stay mapped from one pass to the next: no streamed pass can have it so easy."""
        for part in parts:
            buffer[: part.stop - part.start].copy_(as_tensor(store[part]))

    def read() -> None:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer.numpy().data):
                pass

    def timed(name: str, count: int, unit: str, ours: Callable[[], object], again: Callable[[], object], moved: int,
              note: str) -> Stage:
        calls = {"ours": ours, "copying the page cache": copied, "reading the file": read, AGAIN: again}
        return _timed(f"{name} {case.name}", count, unit, calls, effort, device, roofs, calibration,
                      Work(bytes=moved * values), note)

    def by_dali(tiles: Size) -> Callable[[], None]:
        from meal_gpu.data.dali import FrameReader

        reader = FrameReader(case.size, None if tiles == (1, 1) else tiles, device, step)
        return lambda: _exhaust(reader.read, (store[part] for part in parts))

    for context, unit in (("image", "images"), ("patch", "patches")):
        ways: dict[str, Frames] = {"resident": HeldFrames.of(held, grid, context, device),
                                   "streamed": HeldFrames.of(store, grid, context, device)}
        if loader == "dali":
            ways["by DALI"] = StreamedFrames(grid, context, device, store)
        tiles = (1, 1) if context == "image" else case.grid
        for way, frames in ways.items():
            size = step * frames.per_image
            for part, (_, found) in zip(parts, frames.scan(size), strict=True):
                if not torch.equal(found.cpu(), normalise(_tiled(as_tensor(store[part]), tiles))):
                    raise WrongResultError(f"{way} frames differ from the store's")
            yield timed(f"{unit} {way}", frames.count, unit, partial(_exhaust, frames.scan, size),
                        lambda: [normalise(torch.from_numpy(image)[None]) for image in decode_again()], 1 + 4,
                        "normalised float32 frames, equal to the last bit; 5 bytes move per value, and 2 in a copy")
        for way, frames in ways.items():
            ours = partial(_cut_all, frames, parts) if isinstance(frames, HeldFrames) else by_dali(tiles)
            yield timed(f"raw {unit} {way}", frames.count, unit, ours, lambda: list(decode_again()), 1 + 1, "uint8")


def _tiled(images: Tensor, tiles: Size) -> Tensor:
    """The patches ``[N * cells, h, w, 3]`` of images, by PyTorch alone."""
    height, width = images.shape[1] // tiles[0], images.shape[2] // tiles[1]
    cropped = images[:, : tiles[0] * height, : tiles[1] * width]
    return cropped.unflatten(2, (tiles[1], width)).unflatten(1, (tiles[0], height)).transpose(2, 3).flatten(0, 2)


def _cut_all(frames: HeldFrames, parts: Iterable[slice]) -> None:
    for part in parts:
        frames.cut(slice(part.start * frames.per_image, part.stop * frames.per_image))


def _exhaust(pass_: Callable[..., Iterable[object]], *arguments: object) -> None:
    """Go through a pass as training and scoring do: a batch is done with when the next is asked for."""
    deque(pass_(*arguments), maxlen=0)


def _timed(name: str, items: int, unit: str, calls: dict[str, Callable[[], object]], effort: Effort,
           device: torch.device, roofs: Roofs, calibration: Calibration, work: Work, note: str) -> Stage:
    with peak(device) as memory:
        calls["ours"]()
    timings = interleaved(calls, effort, device, calibration)
    timings[AGAIN] = timings[AGAIN].times(REPEATS)
    others: tuple[Baseline, ...] = tuple(
        baseline(key, timings["ours"], timings[key], 0.0, "the same pixels",
                 note=f"each file once, taken {REPEATS} times" if key == AGAIN else "")
        for key in calls if key != "ours")
    return stage(name, items, unit, timings["ours"], roofs, work, memory, baselines=others, note=note)
