"""The stop set: a few images of the pool whose predictions every round leaves behind, so that rounds can be compared.

They are drawn once per seed, of the images that somebody can still be asked about after the first labels, and stay the
same to the end, whatever is labelled of them later: what changes between two rounds is then the network alone.
Predictions are the classes of highest logits, as many as the network gives (of every fourth row and column by default).
"""

import logging
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.classes import VOID
from ..data.fit import filled
from ..files import own_directory
from ..network.features import Features, logits_of
from ..network.fold import for_scoring
from ..network.interface import Network
from ..randomness import generator
from ..records import STOP_SET, Record, write_arrays
from .experiment import Experiment

_log = logging.getLogger("meal_gpu")

IMAGES, SHARE, FEW = 32, 4, 4
"""At most so many (on CamVid a twelfth of a pass over the pool), and of a small pool a quarter, but not fewer than
`FEW`."""


def drawn_before(records: Sequence[Record], n_images: int) -> list[int]:
    """The images that a run's rounds say; empty where none does, as in runs of before."""
    for record in records:
        held = record.get("stop_set")
        images = held.get("images") if isinstance(held, dict) else None
        if isinstance(images, list) and images and all(type(i) is int and 0 <= i < n_images for i in images):
            return images
    return []


def draw(experiment: Experiment, seed: int, first: Sequence[Record]) -> list[int]:
    """Images of the pool that a run began with, in rising order; ``first``: the patches of round 0.

    Not those whose patches are all labelled by then, or hold nothing.
    """
    dataset, cells = experiment.stores.dataset, experiment.grid.cells
    open_ = torch.ones(len(experiment.train.names), cells, dtype=torch.bool)
    if experiment.askable.blank is not None:
        open_ &= ~experiment.askable.blank
    open_.view(-1)[[patch["id"] for patch in first]] = False
    began = dataset.first or len(open_)
    order = torch.randperm(began, generator=generator(seed, 0, "stop set")).tolist()
    there = open_.any(1).tolist()
    return sorted([i for i in order if there[i]][: min(IMAGES, max(began // SHARE, FEW))])


def keep(experiment: Experiment, model: Network, images: Sequence[int], k: int, directory: Path) -> Record:
    """Predict what is there of the images, write it down for round k, and say it as the round's record does.

    ``images``: those whose predictions were written; ``predictions``: the CRC-32 of these.
    """
    gone = experiment.stores.dataset.gone
    there = [i for i in images if experiment.train.names[i] not in gone]
    maps = predictions(experiment, model, there)
    own_directory(directory / "stop-set")
    file = stop_set_file(directory, k)
    if file.is_dir() and not file.is_symlink():
        _log.warning("%s is a directory: the predictions of round %d are not kept, and advice when to stop will lack "
                     "them.", file, k)
    else:
        write_arrays(file, {"images": np.array(there, np.int64), "predictions": maps})
    return {"images": there, "predictions": zlib.crc32(maps.tobytes())}


def stop_set_file(directory: Path, k: int) -> Path:
    """What the network of round k says of the stop set, below a seed's directory."""
    return directory / STOP_SET.format(k)


@torch.no_grad()
def predictions(experiment: Experiment, model: Network, images: Sequence[int]) -> np.ndarray:
    """Class indices uint8 ``[images * frames per image, h, w]`` at the size of the logits; `VOID` beside an image."""
    features, network = experiment.train.features(model), for_scoring(model, experiment.backend)
    per = features.frames.per_image
    frames = (torch.tensor(images, dtype=torch.int64)[:, None] * per + torch.arange(per)).flatten()
    found = []
    for maps in features.some(network, frames):
        logits, _ = logits_of(network, maps, features.upsampling, experiment.backend)
        found.append(logits.argmax(1).to(torch.uint8))
    said = torch.cat(found).cpu() if found else torch.empty(0, *features.logits_size, dtype=torch.uint8)
    beside = _beside(experiment, features, frames)
    return (said if beside is None else said.masked_fill(beside, VOID)).numpy()


def _beside(experiment: Experiment, features: Features, frames: Tensor) -> Tensor | None:
    """bool ``[frames, h, w]``: what no image fills, where images keep their aspect ratio or are tiles."""
    extents, seen = experiment.askable.extents, features.frames
    if extents is None:
        return None
    ends = extents if seen.context == "image" else filled(extents, seen.images_grid).reshape(-1, 2)
    over = [_places(pixels, cells, features.align_corners)[None] > torch.from_numpy(ends[frames, axis, None]) - 0.5
            for axis, (pixels, cells) in enumerate(zip((seen.grid.height, seen.grid.width), features.logits_size,
                                                       strict=True))]
    return over[0][:, :, None] | over[1][:, None]


def _places(pixels: int, cells: int, align_corners: bool) -> Tensor:
    """Where the centres of a map's cells lie among pixels, float64 ``[cells]``."""
    at = torch.arange(cells, dtype=torch.float64)
    return at * ((pixels - 1) / max(cells - 1, 1)) if align_corners else (at + 0.5) * (pixels / cells) - 0.5
