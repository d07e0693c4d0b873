"""The command line: a verb, one config, a few overrides.

Exit codes: 0 done, 2 bad input or configuration (one message, no traceback), 130 interrupted by Ctrl-C and 143 by
SIGTERM (both resumable).
"""

import importlib.metadata
import logging
import shlex
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console, ConsoleRenderable
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from .bench.commands import app as bench
from .config import Config
from .configfile import shipped
from .display import Display, number
from .errors import InputError, LabelsMissingError
from .paths import expand, settle_home
from .terminals import show_everything


class Terminated(BaseException):
    """SIGTERM, as a batch system or a container sends it: taken as Ctrl-C, with an exit code of its own.

    No KeyboardInterrupt, which Typer would turn into its own message and code.
    """

if TYPE_CHECKING:
    from .report import Run
    from .sweepfile import Point


class Interrupted(Exception):  # noqa: N818
    """Ctrl-C, with what the user should know. Typer would turn a KeyboardInterrupt into its own message and code."""


app = typer.Typer(help="Manifold Embedding-based Active Learning: which image patches to label next.",
                  epilog="First: meal-gpu demo. Then: meal-gpu run CONFIG, with a YAML file of your own or one that "
                         "ships. Exit codes: 0 done, 1 a check failed, 2 bad input, 130 interrupted, 143 terminated.",
                  no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console()
errors = Console(stderr=True)

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


def _version(wanted: bool) -> None:
    if wanted:
        console.print(importlib.metadata.version("meal-gpu"), highlight=False)
        raise typer.Exit


@app.callback()
def _whole(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True,
                                                 help="Print the version and stop.")] = False) -> None:
    """Manifold Embedding-based Active Learning: which image patches to label next."""


@app.command()
def demo(out: Annotated[Path, typer.Option(help="Directory of the runs; called again, what is missing is done.")] =
         Path("runs/demo"), set_: SetOption = None) -> None:
    """Race MEAL against random patches on street scenes that are drawn on the spot, on the CPU, in a few minutes."""
    from .report.verdict import verdict

    runs = _sweep("demo_compared", out, set_, workers=0)
    won = verdict(runs)
    if won is not None:
        console.print(f"\n[bold]{escape(won)}[/]", highlight=False)


@app.command()
def run(config: Annotated[str | None, typer.Argument(metavar="CONFIG", help=CONFIG_HELP)] = None,
        out: OutOption = None, set_: SetOption = None,
        resume: Annotated[Path | None, typer.Option(parser=expand, metavar="DIR",
                                                    help="Go on with the run in DIR.")] = None,
        workers: WorkersOption = None, scheduler: SchedulerOption = None, cuda: CudaOption = False,
        accept: AcceptOption = False) -> None:
    """Run active learning as CONFIG says, or go on with a run (--resume).

    With --workers, --scheduler or --cuda, worker processes hold the pool of images and score it.
    """
    if (config is None) == (resume is None):
        raise InputError("Give a CONFIG to start a run, or --resume DIR to go on with one (one of the two).")
    set_ = [*(set_ or []), *_sharded(workers, scheduler, cuda)]
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
          predictions: Annotated[Path, typer.Option(parser=expand, metavar="DIR",
                                                    help="A .npy, .npz or .pt file per image of the "
                                                    "pool, called like it: logits [classes, h, w] at any stride.")],
          labelled: Annotated[list[Path] | None, typer.Option(
              parser=expand, metavar="FILE",
              help="query.json of an earlier call: its patches are labelled. Repeatable.")] = None,
          out: Annotated[Path | None, typer.Option(parser=expand, metavar="DIR",
                                                   help="Where query.json goes; without it the patches "
                                                   "are only shown.")] = None,
          probabilities: Annotated[bool, typer.Option("--probabilities", help="The files hold probabilities.")] = False,
          align_corners: Annotated[bool, typer.Option("--align-corners", help="How they are interpolated.")] = False,
          set_: SetOption = None) -> None:
    """Which patches of CONFIG's pool to label next, by predictions of a network of your own; nothing is trained."""
    from .library.command import query_saved

    loaded = Config.load(config, set_)
    try:
        with Display(console) as show:
            answer = query_saved(loaded, predictions, labelled or [], out,
                                 "probabilities" if probabilities else "logits", align_corners, show.progress)
    except KeyboardInterrupt:
        raise Interrupted(" Nothing was written.") from None
    table = Table("image", "row", "col", "box (y0, x0, y1, x1)", "score", box=None, pad_edge=False)
    for patch in answer.patches[:20]:
        place = (str(patch["row"]), str(patch["col"]), ", ".join(map(str, patch["box"])))
        table.add_row(escape(patch["image"]), *place, number(patch["score"]))
    console.print(table)
    if len(answer.patches) > 20:
        console.print(f"and {len(answer.patches) - 20} more", highlight=False)
    if out is not None:
        console.print(f"all {len(answer.patches)}: {out / 'query.json'}", highlight=False, soft_wrap=True, markup=False)


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
    if config is None and out is not None:
        raise InputError("--out is where a run would go: give its CONFIG too.")
    if config is None:
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
    console.print(f"[bold green]ready[/]: meal-gpu run {escape(config)}", highlight=False, soft_wrap=True)


def _show(*tables: Mapping[str, object]) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    for rows in filter(None, tables):
        for key, value in rows.items():
            table.add_row(f"[bold]{key.replace('_', ' ')}[/]", escape(str(value)))
        table.add_row()
    console.print(table)


app.add_typer(bench, name="bench")


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


def _sharded(workers: int | None, scheduler: str | None, cuda: bool) -> list[str]:
    """Overrides that give the pool to workers."""
    given = [where for where in (workers, scheduler, "cuda" if cuda else None) if where is not None]
    if len(given) > 1:
        raise InputError("--workers, --scheduler and --cuda say who holds the pool: give one of them.")
    return ["query.scoring=sharded", f"query.workers={given[0]}"] if given else []


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
        console.print(f"Waiting for labels: {waiting}.\nThe patches are in {waiting.directory.parent / 'images'}, "
                      "query.json beside them says where each one lies.\nWhen the masks are there: "
                      f"meal-gpu run --resume {shlex.quote(str(directory))}", highlight=False, soft_wrap=True,
                      markup=False)
        return
    print_table([load_run(directory)], console)
    _say_where(directory / "report.html")


def _going_on(verb: str, directory: Path) -> str:
    return f" Finished rounds are kept; go on with: meal-gpu {verb} --resume {shlex.quote(str(directory))}"


def _say_where(file: Path) -> None:
    console.print(f"report: {file}", highlight=False, soft_wrap=True, markup=False)


class Lines(RichHandler):
    """Log lines on a terminal; warnings stand out."""

    def render_message(self, record: logging.LogRecord, message: str) -> ConsoleRenderable:
        shown = super().render_message(record, message)
        if record.levelno >= logging.WARNING and isinstance(shown, Text):
            shown.stylize("bold red")
        return shown


def main() -> None:
    """Entry point of ``meal-gpu``."""
    # Where no terminal is, a line stays a line, for whoever searches it.
    handler = Lines(console=errors, show_time=False, show_path=False, show_level=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True,
                        handlers=[handler if errors.is_terminal else logging.StreamHandler()])
    logging.getLogger("meal_gpu").setLevel(logging.INFO)
    logging.getLogger("timm").setLevel(logging.ERROR)  # it warns of the classifier's weights, which are not used
    for stream in (sys.stdout, sys.stderr):
        show_everything(stream)
    settle_home()
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        app()
    except InputError as error:
        errors.print(f"[bold red]error[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except UnicodeEncodeError as error:
        if error.encoding != sys.getfilesystemencoding() or error.encoding == "utf-8":
            raise
        errors.print(f"[bold red]error[/] {escape(repr(error.object))} is no name of a file here: this locale has "
                     f"{error.encoding} alone. Set LC_ALL=C.UTF-8.", highlight=False, soft_wrap=True)
        sys.exit(2)
    except Interrupted as stop:
        _stopped(stop)
    except Terminated as stop:  # in the middle of something that has nothing to keep
        _stopped(stop)
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminated(number: int, frame: object) -> None:
    """The first SIGTERM interrupts; what follows while the run is being put away is ignored."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def _stopped(stop: BaseException) -> NoReturn:
    terminated = isinstance(stop, Terminated) or isinstance(stop.__cause__, Terminated)
    what = "" if isinstance(stop, Terminated) else str(stop)
    errors.print(f"{'Terminated' if terminated else 'Interrupted'}.{escape(what)}", highlight=False, soft_wrap=True)
    sys.exit(143 if terminated else 130)


if __name__ == "__main__":
    main()
