"""``meal-gpu status``: how far a run is, whom it waits for, what the next round costs, and whether it is worth it."""

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..config import Config
from ..errors import InputError
from ..files import parse_json, read_own
from ..journal import Taken, latest, newest
from ..paths import expand
from ..records import ROUNDS, read_config
from .people import Effort, agreement, journal
from .runs import Run, Seed, load_run
from .stopping import Signs
from .summary import duration


@dataclass(frozen=True)
class Waiting:
    """A query that people have been asked, and where its labels are."""

    folder: Path
    round: int
    asked: int
    labelled: int
    """Those whose masks lie there, or were taken."""
    skipped: int

    @property
    def missing(self) -> int:
        return self.asked - self.labelled - self.skipped


def waiting(seed: Path, round_: int, taken: list[Taken]) -> Waiting | None:
    """The query of a round, with those that were asked in place of skipped patches; None where none is written."""
    said = {item: latest(lines.values()).status for item, lines in newest(taken).items()}
    asked = labelled = skipped = 0
    first = None
    for folder in sorted(seed.glob(f"to-label/round-{round_:02d}*")):
        if not re.fullmatch(rf"round-{round_:02d}(-more-\d+)?", folder.name):
            continue
        if not os.path.lexists(folder / "query.json"):
            continue
        first = first or folder
        for item in _items(folder / "query.json"):
            status = said.get(str(item.get("id")))
            names = {f"{item.get('id')}.png", str(item.get("file"))}
            there = status in ("labelled", "partial") or any((folder / "masks" / name).is_file() for name in names)
            asked, skipped = asked + 1, skipped + (status == "skipped")
            labelled += there and status != "skipped"
    return None if first is None else Waiting(first, round_, asked, labelled, skipped)


def _items(file: Path) -> Iterator[dict[str, Any]]:
    try:
        held = parse_json(read_own(file))
        for item in held["items"] if isinstance(held, dict) else held:
            yield dict(item)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is damaged ({error}). Remove it: --resume writes it again.") from None


def print_status(path: Path, console: Console) -> None:
    """Say all of it. Raises `InputError` where there is no run, or a file of it is damaged."""
    path = expand(path)
    if not (path / "config.yaml").is_file():
        raise InputError(f"'{path}' is not a run directory (no config.yaml there). Start one: meal-gpu run CONFIG "
                         f"--out {shlex.quote(str(path))}")
    config = read_config(path)
    begun = any(b"\n" in read_own(file) for file in path.glob(f"seed-*/{ROUNDS}"))
    run = load_run(path) if begun else None
    _say(console, f"{path}: {config.query.strategy} on {config.data.dataset}, "
                  f"{'people label' if config.query.oracle == 'people' else 'masks are revealed'}")
    for number in config.seeds:
        seed = next((one for one in run.seeds if one.seed == number), None) if run is not None else None
        _seed(path, config, run, number, seed, console)


def _seed(path: Path, config: Config, run: Run | None, number: int, seed: Seed | None, console: Console) -> None:
    rounds, folder = seed.rounds if seed is not None else [], path / f"seed-{number}"
    done, wanted = len(rounds), config.query.rounds + 1
    last = rounds[-1] if rounds else None
    labelled = f"; {last.n_labelled:,} patches labelled, {last.fraction:.2%} of the pool" if last else ""
    _say(console, f"\nseed {number}: {done} of {wanted} rounds finished, the first labels included{labelled}")
    if run is not None and seed is not None:
        signs = Signs(run, seed)
        _curve(signs, console)
    if config.query.oracle == "people":
        _people(path, config, folder, done, console)
    elif done < wanted:
        _say(console, f"Go on: meal-gpu run --resume {shlex.quote(str(path))}")
    if run is not None and seed is not None and config.query.rounds:
        _say(console, "Is more worth it?")
        for line in signs.advice():
            _say(console, f"  {line}")


def _curve(signs: Signs, console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("round", "patches", "mIoU", "gained", "right before"):
        table.add_column(title, justify="right")
    before = None
    for record in signs.seed.rounds:
        gained = "" if before is None or record.miou is None else f"{record.miou - before:+.3f}"
        right = signs.right.get(record.round)
        table.add_row(str(record.round), f"{record.n_labelled:,}", "–" if record.miou is None else f"{record.miou:.3f}",
                      gained, "" if right is None else f"{right:.0%}")
        before = record.miou
    console.print(table)


def _people(path: Path, config: Config, folder: Path, done: int, console: Console) -> None:
    taken = journal(folder)
    if done <= config.query.rounds:
        open_ = waiting(folder, done, taken)
        if open_ is None:
            _say(console, f"Its next query is not written yet. Go on: meal-gpu run --resume {shlex.quote(str(path))}")
        else:
            _say(console, f"Round {open_.round} asks for {open_.asked} patches: {open_.labelled} labelled, "
                          f"{open_.missing} missing, {open_.skipped} skipped. They are in {open_.folder}")
            if not open_.missing:
                _say(console, f"All labels are there. Go on: meal-gpu run --resume {shlex.quote(str(path))}")
    if not taken:
        return
    effort = Effort.of(taken)
    if effort.mean is not None:
        _say(console, f"A patch takes {effort.mean / 60:.1f} minutes (mean of {len(effort.seconds)} labels).")
        _cost(effort, config, done, console)
    else:
        _say(console, "How long a patch takes is not known: the labelling tool gave no times.")
    if effort.unchanged is not None:
        _say(console, f"People left {effort.unchanged:.0%} of the predicted pixels as they were.")
    agreed = agreement(folder, taken)
    if agreed is not None:
        _say(console, f"{agreed.items} patches have two labels or more, which agree on {agreed.share:.1%} of the "
                      "pixels.")


def _cost(effort: Effort, config: Config, done: int, console: Console) -> None:
    left = config.query.rounds - done + 1
    if left < 1:
        return
    expected = effort.expected(config.query.n_query)
    if expected is None:
        _say(console, "What a round costs can be said from three labels on.")
        return
    mean, low, high = expected
    each = f"{duration(mean)} of labelling (nine in ten: {duration(low)} to {duration(high)})"
    _say(console, f"A round of {config.query.n_query} patches costs {each} at this rate; {left} are left.")


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True, markup=False)
