"""Patches that look nearly alike, by the distance of their feature vectors.

Distances are told in units of the pool's own: 1 is the typical one, the root mean square over all pairs of patches. A
near-duplicate has another patch within `NEAR`. On CamVid's frames that is a shift by two pixels (0.15
in the median) or a tenth less light (0.06); a frame and the one a second later are 0.47 apart.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

NEAR = 0.2
"""The distance within which patches are counted as near-duplicates, if ``query.min_distance`` names no other."""
PAIRS = 2**28
"""Distances that a count computes at most: a second or two on a CPU. More patches are judged by a part of them."""
_BLOCK = 2**23
"""Distances in memory at once."""


@dataclass(frozen=True)
class NearDuplicates:
    """A count, and of how many it is."""

    found: int
    of: int
    """Patches that were looked at, each beside the whole pool: all of them, or evenly drawn ones of a large pool."""
    distance: float

    def words(self, n: int) -> str:
        """One line for people; ``n`` are the patches that there were to look at."""
        drawn = f"{self.of:,} patches" if self.of == n else f"{self.of:,} patches, drawn evenly from {n:,},"
        advice = "" if not self.found else " query.min_distance keeps such patches out of one query."
        return (f"{self.found:,} of {drawn} have a near-duplicate in the pool: another patch within {self.distance:g} "
                f"of the typical distance of two.{advice}")

    def as_record(self) -> dict[str, float]:
        return {"found": self.found, "of": self.of, "distance": self.distance}


@dataclass(frozen=True)
class Nearness:
    """Feature vectors of a pool, and the unit of their distances."""

    vectors: Tensor
    """float32 ``[n, C]``"""
    mean: Tensor
    """float64 ``[C]``"""
    unit: Tensor
    """float64 ``[]``: the typical distance, squared. 0 where all vectors are equal."""

    @classmethod
    def of(cls, vectors: Tensor) -> "Nearness":
        n = max(1, len(vectors))
        mean = sum((part.double().sum(0) for part in _parts(vectors)), vectors.new_zeros((), dtype=torch.float64)) / n
        squares = sum(((part.double() - mean).square().sum() for part in _parts(vectors)), mean.new_zeros(()))
        return cls(vectors, mean, 2 * squares / n)

    def within(self, ids: Tensor, distance: float) -> Tensor:
        """Which patches lie within ``distance`` of one of ``ids`` int64 ``[m]``, these included: bool ``[n]``."""
        found = torch.zeros(len(self.vectors), dtype=torch.bool, device=self.vectors.device)
        for some in ids.split(1024):
            marks, at = self._centred(self.vectors[some]), 0
            for part in _parts(self.vectors, _BLOCK // max(1, len(some))):
                near = (self._squares(part, marks) <= distance**2 * self.unit).any(1)
                found[at : at + len(part)] |= near
                at += len(part)
        found[ids] = True
        return found

    def pairs(self, ids: Tensor, distance: float) -> Tensor:
        """Which of ``ids`` int64 ``[m]`` lie within ``distance`` of each other: bool ``[m, m]``."""
        rows = self.vectors[ids]
        return self._squares(rows, self._centred(rows)) <= distance**2 * self.unit

    def count(self, distance: float = NEAR) -> NearDuplicates:
        """How many patches have another within ``distance``."""
        n = len(self.vectors)
        drawn = min(n, max(1, PAIRS // max(1, n)))
        ids = torch.arange(drawn, device=self.vectors.device) * n // max(1, drawn)
        found = torch.zeros((), dtype=torch.int64, device=self.vectors.device)
        for some in ids.split(max(1, _BLOCK // max(1, n))):
            marks, others = self._centred(self.vectors[some]), torch.zeros_like(some)
            for part in _parts(self.vectors, _BLOCK // len(some)):
                others += (self._squares(part, marks) <= distance**2 * self.unit).sum(0)
            found += (others > 1).sum()  # each is near itself
        return NearDuplicates(int(found), drawn, distance)

    def _centred(self, rows: Tensor) -> Tensor:
        """Around the mean a difference of squares loses the fewest digits."""
        return rows.double() - self.mean

    def _squares(self, part: Tensor, marks: Tensor) -> Tensor:
        """Squared distances float64 ``[len(part), len(marks)]``."""
        rows = self._centred(part)
        squares = rows.square().sum(1)[:, None] + marks.square().sum(1) - 2 * rows @ marks.T
        # Of equal vectors the digits that are left are no distance.
        return torch.where(squares < 1e-12 * self.unit, 0.0, squares)


def _parts(rows: Tensor, most: int = 2**14) -> Iterator[Tensor]:
    return iter(rows.split(max(1, min(most, 2**14))))
