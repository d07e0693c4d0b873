"""Runs in this process, one after the other, without Dask: decoded once, and the features of a frozen backbone too.

For sweeps whose runs differ in what is learned and asked for alone (`engine.experiment.OWN`).
"""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from ..config import Config
from ..display import Display
from ..engine.experiment import OWN, Experiment, prepare, unlike
from ..errors import InputError
from ..launch import run_or_resume
from ..strategies.select import find_strategy
from ..sweepfile import Point
from ..timing import Progress


@dataclass
class Shared:
    """What the first run needs is prepared when it starts, and lent to all others."""

    lead: Config
    """The config to prepare for: one that embeds, where there is one, so that its library compiles from the start."""
    held: list[Experiment] = field(default_factory=list)

    @contextmanager
    def lend(self, config: Config, progress: Progress) -> Iterator[Experiment]:
        if not self.held:
            self.held.append(prepare(self.lead, progress))
        yield self.held[0].like(config, progress)

    def close(self) -> None:
        for experiment in self.held:
            experiment.close()


def check_together(points: Sequence[Point]) -> None:
    """Raise `InputError` for runs that cannot share a pool."""
    for point in points[1:]:
        keys = unlike(points[0].config, point.config)
        if keys:
            raise InputError(f"Runs of one process share a pool, and may differ in {', '.join(OWN)}. {points[0].name} "
                             f"and {point.name} differ in {', '.join(keys)}: give each a worker, --workers 1.")


def run_together(points: Sequence[Point], directory: Path, console: Console) -> dict[str, str]:
    """Run points, each in its own directory below ``directory``; those that failed, and why.

    Only bad input is a failure of a run: anything else ends all of them.
    """
    embedding = [point.config for point in points if find_strategy(point.config.query.strategy).embeds]
    failures = {}
    with closing(Shared((embedding or [point.config for point in points])[0])) as shared:
        for number, point in enumerate(points, 1):
            console.print(f"[bold]{point.name}[/] ({number} of {len(points)})", highlight=False)
            with Display(console, point.config) as show:
                try:
                    run_or_resume(point.config, directory / point.name, show.progress, show.observe,
                                  prepared=shared.lend)
                except InputError as error:
                    failures[point.name] = str(error)
    return failures
