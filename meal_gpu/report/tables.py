"""The tables of the page: classes, time, and the facts of a run."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from .pictures import colours_of, swatch
from .runs import Round, Run
from .summary import duration, score_text, spread

STAGES = ("#4c7fb8", "#e2a04a", "#6aa56f", "#b8607a", "#8a76b8", "#5aa5b0", "#b58a5a", "#8e99a6", "#a0a84a", "#c47fb0")
ABSENT = ('<p class="note">– stands for a class that is in neither prediction nor truth of the validation images: it '
          "is left out of the mean, neither 0 nor 1.</p>")
NO_VALIDATION = '<p class="none">No IoU: there are no validation images.</p>'


def _class_iou(records: Iterable[Round], name: str) -> float | None:
    found = spread((record.iou or {}).get(name) for record in records)
    return found.mean if found else None


def _heat(value: float | None) -> str:
    if value is None:
        return "<td>–</td>"
    return f'<td class="heat" style="--v:{100 * value:.0f}">{value:.2f}</td>'


def _class_table(run: Run, columns: Sequence[tuple[str, Sequence[Round]]]) -> str:
    """Classes × columns of (head as HTML, the records whose mean the column shows)."""
    if not any(record.iou and any(v is not None for v in record.iou.values()) for _, rs in columns for record in rs):
        return NO_VALIDATION
    body, absent = "", False
    for name, colour in zip(run.dataset.class_names, colours_of(run), strict=True):
        values = [_class_iou(records, name) for _, records in columns]
        absent |= None in values
        body += f'<tr><th scope="row">{swatch(colour)}{escape(name)}</th>{"".join(map(_heat, values))}</tr>'
    means = [spread(record.miou for record in records) for _, records in columns]
    body += ('<tr class="total"><th scope="row">mean</th>'
             + "".join(f"<td>{mean.mean:.3f}</td>" if mean else "<td>–</td>" for mean in means) + "</tr>")
    head = "".join(f'<th scope="col">{title}</th>' for title, _ in columns)
    return (f'<div class="scroll"><table class="classes"><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody>'
            f"</table></div>{ABSENT if absent else ''}")


def class_table(run: Run) -> str:
    """Classes × rounds of one run: best epoch, mean over the seeds that have finished the round."""
    rounds = [run.at(number) for number in range(run.rounds_done)]
    columns = [(f"{records[0].round}<small>{records[0].n_labelled:,}</small>", records) for records in rounds]
    table = _class_table(run, columns)
    if table == NO_VALIDATION:
        return table
    mean = " and mean over seeds" if len(run.seeds) > 1 else ""
    return f'<p class="note">By round, and labelled patches below it. Best epoch{mean}.</p>{table}'


def class_table_of_runs(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Classes × runs on one data set, each at the furthest round it has finished."""
    columns = []
    for run, name in zip(runs, names, strict=True):
        records = run.at(run.rounds_done - 1)
        columns.append((f"{escape(name)}<small>{records[0].n_labelled:,} patches</small>", records))
    table = _class_table(runs[0], columns)
    if table == NO_VALIDATION:
        return table
    return f'<p class="note">After the last finished round. Best epoch, mean over seeds.</p>{table}'


def stage_colours(runs: Sequence[Run]) -> dict[str, str]:
    """A colour for each stage of any of the runs, in the order in which stages first appear."""
    found = dict.fromkeys(stage for run in runs for stage in run.seconds())
    return {stage: STAGES[number % len(STAGES)] for number, stage in enumerate(found)}


def time_bars(run: Run, stages: dict[str, str]) -> str:
    """One stacked bar per round, mean over seeds; `time_table` below it is the legend."""
    rounds = [{stage: sum(r.seconds.get(stage, 0.0) for r in records) / len(records) for stage in stages}
              for records in map(run.at, range(run.rounds_done))]
    longest = max((sum(values.values()) for values in rounds), default=0.0) or 1.0
    rows = ""
    for number, values in enumerate(rounds):
        parts = "".join(f'<i style="width:{100 * value / longest:.2f}%;background:{stages[stage]}" '
                        f'title="{escape(stage, quote=True)}: {duration(value)}"></i>'
                        for stage, value in values.items() if value > 0)
        rows += (f'<span>round {number}</span><div class="bar">{parts}</div>'
                 f"<span>{duration(sum(values.values()))}</span>")
    mean = '<p class="note">Mean over seeds.</p>' if len(run.seeds) > 1 else ""
    return f'{mean}<div class="bars">{rows}</div>'


def time_table(runs: Sequence[Run], names: Sequence[str], stages: dict[str, str]) -> str:
    """Stages × runs: total time over all rounds and seeds, and its share."""
    totals = [run.seconds() for run in runs]
    sums = [sum(values.values()) for values in totals]
    body = ""
    for stage, colour in stages.items():
        if not any(stage in values for values in totals):
            continue
        cells = "".join(
            f"<td>{duration(values[stage])}</td><td>{values[stage] / (whole or 1):.0%}</td>" if stage in values
            else "<td>–</td><td></td>" for values, whole in zip(totals, sums, strict=True))
        body += f'<tr><th scope="row">{swatch(colour)}{escape(stage)}</th>{cells}</tr>'
    body += ('<tr class="total"><th scope="row">all</th>'
             + "".join(f"<td>{duration(whole)}</td><td></td>" for whole in sums) + "</tr>")
    head = "".join(f'<th scope="col">{escape(name)}</th><th></th>' for name in names)
    seeds = " and seeds" if any(len(run.seeds) > 1 for run in runs) else ""
    return (f'<p class="note">Over all finished rounds{seeds}.</p>'
            f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>')


def query_table(run: Run) -> str:
    """The patches that people have been asked to label, per seed; empty where nobody is waited for."""
    if run.config.query.oracle != "people":
        return ""
    html = ""
    for seed in run.seeds:
        asked = seed.rounds[-1].next_query
        rows = "".join(
            f'<tr><td>{escape(patch.image)}</td><td>{patch.row}</td><td>{patch.col}</td>'
            f"<td>{', '.join(map(str, patch.box or ()))}</td>"
            f"<td>{score_text(patch.score)}</td></tr>" for patch in asked)
        if rows:
            html += (f"<p>Seed {seed.seed} goes on when these {len(asked)} patches have masks.</p>"
                     '<div class="scroll"><table><thead><tr><th>image</th><th>row</th><th>column</th>'
                     f"<th>y0, x0, y1, x1</th><th>score</th></tr></thead><tbody>{rows}</tbody></table></div>")
    return html


def facts(run: Run) -> str:
    """Where and how the run was made, how far it has come, and how to go on with it."""
    environment = {key: value for key, value in run.environment.items() if key != "dataset"}
    rows = [(key.replace("_", " "), _value(value)) for key, value in environment.items()]
    peaks: dict[str, int] = {}
    for seed in run.seeds:
        for record in seed.rounds:
            for place, size in record.peak_bytes.items():
                peaks[place] = max(peaks.get(place, 0), size)
    rows += [(f"peak memory, {place}", f"{size / 1e9:.2f} GB") for place, size in peaks.items()]
    rows += [("directory", str(run.path.resolve())),
             ("finished rounds", ", ".join(f"seed {seed.seed}: {len(seed.rounds)} of {run.rounds_asked}"
                                           for seed in run.seeds))]
    if run.finished:
        rows.append(("state", "complete"))
    else:
        rows.append(("state", f"unfinished; go on with: {run.resume_command}"))
    items = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in rows)
    return (f'<dl class="facts">{items}</dl><details><summary>Configuration</summary>'
            f"<pre>{escape(run.config.dump())}</pre></details>")


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_value(inner)}" for key, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
