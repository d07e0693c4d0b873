"""Whether labelling more is worth it: what the next round will bring, by the rounds so far. Advice, never a decision.

A curve of mIoU over labelled patches flattens. ``y = c - a exp(-b x)`` is fitted to it, and the gain of the next round
read off, with a band from fits to curves that scatter about it as the rounds do. Few rounds give a wide band, and
training from scratch scatters by itself; a band says both. Beside it stands what needs no validation: how uncertain the
patches are that are asked for, how much of them the network had right before anybody labelled them, and whether its
predictions still change (`settling`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..records import GALLERY
from .runs import Run, Seed
from .settling import LAST, advice, changes

FEWEST = 4
"""Rounds with an mIoU that a curve of three parameters can be fitted to, with one left to see how they scatter."""
LITTLE = 0.005
"""Of mIoU: a gain below what two trainings on equal labels differ by anyway."""
_DRAWS = 400
_BYTES = 2**31


@dataclass(frozen=True)
class Gain:
    """Of mIoU, by the next round."""

    expected: float
    low: float
    high: float
    """In nine cases of ten it is between these, if the curve goes on as it went."""
    scatter: float
    """Standard deviation of rounds about the fitted curve."""

    @property
    def words(self) -> str:
        said = (f"the next round is expected to bring {self.expected:+.3f} mIoU (nine in ten: {self.low:+.3f} to "
                f"{self.high:+.3f}); rounds scatter by {self.scatter:.3f} about the curve")
        if self.high < LITTLE:
            return f"{said}. Little is left to gain: stopping costs next to nothing."
        if self.low > LITTLE:
            return f"{said}. It still rises: go on, if the labels are worth that."
        return f"{said}. The curve does not say: another round will tell more."


def next_gain(x: Sequence[float], y: Sequence[float], more: float) -> Gain | None:
    """By labelled patches x and mIoU y of rounds, for so many ``more`` patches; None for too few rounds."""
    if len(set(x)) < FEWEST:
        return None
    at, values = np.array(x, float), np.array(y, float)
    fit = _Fits(at)
    curve, gain = fit(values[None], more)
    scatter = float(np.sqrt(((values - curve[0]) ** 2).sum() / max(1, len(at) - 3)))
    draws = curve[0] + np.random.default_rng(0).normal(0, scatter, (_DRAWS, len(at)))
    low, high = np.quantile(fit(draws, more)[1], [0.05, 0.95])
    return Gain(float(gain[0]), float(min(low, gain[0])), float(max(high, gain[0])), scatter)


class _Fits:
    """Least squares of ``c - a exp(-b x)``, a not negative, to many curves at once; b out of a range of values."""

    def __init__(self, at: np.ndarray) -> None:
        self.at, span = at, float(at.max() - at.min())
        self.rates = np.geomspace(0.2, 20, 60) / span

    def __call__(self, curves: np.ndarray, more: float) -> tuple[np.ndarray, np.ndarray]:
        """For ``[n, rounds]``: the fitted values, and the gain beyond the last, ``[n]``."""
        best = np.full(len(curves), np.inf)
        fitted, gain = np.zeros_like(curves), np.zeros(len(curves))
        mean = curves.mean(1, keepdims=True)
        first, last = self.at.min(), self.at.max()
        for rate in self.rates:
            falling = np.exp(-rate * (self.at - first))
            centred = falling - falling.mean()
            a = np.maximum(0, -(curves - mean) @ centred / (centred @ centred))
            found = mean - a[:, None] * centred
            error = ((curves - found) ** 2).sum(1)
            better = error < best
            best[better], fitted[better] = error[better], found[better]
            left = np.exp(-rate * (last - first)) * (1 - np.exp(-rate * more))
            gain[better] = (a * left)[better]
        return fitted, gain


@dataclass(frozen=True)
class Signs:
    """What one seed's rounds say."""

    run: Run
    seed: Seed

    @cached_property
    def gain(self) -> Gain | None:
        there = [(record.n_labelled, record.miou) for record in self.seed.rounds if record.miou is not None]
        return next_gain([x for x, _ in there], [y for _, y in there], self.run.config.query.n_query)

    @cached_property
    def uncertain(self) -> list[float]:
        """Mean score of each query, in the order of rounds; empty where the strategy scores nothing."""
        found = []
        for record in self.seed.rounds:
            scores = [patch.score for patch in record.next_query if patch.score is not None]
            if scores:
                found.append(float(np.mean(scores)))
        return found

    @cached_property
    def right(self) -> dict[int, float]:
        """Round -> share of its patches' labelled pixels that the network before it had right."""
        found = {}
        for record in self.seed.rounds[1:]:
            arrays = self.seed.arrays(GALLERY.format(record.round), _BYTES, _no_gallery)
            if arrays is not None and "truth" in arrays:
                said = arrays["truth"] < self.run.n_classes
                if said.any():
                    found[record.round] = float((arrays["prediction"] == arrays["truth"])[said].mean())
        return found

    def advice(self) -> list[str]:
        """In sentences."""
        lines = []
        n = len({record.n_labelled for record in self.seed.rounds if record.miou is not None})
        if self.gain is not None:
            lines.append(f"By the curve {self.gain.words}")
        elif n:
            lines.append(f"By the curve nothing yet: it takes {FEWEST} rounds with an mIoU, and there are {n}.")
        else:
            lines.append("By the curve nothing: there are no validation images (data.val_images, data.val_fraction).")
        if len(self.uncertain) > 1 and self.uncertain[0] > 0:
            lines.append(f"The patches asked for now are {self.uncertain[-1] / self.uncertain[0]:.0%} as uncertain as "
                         "those of the first query; it falls when only easy ones are left.")
        if len(self.right) > 1:
            shares = [f"{share:.0%}" for share in list(self.right.values())[-4:]]
            lines.append(f"Of the patches asked for, the network had {', '.join(shares)} of the pixels right before "
                         "they were labelled (latest rounds); when it no longer rises, labels change little.")
        if any(record.stop_set is not None for record in self.seed.rounds):
            lines.append(advice(changes(self.run, self.seed, LAST), self.run.dataset.class_names,
                                len(self.seed.rounds)))
        lines.append("This is advice from few numbers: stop by your budget, and by what the next round costs.")
        return lines


def _no_gallery(arrays: dict[str, np.ndarray]) -> str:
    if "truth" not in arrays:
        return ""
    there = arrays.get("prediction")
    return "" if there is not None and there.shape == arrays["truth"].shape else "its pictures do not fit its truth"
