"""Data sets: which files belong to them, and what their mask values mean.

A data set is a function from `DataConfig` to `Dataset` and one line in `DATASETS`. Nothing is decoded here.
"""

import colorsys
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..config import DataConfig
from ..errors import InputError
from ..paths import expand, user_cache
from . import scenes, tiles
from .classes import INVALID, VOID, Colours, class_table
from .classes import table as _table
from .imagefile import IMAGE_SUFFIXES, read_image, read_mask
from .labelled import hold_out
from .listing import Sample, by_pattern, files_in, is_pattern, left_out, names_in, pair
from .rules import Rules

_log = logging.getLogger("meal_gpu")
__all__ = ["DATASETS", "INVALID", "VOID", "Dataset", "Sample", "open_dataset", "read_image", "read_mask"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """The files of a data set, in a fixed order, and the meaning of its mask values."""

    name: str
    class_names: tuple[str, ...]
    palette: np.ndarray
    """uint8 ``[C, 3]``: the colour in which a class is shown."""
    to_class: np.ndarray
    """uint8 ``[256]``: mask value -> class index, `VOID` or `INVALID`."""
    train: tuple[Sample, ...] = ()
    val: tuple[Sample, ...] = ()
    """May be empty."""
    colours: Colours = field(default_factory=dict)
    """What the colours of masks in colour mean; empty where masks hold ids."""
    left_out: tuple[str, ...] = ()
    """What stands beside the files and is none of them, in words."""
    first: int | None = None
    """With how many images of ``train`` a run began; None for all of them."""
    order: str | None = None
    """Of a pool that has changed since: what its order is known by. See `order.arrange`."""
    given: tuple[str, ...] | None = None
    """Names of the images of ``train`` whose masks a run begins with (``data.unlabelled: ask``); None where it begins
    with random images."""
    held_out: bool = False
    """``val`` is a share of the labelled images (``data.val_fraction``)."""

    @property
    def gone(self) -> frozenset[str]:
        """Names of images of ``train`` whose files are no more."""
        return frozenset(sample.name for sample in self.train if sample.gone)

    @property
    def labelled(self) -> bool:
        """Whether the pool's images have masks."""
        return any(sample.mask is not None for sample in self.train)

    def rules(self, data: DataConfig) -> Rules:
        """How its files are read."""
        return Rules.of(data, self.to_class, self.class_names, self.palette, self.colours)


def open_dataset(data: DataConfig) -> Dataset:
    """List the files of the configured data set and check that images and masks pair up; decode nothing.

    With ``data.tile`` the files are cut into tiles, for which their headers are read.

    Raises `InputError` for a missing or empty directory, an image without mask, a mask without image.
    """
    dataset = DATASETS[data.dataset](data)
    if data.tile is not None:
        reading = dataset.rules(data).reading
        train, val = (tuple(tiles.cut(samples, data.tile, reading)) for samples in (dataset.train, dataset.val))
        dataset = replace(dataset, train=train, val=val, left_out=(tiles.told(train, data.tile), *dataset.left_out))
    if data.unlabelled == "ask":
        given = tuple(sample.name for sample in dataset.train if sample.mask is not None)
        return replace(dataset, given=given or None)
    return dataset


def cache_dir(data: DataConfig) -> Path:
    """Where decoded images and drawn scenes go: ``data.store``, else the user's cache directory."""
    if data.store is not None:
        return expand(data.store)
    return user_cache()


def _root(data: DataConfig) -> Path:
    assert data.root is not None  # DataConfig refuses it for all data sets that read one
    root = expand(data.root)
    names_in(root, "data.root", directories=True)
    return root


# --- the data sets ----------------------------------------------------------------------------------------------------

CAMVID = {
    # The order of SegNet's masks, its colours.
    "Sky": (128, 128, 128), "Building": (128, 0, 0), "Pole": (192, 192, 128), "Road": (128, 64, 128),
    "Pavement": (60, 40, 222), "Tree": (128, 128, 0), "SignSymbol": (192, 128, 128), "Fence": (64, 64, 128),
    "Car": (64, 0, 128), "Pedestrian": (64, 64, 0), "Bicyclist": (0, 128, 192),
}


def camvid(data: DataConfig) -> Dataset:
    """CamVid as SegNet published it: ``train trainannot val valannot``, 11 classes, id 11 is void."""
    root = _root(data)

    def split(name: str) -> tuple[Sample, ...]:
        images, masks = root / name, root / f"{name}annot"
        return pair(files_in(images, "data.root"), files_in(masks, "data.root"), images, f"{masks}/{{}}.png")

    return replace(_camvid_classes(data), train=split("train"), val=split("val"))


def _camvid_classes(data: DataConfig) -> Dataset:
    return Dataset("camvid", tuple(CAMVID), np.array(list(CAMVID.values()), np.uint8),
                   _table({i: i for i in range(11)}, [11]))


CITYSCAPES = {
    # name: (id in *_labelIds.png, colour), in the order of the trainIds
    "road": (7, (128, 64, 128)), "sidewalk": (8, (244, 35, 232)), "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)), "fence": (13, (190, 153, 153)), "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)), "traffic sign": (20, (220, 220, 0)), "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)), "sky": (23, (70, 130, 180)), "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)), "car": (26, (0, 0, 142)), "truck": (27, (0, 0, 70)), "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)), "motorcycle": (32, (0, 0, 230)), "bicycle": (33, (119, 11, 32)),
}


def cityscapes(data: DataConfig) -> Dataset:
    """Cityscapes, ``leftImg8bit`` and ``gtFine/*_labelIds.png``: 19 classes, every other id from 0 to 33 is void.

    So is id -1 (license plate), which an 8-bit file holds as 255.
    """
    root = _root(data)

    def split(name: str) -> tuple[Sample, ...]:
        images, masks = root / "leftImg8bit" / name, root / "gtFine" / name
        found: list[Sample] = []
        cities = names_in(images, "data.root", directories=True)
        for city in sorted({*cities, *names_in(masks, "data.root", directories=True)}):
            pictures = files_in(images / city, "data.root", ending="_leftImg8bit")
            labels = files_in(masks / city, "data.root", ending="_gtFine_labelIds")
            if pictures or labels:
                found += pair(pictures, labels, images / city, f"{masks / city}/{{}}_gtFine_labelIds.png")
        if not found:
            raise InputError(f"{images} holds no images: expected <city>/*_leftImg8bit.png there.")
        return tuple(found)

    return replace(_cityscapes_classes(data), train=split("train"), val=split("val"))


def _cityscapes_classes(data: DataConfig) -> Dataset:
    ids = {number: index for index, (number, _) in enumerate(CITYSCAPES.values())}
    void = [value for value in (*range(34), 255) if value not in ids]
    palette = np.array([colour for _, colour in CITYSCAPES.values()], np.uint8)
    return Dataset("cityscapes", tuple(CITYSCAPES), palette, _table(ids, void))


def folder(data: DataConfig) -> Dataset:
    """A directory of images of any size and one of PNG masks with the same stems; classes as `class_table` has them."""
    classes = _folder_classes(data)
    root = _root(data)
    if data.val_images is not None and data.val_masks is None:
        raise InputError("data.val_masks is null, but data.val_images is not: validation needs masks. Give both, or "
                         "set data.val_images to null for no validation.")

    told: list[str] = []

    def split(prefix: str, images: str | None, masks: str | None) -> tuple[Sample, ...]:
        if images is None:
            return ()
        null = "" if not prefix else " (null for no validation)"
        some = data.unlabelled == "ask" and not prefix
        key = f"data.{prefix}images{null}"
        images, masks = str(expand(images)), None if masks is None else str(expand(masks))
        if is_pattern(images) or (masks is not None and is_pattern(masks)):
            samples, beside = by_pattern(root, images, masks, key, some)
            told.extend(beside)
            return samples
        pictures = files_in(root / images, key, IMAGE_SUFFIXES)
        people = " (null when people label)" if not prefix else ""
        labels = None if masks is None else files_in(root / masks, f"data.{prefix}masks{people}")
        told.extend(left_out(root / images, [*pictures.values(), *(labels or {}).values()], f"data.{prefix}images"))
        return pair(pictures, labels, root / images, f"{root / (masks or '')}/{{}}.png", IMAGE_SUFFIXES, some)

    train, val = split("", data.images, data.masks), split("val_", data.val_images, data.val_masks)
    if data.val_fraction:
        n = sum(sample.mask is not None for sample in train)
        train, val = hold_out(train, data.val_fraction)
        told.insert(0, f"{len(val)} of {n} labelled files are held out for validation (data.val_fraction: "
                       f"{data.val_fraction:g}).")
    return replace(classes, train=train, val=val, left_out=tuple(told), held_out=bool(data.val_fraction))


def _folder_classes(data: DataConfig) -> Dataset:
    names, to_class, colours = class_table(data)
    # Hues a golden angle apart, at two depths: neighbours in the table are easy to tell apart.
    hues = [colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.75 - 0.3 * (i % 2), 0.95 - 0.25 * (i // 2 % 2))
            for i in range(len(names))]
    palette = np.round(np.array(hues) * 255).astype(np.uint8)
    for colour, index in reversed(colours.items()):  # of several colours of a class its first
        if index != VOID:
            palette[index] = colour >> 16, colour >> 8 & 255, colour & 255
    return Dataset("folder", names, palette, to_class, colours=colours)


def demo(data: DataConfig) -> Dataset:
    """Procedural street scenes of ``image_size``, drawn as PNG files below ``root`` (default: the cache directory).

    A scene depends on its number and split alone, so what is there already is kept.
    """
    height, width = data.image_size
    root, first = (expand(data.root) if data.root is not None else cache_dir(data)).absolute(), data.first_image
    root = root / f"demo-scenes-v{scenes.VERSION}-{height}x{width}{f'-from-{first}' if first else ''}"

    def split(name: str, number: int, count: int) -> tuple[Sample, ...]:
        images, masks = root / name, root / f"{name}_masks"
        files = [f"{name}_{first + i:04d}.png" for i in range(count)]
        have = [{*names_in(folder, "data.root")} if folder.is_dir() else set[str]() for folder in (images, masks)]
        todo = [i for i, file in enumerate(files) if any(file not in there for there in have)]
        if todo:
            _log.info("Drawing %d street scenes into %s.", len(todo), images)
        for i in todo:
            scenes.write_scene(first + i, number, data.image_size, images / files[i], masks / files[i])
        return tuple(Sample(Path(file).stem, images / file, masks / file) for file in files)

    try:
        return replace(_demo_classes(data), train=split("train", 0, data.n_images),
                       val=split("val", 1, data.n_val_images))
    except OSError as error:
        raise InputError(f"Street scenes cannot be written below {root}: {error.strerror or error}. Free some space, "
                         "or set data.store (or data.root) to a directory that can be written.") from None


def _demo_classes(data: DataConfig) -> Dataset:
    return Dataset("demo", tuple(scenes.CLASSES), np.array(list(scenes.CLASSES.values()), np.uint8),
                   _table({i: i for i in range(len(scenes.CLASSES))}, [VOID]))


def classes_of(data: DataConfig) -> Dataset:
    """The configured data set without its files: what its classes are, and what mask values mean."""
    return _CLASSES[data.dataset](data)


_CLASSES: dict[str, Callable[[DataConfig], Dataset]] = {
    "camvid": _camvid_classes,
    "cityscapes": _cityscapes_classes,
    "folder": _folder_classes,
    "demo": _demo_classes,
}
DATASETS: dict[str, Callable[[DataConfig], Dataset]] = {
    "camvid": camvid,
    "cityscapes": cityscapes,
    "folder": folder,
    "demo": demo,
}
