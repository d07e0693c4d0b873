"""`meal-gpu selfcheck`: run the checks of this machine's backends, show them, and keep them for a bug report."""

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..config import Config
from ..errors import first_line
from ..machine.backend import resolve
from ..machine.card import card
from .checks import CHECKS
from .outcome import Deviation, Numbers, Unavailable


@dataclass(frozen=True)
class Result:
    name: str
    state: str
    """``ok``, ``failed`` or ``not available here``"""
    detail: str
    """What was found, or why not."""
    seconds: float
    numbers: Numbers = field(default_factory=dict)


def selfcheck(names: Iterable[str] | None = None) -> Iterator[Result]:
    """Run the named checks, or all, one after the other. No check's failure keeps the others from running."""
    for name in CHECKS if names is None else names:
        start = time.perf_counter()
        state, numbers = "ok", Numbers()
        try:
            detail, numbers = CHECKS[name]()
        except (Unavailable, ImportError) as missing:
            state, detail = "not available here", first_line(missing)
        except Deviation as deviation:
            state, detail, numbers = "failed", str(deviation), deviation.numbers
        except Exception as error:  # whatever a backend raises: this is what the check is to tell
            state, detail = "failed", f"{type(error).__name__}: {first_line(error)}"
        yield Result(name, state, detail, round(time.perf_counter() - start, 2), numbers)


def as_json(results: list[Result]) -> bytes:
    """What to attach to a bug report: the machine, the choices, the results."""
    content = {"machine": card(), "choices": resolve(Config()).choices(),
               "checks": [asdict(result) for result in results]}
    return (json.dumps(content, indent=1) + "\n").encode()


def show(results: Iterable[Result], total: int, console: Console) -> list[Result]:
    """Print a line per check as it ends, wrapped beside its name; return them all."""
    marks = {"ok": "[green]ok[/]", "failed": "[bold red]failed[/]", "not available here": "[dim]not available here[/]"}
    seen = []
    with console.status(f"{total} checks, a minute or two") as status:
        for result in results:
            seen.append(result)
            row = Table.grid(padding=(0, 2))
            row.add_column(width=max(map(len, CHECKS)))
            row.add_column()
            row.add_row(result.name, f"{marks[result.state]}: {escape(result.detail)}")
            console.print(row)
            status.update(f"{len(seen)} of {total} checks")
    counts = [f"{sum(result.state == state for result in seen)} {state}" for state in marks]
    console.print(f"\n{', '.join(counts)}")
    return seen
