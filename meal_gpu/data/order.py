"""The order of a run's images, from which patches have their ids: it only ever grows.

A run keeps it in ``pool.json``. Where the files are still those it began with, that is their order by name. Files that
come later stand behind those, whatever their names, and a file that has gone keeps its place: what was written of a
patch holds, and equal ids are equal patches in all rounds.
"""

import hashlib
import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import InputError, and_so_on
from ..files import open_object, parse_json, read_own, seal_object, write_atomic
from .datasets import Dataset, Sample

FILE = "pool.json"


@dataclass(frozen=True)
class Order:
    names: tuple[str, ...]
    first: int
    """How many of them the run began with."""
    given: tuple[str, ...] | None = None
    """Those whose masks the run began with; None where it began with random images."""
    val: tuple[str, ...] | None = None
    """What was held out of the labelled images; None where validation has files of its own."""
    sums: tuple[int, ...] = ()
    """CRC-32 of each one's pixels as the run saw them; empty in runs of before these were kept."""

    @classmethod
    def of(cls, dataset: Dataset, sums: Sequence[int]) -> "Order":
        names = tuple(sample.name for sample in dataset.train)
        val = tuple(sample.name for sample in dataset.val) if dataset.held_out else None
        return cls(names, dataset.first or len(names), dataset.given, val, tuple(sums))

    @classmethod
    def read(cls, directory: Path) -> "Order | None":
        """Of a run; None where it has none, as runs of before had."""
        file = directory / FILE
        if not os.path.lexists(file):
            return None
        try:
            text, _, right = open_object(read_own(file))
            if right is False:
                raise ValueError("its checksum is another")
            held = parse_json(text)
            given, val = (None if held.get(key) is None else tuple(held[key]) for key in ("given", "val"))
            return cls(tuple(held["names"]), int(held["first"]), given, val, tuple(held.get("sums", ())))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file} is damaged ({error}). Delete it if the images are still those that the run began "
                             "with.") from None

    def write(self, directory: Path) -> None:
        more = {key: value for key, value in (("given", self.given), ("val", self.val)) if value is not None}
        text = json.dumps({"first": self.first, "names": self.names, **more, "sums": self.sums}).encode()
        write_atomic(directory / FILE, seal_object(text))

    def others(self, later: "Order") -> list[str]:
        """Names of images whose pixels are others in a later order of the run."""
        then = dict(zip(self.names, self.sums, strict=False))
        return [name for name, now in zip(later.names, later.sums, strict=False) if then.get(name, now) != now]

    @property
    def key(self) -> str:
        """What a store of a pool in this order is known by, however far it grows."""
        return hashlib.blake2b("\n".join(self.names[: self.first]).encode(), digest_size=8).hexdigest()


def arrange(dataset: Dataset, order: Order) -> Dataset:
    """The data set with the pool in a run's order: new images behind the known ones, gone ones in their places.

    What the run began with stays that, and so does what it is validated on, whatever masks have come since. Raises
    `InputError` where an image that was held out is gone.
    """
    dataset = _divided(replace(dataset, given=order.given), order)
    now = {sample.name: sample for sample in dataset.train}
    known = set(order.names)
    names = [*order.names, *(name for name in now if name not in known)]
    if names == list(now):
        return replace(dataset, first=order.first)
    train = tuple(now.get(name) or Sample(name, Path(name), None, gone=True) for name in names)
    return replace(dataset, train=train, first=order.first, order=order.key)


def _divided(dataset: Dataset, order: Order) -> Dataset:
    """With those images held out that were when the run began."""
    if order.val is None or set(order.val) == {sample.name for sample in dataset.val}:
        return dataset
    there = {sample.name: sample for sample in (*dataset.train, *dataset.val)}
    lost = [name for name in order.val if name not in there or there[name].mask is None]
    if lost:
        raise InputError(f"The image {lost[0]} or its mask is gone, and this run is validated on it. Restore the files "
                         "to go on, or start a new run.")
    return replace(dataset, val=tuple(there[name] for name in order.val),
                   train=tuple(sample for name, sample in there.items() if name not in set(order.val)))


def changes(before: Collection[str], now: Collection[str]) -> list[str]:
    """``3 images are new: a, b, c.``; nothing where nothing has changed."""
    said = []
    for what, names in (("new", sorted(set(now) - set(before))), ("gone", sorted(set(before) - set(now)))):
        if names:
            said.append(f"{len(names)} {'images are' if len(names) > 1 else 'image is'} {what}: {and_so_on(names)}.")
    return said
