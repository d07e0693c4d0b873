"""Commands of the command line that begin with a folder of images, or end in one; `cli` attaches them."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from .display import Display
from .endings import Interrupted, Terminated
from .options import SetOption
from .paths import expand

console = Console()


def init(directory: Annotated[Path, typer.Argument(metavar="DIR", parser=expand,
                                                   help="Where meal.yaml, the config, goes.")],
         images: Annotated[Path, typer.Option(parser=expand, metavar="FOLDER", help="Your images.")],
         masks: Annotated[Path | None, typer.Option(
             parser=expand, metavar="FOLDER", help="Masks of all or of some: PNG files of their names.")] = None,
         classes: Annotated[str | None, typer.Option(
             metavar="NAMES", help="road,car,... in the order of their ids; or with the values of masks, "
             "road=7,car=26, or their colours, road=#804080.")] = None) -> None:
    """Look at a folder of images and write a config for it: sizes, classes, a budget that fits. Begin here."""
    from .folders.begin import begin

    try:
        with Display(console) as show:
            begun = begin(directory, images, masks, classes, show.progress)
    except (KeyboardInterrupt, Terminated) as stop:
        raise Interrupted(" Nothing was written.") from stop
    _say(begun.told)
    console.print(f"\n[bold]{escape(str(begun.config))}[/] is written. Look into it, then:", highlight=False,
                  soft_wrap=True)
    for command in begun.commands:
        console.print(f"  {escape(command)}", highlight=False, soft_wrap=True)


def status(run: Annotated[Path, typer.Argument(parser=expand, metavar="RUN", help="The run's directory.")]) -> None:
    """How far a run is, whose labels it waits for, what the next round will cost, and whether it is worth it."""
    from .report.status import print_status

    print_status(run, console)


def predict(run: Annotated[Path, typer.Argument(parser=expand, metavar="RUN", help="The run's directory.")],
            images: Annotated[Path, typer.Option(parser=expand, metavar="FOLDER", help="Images of any size.")],
            out: Annotated[Path, typer.Option(parser=expand, metavar="FOLDER",
                                              help="Where masks/ goes; called again, what is missing is done.")],
            overlays: Annotated[bool, typer.Option("--overlays", help="Also images under their masks in colour.")
                                ] = False,
            seed: Annotated[int | None, typer.Option(metavar="N", help="Of which seed; default the first.")] = None,
            set_: SetOption = None) -> None:
    """Write masks of other images by the last network of a run, at the images' own sizes."""
    from .folders.predict import predict as write

    try:
        with Display(console) as show:
            told = write(run, images, out, overlays, seed, set_, show.progress)
    except (KeyboardInterrupt, Terminated) as stop:
        raise Interrupted(" Masks written so far are whole, and kept; called again, it goes on.") from stop
    _say(told)


def export(run: Annotated[Path, typer.Argument(parser=expand, metavar="RUN", help="The run's directory.")],
           out: Annotated[Path, typer.Option(parser=expand, metavar="DIR", help="A new folder.")],
           seed: Annotated[int | None, typer.Option(metavar="N", help="Of which seed; default the first.")] = None,
           set_: SetOption = None) -> None:
    """Write what a run's labels have made: images, masks, splits and COCO, for other training code."""
    from .folders.export import export as write

    try:
        with Display(console) as show:
            told = write(run, out, seed, set_, show.progress)
    except (KeyboardInterrupt, Terminated) as stop:
        raise Interrupted(" Nothing was written there.") from stop
    _say(told)


def _say(lines: list[str]) -> None:
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def attach(app: typer.Typer) -> None:
    """Make these commands of ``meal-gpu``."""
    for command in (init, status, predict, export):
        app.command()(command)
