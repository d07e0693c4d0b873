"""Arguments that several commands have."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .configfile import shipped
from .errors import InputError
from .paths import expand

CONFIG_HELP = f"A YAML file, or one that ships with meal-gpu: {', '.join(shipped())}."
SWEEP_HELP = f"A YAML file with axes, or one that ships with meal-gpu: {', '.join(shipped(sweeps=True))}."
SetOption = Annotated[list[str] | None, typer.Option(
    "--set", metavar="KEY=VALUE", help="Override a key of the config, for example train.epochs=10. Repeatable.")]
WorkersOption = Annotated[int | None, typer.Option(min=1, metavar="N", help="Use N worker processes on this machine.")]
SchedulerOption = Annotated[str | None, typer.Option(
    metavar="ADDRESS", help="Use the workers of a Dask scheduler that runs already, for example tcp://node1:8786.")]
CudaOption = Annotated[bool, typer.Option("--cuda", help="Use one worker per GPU of this machine.")]
AcceptOption = Annotated[bool, typer.Option("--accept-changes", help="Take a run as somebody has edited it: its "
                                            "config, its rounds, its labels. Its reports say so.")]
OutOption = Annotated[Path | None, typer.Option(
    parser=expand, metavar="DIR", help="Directory of the run; default runs/<dataset>-<strategy>-<time>.")]

PathOption = Annotated[str | None, typer.Option(
    metavar="DIR", help="Where the modules of model.factory and train.factory stand; default: the working directory.")]


def found_in(path: str | None) -> list[str]:
    """Overrides that say where modules stand."""
    return [] if path is None else [f"model.path={json.dumps(path)}"]


def sharded(workers: int | None, scheduler: str | None, cuda: bool) -> list[str]:
    """Overrides that give the pool to workers."""
    given = [where for where in (workers, scheduler, "cuda" if cuda else None) if where is not None]
    if len(given) > 1:
        raise InputError("--workers, --scheduler and --cuda say who holds the pool: give one of them.")
    return ["query.scoring=sharded", f"query.workers={given[0]}"] if given else []
