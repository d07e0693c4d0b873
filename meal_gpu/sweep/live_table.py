"""What a sweep looks like in a terminal: a line per run, those that are at work first."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..display import clock, number

ORDER = ("running", "failed", "waiting", "done")


@dataclass
class Line:
    """How far one run is."""

    name: str
    seeds: int
    rounds: int
    """Of one seed, the initial one included."""
    state: str = "waiting"
    seed: int | None = None
    finished: set[tuple[int, int]] = field(default_factory=set)
    """(seed, round)"""
    stage: str = ""
    share: float = 0.0
    miou: float | None = None
    worker: str = ""
    since: float = 0.0
    seconds: float = 0.0


class Board:
    """Shows what runs tell (`jobs.Event`) and how they end: as a table in a terminal, else a printed line for each.

    Events arrive in another thread than the ends of runs.
    """

    def __init__(self, console: Console, runs: Sequence[tuple[str, int, int]], title: str) -> None:
        """``runs``: name, seeds, and rounds of each seed."""
        self.console, self.title = console, title
        self.lines = {name: Line(name, seeds, rounds) for name, seeds, rounds in runs}
        self.lock = threading.Lock()
        self.live = Live(console=console, get_renderable=self.render, refresh_per_second=2, transient=True,
                         ) if console.is_terminal else None

    def __enter__(self) -> "Board":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self.live:
            self.live.stop()

    def notice(self, event: dict[str, Any]) -> None:
        """A run has begun, has come further, or has finished a round."""
        with self.lock:
            line = self.lines[event["point"]]
            if line.state in ("done", "failed"):  # told before it ended, heard after
                return
            if event.get("started"):
                again = "" if line.state == "waiting" else " again: its worker was lost"
                line.state, line.stage, line.share, line.since = "running", "starts", 0.0, time.monotonic()
                self._print(f"{line.name}: starts{again} ({event['worker']})")
            elif "round" in event:
                new = (event["seed"], event["round"]) not in line.finished
                line.finished.add((event["seed"], event["round"]))
                line.seed, line.miou = event["seed"], event["miou"]
                if new:
                    self._print(f"{line.name}: seed {event['seed']}, round {event['round']}, {event['n_labelled']} "
                                f"patches, mIoU {number(event['miou'])}")
            else:
                line.stage, line.share = event["stage"], event["done"] / (event["total"] or 1)
            line.worker = event["worker"]

    def end(self, name: str, failure: str | None) -> None:
        """A run has ended, well or not."""
        with self.lock:
            line = self.lines[name]
            line.state = "failed" if failure else "done"
            line.seconds = time.monotonic() - line.since if line.since else 0.0
        if self.live:
            mark = "[red]failed[/]" if failure else "[green]done[/]  "
            self.console.print(f"{mark} {escape(name)}  mIoU {number(line.miou)}  {clock(line.seconds)}",
                               highlight=False)
        else:
            self._print(f"{name}: {line.state}")

    def render(self) -> RenderableType:
        """All runs that fit the terminal."""
        with self.lock:
            lines = sorted(self.lines.values(), key=lambda line: ORDER.index(line.state))
            counts = {state: sum(line.state == state for line in lines) for state in ORDER}
            table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
            for column in ("run", "", "rounds", "stage", "", "mIoU", "time"):
                table.add_column(column, no_wrap=True)
            room = max(self.console.height - 5, 3)
            for line in lines[:room]:
                busy = line.state == "running"
                colour = {"running": "cyan", "failed": "red", "done": "green", "waiting": "dim"}[line.state]
                seconds = time.monotonic() - line.since if busy else line.seconds
                table.add_row(
                    escape(line.name), Text(line.state, colour), f"{len(line.finished)}/{line.seeds * line.rounds}",
                    line.stage if busy else "", ProgressBar(completed=100 * line.share, width=20) if busy else "",
                    number(line.miou) if line.miou is not None else "", clock(seconds) if seconds else "")
            rest = f"\n… and {len(lines) - room} more" if len(lines) > room else ""
            summary = " · ".join(f"{count} {state}" for state, count in counts.items() if count)
        return Group(Text(f"{self.title}  {summary}", "bold"), table, Text(rest.strip()))

    def _print(self, text: str) -> None:
        if self.live is None:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)
