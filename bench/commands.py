"""``meal-gpu bench``: what is measured, and what becomes of the result.

Exit codes: 0 done, 1 a stage is slower than in ``--compare``'s result or computes something wrong, 2 bad input.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from meal_gpu.files import write_atomic
from meal_gpu.paths import expand

from .show.doing import Doing

if TYPE_CHECKING:
    import torch

    from meal_gpu.config import Config

    from .result import Result
    from .show.compare import Verdict

WIDTH = 100
"""Columns that every table fits; a pipe has no width of its own."""


class _RoundByDefault(TyperGroup):
    """``meal-gpu bench camvid`` means ``meal-gpu bench round camvid``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            args = ["round", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_RoundByDefault, help="Measure throughput on this machine: a round of a CONFIG, or one part.")

JsonOption = Annotated[Path | None, typer.Option("--json", parser=expand, metavar="FILE", help="Write the result.")]
CompareOption = Annotated[Path | None, typer.Option(
    parser=expand, metavar="OLD.json", help="Compare with an earlier result: exit code 1 where a stage is slower.")]
ToleranceOption = Annotated[str, typer.Option(help="By how much a stage may be slower.")]
PageOption = Annotated[Path | None, typer.Option("--out", parser=expand, metavar="FILE",
                                                 help="Write the result as an HTML page.")]
SecondsOption = Annotated[float, typer.Option(min=0.0, help="Seconds to measure each stage for, at least.")]


SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE",
                                                      help="Override a key of the config.")]
ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or one that ships.")]


DrawOption = Annotated[int, typer.Option(
    metavar="N", min=0, help="For cityscapes: draw N scenes in its form instead of reading data.root.")]

ImagesOption = Annotated[int, typer.Option(metavar="N", min=0, help="Use N images of the pool; 0: all.")]


@app.command("round")
def whole_round(config: ConfigArgument = "demo", set_: SetOption = None, seconds: SecondsOption = 3.0,
                only: Annotated[str, typer.Option(metavar="STAGE,...", help="Measure these stages alone.")] = "",
                draw: DrawOption = 0,
                images: ImagesOption = 0,
                estimate: Annotated[str, typer.Option(metavar="DEVICE", help="Measure nothing: estimate the least time "
                                                      "on a device by its data sheet (h100, a100).")] = "",
                json_: JsonOption = None, compare: CompareOption = None, tolerance: ToleranceOption = "10%",
                out: PageOption = None) -> None:
    """A whole acquisition round on the pool of CONFIG, stage by stage; what `meal-gpu bench CONFIG` runs."""
    from .parts import estimate as estimates
    from .parts import round
    from .show.compare import WHOLE
    from .timing.measure import Effort

    names, doing = [name.strip() for name in only.split(",") if name.strip()], Doing()
    with _config(config, set_, draw) as loaded:
        if estimate:
            measured(lambda: estimates.run(loaded, estimate), json_, compare, tolerance, out)
        else:
            def run(only: list[str], baselines: bool = True) -> "Result":
                return round.run(loaded, Effort(seconds), only, compare=baselines, images=images, tell=doing,
                                 done=doing.done)

            measured(lambda: run(names), json_, compare, tolerance, out, doing,
                     lambda slower: run([] if WHOLE in slower else slower, False))


@app.command("embed")
def embed(config: ConfigArgument = "demo", set_: SetOption = None, seconds: SecondsOption = 3.0, draw: DrawOption = 0,
          json_: JsonOption = None, compare: CompareOption = None, tolerance: ToleranceOption = "10%",
          out: PageOption = None) -> None:
    """UMAP fit, placing and seeding on the pool of CONFIG, against umap-learn and scikit-learn."""
    from .parts import embed
    from .timing.measure import Effort

    doing = Doing()
    with _config(config, set_, draw) as loaded:
        measured(lambda: embed.run(loaded, Effort(seconds), doing, done=doing.done), json_, compare, tolerance, out,
                 doing)


@app.command("strategies")
def strategies(config: ConfigArgument = "demo", set_: SetOption = None, seconds: SecondsOption = 1.0,
               draw: DrawOption = 0, images: ImagesOption = 0,
               patches: Annotated[int, typer.Option(metavar="N", min=100, help="Patches to choose among.")] = 47_600,
               json_: JsonOption = None, compare: CompareOption = None, tolerance: ToleranceOption = "10%",
               out: PageOption = None) -> None:
    """One pass for all strategies, on the pool of CONFIG, beside that of meal; and what each takes to choose 32."""
    from .parts import strategies
    from .timing.measure import Effort

    doing = Doing()
    with _config(config, set_, draw) as loaded:
        measured(lambda: strategies.run(loaded, Effort(seconds, 3), patches, images, doing, doing.done), json_,
                 compare, tolerance, out, doing)


@app.command("train")
def train(config: ConfigArgument = "demo", set_: SetOption = None, seconds: SecondsOption = 3.0, draw: DrawOption = 0,
          images: ImagesOption = 0,
          json_: JsonOption = None, compare: CompareOption = None, tolerance: ToleranceOption = "10%",
          out: PageOption = None) -> None:
    """A training step and epoch on the pool of CONFIG, against research code and torch.compile."""
    from .parts import training
    from .timing.measure import Effort

    doing = Doing()
    with _config(config, set_, draw) as loaded:
        measured(lambda: training.run(loaded, Effort(seconds), images=images, tell=doing, done=doing.done), json_,
                 compare, tolerance, out, doing)


@app.command("scale")
def scale(config: ConfigArgument = "demo", set_: SetOption = None, seconds: SecondsOption = 1.0,
          pools: Annotated[str, typer.Option(metavar="N,...", help="Patches of the pools.")] = "1000,10000,100000",
          umap_to: Annotated[int, typer.Option(help="Fit UMAP up to so many patches.")] = 10_000,
          workers: Annotated[str, typer.Option(metavar="N,...", help="Instead: score a pool on so many processes, and "
                                               "simulate up to 256 workers.")] = "",
          json_: JsonOption = None, compare: CompareOption = None, tolerance: ToleranceOption = "10%",
          out: PageOption = None) -> None:
    """How time and memory grow with the pool, the classes and the images' size, on noise."""
    from meal_gpu.errors import InputError

    from .parts import scale
    from .timing.measure import Effort

    doing = Doing()
    if workers:
        from .parts import workers as on_workers

        processes = _numbers(workers, 1)
        if processes is None:
            raise InputError(f"--workers is {workers!r}: give numbers of processes, such as 1,2.")
        with _config(config, set_, 0) as loaded:
            measured(lambda: on_workers.run(loaded, processes, tell=doing), json_, compare, tolerance, out, doing)
        return
    sizes = _numbers(pools, 32)
    if sizes is None:
        raise InputError(f"--pools is {pools!r}: give numbers of patches, 32 at least, such as 1000,10000.")
    with _config(config, set_, 0) as loaded:
        measured(lambda: scale.run(loaded, Effort(seconds, 3), sizes, umap_to=umap_to, tell=doing), json_, compare,
                 tolerance, out, doing)


def _numbers(text: str, least: int) -> list[int] | None:
    """``N,...`` in ascending order; None where it is something else, or a number is below the least."""
    parts = [part.strip() for part in text.split(",")]
    return sorted({int(part) for part in parts}) if all(
        part.isdigit() and int(part) >= least for part in parts) else None


@contextmanager
def _config(name: str, overrides: list[str] | None, draw: int) -> Iterator["Config"]:
    """The config, with drawn scenes behind it where they are asked for."""
    from meal_gpu.config import Config
    from meal_gpu.errors import InputError

    if not draw:
        loaded = Config.load(name, overrides)
        if loaded.model.factory is not None:
            raise InputError(f"model.factory is '{loaded.model.factory}': the benchmark takes the network that ships "
                             "apart. Leave it out; meal-gpu bench query measures what is done with another's outputs.")
        yield loaded
        return
    from .subjects.cityscapes import write

    with tempfile.TemporaryDirectory(prefix="meal-gpu-drawn-") as folder:
        loaded = Config.load(name, [*(overrides or []), f"data.root={folder}"])
        if loaded.data.dataset != "cityscapes":
            raise InputError(f"--draw is for data.dataset cityscapes, and this config has '{loaded.data.dataset}'.")
        with _console(stderr=True).status(f"drawing {draw} scenes"):
            write(Path(folder), draw, max(2, draw // 6), (1024, 2048))
        yield loaded


@app.command("data")
def data(seconds: SecondsOption = 2.0, json_: JsonOption = None, compare: CompareOption = None,
         tolerance: ToleranceOption = "10%", out: PageOption = None) -> None:
    """Decoding against Pillow, DataLoader and torchvision; reading frames from the store against decoding again."""
    from .parts import data
    from .timing.measure import Effort

    doing = Doing()
    measured(lambda: data.run(Effort(seconds, 5, 30, 0.3), tell=doing), json_, compare, tolerance, out, doing)


@app.command("stream")
def stream(images: Annotated[str, typer.Option(metavar="N,...", help="Images of the pools.")] = "400,2975",
           size: Annotated[str, typer.Option(metavar="HxW", help="Their height and width in pixels.")] = "512x1024",
           budget_gb: Annotated[float, typer.Option(min=0.001, help="data.budget_gb, less than the pools.")] = 0.512,
           root: Annotated[Path | None, typer.Option(
               parser=expand, metavar="DIR", help="Where to draw and keep them; default: a temporary one.")] = None,
           json_: JsonOption = None, out: PageOption = None) -> None:
    """A pool larger than its memory budget: drawn in Cityscapes' form, ingested, scored, and the memory that takes."""
    from meal_gpu.errors import InputError

    from .parts import stream

    counts, sides = images.split(","), size.lower().split("x")
    if not all(part.isdigit() and int(part) > 0 for part in counts) or len(sides) != 2 or not all(
            side.isdigit() and int(side) >= 64 for side in sides):
        raise InputError(f"--images is {images!r} and --size {size!r}: give for example --images 400,2975 and --size "
                         "512x1024 (64 pixels at least).")
    doing = Doing()
    with tempfile.TemporaryDirectory(prefix="meal-gpu-drawn-") as folder:
        measured(lambda: stream.run(root or Path(folder), [int(n) for n in counts], (int(sides[0]), int(sides[1])),
                                    budget_gb, doing), json_, None, "10%", out, doing)


@app.command("kernels")
def kernels(seconds: SecondsOption = 4.0,
            device: Annotated[str, typer.Option(metavar="DEVICE", help="auto, cuda or cpu.")] = "auto",
            json_: JsonOption = None, compare: CompareOption = None, tolerance: ToleranceOption = "10%",
            out: PageOption = None) -> None:
    """The kernels of scoring and evaluation against the eager chain and torch.compile, beside the machine's roof."""
    from .parts import kernels
    from .timing.measure import Effort

    chosen, doing = _device(device), Doing()
    measured(lambda: kernels.run(Effort(seconds), device=chosen, done=doing.done), json_, compare, tolerance, out,
             doing)


@app.command("query")
def query(seconds: SecondsOption = 3.0,
          device: Annotated[str, typer.Option(metavar="DEVICE", help="auto, cuda or cpu.")] = "auto",
          json_: JsonOption = None, compare: CompareOption = None, tolerance: ToleranceOption = "10%",
          out: PageOption = None) -> None:
    """What `meal_gpu.query` does with a network's outputs, against the plain loop; and the memory that it takes."""
    from .parts import asking
    from .timing.measure import Effort

    doing = Doing()
    measured(lambda: asking.run(Effort(seconds), device=_device(device), tell=doing, done=doing.done), json_, compare,
             tolerance, out, doing)


def _device(name: str) -> "torch.device":
    """Where this machine scores."""
    from meal_gpu.config import Config
    from meal_gpu.machine.backend import resolve

    return resolve(Config.load({}, [f"device={name}", "query.strategy=entropy"])).device


@app.command("compare")
def compare_files(old: Annotated[Path, typer.Argument(parser=expand, metavar="OLD.json")],
                  new: Annotated[Path, typer.Argument(parser=expand, metavar="NEW.json")],
                  tolerance: ToleranceOption = "10%") -> None:
    """Compare two results without measuring: exit code 1 where a stage is slower in the second."""
    from .result import Result
    from .show.compare import compare, tolerance_of

    allowed = tolerance_of(tolerance)
    _judge(compare(Result.read(old), Result.read(new), allowed), allowed)


def measured(run: Callable[[], "Result"], json_: Path | None, compare: Path | None, tolerance: str,
             out: Path | None, doing: Doing | None = None,
             again: Callable[[list[str]], "Result"] | None = None) -> None:
    """Measure, then print, write and compare. What can be refused is refused before the measuring.

    ``again`` measures the stages that seem slower once more; left out, everything is measured.
    """
    from .result import Result
    from .show.compare import confirmed, tolerance_of
    from .show.table import show

    allowed, old = tolerance_of(tolerance), Result.read(compare) if compare else None
    logging.getLogger("meal_gpu").setLevel(logging.WARNING)  # stores are built many times here
    result = _watched(run, "measuring", doing)
    show(result, _console())
    if json_ is not None:
        result.write(json_)
    if out is not None:
        from .show.page import page

        write_atomic(out, page(result).encode())
        _console().print(f"report: {out}", highlight=False, soft_wrap=True)
    if old is not None:
        def repeated(slower: list[str]) -> "Result":
            _console(stderr=True).print(f"Measuring again what seems slower: {', '.join(slower)}.", highlight=False)
            return _watched((lambda: again(slower)) if again else run, "measuring again", doing)

        _judge(confirmed(old, result, allowed, repeated), allowed)


def _watched(run: Callable[[], "Result"], text: str, doing: Doing | None) -> "Result":
    """Measure beside a spinner. A wrong result ends the command with exit code 1."""
    from .result import WrongResultError

    try:
        with _console(stderr=True).status(text) as status:
            if doing is not None:
                doing.status = status
            return run()
    except WrongResultError as error:
        _console(stderr=True).print(f"[bold red]wrong result[/] {escape(str(error))}. Nothing was timed.",
                                    highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None


def _judge(verdicts: "list[Verdict]", tolerance: float) -> None:
    from .show.table import show_verdicts

    show_verdicts(verdicts, tolerance, _console())
    if any(verdict.regressed for verdict in verdicts):
        raise typer.Exit(1)


def _console(stderr: bool = False) -> Console:
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=WIDTH)
