"""What is in a data set, counted: what a person should see before the first label is paid for.

The counts were made while the store was built; only stores of before that are read once more.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from ..config import DataConfig
from ..errors import InputError
from ..grid import Size
from .build import Counts
from .classes import VOID
from .ingest import Stores
from .store import Store, compare, release


@dataclass(frozen=True)
class Census:
    """Of one store. Tuples have one entry per class; they are empty where nobody has labelled."""

    n_images: int
    pixels: tuple[int, ...]
    images: tuple[int, ...]
    """Images that hold a pixel of the class."""
    void_pixels: int
    void_images: int
    sizes: dict[Size, int]
    """Images per (height, width) of their files, the most frequent first; those of which it is not known are left out.
    """
    turns: int
    """Images whose file has an EXIF orientation."""
    duplicates: tuple[tuple[str, ...], ...]
    """Names of images whose pixels are equal."""


def census(store: Store, n_classes: int | None = None, gone: Collection[str] = ()) -> Census:
    """Count a store, without images that are ``gone``. ``n_classes``: by default the highest index that occurs, + 1."""
    pixels: Sequence[int] = ()
    images: Sequence[int] = ()
    if store.masks is not None:
        pixels, images = store.counts or _count(store.masks)
    n = n_classes if n_classes is not None else max((i + 1 for i in range(min(len(pixels), VOID)) if pixels[i]),
                                                    default=0)
    known = [source for name, source in zip(store.names, store.sources or (), strict=False)
             if source is not None and name not in gone]
    sizes = Counter((height, width) for height, width, _ in known)
    return Census(len(store.names) - len(gone), tuple(pixels[:n]), tuple(images[:n]), pixels[VOID] if pixels else 0,
                  images[VOID] if images else 0, dict(sizes.most_common()), sum(turn != 1 for *_, turn in known),
                  _duplicates(store, gone))


def check_classes(data: DataConfig, stores: Stores) -> None:
    """Raise `InputError` for masks that do not hold the classes which the config names.

    For ``folder`` alone: the tables of the published data sets are known, and a part of one may lack a class.
    """
    if stores.dataset.name != "folder" or data.absent_classes == "allow":
        return
    for split, store in (("pool", stores.train), ("validation set", stores.val)):
        if store is None or store.masks is None:
            continue
        names, found = stores.dataset.class_names, census(store, len(stores.dataset.class_names))
        there = [name for name, pixels in zip(names, found.pixels, strict=True) if pixels]
        absent = [name for name in names if name not in there]
        if not absent or (there and split != "pool") or (len(there) > 1 and stores.dataset.given is not None):
            continue  # people will label more
        only_void = len(there) < 2 and found.void_pixels > 0 and data.mask_values is None
        if only_void:
            example = ", ".join(f"{name}: {value}" for name, value in zip(
                names, [0, data.ignore_index] if len(names) == 2 else range(len(names)), strict=False))
            what = (f"they hold only {there[0] if there else 'void'!r} and void (value {data.ignore_index})"
                    if there else "they hold nothing but void")
            advice = (f"If {data.ignore_index} is a class, say so in data: mask_values: {{{example}}}")
        else:
            what = f"{', '.join(map(repr, absent))} {'has' if len(absent) == 1 else 'have'} no pixel in any of them"
            advice = "Correct data.class_names, or say which value each class has with data.mask_values"
        raise InputError(f"The masks of the {split} are not what data.class_names says: {what}. {advice}. If the "
                         "classes are just not there, data.absent_classes: allow.")


def report(data: DataConfig, stores: Stores) -> list[str]:
    """About ten lines for a person: counts, sizes, what was turned, resized, left out or there twice."""
    dataset, lines = stores.dataset, list[str]()
    pool = census(stores.train, len(dataset.class_names), dataset.gone)
    val = census(stores.val, len(dataset.class_names)) if stores.val is not None else None
    lines.append(f"{pool.n_images} images in the pool, {val.n_images if val else 0} for validation.")
    if dataset.given is not None:
        lines.append(f"{len(dataset.given)} of {pool.n_images} images of the pool have masks: what these label is "
                     "round 0, the rest is asked for.")
    for split, found in (("pool", pool), ("validation", val)):
        if found is None or not found.pixels:
            continue
        total = max(1, sum(found.pixels) + found.void_pixels)
        shares = [f"{name} {share(count, total)} in {images}" for name, count, images in zip(
            [*dataset.class_names, "void"], [*found.pixels, found.void_pixels], [*found.images, found.void_images],
            strict=True)]
        lines.append(f"Pixels of the {split}, and images that hold one: {'; '.join(shares)}.")
    for split, found in (("pool", pool), ("validation", val)):
        if found is not None:
            lines += _of_files(data, split, found, stores)
    lines += list(dataset.left_out)
    return lines


def share(count: int, total: int) -> str:
    """``12.3 %``; what is there is never 0."""
    percent = 100 * count / total
    return f"{percent:.1f} %" if percent >= 0.05 or not count else f"{percent:.1g} %"


def _of_files(data: DataConfig, split: str, found: Census, stores: Stores) -> list[str]:
    lines = []
    if found.sizes and data.tile is None:
        listed = ", ".join(f"{width} x {height} ({n})" for (height, width), n in list(found.sizes.items())[:3])
        more = f" and {len(found.sizes) - 3} other sizes" if len(found.sizes) > 3 else ""
        height, width = data.image_size
        resized = sum(n for size, n in found.sizes.items() if size != (height, width))
        lines.append(f"Sizes of the {split}'s files, width x height: {listed}{more}; {resized} of {found.n_images} "
                     f"are resized to {width} x {height}.")
        large = sum(n for (h, w), n in found.sizes.items() if h >= 4 * height and w >= 4 * width)
        if large:
            lines.append(f"{large} of {found.n_images} images of the {split} are reduced to a quarter of their sides "
                         f"or less; data.tile: [{height}, {width}] cuts files into images instead.")
        squashed = sum(n for (h, w), n in found.sizes.items() if not 1 / 1.1 <= h * width / (w * height) <= 1.1)
        if squashed and data.resize == "stretch":
            lines.append(f"{squashed} of {found.n_images} images of the {split} change their aspect ratio by more than "
                         "10 %; data.resize: fit keeps it.")
        if squashed and data.resize == "fit":
            lines.append(f"{squashed} of {found.n_images} images of the {split} do not fill {width} x {height}; the "
                         "rest is void (data.resize: fit).")
    if found.turns:
        labelled = "" if stores.train.masks is None else "; masks are read as they are"
        lines.append(f"{found.turns} of {found.n_images} images of the {split} carry an EXIF orientation, and are "
                     f"{'' if data.exif == 'apply' else 'not '}turned by it (data.exif: {data.exif}){labelled}.")
    if found.duplicates:
        first, others = found.duplicates[0], len(found.duplicates) > 1 or len(found.duplicates[0]) > 3
        lines.append(f"{sum(map(len, found.duplicates))} images of the {split} are not the only ones with their "
                     f"pixels: {' = '.join(first[:3])}{', ...' if others else ''}.")
    return lines


def _count(masks: np.ndarray) -> list[list[int]]:
    counts = Counts()
    for i, mask in enumerate(masks):
        compare(masks, i, i + 1)
        counts.add(mask)
        release(masks, i, i + 1)
    return counts.as_lists()


def _duplicates(store: Store, gone: Collection[str]) -> tuple[tuple[str, ...], ...]:
    """Equal checksums point to them, equal pixels prove it."""
    by_sum: dict[int, list[int]] = {}
    for i, sums in enumerate(store.checksums):
        if store.names[i] in gone:
            continue
        by_sum.setdefault(sums[0], []).append(i)
    found = []
    for group in by_sum.values():
        equal = [i for i in group[1:] if np.array_equal(store.images[i], store.images[group[0]])]
        if equal:
            found.append(tuple(store.names[i] for i in (group[0], *equal)))
    return tuple(found)
