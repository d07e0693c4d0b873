"""``query.json``: what a round asks people for. It is the truth that answers are compared with, and sealed like it."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..data.rules import Rules
from ..errors import InputError
from ..files import open_object, parse_json, read_own, seal_object, write_atomic
from ..grid import Box, Size
from ..records import run_name
from .windows import Windowed

FILE = "query.json"
FOLDER = "to-label"
SCHEMA = 1
_BYTES = 2**28

Colour = tuple[int, int, int]


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClassRow(Strict):
    """A class, or void, as tools show it."""

    name: str
    values: list[int]
    """In masks that hold ids."""
    colour: Colour


class Original(Strict, Windowed):
    """Where a patch lies in its file; boxes ``[y0, x0, y1, x1]`` in the file's pixels, EXIF applied."""

    file: str
    size: Size
    sha256: str
    box: Box
    window: Box


class Item(Strict):
    """A patch that is asked for."""

    id: str
    rank: int
    patch: int
    """Its id in the pool."""
    image: str
    row: int
    col: int
    box: Box
    """In the resized image, which the network sees."""
    score: float | None = None
    file: str
    """Another name under which its mask is taken: image, row and column."""
    original: Original | None = None
    """None in queries of before windows were cut from the originals."""
    prediction_sha256: str = ""
    """Of the pixels of ``predictions/<id>.png``; empty without."""

    @field_validator("id", "file")
    @classmethod
    def _plain(cls, value: str) -> str:
        """They name files."""
        if not value or value.startswith(".") or any(char in value for char in "/\\\0"):
            raise ValueError("it leads out of the query's folder")
        return value

    @property
    def shape(self) -> Size:
        """(height, width) of its labels."""
        return self.original.shape if self.original else self.patch_shape

    @property
    def patch_shape(self) -> Size:
        return self.box[2] - self.box[0], self.box[3] - self.box[1]

    @property
    def window_shape(self) -> Size:
        """(height, width) of the image that people see."""
        return self.original.window_shape if self.original else self.patch_shape

    @property
    def inside(self) -> tuple[slice, slice]:
        """The patch, in what people see."""
        return self.original.inside if self.original else (slice(None), slice(None))

    @property
    def names(self) -> tuple[str, ...]:
        """Of files that hold its mask."""
        return f"{self.id}.png", self.file


class Query(Strict):
    schema_: int = Field(alias="schema", default=SCHEMA)
    query: str
    """Its folder below ``to-label``."""
    run: str
    """The run's name, drawn when it began."""
    round: int
    classes: list[ClassRow]
    void: ClassRow
    items: list[Item]
    replaces: list[str] = []
    """Ids of skipped items in whose place these are asked for."""

    @property
    def names(self) -> list[str]:
        """Of the classes, and of void."""
        return [*(row.name for row in self.classes), self.void.name]

    def item(self, id_: str) -> Item | None:
        return next((item for item in self.items if item.id == id_), None)


def item_id(round_: int, rank: int, image: str, box: Box) -> str:
    """Such as ``r03-0001-5f0c9a77``: of the image's name and the box in the resized image."""
    digest = hashlib.sha256(f"{image}|{','.join(map(str, box))}".encode()).hexdigest()[:8]
    return f"r{round_:02d}-{rank:04d}-{digest}"


def pixels_sha256(pixels: np.ndarray) -> str:
    """Of labels uint8 ``[H, W]``, row by row."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def class_rows(rules: Rules) -> tuple[list[ClassRow], ClassRow]:
    """The run's classes, and void under a name that no class has."""
    table, rows, used = rules.table(), list[ClassRow](), set[Colour]()
    given = {tuple(colour) for entry in table["classes"] for colour in entry["colours"][:1]}
    for i, entry in enumerate(table["classes"]):
        colours = [tuple(colour) for colour in entry["colours"][:1]]
        drawn = (_drawn(k) for k in range(i, i + 1000))
        colour = next(colour for colour in [*colours, *drawn] if colour not in used and (
            colour in colours or colour not in given))
        used.add(colour)
        rows.append(ClassRow(name=entry["name"], values=entry["values"], colour=colour))
    taken = {row.name for row in rows}
    name = next(name for name in ("void", "_void", "_void_") if name not in taken)
    colours = [tuple(colour) for colour in table["void"]["colours"] if tuple(colour) not in used and any(colour)]
    return rows, ClassRow(name=name, values=table["void"]["values"],
                          colour=colours[0] if colours else max(_APART, key=lambda colour: _distance(colour, used)))


_APART = ((255, 255, 255), (255, 0, 255), (255, 255, 0), (0, 255, 255), (136, 136, 136), (255, 128, 0), (1, 1, 1))
"""For void: of these the one that is least like any class's."""


def _distance(colour: Colour, others: set[Colour]) -> int:
    return min((sum((a - b) ** 2 for a, b in zip(colour, other, strict=True)) for other in others), default=0)


def _drawn(i: int) -> Colour:
    """For a class that has none."""
    return 55 + i * 79 % 200, 40 + i * 113 % 211, 30 + i * 151 % 223


def write_query(folder: Path, query: Query, run_directory: Path) -> None:
    text = json.dumps(query.model_dump(by_alias=True), indent=1, ensure_ascii=False).encode()
    write_atomic(folder / FILE, seal_object(text, run_name(run_directory)) + b"\n")


def read_query(folder: Path, run_directory: Path) -> Query | list[Any]:
    """A query as it was written; a list of patches where a run of before wrote it.

    Raises `InputError` for one that was edited or damaged, or is of another run, and `FileNotFoundError`.
    """
    file = folder / FILE
    try:
        text, _, right = open_object(read_own(file, _BYTES), run_name(run_directory))
        held = parse_json(text)
        if isinstance(held, list):
            return held
        found = Query.model_validate(held)
    except (ValidationError, ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is damaged ({_why(error)}). Remove it: --resume writes it again.") from None
    if right is not True:
        raise InputError(f"{file} was edited, or is of another run. Restore it, or remove it: --resume writes it "
                         "again.")
    if found.schema_ != SCHEMA:
        raise InputError(f"{file} is of schema {found.schema_}, and this version reads {SCHEMA}: use the meal-gpu that "
                         "wrote it.")
    return found


def folders(seed_directory: Path, round_: int | None = None) -> list[Path]:
    """The folders of all queries of a seed, or of one round, in the order in which they were asked."""
    base = seed_directory / FOLDER
    number = r"\d+" if round_ is None else f"{round_:02d}"
    named = re.compile(rf"round-({number})(?:-more-(\d+))?")
    found = [(int(match[1]), int(match[2] or 0), path) for path in (base.iterdir() if base.is_dir() else ())
             if (match := named.fullmatch(path.name)) and (path / FILE).exists()]
    for _, _, path in found:
        if path.is_symlink():
            raise InputError(f"{path} is a symbolic link, and what a run writes is never one: put the folder itself in "
                             "its place, or remove the link.")
    return [path for _, _, path in sorted(found)]


def _why(error: Exception) -> str:
    if isinstance(error, ValidationError):
        detail = error.errors()[0]
        return f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}"
    return str(error)
