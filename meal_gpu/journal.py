"""``labels.jsonl`` of a seed: a sealed line for every label that was taken from people.

A file is read whole or refused, and replaced as a whole: whoever is killed while taking labels leaves all of them or
none. A later line for the same item and annotator supersedes the earlier one, which stays.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import InputError
from .files import LINES, open_object, parse_json, read_own, seal_object, write_atomic
from .records import accepting, run_name

JOURNAL = "labels.jsonl"
UNLABELLED = 254
"""Where nobody said anything, in labels that were taken; ignored in training, but not void."""
Status = Literal["labelled", "partial", "skipped"]


class Pixels(BaseModel):
    """Labelled pixels of a patch at the original size, by where they come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prediction: int = Field(default=0, ge=0)
    """As the network predicted them, and left so."""
    changed: int = Field(default=0, ge=0)
    """Predicted otherwise, and changed."""
    manual: int = Field(default=0, ge=0)
    """Drawn where nothing was predicted."""

    @property
    def total(self) -> int:
        return self.prediction + self.changed + self.manual


class Taken(BaseModel):
    """A line of the journal: what one person said of one patch."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    item: str
    """Id of the item in its query, such as ``r03-0001-5f0c9a77``."""
    round: int = Field(ge=0)
    query: str
    """Which query asked, such as ``round-03``: its folder in ``to-label``."""
    patch: int = Field(ge=0)
    """Id of the patch in the pool."""
    status: Status
    annotator: str = ""
    """As the tool names them; empty where it does not."""
    lead_time: float | None = Field(default=None, ge=0)
    """Seconds that the person took, where the tool says."""
    pixels: Pixels = Pixels()
    void: int = Field(default=0, ge=0)
    """Pixels labelled as void, which `pixels` count too."""
    unlabelled: int = Field(default=0, ge=0)
    """Pixels that nobody said anything of: ignored in training."""
    conflicts: int = Field(default=0, ge=0)
    """Pixels that one person gave two classes: unlabelled as well."""
    tool: str = ""
    """Format in which the label came, such as ``Label Studio JSON``."""
    annotation: str = ""
    """Id of the annotation in the tool."""
    updated: str = ""
    """When the tool says that it was made, ISO 8601 in UTC; empty where it does not."""
    added: str = ""
    """When it was taken, ISO 8601 in UTC."""
    revision: int = Field(default=1, ge=1)
    """1 for the first label of this item by this annotator, 2 for what superseded it, ..."""
    source: str = ""
    """Name of the file that it came in."""
    source_sha256: str = ""
    labels: str = ""
    """The label's file below the seed's directory; empty where the patch was skipped."""
    labels_sha256: str = ""
    """Of the labels' pixels, row by row; empty where the patch was skipped."""

    @property
    def when(self) -> str:
        """What is later, of two labels of one patch."""
        return self.updated or self.added


def read_journal(seed_directory: Path) -> list[Taken]:
    """All lines, in the order in which they were taken; empty where there is no journal.

    Raises `InputError` for a journal that was edited or damaged.
    """
    file = seed_directory / JOURNAL
    check = _start(seed_directory)
    taken = []
    for number, line in enumerate(_lines(file), start=1):
        text, check, right = open_object(line, check)
        if right is not True:
            raise _damaged(file, number, "its checksum is missing" if right is None else
                           "its checksum is another: it was edited, or is of another run")
        taken.append(_parsed(file, number, text))
    return taken


def write_journal(seed_directory: Path, taken: list[Taken]) -> None:
    """Put the journal in place, whole."""
    check, lines = _start(seed_directory), []
    for one in taken:
        text = json.dumps(one.model_dump()).encode()
        lines.append(seal_object(text, check) + b"\n")
        check = open_object(text, check)[1]
    write_atomic(seed_directory / JOURNAL, b"".join(lines))


def accept_journal(seed_directory: Path) -> bool:
    """Seal a journal anew as somebody has edited it; whether it was edited. Raises `InputError` where it cannot be
    read at all."""
    try:
        read_journal(seed_directory)
        return False
    except InputError:
        file = seed_directory / JOURNAL
        taken = [_parsed(file, number, open_object(line)[0]) for number, line in enumerate(_lines(file), start=1)]
        write_journal(seed_directory, taken)
        return True


def newest(taken: list[Taken]) -> dict[str, dict[str, Taken]]:
    """Item → annotator → the newest line."""
    found: dict[str, dict[str, Taken]] = {}
    for one in taken:
        mine = found.setdefault(one.item, {})
        if one.annotator not in mine or one.revision > mine[one.annotator].revision:
            mine[one.annotator] = one
    return found


def latest(lines: Iterable[Taken]) -> Taken:
    """Of what several people said of an item, the last word."""
    return max(lines, key=lambda line: (line.when, line.added, line.revision))


def _start(seed_directory: Path) -> str:
    return f"{run_name(seed_directory.parent)} {seed_directory.name} {JOURNAL}"


def _lines(file: Path) -> list[bytes]:
    try:
        content = read_own(file, LINES)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}.") from None
    return content.removesuffix(b"\n").split(b"\n") if content else []


def _parsed(file: Path, number: int, text: bytes) -> Taken:
    try:
        return Taken.model_validate(parse_json(text))
    except ValidationError as error:
        detail = error.errors()[0]
        raise _damaged(file, number, f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}") from None
    except ValueError as error:
        raise _damaged(file, number, str(error)) from None


def _damaged(file: Path, number: int, why: str) -> InputError:
    return InputError(f"{file} is damaged in line {number} ({why}). Delete its lines from that one on and add those "
                      "labels again (meal-gpu labels add). If somebody edited it and it is to count: "
                      f"{accepting(file.parent.parent)}")
