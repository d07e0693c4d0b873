"""The report's section on predictions that still change, or do not: kappa over labelled patches, and what moves."""

from collections.abc import Mapping, Sequence
from html import escape

from bokeh.models import ColumnDataSource, FixedTicker, HoverTool, NumeralTickFormatter, Range1d

from .figures import GREY, Figures, button, plot
from .runs import Run, Seed
from .settling import AGREED, LAST, SEEN, Change, changes

COLUMNS = 4
"""Rounds that the table has: the latest ones."""


def steadiness(run: Run, tint: str, figures: Figures) -> str:
    """HTML; empty where no two rounds have left predictions on the same images."""
    found = {seed.seed: changes(run, seed) for seed in run.seeds}
    if not any(found.values()):
        return ""
    images = next(one.images for changed in found.values() for one in changed)
    once = "once per seed" if len(run.seeds) > 1 else "once"
    about = (f'<p class="note">{images} images of the pool, drawn {once}, are predicted after every round, whatever is '
             "labelled of them: Cohen’s kappa says how far two rounds agree (1: on every pixel, 0: no more than by "
             f"chance). A mean of the last {LAST} of at least {AGREED} (dashed) says that predictions have stopped "
             "changing, by the rule of Bloodgood and Vijay-Shanker. Every round trains from scratch, and two trainings "
             "on the same labels differ as well: the curve may level off below the line, at a height that only a "
             "second training on the same labels would tell.</p>")
    return _curve(run, found, tint, figures) + about + _table(run, run.seeds[0], found[run.seeds[0].seed])


def _curve(run: Run, found: Mapping[int, Sequence[Change]], tint: str, figures: Figures) -> str:
    lines = []
    for seed in run.seeds:
        labelled = {record.round: record.n_labelled for record in seed.rounds}
        there = [(labelled[one.round], one.kappa, one.round) for one in found[seed.seed] if one.kappa is not None]
        if there:
            lines.append((seed, there))
    if not lines:
        return '<p class="none">No kappa to draw: the network gave every pixel one class.</p>'
    ticks = sorted({record.n_labelled for seed in run.seeds for record in seed.rounds})
    low, span = min(kappa for _, there in lines for _, kappa, _ in there), max(ticks[-1] - ticks[0], 1)
    canvas = plot(height=260, toolbar_location=None, tools="", y_range=Range1d(min(low - 0.05, 0.9), 1.01),
                  x_range=Range1d(ticks[0] - 0.03 * span, ticks[-1] + 0.03 * span))
    canvas.xaxis.axis_label = "labelled patches"
    canvas.yaxis.axis_label = "kappa with the round before"
    canvas.yaxis.formatter = NumeralTickFormatter(format="0.00")
    canvas.xaxis.ticker = FixedTicker(ticks=ticks if len(ticks) <= 12 else ticks[::2])
    canvas.line([canvas.x_range.start, canvas.x_range.end], [AGREED, AGREED], line_color=GREY, line_width=1.2,
                line_dash=[6, 4])
    chips, all_dots = [], []
    for seed, there in lines:
        source = ColumnDataSource({
            "x": [x for x, _, _ in there], "y": [kappa for _, kappa, _ in there],
            "round": [f"{number} and the one before" for _, _, number in there], "seed": [seed.seed] * len(there)})
        line = canvas.line("x", "y", source=source, line_color=tint, line_width=2.5 if len(lines) == 1 else 1.5)
        dots = canvas.scatter("x", "y", source=source, size=7, fill_color=tint, line_color="white", line_width=1)
        all_dots.append(dots)
        chips.append(button(f"seed {seed.seed}", figures.name(line, dots), tint))
    canvas.add_tools(HoverTool(renderers=all_dots, tooltips=[("rounds", "@round"), ("kappa", "@y{0.000}"),
                                                             ("seed", "@seed")]))
    shown = f'<div class="chips">{"".join(chips)}</div>' if len(chips) > 1 else ""
    return shown + figures.add(canvas)


def _table(run: Run, seed: Seed, found: Sequence[Change]) -> str:
    """Classes × the latest rounds: which share of a class is another one's now, or was."""
    if not found:
        return ""
    latest = found[-COLUMNS:]
    head = "".join(f'<th scope="col">round {one.round}</th>' for one in latest)
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{_cell(one, i)}</td>" for one in latest)}</tr>'
        for i, name in enumerate(run.dataset.class_names))
    many = f"Seed {seed.seed}. " if len(run.seeds) > 1 else ""
    return (f'<div class="scroll"><table><thead><tr><th scope="col">class</th>{head}</tr></thead><tbody>{rows}</tbody>'
            f'</table></div><p class="note">{many}Of the pixels that a round or the one before it gives a class, the '
            f"share that the other gives another class. Of classes with less than {SEEN:.1%} of the pixels nothing is "
            "said.</p>")


def _cell(one: Change, i: int) -> str:
    moved = one.moved[i]
    return "–" if moved is None or one.shares[i] < SEEN else f"{moved:.1%}"
