"""Tables of Markdown in a page, between two marks."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from meal_gpu.errors import InputError
from meal_gpu.files import write_atomic


def row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


@dataclass(frozen=True)
class Marked:
    """The place of a table in a page, which the module ``meal_gpu.bench.show.MODULE`` writes."""

    page: Path
    name: str
    module: str

    @property
    def begin(self) -> str:
        return f"<!-- {self.name}: written by python -m meal_gpu.bench.show.{self.module}, do not edit -->"

    @property
    def end(self) -> str:
        return f"<!-- {self.name}: end -->"

    def updated(self, text: str, content: str) -> str:
        """The page's text with new content between its marks. Raises `InputError` where they are missing."""
        before, found, rest = text.partition(self.begin)
        _, ended, after = rest.partition(self.end)
        if not found or not ended:
            raise InputError(f"{self.page} lacks the marks '{self.begin}' and '{self.end}': put them where the table "
                             "is to stand.")
        return f"{before}{self.begin}\n{content}{self.end}{after}"

    def write(self, content: str) -> None:
        rewrite(self.page, self.updated(self.page.read_text(), content))


def rewrite(file: Path, new: str) -> None:
    """Write a page that has changed, and say so."""
    if not file.exists() or new != file.read_text():
        write_atomic(file, new.encode())
        print(f"updated {file}", file=sys.stderr)
