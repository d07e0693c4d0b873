"""Reports: runs read from their directories, summed up in a table, and drawn on one self-contained page.

Inside: `runs` reads, `paper` holds Table 1, `summary` counts, `verdict` says who won, `compare` what seeds can tell
apart; `page` puts together what `figures`, `planes`, `pictures`, `table1`, `comparison`, `tables`, `words` and `style`
draw and say. Stands on the modules at the root alone: no other room is needed to read a run.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..errors import InputError
from ..files import write_atomic
from ..paths import expand, settle_home
from .runs import Run, load_run, load_runs, load_sweep
from .summary import Spread, Summary, labels, notes, print_table, spread, summarise

__all__ = ["Run", "Spread", "Summary", "labels", "load_run", "load_runs", "load_sweep", "notes", "print_table",
           "print_tables", "spread", "summarise", "write_report"]


def print_tables(runs: Sequence[Run], console: Console) -> None:
    """Print the summary, and the paper's Table 1 where these runs fill more than one of its cells."""
    from .table1 import print_table1  # bokeh takes a second to import

    print_table(runs, console)
    print_table1(runs, console)


def write_report(runs: Sequence[Run], out: str | Path) -> Path:
    """Write the page about ``runs`` to ``out`` (a file, or a directory that gets ``report.html``), and return its path.

    The file appears complete or not at all. Raises `InputError` where it cannot be written.
    """
    settle_home()
    from .page import page  # as above

    out = expand(out)
    content = page(runs).encode()
    try:
        if out.is_dir():
            out = out / "report.html"
        write_atomic(out, content)
    except OSError as error:
        raise InputError(f"The report cannot be written to {out}: {error.strerror}.") from error
    return out
