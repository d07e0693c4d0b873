"""``meal-gpu predict``: masks of a run's last network for a folder of images, at the images' own sizes.

Images are read, resized, fitted or cut as the run's own were. A mask is in place whole or not at all, and one that is
in place is not made again: whoever is interrupted calls again. ``predictions.json`` says which network made them, so
that those of another one do not come in between.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..config import Config
from ..data.datasets import Dataset, classes_of, open_dataset
from ..data.decode import Decoded, decode_each, open_decoder
from ..data.fit import inner_size
from ..data.imagefile import read_image
from ..data.ingest import decoder_name
from ..data.listing import Sample
from ..data.survey import places
from ..data.tiles import file_name, inside
from ..errors import InputError, all_of
from ..files import open_object, own_directory, parse_json, read_own, seal_object, write_atomic
from ..grid import Size
from ..launch import load_resumed, seed_of
from ..machine.backend import Backend, resolve
from ..network.features import batch_pixels, images_per_batch
from ..paths import expand, settle_home
from ..timing import Progress, no_progress
from .enlarge import Axis, classes_at
from .network import Left, load, logits

FILE = "predictions.json"
MASKS, OVERLAYS = "masks", "overlays"


@dataclass
class Counts:
    """Of image files."""

    written: int = 0
    there: int = 0
    """Made by an earlier call."""
    as_seen: int = 0
    resized: int = 0
    fitted: int = 0
    tiled: int = 0
    tiles: int = 0
    problems: list[InputError] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Job:
    config: Config
    dataset: Dataset
    classes: Dataset
    backend: Backend
    left: Left
    out: Path
    overlays: bool

    @property
    def values(self) -> np.ndarray:
        """uint8 ``[classes]``: the value of each class in the data set's own masks."""
        return np.array([int(np.flatnonzero(self.classes.to_class == i)[0])
                         for i in range(len(self.classes.class_names))], np.uint8)

    def mask(self, name: str) -> Path:
        return self.out / MASKS / f"{name}.png"

    def overlay(self, name: str) -> Path:
        return self.out / OVERLAYS / f"{name}.jpg"

    def done(self, name: str) -> bool:
        return self.mask(name).is_file() and (not self.overlays or self.overlay(name).is_file())


def predict(run: Path, images: Path, out: Path, overlays: bool = False, seed: int | None = None,
            overrides: list[str] | None = None, progress: Progress = no_progress) -> list[str]:
    """Write masks of all images of a folder, and say what was done.

    ``overrides`` may name what belongs to the machine, as where a run goes on. Raises `InputError` where there is no
    network, ``out`` holds something else, and, after all others are written, for images that cannot be read.
    """
    settle_home()
    run, out = expand(run), expand(out)
    config = load_resumed(run, overrides)
    seed = seed_of(config, seed)
    dataset, classes = _opened(config, images), classes_of(config.data)
    _check_apart(out, expand(images))
    backend = resolve(config, embeds=False)
    left = load(run / f"seed-{seed}", config, len(classes.class_names), backend.device)
    job = _Job(config, dataset, classes, backend, left, out, overlays)
    _claim(job, {"network": left.digest, "round": left.round, "seed": seed, "run": run.absolute().name,
                 "classes": {name: int(value) for name, value in zip(classes.class_names, job.values, strict=True)},
                 "colours": classes.palette.tolist()})
    counts = _write(job, progress)
    if counts.problems:
        raise all_of(counts.problems, len(_files(dataset.train)), "images")
    return _told(job, counts)


def _opened(config: Config, images: Path) -> Dataset:
    """The folder's images, cut into tiles where the run's were."""
    found = places(images, None)
    keys = {**found, "root": Path(found["root"]), "dataset": "folder", "val_images": None, "val_fraction": 0.0,
            "unlabelled": "stop"}
    if config.data.dataset != "folder":
        keys["class_names"] = ["one", "two"]  # only for listing
    return open_dataset(config.data.model_copy(update=keys))


def _check_apart(out: Path, images: Path) -> None:
    if out.resolve() == images.resolve():
        raise InputError(f"--out is {out}, where the images are: masks would lie among them, or in their place. Give "
                         "another folder.")


def _claim(job: _Job, about: dict[str, Any]) -> None:
    """Make the folder that of these predictions, or see that it is."""
    file = job.out / FILE
    try:
        if os.path.lexists(file):
            held, _, right = open_object(read_own(file))
            if right is not True or parse_json(held) != about:
                raise InputError(f"{job.out} holds predictions of another network or run (see {file.name} there). Give "
                                 "another --out, or remove the folder.")
        elif job.out.is_dir() and any(job.out.iterdir()):
            raise InputError(f"{job.out} is not empty and holds no predictions: give an empty or a new folder as "
                             "--out, so that nothing is overwritten.")
        else:
            write_atomic(file, seal_object(json.dumps(about).encode()))
        for name in (MASKS, OVERLAYS)[: 1 + job.overlays]:
            own_directory(job.out / name)
    except ValueError:
        raise InputError(f"{file} is damaged: give another --out, or remove the folder.") from None
    except OSError as error:
        raise InputError(f"{error.filename or job.out} cannot be written: {error.strerror}. Give another --out."
                         ) from None


def _files(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """By a file's name, its tiles or itself."""
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(file_name(sample), []).append(sample)
    return found


def _write(job: _Job, progress: Progress) -> Counts:
    counts, files = Counts(), _files(job.dataset.train)
    todo = {name: parts for name, parts in files.items() if not job.done(name)}
    counts.there = len(files) - len(todo)
    progress("predict", counts.there, len(files))
    whole: dict[str, tuple[np.ndarray, int]] = {}
    for sample, classes in _predicted(job, [part for parts in todo.values() for part in parts], counts,
                                      len(job.dataset.train)):
        name = file_name(sample)
        if sample.box is None:
            _save(job, sample, classes)
        else:
            mask, missing = whole.pop(name) if name in whole else (np.zeros(sample.file_size, np.uint8),
                                                                   len(todo[name]))
            y0, x0, y1, x1 = inside(sample)
            mask[y0:y1, x0:x1] = classes
            if missing > 1:
                whole[name] = mask, missing - 1
                continue
            counts.tiled, counts.tiles = counts.tiled + 1, counts.tiles + len(todo[name])
            _save(job, sample, mask)
        counts.written += 1
        progress("predict", counts.there + counts.written, len(files))
    return counts


def _predicted(job: _Job, samples: Sequence[Sample], counts: Counts,
               total: int) -> Iterator[tuple[Sample, np.ndarray]]:
    """Samples and their classes uint8, at their files' sizes; what cannot be read is counted."""
    data, pixels = job.config.data, batch_pixels(job.backend)
    most = min(images_per_batch(data.tiling(), pixels), total)
    rules = job.classes.rules(data)
    name = decoder_name(tuple(samples), data, job.backend.device.type == "cuda")
    waiting: list[tuple[Sample, Decoded]] = []
    decoded = decode_each(samples, data.image_size, rules, open_decoder(name, data.image_size)) if samples else ()
    for i, (sample, found) in enumerate(zip(samples, decoded, strict=True), start=1):
        if isinstance(found, InputError):
            counts.problems.append(found)
        else:
            waiting.append((sample, found))
        if waiting and (len(waiting) == most or i == len(samples)):
            per = data.tiling().per_image(data.context)
            stacked = np.stack([one.image for _, one in waiting])
            maps = logits(job.left.model, stacked, job.config, job.backend, most * per)
            for (of, one), values in zip(waiting, maps, strict=True):
                yield of, classes_at(values, *_axes(job, of, one.source.size, counts))
            waiting = []


def _axes(job: _Job, sample: Sample, size: Size, counts: Counts) -> tuple[Axis, Axis]:
    """Of the file's pixels (a tile's: those within its file), in the map of what the network saw of it."""
    data, grid, device = job.config.data, job.config.data.tiling(), job.backend.device
    frame = data.image_size
    seen, whole = frame, size
    if sample.box is not None:
        assert data.tile is not None
        whole = data.tile
    elif data.resize == "fit":
        seen = inner_size(size, frame)
        counts.fitted += seen != size
        counts.as_seen += seen == size
    else:
        counts.resized += size != frame
        counts.as_seen += size == frame
    parts = (1, 1) if data.context == "image" else (grid.rows, grid.cols)
    shapes = job.left.model.map_shapes(grid.within(data.context).height, grid.within(data.context).width)
    axes = [Axis.of(whole[i], seen[i], frame[i], shapes[0][1 + i], parts[i], device) for i in (0, 1)]
    return tuple(Axis(axis.lower[:n], axis.weight[:n]) for axis, n in zip(axes, size, strict=True))  # type: ignore


def _save(job: _Job, sample: Sample, classes: np.ndarray) -> None:
    name = file_name(sample)
    try:
        if job.overlays:
            picture = read_image(sample.image, job.classes.rules(job.config.data).reading)
            shown = Image.fromarray(picture // 2 + job.classes.palette[classes] // 2)
            write_atomic(job.overlay(name), partial(shown.save, format="JPEG", quality=90))
        write_atomic(job.mask(name), partial(Image.fromarray(job.values[classes]).save, format="PNG"))
    except OSError as error:
        raise InputError(f"{job.mask(name)} cannot be written: {error.strerror}. What is written is kept; call again "
                         "when that is put right.") from None


def _told(job: _Job, counts: Counts) -> list[str]:
    data, made = job.config.data, job.left.round
    height, width = data.image_size
    by = "" if made is None else f" by the network of round {made}"
    lines = [f"{counts.written} masks written to {job.out / MASKS}{by}, each of its image's size."]
    if counts.there:
        lines.append(f"{counts.there} were there already, by the same network.")
    if counts.as_seen and (counts.resized or counts.fitted):
        lines.append(f"{counts.as_seen} images are of {width} x {height} pixels (width x height), as the network sees "
                     "them.")
    for n, what in ((counts.resized, f"resized to {width} x {height} pixels (width x height; data.resize: stretch)"),
                    (counts.fitted, f"fitted into {width} x {height} pixels (width x height; data.resize: fit)")):
        if n:
            lines.append(f"{n} were {what}, as in training, and their logits brought back to their own sizes.")
    if counts.tiled:
        assert data.tile is not None
        lines.append(f"{counts.tiled} were cut into {counts.tiles} tiles of {data.tile[1]} x {data.tile[0]} pixels "
                     "(width x height; data.tile), as in training.")
    if data.context == "patch":
        lines.append("Each patch was seen alone, as in training (data.context: patch).")
    if job.overlays:
        lines.append(f"Overlays are in {job.out / OVERLAYS}.")
    values = ", ".join(f"{value} {name}" for name, value in zip(job.classes.class_names, job.values, strict=True))
    lines.append(f"Values: {values}.")
    lines += job.dataset.left_out[data.tile is not None :]
    return lines
