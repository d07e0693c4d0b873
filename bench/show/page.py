"""``--out report.html``: a result as one page that loads nothing, in the look of the runs' report."""

import math
from collections.abc import Sequence
from html import escape

from bokeh.core.properties import value as constant
from bokeh.models import ColumnDataSource, HoverTool, Range1d
from bokeh.resources import Resources

from meal_gpu.report.figures import FONT, GREY, MORE_COLOURS, Figures, plot
from meal_gpu.report.style import POLICY, SCRIPT, STYLE

from ..result import Estimate, Growth, Result, Stage
from .table import across, advice, milliseconds, rate, share, whole_text

BOUND_COLOURS = {"memory": "#2f80d0", "exp": "#c8417f", "FLOP": "#e0912f", "decode": "#2a9d74", "host": "#8a63d2",
                 "": GREY}


def page(result: Result) -> str:
    """The whole page."""
    figures = Figures()
    sections = [("numbers", "Stages", _numbers(result)), ("baselines", "Against the baselines", _baselines(result)),
                ("share", "Where a round goes", _bars(result)),
                ("roofline", "Roofline", _roofline(result, figures)), ("growth", "Growth", _growth(result, figures)),
                ("charts", "Scale-out", _charts(result, figures)),
                ("estimate", "Estimate", _estimates(result.estimates)),
                ("machine", "Machine and settings", _facts(result))]
    sections = [section for section in sections if section[2]]
    menu = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, title, _ in sections)
    body = "".join(f'<section id="{anchor}"><h2>{title}</h2>{content}</section>' for anchor, title, content in sections)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>bench {result.part} – meal-gpu</title><style>{STYLE}</style></head>
<body><header><p class="kicker">meal-gpu bench {result.part}</p><h1>{escape(result.subject)}</h1>
<p class="lead">{escape(_where(result))}</p><p class="lead">{escape(advice(result))}</p></header>
<nav><div>{menu}</div></nav><main>{body}</main>
<footer>Made by meal-gpu {escape(str(result.machine.get("meal_gpu", "")))}. This page holds everything it shows and
loads nothing.</footer>
{Resources(mode="inline", components=["bokeh"]).render_js()}
<script>{SCRIPT}</script></body></html>
"""


def _where(result: Result) -> str:
    machine = result.machine
    if result.device == "none":
        return "Nothing on this page was measured."
    return (f"{machine.get('gpu') if result.device.startswith('cuda') else machine.get('cpu')}, {result.roofs.threads} "
            f"threads, torch {machine.get('torch')}, commit {machine.get('commit')}.")


def _numbers(result: Result) -> str:
    if not result.stages:
        return '<ul class="notes">' + "".join(f"<li>{escape(note)}</li>" for note in result.notes) + "</ul>"
    device = any(stage.peak.device_bytes is not None for stage in result.stages)
    html = _table(("stage", "items", "median ms", "20–80 %", "items/s", "rate", "bound", "of roof", "of a round",
                   "host MB", *(["device MB"] if device else [])), [_row(stage, device) for stage in result.stages])
    if result.whole:
        html += f"<p>{escape(whole_text(result.whole))}</p>"
    remarks = [*result.notes, *(f"{stage.name}: {stage.note}" for stage in result.stages if stage.note)]
    return html + '<ul class="notes">' + "".join(f"<li>{escape(text)}</li>" for text in remarks) + "</ul>"


def _row(stage: Stage, device: bool) -> list[str]:
    def megabytes(value: int | None) -> str:
        return "–" if value is None else f"{value / 1e6:,.0f}"

    times = stage.times
    return [escape(stage.name), f"{stage.items:,} {escape(stage.unit)}", milliseconds(times.median_ms),
            across(times), f"{stage.items_per_second:,.4g}", rate(stage),
            stage.bound or "–", f"{stage.share_of_roof:.0%}" if stage.bound else "–", share(stage),
            megabytes(stage.peak.host_bytes), *([megabytes(stage.peak.device_bytes)] if device else [])]


def _baselines(result: Result) -> str:
    rows = [[escape(stage.name), escape(other.name), f"{other.items or stage.items:,}",
             milliseconds(other.times.median_ms) if other.times else "–",
             f"{other.ratio[1]:.2f}" if other.ratio else "–",
             f"{other.ratio[0]:.2f}–{other.ratio[2]:.2f}" if other.ratio else "–",
             "–" if other.error is None else f"{other.error:.1e}", escape(other.note or other.checked)]
            for stage in result.stages for other in stage.baselines]
    return "" if not rows else "<p>The same work on the same items, interleaved with ours.</p>" + _table(
        ("stage", "baseline", "items", "its ms", "ours is × faster", "20–80 %", "difference", "of what"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML."""
    body = "".join(f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
                   for first, *cells in rows)
    return ('<div class="scroll"><table class="wide"><thead><tr>' + "".join(f"<th>{cell}</th>" for cell in head)
            + f"</tr></thead><tbody>{body}</tbody></table></div>")


def _bars(result: Result) -> str:
    """One stacked bar of a round, and how much of each stage's time its roof explains."""
    stages = [stage for stage in result.stages if stage.share_of_round > 0]
    if not stages:
        return ""
    tints = (*MORE_COLOURS, *BOUND_COLOURS.values())
    parts, keys = "", ""
    for stage, tint in zip(stages, tints * 3, strict=False):
        parts += (f'<i style="width:{100 * stage.share_of_round:.2f}%;background:{tint}" '
                  f'title="{escape(stage.name)} {stage.share_of_round:.1%}"></i>')
        keys += (f'<li><i class="swatch" style="background:{tint}"></i>{escape(stage.name)} '
                 f'{stage.share_of_round:.1%}</li>')
    return (f'<div class="bars"><span>a round</span><div class="bar">{parts}</div><span></span></div>'
            f'<ul class="classes keys">{keys}</ul>'
            '<p class="note">Medians of the stages times how often a round of this configuration runs them.</p>')


def _roofline(result: Result, figures: Figures) -> str:
    """Operations per second over operations per byte, log-log, under the roofs measured here."""
    roofs = result.roofs
    found = [(stage, stage.work.flops or stage.work.exps) for stage in result.stages
             if stage.work.bytes and (stage.work.flops or stage.work.exps)]
    if not found or not roofs.bytes:
        return ""
    xs = [count / stage.work.bytes for stage, count in found]
    ys = [count / (stage.times.median_ms / 1e3) / 1e9 for stage, count in found]
    tops = [top / 1e9 for top in (roofs.flops, roofs.exps) if top]
    left, right = min([*xs, 0.5]) / 2, max([*xs, *(top * 1e9 / roofs.bytes for top in tops)]) * 4
    canvas = plot(height=430, toolbar_location=None, tools="", x_axis_type="log", y_axis_type="log",
                  x_range=Range1d(left, right), y_range=Range1d(min([*ys, *tops]) / 3, max(tops) * 2.5))
    canvas.xaxis.axis_label = "operations per byte that must be moved"
    canvas.yaxis.axis_label = "10⁹ operations per second"
    for name, top, tint in (("FLOP", roofs.flops, BOUND_COLOURS["FLOP"]), ("exp", roofs.exps, BOUND_COLOURS["exp"])):
        if top:
            bend = top / roofs.bytes
            canvas.line([left, bend, right], [left * roofs.bytes / 1e9, top / 1e9, top / 1e9], line_color=tint,
                        line_width=2)
            canvas.text([right / 1.1], [top / 1e9], [f"{top / 1e9:,.0f} G{name}/s"], text_color=tint,
                        text_align="right", text_font_size="12px", text_font=constant(FONT), text_baseline="bottom")
    source = ColumnDataSource({"x": xs, "y": ys, "name": [stage.name for stage, _ in found],
                               "tint": [BOUND_COLOURS[stage.bound] for stage, _ in found],
                               "share": [f"{stage.share_of_roof:.0%}" for stage, _ in found]})
    points = canvas.scatter("x", "y", source=source, size=11, color="tint", line_color=GREY)
    canvas.text("x", "y", "name", source=source, text_color=GREY, text_font_size="12px", text_font=constant(FONT),
                x_offset=9, y_offset=5)
    canvas.add_tools(HoverTool(renderers=[points], tooltips=[("", "@name"), ("of its roof", "@share")]))
    return figures.add(canvas) + (
        '<p class="note">Operations are multiply-adds counted twice, or exponentials where a stage has no products. '
        "Each has its ceiling; the slope is the measured copy rate. Stages that decode or wait for the host have no "
        "place here.</p>")


def _growth(result: Result, figures: Figures) -> str:
    html = ""
    for over in dict.fromkeys(growth.over for growth in result.growth):
        several = [growth for growth in result.growth if growth.over == over]
        canvas = plot(height=340, toolbar_location=None, tools="", x_axis_type="log", y_axis_type="log")
        canvas.xaxis.axis_label, canvas.yaxis.axis_label = over, "seconds"
        for growth, tint in zip(several, MORE_COLOURS * 3, strict=False):
            canvas.line(growth.sizes, growth.seconds, line_color=tint, line_width=2, legend_label=growth.stage)
            canvas.scatter(growth.sizes, growth.seconds, color=tint, size=7)
        canvas.legend.location, canvas.legend.background_fill_alpha = "top_left", 0
        canvas.legend.label_text_color, canvas.legend.border_line_color = GREY, None
        html += figures.add(canvas) + "<ul>" + "".join(f"<li>{escape(sentence(one))}</li>" for one in several) + "</ul>"
    return html


def _charts(result: Result, figures: Figures) -> str:
    html = ""
    for chart in result.charts:
        canvas = plot(height=340, toolbar_location=None, tools="", x_axis_type="log", y_axis_type="log")
        canvas.xaxis.axis_label, canvas.yaxis.axis_label = chart.x, chart.y
        for curve, tint in zip(chart.curves, MORE_COLOURS * 3, strict=False):
            canvas.line(curve.xs, curve.ys, line_color=tint, line_width=2, legend_label=curve.name)
            canvas.scatter(curve.xs, curve.ys, color=tint, size=7)
        canvas.legend.location, canvas.legend.background_fill_alpha = "center_left", 0
        canvas.legend.label_text_color, canvas.legend.border_line_color = GREY, None
        html += f"<h3>{escape(chart.title)}</h3>{figures.add(canvas)}<p class=\"note\">{escape(chart.note)}</p>"
    return html


def sentence(growth: Growth) -> str:
    """``score grows with patches ^ 1.01``"""
    memory = "" if growth.memory_exponent is None else f", its memory with ^ {growth.memory_exponent:.2f}"
    return f"{growth.stage} grows with {growth.over} ^ {growth.exponent:.2f}{memory}"


def _estimates(estimates: tuple[Estimate, ...]) -> str:
    if not estimates:
        return ""
    rows = "".join(f'<tr><th scope="row">{escape(row.stage)}</th><td>~{row.milliseconds:.3g} (estimate)</td>'
                   f"<td>{row.bound}</td><td>{row.gpu_ms:.3g}</td><td>{row.host_ms:.3g}</td><td>{row.launches:,}</td>"
                   f"<td>{row.work.bytes / 1e9:.3g}</td><td>{row.work.flops / 1e9:.4g}</td>"
                   f"<td>{row.work.exps / 1e9:.3g}</td></tr>" for row in estimates)
    headings = "".join(f"<th>{text}</th>" for text in ("stage", "ms, at least", "bound", "GPU ms", "host ms",
                                                       "launches", "GB", "GFLOP", "10⁹ exp"))
    return (f"<p>Estimates for {escape(estimates[0].device)}: counts over the rates of its data sheet, and the host's "
            f'time for its launches. Nobody has measured them.</p><div class="scroll"><table><thead><tr>{headings}'
            f"</tr></thead><tbody>{rows}</tbody></table></div>")


def _facts(result: Result) -> str:
    roofs = {f"roof, {name}": f"{value:.4g} per second" for name, value in vars(result.roofs).items()
             if isinstance(value, float) and value}
    facts = {**result.machine, **roofs, **result.settings}
    return '<dl class="facts">' + "".join(
        f"<dt>{escape(str(key).replace('_', ' '))}</dt><dd>{escape(str(value))}</dd>" for key, value in facts.items()
        if value is not None and not (isinstance(value, float) and math.isnan(value))) + "</dl>"
