"""COCO's run lengths: pixels column by column, runs of 0 and 1 in turn, beginning with 0; as a list or compressed.

Own code, since it is 40 lines and pycocotools must be compiled; that one is the peer in the tests.
"""

from typing import Any

import numpy as np

from ..errors import InputError
from ..grid import Size, box_around


def encode(mask: np.ndarray) -> dict[str, Any]:
    """``{"size": [H, W], "counts": "..."}`` of a mask, bool ``[H, W]``, as pycocotools writes it."""
    runs = _runs(mask.ravel(order="F"))
    return {"size": [int(side) for side in mask.shape], "counts": _compressed(runs)}


def region(mask: np.ndarray) -> dict[str, Any]:
    """What an annotation says of a mask, bool ``[H, W]``, that is not empty: its box, how large it is, its runs."""
    y0, x0, y1, x1 = box_around(mask)
    return {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": int(mask.sum()), "segmentation": encode(mask)}


def decode(segmentation: dict[str, Any], size: Size) -> np.ndarray:
    """bool ``[H, W]``. Raises `InputError` for what is no such object, is of another size, or does not add up."""
    said = segmentation.get("size")
    if said != list(size):
        raise InputError(f"its size is {said}, and its image is {size[0]} x {size[1]} (height x width)")
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        counts = _expanded(counts)
    if not isinstance(counts, list) or any(type(count) is not int or count < 0 for count in counts):
        raise InputError("its counts are no list of run lengths")
    if sum(counts) != size[0] * size[1]:
        raise InputError(f"its run lengths add up to {sum(counts)}, and its image has {size[0] * size[1]} pixels")
    runs = np.array(counts, np.int64)
    values = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return values.reshape(size, order="F")


def _runs(values: np.ndarray) -> list[int]:
    """Lengths of the runs of False and True in turn, beginning with False; the last run is not empty."""
    edges = np.flatnonzero(np.diff(values)) + 1
    bounds = np.concatenate([[0], edges, [len(values)]])
    lengths = [int(length) for length in np.diff(bounds)]
    return [0, *lengths] if len(values) and values[0] else lengths


def _compressed(runs: list[int]) -> str:
    """Differences to the run before the last, in 5 bits a character."""
    text = []
    for i, run in enumerate(runs):
        value = run - (runs[i - 2] if i > 2 else 0)
        more = True
        while more:
            low, value = value & 31, value >> 5
            more = value != -1 if low & 16 else value != 0
            text.append(chr((low | 32 if more else low) + 48))
    return "".join(text)


def _expanded(text: str) -> list[int]:
    runs, at = list[int](), 0
    while at < len(text):
        value, shift, more = 0, 0, True
        while more:
            if at == len(text) or shift > 60:
                raise InputError("its counts are cut off")
            char = ord(text[at]) - 48
            if not 0 <= char < 64:
                raise InputError(f"its counts hold the character {text[at]!r}, which none have")
            value |= (char & 31) << shift
            more, shift, at = bool(char & 32), shift + 5, at + 1
            if not more and char & 16:
                value |= -1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs
