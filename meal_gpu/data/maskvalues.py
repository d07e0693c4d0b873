"""What the masks of a folder hold, by looking at all of them, and the classes of a config that follow from it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, all_of
from ..grid import Size
from ..timing import Progress
from .classes import VOID
from .datasets import CAMVID, CITYSCAPES
from .imagefile import Reading, load_mask
from .maskfile import code, rgb
from .threads import each

KNOWN = {"CamVid": {code_of: name for name, (r, g, b) in CAMVID.items() for code_of in [r << 16 | g << 8 | b]},
         "Cityscapes": {code_of: name for name, (_, (r, g, b)) in CITYSCAPES.items()
                        for code_of in [r << 16 | g << 8 | b]}}
"""Data set -> colour -> class."""
MOST_CLASSES = 64
"""More values or colours than these are masks of something else; whoever has more classes names them."""
_MOST_COLOURS = 4096
"""Of one mask: more are no classes, and need not be counted."""


@dataclass(frozen=True)
class Meaning:
    """A class as somebody names it, ``road``, ``road=7`` or ``road=#804080``."""

    name: str
    value: int | None = None
    colour: int | None = None


@dataclass(frozen=True, eq=False)
class Seen:
    """Of one mask."""

    size: Size
    values: Mapping[int, int] = field(default_factory=dict)
    """Value, or index of a palette -> pixels; empty for a mask in colour."""
    colours: Mapping[int, int] = field(default_factory=dict)
    """Colour -> pixels, of a mask in colour."""
    palette: Mapping[int, int] = field(default_factory=dict)
    """Index -> colour of the indices that it uses, where it has a palette."""


@dataclass(frozen=True)
class Classes:
    keys: Mapping[str, Any]
    """Of the section ``data``."""
    told: tuple[str, ...] = ()


def parse_classes(given: str) -> list[Meaning]:
    """``road,car`` or ``road=7,car=26`` or ``road=#804080``. Raises `InputError` for anything else."""
    found = []
    for part in given.split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        try:
            if not name or (equals and not value):
                raise ValueError
            number = int(value[1:], 16) if value.startswith("#") else int(value or 0)
            if not 0 <= number < (1 << 24 if value.startswith("#") else 256) or (value[:1] == "#" and len(value) != 7):
                raise ValueError
        except ValueError:
            raise InputError(f"--classes has '{part.strip()}'. Give names, separated by commas: road,car; or with the "
                             "values of masks, road=7,car=26; or their colours, road=#804080.") from None
        colour = value.startswith("#")
        found.append(Meaning(name, None if colour or not equals else number, number if colour else None))
    names = [one.name for one in found]
    if len(set(names)) < len(names):
        raise InputError(f"--classes names '{next(n for n in names if names.count(n) > 1)}' twice.")
    if len({(one.value is None, one.colour is None) for one in found}) > 1:
        raise InputError("--classes gives a value or a colour to some names and not to others: give all or none.")
    return found


def look(files: Sequence[Path], reading: Reading, progress: Progress) -> list[Seen]:
    """Read every mask. Raises one `InputError` for all that are refused."""
    found, problems = each(files, lambda file: _look(file, reading), "look at masks", progress)
    if problems:
        raise all_of(problems, len(files), "masks")
    return found


def _look(file: Path, reading: Reading) -> Seen:
    values, palette = load_mask(file, in_colour=True, reading=reading)
    size = (values.shape[0], values.shape[1])
    if values.ndim == 3:
        colours, counts = np.unique(code(values), return_counts=True)
        if len(colours) > _MOST_COLOURS:
            raise InputError(f"{file} has {len(colours):,} colours: it is a photograph, or a lossy or smoothed mask.")
        return Seen(size, colours=dict(zip(colours.tolist(), counts.tolist(), strict=True)))
    count = np.bincount(values.ravel(), minlength=256)
    used = {i: int(count[i]) for i in np.flatnonzero(count).tolist()}
    if palette is None:
        return Seen(size, used)
    codes = code(palette)
    return Seen(size, used, palette={i: int(codes[i]) for i in used if i < len(codes)})


def classes_of(seen: Sequence[Seen], names: Sequence[Meaning] | None, partly: bool) -> Classes:
    """The classes of masks that were looked at. ``partly``: people will label more.

    Raises `InputError` where they cannot be told, saying what is there and how to say it.
    """
    coloured = sum(bool(one.colours) for one in seen)
    if 0 < coloured < len(seen):
        raise InputError(f"{coloured} of {len(seen)} masks are in colour (RGB), the others hold ids: their classes "
                         "cannot be told together. Save all in one way.")
    if coloured:
        return _by_colour(_summed(one.colours for one in seen), names, {})
    values, palettes = _summed(one.values for one in seen), [one.palette for one in seen if one.palette]
    if not palettes:
        return _by_value(values, names, {}, partly)
    of: dict[int, set[int]] = {}
    for palette in palettes:
        for index, colour in palette.items():
            of.setdefault(index, set()).add(colour)
    if all(len(colours) == 1 for colours in of.values()):
        colour_of = {index: next(iter(colours)) for index, colours in of.items()}
        plain = all(colour == index * 0x010101 for index, colour in colour_of.items())
        keys = {} if plain else {"palette": "index"}
        if names is None and not plain:
            names = _published(colour_of)
        found = _by_value(values, names, keys, partly)
        return found if plain else Classes(found.keys, (
            "Masks have a palette, one for all: its indices are the ids (data.palette: index).", *found.told))
    if len(palettes) < len(seen):
        raise InputError(f"{len(palettes)} of {len(seen)} masks have palettes, which differ, and the others have none: "
                         "their classes cannot be told together. Save all in grey.")
    by_colour: Counter[int] = Counter()
    for one in seen:
        for index, pixels in one.values.items():
            by_colour[one.palette.get(index, 0)] += pixels
    if all(colour % 0x010101 == 0 for colour in by_colour):
        found = _by_value({colour & 255: n for colour, n in by_colour.items()}, names, {"palette": "colour"}, partly)
    else:
        found = _by_colour(by_colour, names, {"palette": "colour"})
    return Classes(found.keys, ("Masks have palettes that differ: their colours are what counts (data.palette: "
                                "colour).", *found.told))


def _published(colour_of: Mapping[int, int]) -> list[Meaning] | None:
    """Names of a palette that a data set was published with."""
    for table in KNOWN.values():
        there = {index: table.get(colour) for index, colour in colour_of.items() if colour}
        if len(there) > 1 and all(there.values()):
            return [Meaning(str(name), index) for index, name in sorted(there.items())]
    return None


def named(names: Sequence[Meaning]) -> Classes:
    """Where nobody has labelled: the classes as they were given."""
    if any(one.value is not None for one in names):
        return Classes({"mask_values": {one.name: one.value for one in names}})
    if any(one.colour is not None for one in names):
        return Classes({"mask_colours": {one.name: _triple(one.colour or 0) for one in names}})
    return Classes({"class_names": [one.name for one in names]})


def _summed(parts: Iterable[Mapping[int, int]]) -> dict[int, int]:
    total: Counter[int] = Counter()
    for part in parts:
        total.update(part)
    return dict(sorted(total.items()))


def _by_value(there: Mapping[int, int], names: Sequence[Meaning] | None, keys: dict[str, Any],
              partly: bool) -> Classes:
    values, void = [value for value in there if value != VOID], VOID in there
    shown = ", ".join(map(str, there))
    if names is not None and names[0].colour is not None:
        raise InputError(f"--classes gives colours, and the masks hold the values {shown}: give these, name=value.")
    if names is not None and names[0].value is not None:
        given = {one.value: one.name for one in names}
        strange = [value for value in values if value not in given]
        table: dict[str, Any] = {one.name: one.value for one in names}
        told = []
        if strange:
            table["void"] = [*strange, VOID] if VOID not in given else strange
            told = [f"Values that --classes does not name are void: {', '.join(map(str, strange))}."]
        return _checked({**keys, "mask_values": table}, told, [name for value, name in given.items()
                                                              if value not in there], partly)
    if names is not None:
        return _by_order(values, void, [one.name for one in names], keys, shown, partly)
    if len(there) < 2:
        raise InputError(f"The masks hold the one value {shown}: classes cannot be told by it. Name them: --classes "
                         "road,car (ids 0 and 1), or with their values, --classes road=7,car=26.")
    if len(values) > MOST_CLASSES:
        raise InputError(f"The masks hold {len(values)} different values, which are hardly classes: at most "
                         f"{MOST_CLASSES} can be. Are they masks of instances, or lossy? If not, --classes road=7,...; "
                         "values that it does not name are void.")
    if len(values) == 1:  # brushes write 0 and 255
        table = {"background": values[0], "object": VOID}
        return Classes({**keys, "mask_values": table},
                       (f"Masks hold {shown} alone: 255 is taken for a class here. {_RENAME}",))
    if values == list(range(len(values))):
        return Classes({**keys, "class_names": [f"class_{value}" for value in values]},
                       (f"Masks hold the ids {_run(values)}{', and 255, which is void' if void else ''}. {_RENAME}",))
    return Classes({**keys, "mask_values": {f"class_{value}": value for value in values}},
                   (f"Masks hold the values {shown}{', of which 255 is void' if void else ''}. {_RENAME}",))


_RENAME = "Classes have no names there: write them into the config, or give --classes."


def _by_order(values: list[int], void: bool, names: list[str], keys: dict[str, Any], shown: str,
              partly: bool) -> Classes:
    n = len(names)
    if all(value < n for value in values) and not (len(values) + void == n and n == 2 and void):
        absent = [name for i, name in enumerate(names) if i not in values]
        return _checked({**keys, "class_names": names}, [], absent, partly)
    if values[-1] == n and len(values) != n:  # the id behind the last is void, as in CamVid
        told = [f"Masks hold {shown}, and there are {n} names: {n} is void."]
        absent = [name for i, name in enumerate(names) if i not in values]
        if void:
            table: dict[str, Any] = {name: i for i, name in enumerate(names)}
            return _checked({**keys, "mask_values": {**table, "void": [n, VOID]}}, told, absent, partly)
        return _checked({**keys, "class_names": names, "ignore_index": n}, told, absent, partly)
    in_order = values if len(values) == n else [*values, VOID] if void and len(values) + 1 == n else None
    if in_order is None or values[-1] == n:
        raise InputError(f"The masks hold {len(values) + void} values, {shown}, and --classes has {n} names: which is "
                         "which cannot be told. Give the values too, for example --classes "
                         f"{names[0]}={(values or [0])[0]},...; values that are not named are void.")
    table = dict(zip(names, in_order, strict=True))
    said = ", ".join(f"{name} {value}" for name, value in table.items())
    return Classes({**keys, "mask_values": table}, (f"Names are given to the masks' values in their order: {said}.",))


def _by_colour(there: Mapping[int, int], names: Sequence[Meaning] | None, keys: dict[str, Any]) -> Classes:
    others = [colour for colour in there if colour]
    if names is not None:
        if names[0].colour is None:
            listed = ", ".join(f"#{colour:06x}" for colour in list(there)[:8])
            raise InputError(f"The masks are in colour ({listed}{', ...' if len(there) > 8 else ''}), and which class "
                             "has which cannot be told by names alone: --classes road=#804080,car=#400080.")
        table: dict[str, Any] = {one.name: _triple(one.colour or 0) for one in names}
        strange = [colour for colour in there if colour not in {one.colour for one in names}]
        told: tuple[str, ...] = ()
        if strange:
            table["void"] = [_triple(colour) for colour in strange]
            told = (f"Colours that --classes does not name are void: {', '.join(map(rgb, strange[:8]))}.",)
        if len(strange) > MOST_CLASSES:
            raise InputError(f"The masks have {len(strange)} colours that --classes does not name: they are lossy or "
                             "smoothed. Save them as PNG without smoothing.")
        return Classes({**keys, "mask_colours": table}, told)
    if len(others) > MOST_CLASSES:
        raise InputError(f"The masks have {len(others)} colours, which are hardly classes: at most {MOST_CLASSES} can "
                         "be. Lossy or smoothed masks have such; masks of instances too.")
    if len(there) < 2:
        raise InputError(f"The masks have the one colour {rgb(next(iter(there)))}: classes cannot be told by it. Give "
                         "all: --classes road=#804080,car=#400080.")
    known = next(((title, table) for title, table in KNOWN.items() if all(c in table for c in others)), None)
    by_size = sorted(others, key=lambda colour: -there[colour])
    table = {}
    for number, colour in enumerate(by_size, start=1):
        table[known[1][colour] if known else f"class_{number}"] = _triple(colour)
    told = (f"Masks are in the colours of {known[0]}." if known else
            f"Masks are in {len(others)} colours beside black. {_RENAME}",)
    if 0 in there and len(others) > 1:
        return Classes({**keys, "mask_colours": {**table, "void": [0, 0, 0]}}, (*told, "Black is void."))
    if 0 in there:
        table["background"] = [0, 0, 0]
    return Classes({**keys, "mask_colours": table}, told)


def _checked(keys: dict[str, Any], told: list[str], absent: list[str], partly: bool) -> Classes:
    """A class that no mask has stops a run before it trains: not one that its owner named."""
    if absent and not partly:
        keys = {**keys, "absent_classes": "allow"}
    if absent:
        told.append(f"No mask holds a pixel of {', '.join(absent)}.")
    return Classes(keys, tuple(told))


def _run(values: list[int]) -> str:
    return f"{values[0]} to {values[-1]}"


def _triple(colour: int) -> list[int]:
    return [colour >> 16, colour >> 8 & 255, colour & 255]


