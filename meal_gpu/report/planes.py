"""The embedding of the pool with every round's queries in it; hovering shows the patch."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, CustomJSHover, HoverTool
from bokeh.palettes import Plasma256

from .figures import GREY, Figures, button, plot
from .pictures import picture_id
from .runs import Patch, Run, Seed
from .summary import score_text

MAX_BACKGROUND = 8000
"""Grey dots of one plane: enough to show its shape, few enough to stay quick."""
CHOSEN = "#d6336c"

# The gallery already holds the photo of most queried patches: the tooltip borrows it instead of doubling the page.
PICTURE = """
    const image = document.getElementById(value);
    return image ? image.getAttribute("src") : "data:,";
"""
TOOLTIP = """<div style="font:12px/1.45 system-ui,sans-serif;max-width:200px">
<img src="@picture{custom}" alt="" style="display:block;max-width:160px;margin-bottom:4px">
<b>@image</b><br>row @row, column @col<br>@note</div>"""

Arrays = Mapping[str, np.ndarray]


def planes(run: Run, index: int, seed: Seed, figures: Figures) -> str:
    """The embedding of a seed, drawn: one plane, or a small one per round if each was embedded anew, or why not.

    ``index`` is the run's position on the page. An embedding that does not fit the run is left out.
    """
    most = run.dataset.n_patches * (run.rounds_asked + 1) * (8 * run.config.umap.n_components + 16) + 2**20
    arrays = seed.arrays("embedding.npz", most, lambda found: _misfit(found, run, seed))
    if run.supervised:
        return _none("Everything was labelled from the start: nothing was asked for, so there is no plane to show.")
    if arrays is None:
        if run.config.query.strategy.startswith("meal"):
            return _none(f"No plane to show: seed-{seed.seed}/embedding.npz is not there, or damaged.")
        return _none(f"No plane to show: {run.title} chooses without an embedding.")
    if "point_ids" in arrays:  # a sample; the others have no place but as candidates
        ids, sample = arrays["point_ids"], arrays["points"]
        points = np.full((run.dataset.n_patches, sample.shape[1]), np.nan, np.float32)
        points[ids] = sample
        arrays = {**arrays, "points": points}
    if "points" in arrays:
        more = run.dataset.n_patches - len(arrays["points"])
        if more > 0:  # the pool has grown since
            arrays = {**arrays, "points": np.pad(arrays["points"], ((0, more), (0, 0)), constant_values=np.nan)}
        return _pool_plane(run, index, seed, arrays, figures)
    rounds = [number for number in range(len(seed.rounds)) if f"round_{number}_points" in arrays]
    if not rounds:
        return _none("No plane to show: no query has been chosen yet.")
    each = "".join(_round_plane(run, index, seed, arrays, number, figures) for number in rounds)
    return (f'<p class="note">{escape(run.title)} fits an embedding of its own to each round\'s candidates, so the '
            f'rounds share no plane. Grey are the candidates, <b style="color:{CHOSEN}">coloured</b> those chosen: '
            f'hover over one.</p><div class="small-planes">{each}</div>')


def _none(why: str) -> str:
    return f'<p class="none">{escape(why)}</p>'


def _misfit(arrays: Arrays, run: Run, seed: Seed) -> str:
    """What is wrong with an embedding of this run; empty where nothing is."""

    def ids(name: str) -> np.ndarray | None:
        found = arrays.get(name, np.empty(0, np.int64))
        right = found.dtype.kind in "iu" and found.ndim == 1
        right = right and bool(((found >= 0) & (found < run.dataset.n_patches)).all())
        return found if right else None

    for name, array in arrays.items():
        round_ = re.fullmatch(r"round_(\d+)_(points|candidates|chosen)", name)
        if name == "points" or (round_ and round_[2] == "points"):
            beside = ids(f"round_{round_[1]}_candidates" if round_ else "point_ids")
            rows = None if beside is None else run.dataset.n_patches if name == "points" and "point_ids" not in arrays \
                else len(beside)
            if name == "points" and "resumed_on" in run.environment and "point_ids" not in arrays and array.ndim == 2:
                rows = min(len(array), run.dataset.n_patches)  # a pool may have grown since
            if array.dtype.kind != "f" or array.ndim != 2 or array.shape[0] != rows or array.shape[1] < 2:
                return f"{name} is {array.dtype} {list(array.shape)}, where [{rows}, 2 or more] belongs"
            if not np.isfinite(array).all():
                return f"{name} is not finite"
        elif name != "point_ids" and not round_:
            return f"{name} does not belong there"
        elif ids(name) is None:
            return f"{name} names patches that the pool does not have"
        if round_ and round_[2] == "chosen" and int(round_[1]) < len(seed.rounds):
            asked = [patch.id for patch in seed.rounds[int(round_[1])].next_query]
            if asked != array.tolist():
                return f"{name} is not what the round asked for"
    return ""


def _source(points: np.ndarray, patches: Sequence[Patch], element: int, seed: Seed, note: str) -> ColumnDataSource:
    """Points float32 ``[n, 2]`` with the facts of their patches beside them."""
    notes = [note if p.score is None else f"{note}, score {score_text(p.score)}" for p in patches]
    return ColumnDataSource({
        "x": points[:, 0], "y": points[:, 1], "image": [p.image for p in patches], "row": [p.row for p in patches],
        "col": [p.col for p in patches], "note": notes, "picture": [picture_id(element, seed, p.id) for p in patches],
    })


def _hover(dots: Sequence[Any]) -> HoverTool:
    return HoverTool(renderers=list(dots), tooltips=TOOLTIP, formatters={"@picture": CustomJSHover(code=PICTURE)})


def _bare(height: int, tools: str) -> Any:
    """A plane without axes: UMAP's coordinates have no unit, and only nearness means something."""
    canvas = plot(height=height, tools=tools, toolbar_location="above" if tools else None, match_aspect=True)
    canvas.axis.visible = False
    canvas.grid.visible = False
    canvas.outline_line_color = GREY
    canvas.outline_line_alpha = 0.3
    return canvas


def _pool_plane(run: Run, index: int, seed: Seed, arrays: Arrays, figures: Figures) -> str:
    points = arrays["points"][:, :2].astype(np.float32)
    canvas = _bare(560, "pan,box_zoom,wheel_zoom,reset")
    shown = placed = points[np.isfinite(points).all(1)]
    if len(placed) > MAX_BACKGROUND:
        shown = placed[np.linspace(0, len(placed) - 1, MAX_BACKGROUND).astype(int)]
    chips = [button("not asked for", figures.name(canvas.scatter(
        shown[:, 0], shown[:, 1], size=3, color=GREY, alpha=0.4)), GREY)]
    groups = [(record.round, record.queried, False) for record in seed.rounds if record.queried]
    if seed.rounds[-1].next_query:
        groups.append((len(seed.rounds), seed.rounds[-1].next_query, True))
    last = max(run.rounds_asked - 1, 1)
    asked = []
    for number, patches, waiting in groups:
        tint = "#3a3f47" if number == 0 else Plasma256[round(30 + 190 * number / last)]
        note = "labelled at the start" if number == 0 else f"round {number}" + ", not labelled yet" * waiting
        source = _source(_positions(points, arrays, number, patches), patches, index, seed, note)
        dots = canvas.scatter("x", "y", source=source, size=8, line_width=1.5 if waiting else 0.8,
                              marker="diamond" if number == 0 else "circle", fill_color=None if waiting else tint,
                              line_color=tint if waiting else "white")
        asked.append(dots)
        text = "start" if number == 0 else f"round {number}" + " (asked for)" * waiting
        chips.append(button(text, figures.name(dots), tint))
    canvas.add_tools(_hover(asked))
    notes = ["Near patches look alike to the backbone; axes have no unit. Hover over a patch to see it."]
    if len(points) > len(shown):
        notes.append(f"{len(shown):,} of {len(points):,} patches are drawn in grey.")
    if arrays["points"].shape[1] > 2:
        notes.append(f"The first two of {arrays['points'].shape[1]} dimensions are drawn.")
    return f'<div class="chips">{"".join(chips)}</div>{figures.add(canvas)}<p class="note">{" ".join(notes)}</p>'


def _positions(points: np.ndarray, arrays: Arrays, number: int, patches: Sequence[Patch]) -> np.ndarray:
    """Positions of a round's patches when they were chosen, float32 ``[n, 2]``.

    Training the backbone moves them from round to round; `points` are the positions before the first round.
    """
    at = {patch_id: points[patch_id] for patch_id in (p.id for p in patches)}
    candidates, places = arrays.get(f"round_{number - 1}_candidates"), arrays.get(f"round_{number - 1}_points")
    if candidates is not None and places is not None:
        at |= dict(zip(candidates.tolist(), places[:, :2].astype(np.float32), strict=True))
    return np.array([at[p.id] for p in patches], np.float32).reshape(-1, 2)


def _round_plane(run: Run, index: int, seed: Seed, arrays: Arrays, number: int, figures: Figures) -> str:
    places = arrays[f"round_{number}_points"]
    candidates = arrays.get(f"round_{number}_candidates", np.empty(0, np.int64))
    at = dict(zip(candidates.tolist(), places[:, :2].astype(np.float32), strict=True))
    record = seed.rounds[number]
    chosen = [patch for patch in record.next_query if patch.id in at]
    others = np.array([at[i] for i in at.keys() - {p.id for p in chosen}], np.float32).reshape(-1, 2)
    canvas = _bare(210, "")
    canvas.scatter(others[:, 0], others[:, 1], size=4, color=GREY, alpha=0.55)
    source = _source(np.array([at[p.id] for p in chosen], np.float32).reshape(-1, 2), chosen, index, seed,
                     f"round {number + 1}")
    dots = canvas.scatter("x", "y", source=source, size=8, fill_color=CHOSEN, line_color="white", line_width=0.8)
    canvas.add_tools(_hover([dots]))
    return (f'<div><div class="caption">round {number + 1}: {len(chosen)} of {len(at)}</div>'
            f"{figures.add(canvas)}</div>")
