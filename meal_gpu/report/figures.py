"""The figures of the page and how they get into it; here the curves of mIoU over labelled patches."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from bokeh.core.properties import value as constant
from bokeh.embed import json_item
from bokeh.models import ColumnDataSource, FixedTicker, HoverTool, NumeralTickFormatter, Range1d
from bokeh.plotting import figure

from .runs import Run
from .summary import spread

COLOURS = {"Random": "#8c95a3", "Entropy": "#e0912f", "MEAL": "#2f80d0", "MEAL-FT": "#c8417f"}
MORE_COLOURS = ("#2a9d74", "#8a63d2", "#c4562f", "#4aa3b5", "#9a8b2c", "#6b7a99")
FONT = "system-ui, sans-serif"
GREY = "#8b929c"  # readable on white and on black: the fallback where CSS variables do not reach the canvas


def colours(runs: Sequence[Run]) -> list[str]:
    """One colour per run: the strategy's own where it is still free."""
    spare = list(MORE_COLOURS)
    taken: list[str] = []
    for run in runs:
        own = COLOURS.get(run.title)
        if own is None or own in taken:
            own = spare.pop(0) if spare else GREY
        taken.append(own)
    return taken


@dataclass
class Figures:
    """Collects figures as JSON beside their placeholders; the page's script draws each when it becomes visible."""

    count: int = 0
    names: int = 0

    def add(self, canvas: Any, css: str = "") -> str:
        """The HTML placeholder of a figure together with its data."""
        self.count += 1
        # "<" may not stand in a script element: a name such as "</script>" would end it.
        data = json.dumps(json_item(canvas)).replace("<", "\\u003c")
        return (f'<div class="figure {css}" id="figure-{self.count}" style="min-height:{canvas.height}px"></div>'
                f'<script type="application/json" data-figure="figure-{self.count}">{data}</script>')

    def name(self, *renderers: Any) -> str:
        """Give the renderers names that a button can switch them by; returns the value of its ``data-glyphs``."""
        given = []
        for renderer in renderers:
            self.names += 1
            renderer.name = f"glyph-{self.names}"
            given.append(renderer.name)
        return " ".join(given)


def button(text: str, glyphs: str, colour: str = "", pressed: bool = True) -> str:
    """A chip that shows and hides renderers. ``text`` is HTML."""
    mark = f'<i class="swatch" style="background:{colour}"></i>' if colour else ""
    return f'<button type="button" data-glyphs="{glyphs}" aria-pressed="{str(pressed).lower()}">{mark}{text}</button>'


def plot(**options: Any) -> Any:
    """A figure in the look of the page: no background, thin axes, no logo."""
    canvas = figure(sizing_mode="stretch_width", background_fill_alpha=0, border_fill_alpha=0, outline_line_color=None,
                  **options)
    canvas.toolbar.logo = None
    canvas.xgrid.grid_line_color = None
    canvas.ygrid.grid_line_color = GREY
    canvas.ygrid.grid_line_alpha = 0.25
    for axis in canvas.axis:
        axis.axis_line_color = axis.major_tick_line_color = GREY
        axis.axis_line_alpha = axis.major_tick_line_alpha = 0.5
        axis.minor_tick_line_color = None
        axis.major_label_text_color = axis.axis_label_text_color = GREY
        axis.major_label_text_font = axis.axis_label_text_font = FONT
        axis.major_label_text_font_size = axis.axis_label_text_font_size = "12px"
        axis.axis_label_text_font_style = "normal"
    return canvas


def curves(runs: Sequence[Run], names: Sequence[str], tints: Sequence[str], figures: Figures) -> str:
    """mIoU over labelled patches, of one data set, with chips that double as the legend; or why there is none."""
    found = [(run, label, tint) for run, label, tint in zip(runs, names, tints, strict=True)
             if any(record.miou is not None for seed in run.seeds for record in seed.rounds)]
    if not found:
        return '<p class="none">No mIoU to draw: there are no validation images.</p>'
    asked = [(run, label, tint) for run, label, tint in found if not run.supervised]
    budget = max((_budget(run) for run, *_ in asked), default=1)
    start = min((run.seeds[0].rounds[0].n_labelled for run, *_ in asked), default=0)
    span = max(budget - start, 1)
    # The room on the right of the last round is for the paper's values.
    canvas = plot(height=430, toolbar_location=None, tools="",
                 x_range=Range1d(start - 0.03 * span, budget + 0.22 * span))
    canvas.xaxis.axis_label = f"labelled patches (of {found[0][0].dataset.n_patches:,} in the pool)"
    canvas.yaxis.axis_label = "validation mIoU"
    canvas.yaxis.formatter = NumeralTickFormatter(format="0.00")
    heights: list[float] = []
    chips, last_glyphs, texts, lines = [], [], [], []
    for run, label, tint in found:
        if run.supervised:
            final = spread(record.miou for record in run.at(0))
            if final:
                lines.append((final.mean, f"{label} {final.mean:.3f}", tint))
            continue
        renderers, last, values = _curve(canvas, run, label, tint)
        heights += values
        chips.append(button(escape(label), figures.name(*renderers), tint))
        last_glyphs.append(figures.name(*last))
        if run.reference and run.reference.miou is not None:
            texts.append((run.reference.miou, f"paper {run.reference.miou:.3f}", tint, _budget(run)))
    for value in sorted({run.reference.supervised for run, *_ in found if run.reference}):
        lines.append((value, f"paper, fully supervised {value:g}", GREY))
    heights += [height for height, *_ in texts] + [height for height, *_ in lines]
    low, high = min(heights), max(heights)
    pad = max(0.07 * (high - low), 0.01)
    canvas.y_range = Range1d(low - pad, high + 1.4 * pad)
    _references(canvas, texts, lines, figures, chips, (high - low + 2 * pad) / 26, span)
    ticks = sorted({record.n_labelled for run, *_ in asked for seed in run.seeds for record in seed.rounds} | {budget})
    if asked:
        canvas.xaxis.ticker = FixedTicker(ticks=ticks if len(ticks) <= 12 else ticks[::2])
    chips.append(button("last epoch (dotted)", " ".join(last_glyphs), pressed=False))
    return f'<div class="chips">{"".join(chips)}</div>{figures.add(canvas)}'


def _budget(run: Run) -> int:
    """Patches labelled after the last round that the configuration asks for."""
    wanted = run.first + run.config.query.rounds * run.config.query.n_query
    return max(min(wanted, run.dataset.n_patches), *(record.n_labelled for seed in run.seeds for record in seed.rounds))


def _curve(canvas: Any, run: Run, label: str, tint: str) -> tuple[list[Any], list[Any], list[float]]:
    """Draw one run: its renderers, those of the last epoch (hidden), and all heights."""
    renderers, heights = [], []
    for seed in run.seeds:
        there = [(r.n_labelled, r.miou) for r in seed.rounds if r.miou is not None]
        heights += [y for _, y in there]
        if len(run.seeds) > 1 and there:
            renderers.append(canvas.line([x for x, _ in there], [y for _, y in there], line_color=tint, line_width=1,
                                       line_alpha=0.35))
    rounds = [(records[0].n_labelled, spread(r.miou for r in records), spread(r.last.miou for r in records))
              for records in map(run.at, range(run.rounds_done))]
    best = [(x, value) for x, value, _ in rounds if value]
    band = [(x, value.mean, value.std) for x, value in best if value.std is not None]
    if band:
        renderers.append(canvas.varea([x for x, *_ in band], [m - s for _, m, s in band], [m + s for _, m, s in band],
                                    fill_color=tint, fill_alpha=0.13))
        heights += [m + s for _, m, s in band] + [m - s for _, m, s in band]
    source = ColumnDataSource({
        "x": [x for x, _ in best], "y": [value.mean for _, value in best],
        "text": [f"{value} ({value.n} seed{'s' * (value.n > 1)})" for _, value in best],
        "share": [f"{x} patches, {x / run.dataset.n_patches:.1%} of the pool" for x, _ in best],
        "run": [label] * len(best),
    })
    renderers.append(canvas.line("x", "y", source=source, line_color=tint, line_width=2.5))
    dots = canvas.scatter("x", "y", source=source, size=7, fill_color=tint, line_color="white", line_width=1)
    renderers.append(dots)
    canvas.add_tools(HoverTool(renderers=[dots], tooltips=[("run", "@run"), ("mIoU", "@text"), ("labelled", "@share")]))
    final = [(x, value.mean) for x, _, value in rounds if value]
    heights += [y for _, y in final]
    last = canvas.line([x for x, _ in final], [y for _, y in final], line_color=tint, line_width=1.8,
                     line_dash=[2, 3], visible=False)
    return renderers, [last], heights


def _references(canvas: Any, texts: list[tuple[float, str, str, int]], lines: list[tuple[float, str, str]],
                figures: Figures, chips: list[str], gap: float, span: float) -> None:
    """Dashes with a label at the final budget, and dashed lines across for full supervision."""
    renderers = []
    shown = -np.inf
    for value, text, tint, budget in sorted(texts):
        at = max(value, shown + gap)  # labels of near values make room for each other
        shown = at
        ends = [budget - 0.02 * span, budget + 0.03 * span]
        renderers += [
            canvas.line(ends, [value, value], line_color=tint, line_width=2, line_dash=[4, 2]),
            canvas.text([ends[1] + 0.008 * span], [at], [text], text_color=tint, text_font_size="12px",
                      text_font=constant(FONT), text_baseline="middle"),
        ]
    for value, text, tint in lines:
        renderers += [
            canvas.line([canvas.x_range.start, canvas.x_range.end], [value, value], line_color=tint, line_width=1.2,
                      line_dash=[6, 4]),
            canvas.text([canvas.x_range.start + 0.01 * span], [value], [text], text_color=tint, text_font_size="12px",
                      text_font=constant(FONT), text_baseline="bottom", y_offset=-2),
        ]
    if texts or any(text.startswith("paper") for _, text, _ in lines):
        chips.append(button("the paper's values (dashed)", figures.name(*renderers)))

