"""Predictions that were saved: one file of logits or probabilities per image, read one after another."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.frames import as_tensor
from ..data.listing import names_in
from ..errors import InputError, and_so_on, first_line
from ..grid import Size
from ..network.reading import Outputs, checked_outputs
from .network import Seen
from .passes import Read, Reading

SUFFIXES = (".npy", ".npz", ".pt")
CPU = torch.device("cpu")


class Saved:
    """A directory of ``NAME.npy``, ``NAME.npz`` or ``NAME.pt`` files.

    Each holds ``[classes, h, w]`` of one image, float16, float32 or float64, at any stride. A ``.npz``, and a dict in a
    ``.pt``, hold it as ``logits`` or ``probabilities``, and may hold maps ``[F, h', w']`` as ``features``. ``.npy``
    files are mapped, not read.

    Parameters
    ----------
    names
        Of the images, which the files are called after; by default the files say which images there are.
    """

    def __init__(self, directory: Path, names: Sequence[str] | None, outputs: Outputs) -> None:
        self.directory, self.outputs = directory, outputs
        files: dict[str, Path] = {}
        for name in names_in(directory, "predictions"):
            path = directory / name
            if path.suffix in SUFFIXES:
                if path.stem in files:
                    raise InputError(f"{files[path.stem]} and {path} are predictions of one image: remove one.")
                files[path.stem] = path
        if not files:
            raise InputError(f"{directory} holds no predictions: expected one file per image, ending in "
                             f"{', '.join(SUFFIXES)}.")
        self.names: Sequence[str] = tuple(names) if names is not None else tuple(sorted(files))
        # Images in folders are named by them as well: their files are called by the last part, or with _ between.
        found = [files.get(Path(name).name, files.get(name.replace("/", "_"))) for name in self.names]
        missing = [name for name, file in zip(self.names, found, strict=True) if file is None]
        if missing:
            raise InputError(f"{len(missing)} of {len(self.names)} images have no predictions in {directory}: "
                             f"{and_so_on(missing)}; files there are called "
                             f"like {next(iter(files.values())).name}.")
        self.files = [file for file in found if file is not None]
        if len(set(self.files)) != len(self.files):
            raise InputError(f"Several images share a file of {directory}: call files by the images' whole names, with "
                             "_ for /.")
        self.classes: int | None = None

    def __len__(self) -> int:
        return len(self.files)

    def read(self, i: int, features: bool) -> Seen:
        """Outputs ``[1, C, h, w]`` of an image, and its maps where ``features`` are needed."""
        file = self.files[i]
        held = _load(file)
        if isinstance(held, Mapping):
            keys = [key for key in ("logits", "probabilities") if key in held]
            if keys != [self.outputs]:
                raise InputError(f"{file} holds {', '.join(map(repr, held))}, and outputs is '{self.outputs}': that is "
                                 f"the name it must have there{f'; or give outputs={keys[0]!r}' if keys else ''}.")
            made, maps = held[self.outputs], held.get("features")
        else:
            made, maps = held, None
        if features and maps is None:
            raise InputError(f"{file} holds no 'features', maps [F, h, w], which this strategy embeds. Save them "
                             "beside the predictions in .npz files, or use strategy entropy or random.")
        made = checked_outputs(_tensor(made, file)[None], 1, self.outputs, self.classes, str(file))
        self.classes = made.shape[1]
        if not features:
            return Seen(made, None)
        maps = _tensor(maps, file)[None]
        if maps.ndim != 4 or not maps.is_floating_point():
            raise InputError(f"{file} holds features {list(maps.shape[1:])} of {maps.dtype}: maps are [F, h, w], "
                             "floating-point.")
        return Seen(made, maps)

    def size(self) -> Size:
        """Of the first image's outputs: the images' own, where these are at full resolution."""
        logits = self.read(0, False).logits
        self.classes = None
        return logits.shape[2], logits.shape[3]


class Replayed(Read):
    """A pass over saved predictions."""

    def __init__(self, saved: Saved, reading: Reading, features: bool) -> None:
        super().__init__(reading, len(saved), 1, CPU)
        self.saved, self.features = saved, features

    def scan(self) -> Iterator[Seen]:
        for i in range(len(self.saved)):
            yield self.saved.read(i, self.features)

    def read(self, index: list[int]) -> Seen:
        return self.saved.read(index[0], False)


def _load(file: Path) -> Any:
    """What a file holds; code in it is not run."""
    try:
        if file.suffix == ".pt":
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        loaded = np.load(file, mmap_mode="r" if file.suffix == ".npy" else None, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded:
                known = [key for key in loaded.files if key in ("logits", "probabilities", "features")]
                return {key: loaded[key] for key in known} or dict.fromkeys(loaded.files)
        return loaded
    except Exception as error:  # whatever the two libraries raise for a damaged file
        raise InputError(f"{file} cannot be read: {first_line(error)}. Save it again with numpy.save, numpy.savez or "
                         "torch.save.") from None


def _tensor(held: Any, file: Path) -> Tensor:
    if isinstance(held, np.ndarray):
        if held.dtype.kind != "f" or not held.dtype.isnative:
            raise InputError(f"{file} holds {held.dtype}: give float16, float32 or float64.")
        held = as_tensor(held)
    if not isinstance(held, Tensor):
        raise InputError(f"{file} holds a {type(held).__name__}: give an array [classes, h, w].")
    return held
