"""Data sets: which files belong to them, and what their mask values mean.

A data set is a function from `DataConfig` to `Dataset` and one line in `DATASETS`. Nothing is decoded here.
"""

import colorsys
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..config import DataConfig
from ..errors import InputError, did_you_mean
from . import scenes
from .classes import INVALID, VOID, Colours, class_table
from .classes import table as _table
from .imagefile import IMAGE_SUFFIXES, read_image, read_mask
from .rules import Rules

_log = logging.getLogger("meal_gpu")
__all__ = ["DATASETS", "INVALID", "VOID", "Dataset", "Sample", "open_dataset", "read_image", "read_mask"]


@dataclass(frozen=True)
class Sample:
    """One image; ``name`` is unique within its split. ``mask`` is None where nobody has labelled."""

    name: str
    image: Path
    mask: Path | None


@dataclass(frozen=True, eq=False)
class Dataset:
    """The files of a data set, in a fixed order, and the meaning of its mask values."""

    name: str
    class_names: tuple[str, ...]
    palette: np.ndarray
    """uint8 ``[C, 3]``: the colour in which a class is shown."""
    to_class: np.ndarray
    """uint8 ``[256]``: mask value -> class index, `VOID` or `INVALID`."""
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    """May be empty."""
    colours: Colours = field(default_factory=dict)
    """What the colours of masks in colour mean; empty where masks hold ids."""
    left_out: tuple[str, ...] = ()
    """What stands beside the files and is none of them, in words."""

    def rules(self, data: DataConfig) -> Rules:
        """How its files are read."""
        return Rules.of(data, self.to_class, self.class_names, self.palette, self.colours)


def open_dataset(data: DataConfig) -> Dataset:
    """List the files of the configured data set and check that images and masks pair up; decode nothing.

    Raises `InputError` for a missing or empty directory, an image without mask, a mask without image.
    """
    return DATASETS[data.dataset](data)


def cache_dir(data: DataConfig) -> Path:
    """Where decoded images and drawn scenes go: ``data.store``, else the user's cache directory."""
    if data.store is not None:
        return data.store.expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "meal-gpu"


# --- listing files ----------------------------------------------------------------------------------------------------


def _names(directory: Path, key: str, directories: bool = False) -> list[str]:
    """Sorted names of the files (or directories) in a directory, hidden ones left out."""
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.name for entry in entries
                          if not entry.name.startswith(".") and entry.is_dir() == directories)
    except OSError as error:
        problem = {FileNotFoundError: "does not exist", NotADirectoryError: "is not a directory"}.get(
            type(error), f"cannot be read ({error.strerror})")
        raise InputError(f"The directory {directory} {problem}.{_nearby(directory)} Check {key}.") from None


def _nearby(directory: Path) -> str:
    """What stands in the nearest parent that exists: that usually shows the mistake."""
    parent = directory.parent
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    try:
        there = sorted(entry.name for entry in parent.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return ""
    missing = directory.relative_to(parent).parts[0]
    listed = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "")
    return f" {parent.absolute()} has {f'the directories {listed}' if there else 'no directories'}." + did_you_mean(
        missing, there)


def _files(directory: Path, key: str, suffixes: tuple[str, ...] = (".png",), ending: str = "") -> dict[str, Path]:
    """Files of a directory whose name is ``<stem><ending><suffix>``, as stem -> path, sorted by stem.

    Raises `InputError` where the directory is missing, or two files have one stem.
    """
    found: dict[str, Path] = {}
    for name in _names(directory, key):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in suffixes or not stem.endswith(ending):
            continue
        stem = stem.removesuffix(ending)
        if stem in found:
            raise InputError(f"{found[stem]} and {directory / name} have the same stem '{stem}', which names an image. "
                             "Rename or remove one of them.")
        found[stem] = directory / name
    return dict(sorted(found.items()))


def _pair(images: Mapping[str, Path], masks: Mapping[str, Path] | None, where: Path, mask_name: str,
          suffixes: tuple[str, ...] = (".png",)) -> tuple[Sample, ...]:
    """Samples of images and masks of equal stems; ``mask_name`` says how a mask is called, for messages."""
    if not images:
        raise InputError(f"{where} holds no images: expected files ending in {', '.join(suffixes)} there.")
    if masks is None:
        return tuple(Sample(name, image, None) for name, image in images.items())
    alone = [stem for stem in images if stem not in masks]
    if alone:
        raise InputError(f"{images[alone[0]]} has no mask{_others(alone)}: expected {mask_name.format(alone[0])}. "
                         "Add the mask or remove the image.")
    alone = [stem for stem in masks if stem not in images]
    if alone:
        raise InputError(f"{masks[alone[0]]} is a mask without image{_others(alone)}: no image of that name in {where}."
                         " Add the image or remove the mask.")
    return tuple(Sample(name, image, masks[name]) for name, image in images.items())


def _others(names: list[str]) -> str:
    return f" (and {len(names) - 1} more like it)" if len(names) > 1 else ""


def _root(data: DataConfig) -> Path:
    assert data.root is not None  # DataConfig refuses it for all data sets that read one
    root = data.root.expanduser()
    _names(root, "data.root", directories=True)
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
        return _pair(_files(images, "data.root"), _files(masks, "data.root"), images, f"{masks}/{{}}.png")

    return Dataset("camvid", tuple(CAMVID), np.array(list(CAMVID.values()), np.uint8),
                   _table({i: i for i in range(11)}, [11]), split("train"), split("val"))


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
        cities = _names(images, "data.root", directories=True)
        for city in sorted({*cities, *_names(masks, "data.root", directories=True)}):
            pictures = _files(images / city, "data.root", ending="_leftImg8bit")
            labels = _files(masks / city, "data.root", ending="_gtFine_labelIds")
            if pictures or labels:
                found += _pair(pictures, labels, images / city, f"{masks / city}/{{}}_gtFine_labelIds.png")
        if not found:
            raise InputError(f"{images} holds no images: expected <city>/*_leftImg8bit.png there.")
        return tuple(found)

    ids = {number: index for index, (number, _) in enumerate(CITYSCAPES.values())}
    void = [value for value in (*range(34), 255) if value not in ids]
    palette = np.array([colour for _, colour in CITYSCAPES.values()], np.uint8)
    return Dataset("cityscapes", tuple(CITYSCAPES), palette, _table(ids, void), split("train"), split("val"))


def folder(data: DataConfig) -> Dataset:
    """A directory of images of any size and one of PNG masks with the same stems; classes as `class_table` has them."""
    names, to_class, colours = class_table(data)
    root = _root(data)
    if data.val_images is not None and data.val_masks is None:
        raise InputError("data.val_masks is null, but data.val_images is not: validation needs masks. Give both, or "
                         "set data.val_images to null for no validation.")

    def split(prefix: str, images: str | None, masks: str | None) -> tuple[Sample, ...]:
        if images is None:
            return ()
        null = "" if not prefix else " (null for no validation)"
        pictures = _files(root / images, f"data.{prefix}images{null}", IMAGE_SUFFIXES)
        people = " (null when people label)" if not prefix else ""
        labels = None if masks is None else _files(root / masks, f"data.{prefix}masks{people}")
        return _pair(pictures, labels, root / images, f"{root / (masks or '')}/{{}}.png", IMAGE_SUFFIXES)

    # Hues a golden angle apart, at two depths: neighbours in the table are easy to tell apart.
    hues = [colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.75 - 0.3 * (i % 2), 0.95 - 0.25 * (i // 2 % 2))
            for i in range(len(names))]
    palette = np.round(np.array(hues) * 255).astype(np.uint8)
    for colour, index in reversed(colours.items()):  # of several colours of a class its first
        if index != VOID:
            palette[index] = colour >> 16, colour >> 8 & 255, colour & 255
    return Dataset("folder", names, palette, to_class,
                   split("", data.images, data.masks), split("val_", data.val_images, data.val_masks), colours)


def demo(data: DataConfig) -> Dataset:
    """Procedural street scenes of ``image_size``, drawn as PNG files below ``root`` (default: the cache directory).

    A scene depends on its number and split alone, so what is there already is kept.
    """
    height, width = data.image_size
    root = (data.root.expanduser() if data.root is not None else cache_dir(data)).absolute()
    root = root / f"demo-scenes-v{scenes.VERSION}-{height}x{width}"

    def split(name: str, number: int, count: int) -> tuple[Sample, ...]:
        images, masks = root / name, root / f"{name}_masks"
        files = [f"{name}_{i:04d}.png" for i in range(count)]
        have = [{*_names(folder, "data.root")} if folder.is_dir() else set[str]() for folder in (images, masks)]
        todo = [i for i, file in enumerate(files) if any(file not in there for there in have)]
        if todo:
            _log.info("Drawing %d street scenes into %s.", len(todo), images)
        for i in todo:
            scenes.write_scene(i, number, data.image_size, images / files[i], masks / files[i])
        return tuple(Sample(Path(file).stem, images / file, masks / file) for file in files)

    try:
        return Dataset("demo", tuple(scenes.CLASSES), np.array(list(scenes.CLASSES.values()), np.uint8),
                       _table({i: i for i in range(len(scenes.CLASSES))}, [VOID]),
                       split("train", 0, data.n_images), split("val", 1, data.n_val_images))
    except OSError as error:
        raise InputError(f"Street scenes cannot be written below {root}: {error.strerror or error}. Free some space, "
                         "or set data.store (or data.root) to a directory that can be written.") from None


DATASETS: dict[str, Callable[[DataConfig], Dataset]] = {
    "camvid": camvid,
    "cityscapes": cityscapes,
    "folder": folder,
    "demo": demo,
}
