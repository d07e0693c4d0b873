"""What a sweep is: a base config, axes of values, and the points that they span.

A sweep file is YAML::

    base: camvid                                   # a config that ships, or a file (beside this one, or from here)
    set: {train.eval_every: 4}                     # keys that all points share
    axes:
      network:                                     # a name of one's own: values that set several keys at once
        - {name: frozen, set: {model.freeze_backbone: true}}
        - {name: finetuned, set: {model.freeze_backbone: false}}
      query.strategy: [random, entropy, meal]      # a key of the config: one point per value
      seeds: [0, 1, 2]                             # one point per seed
    more:                                          # further grids, each with what differs: base, name, set, axes
      - {base: camvid_supervised, name: supervised, axes: {seeds: [0, 1, 2]}}

Every combination of a grid's values is a point: one run, with a directory of its own.
"""

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, field_validator

from .config import Config, Section
from .configfile import parse_override, parse_yaml, put, read_yaml
from .errors import InputError, did_you_mean
from .files import Seal, digest, read_own, read_seal
from .paths import expand

FILE = "sweep.yaml"
"""Lists the points in the sweep's directory."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    name: str
    """Of its directory: the values that make it this point, joined by dashes."""
    config: Config


class Linked(Section):
    """A value of an axis that sets several keys."""

    name: str
    set: dict[str, Any]


class Block(Section):
    """A grid of points."""

    base: str | None = None
    name: str | None = None
    """Put before the names of its points."""
    set: dict[str, Any] = Field(default_factory=dict)
    axes: Annotated[dict[str, list[Any]], Field(min_length=1)]

    @field_validator("axes")
    @classmethod
    def _values(cls, axes: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for axis, values in axes.items():
            if not values:
                raise ValueError(f"axes.{axis} has no values: give a list of at least one.")
            axes[axis] = [Linked.model_validate(value) if isinstance(value, dict) else value for value in values]
        return axes


class File(Block):
    base: str
    more: list[Block] = Field(default_factory=list)


def load_points(source: str | Path, overrides: list[str] | None = None, only: list[str] | None = None) -> list[Point]:
    """The points of a sweep file (or of one that ships), every one with its config checked.

    Parameters
    ----------
    overrides
        ``a.b=c``: for all points.
    only
        Patterns, as of file names: a point is kept when its name fits one of them.

    Raises
    ------
    InputError
        For a bad file, for a bad config of any point, naming it, and where two points are the same or none is left.
    """
    path = expand(source)
    values = read_yaml(path, sweeps=True)
    if "axes" not in values:
        raise InputError(f"{source} is the config of one run (meal-gpu run {source}), not a sweep: a sweep has 'base' "
                         "and 'axes'. See configs/table1_camvid.yaml.")
    try:
        file = File.model_validate(values)
    except ValidationError as error:
        detail = error.errors()[0]
        key = ".".join(map(str, detail["loc"]))
        known = did_you_mean(str(detail["loc"][-1]), ("base", "set", "axes", "more", "name"))
        hint = f"{known} Allowed: base, name, set, axes, more." if detail["type"] == "extra_forbidden" else ""
        raise InputError(f"{source}: {key}: {detail['msg'].removeprefix('Value error, ')}.{hint}") from None
    shared = dict(map(parse_override, overrides or []))
    points: dict[str, Point] = {}
    for block in (file, *file.more):
        for key in shared:
            if key in _varied(block):
                raise InputError(f"--set {key}: an axis of {source} sets it. Take some of the points with --only, or "
                                 "write another sweep file.")
        for point in _points(block, path, file, shared):
            if point.name in points:
                raise InputError(f"{source}: two points are called {point.name}. Give their grid a name, or their "
                                 "values: {name: ..., set: {...}}.")
            points[point.name] = point
    _refuse_twins(source, list(points.values()))
    kept = [point for point in points.values() if not only or any(fnmatch(point.name, one) for one in only)]
    if not kept:
        raise InputError(f"--only {' '.join(only or [])} fits no point. The points are: {', '.join(points)}.")
    return kept


def dump_points(points: list[Point]) -> str:
    """As YAML, every config in full, sealed: `read_points` of it gives equal points."""
    listed = {point.name: point.config.model_dump(mode="json") for point in points}
    text = yaml.safe_dump({"points": listed}, sort_keys=False)
    return Seal.of(text, digest(text)).written(text).decode()


def read_points(directory: Path) -> list[Point]:
    """The points of a sweep's directory. Raises `InputError` where there is none, or it is damaged."""
    file = directory / FILE
    if not os.path.lexists(file):
        raise InputError(f"{directory} holds no sweep (no {FILE}). Start one with meal-gpu sweep CONFIG --out DIR.")
    seal, text = read_seal(read_own(file, 2**28))
    if seal is not None and Seal.of(text.decode("utf-8", "replace"), seal.name).digest != seal.digest:
        raise InputError(f"{file} was edited, cut off or damaged since the sweep wrote it. Restore it, or call the "
                         "sweep again with its own file: finished runs are kept.")
    try:
        listed = dict(parse_yaml(text, file)["points"])
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{file} is not what a sweep writes: {' '.join(str(error).split())}. Call the sweep again "
                         "with its own file: finished runs are kept.") from None
    for name, values in listed.items():
        if not isinstance(name, str) or not name or name != _tidy(name):
            raise InputError(f"{file} has a point called {name!r}: names are letters, digits and . + = - _ , and lead "
                             "nowhere else. Restore the file.")
        if not isinstance(values, dict):
            raise InputError(f"{file} is not what a sweep writes: point {name} has no config. Restore the file.")
    return [Point(name, Config.load(values)) for name, values in listed.items()]


def _tidy(name: str) -> str:
    """The name of a point's directory: one, and below the sweep's."""
    return re.sub(r"[^\w.+=-]+", "-", name).strip("-.")[:200]


def _varied(block: Block) -> set[str]:
    """The keys that the block's axes set."""
    return {key for axis, values in block.axes.items() for value in values
            for key in (value.set if isinstance(value, Linked) else (axis,))}


def _points(block: Block, path: Path, file: File, shared: dict[str, Any]) -> Iterator[Point]:
    base = block.base or file.base
    beside = path.parent / expand(base)
    values = read_yaml(beside if path.is_file() and beside.is_file() else Path(base))
    own = block.set if block is not file else {}
    for chosen in itertools.product(*block.axes.values()):
        names, keys = [block.name] if block.name else [], {**file.set, **own, **shared}
        for axis, value in zip(block.axes, chosen, strict=True):
            if isinstance(value, Linked):
                names.append(value.name)
                keys |= value.set
            else:
                names.append(_label(axis, value))
                keys[axis] = [value] if axis == "seeds" and isinstance(value, int) else value
        name = _tidy("-".join(names))
        nested = dict(values)
        for key, value in keys.items():
            put(nested, key, value, f"{path}: {key}")
        try:
            yield Point(name, Config.load(nested))
        except InputError as error:
            raise InputError(f"{path}, point {name}: {error}") from None


def _label(axis: str, value: Any) -> str:
    """A text stands for itself; a number says of what."""
    if isinstance(value, str):
        return value
    key = "seed" if axis == "seeds" else axis.rpartition(".")[2]
    return "-".join(str(part).lower() for part in (key, *(value if isinstance(value, list) else [value])))


def _refuse_twins(source: str | Path, points: list[Point]) -> None:
    seen: dict[str, str] = {}
    for point in points:
        twin = seen.setdefault(point.config.dump(), point.name)
        if twin != point.name:
            raise InputError(f"{source}: the points {twin} and {point.name} are the same run.")
