"""What came back for one item, whatever the tool; and what is asked, to compare it with."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from ..data.classes import VOID
from ..errors import InputError, did_you_mean
from ..journal import UNLABELLED
from .query import Item, Query
from .regions import Overlap, Region, compose

Asked = tuple[Query, Item]


@dataclass(frozen=True, eq=False)
class Answer:
    """What one person said of one item."""

    query: Query
    item: Item
    labels: np.ndarray | None
    """uint8, of the patch in the original's pixels (or of the patch as the network sees it, where that came): class
    index, `VOID` or `UNLABELLED`. None: it cannot be labelled."""
    annotator: str = ""
    lead_time: float | None = None
    annotation: str = ""
    updated: str = ""
    conflicts: int = 0
    outside: int = 0
    """Pixels that were painted beside the patch: they are not taken."""
    unseen: bool = False
    """It is the prediction as it went out, in a format that does not say whether anybody has looked at it."""

    @property
    def all_void(self) -> bool:
        return self.labels is not None and bool((self.labels == VOID).all())


@dataclass
class Answers:
    """All that a file or a folder holds."""

    tool: str
    found: list[Answer] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What people should know."""


class Book:
    """All that a run has asked for: items by their ids and by their files' names."""

    def __init__(self, queries: Sequence[Query]) -> None:
        self.queries = queries
        self.by_id: dict[str, Asked] = {item.id: (query, item) for query in queries for item in query.items}
        self.by_file: dict[str, Asked] = {name: (query, item) for query in queries for item in query.items
                                          for name in reversed(item.names)}

    def __iter__(self) -> Iterator[Asked]:
        return iter(self.by_id.values())

    def of_id(self, given: object, where: str) -> Asked:
        """Raises `InputError` for an id that this run has not asked for."""
        if isinstance(given, str) and given in self.by_id:
            return self.by_id[given]
        shown = repr(given) if len(repr(given)) < 100 else f"{given!r:.100} …"
        hint = did_you_mean(given, self.by_id) if isinstance(given, str) else ""
        raise InputError(f"{where} names the item {shown}, which no query of this run has: it is of another run, or "
                         f"its name was changed.{hint}")

    def of_file(self, name: str, where: str) -> Asked:
        """By the name of an image or mask, whatever its folder and suffix."""
        base = name.replace("\\", "/").rsplit("/", 1)[-1]
        stem = base.rsplit(".", 1)[0]
        found = self.by_file.get(f"{stem}.png") or self.by_file.get(f"{base}.png")
        return found or self.of_id(stem, where)


def index_of(name: object, query: Query, where: str) -> int:
    """Class index or `VOID` of a class by its name. Raises `InputError` for a name that the query does not have."""
    for i, row in enumerate(query.classes):
        if row.name == name:
            return i
    if name == query.void.name:
        return VOID
    hint = did_you_mean(name, query.names) if isinstance(name, str) else ""
    raise InputError(f"{where} has the class {name!r}, which query.json does not have.{hint} Allowed: "
                     f"{', '.join(query.names)}. Give it its old name in the tool, and export again.")


def painted(asked: Asked, regions: Sequence[Region], overlap: Overlap, **about: object) -> Answer:
    """An answer of regions in an item's window."""
    query, item = asked
    labels, conflicts = compose(regions, item.window_shape, overlap)
    beside = np.zeros(item.window_shape, bool)
    for region in regions:
        if region.touched:
            beside |= region.mask
    inside = item.inside
    outside = int(beside.sum() - beside[inside].sum())
    return Answer(query, item, np.ascontiguousarray(labels[inside]), conflicts=int(conflicts[inside].sum()),
                  outside=outside, **about)  # type: ignore[arg-type]


def untouched(region: np.ndarray, index: int, prediction: np.ndarray | None) -> bool:
    """Whether a region is that of a class in the prediction, uint8 of the window, as it was sent out: tools that do
    not say who painted a region return it to the pixel."""
    return prediction is not None and bool(np.array_equal(region, prediction == index))


def class_masks(item: Item, predictions: Mapping[str, np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """Classes of an item's prediction, each with its pixels, bool of the window."""
    whole = in_window(item, predictions.get(item.id))
    for index in () if whole is None else np.unique(whole).tolist():
        if index != UNLABELLED:
            yield index, whole == index


def in_window(item: Item, labels: np.ndarray | None) -> np.ndarray | None:
    """Labels of the patch as those of its window, where the rest is unlabelled."""
    if labels is None:
        return None
    whole = np.full(item.window_shape, UNLABELLED, np.uint8)
    whole[item.inside] = labels
    return whole


def once(answers: Iterable[Answer], where: str) -> None:
    """Raise `InputError` where one person says two things of an item."""
    seen: set[tuple[str, str]] = set()
    for answer in answers:
        key = answer.item.id, answer.annotator
        if key in seen:
            who = f" by {answer.annotator}" if answer.annotator else ""
            raise InputError(f"{where} has the item {answer.item.id} twice{who}. Keep one of them, and export again.")
        seen.add(key)


def utc(given: object) -> str:
    """A tool's time as ISO 8601 in UTC with microseconds, so that times compare as text; empty where it is none."""
    try:
        time = datetime.fromisoformat(str(given))
    except ValueError:
        return ""
    return (time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
