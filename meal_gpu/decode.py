"""From files to pixels of the wanted size: the one place that another decoder replaces."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from PIL import Image

from .datasets import INVALID, Sample
from .errors import InputError
from .imagefile import read_image, read_mask
from .store import Size

Decoded = tuple[np.ndarray, np.ndarray | None]
"""Image uint8 ``[H, W, 3]`` and mask uint8 ``[H, W]`` of class indices and `VOID`."""


def decode(sample: Sample, size: Size, to_class: np.ndarray) -> Decoded:
    """Decode a sample and bring it to ``size`` = (height, width): images bilinear with antialiasing, masks nearest.

    Raises `InputError` for unreadable files, a mask of another size than its image, an id outside ``to_class``.
    """
    image = read_image(sample.image)
    mask = None
    if sample.mask is not None:
        ids = read_mask(sample.mask)
        if ids.shape != image.shape[:2]:
            raise InputError(
                f"{sample.mask} is {ids.shape[1]} x {ids.shape[0]} pixels (width x height), its image {sample.image} "
                f"is {image.shape[1]} x {image.shape[0]}: they must be equal. Make the mask at the image's size.")
        mask = to_class[ids]
        wrong = mask == INVALID
        if wrong.any():
            y, x = np.unravel_index(int(wrong.argmax()), wrong.shape)
            raise InputError(
                f"{sample.mask} holds the class id {ids[y, x]} (first at x={x}, y={y}; {np.count_nonzero(wrong)} "
                f"pixels are outside the table). Allowed ids: {_ranges(np.flatnonzero(to_class != INVALID))}. "
                "Correct the mask or the table of classes.")
        mask = _resize(mask, size, Image.Resampling.NEAREST)
    return _resize(image, size, Image.Resampling.BILINEAR), mask


def decode_all(samples: Sequence[Sample], size: Size, to_class: np.ndarray) -> Iterator[Decoded]:
    """Decode samples in their order on all cores, at most a few ahead of the consumer."""
    workers = min(32, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with ThreadPoolExecutor(workers, "ingest") as threads:
        ahead: deque[Future[Decoded]] = deque()
        try:
            for sample in samples:
                ahead.append(threads.submit(decode, sample, size, to_class))
                if len(ahead) > 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _resize(pixels: np.ndarray, size: Size, how: Image.Resampling) -> np.ndarray:
    if pixels.shape[:2] == size:
        return pixels
    return np.array(Image.fromarray(pixels).resize((size[1], size[0]), how))


def _ranges(values: np.ndarray) -> str:
    """``0-11, 255`` for sorted values."""
    runs = np.split(values, np.flatnonzero(np.diff(values) != 1) + 1)
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
