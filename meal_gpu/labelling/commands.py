"""``meal-gpu labels``: the command line."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..options import SetOption
from ..paths import expand

app = typer.Typer(help="Take labels that people made into a run that waits for them.", no_args_is_help=True)
console = Console()
RunArgument = Annotated[Path, typer.Argument(parser=expand, metavar="RUN", help="The run's directory.")]


class Void(StrEnum):
    ask = "ask"
    skip = "skip"
    keep = "keep"


class OverlapRule(StrEnum):
    void = "void"
    later = "later"


@app.command()
def add(run: RunArgument,
        path: Annotated[Path, typer.Argument(parser=expand, metavar="FILE|DIR",
                                             help="What the tool exported: Label Studio JSON, CVAT XML or zip, COCO "
                                             "with run lengths, or a folder or zip of PNG masks.")],
        overlap: Annotated[OverlapRule, typer.Option(help="Where one person painted two classes on a pixel: nothing, "
                                                     "or what stands later in the tool.")] = OverlapRule.void,
        void: Annotated[Void, typer.Option(help="A mask that is void all over: cannot be labelled (skip), or is void "
                                           "(keep).")] = Void.ask,
        untouched: Annotated[bool, typer.Option("--untouched", help="Also take predictions that came back as they went "
                                                "out (CVAT, COCO).")] = False,
        set_: SetOption = None) -> None:
    """Take all labels of FILE or DIR, or none where anything is wrong with them. Called again, nothing changes."""
    from .adding import add as take
    from .taking import Choices

    _, lines = take(run, path, overlap.value, Choices(void.value, untouched), set_ or [])
    _print(lines)


@app.command()
def skip(run: RunArgument,
         items: Annotated[list[str], typer.Argument(metavar="ITEM...", help="Ids of items, as query.json has them.")],
         set_: SetOption = None) -> None:
    """Patches that cannot be labelled leave the queue for good, and others are asked for in their place."""
    from .adding import skip as take

    _, lines = take(run, items, set_ or [])
    _print(lines)


def _print(lines: list[str]) -> None:
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
