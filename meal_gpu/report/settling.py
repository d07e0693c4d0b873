"""Whether a network's predictions still change from round to round, on images that stay the same (the stop set).

The rule is Bloodgood's and Vijay-Shanker's (stabilising predictions): Cohen's kappa between the predictions of two
rounds, and a mean of the last three of at least .99 says that they have stopped changing. It is the level that is
looked at: that kappa no longer *rises* is said too, but is no reason by itself, since every round trains from scratch.
Two such trainings on the same labels differ as well, so that kappa has a ceiling below 1, which is not known without
training twice.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..records import STOP_SET
from .runs import Round, Run, Seed

AGREED = 0.99
"""Mean kappa from which on predictions are said to have stopped changing."""
LAST = 3
"""Rounds that the mean is taken over."""
LEVEL = 0.01
"""Of kappa: within so much it neither rises nor falls."""
SEEN = 1e-3
"""Share of the stop set that a class must have in either round for its change to be named: fewer pixels are noise."""


@dataclass(frozen=True)
class Change:
    """Between the predictions of a round and of the one before it."""

    round: int
    images: int
    kappa: float | None
    """1 where all agree, 0 where no more do than by chance; None where both give one and the same class only."""
    moved: tuple[float | None, ...]
    """By class: of the pixels that either round gives it, the share that the other gives another."""
    shares: tuple[float, ...]
    """By class: the share of pixels that either round gives it."""


def confusion(before: np.ndarray, after: np.ndarray, n_classes: int) -> np.ndarray:
    """int64 ``[C, C]``: how often a class became another; values from C on (void) are left out."""
    said = (before < n_classes) & (after < n_classes)
    pairs = before[said].astype(np.int64) * n_classes + after[said]
    return np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)


def kappa_of(counts: np.ndarray) -> float | None:
    """Cohen's kappa of a confusion matrix; None where it is 0/0."""
    total = float(counts.sum())
    if not total:
        return None
    same, chance = float(counts.trace()) / total, float((counts.sum(0) / total) @ (counts.sum(1) / total))
    if np.count_nonzero(counts.sum(0) + counts.sum(1)) < 2:
        return None  # one class in both
    return (same - chance) / (1 - chance)


def change(round_: int, images: int, before: np.ndarray, after: np.ndarray, n_classes: int) -> Change:
    """Of class indices uint8, of one shape."""
    counts = confusion(before, after, n_classes)
    either, total = counts.sum(0) + counts.sum(1) - counts.diagonal(), max(int(counts.sum()), 1)
    moved = tuple(1 - int(same) / int(n) if n else None for same, n in zip(counts.diagonal(), either, strict=True))
    return Change(round_, images, kappa_of(counts), moved, tuple((either / total).tolist()))


def changes(run: Run, seed: Seed, last: int | None = None) -> list[Change]:
    """Of all rounds after the first, or the ``last`` ones; without those whose predictions are not there or damaged."""
    n_classes, found = run.n_classes, list[Change]()
    rounds = seed.rounds if last is None else seed.rounds[-last - 1 :]
    before: tuple[np.ndarray, np.ndarray] | None = None
    for record in rounds:
        now = _predictions(run, seed, record)
        if before is not None and now is not None and before[1].shape[1:] == now[1].shape[1:]:
            both = np.intersect1d(before[0], now[0])  # an image may have gone since
            then, here = (maps[np.isin(images, both)] for images, maps in (before, now))
            if len(both) and then.shape == here.shape:
                found.append(change(record.round, len(both), then, here, n_classes))
        before = now
    return found


def _predictions(run: Run, seed: Seed, record: Round) -> tuple[np.ndarray, np.ndarray] | None:
    """Images, and their classes uint8 ``[images, …]``, as a round wrote them."""
    said = record.stop_set
    if said is None or not said.images:
        return None
    height, width = run.config.data.image_size
    most = len(said.images) * (height * width + 8) + 2**16
    arrays = seed.arrays(STOP_SET.format(record.round), most,
                         lambda held: _misfit(held, said.images, said.predictions))
    if arrays is None:
        return None
    maps = arrays["predictions"]
    return arrays["images"], maps.reshape(len(said.images), -1, *maps.shape[1:])


def _misfit(arrays: dict[str, np.ndarray], images: Sequence[int], check: int) -> str:
    if set(arrays) != {"images", "predictions"}:
        return f"it holds {', '.join(arrays) or 'nothing'}"
    maps = arrays["predictions"]
    if maps.dtype != np.uint8 or maps.ndim != 3 or len(maps) % len(images):
        return f"predictions are {maps.dtype} {list(maps.shape)}"
    if arrays["images"].tolist() != list(images) or zlib.crc32(maps.tobytes()) != check:
        return "its predictions are not those of its round"
    return ""


def advice(found: Sequence[Change], class_names: Sequence[str], rounds: int) -> str:
    """In one line, by the changes up to the last of so many ``rounds``."""
    if not found:
        return "Whether predictions still change, nothing yet: it takes two rounds whose predictions are there."
    latest = [one for one in found if one.round >= rounds - LAST]
    values = [one.kappa for one in latest if one.kappa is not None]
    on = f"Predictions on {found[-1].images} fixed images"
    if not latest or latest[-1].round != rounds - 1:
        return "Whether predictions still change, nothing: those of the last two rounds are not there."
    if len(values) < len(latest):
        return f"{on} say nothing: the network gave all pixels one class."
    shown = f"kappa between a round and the one before: {', '.join(f'{value:.3f}' for value in values)}"
    if settled(latest):
        said = f"{on} have stopped changing ({shown}; their mean is at least {AGREED})."
    else:
        said = f"{on} still change ({shown}{_trend(values)}; a mean of {AGREED} would say that they have stopped)."
    most = ", ".join(f"{name} {share:.0%}" for name, share in most_moved(latest[-1], class_names))
    return f"{said} Most in the last round: {most}." if most else said


def settled(latest: Sequence[Change]) -> bool:
    """Whether the mean of the last kappas reaches the level."""
    values = [one.kappa for one in latest[-LAST:] if one.kappa is not None]
    return len(values) == LAST and round(float(np.mean(values)), 6) >= AGREED


def _trend(values: Sequence[float]) -> str:
    if len(values) < 2:
        return ""
    step = values[-1] - values[0]
    if abs(step) < LEVEL:
        return ", level: perhaps as far as it gets, for two trainings from scratch on the same labels differ as well"
    return ", rising" if step > 0 else ", falling"


def most_moved(one: Change, class_names: Sequence[str], most: int = 3) -> list[tuple[str, float]]:
    """The classes that changed most, of those that are seen at all."""
    seen = [(name, moved) for name, moved, share in zip(class_names, one.moved, one.shares, strict=False)
            if moved is not None and share >= SEEN]
    return sorted(seen, key=lambda pair: -pair[1])[:most]
