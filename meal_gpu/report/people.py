"""The people's side of a run: how long a patch took them, what they left of the prediction, how far they agree."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import InputError
from ..files import read_own
from ..journal import JOURNAL, UNLABELLED, Taken, latest, newest, read_journal
from .runs import Run, Seed
from .summary import duration


@dataclass(frozen=True)
class Effort:
    """Of the patches of one round, or of all; the newest word of each person on each patch."""

    labelled: int
    """Patches, those in part included."""
    partial: int
    skipped: int
    seconds: tuple[float, ...]
    """Per label, where the tool says how long it took."""
    kept: int
    """Pixels left as the network predicted them, ..."""
    predicted: int
    """... of those that it predicted and that people labelled."""

    @classmethod
    def of(cls, lines: Iterable[Taken]) -> "Effort":
        by_item = newest(list(lines))
        every = [line for mine in by_item.values() for line in mine.values()]
        last = [latest(mine.values()) for mine in by_item.values()]
        given = [line for line in every if line.status != "skipped"]
        return cls(
            sum(line.status != "skipped" for line in last), sum(line.status == "partial" for line in last),
            sum(line.status == "skipped" for line in last),
            tuple(line.lead_time for line in given if line.lead_time is not None),
            sum(line.pixels.prediction for line in given),
            sum(line.pixels.prediction + line.pixels.changed for line in given))

    @property
    def mean(self) -> float | None:
        """Seconds per label."""
        return sum(self.seconds) / len(self.seconds) if self.seconds else None

    @property
    def unchanged(self) -> float | None:
        """Share of the prediction that people left as it was."""
        return self.kept / self.predicted if self.predicted else None

    def expected(self, n: int) -> tuple[float, float, float] | None:
        """Seconds that n more labels will take at this rate, and between which bounds in nine cases of ten.

        By resampling the times so far, twice: they are few, and so is what is asked for. None with fewer than three.
        """
        if len(self.seconds) < 3 or self.mean is None:
            return None
        draw, times = np.random.default_rng(0), np.array(self.seconds)
        seen = draw.choice(times, (1000, len(times)))
        sums = np.take_along_axis(seen, draw.integers(0, len(times), (1000, n)), 1).sum(1)
        low, high = np.quantile(sums, [0.05, 0.95])
        return n * self.mean, float(low), float(high)


@dataclass(frozen=True)
class Agreement:
    """Between people who labelled the same patches."""

    items: int
    pixels: int
    same: int

    @property
    def share(self) -> float:
        return self.same / self.pixels


def journal(seed: Path) -> list[Taken]:
    """What was taken from people; empty where there is no journal."""
    return read_journal(seed) if (seed / JOURNAL).is_file() else []


def agreement(seed: Path, taken: Sequence[Taken]) -> Agreement | None:
    """Over all pairs of people and pixels of which both said something; None where nobody shares a patch.

    Labels whose files are gone or damaged are left out.
    """
    items = pixels = same = 0
    for mine in newest(list(taken)).values():
        lines = [line for line in mine.values() if line.status != "skipped" and line.labels]
        labels = [found for line in lines if (found := _labels(seed, line)) is not None] if len(lines) > 1 else []
        items += len(labels) > 1
        for one, other in combinations(labels, 2):
            if one.shape == other.shape:
                said = (one != UNLABELLED) & (other != UNLABELLED)
                pixels += int(said.sum())
                same += int((one == other)[said].sum())
    return Agreement(items, pixels, same) if pixels else None


def _labels(seed: Path, line: Taken) -> np.ndarray | None:
    if Path(line.labels).is_absolute() or ".." in Path(line.labels).parts:
        return None
    try:
        with Image.open(io.BytesIO(read_own(seed / line.labels, 2**28))) as image:
            return np.array(image) if image.mode in ("L", "P") and image.width * image.height < 2**28 else None
    except (OSError, ValueError, InputError, SyntaxError, Image.DecompressionBombError):
        return None


def people_section(run: Run) -> str:
    """HTML about the people of a run; empty where nobody's labels were taken."""
    return "".join(_of_seed(seed, len(run.seeds) > 1) for seed in run.seeds)


def _of_seed(seed: Seed, many: bool) -> str:
    taken = journal(seed.folder)
    if not taken:
        return ""
    rounds = sorted({line.round for line in taken})
    efforts = [(str(k), Effort.of(line for line in taken if line.round == k)) for k in rounds]
    rows = "".join(f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in _cells(effort))}</tr>'
                   for name, effort in [*efforts, ("all", Effort.of(taken))])
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in (
        "round", "patches", "in part", "skipped", "time per patch", "prediction left unchanged"))
    agreed = agreement(seed.folder, taken)
    said = "" if agreed is None else (
        f'<p class="note">{agreed.items} patches were labelled by more than one person: they give the same class to '
        f"{agreed.share:.1%} of the pixels of which both say something.</p>")
    title = f"<p>Seed {seed.seed}.</p>" if many else ""
    return (f'{title}<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{said}'
            '<p class="note">As the labelling tools say; where they say no times, none are shown.</p>')


def _cells(effort: Effort) -> list[str]:
    return [str(effort.labelled), str(effort.partial), str(effort.skipped),
            "–" if effort.mean is None else duration(effort.mean),
            "–" if effort.unchanged is None else f"{effort.unchanged:.1%}"]
