"""Read one mask: ids, a palette's indices, greys or colours, or colours, as class indices; or a clear error."""

import os
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from ..errors import InputError
from .classes import INVALID, VOID
from .imagefile import load_mask
from .rules import Rules

_WHITE = 0xFFFFFF
Palette = dict[int, int]
"""Index -> ``red << 16 | green << 8 | blue``."""


@dataclass(frozen=True, eq=False)
class Labels:
    """A mask that has been read and checked."""

    classes: np.ndarray
    """uint8 ``[H, W]``: class indices and `VOID`."""
    palette: Palette = field(default_factory=dict)
    """Of the indices that the mask uses, where they were taken for ids and the colours for decoration."""


def read_classes(path: str | os.PathLike[str], rules: Rules, content: bytes | None = None) -> Labels:
    """Decode a mask to class indices.

    Grey values are ids. A palette's indices are ids too, unless its colours are greys that are ids, or the data set's
    class colours: then these are what every viewer shows, and what the file says. RGB is read by ``rules.colours``.
    ``content``: of the file, where it has been read.

    Raises `InputError` for a value or a colour that is in no class, for a palette that can be read in two ways, and
    for all that `read_mask` refuses.
    """
    values, colours = load_mask(path, bool(rules.colours), rules.reading, content)
    if values.ndim == 3:
        return Labels(_by_colour(values, rules, path))
    used = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
    by_value, decoration = rules.to_class, Palette()
    if colours is not None:
        by_value, decoration = _by_palette(used, colours, rules, path)
    classes = by_value[values]
    wrong = classes == INVALID
    if wrong.any():
        y, x = np.unravel_index(int(wrong.argmax()), wrong.shape)
        raise InputError(
            f"{path} holds the class id {values[y, x]} (first at x={x}, y={y}; {np.count_nonzero(wrong)} "
            f"pixels are outside the table). Allowed ids: {ranges(np.flatnonzero(rules.to_class != INVALID))}. "
            "Correct the mask or the table of classes.")
    return Labels(classes, decoration)


def _by_colour(pixels: np.ndarray, rules: Rules, path: str | os.PathLike[str]) -> np.ndarray:
    codes, inverse, counts = np.unique(code(pixels), return_inverse=True, return_counts=True)
    classes = np.array([rules.colours.get(int(code), INVALID) for code in codes], np.uint8)
    unknown = np.flatnonzero(classes == INVALID)
    if len(unknown):
        most = unknown[np.argsort(-counts[unknown])]
        listed = ", ".join(f"{rgb(codes[i])} ({counts[i]} pixels)" for i in most[:5])
        raise InputError(f"{path} has {len(unknown)} colours that are in no class: {listed}"
                         f"{', ...' if len(unknown) > 5 else ''}. Give them in data.mask_colours, for example void: "
                         f"{rgb(codes[most[0]])}; colours between two classes come from a lossy or smoothed mask.")
    return classes[inverse].reshape(pixels.shape[:2])


def _by_palette(used: np.ndarray, colours: np.ndarray, rules: Rules,
                path: str | os.PathLike[str]) -> tuple[np.ndarray, Palette]:
    """``index -> class`` as uint8 ``[256]``, and the palette where it says nothing of the classes.

    ``used`` are the indices that the mask holds, ``colours`` uint8 ``[n, 3]`` the palette as it stands in the file.
    """
    if used[-1] >= len(colours):
        raise InputError(f"{path} holds the palette index {used[-1]}, and its palette has {len(colours)} colours. Save "
                         "the mask again.")
    codes = code(colours)
    decoration = {int(i): int(codes[i]) for i in used}
    if rules.palette == "index":
        return rules.to_class, {}
    grey = bool((colours == colours[:, :1]).all())
    by_colour = np.full(256, INVALID, np.uint8)
    if grey:
        by_colour[: len(colours)] = rules.to_class[colours[:, 0]]
    else:
        # Black beside class colours is what nobody has labelled.
        meaning = {0: VOID, **rules.shown}
        by_colour[: len(colours)] = [meaning.get(int(code), INVALID) for code in codes]
    if rules.palette == "colour":
        if (by_colour[used] == INVALID).any():
            wrong = used[by_colour[used] == INVALID][0]
            raise InputError(f"{path} has the palette colour {rgb(codes[wrong])}, which is no class, and data.palette "
                             "is 'colour'. Correct the mask, or give the colour in data.mask_colours.")
        return by_colour, {}
    if np.array_equal(by_colour[used], rules.to_class[used]):
        return rules.to_class, {} if grey else decoration
    said = by_colour[used] != INVALID
    index_fits = not (rules.to_class[used] == INVALID).any()
    if grey:
        if not said.all():
            return rules.to_class, decoration
        # Black and white are how people draw two classes, and how 0 and void look: only other greys are surely ids.
        other = [value for value in colours[used, 0] if value != 0 and rules.to_class[value] != VOID]
        if other or not index_fits:
            return by_colour, {}
    else:
        known = [int(code) in rules.shown for code in codes]
        telling = [i for i in used if known[i]]
        if not telling or (not said.all() and len(telling) * 2 <= len(used)):
            return rules.to_class, decoration
        alone = all(known[i] or codes[i] in (0, _WHITE) for i in range(len(codes)))
        if said.all() and (alone or not index_fits):
            return by_colour, {}
        if all(by_colour[i] == rules.to_class[i] for i in telling):
            return rules.to_class, decoration
    names = [*rules.class_names, *map(str, range(len(rules.class_names), 254))]
    first = next(i for i in used if by_colour[i] != rules.to_class[i])

    def reading(index: int) -> str:
        return {VOID: "void", INVALID: "no class"}.get(index, f"'{names[min(index, len(names) - 1)]}'")

    raise InputError(
        f"{path} is a PNG with a palette that can be read in two ways: read as indices, {first} is "
        f"{reading(int(rules.to_class[first]))}; read as colours, {rgb(codes[first])} is "
        f"{reading(int(by_colour[first]))}. Say which with data.palette: index or data.palette: colour, or save the "
        "mask in grey without a palette.")


def differing(palettes: dict[int, tuple[int, str]], new: Palette, path: str) -> str | None:
    """What is wrong where an index has another colour in this mask than in those before it; they are remembered.

    Editors number colours as they come: where palettes differ, equal indices are not equal classes.
    """
    for index, colour in new.items():
        before, where = palettes.setdefault(index, (colour, path))
        if before != colour:
            return (f"{path} and {where} have palettes that differ: index {index} is {rgb(colour)} in the one and "
                    f"{rgb(before)} in the other, so that indices cannot be ids in both. Save the masks in grey or "
                    "with one palette, give the classes' colours as data.mask_colours, or, where the indices are ids "
                    "all the same, say so with data.palette: index.")
    return None


def nearest(classes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize class indices ``[H, W]`` to ``size`` by nearest neighbour."""
    if classes.shape == size:
        return classes
    return np.array(Image.fromarray(classes).resize((size[1], size[0]), Image.Resampling.NEAREST))


def nearest_index(source: int, target: int) -> np.ndarray:
    """int64 ``[target]``: which of ``source`` pixels in a line `nearest` takes for each of ``target``."""
    # By Pillow itself: where a sample falls between two pixels, its rounding decides.
    line = Image.fromarray(np.arange(source, dtype=np.int32)[:, None])
    return np.array(line.resize((1, target), Image.Resampling.NEAREST))[:, 0].astype(np.int64)


def ranges(values: np.ndarray) -> str:
    """``0-11, 255`` for sorted values."""
    runs = np.split(values, np.flatnonzero(np.diff(values) != 1) + 1)
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def code(pixels: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(pixels[..., :3].astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def rgb(code: int) -> str:
    return f"[{code >> 16}, {code >> 8 & 255}, {code & 255}]"
