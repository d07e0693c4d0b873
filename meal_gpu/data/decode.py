"""From files to pixels of the wanted size: files are read and checked on some threads, and decoded batch by batch.

Two decoders have one interface: `data.dali.DaliDecoder` and, where there is no DALI, `TorchvisionDecoder`. Both get the
checked contents of files, because neither names the file that it cannot decode, and DALI stops the whole batch.
Masks are always decoded by Pillow: their values are ids, and DALI looks up palettes.
"""

import io
import logging
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image

from ..errors import InputError
from ..grid import Size
from ..machine.limits import usable_cores
from .datasets import Sample
from .fit import fitted, fitted_mask, inner_size
from .imagefile import Picture, read_image, read_picture
from .maskfile import Palette, nearest, read_classes
from .rules import Rules
from .tiles import Sheets, inside

_log = logging.getLogger("meal_gpu")


@dataclass(frozen=True)
class Source:
    """What a file was before it was decoded."""

    size: Size
    """(height, width) as it is read."""
    turn: int = 1
    """The EXIF orientation that the image file has, applied or not."""
    palette: Palette = field(default_factory=dict)
    """Of a mask whose palette says nothing of the classes: colours of the indices that were taken for ids."""


class Decoded(NamedTuple):
    image: np.ndarray
    """uint8 ``[H, W, 3]``"""
    mask: np.ndarray | None
    """uint8 ``[H, W]`` of class indices and `VOID`."""
    source: Source


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


def decode_all(samples: Sequence[Sample], size: Size, rules: Rules, decoder: Decoder) -> Iterator[Decoded]:
    """Decode samples in their order; raises the `InputError` of a bad one at its turn, after all samples before it."""
    each = decode_each(samples, size, rules, decoder)
    try:
        for decoded in each:
            if isinstance(decoded, InputError):
                raise decoded
            yield decoded
    finally:
        each.close()


def decode_each(samples: Sequence[Sample], size: Size, rules: Rules,
                decoder: Decoder) -> Generator[Decoded | InputError, None, None]:
    """Decode samples in their order on all cores, a few batches ahead of the consumer.

    For a bad one its `InputError`: an unreadable file, a mask of another size than its image, an id that is no class.
    """
    sheets = Sheets(samples, rules)
    with ThreadPoolExecutor(_cores(), "read") as readers, ThreadPoolExecutor(1, "decode") as turns:
        ahead: deque[Future[list[Decoded | InputError]]] = deque()
        try:
            for first in range(0, len(samples), decoder.batch):
                part = samples[first : first + decoder.batch]
                reads = [readers.submit(read_sample, sample, size, rules, sheets) for sample in part]
                ahead.append(turns.submit(_decode_batch, part, reads, rules, decoder))
                if len(ahead) > 2:
                    yield from ahead.popleft().result()
            while ahead:
                yield from ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
            readers.shutdown(cancel_futures=True)


class Read(NamedTuple):
    picture: Picture
    mask: np.ndarray | None
    source: Source


def read_sample(sample: Sample, size: Size, rules: Rules, sheets: Sheets | None = None) -> Read:
    """Read a sample's image for a decoder, and its mask as class indices, resized to ``size`` by nearest neighbour.

    A tile is cut from ``sheets``.
    """
    if sample.box is not None:
        pixels, labels, turn = (sheets or Sheets([sample], rules)).read(sample)
        y0, x0, y1, x1 = inside(sample)
        source = Source((y1 - y0, x1 - x0), turn, labels.palette if labels is not None else {})
        mask = None if labels is None else nearest(labels.classes, size)
        return Read(Picture(pixels, (pixels.shape[0], pixels.shape[1]), turn), mask, source)
    picture = read_picture(sample.image, rules.reading)
    source_size = picture.size
    fit = rules.resize == "fit" and inner_size(source_size, size) != size
    if fit:
        pixels = fitted(read_image(sample.image, rules.reading), size)
        picture = Picture(pixels, size, picture.turn)
    if sample.mask is None:
        return Read(picture, None, Source(source_size, picture.turn))
    labels = read_classes(sample.mask, rules)
    shape = labels.classes.shape
    if shape != source_size:
        raise InputError(
            f"{sample.mask} is {shape[1]} x {shape[0]} pixels (width x height), its image {sample.image} "
            f"is {source_size[1]} x {source_size[0]}: they must be equal. "
            f"{_other_reading(shape, source_size, picture.turn, rules)}")
    mask = fitted_mask(labels.classes, size) if fit else nearest(labels.classes, size)
    return Read(picture, mask, Source(source_size, picture.turn, labels.palette))


def _other_reading(shape: tuple[int, ...], size: Size, turn: int, rules: Rules) -> str:
    if turn < 5 or shape != size[::-1]:
        return "Make the mask at the image's size."
    now, other = ("apply", "ignore") if rules.reading.exif == "apply" else ("ignore", "apply")
    return (f"The image's EXIF orientation is {turn}, a quarter turn, and data.exif is '{now}'; sizes agree "
            f"with data.exif: {other}, if the mask was drawn so.")


def _decode_batch(samples: Sequence[Sample], reads: list[Future[Read]], rules: Rules,
                  decoder: Decoder) -> list[Decoded | InputError]:
    found: list[Read | InputError] = []
    for future in reads:
        try:
            found.append(future.result())
        except InputError as error:
            found.append(error)
    pictures = [read.picture for read in found if not isinstance(read, InputError)]
    if not pictures:
        return [read for read in found if isinstance(read, InputError)]
    try:
        images = decoder.decode(pictures)
    except RuntimeError:
        # Pillow either names the bad file, or can read what the decoder cannot.
        pictures, read_again = [], []
        for i, (sample, read) in enumerate(zip(samples, found, strict=True)):
            if isinstance(read, InputError):
                continue
            try:
                fit = read.picture.content.ndim == 3  # decoded already
                pixels = read.picture.content if fit else read_image(sample.image, rules.reading)
                pictures.append(Picture(pixels, (pixels.shape[0], pixels.shape[1])))
                read_again.append(str(sample.image))
            except InputError as error:
                found[i] = error
        if not any(isinstance(read, InputError) for read in found):
            _log.info("Decoded by Pillow, since the faster decoder refused one of them: %s.", ", ".join(read_again))
        images = decoder.decode(pictures) if pictures else []
    decoded = iter(images)
    return [read if isinstance(read, InputError) else Decoded(next(decoded), read.mask, read.source)
            for read in found]


def _by_pillow(content: np.ndarray) -> np.ndarray:
    try:
        return np.array(Image.open(io.BytesIO(content.tobytes())).convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise RuntimeError(str(error)) from error


def _cores() -> int:
    return min(32, usable_cores())
