"""The folder of a query: windows of the original images, predictions to begin with, and what each tool imports.

It is written beside its place and renamed, so that a folder that is there is whole.
"""

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from ..data.imagefile import Reading
from ..data.listing import Sample
from ..data.rules import Rules
from ..data.sheet import Sheet, open_sheet
from ..files import own_directory, sync_directory, write_atomic
from ..grid import Grid
from . import coco, cvat, labelstudio, predictions
from .classfile import write_table
from .page import framed, page
from .places import Place, place
from .query import FILE, Item, Original, Query, class_rows, item_id, pixels_sha256, write_query
from .readme import readme

PARTS = ("images", "framed", predictions.FOLDER, "labelstudio", "cvat", "coco", "masks")


def lay_out(name: str, round_: int, run: str, patches: Sequence[Mapping[str, object]], files: Sequence[str],
            samples: Sequence[Sample], grid: Grid, rules: Rules, predicted: Mapping[int, np.ndarray], first: int = 1,
            replaces: Sequence[str] = ()) -> tuple[Query, dict[str, tuple[Sample, Place]], dict[str, np.ndarray]]:
    """A query as it will be written; where its items lie; and their predictions in the pixels of their boxes.

    ``patches`` with id, image, row, col, box and score, the most wanted first; ``files`` are their other names;
    ``predicted`` as of `predictions.of_round`. Reads headers and checksums of the originals.
    """
    rows, void = class_rows(rules)
    items, places, starts, digests = [], {}, {}, dict[Path, str]()
    for rank, (patch, file) in enumerate(zip(patches, files, strict=True), start=first):
        id_ = int(str(patch["id"]))
        image, cell = grid.split(id_)
        sample = samples[image]
        at = place(sample, cell, grid, rules)
        box = grid.box(cell)
        item = item_id(round_, rank, sample.name, box)
        places[item] = sample, at
        if sample.image not in digests:
            digests[sample.image] = sha256_of(sample.image)
        if id_ in predicted:
            starts[item] = at.from_patch(predicted[id_])
        score = patch.get("score")
        items.append(Item(
            id=item, rank=rank, patch=id_, image=sample.name, row=cell // grid.cols, col=cell % grid.cols, box=box,
            score=score if isinstance(score, float) else None, file=file,
            prediction_sha256=pixels_sha256(starts[item]) if item in starts else "",
            original=Original(file=sample.image.name, size=at.size, sha256=digests[sample.image], box=at.box,
                              window=at.window)))
    query = Query(query=name, run=run, round=round_, classes=rows, void=void, items=items, replaces=list(replaces))
    return query, places, starts


def sha256_of(path: Path) -> str:
    """Of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_folder(folder: Path, query: Query, places: Mapping[str, tuple[Sample, Place]],
                 starts: Mapping[str, np.ndarray], rules: Rules, run_directory: Path) -> None:
    """Write all of a query. What stands in ``folder`` without a ``query.json`` is replaced, its masks are kept."""
    own_directory(folder.parent)
    partial = folder.with_name(f".{folder.name}.partial")
    if partial.is_symlink():
        partial.unlink()
    shutil.rmtree(partial, ignore_errors=True)
    for name in PARTS:
        (partial / name).mkdir(parents=True)
    _windows(partial, query, places, starts, rules.reading)
    for item in query.items:
        if item.id in starts:
            predictions.write(partial / predictions.FOLDER, f"{item.id}.png", starts[item.id])
    tasks = list(labelstudio.tasks(query, partial, starts))
    _write(partial / "labelstudio" / "label_config.xml", labelstudio.label_config(query))
    _write(partial / "labelstudio" / "tasks.json", json.dumps(tasks))
    _write(partial / "cvat" / "annotations.xml", cvat.write(query, starts))
    _write(partial / "cvat" / "labels.json", json.dumps(cvat.labels(query), indent=1, ensure_ascii=False))
    write_atomic(partial / "cvat" / "images.zip", lambda stream: _zip(stream, partial / "images"))
    _write(partial / "coco" / "instances.json", json.dumps(coco.write(query, starts), ensure_ascii=False))
    write_table(partial, rules)
    _write(partial / "README.txt", readme(query, folder, run_directory))
    _write(partial / "query.html", page(query, partial, starts))
    write_query(partial, query, run_directory)
    _put(partial, folder)


def _windows(partial: Path, query: Query, places: Mapping[str, tuple[Sample, Place]],
             starts: Mapping[str, np.ndarray], reading: Reading) -> None:
    """Each file is opened once."""
    by_file: dict[Path, list[Item]] = {}
    for item in query.items:
        by_file.setdefault(places[item.id][0].image, []).append(item)
    for path, items in by_file.items():
        sheet: Sheet = open_sheet(path, reading)
        for item in items:
            at = places[item.id][1]
            window = sheet.cut(at.window)
            _save(partial / "images" / f"{item.id}.png", Image.fromarray(window), "PNG")
            _save(partial / "framed" / f"{item.id}.jpg", Image.fromarray(framed(window, item.inside)), "JPEG")


def _save(path: Path, image: Image.Image, kind: str) -> None:
    write_atomic(path, lambda stream: image.save(stream, format=kind, **({"quality": 92} if kind == "JPEG" else {})))


def _write(path: Path, content: str | bytes) -> None:
    write_atomic(path, content.encode() if isinstance(content, str) else content)


def _zip(stream: BinaryIO, images: Path) -> None:
    """Of equal images equal bytes: no times of files."""
    with zipfile.ZipFile(stream, "w") as archive:
        for path in sorted(images.iterdir()):
            archive.writestr(zipfile.ZipInfo(path.name), path.read_bytes())


def _put(partial: Path, folder: Path) -> None:
    """In its place: renamed as a whole, or, where something stands there, file by file with the query last."""
    if not os.path.lexists(folder):
        sync_directory(partial)
        os.rename(partial, folder)
    else:
        own_directory(folder)
        for path in sorted(partial.rglob("*"), key=lambda path: (path.name == FILE, path)):
            there = folder / path.relative_to(partial)
            if path.is_dir():
                own_directory(there)
            else:
                os.replace(path, there)
        shutil.rmtree(partial)
    sync_directory(folder.parent)
