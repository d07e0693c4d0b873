"""Reports: runs read from their directories, summed up in a table, and drawn on one self-contained page.

Inside: `runs` reads, `paper` holds Table 1, `summary` counts; `page` puts together what `figures`, `planes`,
`pictures`, `tables`, `words` and `style` draw and say.
"""

from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..files import write_atomic
from .runs import Run, load_run, load_sweep
from .summary import Spread, Summary, labels, notes, print_table, spread, summarise

__all__ = ["Run", "Spread", "Summary", "labels", "load_run", "load_sweep", "notes", "print_table", "spread",
           "summarise", "write_report"]


def write_report(runs: Sequence[Run], out: str | Path) -> Path:
    """Write the page about ``runs`` to ``out`` (a file, or a directory that gets ``report.html``), and return its path.

    The file appears complete or not at all. Raises `InputError` where it cannot be written.
    """
    from .page import page  # bokeh takes a second to import: only who writes a page waits for it

    out = Path(out)
    if out.is_dir():
        out = out / "report.html"
    content = page(runs).encode()
    try:
        write_atomic(out, content)
    except OSError as error:
        raise InputError(f"The report cannot be written to {out}: {error.strerror}.") from error
    return out
