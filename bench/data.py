"""``meal-gpu bench data``: decoding once against decoding again, and reading frames from the store.

Decoding is compared with what research code does: Pillow in PyTorch's DataLoader, and torchvision. Everything reads
from the page cache, on all cores, and is compared with Pillow's pixels before it is timed.
"""

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

from meal_gpu.backend import find_loader, usable_cores
from meal_gpu.datasets import Sample
from meal_gpu.decode import decode_all, open_decoder
from meal_gpu.frames import Frames, HeldFrames, StreamedFrames, as_tensor
from meal_gpu.grid import Grid, Size
from meal_gpu.imagefile import read_image
from meal_gpu.pixels import normalise

from .cityscapes import picture
from .machine import Roofs, Work, card, measure_roofs
from .measure import CPU, Calibration, Effort, interleaved
from .memory import peak
from .result import Baseline, Result, Stage, WrongResultError, baseline, stage

DATA_EFFORT = Effort(6.0, 5, 30, 1.0)
REPEATS = 8
"""The store holds each image so many times, to be far larger than the caches."""
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


def run(effort: Effort = DATA_EFFORT, cases: tuple[Case, ...] = CASES, device: torch.device = CPU,
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
                roofs, calibration = measure_roofs(device, torch.float32, first), Calibration(device)
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
    table = np.arange(256, dtype=np.uint8)

    def ours(decoder_name: str) -> Callable[[], list[np.ndarray]]:
        decoder = open_decoder(decoder_name, case.size)
        return lambda: [image for image, _ in decode_all(samples, case.size, table, decoder)]

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
    """Patches and images, resident and streamed, against decoding again and against copying the page cache."""
    images, png = np.tile(images, (REPEATS, 1, 1, 1)), png * REPEATS
    n, file = len(images), folder / f"{case.name}.u8"
    file.write_bytes(images.tobytes())
    store = np.memmap(file, np.uint8, "r", shape=images.shape)
    grid = Grid(*case.grid, *case.size)
    threads = ThreadPoolExecutor(usable_cores())
    step = max(1, 8 * 360 * 480 // (case.size[0] * case.size[1]))
    buffer = torch.empty(step, *images.shape[1:], dtype=torch.uint8)

    def decode_again() -> Iterator[np.ndarray]:
        return threads.map(lambda sample: np.array(Image.open(sample.image)), png)

    def normalised_again() -> list[Tensor]:
        return [normalise(torch.from_numpy(image)[None]) for image in decode_again()]

    def copied() -> None:
        for first in range(0, n, step):
            part = as_tensor(store[first : first + step])
            buffer[: len(part)].copy_(part)

    def one_pass(frames: Frames, size: int) -> None:
        for _ in frames.scan(size):
            pass

    def raw(reader: Callable[..., Iterator[Tensor]]) -> Callable[[], None]:
        def call() -> None:
            flat = buffer.flatten(1)
            for part in reader(store[first : first + step] for first in range(0, n, step)):
                flat[: len(part)].view(part.shape).copy_(part)
        return call

    pixels = 3 * n * case.size[0] * case.size[1]
    for context, unit in (("image", "images"), ("patch", "patches")):
        held = HeldFrames.of(torch.from_numpy(images), grid, context, device)
        ways: dict[str, Frames] = {"resident": held}
        if loader == "dali":
            ways["streamed"] = StreamedFrames(grid, context, device, store)
        for way, frames in ways.items():
            size = step * frames.per_image
            expected = torch.cat([part for _, part in held.scan(size)])
            if not torch.equal(torch.cat([part for _, part in frames.scan(size)]), expected):
                raise WrongResultError(f"{way} frames differ from resident ones")
            calls: dict[str, Callable[[], object]] = {
                "ours": partial(one_pass, frames, size), "decode the PNGs again": normalised_again}
            yield _timed(f"{unit} {way} {case.name}", frames.count, unit, calls, effort, device, roofs, calibration,
                         Work(bytes=pixels + 4 * pixels), "normalised float32 frames, equal to the last bit")
    held = HeldFrames.of(torch.from_numpy(images), grid, "patch", device)
    cells = step * grid.cells

    def gathered() -> None:
        for first in range(0, held.count, cells):
            held.cut(slice(first, min(first + cells, held.count)))

    calls = {"ours": gathered, "copying the page cache": copied, "decode the PNGs again": lambda: list(decode_again())}
    yield _timed(f"raw patches resident {case.name}", held.count, "patches", calls, effort, device, roofs, calibration,
                 Work(bytes=2 * pixels), "uint8, gathered from strided views")
    if loader == "dali":
        from meal_gpu.dali import FrameReader

        for tiles, unit in ((None, "images"), (case.grid, "patches")):
            reader = FrameReader(case.size, tiles, False, device, step).read
            calls = {"ours": raw(reader), "copying the page cache": copied,
                     "decode the PNGs again": lambda: list(decode_again())}
            count = n * (1 if tiles is None else grid.cells)
            yield _timed(f"raw {unit} streamed {case.name}", count, unit, calls, effort, device, roofs, calibration,
                         Work(bytes=2 * pixels), "uint8, from the store into one buffer")


def _timed(name: str, items: int, unit: str, calls: dict[str, Callable[[], object]], effort: Effort,
           device: torch.device, roofs: Roofs, calibration: Calibration, work: Work, note: str) -> Stage:
    with peak(device) as memory:
        calls["ours"]()
    timings = interleaved(calls, effort, device, calibration)
    others: tuple[Baseline, ...] = tuple(
        baseline(key, timings["ours"], timings[key], 0.0, "the same pixels") for key in calls if key != "ours")
    return stage(name, items, unit, timings["ours"], roofs, work, memory, baselines=others, note=note)
