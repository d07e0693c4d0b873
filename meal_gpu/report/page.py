"""The report as one HTML page that stands alone: nothing in it is loaded from anywhere."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from bokeh.resources import Resources

from . import comparison, pictures, table1
from .figures import Figures, colours, curves
from .people import people_section
from .planes import planes
from .runs import Run, Seed
from .steadiness import steadiness
from .style import POLICY, SCRIPT, STYLE
from .summary import Summary, counted, duration, labels, notes, summarise
from .tables import class_table, class_table_of_runs, facts, query_table, stage_colours, time_bars, time_table
from .verdict import verdict
from .words import choosing, data_set, heading, setting


def page(runs: Sequence[Run]) -> str:
    """The whole page about ``runs``: an overview of all, then a section for each. Raises `InputError` for a damaged
    gallery or embedding, naming the file."""
    names, tints = labels(runs), colours(runs)
    figures = Figures()
    overview, links = _overview(runs, names, tints, figures)
    allowance = pictures.Allowance()
    galleries, stages = _galleries(runs, allowance), stage_colours(runs)
    settings = {setting(run) for run in runs if not run.supervised} or {setting(run) for run in runs}
    lead = [*settings] if len(settings) == 1 else [
        "These runs differ in more than the strategy: the section of each says in what."]
    if len(runs) == 1:
        lead.append(choosing(runs[0]))
    body = [overview]
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        parts = _parts(run, index, tints[index], figures, galleries[index], stages)
        if len(runs) == 1:
            links += [(anchor, anchor.capitalize()) for anchor, _, _ in parts]
            body += [_section(anchor, title, content) for anchor, title, content in parts]
        else:
            links.append((f"run-{index}", name))
            inner = "".join(f"<h3>{title}</h3>{content}" for _, title, content in parts)
            about = choosing(run) if lead == [setting(run)] else f"{setting(run)} {choosing(run)}"
            body.append(_section(f"run-{index}", pictures.swatch(tints[index]) + escape(name),
                                 f"<p>{escape(about)}</p>{inner}"))
    menu = "".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title in links)
    version = escape(str(runs[0].environment.get("meal_gpu", "")))
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(heading(runs))} – meal-gpu</title><style>{STYLE}</style></head>
<body><header><p class="kicker">meal-gpu report</p><h1>{escape(heading(runs))}</h1>
{"".join(f'<p class="lead">{escape(text)}</p>' for text in lead)}</header>
<nav><div>{menu}</div></nav>
<main>{"".join(body)}</main>
<footer>Made by meal-gpu {version}. This page holds everything it shows and loads nothing.</footer>
{Resources(mode="inline", components=["bokeh"]).render_js()}
<script>{SCRIPT}</script></body></html>
"""


def _section(anchor: str, title: str, content: str) -> str:
    return f'<section id="{anchor}"><h2>{title}</h2>{content}</section>'


def _overview(runs: Sequence[Run], names: Sequence[str], tints: Sequence[str],
              figures: Figures) -> tuple[str, list[tuple[str, str]]]:
    """The sections about all runs together, and their entries for the menu."""
    rows = summarise(runs)
    numbers = _tiles(rows[0]) if len(rows) == 1 else _summary_table(rows, tints)
    won = verdict(runs)
    remarks = "".join(f"<li>{escape(note)}</li>" for note in ([won] if won else []) + notes(runs))
    html = _section("numbers", "Result", f'{numbers}<ul class="notes">{remarks}</ul>')
    links = [("numbers", "Result"), ("curve", "Curve")]
    beside = table1.html(runs, figures)
    if beside:
        html += _section("table-1", "The paper’s Table 1", beside)
        links.insert(1, ("table-1", "Table 1"))
    groups = [(one, [i for i, run in enumerate(runs) if data_set(run) == one])
              for one in dict.fromkeys(map(data_set, runs))]  # mIoU on different data sets may not share an axis
    charts = "".join(_headed(one, groups, curves([runs[i] for i in chosen], [names[i] for i in chosen],
                                                 [tints[i] for i in chosen], figures)) for one, chosen in groups)
    html += _section("curve", "mIoU over labelled patches", charts + _about_curves(runs, charts))
    compared = comparison.html(runs)
    if compared:
        html += _section("compared", "Strategies compared", compared)
        links.append(("compared", "Compared"))
    if len(runs) > 1:
        links += [("classes", "Classes"), ("time", "Time")]
        tables = "".join(
            _headed(one, groups, class_table_of_runs([runs[i] for i in chosen], [names[i] for i in chosen]))
            for one, chosen in groups)
        html += _section("classes", "IoU of each class", tables)
        html += _section("time", "Where the time went", time_table(runs, names, stage_colours(runs)))
    return html, links


def _headed(data_set_name: str, groups: Sequence[object], content: str) -> str:
    return f"<h3>{escape(data_set_name)}</h3>{content}" if len(groups) > 1 else content


def _about_curves(runs: Sequence[Run], charts: str) -> str:
    if "figure-" not in charts:
        return ""
    many = any(len(run.seeds) > 1 for run in runs)
    seeds = "Thick: mean over seeds, with a band of ± one standard deviation; thin: single seeds. " if many else ""
    return (f'<p class="note">{seeds}Solid: the best epoch by validation mIoU, which is optimistic because it is '
            "chosen on the images it is reported on; dotted: the last epoch, which nobody chose. The chips switch the "
            "lines.</p>")


def _parts(run: Run, index: int, tint: str, figures: Figures, gallery: str,
           stages: dict[str, str]) -> list[tuple[str, str, str]]:
    """Anchor, title and content of everything about one run."""
    first, *others = run.seeds
    plane = planes(run, index, first, figures)
    if "figure-" in plane:
        many = bool(others)
        plane = (f'<p class="note">Seed {first.seed}.</p>' if many else "") + plane + "".join(
            f'<details class="seed"><summary>Seed {seed.seed}</summary>{planes(run, index, seed, figures)}</details>'
            for seed in others)
    parts = [
        ("classes", "IoU of each class", class_table(run)),
        ("time", "Where the time went", time_bars(run, stages) + time_table([run], ["total"], stages)),
        ("embedding", "The queries in the embedding", plane),
        ("patches", "The queried patches", gallery),
        ("facts", "Facts of the run", facts(run)),
    ]
    steady = steadiness(run, tint, figures)
    if steady:
        parts.insert(1, ("changes", "Do predictions still change?", steady))
    people = people_section(run)
    if people:
        parts.insert(1, ("people", "The people’s side", people))
    waiting = query_table(run)
    return [("waiting", "Waiting for labels", waiting), *parts] if waiting else parts


def _galleries(runs: Sequence[Run], allowance: pictures.Allowance) -> list[str]:
    """The gallery of each run. The first seeds of all runs are pictured before any second seed."""
    made: dict[tuple[int, int], str] = {}
    left_out: list[list[int]] = [[] for _ in runs]
    for position in range(max(len(run.seeds) for run in runs)):
        level = [(index, run.seeds[position]) for index, run in enumerate(runs) if position < len(run.seeds)]
        most = allowance.share(sum(len(seed.rounds) - 1 for _, seed in level))
        for index, seed in level:
            made[index, position] = pictures.gallery(runs[index], seed, index, allowance, most)
            if not most and len(seed.rounds) > 1:
                left_out[index].append(seed.seed)
    return [_gallery(run, [made[index, position] for position in range(len(run.seeds))], left_out[index])
            for index, run in enumerate(runs)]


def _gallery(run: Run, rounds: list[str], left_out: list[int]) -> str:
    shown = [(seed, html) for seed, html in zip(run.seeds, rounds, strict=True) if html]
    if not shown:
        return (f'<p class="none">No pictures: {_why_no_pictures(run, run.seeds[0])}</p>')
    html = pictures.keys(run)
    for position, (seed, content) in enumerate(shown):
        if len(shown) + len(left_out) == 1:
            html += content
        else:
            html += (f'<details class="seed"{" open" if position == 0 else ""}><summary><b>Seed {seed.seed}</b>'
                     f"</summary>{content}</details>")
    if left_out:
        html += (f'<p class="note">To keep the page small, pictures of seed {", ".join(map(str, left_out))} are left '
                 "out; a report of this run alone has room for more.</p>")
    return html


def _why_no_pictures(run: Run, seed: Seed) -> str:
    if run.supervised:
        return "everything was labelled from the start, nothing was asked for."
    if len(seed.rounds) < 2:
        return "no queried patch has been labelled yet."
    return escape(f"{Path(seed.folder.name) / 'gallery'} is not there.")


def _tiles(row: Summary) -> str:
    tiles = []
    if row.best:
        over = f"± {row.best.std:.3f} over {row.best.n} seeds" if row.best.std is not None else "one seed"
        tiles.append(("mIoU, best epoch", f"{row.best.mean:.3f}", over))
    if row.last:
        over = f"± {row.last.std:.3f}" if row.last.std is not None else "one seed"
        tiles.append(("mIoU, last epoch", f"{row.last.mean:.3f}", over))
    if row.paper is not None:
        tiles.append(("the paper's mIoU", f"{row.paper:.3f}",
                      "this run has not come so far" if row.difference is None else f"here {row.difference:+.3f}"))
    tiles.append(("patches labelled", f"{row.n_labelled:,}", f"{row.fraction:.1%} of the pool"))
    tiles.append(("rounds", str(row.rounds), "the initial one included" if row.rounds >= row.rounds_asked
                  else f"of {row.rounds_asked}: unfinished"))
    tiles.append(("time", duration(row.seconds), f"{counted(row.seeds, row.seeds_asked)} seed{'s' * (row.seeds > 1)}"))
    return '<dl class="tiles">' + "".join(
        f"<div><dt>{label}</dt><dd>{value}<small>{more}</small></dd></div>" for label, value, more in tiles) + "</dl>"


def _summary_table(rows: Sequence[Summary], tints: Sequence[str]) -> str:
    paper = any(row.paper is not None for row in rows)
    head = ["run", "backbone", "seeds", "rounds", "patches", "share", "mIoU<small>best epoch</small>",
            "mIoU<small>last epoch</small>", *(["paper", "difference"] if paper else []), "time"]
    body = ""
    for row, tint in zip(rows, tints, strict=True):
        cells = [row.backbone, counted(row.seeds, row.seeds_asked), counted(row.rounds, row.rounds_asked),
                 f"{row.n_labelled:,}", f"{row.fraction:.1%}", f"<b>{row.best or '–'}</b>", str(row.last or "–")]
        if paper:
            cells += ["–" if value is None else form.format(value)
                      for value, form in ((row.paper, "{:.3f}"), (row.difference, "{:+.3f}"))]
        cells.append(duration(row.seconds))
        body += (f'<tr><th scope="row">{pictures.swatch(tint)}{escape(row.label)}</th>'
                 + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    columns = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    return (f'<div class="scroll"><table class="wide"><thead><tr>{columns}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>")
