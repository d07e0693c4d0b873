"""The page's section on strategies compared: what `compare` computes, as tables."""

from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from .compare import Curves, Difference, against, ceiling, comparable, mix, overlaps, penalties, reached
from .runs import Run

SHARES = (0.9, 0.95)


def html(runs: Sequence[Run]) -> str:
    """Empty where there are no two finished runs that differ in their strategies alone."""
    curves, seeds = comparable(runs)
    if not curves:
        return ""
    names = [one.name for one in curves]
    many = len(seeds) > 1
    parts = [_scores(curves, runs), _differences(curves, len(seeds))]
    if many and len(curves) > 2:
        parts.append(_matrix("Beaten by", names, penalties(curves), "Row by column: the part of the budgets at which "
                             "the row's strategy is beaten, by a paired t-test at 5 %, not adjusted. Where nothing "
                             "differs, a cell is 0.025 on average. The last row is how often each beats others.", True))
    parts.append(_matrix("Overlap of the first query", names, overlaps(curves, seeds, False), "Jaccard index; all "
                         "strategies made it with equal networks."))
    parts.append(_matrix("Overlap of all queries", names, overlaps(curves, seeds, True), "Jaccard index of all that "
                         "was bought after the start."))
    return "".join([*parts, _mixes(curves, seeds)])


def _table(head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>' for name, cells in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(text: str) -> str:
    return f"<td>{text}</td>"


def _scores(curves: Sequence[Curves], runs: Sequence[Run]) -> str:
    budgets, whole = curves[0].budgets, ceiling(runs, curves[0].run)
    head = ["", "AUBC", "last mIoU"]
    if whole is not None:
        head += [f"labels to {share:.0%}<small>of supervised</small>" for share in SHARES]
    rows = []
    for one in sorted(curves, key=lambda one: -float(one.scores.mean())):
        cells = [f"{one.scores.mean():.3f}", f"{one.values[:, -1].mean():.3f}"]
        if whole is not None:
            found = [reached(budgets, one.values.mean(0), share * whole) for share in SHARES]
            cells += ["not reached" if labels is None else f"{labels:,.0f}" for labels in found]
        rows.append((one.name, [_cell(cell) for cell in cells]))
    n = len(curves[0].values)
    supervised = f" Supervised: {whole:.3f}." if whole is not None else ""
    return _table(head, rows) + (
        f'<p class="note">AUBC: mean mIoU over budgets from {budgets[0]:,} to {budgets[-1]:,} patches, by trapezoids; '
        f"last epochs, mean over {n} seed{'s' * (n > 1)}.{supervised} The order of the rows is no ranking: see what "
        "can be told apart.</p>")


def _differences(curves: Sequence[Curves], n: int) -> str:
    found = against(curves)
    if not found:
        return '<p class="none">No random or random_spread among these runs, so there is nothing to compare with.</p>'
    rows = [(f"{one.name} − {base.name}", [_cell(cell) for cell in _told(difference)])
            for one, base, difference in found]
    head = ["AUBC", "difference", "95 % interval", "p<small>Holm</small>", "visible<small>80 % power</small>", ""]
    what = "this one comparison" if len(found) == 1 else f"these {len(found)} comparisons"
    text = (f"Paired by seed (same start, same training seeds), {n} seed{'s' * (n > 1)}; Student's t, and Holm's "
            f"adjustment over {what}. Visible: the smallest true difference that so many seeds "
            "would find four times in five. Nothing is called better whose interval holds 0.")
    if n == 1:
        text += " With one seed there is no interval, and nothing to conclude."
    return f"<h3>Against random</h3>{_table(head, rows)}<p class=\"note\">{text}</p>"


def _told(difference: Difference) -> list[str]:
    if difference.low is None or difference.high is None or difference.adjusted is None:
        return [f"{difference.mean:+.4f}", "–", "–", "–", "not told apart"]
    verdict = "not told apart" if not difference.told_apart else "better" if difference.mean > 0 else "worse"
    return [f"{difference.mean:+.4f}", f"{difference.low:+.4f} … {difference.high:+.4f}", f"{difference.adjusted:.3f}",
            f"{difference.visible:.4f}", verdict]


def _matrix(title: str, names: Sequence[str], values: np.ndarray, about: str, foot: bool = False) -> str:
    show: Callable[[float], str] = lambda value: f'<td class="heat" style="--v:{100 * value:.0f}">{value:.2f}</td>'  # noqa: E731
    rows = [(name, [show(value) if i != j else _cell("") for j, value in enumerate(values[i])])
            for i, name in enumerate(names)]
    if foot:
        rows.append(("beats others", [show(value) for value in values.sum(0) / (len(names) - 1)]))
    return f"<h3>{title}</h3>{_table(['', *map(escape, names)], rows)}<p class=\"note\">{about}</p>"


def _mixes(curves: Sequence[Curves], seeds: Sequence[int]) -> str:
    found = [(one.name, shares) for one in curves if (shares := mix(one, seeds)) is not None]
    if not found:
        return ""
    classes = curves[0].run.dataset.class_names
    rows = [(name, [f'<td class="heat" style="--v:{min(100, 200 * shares[c]):.0f}">{100 * shares[c]:.1f}</td>'
                    for c in classes]) for name, shares in found]
    return (f"<h3>What was bought</h3>{_table(['', *map(escape, classes)], rows)}"
            '<p class="note">Per cent of the labelled pixels, after the start.</p>')
