"""The labels that a run was trained on, brought back to the pixels of the files that they are of."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..config import Config
from ..data.classes import VOID
from ..data.datasets import Dataset
from ..data.ingest import Stores
from ..data.listing import Sample
from ..data.maskfile import read_classes
from ..data.tiles import file_name
from ..engine.outputs import check_same_labels, ids_of
from ..errors import InputError
from ..journal import UNLABELLED, latest
from ..labelling.places import Place, place
from ..labelling.query import Item
from ..labelling.standing import Standing
from ..launch import oracle_of
from ..records import read_rounds
from ..timing import Progress

Own = Callable[[Sample, int, Place], np.ndarray | None]
"""A patch's labels as somebody made them, uint8 of its place's box; None where they are known as trained alone."""


@dataclass
class Masks:
    """Of files of which a patch is labelled: class indices, and `VOID` where nothing is."""

    masks: dict[str, np.ndarray] = field(default_factory=dict)
    """File's name -> uint8 ``[H, W]``."""
    files: dict[str, Sample] = field(default_factory=dict)
    rounds: int = 0
    patches: int = 0
    as_made: int = 0
    """Patches whose labels are those that somebody made, at the file's size; the others are enlarged."""


def revealed(config: Config, stores: Stores, directory: Path, progress: Progress) -> Masks:
    """Replay a seed's finished rounds. Raises `InputError` where labels are gone, or not those trained on."""
    records = read_rounds(directory)
    if not records:
        raise InputError(f"{directory} has no finished round yet, so that nothing is labelled.")
    oracle, dataset, grid = oracle_of(config, stores, directory), stores.dataset, config.data.tiling()
    rules, found = dataset.rules(config.data), Masks(rounds=len(records))
    own = _people(directory, len(records)) if config.query.oracle == "people" else _nothing
    masks, seen = _Files(dataset, config), list[Callable[[], None]]()
    for record in records:
        labels = oracle.label(record["round"], ids_of(record["queried"]))
        check_same_labels(record, labels, len(dataset.class_names), directory, False)
        given = config.query.oracle == "simulated" or (record["round"] == 0 and dataset.given is not None)
        for patch, trained in zip(record["queried"], labels.numpy(), strict=True):
            image, cell = grid.split(patch["id"])
            sample = dataset.train[image]
            at = place(sample, cell, grid, rules)
            made = masks.cut(sample, at) if given else own(sample, patch["id"], at)
            seen.append(_put(found, sample, at, trained, made))
        progress("collect labels", record["round"] + 1, len(records))
    for pixels in seen:  # at last: a neighbour's box may hold pixels that the network saw of this patch
        pixels()
    return found


def _put(found: Masks, sample: Sample, at: Place, trained: np.ndarray, made: np.ndarray | None) -> Callable[[], None]:
    """A patch's labels into its file's mask. What is returned puts those trained on at the pixels that were seen."""
    name = file_name(sample)
    mask = found.masks.setdefault(name, np.full(at.size, VOID, np.uint8))
    found.files.setdefault(name, sample)
    fits = made is not None and np.array_equal(at.to_patch(made), trained)
    y0, x0, y1, x1 = at.box
    part = mask[y0:y1, x0:x1]
    labels = made if fits and made is not None else at.from_patch(trained)
    # Boxes of neighbours may share a row of pixels: what is void in the one may be labelled in the other.
    part[labels != VOID] = labels[labels != VOID]
    rows, cols = np.flatnonzero(at.rows >= 0), np.flatnonzero(at.cols >= 0)
    found.patches, found.as_made = found.patches + 1, found.as_made + fits
    return lambda: part.__setitem__(np.ix_(at.rows[rows], at.cols[cols]), trained[np.ix_(rows, cols)])


class _Files:
    """Masks of the data set's own, the last one that was read."""

    def __init__(self, dataset: Dataset, config: Config) -> None:
        self.rules, self.path, self.classes = dataset.rules(config.data), Path(), np.zeros((0, 0), np.uint8)

    def cut(self, sample: Sample, at: Place) -> np.ndarray | None:
        if sample.mask is None:
            return None
        if sample.mask != self.path:
            self.path, self.classes = sample.mask, read_classes(sample.mask, self.rules).classes
        y0, x0, y1, x1 = at.box
        return self.classes[y0:y1, x0:x1]


def _nothing(sample: Sample, patch: int, at: Place) -> np.ndarray | None:
    return None


def _people(directory: Path, rounds: int) -> Own:
    """What people drew, from their journal; with several people on one patch it may be none of theirs."""
    standing = Standing.read(directory)
    items: dict[int, Item] = {item.patch: item for query in standing.queries.values() for item in query.items
                              if query.round < rounds}

    def own(sample: Sample, patch: int, at: Place) -> np.ndarray | None:
        item = items.get(patch)
        lines = [] if item is None else [line for line in standing.lines.get(item.id, {}).values()
                                         if line.status != "skipped"]
        if item is None or not lines or item.original is None or item.original.box != at.box:
            return None
        labels = standing.labels(latest(lines), item)
        return np.where(labels == UNLABELLED, VOID, labels) if labels.shape == at.shape else None

    return own


