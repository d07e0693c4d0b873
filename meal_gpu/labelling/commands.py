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


OverlapOption = Annotated[OverlapRule, typer.Option(help="Where one person painted two classes on a pixel: nothing, or "
                                                    "what stands later in the tool.")]
VoidOption = Annotated[Void, typer.Option(help="A mask that is void all over: cannot be labelled (skip), or is void "
                                          "(keep).")]


@app.command()
def add(run: RunArgument,
        path: Annotated[Path, typer.Argument(parser=expand, metavar="FILE|DIR",
                                             help="What the tool exported: Label Studio JSON, CVAT XML or zip, COCO "
                                             "with run lengths, or a folder or zip of PNG masks.")],
        overlap: OverlapOption = OverlapRule.void, void: VoidOption = Void.ask,
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


ServerOption = Annotated[str, typer.Option("--label-studio", metavar="URL", help="The server; its access token is "
                                           "asked for, or stands in LABEL_STUDIO_TOKEN.")]


@app.command()
def push(run: RunArgument, server: ServerOption, set_: SetOption = None) -> None:
    """Send what is to be labelled to a Label Studio server: all rounds of a run into one project."""
    from .adding import push as send

    _print(send(run, server, set_ or []))


@app.command()
def pull(run: RunArgument, server: ServerOption, overlap: OverlapOption = OverlapRule.void,
         void: VoidOption = Void.ask, set_: SetOption = None) -> None:
    """Fetch labels from a Label Studio server, and take all that are new or changed."""
    from .adding import pull as fetch
    from .taking import Choices

    _, lines = fetch(run, server, overlap.value, Choices(void.value), set_ or [])
    _print(lines)


def _print(lines: list[str]) -> None:
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
