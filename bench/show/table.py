"""A result as a table of at most 100 columns, and the one thing to do next."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..result import Result, Stage, Times, Whole
from .compare import Verdict

RATES = {"memory": ("bytes", 1e9, "GB/s"), "FLOP": ("flops", 1e9, "GFLOP/s"), "exp": ("exps", 1e9, "Gexp/s"),
         "decode": ("pixels", 1e6, "Mpx/s")}
"""What bounds a stage -> the count of its work, the unit's size, the unit."""

DO_NEXT = {
    ("ingest", "decode"): "decode-bound: run meal-gpu ingest once before the runs; more cores decode faster",
    ("forward", "FLOP"): "FLOP-bound: more arithmetic on the device, or a lighter model.backbone",
    ("training step", "FLOP"): "FLOP-bound: more arithmetic on the device, fewer train.epochs, or a lighter backbone",
    ("evaluation", "FLOP"): "FLOP-bound: raise train.eval_every, or more arithmetic on the device",
    ("UMAP fit", "host"): "bound by one core: the fit of the pool is cached, prefer query.strategy meal to meal_ft",
}


def show(result: Result, console: Console) -> None:
    """Print a result."""
    machine, roofs = result.machine, result.roofs
    console.print(f"[bold]{escape(result.subject)}[/]", highlight=False)
    code = f", commit {machine['commit']}" if machine.get("commit") else ""
    where = machine.get("gpu") if result.device.startswith("cuda") else machine["cpu"]
    if not result.estimates:
        console.print(f"{where}, threads: {roofs.threads}, torch {machine['torch']}{code}", highlight=False)
        rates = [f"{getattr(roofs, name) / size:,.1f} {unit}{f' {roofs.dtype}' if name == 'flops' else ''}"
                 for name, size, unit in RATES.values() if getattr(roofs, name)]
        if rates:
            console.print(f"Measured roofs: {', '.join(rates)}", highlight=False)
    if result.stages:
        console.print(_table(result))
    said: dict[tuple[str, str], list[str]] = {}
    for stage in result.stages:
        for other in stage.baselines:
            if other.note:
                said.setdefault((other.name, other.note), []).append(stage.name)
    for (name, note), stages in said.items():
        console.print(f"{stages[0] if len(stages) == 1 else f'{len(stages)} stages'}, {name}: {note}.", highlight=False)
    if result.whole:
        console.print(whole_text(result.whole), highlight=False)
    for growth in result.growth:
        memory = "" if growth.memory_exponent is None else f", memory ~ n^{growth.memory_exponent:.2f}"
        console.print(f"{growth.stage} over {growth.over} {growth.sizes[0]:,.0f} … {growth.sizes[-1]:,.0f}: time ~ "
                      f"n^{growth.exponent:.2f}{memory}", highlight=False)
    if result.estimates:
        console.print(_estimates(result))
    for note in result.notes:
        console.print(note, highlight=False)
    console.print(f"[bold]Next:[/] {escape(advice(result))}", highlight=False)


def line(stage: Stage) -> str:
    """A stage that has just been measured, in a line of a log."""
    bound = f", {stage.share_of_roof:.0%} of its {stage.bound} roof" if stage.bound else ""
    base = f", {_versus(stage)} times {stage.baselines[0].name}" if _versus(stage) != "–" else ""
    took = milliseconds(stage.times.median_ms)
    return f"{stage.name}: {took} ms for {stage.items:,} {stage.unit}{bound}{base}"


def whole_text(whole: Whole) -> str:
    """A whole round beside the sum of its stages, in words."""
    took, summed = (f"{ms / 1e3:,.3g} s" for ms in (whole.times.median_ms, whole.stage_sum_ms))
    apart = (f"{whole.gap:.1%} of the round is between them: host work and waiting" if whole.gap >= 0 else
             f"{-whole.gap:.1%} more than the round, in which they ran at another moment")
    clock = ", ".join(f"{name} {ms / 1e3:,.3g} s" for name, ms in whole.clock_ms.items())
    checking = (f" Comparing checksums took {whole.checking_ms:,.3g} ms of it, "
                f"{whole.checking_ms / whole.times.median_ms:.2%}." if whole.checking_ms else "")
    return (f"A whole round in one go ({whole.content}): {took}. Its stages, each measured alone, add up to {summed}: "
            f"{apart}.{f' By its own clock: {clock}.' if clock else ''}{checking}")


def _table(result: Result) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True, max_width=24)
    rounds = any(stage.per_round for stage in result.stages)
    compared = any(stage.baselines for stage in result.stages)
    for heading in ("items", "ms", "20–80 %", "items/s", "rate", "bound", "of roof", *(["round"] if rounds else []),
                    "+MB", *(["× base"] if compared else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for stage in result.stages:
        added = stage.peak.device_bytes if stage.peak.device_bytes is not None else stage.peak.host_added_bytes
        table.add_row(
            stage.name, f"{stage.items:,}", milliseconds(stage.times.median_ms),
            across(stage.times), count(stage.items_per_second), rate(stage),
            stage.bound or "–", f"{stage.share_of_roof:.0%}" if stage.bound else "–",
            *([share(stage)] if rounds else []),
            "–" if added is None else f"{added / 1e6:,.0f}",
            *([_versus(stage)] if compared else []))
        for other in stage.baselines if len(stage.baselines) > 1 else ():
            cells = ["–", ""] if other.times is None else [
                milliseconds(other.times.median_ms), across(other.times)]
            few = f"{other.items:,}" if other.items else ""
            table.add_row(f"  {other.name}", few, *cells, *[""] * (4 + rounds + 1),
                          *([f"{other.ratio[1]:.1f}" if other.ratio else "–"] if compared else []), style="dim")
    return table


def _versus(stage: Stage) -> str:
    ratios = [other.ratio[1] for other in stage.baselines if other.ratio]
    return f"{ratios[0]:.1f}" if ratios else "–"


def share(stage: Stage) -> str:
    """Of a round; ``once`` for what is done once and kept, a dash for what other stages contain."""
    return f"{stage.share_of_round:.1%}" if stage.per_round else "once" if "once" in stage.note else "–"


def rate(stage: Stage) -> str:
    """The rate of what bounds the stage."""
    if stage.bound not in RATES:
        return "–"
    name, size, unit = RATES[stage.bound]
    return f"{getattr(stage.work, name) / size / (stage.times.median_ms / 1e3):,.3g} {unit}"


def _estimates(result: Result) -> Table:
    table = Table(title=f"ESTIMATE for {result.estimates[0].device}: counts over data-sheet rates; nobody measured it",
                  title_justify="left", box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for heading in ("at least, ms", "bound", "GPU ms", "host ms", "launches", "GB", "GFLOP", "Gexp"):
        table.add_column(heading, justify="right")
    for row in result.estimates:
        table.add_row(row.stage, f"~{row.milliseconds:,.3g}", row.bound, f"{row.gpu_ms:,.3g}", f"{row.host_ms:,.3g}",
                      f"{row.launches:,}", f"{row.work.bytes / 1e9:,.3g}", f"{row.work.flops / 1e9:,.4g}",
                      f"{row.work.exps / 1e9:,.3g}")
    return table


def advice(result: Result) -> str:
    """The one thing to do next: about the stage that a round spends most in."""
    if not result.stages:
        return "nothing was measured: leave out --estimate to measure on this machine."
    if result.part == "stream":  # its figures are bytes
        return "a smaller data.budget_gb takes less memory, a larger one keeps what fits on the device."
    if result.part == "query":
        return "the network, which is the caller's: its time comes on top."
    largest = max(result.stages, key=lambda stage: (stage.share_of_round, stage.times.median_ms))
    said = DO_NEXT.get((largest.name, largest.bound))
    share = f"{largest.name} is slowest"
    if result.part == "round" and largest.share_of_round:
        share = f"{largest.share_of_round:.0%} of a round is {largest.name}"
    if said is None and largest.bound:
        said = f"{largest.bound}-bound"
    text = f"{share}, {said}." if said else f"{share}."
    if largest.bound and largest.share_of_roof < 0.5:
        text = text.removesuffix(".") + f" ({largest.share_of_roof:.0%} of its roof: there is room in the code, too)."
    return text


def show_verdicts(verdicts: list[Verdict], tolerance: float, console: Console) -> None:
    """Print what `compare` found: every regression, or the stage that came nearest to one."""
    found = [verdict for verdict in verdicts if verdict.regressed]
    for verdict in found:
        console.print(f"[bold red]slower[/] {escape(str(verdict))}", highlight=False, soft_wrap=True)
    if not found:
        nearest = f"; nearest to it {verdicts[0]}" if verdicts else ""
        console.print(f"[bold green]No regression[/] beyond {tolerance:.0%} in {len(verdicts)} stages{nearest}.",
                      highlight=False, soft_wrap=True)


def across(times: Times) -> str:
    """From the 20 % to the 80 % quantile."""
    return f"{milliseconds(times.low_ms)}–{milliseconds(times.high_ms)}"


def milliseconds(value: float) -> str:
    if value < 0.1:
        return f"{value:.2g}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def count(value: float) -> str:
    """With three digits or so, and a unit: 5.2M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{unit}"
    return f"{value:.3g}"
