"""From files to pixels of the wanted size: files are read and checked on some threads, and decoded batch by batch.

Two decoders have one interface: `data.dali.DaliDecoder` and, where there is no DALI, `TorchvisionDecoder`. Both get the
checked contents of files, because neither names the file that it cannot decode, and DALI stops the whole batch.
Masks are always decoded by Pillow: their values are ids, and DALI looks up palettes.
"""

import io
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from ..errors import InputError
from ..grid import Size
from ..machine.card import usable_cores
from .datasets import INVALID, Sample
from .imagefile import Picture, read_image, read_mask, read_picture

_log = logging.getLogger("meal_gpu")
Decoded = tuple[np.ndarray, np.ndarray | None]
"""Image uint8 ``[H, W, 3]`` and mask uint8 ``[H, W]`` of class indices and `VOID`."""


class Decoder(Protocol):
    """Brings images to one size: bilinear, with antialiasing. What a size leaves alone keeps every bit."""

    batch: int
    """Images that are best decoded together."""

    def decode(self, pictures: Sequence[Picture]) -> list[np.ndarray]:
        """Pixels uint8 ``[*size, 3]`` of each picture, of which there are ``batch`` at most.

        Raises `RuntimeError` when one of them cannot be decoded; the next call works again.
        """
        ...


class TorchvisionDecoder:
    """For systems that DALI does not run on.

    PNG is left to Pillow: torchvision's decoder (0.29) ends the process on a damaged stream.
    """

    def __init__(self, size: Size, threads: int) -> None:
        self.size, self.batch = size, 2 * threads
        self._threads = ThreadPoolExecutor(threads, "decode")

    def decode(self, pictures: Sequence[Picture]) -> list[np.ndarray]:
        return list(self._threads.map(self._one, pictures))

    def _one(self, picture: Picture) -> np.ndarray:
        from torchvision.io import ImageReadMode, decode_image
        from torchvision.transforms.v2.functional import resize

        content = picture.content
        if content.ndim == 1 and content[:3].tobytes() == b"\xff\xd8\xff":
            image = decode_image(torch.from_numpy(content.copy()), ImageReadMode.RGB)
        else:
            pixels = content if content.ndim == 3 else _by_pillow(content)
            image = torch.from_numpy(pixels).permute(2, 0, 1)
        if image.shape[1:] != self.size:
            image = resize(image, list(self.size), antialias=True)
        return image.permute(1, 2, 0).contiguous().numpy()


def open_decoder(name: str, size: Size) -> Decoder:
    """``dali``, ``dali-mixed`` (JPEG on the GPU) or ``torchvision``."""
    if name == "torchvision":
        return TorchvisionDecoder(size, _cores())
    from .dali import DaliDecoder

    return DaliDecoder(size, _cores(), mixed=name == "dali-mixed")


def decode_all(samples: Sequence[Sample], size: Size, to_class: np.ndarray, decoder: Decoder) -> Iterator[Decoded]:
    """Decode samples in their order on all cores, a few batches ahead of the consumer.

    Raises `InputError` for unreadable files, a mask of another size than its image, an id outside ``to_class``: at its
    turn, after all samples before it.
    """
    with ThreadPoolExecutor(_cores(), "read") as readers, ThreadPoolExecutor(1, "decode") as turns:
        ahead: deque[Future[tuple[list[Decoded], InputError | None]]] = deque()
        try:
            for first in range(0, len(samples), decoder.batch):
                part = samples[first : first + decoder.batch]
                reads = [readers.submit(read_sample, sample, size, to_class) for sample in part]
                ahead.append(turns.submit(_decode_batch, part, reads, decoder))
                if len(ahead) > 2:
                    yield from _taken(ahead.popleft())
            while ahead:
                yield from _taken(ahead.popleft())
        finally:
            for future in ahead:
                future.cancel()
            readers.shutdown(cancel_futures=True)


def read_sample(sample: Sample, size: Size, to_class: np.ndarray) -> tuple[Picture, np.ndarray | None]:
    """Read a sample's image for a decoder, and its mask as class indices, resized to ``size`` by nearest neighbour."""
    picture = read_picture(sample.image)
    if sample.mask is None:
        return picture, None
    ids = read_mask(sample.mask)
    if ids.shape != picture.size:
        raise InputError(
            f"{sample.mask} is {ids.shape[1]} x {ids.shape[0]} pixels (width x height), its image {sample.image} "
            f"is {picture.size[1]} x {picture.size[0]}: they must be equal. Make the mask at the image's size.")
    mask = to_class[ids]
    wrong = mask == INVALID
    if wrong.any():
        y, x = np.unravel_index(int(wrong.argmax()), wrong.shape)
        raise InputError(
            f"{sample.mask} holds the class id {ids[y, x]} (first at x={x}, y={y}; {np.count_nonzero(wrong)} "
            f"pixels are outside the table). Allowed ids: {_ranges(np.flatnonzero(to_class != INVALID))}. "
            "Correct the mask or the table of classes.")
    if mask.shape != size:
        mask = np.array(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))
    return picture, mask


def _decode_batch(samples: Sequence[Sample], reads: list[Future[tuple[Picture, np.ndarray | None]]],
                  decoder: Decoder) -> tuple[list[Decoded], InputError | None]:
    """What comes before the first bad file, and what is wrong with that."""
    pictures: list[Picture] = []
    masks: list[np.ndarray | None] = []
    problem = None
    for read in reads:
        try:
            picture, mask = read.result()
        except InputError as error:
            problem = error
            break
        pictures.append(picture)
        masks.append(mask)
    if not pictures:
        return [], problem
    try:
        images = decoder.decode(pictures)
    except RuntimeError:
        # Pillow either names the bad file, or can read what the decoder cannot.
        done: list[Picture] = []
        for sample, _ in zip(samples, pictures, strict=False):
            try:
                pixels = read_image(sample.image)
                done.append(Picture(pixels, (pixels.shape[0], pixels.shape[1])))
            except InputError as error:
                problem = error
                break
        else:
            _log.info("Decoded by Pillow, since the faster decoder refused one of them: %s.",
                      ", ".join(str(sample.image) for sample in samples[: len(done)]))
        images = decoder.decode(done) if done else []
    return list(zip(images, masks[: len(images)], strict=True)), problem


def _taken(future: Future[tuple[list[Decoded], InputError | None]]) -> Iterator[Decoded]:
    decoded, problem = future.result()
    yield from decoded
    if problem is not None:
        raise problem


def _by_pillow(content: np.ndarray) -> np.ndarray:
    try:
        return np.array(Image.open(io.BytesIO(content.tobytes())).convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise RuntimeError(str(error)) from error


def _cores() -> int:
    return min(32, usable_cores())


def _ranges(values: np.ndarray) -> str:
    """``0-11, 255`` for sorted values."""
    runs = np.split(values, np.flatnonzero(np.diff(values) != 1) + 1)
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
