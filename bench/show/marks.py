"""Tables of Markdown in a page, between two marks."""

import sys
from collections.abc import Iterable
from pathlib import Path

from meal_gpu.errors import InputError
from meal_gpu.files import write_atomic


def row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def between(begin: str, end: str, page: str, content: str, file: Path) -> str:
    """A page with new content between its marks. Raises `InputError`, which names the file, where they are missing."""
    before, found, rest = page.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise InputError(f"{file} lacks the marks '{begin}' and '{end}': put them where the table is to stand.")
    return f"{before}{begin}\n{content}{end}{after}"


def rewrite(file: Path, new: str) -> None:
    """Write a page that has changed, and say so."""
    if not file.exists() or new != file.read_text():
        write_atomic(file, new.encode())
        print(f"updated {file}", file=sys.stderr)
