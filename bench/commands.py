"""``meal-gpu bench``: what is measured, and what becomes of the result.

Exit codes: 0 done, 1 a stage is slower than in ``--compare``'s result or computes something wrong, 2 bad input.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from meal_gpu.files import write_atomic

if TYPE_CHECKING:
    from .result import Result

WIDTH = 100
"""Columns that every table fits; a pipe has no width of its own."""


class _RoundByDefault(TyperGroup):
    """``meal-gpu bench camvid`` means ``meal-gpu bench round camvid``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            args = ["round", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_RoundByDefault, help="Measure throughput on this machine: a round of a CONFIG, or one part.")

JsonOption = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result.")]
CompareOption = Annotated[Path | None, typer.Option(
    metavar="OLD.json", help="Compare with an earlier result: exit code 1 where a stage is slower.")]
ToleranceOption = Annotated[str, typer.Option(help="By how much a stage may be slower.")]
PageOption = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the result as an HTML page.")]
SecondsOption = Annotated[float, typer.Option(min=0.0, help="Seconds to measure each stage for, at least.")]


@app.command("kernels")
def kernels(seconds: SecondsOption = 4.0, json_: JsonOption = None, compare: CompareOption = None,
            tolerance: ToleranceOption = "10%", out: PageOption = None) -> None:
    """The patch-entropy kernel against the eager chain and torch.compile, beside the machine's roof."""
    from . import kernels
    from .measure import Effort

    measured(lambda: kernels.run(Effort(seconds)), json_, compare, tolerance, out)


@app.command("compare")
def compare_files(old: Annotated[Path, typer.Argument(metavar="OLD.json")],
                  new: Annotated[Path, typer.Argument(metavar="NEW.json")],
                  tolerance: ToleranceOption = "10%") -> None:
    """Compare two results without measuring: exit code 1 where a stage is slower in the second."""
    from .compare import tolerance_of
    from .result import Result

    _judge(Result.read(old), Result.read(new), tolerance_of(tolerance))


def measured(run: Callable[[], "Result"], json_: Path | None, compare: Path | None, tolerance: str,
             out: Path | None) -> None:
    """Measure, then print, write and compare. What can be refused is refused before the measuring."""
    from .compare import tolerance_of
    from .result import Result, WrongResultError
    from .table import show

    allowed, old = tolerance_of(tolerance), Result.read(compare) if compare else None
    try:
        result = run()
    except WrongResultError as error:
        _console(stderr=True).print(f"[bold red]wrong result[/] {escape(str(error))}. Nothing was timed.",
                                    highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    show(result, _console())
    if json_ is not None:
        result.write(json_)
    if out is not None:
        from .page import page

        write_atomic(out, page(result).encode())
        _console().print(f"report: {out}", highlight=False, soft_wrap=True)
    if old is not None:
        _judge(old, result, allowed)


def _judge(old: "Result", new: "Result", tolerance: float) -> None:
    from .compare import compare
    from .table import show_verdicts

    verdicts = compare(old, new, tolerance)
    show_verdicts(verdicts, tolerance, _console())
    if any(verdict.regressed for verdict in verdicts):
        raise typer.Exit(1)


def _console(stderr: bool = False) -> Console:
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=WIDTH)
