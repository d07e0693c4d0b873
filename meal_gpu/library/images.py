"""The images of a pool in the forms in which people have them, as batches for a network."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..data.decode import decode_all, open_decoder
from ..data.frames import as_tensor
from ..data.imagefile import IMAGE_SUFFIXES, read_picture
from ..data.listing import Sample, files_in, left_out
from ..data.pixels import normalise
from ..data.rules import Rules
from ..data.store import Store, release
from ..errors import InputError
from ..grid import Size
from ..machine.backend import find_loader
from ..paths import expand

_log = logging.getLogger("meal_gpu")
_PLAIN = Rules(np.zeros(256, np.uint8))
"""Files are read as in a data set without masks."""
Prepare = Callable[[Tensor], Tensor]
"""uint8 RGB ``[B, H, W, 3]`` on the network's device → what it is given."""
PREPARED: dict[str, Prepare] = {
    "imagenet": normalise,
    "unit": lambda pixels: pixels.permute(0, 3, 1, 2).float().div_(255),
    "bytes": lambda pixels: pixels.permute(0, 3, 1, 2).float(),
}
"""By name: ImageNet's mean and deviation, 0 … 1, 0 … 255."""
KEYS = ("image", "pixel_values", "img", "input", "inputs")
"""Under which a data set's items that are dicts hold the image."""


class Images(Protocol):
    """Images of one size, in the order of a pool."""

    names: Sequence[str]
    size: Size
    """(height, width) in pixels, which the grid is on."""

    def __len__(self) -> int: ...

    def scan(self, batch: int, device: torch.device) -> Iterator[Tensor]:
        """All of them in their order, ``batch`` at a time, as a network is given them, on the device."""
        ...

    def read(self, index: list[int], device: torch.device) -> Tensor:
        """Some of them."""
        ...


class Pixels:
    """uint8 ``[N, H, W, 3]``: a tensor on any device, an array, or a store's mapped file."""

    def __init__(self, images: Tensor | np.ndarray, names: Sequence[str] | None, prepare: Prepare) -> None:
        self.images = images
        self.names = _names(names, len(images))
        self.size: Size = (images.shape[1], images.shape[2])
        self.prepare = prepare

    def __len__(self) -> int:
        return len(self.images)

    def scan(self, batch: int, device: torch.device) -> Iterator[Tensor]:
        for first in range(0, len(self), batch):
            last = min(first + batch, len(self))
            yield self._prepared(self.images[first:last], device)
            if isinstance(self.images, np.memmap):
                release(self.images, first, last)

    def read(self, index: list[int], device: torch.device) -> Tensor:
        return self._prepared(self.images[index], device)

    def _prepared(self, part: Tensor | np.ndarray, device: torch.device) -> Tensor:
        pixels = as_tensor(part) if isinstance(part, np.ndarray) else part
        return self.prepare(pixels.to(device))


class Ready:
    """Float ``[N, …, H, W]``: the network's input itself."""

    def __init__(self, images: Tensor, names: Sequence[str] | None) -> None:
        self.images, self.names = images, _names(names, len(images))
        self.size: Size = (images.shape[-2], images.shape[-1])

    def __len__(self) -> int:
        return len(self.images)

    def scan(self, batch: int, device: torch.device) -> Iterator[Tensor]:
        for part in self.images.split(batch):
            yield part.to(device)

    def read(self, index: list[int], device: torch.device) -> Tensor:
        return self.images[torch.tensor(index, device=self.images.device)].to(device)


class Items:
    """A data set of PyTorch's kind: ``len()`` and items by number, each an image or one that begins with it."""

    def __init__(self, items: Any, names: Sequence[str] | None) -> None:
        self.items, self.names = items, _names(names, len(items))
        if not len(items):
            raise InputError("images is a data set without items.")
        self.first = self._image(0)
        self.size: Size = (self.first.shape[-2], self.first.shape[-1])

    def __len__(self) -> int:
        return len(self.items)

    def scan(self, batch: int, device: torch.device) -> Iterator[Tensor]:
        for first in range(0, len(self), batch):
            yield self.read(list(range(first, min(first + batch, len(self)))), device)

    def read(self, index: list[int], device: torch.device) -> Tensor:
        return torch.stack([self._checked(i) for i in index]).to(device)

    def _checked(self, i: int) -> Tensor:
        image = self._image(i)
        if image.shape != self.first.shape or image.dtype != self.first.dtype:
            raise InputError(f"Item {i} of images is {image.dtype} {list(image.shape)} and item 0 "
                             f"{self.first.dtype} {list(self.first.shape)}: a grid needs images of one size. Resize "
                             "them in the data set.")
        return image

    def _image(self, i: int) -> Tensor:
        item = self.items[i]
        if isinstance(item, Mapping):
            item = next((item[key] for key in KEYS if key in item), None)
        elif isinstance(item, (tuple, list)) and len(item):
            item = item[0]
        if isinstance(item, np.ndarray):
            item = torch.from_numpy(item)
        if not isinstance(item, Tensor) or item.ndim < 3 or not item.is_floating_point():
            given = f"{item.dtype} {list(item.shape)}" if isinstance(item, Tensor) else f"a {type(item).__name__}"
            raise InputError(f"Item {i} of images gives {given}: give the network's input, floating-point [3, H, W], "
                             f"alone, first in a tuple, or in a dict as {', '.join(map(repr, KEYS))}.")
        return item


class Files:
    """Image files of a directory, decoded as `meal-gpu ingest` does whenever they are looked at; nothing is kept."""

    def __init__(self, directory: Path, size: Size | None, prepare: Prepare) -> None:
        files = files_in(directory, "images", IMAGE_SUFFIXES)
        if not files:
            raise InputError(f"{directory} holds no images: expected files ending in {', '.join(IMAGE_SUFFIXES)}.")
        for line in left_out(directory, files.values(), "images"):
            _log.info("%s", line)
        self.samples = [Sample(name, path, None) for name, path in files.items()]
        self.names: Sequence[str] = tuple(files)
        self.size = size or read_picture(self.samples[0].image).size
        self.prepare = prepare
        self._decoder = open_decoder(find_loader("auto")[0], self.size)
        self._told = False

    def __len__(self) -> int:
        return len(self.samples)

    def scan(self, batch: int, device: torch.device) -> Iterator[Tensor]:
        part: list[np.ndarray] = []
        others = 0
        for i, decoded in enumerate(decode_all(self.samples, self.size, _PLAIN, self._decoder)):
            part.append(decoded.image)
            others += decoded.source.size != self.size
            if len(part) == batch or i + 1 == len(self.samples):
                yield self.prepare(torch.from_numpy(np.stack(part)).to(device))
                part = []
        if others and not self._told:
            self._told = True
            _log.info("%d of %d images were resized to %d x %d pixels (height x width).", others, len(self), *self.size)

    def read(self, index: list[int], device: torch.device) -> Tensor:
        chosen = decode_all([self.samples[i] for i in index], self.size, _PLAIN, self._decoder)
        return self.prepare(torch.from_numpy(np.stack([decoded.image for decoded in chosen])).to(device))


def prepared_by(prepare: Prepare | str | None) -> Prepare:
    """A name of `PREPARED`, or a function; ImageNet's mean and deviation for None."""
    if isinstance(prepare, str):
        if prepare not in PREPARED:
            raise InputError(f"prepare is '{prepare}': give {', '.join(map(repr, PREPARED))}, or a function of uint8 "
                             "RGB [B, H, W, 3].")
        return PREPARED[prepare]
    return prepare or normalise


def open_images(images: Any, names: Sequence[str] | None, size: Size | None, prepare: Prepare | str | None) -> Images:
    """What somebody gave as images; raises `InputError` for what is none."""
    prepare = prepared_by(prepare)
    if isinstance(images, (str, Path)):
        path = expand(images)
        if not (path / "manifest.json").is_file():
            return Files(path, size, prepare)
        try:
            images = Store.open(path)
        except (OSError, ValueError) as error:
            raise InputError(f"images is the store {path}, which cannot be opened: {error}.") from None
    if isinstance(images, Store):
        images, names = images.images, images.names
    found: Images
    if isinstance(images, (Tensor, np.ndarray)):
        given = f"images are {images.dtype} {list(images.shape)}"
        if not len(images):
            raise InputError(f"{given}: there is none.")
        if images.dtype in (torch.uint8, np.uint8):
            if images.ndim != 4 or images.shape[3] != 3:
                raise InputError(f"{given}: give uint8 RGB as [N, H, W, 3], or the network's input as floating-point "
                                 "[N, 3, H, W].")
            found = Pixels(images, names, prepare)
        else:
            ready = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
            if ready.ndim < 4 or not ready.is_floating_point():
                raise InputError(f"{given}: give the network's input as floating-point [N, 3, H, W], or uint8 RGB as "
                                 "[N, H, W, 3].")
            found = Ready(ready, names)
    elif hasattr(images, "__getitem__") and hasattr(images, "__len__"):
        found = Items(images, names)
    else:
        raise InputError(f"images is a {type(images).__name__}: give a directory of image files, a store, a tensor "
                         "(uint8 [N, H, W, 3], or the network's input [N, 3, H, W]) or a data set with len() and "
                         "items by number. What only iterates has no numbers to ask for.")
    if size is not None and found.size != tuple(size):
        raise InputError(f"size is {list(size)} and the images have {list(found.size)}: only files are resized.")
    return found


def _names(names: Sequence[str] | None, n: int) -> Sequence[str]:
    if names is None:
        return tuple(map(str, range(n)))
    if len(names) != n:
        raise InputError(f"{len(names)} names for {n} images: give one each, or none.")
    return tuple(names)
