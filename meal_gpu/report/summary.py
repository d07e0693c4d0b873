"""What runs have come to: their numbers over seeds, and the table of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .runs import Run, not_begun, sweep_command


@dataclass(frozen=True)
class Spread:
    """Mean over seeds, and the sample standard deviation (``n - 1`` in the denominator; None for a single seed)."""

    mean: float
    std: float | None
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.std is None else f"{self.mean:.3f} ± {self.std:.3f}"


def spread(values: Iterable[float | None]) -> Spread | None:
    """`Spread` of the values that are there, or None when none is."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    return Spread(float(np.mean(there)), float(np.std(there, ddof=1)) if len(there) > 1 else None, len(there))


@dataclass(frozen=True)
class Summary:
    """A run in numbers: at the furthest round that any seed has finished, over the seeds that have finished it."""

    label: str
    strategy: str
    backbone: str
    seeds: int
    seeds_asked: int
    rounds: int
    rounds_asked: int
    n_labelled: int
    fraction: float
    best: Spread | None
    last: Spread | None
    paper: float | None
    difference: float | None
    """``best`` minus ``paper``; None before the last round, since the paper reports nothing else."""
    seconds: float


def labels(runs: Sequence[Run]) -> list[str]:
    """A short name for each run, as long as it takes to tell them apart: strategy, backbone, directory."""
    names = [
        [run.title for run in runs],
        [f"{run.title}, {run.backbone}" for run in runs],
        [f"{run.title}, {run.backbone}, {_initial(run)}" for run in runs],
        [f"{run.title}, {run.path.resolve().name}" for run in runs],
        [f"{run.title}, {run.path.resolve().parent.name}/{run.path.resolve().name}" for run in runs],
    ]
    return next((given for given in names if len(set(given)) == len(given)), names[-1])


def _initial(run: Run) -> str:
    n, labels_of = run.config.query.n_initial_images, run.config.query.labels_of
    if labels_of is not None:
        return f"labels of {labels_of}"
    return f"{n} images at first" if n else "all images"


def summarise(runs: Sequence[Run]) -> list[Summary]:
    """The numbers of each run, in the order given."""
    return [_summary(run, label) for run, label in zip(runs, labels(runs), strict=True)]


def _summary(run: Run, label: str) -> Summary:
    records = run.at(run.rounds_done - 1)
    best = spread(record.miou for record in records)
    paper = run.reference.miou if run.reference else None
    done = run.rounds_done >= run.rounds_asked
    return Summary(
        label=label, strategy="supervised" if run.supervised else run.config.query.strategy, backbone=run.backbone,
        seeds=len(records), seeds_asked=max(len(run.config.seeds), len(run.seeds)),
        rounds=run.rounds_done, rounds_asked=run.rounds_asked,
        n_labelled=records[0].n_labelled, fraction=records[0].fraction,
        best=best, last=spread(record.last.miou for record in records), paper=paper,
        difference=best.mean - paper if best and paper is not None and done else None,
        seconds=sum(run.seconds().values()),
    )


def duration(seconds: float) -> str:
    """A length of time for people, in one unit."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    value, unit = (seconds / 60, "min") if seconds < 5400 else (seconds / 3600, "h")
    return f"{value:.1f} {unit}" if value < 9.95 else f"{value:.0f} {unit}"


def print_table(runs: Sequence[Run], console: Console) -> None:
    """Print one line per run, at most 100 columns wide, and what a reader has to know about the numbers."""
    rows = summarise(runs)
    paper = any(row.paper is not None for row in rows)
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", pad_edge=False)
    table.add_column("run", overflow="fold", min_width=6)
    for column in ("strategy", "backbone"):
        table.add_column(column, no_wrap=True)
    for column in ("seeds", "rounds", "patches", "mIoU\nbest", "mIoU\nlast"):
        table.add_column(column, justify="right", no_wrap=True)
    if paper:
        table.add_column("paper\n(diff.)", justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    for run, row in zip(runs, rows, strict=True):
        cells = [
            escape(run.path.resolve().name), escape(row.strategy), row.backbone,
            counted(row.seeds, row.seeds_asked), counted(row.rounds, row.rounds_asked),
            f"{row.n_labelled}\n{row.fraction:.1%}", *(str(s).replace(" ± ", "\n±") if s else "–"
                                                       for s in (row.best, row.last)),
        ]
        if paper:
            difference = f"\n({row.difference:+.3f})" if row.difference is not None else ""
            cells.append("–" if row.paper is None else f"{row.paper:.3f}{difference}")
        table.add_row(*cells, duration(row.seconds))
    console.print(table, width=min(100, console.width))
    for note in notes(runs):
        console.print(f"- {escape(note)}", width=min(100, console.width), style="dim", highlight=False)


def score_text(score: float | None) -> str:
    """A patch's score for people: sums over pixels run into the thousands, other scores stay below one."""
    if score is None:
        return "–"
    return f"{score:.4g}" if abs(score) < 1000 else f"{score:,.0f}"


def counted(done: int, asked: int) -> str:
    """``9``, or ``5 of 9`` where something is missing."""
    return str(done) if done >= asked else f"{done} of {asked}"


def notes(runs: Sequence[Run]) -> list[str]:
    """What a reader of the numbers has to know, as sentences."""
    found = []
    if any(record.miou is not None for run in runs for seed in run.seeds for record in seed.rounds):
        found.append("mIoU on the validation set; a class that is in neither prediction nor truth is left out of it. "
                     "The best epoch is chosen on these same images, as the paper does, which is optimistic: the last "
                     "epoch is given beside it.")
    if any(len(run.at(run.rounds_done - 1)) > 1 for run in runs):
        found.append("± is the sample standard deviation over seeds (n - 1).")
    for directory in dict.fromkeys(run.sweep for run in runs if run.sweep):
        missing = not_begun(directory)
        if missing:
            found.append(f"{len(missing)} runs of the sweep {directory} have no finished round yet, such as "
                         f"{missing[0]}; go on with: {sweep_command(directory)}")
    alike: dict[str, list[str]] = {}
    for run, label in zip(runs, labels(runs), strict=True):
        if not run.dataset.n_val_images and run.seeds[0].rounds[0].miou is None:
            found.append(f"{label} has no validation images, so there is no mIoU.")
        if run.edited:
            found.append(f"{label} was edited by hand after it was written, and taken as it is.")
        near = next((record.near_duplicates for seed in run.seeds for record in seed.rounds if record.near_duplicates),
                    None)
        if near is not None and near.found:
            alike.setdefault(f"{near.found:,} of {near.of:,} patches have a near-duplicate in the pool, another patch "
                             f"within {near.distance:g} of the typical distance of two.", []).append(label)
        if not run.finished:
            found.append(f"{label} is unfinished; go on with: {run.resume_command}")
        if run.reference and run.reference.departures:
            found.append(f"{label} differs from the paper in {', '.join(run.reference.departures)}.")
    return found + [f"{', '.join(who)}: {said}" for said, who in alike.items()]


