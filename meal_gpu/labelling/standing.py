"""Where a seed's labels stand: its queries, and by the journal what counts for each item."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import InputError
from ..files import read_own
from ..journal import UNLABELLED, Taken, latest, newest, read_journal
from .answers import Book
from .predictions import Starts, read_png
from .query import Item, Query, folders, pixels_sha256, read_query

Rule = Literal["latest", "majority"]
DECIDED = "meal-gpu labels skip"
"""The tool of lines that whoever runs this has written: they are no vote."""
LABELS = "labels"
"""The folder of a query in which taken labels lie."""


@dataclass
class Standing:
    """Of one seed, as its files say now."""

    seed_directory: Path
    queries: dict[Path, Query]
    """By their folders, in the order in which they were asked."""
    taken: list[Taken] = field(default_factory=list)

    @classmethod
    def read(cls, seed_directory: Path, round_: int | None = None) -> "Standing":
        """Of all rounds, or of one. Queries of runs of before are read by their masks' names; see `of_before`."""
        queries = {}
        for folder in folders(seed_directory, round_):
            found = read_query(folder, seed_directory.parent)
            queries[folder] = found if isinstance(found, Query) else of_before(folder, found)
        return cls(seed_directory, queries, read_journal(seed_directory))

    @cached_property
    def book(self) -> Book:
        return Book(list(self.queries.values()))

    @cached_property
    def starts(self) -> Starts:
        return Starts(self.queries)

    @cached_property
    def lines(self) -> dict[str, dict[str, Taken]]:
        """Item → annotator → the newest line."""
        return newest(self.taken)

    @property
    def replaced(self) -> set[str]:
        """Items that were skipped and in whose place others were asked for: they have left the queue for good."""
        return {id_ for query in self.queries.values() for id_ in query.replaces}

    def folder(self, query: Query) -> Path:
        return next(folder for folder, one in self.queries.items() if one is query)

    def skipped(self, item: Item, rule: Rule) -> bool:
        """Whether it cannot be labelled: by the latest word, or by more than half of those who looked at it."""
        lines = list(self.lines.get(item.id, {}).values())
        if item.id in self.replaced:
            return True
        if lines and (rule == "latest" or latest(lines).tool == DECIDED):
            return latest(lines).status == "skipped"
        return 2 * sum(line.status == "skipped" for line in lines) > len(lines)

    def answered(self, item: Item) -> bool:
        return item.id in self.lines

    def labels(self, line: Taken, item: Item) -> np.ndarray:
        """What a line took, uint8. Raises `InputError` where the file is not what was taken."""
        file = self.seed_directory / line.labels
        try:
            found = read_png_any(read_own(file), item)
        except (OSError, ValueError):
            found = None
        if found is None or pixels_sha256(found) != line.labels_sha256:
            raise InputError(f"{file} is not what was taken from the labelling tool: restore the file, or remove the "
                             "line of labels.jsonl from there on and add the labels again.")
        return found


def read_png_any(content: bytes, item: Item) -> np.ndarray:
    """In either of the sizes that labels are kept in."""
    try:
        return read_png(content, item.shape)
    except ValueError:
        return read_png(content, item.patch_shape)


def majority(votes: Sequence[np.ndarray]) -> np.ndarray:
    """What most say of each pixel, uint8 like the votes; unlabelled where two classes have equally many, or nobody
    says anything. Who left a pixel unlabelled has no vote there."""
    stacked = np.stack(votes)
    values = np.setdiff1d(np.unique(stacked), [UNLABELLED])
    if not len(values):
        return np.full(votes[0].shape, UNLABELLED, np.uint8)
    counts = np.stack([(stacked == value).sum(0) for value in values])
    most = counts.max(0)
    tie = (counts == most).sum(0) > 1
    return np.where((most == 0) | tie, UNLABELLED, values[counts.argmax(0)]).astype(np.uint8)


def of_before(folder: Path, patches: list[object]) -> Query:
    """A query of a run of before, a list of patches: no windows, no predictions, masks under their files' names."""
    from .query import ClassRow

    try:
        round_ = int(folder.name.removeprefix("round-"))
        items = [Item(id=Path(str(patch["file"])).stem, rank=rank, patch=patch["id"],  # type: ignore[index]
                      image=patch["image"], row=patch["row"], col=patch["col"],  # type: ignore[index]
                      box=patch["box"], file=patch["file"])  # type: ignore[index]
                 for rank, patch in enumerate(patches, start=1)]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder / 'query.json'} is damaged ({error!r}). Remove it: --resume writes it "
                         "again.") from None
    return Query(query=folder.name, run="", round=round_, classes=[],
                 void=ClassRow(name="void", values=[], colour=(136, 136, 136)), items=items)
