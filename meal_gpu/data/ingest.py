"""Decode a data set once into stores of raw uint8 pixels that later runs memory-map."""

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import DataConfig
from ..errors import InputError, and_so_on
from ..machine.backend import find_loader
from ..timing import Progress, no_progress
from .build import Plan, alone, build, writing
from .datasets import Dataset, Sample, cache_dir, open_dataset
from .order import changes
from .store import FORMAT, Store, read_manifest

__all__ = ["Store", "Stores", "ingest"]

_log = logging.getLogger("meal_gpu")


@dataclass(frozen=True, eq=False)
class Stores:
    """A data set and its decoded splits; ``val`` is None where there is none."""

    dataset: Dataset
    train: Store
    val: Store | None


def ingest(data: DataConfig, progress: Progress = no_progress, dataset: Dataset | None = None,
           gpu: bool = False) -> Stores:
    """Open the stores of a data set, after building those that are missing, stale or damaged.

    A build that was killed is continued. Of two processes that want one store, the second waits for the first.
    Calls ``progress("ingest train", done, total)``, in images; ``dataset`` saves listing its files again; ``gpu`` lets
    DALI decode JPEG files there. Raises `InputError` for whatever is wrong with the data, for a ``data.loader`` that is
    not installed, and when the disk is full: what is decoded by then is kept.
    """
    dataset = dataset or open_dataset(data)
    train, val = (_open_or_build(_plan(dataset, split, samples, data, gpu), progress) if samples else None
                  for split, samples in (("train", dataset.train), ("val", dataset.val)))
    assert train is not None  # open_dataset refuses an empty training split
    return Stores(dataset, train, val)


def missing_bytes(data: DataConfig, dataset: Dataset, gpu: bool = False) -> int:
    """What `ingest` would still have to write, at most; files are listed, and nothing is read of them."""
    plans = [_plan(dataset, split, samples, data, gpu)
             for split, samples in (("train", dataset.train), ("val", dataset.val)) if samples]
    return sum(sum(plan.row_bytes) * len(plan.samples) for plan in plans if _open_fresh(plan)[0] is None)


def changed(dataset: Dataset, data: DataConfig) -> list[str]:
    """What of the pool's files is not as it was when they were last decoded, in words; nothing where they never were.
    """
    plan = _plan(dataset, "train", dataset.train, data, False)
    try:
        manifest = read_manifest(plan.path)
        before = dict(zip(manifest["names"], manifest["stamps"], strict=True))
    except (OSError, ValueError, TypeError, KeyError, InputError):
        return []
    other = [name for name, stamp in zip(plan.names, plan.stamps, strict=True) if before.get(name, stamp) != stamp]
    said = changes(before, plan.names)
    if other:
        said.append(f"{len(other)} {'images have' if len(other) > 1 else 'image has'} other files: "
                    f"{and_so_on(other)}.")
    return [f"Since the store was built: {line}" for line in said]


def _plan(dataset: Dataset, split: str, samples: tuple[Sample, ...], data: DataConfig, gpu: bool) -> Plan:
    def directory(files: list[Path]) -> str:
        return os.path.commonpath([os.path.abspath(parent) for parent in {os.path.dirname(file) for file in files}])

    rules = dataset.rules(data)
    masks = [sample.mask for sample in samples if sample.mask is not None]
    there = tuple(sample for sample in samples if not sample.gone)
    settings: dict[str, Any] = {
        "format": FORMAT, "dataset": dataset.name, "split": split, "image_size": list(data.image_size),
        "images": directory([sample.image for sample in there]), "masks": directory(masks) if masks else None,
        "to_class": dataset.to_class.tobytes().hex(), "decoder": decoder_name(there, data, gpu), **rules.settings(),
    }
    height, width = data.image_size

    def path() -> Path:
        key = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=4).hexdigest()
        return cache_dir(data).absolute() / f"{dataset.name}-{split}-{height}x{width}-{key}"

    beside = None
    if dataset.order is not None and split == "train":
        beside = path()
        settings["order"] = dataset.order
    return Plan(path(), split, samples, data.image_size, rules, settings, [_stamp(s) for s in samples], beside)


def decoder_name(samples: tuple[Sample, ...], data: DataConfig, gpu: bool) -> str:
    """The name of the decoder, which belongs to a store's settings: decoders round differently where they resize.

    A GPU is of use for JPEG alone: DALI decodes everything else on the CPU, and bringing it there for the resizing and
    back would only cost.
    """
    loader, _ = find_loader(data.loader)
    jpeg = any(sample.image.suffix.lower() in (".jpg", ".jpeg") for sample in samples)
    return "dali-mixed" if loader == "dali" and gpu and jpeg else loader


def _stamp(sample: Sample) -> list[int]:
    stamp = []
    for file in (sample.image, sample.mask):
        if file is not None and not sample.gone:
            try:
                status = os.stat(file)
            except OSError as error:
                raise InputError(f"{file} cannot be read: {error.strerror}. Restore the file.") from None
            stamp += [status.st_size, status.st_mtime_ns]
    return stamp


def _open_fresh(plan: Plan) -> tuple[Store | None, str]:
    """The store if it is what the plan asks for, else the reason why it is not."""
    try:
        manifest = read_manifest(plan.path)
        if manifest.get("settings") != plan.settings:
            return None, "its settings differ"
        if manifest.get("names") != plan.names:
            return None, "files were added or removed"
        for sample, now, then in zip(plan.samples, plan.stamps, manifest.get("stamps", []), strict=True):
            if now != then:
                return None, f"the files of {sample.name} have changed"
        return Store.from_manifest(plan.path, manifest), ""
    except FileNotFoundError:
        return None, "" if not plan.path.exists() else "a file of it is missing"
    except (OSError, ValueError, TypeError, InputError) as error:
        return None, f"it is damaged: {error}"


def _open_or_build(plan: Plan, progress: Progress) -> Store:
    store, _ = _open_fresh(plan)
    if store is None:
        with writing(plan), alone(plan):
            store, why = _open_fresh(plan)  # another process may just have built it
            if store is None:
                if why:
                    _log.info("The store %s is rebuilt: %s.", plan.path, why)
                build(plan, progress)
                store = Store.open(plan.path)
    return store
