"""How far people agree on patches that more than one of them has labelled."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from ..data.classes import VOID
from ..journal import UNLABELLED
from .standing import Standing


def agreement(standing: Standing, names: Sequence[str]) -> dict[str, float]:
    """Class → pixels to which two people give it, over those to which either does and both give something.

    Over all pairs of people and items; classes that nobody has given are left out.
    """
    both, either = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for _, item in standing.book:
        lines = [line for line in standing.lines.get(item.id, {}).values() if line.status != "skipped"]
        labels = [standing.labels(line, item) for line in lines] if len(lines) > 1 else []
        for one, other in combinations(labels, 2):
            if one.shape != other.shape:
                continue
            said = (one != UNLABELLED) & (other != UNLABELLED)
            a, b = one[said], other[said]
            same = np.bincount(a[a == b], minlength=256)
            both += same
            either += np.bincount(a, minlength=256) + np.bincount(b, minlength=256) - same
    listed = [*enumerate(names), (VOID, "void")]
    return {name: both[i] / either[i] for i, name in listed if either[i]}


def shared(standing: Standing) -> int:
    """Items that more than one person has labelled."""
    return sum(sum(line.status != "skipped" for line in lines.values()) > 1 for lines in standing.lines.values())
