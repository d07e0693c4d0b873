"""What the values and the colours of a folder's masks mean: its table of classes, from the config."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..config import DataConfig
from ..errors import InputError, did_you_mean

VOID = 255
"""Class index of pixels that are neither trained on nor evaluated."""
INVALID = 254
"""Marks mask values outside a data set's table; such a mask is refused, so the value is never stored."""
_VOID_NAME = "void"

Colours = dict[int, int]
"""``red << 16 | green << 8 | blue`` -> class index or `VOID`."""


def table(classes: Mapping[int, int], void: list[int]) -> np.ndarray:
    """uint8 ``[256]`` from ``mask value -> class index`` and the values that are void; the rest is `INVALID`."""
    found = np.full(256, INVALID, np.uint8)
    found[list(classes)] = list(classes.values())
    found[void] = VOID
    return found


def class_table(data: DataConfig) -> tuple[tuple[str, ...], np.ndarray, Colours]:
    """Names of the classes, ``mask value -> class index`` as uint8 ``[256]``, and the colours of masks in colour.

    A mask value is a class's id, its place in ``class_names``, unless ``mask_values`` says otherwise. What is
    ``ignore_index`` is no class. Raises `InputError` for a table that contradicts itself.
    """
    names = _names(data)
    values = _by_class(data.mask_values, names, "mask_values")
    if values is None:
        kept = [number for number in range(len(names)) if number != data.ignore_index]
        to_class = table({number: index for index, number in enumerate(kept)}, [data.ignore_index])
        names = tuple(names[number] for number in kept)
        if not names:
            raise InputError(f"data.ignore_index is {data.ignore_index}, which leaves no class of data.class_names: "
                             "pixels of that value are void. Give the other classes, or another data.ignore_index.")
    else:
        to_class = table(values, [] if data.ignore_index in values else [data.ignore_index])
    if len(names) == 1:
        example = f"mask_values: {{background: 0, {names[0]}: 1}}"
        raise InputError(f"There is one class, '{names[0]}': a network that has nothing to decide is uncertain of "
                         f"nothing. What is not {names[0]} is a class too: say so in data, for example {example}, with "
                         "the values that the masks hold.")
    colours = _by_class(data.mask_colours, names, "mask_colours", lambda rgb: rgb[0] << 16 | rgb[1] << 8 | rgb[2])
    return names, to_class, colours or {}


def _names(data: DataConfig) -> tuple[str, ...]:
    given = data.class_names
    if given is None:
        given = [name for name in data.mask_values or data.mask_colours or () if name != _VOID_NAME]
    if not 1 <= len(given) <= INVALID or len(set(given)) != len(given):
        raise InputError(f"data.class_names has {len(given)} names, {len(set(given))} of them different: give 1 to "
                         f"{INVALID} different names.")
    return tuple(given)


def _by_class(given: Mapping[str, list[Any]] | None, names: tuple[str, ...], key: str,
              number: Any = lambda value: value) -> dict[int, int] | None:
    """``value -> class index`` of a table by names, of which one may be ``void`` where no class has that name."""
    if given is None:
        return None
    found: dict[int, int] = {}
    owners: dict[int, str] = {}
    for name, values in given.items():
        if name not in names and name != _VOID_NAME:
            raise InputError(f"data.{key} names '{name}', which is none of data.class_names."
                             f"{did_you_mean(name, names)} Allowed: {', '.join(names)}, and {_VOID_NAME}.")
        for value in values:
            if number(value) in found:
                raise InputError(f"data.{key} gives the value {value} to both '{owners[number(value)]}' and '{name}': "
                                 "a value has one meaning.")
            owners[number(value)] = name
            found[number(value)] = names.index(name) if name in names else VOID
    missing = [name for name in names if name not in given]
    if missing:
        raise InputError(f"data.{key} has no value for '{missing[0]}': give each of data.class_names at least one.")
    return found
