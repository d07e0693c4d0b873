"""A config for a folder that was looked at: sizes, grid, and a budget that fits the pool, each with its reason."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from ..config import DataConfig
from ..data.datasets import Dataset, open_dataset
from ..data.fit import blank_patches, extents
from ..data.survey import Survey
from ..data.tiles import inside
from ..errors import InputError
from ..grid import Size

MOST_PIXELS = 1_200_000
"""Of an image as the network sees it: more is reduced by a whole number."""
LARGE = 16_000_000
"""Pixels of a file that is cut into tiles instead: reduced so far, nothing would be left to see."""
TILE = 1024
"""Pixels of a tile's side."""
SMALLEST = 32
"""Pixels of a patch's side."""
FEWEST = 5
"""Labelled images of which some are held out for validation."""


@dataclass
class Proposal:
    """Keys of the sections ``data`` and ``query``, and why each has its value, in words for a comment."""

    data: dict[str, Any] = field(default_factory=dict)
    query: dict[str, Any] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)


def propose(found: Survey) -> Proposal:
    """Raises `InputError` for a pool in which there is nothing to choose."""
    made = Proposal()
    made.data = {"dataset": "folder", **found.keys}
    _frame(made, found.sizes)
    made.data |= found.classes.keys
    _labels(made, found)
    made.told += found.told
    data = DataConfig.model_validate(made.data)
    dataset = open_dataset(data)
    made.told += [line for line in dataset.left_out if line not in made.told]
    _budget(made, data, dataset, found)
    return made


def _frame(made: Proposal, sizes: Sequence[Size]) -> None:
    """``image_size``, ``tile``, ``resize`` and ``grid``."""
    data, why, n = made.data, made.why, len(sizes)
    middle = (round(median(height for height, _ in sizes)), round(median(width for _, width in sizes)))
    different, large = len(set(sizes)), sum(height * width >= LARGE for height, width in sizes)
    listed = _words(sizes[0]) if different == 1 else f"{different} sizes, {_words(min(sizes))} to {_words(max(sizes))}"
    made.told.append(f"{n} images of {listed} pixels (width x height).")
    if large * 2 > n:
        size = (min(TILE, middle[0]), min(TILE, middle[1]))
        data["tile"] = list(size)
        why["tile"] = "pixels of a file: each is cut into images of this size, every pixel stays as it is"
        made.told.append(f"{large} of them have {LARGE // 10**6} megapixels or more: files are cut into tiles of "
                         f"{_words(size)} (data.tile).")
    else:
        by = next(k for k in range(1, 10_000) if (middle[0] // k) * (middle[1] // k) <= MOST_PIXELS)
        size = middle if by == 1 else (max(1, round(middle[0] / by)), max(1, round(middle[1] / by)))
        others = sum(not 1 / 1.1 <= height * size[1] / (width * size[0]) <= 1.1 for height, width in sizes)
        if others:
            data["resize"] = "fit"
            why["resize"] = f"{others} of {n} images have another shape: they keep it, the rest of the frame is void"
            made.told.append(f"{others} of them are not of the shape {_words(size)}: they are fitted into it, and keep "
                             "their own (data.resize: fit).")
        resized = sum(one != size for one in sizes)
        if resized:
            made.told.append(f"{resized} of them are resized to {_words(size)}; masks come back at the files' own "
                             "sizes (meal-gpu predict, meal-gpu export).")
    data["image_size"] = list(size)
    why["image_size"] = "height, width that the network sees; larger shows more, and takes as much longer"
    data["grid"] = [max(1, min(4, side // SMALLEST)) for side in size]
    rows, cols = data["grid"]
    why["grid"] = (f"{rows * cols} patches per image, of {size[0] // rows} x {size[1] // cols} pixels; one is labelled "
                   "in one go")
    data["context"] = "image"
    why["context"] = "the network sees the whole image around a patch"


def _labels(made: Proposal, found: Survey) -> None:
    """Who labels, and what validates."""
    data, n, labelled = made.data, len(found.samples), found.n_masks
    everything = labelled == n
    made.query["oracle"] = "simulated" if everything else "people"
    if everything:
        made.why["oracle"] = "all masks are there: they are revealed patch by patch, to see what labels are worth"
        data["absent_classes"] = "allow"
        made.why["absent_classes"] = "read off all masks: a rare class may be held out, or too small to be seen"
        made.told.append("All images have masks: the run only simulates that people label (query.oracle: simulated).")
    else:
        made.why["oracle"] = "a query goes out, and the run waits for its labels"
    if data["masks"] is None:
        made.why["masks"] = "nobody has labelled yet"
        made.told.append("There are no masks: people label the first images too.")
    elif not everything:
        data["unlabelled"] = "ask"
        made.why["unlabelled"] = "the run begins with the labels that are there, and asks for the rest"
        made.told.append(f"{labelled} of {n} images have masks: the run begins with what these label.")
    if found.n_val:
        made.told.append(f"{found.n_val} validation images in {data['val_images']}.")
    elif labelled >= FEWEST:
        data["val_fraction"] = 0.2
        made.why["val_fraction"] = "a fifth of the labelled images is held out, to measure on"
    else:
        made.why["val_images"] = "nothing to measure on: there will be no mIoU"
        made.told.append("There are no labelled images to spare for validation: no mIoU will be reported. Give some as "
                         "data.val_images and data.val_masks, or data.val_fraction once there are.")


def _budget(made: Proposal, data: DataConfig, dataset: Dataset, found: Survey) -> None:
    """How many patches to ask for, and how often."""
    cells, n, query = data.tiling().cells, len(dataset.train), made.query
    askable = n * cells - _blank(data, dataset, found)
    if dataset.given is not None:
        free = askable - len(dataset.given) * cells
    else:
        query["n_initial_images"] = 2
        made.why["n_initial_images"] = "random images that are labelled whole, to begin with"
        free = askable - 2 * cells
    if free < 1:
        raise InputError(f"There is nothing to choose: {n} images in the pool, and the first labels take all of them. "
                         "Give more images.")
    query["n_query"] = min(free, max(4, min(32, free // 32)))
    query["rounds"] = min(8, free // query["n_query"])
    query["n_informative"] = max(query["n_query"], min(200, free // 2))
    made.why["n_query"] = "patches asked for in each round"
    made.why["rounds"] = (f"queries after the first labels: {query['rounds'] * query['n_query']} patches in all, of "
                          f"{askable:,} in the pool")
    made.why["n_informative"] = "the most uncertain patches, of which the query is chosen"
    made.told.append(f"The pool: {n} images of {cells} patches. Budget: {query['rounds']} rounds of "
                     f"{query['n_query']} patches, {query['rounds'] * query['n_query'] / askable:.1%} of it.")


def _blank(data: DataConfig, dataset: Dataset, found: Survey) -> int:
    """Patches that no image fills, and that nobody is asked for."""
    size_of = {sample.name: size for sample, size in zip(found.samples, found.sizes, strict=True)}
    sources = []
    for sample in dataset.train:
        y0, x0, y1, x1 = inside(sample) if sample.box is not None else (0, 0, *size_of[sample.name])
        sources.append([y1 - y0, x1 - x0, 1])
    filled = extents(sources, data)
    return 0 if filled is None else int(blank_patches(filled, data.tiling()).sum())


def _words(size: Size) -> str:
    return f"{size[1]} x {size[0]}"
