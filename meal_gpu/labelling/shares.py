"""How many pixels of each class people gave, told before anything is trained on them."""

import logging
from pathlib import Path

import numpy as np

from ..data.census import share
from ..data.classes import VOID
from ..data.rules import Rules
from ..journal import UNLABELLED
from .classfile import FILE

_log = logging.getLogger("meal_gpu")


class Shares:
    """Of all rounds so far."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._counts = np.zeros(256, np.int64)

    def tell(self, round_: int, labels: np.ndarray, folder: Path) -> None:
        """Log a round's; a class whose share of what is labelled jumps is named."""
        now, before, names = np.bincount(labels.ravel(), minlength=256), self._counts, self.rules.class_names
        there = [i for i in range(len(names)) if now[i]]
        listed = [f"{names[i]} {share(int(now[i]), labels.size)}" for i in there]
        listed += [f"{name} {share(int(now[value]), labels.size)}"
                   for value, name in ((VOID, "void"), (UNLABELLED, "unlabelled")) if now[value]]
        _log.info("Labels of round %d: %s.", round_, ", ".join(listed))
        now[UNLABELLED] = 0
        table = folder / FILE
        void = np.flatnonzero(self.rules.to_class == VOID).tolist()
        if len(names) > 1 and there == [0] and now[VOID]:
            _log.warning("The masks of round %d hold only %s and void (%s). Brushes write 0 and 255: if another class "
                         "is meant, correct the masks by %s.", round_, names[0], void, table)
        if before.sum() and now.sum():
            for i, name in enumerate(names):
                old, new = before[i] / before.sum(), now[i] / now.sum()
                if abs(new - old) > 0.25:
                    _log.warning("The share of %s jumps from %.0f %% of all labels before to %.0f %% in round %d: "
                                 "compare the tool's class numbers with %s.", name, 100 * old, 100 * new, round_,
                                 table)
        self._counts = before + now
