"""Who labels: the masks of the data set (simulated), or people, through a folder."""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.census import share
from ..data.classes import VOID
from ..data.frames import as_tensor
from ..data.listing import Sample
from ..data.maskfile import read_classes
from ..data.rules import Rules
from ..data.store import compare
from ..errors import InputError, LabelsMissingError
from ..files import own_directory, parse_json, read_own, write_atomic
from ..grid import Grid
from .classfile import FILE, check_table, write_table
from .outputs import find

_log = logging.getLogger("meal_gpu")


class Oracle(Protocol):
    def label(self, round_: int, ids: Tensor) -> Tensor:
        """Labels uint8 ``[n, patch_height, patch_width]`` (255 = void) of the patches that a round reveals.

        Raises `LabelsMissingError` where they have not come yet.
        """
        ...


class SimulatedOracle:
    """Reveals what the data set's masks already hold (paper, section 4.1)."""

    def __init__(self, masks: np.ndarray, grid: Grid) -> None:
        self.mapped, self.masks, self.grid = masks, as_tensor(masks), grid

    def label(self, round_: int, ids: Tensor) -> Tensor:
        labels = torch.empty(len(ids), self.grid.patch_height, self.grid.patch_width, dtype=torch.uint8)
        for i, patch in enumerate(ids.tolist()):
            image, cell = self.grid.split(patch)
            y0, x0, y1, x1 = self.grid.box(cell)
            compare(self.mapped, image, image + 1)
            labels[i] = self.masks[image, y0:y1, x0:x1]
        return labels


class PeopleOracle:
    """A folder per round: ``query.json`` and the patches as PNGs go out, masks of the same names come in.

    ``to-label/round-03/images/0016E5_00001_r2_c0.png`` is labelled by
    ``to-label/round-03/masks/0016E5_00001_r2_c0.png``: 8-bit, of the patch's size, holding class ids as the data
    set's own masks do. ``classes.json`` beside ``query.json`` says which those are: tools number classes in their own
    ways, and ids that are shifted by one are ids all the same.
    """

    def __init__(self, directory: Path, images: np.ndarray, samples: Sequence[Sample], grid: Grid,
                 rules: Rules) -> None:
        self.directory, self.images, self.samples, self.grid, self.rules = directory, images, samples, grid, rules
        self._counts = np.zeros(256, np.int64)  # of all labels so far

    def label(self, round_: int, ids: Tensor) -> Tensor:
        folder = self.directory / "to-label" / f"round-{round_:02d}"
        patches = [find(patch, self.grid, self.samples) for patch in ids.tolist()]
        files = _file_names(patches)
        query = [{"id": patch, **where, "file": file}
                 for patch, where, file in zip(ids.tolist(), patches, files, strict=True)]
        self._ask(folder, query, round_)
        missing = [file for file in files if not (folder / "masks" / file).is_file()]
        if missing:
            raise LabelsMissingError(folder / "masks", len(missing), len(files))
        check_table(folder, self.rules)
        labels = np.stack([self._read(folder / "masks" / file) for file in files])
        self._tell(round_, labels)
        return torch.from_numpy(labels)

    def _tell(self, round_: int, labels: np.ndarray) -> None:
        """Counts per class, before anything is trained on them; a class whose share jumps is named."""
        now, before, names = np.bincount(labels.ravel(), minlength=256), self._counts, self.rules.class_names
        there = [i for i in range(len(names)) if now[i]]
        listed = [f"{names[i]} {share(int(now[i]), labels.size)}" for i in there]
        listed += [f"void {share(int(now[VOID]), labels.size)}"] if now[VOID] else []
        _log.info("Labels of round %d: %s.", round_, ", ".join(listed))
        void = np.flatnonzero(self.rules.to_class == VOID).tolist()
        if len(names) > 1 and there == [0] and now[VOID]:
            _log.warning("The masks of round %d hold only %s and void (%s). Brushes write 0 and 255: if another class "
                         "is meant, correct the masks by %s.", round_, names[0], void, self._table(round_))
        if before.sum():
            for i, name in enumerate(names):
                old, new = before[i] / before.sum(), now[i] / now.sum()
                if abs(new - old) > 0.25:
                    _log.warning("The share of %s jumps from %.0f %% of all labels before to %.0f %% in round %d: "
                                 "compare the tool's class numbers with %s.", name, 100 * old, 100 * new, round_,
                                 self._table(round_))
        self._counts = before + now

    def _table(self, round_: int) -> Path:
        return self.directory / "to-label" / f"round-{round_:02d}" / FILE

    def _ask(self, folder: Path, query: list[dict[str, Any]], round_: int) -> None:
        """Write the query; once written it stays as it is."""
        if os.path.lexists(folder / "query.json"):
            if self._asked(folder / "query.json") != query:
                raise InputError(f"{folder / 'query.json'} asks for other patches than round {round_} of this run: "
                                 "another run wrote it, or the images of the data set have changed since. Restore "
                                 "those images, or move the folder away to be asked again.")
            return
        for place in (self.directory / "to-label", folder, folder / "images"):
            own_directory(place)
        (folder / "masks").mkdir(parents=True, exist_ok=True)
        for patch in query:
            image, cell = self.grid.split(patch["id"])
            y0, x0, y1, x1 = self.grid.box(cell)
            compare(self.images, image, image + 1)
            crop = Image.fromarray(np.asarray(self.images[image, y0:y1, x0:x1]))
            write_atomic(folder / "images" / patch["file"], partial(crop.save, format="PNG"))
        write_table(folder, self.rules)
        write_atomic(folder / "query.json", json.dumps(query, indent=1).encode())

    def _asked(self, file: Path) -> Any:
        try:
            return parse_json(read_own(file))
        except ValueError as error:
            raise InputError(f"{file} is damaged ({error}). Remove it: --resume writes it again.") from None

    def _read(self, file: Path) -> np.ndarray:
        labels = read_classes(file, self.rules).classes
        if labels.shape != (self.grid.patch_height, self.grid.patch_width):
            raise InputError(f"{file} is {labels.shape[1]} x {labels.shape[0]} pixels (width x height), its patch "
                             f"{self.grid.patch_width} x {self.grid.patch_height}: they must be equal.")
        return labels


def _file_names(patches: list[dict[str, Any]]) -> list[str]:
    """One per patch: its image's name, row and column; with a digest of the name where it is too long or not alone."""
    plain = [Path(str(patch["image"])).as_posix().replace("/", "_") for patch in patches]
    ends = [f"_r{patch['row']}_c{patch['col']}.png" for patch in patches]
    images = {(stem, str(patch["image"])) for stem, patch in zip(plain, patches, strict=True)}
    twice = Counter(stem for stem, _ in images)
    files = []
    for stem, end, patch in zip(plain, ends, patches, strict=True):
        if len(stem.encode()) > 200 or twice[stem] > 1:
            digest = hashlib.blake2b(str(patch["image"]).encode(), digest_size=4).hexdigest()
            stem = f"{stem.encode()[:190].decode(errors='ignore')}_{digest}"
        files.append(stem + end)
    return files
