"""The command line: a verb, one config, a few overrides.

Exit codes: 0 done, 2 bad input or configuration (one message, no traceback), 3 waiting for people's labels, 130
interrupted by Ctrl-C and 143 by SIGTERM (these three resumable).
"""

import importlib.metadata
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .bench.commands import app as bench
from .cli_folders import attach as attach_folders
from .config import Config
from .display import Display
from .endings import Interrupted, Terminated, end_well
from .errors import InputError, LabelsMissingError
from .labelling.commands import app as labels
from .machine.ahead import compiling_ahead
from .machine.waiting import wait_asleep
from .options import (
    CONFIG_HELP,
    SWEEP_HELP,
    AcceptOption,
    CudaOption,
    OutOption,
    PathOption,
    SchedulerOption,
    SetOption,
    WorkersOption,
    found_in,
    sharded,
)
from .paths import expand

if TYPE_CHECKING:
    from .report import Run
    from .sweepfile import Point


app = typer.Typer(help="Manifold Embedding-based Active Learning: which image patches to label next.",
                  epilog="First: meal-gpu demo. Your own images: meal-gpu init DIR --images FOLDER. Then: meal-gpu "
                         "run CONFIG, with a YAML file of your own or one that ships. Exit codes: 0 done, 1 a check "
                         "failed, 2 bad input, 3 waiting for labels, 130 interrupted, 143 terminated.",
                  no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console()
errors = Console(stderr=True)


def _version(wanted: bool) -> None:
    if wanted:
        console.print(importlib.metadata.version("meal-gpu"), highlight=False)
        raise typer.Exit


@app.callback()
def _whole(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True,
                                                 help="Print the version and stop.")] = False) -> None:
    """Manifold Embedding-based Active Learning: which image patches to label next."""


attach_folders(app)


@app.command()
def demo(out: Annotated[Path, typer.Option(parser=expand, metavar="DIR", help="Directory of the runs; called again, "
                                           "what is missing is done.")] = Path("runs/demo"),
         set_: SetOption = None) -> None:
    """Race MEAL against random patches on street scenes that are drawn on the spot, on the CPU, in a minute."""
    with compiling_ahead():
        runs = _sweep("demo_compared", out, set_, workers=0)
    from .report.verdict import verdict

    won = verdict(runs)
    if won is not None:
        console.print(f"\n[bold]{escape(won)}[/]", highlight=False)


@app.command()
def run(config: Annotated[str | None, typer.Argument(metavar="CONFIG", help=CONFIG_HELP)] = None,
        out: OutOption = None, set_: SetOption = None,
        resume: Annotated[Path | None, typer.Option(parser=expand, metavar="DIR",
                                                    help="Go on with the run in DIR.")] = None,
        workers: WorkersOption = None, scheduler: SchedulerOption = None, cuda: CudaOption = False,
        accept: AcceptOption = False, path: PathOption = None) -> None:
    """Run active learning as CONFIG says, or go on with a run (--resume).

    With --workers, --scheduler or --cuda, worker processes hold the pool of images and score it.
    """
    if (config is None) == (resume is None):
        raise InputError("Give a CONFIG to start a run, or --resume DIR to go on with one (one of the two).")
    set_ = [*(set_ or []), *sharded(workers, scheduler, cuda), *found_in(path)]
    if config is not None:
        if accept:
            raise InputError("--accept-changes goes with --resume DIR: a new run has none.")
        _start(config, out, set_)
        return
    assert resume is not None
    if out is not None:
        raise InputError("--out and --resume do not go together: a resumed run stays in its directory.")
    from . import launch

    loaded = launch.load_resumed(resume, set_, accept)
    _watch(loaded, resume, lambda show: launch.resume(resume, set_, show.progress, show.observe, accept))


@app.command()
def sweep(config: Annotated[str | None, typer.Argument(metavar="CONFIG", help=SWEEP_HELP)] = None,
          out: Annotated[Path | None, typer.Option(parser=expand, metavar="DIR",
                                                   help="Directory of the sweep; default runs/<its name>.")] = None,
          set_: SetOption = None,
          only: Annotated[list[str] | None, typer.Option(
              metavar="PATTERN", help="Only the runs of fitting names, for example '*-seed-0'. Repeatable.")] = None,
          workers: Annotated[int | None, typer.Option(
              min=0, metavar="N", help="Use N worker processes on this machine; 0: this one, without Dask.")] = None,
          scheduler: SchedulerOption = None, cuda: CudaOption = False,
          resume: Annotated[Path | None, typer.Option(parser=expand, metavar="DIR",
                                                      help="Go on with the sweep in DIR.")] = None,
          ) -> None:
    """Run every combination of a sweep's values, on Dask's workers. Called again, it does what is missing."""
    from .sweepfile import read_points

    if (config is None) == (resume is None):
        raise InputError("Give a CONFIG to start a sweep, or --resume DIR to go on with one (one of the two).")
    if resume is not None and (out is not None or set_ or only):
        raise InputError("--resume goes on with a sweep as it is: give it without --out, --set and --only.")
    if config is not None:
        _sweep(config, out or Path("runs") / Path(config).stem, set_, workers, scheduler, cuda, only)
        return
    assert resume is not None
    _run_points(read_points(resume), str(resume), resume, workers, scheduler, cuda)


def _sweep(config: str, out: Path, set_: list[str] | None, workers: int | None, scheduler: str | None = None,
           cuda: bool = False, only: list[str] | None = None) -> "list[Run]":
    from .sweepfile import load_points

    return _run_points(load_points(config, set_, only), config, out, workers, scheduler, cuda)


def _run_points(points: "list[Point]", name: str, directory: Path, workers: int | None, scheduler: str | None,
                cuda: bool) -> "list[Run]":
    from .report import load_sweep, print_tables
    from .sweep.runner import sweep as run_all

    console.print(f"[bold]{escape(name)}[/]: {len(points)} runs → {escape(str(directory))}", highlight=False,
                  soft_wrap=True)
    try:
        run_all(points, directory, console, workers, scheduler, cuda)
    except (KeyboardInterrupt, Terminated) as stop:
        here = " --workers 0" if workers == 0 else ""
        raise Interrupted(_going_on("sweep", directory) + here) from stop
    runs = load_sweep(directory)
    print_tables(runs, console)
    _say_where(directory / "report.html")
    return runs


@app.command()
def ingest(config: Annotated[str, typer.Argument(metavar="CONFIG", help=CONFIG_HELP)], set_: SetOption = None,
           verify: Annotated[bool, typer.Option("--verify", help="Also read the store, compare checksums.")] = False,
           ) -> None:
    """Decode the images of CONFIG once and store their pixels; run does it by itself when needed."""
    from .data.ingest import ingest as build

    loaded = Config.load(config, set_)
    try:
        with Display(console) as show:
            stores = build(loaded.data, show.progress)
            for store in filter(None, (stores.train, stores.val)) if verify else ():
                store.verify(show.progress)
    except (KeyboardInterrupt, Terminated) as stop:
        raise Interrupted(" Images decoded so far are kept; the next start goes on.") from stop
    for store in filter(None, (stores.train, stores.val)):
        console.print(f"{len(store.names):>7} images{', verified' if verify else ''}   {store.path}", highlight=False,
                      soft_wrap=True, markup=False)


@app.command()
def check(config: Annotated[str, typer.Argument(metavar="CONFIG", help=CONFIG_HELP)], set_: SetOption = None,
          out: Annotated[Path, typer.Option(parser=expand, metavar="FILE",
                                            help="Where the page goes.")] = Path("check.html")) -> None:
    """What a data set is before anything is trained: pixels per class, sizes, duplicates; and a page of overlays."""
    from .engine.check import check as look

    loaded = Config.load(config, set_)
    try:
        with Display(console) as show:
            lines, problem = look(loaded, out, show.progress)
    except (KeyboardInterrupt, Terminated) as stop:
        raise Interrupted(" Images decoded so far are kept; the next start goes on.") from stop
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    console.print(f"page: {out}", highlight=False, soft_wrap=True, markup=False)
    if problem is not None:
        raise problem


@app.command()
def query(config: Annotated[str, typer.Argument(metavar="CONFIG", help=CONFIG_HELP)],
          predictions: Annotated[Path | None, typer.Option(
              parser=expand, metavar="DIR", help="A .npy, .npz or .pt file per image of the pool, called like it: "
              "logits [classes, h, w] at any stride.")] = None,
          onnx: Annotated[Path | None, typer.Option(parser=expand, metavar="FILE",
                                                    help="Instead: a network, run by onnxruntime.")] = None,
          pixels: Annotated[str | None, typer.Option(
              metavar="HOW", help="Its input: imagenet (normalised so), unit (0 to 1) or bytes (0 to 255).")] = None,
          features: Annotated[str | None, typer.Option(
              metavar="NAME", help="Its output of feature maps, which meal embeds.")] = None,
          labelled: Annotated[list[Path] | None, typer.Option(
              parser=expand, metavar="FILE",
              help="query.json of an earlier call: its patches are labelled. Repeatable.")] = None,
          out: Annotated[Path | None, typer.Option(parser=expand, metavar="DIR",
                                                   help="Where query.json goes; without it the patches "
                                                   "are only shown.")] = None,
          probabilities: Annotated[bool, typer.Option("--probabilities", help="They are probabilities.")] = False,
          align_corners: Annotated[bool, typer.Option("--align-corners", help="How they are interpolated.")] = False,
          set_: SetOption = None) -> None:
    """Which patches of CONFIG's pool to label next, by a network of your own: its predictions, or an ONNX file."""
    from .library.command import query_pool, shown

    loaded = Config.load(config, set_)
    try:
        with Display(console) as show:
            answer = query_pool(loaded, predictions, onnx, pixels, features, labelled or [], out,
                                "probabilities" if probabilities else "logits", align_corners, show.progress)
    except (KeyboardInterrupt, Terminated) as stop:
        raise Interrupted(" Nothing was written.") from stop
    shown(answer, out, console)


@app.command()
def report(runs: Annotated[list[Path], typer.Argument(parser=expand, metavar="DIR...",
                                                      help="Directories of runs, or of sweeps.")],
           out: Annotated[Path | None, typer.Option(parser=expand, metavar="FILE",
                                                    help="The file; default report.html in the first DIR.")] = None,
           ) -> None:
    """Summarise runs: a table here, and report.html with curves, queries and times."""
    from .report import load_runs, print_tables, write_report

    loaded = load_runs(runs)
    print_tables(loaded, console)
    _say_where(write_report(loaded, out or runs[0] / "report.html"))


@app.command()
def info(config: Annotated[str | None, typer.Argument(metavar="CONFIG", help=CONFIG_HELP)] = None,
         set_: SetOption = None, out: OutOption = None) -> None:
    """Say which device and libraries would be used, and why; with a CONFIG, whether its run could start here.

    Then it also says what memory, disk and time the run needs, tries all that the run will need, and lists all that is
    wrong (exit code 2). Nothing is decoded or trained, and nothing stays that was not there.
    """
    loaded = Config.load(config or {}, set_)
    if config is None:
        if out is not None:
            raise InputError("--out is where a run would go: give its CONFIG too.")
        from .machine.backend import resolve
        from .machine.card import card, host_memory

        _show(resolve(loaded).choices(), {"memory": host_memory()}, card())
        return
    from .preflight import preflight

    found = preflight(loaded, out)
    _show(*found.tables)
    if found.wrong:
        listed = "\n".join(f"  {name}: {why}" for name, why in found.wrong.items())
        raise InputError(f"This run cannot start here:\n{listed}")
    call = ["meal-gpu", "run", config, *(["--out", str(out)] if out else []),
            *(word for one in set_ or [] for word in ("--set", one))]
    console.print(f"[bold green]ready[/]: {escape(shlex.join(call))}", highlight=False, soft_wrap=True)


def _show(*tables: Mapping[str, object]) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    for rows in filter(None, tables):
        for key, value in rows.items():
            table.add_row(f"[bold]{key.replace('_', ' ')}[/]", escape(str(value)))
        table.add_row()
    console.print(table)


app.add_typer(bench, name="bench")
app.add_typer(labels, name="labels")


@app.command()
def selfcheck(json_: Annotated[Path | None, typer.Option(
                  "--json", parser=expand, metavar="FILE",
                  help="Also write the findings, for example to attach to a bug report.")] = None) -> None:
    """Check kernels, libraries and devices of this machine against references. Exit code 1 where one fails."""
    from .files import write_atomic
    from .selfcheck.runner import CHECKS, as_json, show
    from .selfcheck.runner import selfcheck as check

    results = show(check(), len(CHECKS), console)
    if json_ is not None:
        write_atomic(json_, as_json(results))
    if any(result.state == "failed" for result in results):
        raise typer.Exit(1)


def _start(config: str, out: Path | None, overrides: list[str] | None) -> None:
    from . import launch

    loaded = Config.load(config, overrides)
    directory = out or launch.default_directory(loaded)
    console.print(f"[bold]{escape(config)}[/] → {escape(str(directory))}", highlight=False, soft_wrap=True)
    _watch(loaded, directory, lambda show: launch.run(loaded, directory, show.progress, show.observe))


def _watch(config: Config, directory: Path, work: Callable[[Display], object]) -> None:
    """Show a run as it goes, then its summary and where its report is."""
    from .report import load_run, print_table

    try:
        with Display(console, config) as show:
            work(show)
    except (KeyboardInterrupt, Terminated) as stop:
        raise Interrupted(_going_on("run", directory)) from stop
    except LabelsMissingError as waiting:
        here = shlex.quote(str(directory))
        console.print(f"Waiting for labels: {waiting}.\nWhat to label, and how: {waiting.directory.parent}/README.txt, "
                      f"query.html\nWhat a tool exported: meal-gpu labels add {here} FILE\n"
                      f"Then, or when the masks are there: meal-gpu run --resume {here}", highlight=False,
                      soft_wrap=True, markup=False)
        raise typer.Exit(3) from None
    print_table([load_run(directory)], console)
    _say_where(directory / "report.html")


def _going_on(verb: str, directory: Path) -> str:
    return f" Finished rounds are kept; go on with: meal-gpu {verb} --resume {shlex.quote(str(directory))}"


def _say_where(file: Path) -> None:
    console.print(f"report: {file}", highlight=False, soft_wrap=True, markup=False)


def main() -> None:
    """Entry point of ``meal-gpu``."""
    wait_asleep()
    end_well(app, errors)


if __name__ == "__main__":
    main()
