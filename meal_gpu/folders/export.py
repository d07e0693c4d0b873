"""``meal-gpu export``: the labelled data set of a run, for other training code, and for ``dataset: folder``.

    images/ masks/             files of which a patch is labelled; masks hold class indices, 255 where nobody labelled
    val_images/ val_masks/     the validation images, labelled whole
    splits/*.txt               names: train, val, unlabelled (in the pool, not copied)
    coco/*.json                the same as COCO, run lengths
    classes.json               names, values, colours
    dataset.yaml               a config that trains on all of it

Images are the files as they are. All is written beside its place and renamed, so that it is whole or not there.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ..config import Config
from ..data.classes import VOID
from ..data.ingest import Stores, ingest
from ..data.listing import Sample
from ..data.maskfile import read_classes
from ..data.tiles import file_name
from ..errors import InputError
from ..files import own_directory, sync_directory, write_atomic
from ..launch import load_resumed, pool_of, seed_of
from ..machine.backend import resolve
from ..paths import expand, settle_home
from ..timing import Progress, no_progress
from .coco import coco
from .revealed import Masks, revealed

CONFIG = "dataset.yaml"


@dataclass(frozen=True, eq=False)
class _Split:
    """Names of files, in order: the image, and its mask."""

    files: Mapping[str, Sample]
    mask: Callable[[str], np.ndarray]
    """By name: class indices uint8 ``[H, W]``, and `VOID`."""
    prefix: str = ""

    def image(self, name: str) -> str:
        return f"{self.prefix}images/{name}{self.files[name].image.suffix}"


def export(run: Path, out: Path, seed: int | None = None, overrides: list[str] | None = None,
           progress: Progress = no_progress) -> list[str]:
    """Write the labels of a run's finished rounds, and say what was written.

    Raises `InputError` where ``out`` is not empty, nothing is labelled yet, and for labels or images that are gone.
    """
    settle_home()
    run, out = expand(run), expand(out)
    config = load_resumed(run, overrides)
    seed = seed_of(config, seed)
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} is there and not empty, and nothing is overwritten: give a new folder as --out.")
    gpu = resolve(config, embeds=False).device.type == "cuda"
    stores = ingest(config.data, progress, pool_of(run, config), gpu)
    found = revealed(config, stores, run / f"seed-{seed}", progress)
    val = _validation(config, stores)
    partial_ = out.with_name(f"{out.name}.partial")
    try:
        if partial_.is_dir() and not partial_.is_symlink():
            shutil.rmtree(partial_)
        own_directory(partial_)
        _write(config, stores, found, val, partial_, out, progress)
        if out.is_dir():
            out.rmdir()
        partial_.rename(out)
        sync_directory(out.absolute().parent)
    except OSError as error:
        raise InputError(f"{error.filename2 or error.filename or out} cannot be written: {error.strerror}. Give "
                         "another --out, or free some space.") from None
    return _told(config, stores, found, val, out)


def _validation(config: Config, stores: Stores) -> dict[str, Sample]:
    """Files of which all tiles are in that split."""
    return {file_name(sample): sample for sample in stores.dataset.val if sample.mask is not None}


def _write(config: Config, stores: Stores, found: Masks, val: dict[str, Sample], place: Path, out: Path,
           progress: Progress) -> None:
    dataset = stores.dataset
    rules, names = dataset.rules(config.data), dataset.class_names
    total, done = len(found.files) + len(val), 0

    def whole(name: str) -> np.ndarray:
        mask = val[name].mask
        assert mask is not None
        return read_classes(mask, rules).classes

    for split in (_Split(found.files, found.masks.__getitem__), _Split(val, whole, "val_")):
        if not split.files:
            continue
        for name, sample in split.files.items():
            for file in (place / split.image(name), place / f"{split.prefix}masks" / f"{name}.png"):
                file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(sample.image, place / split.image(name))
            mask = Image.fromarray(split.mask(name))
            write_atomic(place / f"{split.prefix}masks" / f"{name}.png", partial(mask.save, format="PNG"))
            done += 1
            progress("export", done, total)
        which = "val" if split.prefix else "train"
        _lines(place / "splits" / f"{which}.txt", split.files)
        write_atomic(place / "coco" / f"{which}.json", coco({name: split.image(name) for name in split.files},
                                                            split.mask, names))
    pool = dict.fromkeys(file_name(sample) for sample in dataset.train if not sample.gone)
    _lines(place / "splits" / "unlabelled.txt", [name for name in pool if name not in found.files])
    table = {"classes": [{"name": name, "value": i, "colour": dataset.palette[i].tolist()}
                         for i, name in enumerate(names)], "unlabelled": VOID}
    write_atomic(place / "classes.json", json.dumps(table, indent=1).encode())
    write_atomic(place / CONFIG, _config(config, stores, bool(val), out).encode())


def _lines(file: Path, names: Iterable[str]) -> None:
    write_atomic(file, "".join(f"{name}\n" for name in names).encode())


def _config(config: Config, stores: Stores, val: bool, out: Path) -> str:
    """A config that trains the run's network on all labels at once."""
    names = [file_name(sample) for sample in (*stores.dataset.train, *stores.dataset.val)]
    deep = any("/" in name for name in names)

    def keys(prefix: str) -> dict[str, str]:
        masks = f"{prefix}masks/{{dir}}/{{stem}}.png" if deep else f"{prefix}masks"
        return {f"{prefix}images": f"{prefix}images/**/*" if deep else f"{prefix}images", f"{prefix}masks": masks}

    data = config.data
    kept = {key: getattr(data, key) for key in ("image_size", "resize", "tile", "grid", "context", "exif", "bands",
                                                "max_megapixels", "loader")}
    values = {
        "dataset": "folder", "root": str(out.absolute()), **keys(""),
        **(keys("val_") if val else {"val_images": None, "val_masks": None}),
        "class_names": list(stores.dataset.class_names), "ignore_index": VOID, "absent_classes": "allow", **kept,
    }
    made = Config.model_validate({
        "seeds": [config.seeds[0]], "data": values, "model": config.model, "train": config.train,
        "query": {"strategy": config.query.strategy, "rounds": 0, "n_initial_images": 0}})
    return ("# Written by meal-gpu export. meal-gpu run trains on all of these labels at once; other code reads\n"
            f"# images/, masks/, splits/ and classes.json, or coco/. Unlabelled pixels have the value {VOID}.\n"
            f"{made.dump()}")


def _told(config: Config, stores: Stores, found: Masks, val: dict[str, Sample], out: Path) -> list[str]:
    n, height, width = len(found.files), *config.data.image_size
    pool = stores.dataset.train
    labelled = sum(int((mask != VOID).sum()) for mask in found.masks.values())
    pixels = sum(mask.size for mask in found.masks.values())
    lines = [f"{found.patches} patches of {n} images, labelled in {found.rounds} rounds: {labelled / pixels:.1%} of "
             f"their pixels; the rest has the value {VOID}.",
             f"{len(pool) * config.data.tiling().cells - found.patches:,} patches of the pool are not labelled; images "
             "without any label are named in splits/unlabelled.txt."]
    if found.as_made < found.patches:
        lines.append(f"{found.as_made} patches are as they were labelled, at the files' own sizes; "
                     f"{found.patches - found.as_made} were labelled at {width} x {height} pixels (width x height) and "
                     "are enlarged to their files.")
    if val:
        lines.append(f"{len(val)} validation images, labelled whole.")
    return [*lines, f"It is in {out}: images, masks, splits, coco, classes.json, {CONFIG}."]
