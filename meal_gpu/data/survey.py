"""What is in a folder of images, and in one of masks beside it: found by looking, so that nobody has to say it."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import DataConfig
from ..errors import InputError, all_of
from ..grid import Size
from ..paths import expand
from ..timing import Progress, no_progress
from . import tiff
from .datasets import Dataset, open_dataset
from .imagefile import IMAGE_SUFFIXES, Reading
from .listing import Sample, files_in, is_pattern
from .maskvalues import Classes, Meaning, classes_of, look, named
from .sheet import mapped, read_size
from .threads import each


@dataclass(frozen=True, eq=False)
class Survey:
    """What was found; ``keys`` of the section ``data`` make a config read it so."""

    keys: dict[str, Any]
    """``root``, ``images``, ``masks``, and what files need to be read: ``exif``, ``bands``, ``max_megapixels``."""
    samples: tuple[Sample, ...]
    sizes: tuple[Size, ...]
    """(height, width) of each sample's image as it is read."""
    n_val: int
    """Validation images that stand beside the images, in folders of their own."""
    classes: Classes
    told: tuple[str, ...]
    """What a person should know, a line each."""

    @property
    def n_masks(self) -> int:
        return sum(sample.mask is not None for sample in self.samples)


def survey(images: Path, masks: Path | None, names: Sequence[Meaning] | None,
           progress: Progress = no_progress) -> Survey:
    """Look at all headers and all masks.

    Raises `InputError` for files that a run would refuse, for masks that belong to no image, and where there is nothing
    to tell classes by: neither masks nor names.
    """
    if masks is None and names is None:
        raise InputError("There are no masks to tell the classes by: name them with --classes road,car, or give the "
                         "folder of masks with --masks.")
    keys = places(images, masks)
    samples, told = _listed(keys), list[str]()
    sizes, more = _sizes(samples, told, progress)
    keys |= more
    labelled = [sample for sample in samples if sample.mask is not None]
    if labelled:
        reading = Reading(max_pixels=1e6 * more.get("max_megapixels", 500))
        seen = look([sample.mask for sample in labelled if sample.mask is not None], reading, progress)
        keys |= _orientation(labelled, [one.size for one in seen], samples, sizes, more, told)
        if keys.get("exif") == "ignore":
            sizes = _read(samples, _reading({**more, "exif": "ignore"}), progress)[0]
        classes = classes_of(seen, names, len(labelled) < len(samples))
    else:
        if names is None:
            raise InputError(f"{masks} holds no mask yet, so that classes cannot be told: name them with --classes "
                             "road,car.")
        classes = named(names)
    n_val = _validation(keys, classes)
    return Survey(keys, samples, tuple(sizes), n_val, classes, (*told, *classes.told))


def as_listed(keys: dict[str, Any]) -> Dataset:
    """The data set that a run would list with these keys of ``data``, before anything is known of its classes."""
    return open_dataset(DataConfig.model_validate({
        "dataset": "folder", "val_images": None, "unlabelled": "ask", "class_names": ["one", "two"], **keys}))


def _listed(keys: dict[str, Any]) -> tuple[Sample, ...]:
    samples = as_listed(keys).train
    if keys["masks"] is not None and not any(sample.mask for sample in samples):
        folder = Path(keys["root"]) / keys["masks"].partition("{")[0]
        if any(folder.glob("*.png")):
            raise InputError(f"No mask in {folder} belongs to an image: a mask is a PNG of its image's name, or of "
                             f"that and one ending for all, and the images are {samples[0].image.name}, ...")
    return samples


def places(images: Path, masks: Path | None) -> dict[str, Any]:
    """``root``, ``images`` and ``masks``: images in sub-folders are taken where there are none above."""
    images = expand(images).absolute()
    masks = None if masks is None else expand(masks).absolute()
    pictures, deep = files_in(images, "--images", IMAGE_SUFFIXES), False
    if not pictures:
        pictures, deep = _below(images, IMAGE_SUFFIXES), True
        if not pictures:
            raise InputError(f"{images} holds no images, nor do folders in it: expected files ending in "
                             f"{', '.join(IMAGE_SUFFIXES)}. Check --images.")
    root = Path(os.path.commonpath([images.parent, images.parent if masks is None else masks.parent]))
    key = images.relative_to(root).as_posix()
    inside = masks is not None and masks == images
    where = None if masks is None else _mask_key(pictures, masks, root, deep)
    for path in filter(None, (images, masks)):
        if is_pattern(path.relative_to(root).as_posix()):
            raise InputError(f"{path} has a name with *, ?, {{ or }}, which stand for other things in a config: rename "
                             "the folder.")
    return {"root": str(root), "images": f"{key}/**/*" if deep else f"{key}/*" if inside else key, "masks": where}


def _mask_key(pictures: dict[str, Path], masks: Path, root: Path, deep: bool) -> str:
    """The folder of masks, or where an image's mask stands: masks' names may have one ending for all."""
    key, names = masks.relative_to(root).as_posix(), {stem.rpartition("/")[2] for stem in pictures}
    found: Counter[tuple[str, str]] = Counter()
    for stem, mask in _below(masks, (".png",)).items():
        folder, _, name = stem.rpartition("/")
        for length in range(len(name), 0, -1):
            image = name[:length]
            beside = f"{folder}/{image}" if folder else image
            if beside in pictures and pictures[beside] != mask:
                found["{dir}/" if deep else "", name[length:]] += 1
                break
            if deep and not folder and image in names:
                found["", name[length:]] += 1
                break
    if not found:
        return key
    (place, ending), _ = found.most_common(1)[0]
    return f"{key}/{place}{{stem}}{ending}.png" if deep or ending else key


def _below(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files below a folder by their path without its suffix."""
    found = {}
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            path = Path(place) / name
            if path.suffix.lower() in suffixes and not name.startswith("."):
                found[path.relative_to(folder).with_suffix("").as_posix()] = path
    return found


def _sizes(samples: Sequence[Sample], told: list[str], progress: Progress) -> tuple[list[Size], dict[str, Any]]:
    """(height, width) of every image, and the keys that reading them takes."""
    keys: dict[str, Any] = {}
    sizes, problems = _read(samples, Reading(max_pixels=1e12), progress)
    layouts = [_layout(sample.image) for sample in samples] if problems else []
    bands = [found.samples for found in layouts if found is not None]
    if problems and len(bands) == len(samples) and all(set(found.bits) == {8} for found in layouts if found):
        keys["bands"] = [1, 2, 3] if min(bands) > 2 else [1]
        sizes, problems = _read(samples, _reading(keys), progress)
        what = "red, green and blue" if min(bands) > 2 else "grey"
        told.append(f"TIFF files of {min(bands)} bands: the first {len(keys['bands'])} are taken for {what}. Say which "
                    "are, in data.bands.")
    if problems:
        raise all_of(problems, len(samples), "images")
    largest = max(height * width for height, width in sizes)
    if largest > 5e8:
        keys["max_megapixels"] = -(-largest // 10**6)
    return sizes, keys


def _reading(keys: dict[str, Any]) -> Reading:
    bands = keys.get("bands")
    return Reading(keys.get("exif", "apply"), 1e12, tuple(bands) if bands else None)


def _read(samples: Sequence[Sample], reading: Reading, progress: Progress) -> tuple[list[Size], list[InputError]]:
    return each(samples, lambda sample: read_size(sample.image, reading), "look at images", progress, every=50)


def _layout(path: Path) -> tiff.Layout | None:
    try:
        with mapped(path) as content:
            return tiff.layout(content) if bytes(content[:4]) in tiff.SIGNATURES else None
    except InputError:
        return None


def _orientation(labelled: Sequence[Sample], masks: Sequence[Size], samples: Sequence[Sample], sizes: Sequence[Size],
                 keys: dict[str, Any], told: list[str]) -> dict[str, Any]:
    """Whether masks fit their images as these are read, or as they lie in their files. Raises `InputError` for others.
    """
    size_of = {sample.name: size for sample, size in zip(samples, sizes, strict=True)}
    wrong = [(sample, mask) for sample, mask in zip(labelled, masks, strict=True) if size_of[sample.name] != mask]
    if not wrong:
        return {}
    raw, problems = _read([sample for sample, _ in wrong], _reading({**keys, "exif": "ignore"}), no_progress)
    turned = not problems and all(size == mask for size, (_, mask) in zip(raw, wrong, strict=True))
    if turned and all(mask[0] != mask[1] for _, mask in wrong):
        told.append(f"{len(wrong)} images carry an EXIF orientation, and their masks were drawn on the pixels as they "
                    "lie in the file (data.exif: ignore).")
        return {"exif": "ignore"}
    raise all_of([InputError(f"{sample.mask} is {mask[1]} x {mask[0]} pixels (width x height), its image "
                             f"{sample.image} is {size_of[sample.name][1]} x {size_of[sample.name][0]}: they must be "
                             "equal.") for sample, mask in wrong], len(labelled), "masks")


def _validation(keys: dict[str, Any], classes: Classes) -> int:
    """Validation images in folders that are called as those of the pool are; ``keys`` get them."""
    keys["val_images"] = keys["val_masks"] = None
    if keys["masks"] is None:
        return 0
    for of in (lambda name: f"val_{name}", lambda name: name.replace("train", "val", 1)):
        images, masks = of(keys["images"]), of(keys["masks"])
        if images == keys["images"] or masks == keys["masks"]:
            continue
        tried = {**keys, **classes.keys, "dataset": "folder", "val_images": images, "val_masks": masks,
                 "unlabelled": "ask"}
        try:
            found = len(open_dataset(DataConfig.model_validate(tried)).val)
        except InputError:
            continue
        keys |= {"val_images": images, "val_masks": masks}
        return found
    return 0


