"""Who labels: the masks of the data set (simulated), or people, through a folder."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.datasets import INVALID
from ..data.frames import as_tensor
from ..data.imagefile import read_mask
from ..errors import InputError, LabelsMissingError
from ..files import write_atomic
from ..grid import Grid


class Oracle(Protocol):
    def label(self, round_: int, ids: Tensor) -> Tensor:
        """Labels uint8 ``[n, patch_height, patch_width]`` (255 = void) of the patches that a round reveals.

        Raises `LabelsMissingError` where they have not come yet.
        """
        ...


class SimulatedOracle:
    """Reveals what the data set's masks already hold (paper, section 4.1)."""

    def __init__(self, masks: np.ndarray, grid: Grid) -> None:
        self.masks, self.grid = as_tensor(masks), grid

    def label(self, round_: int, ids: Tensor) -> Tensor:
        labels = torch.empty(len(ids), self.grid.patch_height, self.grid.patch_width, dtype=torch.uint8)
        for i, patch in enumerate(ids.tolist()):
            image, cell = self.grid.split(patch)
            y0, x0, y1, x1 = self.grid.box(cell)
            labels[i] = self.masks[image, y0:y1, x0:x1]
        return labels


class PeopleOracle:
    """A folder per round: ``query.json`` and the patches as PNGs go out, masks of the same names come in.

    ``to-label/round-03/images/0016E5_00001_r2_c0.png`` is labelled by
    ``to-label/round-03/masks/0016E5_00001_r2_c0.png``: 8-bit, of the patch's size, holding class ids as the data
    set's own masks do.
    """

    def __init__(self, directory: Path, images: np.ndarray, names: Sequence[str], grid: Grid,
                 to_class: np.ndarray) -> None:
        self.directory, self.images, self.names, self.grid, self.to_class = directory, images, names, grid, to_class

    def label(self, round_: int, ids: Tensor) -> Tensor:
        folder = self.directory / "to-label" / f"round-{round_:02d}"
        patches = [self.grid.describe(patch, self.names) for patch in ids.tolist()]
        files = [f"{Path(str(p['image'])).as_posix().replace('/', '_')}_r{p['row']}_c{p['col']}.png" for p in patches]
        query = [{"id": patch, **where, "file": file}
                 for patch, where, file in zip(ids.tolist(), patches, files, strict=True)]
        self._ask(folder, query, round_)
        missing = [file for file in files if not (folder / "masks" / file).is_file()]
        if missing:
            raise LabelsMissingError(folder / "masks", len(missing), len(files))
        return torch.from_numpy(np.stack([self._read(folder / "masks" / file) for file in files]))

    def _ask(self, folder: Path, query: list[dict[str, Any]], round_: int) -> None:
        """Write the query; once written it stays as it is."""
        if (folder / "query.json").is_file():
            if json.loads((folder / "query.json").read_bytes()) != query:
                raise InputError(f"{folder / 'query.json'} asks for other patches than round {round_} of this run: "
                                 "another run wrote it, or the images of the data set have changed since. Restore "
                                 "those images, or move the folder away to be asked again.")
            return
        (folder / "masks").mkdir(parents=True, exist_ok=True)
        for patch in query:
            image, cell = self.grid.split(patch["id"])
            y0, x0, y1, x1 = self.grid.box(cell)
            crop = Image.fromarray(np.asarray(self.images[image, y0:y1, x0:x1]))
            write_atomic(folder / "images" / patch["file"], partial(crop.save, format="PNG"))
        write_atomic(folder / "query.json", json.dumps(query, indent=1).encode())

    def _read(self, file: Path) -> np.ndarray:
        ids = read_mask(file)
        if ids.shape != (self.grid.patch_height, self.grid.patch_width):
            raise InputError(f"{file} is {ids.shape[1]} x {ids.shape[0]} pixels (width x height), its patch "
                             f"{self.grid.patch_width} x {self.grid.patch_height}: they must be equal.")
        labels = self.to_class[ids]
        if (labels == INVALID).any():
            allowed = np.flatnonzero(self.to_class != INVALID).tolist()
            raise InputError(f"{file} holds the class id {ids[labels == INVALID][0]}. Allowed: {allowed}.")
        return labels
