"""Masks that people drop into the ``masks`` folder of a query, taken when a run goes on; and what else lies there."""

import hashlib
import os
from pathlib import Path

from ..data.rules import Rules
from ..errors import InputError, did_you_mean
from ..files import read_own
from .answers import Answer, Answers
from .archive import MOST_BYTES
from .masks import TABLES, TOOL, read_one
from .query import Item, Query, pixels_sha256
from .standing import Standing

FOLDER = "masks"


def found(folder: Path, query: Query) -> dict[str, Path]:
    """Items that a mask lies there for, and its file. Raises `InputError` for a link, and for two of one item."""
    masks, files = folder / FOLDER, dict[str, Path]()
    for item in query.items:
        there = [masks / name for name in dict.fromkeys(item.names) if os.path.lexists(masks / name)]
        if len(there) > 1:
            raise InputError(f"{there[0]} and {there[1].name} beside it are masks of one patch. Remove one of them.")
        if there:
            files[item.id] = there[0]
    return files


def read(standing: Standing, folder: Path, query: Query,
         rules: Rules) -> list[tuple[Answers, str, str]]:
    """Masks there that are not what was taken from there before: answers, the name of their file, its checksum.

    Raises `InputError` where one cannot be taken.
    """
    new = []
    for id_, file in found(folder, query).items():
        content = read_own(file, MOST_BYTES)
        digest = hashlib.sha256(content).hexdigest()
        source = file.relative_to(standing.seed_directory).as_posix()
        before = [line for line in standing.taken if line.item == id_ and line.source == source]
        if before and before[-1].source_sha256 == digest:
            continue
        item = next(item for item in query.items if item.id == id_)
        labels = read_one(content, str(file), item, rules)
        if before and before[-1].labels_sha256 == pixels_sha256(labels):
            continue
        new.append((Answers(TOOL, [Answer(query, item, labels)]), source, digest))
    return new


def unexpected(folder: Path, query: Query, missing: list[Item]) -> list[str]:
    """What lies among the masks and is none that was asked for, in words, each with the nearest missing name."""
    masks, told = folder / FOLDER, []
    known = {name for item in query.items for name in item.names} | set(TABLES)
    wanted = [name for item in missing for name in item.names]
    for entry in sorted(masks.iterdir()) if masks.is_dir() else ():
        if entry.name in known or entry.name.startswith("."):
            continue
        what = "a folder" if entry.is_dir() else "" if entry.suffix == ".png" else "no .png file"
        near = did_you_mean(entry.name, wanted).strip()
        told.append(" ".join(filter(None, [entry.name, f"({what})" if what else "", near])))
    return told
