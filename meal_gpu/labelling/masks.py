"""Masks as PNG files: ids or colours under the names of a query's items, and CVAT's "Segmentation mask 1.1".

A mask has the size of the image that went out (the window, of which the patch is taken), of the patch in the original,
or of the patch as the network sees it; where two of these are equal, the first counts.
"""

from collections.abc import Mapping
from pathlib import PurePosixPath

import numpy as np

from ..data.classes import VOID
from ..data.imagefile import load_mask
from ..data.maskfile import code, read_classes
from ..data.rules import Rules
from ..errors import InputError, all_of, and_more
from ..journal import UNLABELLED
from .answers import Answer, Answers, Asked, Book, index_of, once
from .archive import Bundle, Folder
from .cvat import PATCH
from .query import Item, class_rows

TOOL = "masks"
CVAT_TOOL = "Segmentation mask 1.1"
TABLES = ("classes.json", "classes.txt", "labelmap.txt")
"""What may lie beside masks; see `meal_gpu.labelling.classfile`."""
CVAT_FOLDER = "SegmentationClass"
_BACKGROUND = "background"


def read(bundle: Bundle, book: Book, rules: Rules) -> Answers:
    """Masks under the names of items. Raises `InputError` for all that cannot be taken, in one message."""
    answers, problems = Answers(TOOL), list[InputError]()
    names = [name for name in bundle.names() if name.lower().endswith(".png")
             and not (isinstance(bundle, Folder) and "/" in name)]
    for name in names:
        where = f"{bundle.where}/{name}" if isinstance(bundle, Folder) else f"{bundle.where}: {name}"
        try:
            asked = book.of_file(name, where)
            answers.found.append(Answer(*asked, read_one(bundle.read(name), where, asked[1], rules)))
        except InputError as error:
            problems.append(error)
    if problems:
        raise all_of(problems, len(names), "masks")
    once(answers.found, bundle.where)
    beside = [name for name in bundle.names() if name not in names and PurePosixPath(name).name not in TABLES]
    if beside:
        answers.notes.append(f"Not taken, since only PNG files directly in the folder are masks: {and_more(beside)}.")
    return answers


def read_one(content: bytes, where: str, item: Item, rules: Rules) -> np.ndarray:
    """Labels of an item's patch out of its mask. Raises `InputError` as `read_classes`, and for another size."""
    values, _ = load_mask(where, True, rules.reading, content)
    if values.ndim == 3 and not rules.colours:
        rows, void = class_rows(rules)
        colours = {row.colour: index for index, row in [*enumerate(rows), (VOID, void)]}
        labels = _by_colour(values, {(0, 0, 0): UNLABELLED, **colours}, where)
    else:
        labels = read_classes(where, rules, content).classes
    return fitted(labels, item, where)


def fitted(labels: np.ndarray, item: Item, where: str) -> np.ndarray:
    """Of labels in one of the sizes that a mask may have, those of the patch."""
    if labels.shape == item.window_shape:
        return np.ascontiguousarray(labels[item.inside])
    if labels.shape in (item.shape, item.patch_shape):
        return labels
    may = list(dict.fromkeys([item.window_shape, item.shape, item.patch_shape]))
    sizes = " or ".join(f"{width} x {height}" for height, width in may)
    raise InputError(f"{where} is {labels.shape[1]} x {labels.shape[0]} pixels (width x height), its patch {sizes}: "
                     "they must be equal.")


def _by_colour(pixels: np.ndarray, meaning: Mapping[tuple[int, int, int], int], where: str) -> np.ndarray:
    """uint8 ``[H, W]`` of colours uint8 ``[H, W, 3]``."""
    codes = code(pixels)
    found, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
    said = [(one >> 16, one >> 8 & 255, one & 255) for one in found.tolist()]
    unknown = [i for i, colour in enumerate(said) if colour not in meaning]
    if unknown:
        most = max(unknown, key=lambda i: counts[i])
        raise InputError(f"{where} has {len(unknown)} colours that are in no class, most of them {list(said[most])} "
                         f"({counts[most]} pixels). Allowed: {', '.join(str(list(colour)) for colour in meaning)}. "
                         "Export without smoothing, in the colours of the query.")
    return np.array([meaning[colour] for colour in said], np.uint8)[inverse].reshape(codes.shape)


# --- CVAT's masks -----------------------------------------------------------------------------------------------------


def read_cvat(bundle: Bundle, book: Book, rules: Rules) -> Answers:
    """``labelmap.txt`` and ``SegmentationClass/*.png``. Classes are found by their names: CVAT numbers and colours them
    in its own order. Its background is what nobody has labelled."""
    table, answers = bundle.named("labelmap.txt"), Answers(CVAT_TOOL)
    if table is None:
        raise InputError(f"{bundle.where} has {CVAT_FOLDER} and no labelmap.txt, which says what its colours mean. "
                         "Export 'Segmentation mask 1.1' again.")
    names, problems = _labelmap(bundle.read(table), f"{bundle.where}: {table}"), list[InputError]()
    files = list(bundle.within(CVAT_FOLDER, ".png"))
    for name in files:
        where = f"{bundle.where}: {name}"
        try:
            asked = book.of_file(name, where)
            labels = _coloured(bundle.read(name), where, names, asked, rules)
            patch = fitted(labels, asked[1], where)
            if (labels != UNLABELLED).any():
                answers.found.append(Answer(*asked, patch))
            else:
                answers.notes.append(f"{name} is background all over: it counts as not labelled yet.")
        except InputError as error:
            problems.append(error)
    if problems:
        raise all_of(problems, len(files), "masks")
    once(answers.found, bundle.where)
    return answers


def _coloured(content: bytes, where: str, names: Mapping[tuple[int, int, int], str], asked: Asked,
              rules: Rules) -> np.ndarray:
    values, palette = load_mask(where, True, rules.reading, content)
    if values.ndim == 2:
        if palette is None:
            raise InputError(f"{where} is grey, and masks of '{CVAT_TOOL}' are in colour. Export it again.")
        values = np.vstack([palette, np.zeros((256 - len(palette), 3), np.uint8)])[values]
    meaning = {}
    present = {tuple(colour) for colour in np.unique(values.reshape(-1, 3), axis=0).tolist()}
    for colour, name in names.items():
        if colour in present:
            meaning[colour] = UNLABELLED if name in (_BACKGROUND, PATCH) and name not in asked[0].names else index_of(
                name, asked[0], where)
    return _by_colour(values, {(0, 0, 0): UNLABELLED, **meaning}, where)


def _labelmap(content: bytes, where: str) -> dict[tuple[int, int, int], str]:
    found: dict[tuple[int, int, int], str] = {}
    try:
        for line in filter(None, map(str.strip, content.decode("utf-8-sig").splitlines())):
            if line.startswith("#"):
                continue
            name, colour, *_ = line.split(":")
            red, green, blue = map(int, colour.split(","))
            if (red, green, blue) in found:
                raise InputError(f"{where} gives the colour [{red}, {green}, {blue}] to '{found[red, green, blue]}' "
                                 f"and to '{name}', which then cannot be told apart. Give the classes colours of their "
                                 "own in the tool, and export again.")
            found[red, green, blue] = name
    except ValueError as error:
        raise InputError(f"{where} is no labelmap ({error}). Export it again.") from None
    return found


