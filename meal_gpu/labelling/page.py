"""``query.html``: a page to look through a query; and windows as pictures in which the patch is framed."""

from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from ..journal import UNLABELLED
from ..report.pictures import photo, swatch
from ..report.style import POLICY, STYLE
from .query import Item, Query

_WIDEST = 480
"""Pixels of a picture on the page."""


def framed(window: np.ndarray, inside: tuple[slice, slice]) -> np.ndarray:
    """A window uint8 ``[h, w, 3]`` in which what lies beside the patch is dimmed, and the patch has a frame.

    The frame lies beside the patch, of which no pixel is changed.
    """
    found = (window * 0.55 + 40).astype(np.uint8)
    thick = max(1, round(max(window.shape[:2]) / 220))
    rows, columns = inside
    for width, colour in ((2 * thick, 0), (thick, 255)):
        found[max(0, rows.start - width) : rows.stop + width, max(0, columns.start - width) : columns.stop + width] = (
            colour)
    found[inside] = window[inside]
    return found


def page(query: Query, folder: Path, starts: Mapping[str, np.ndarray]) -> str:
    """It holds everything it shows. ``folder`` holds the windows, ``starts`` as in `outgoing.lay_out`."""
    title = f"{query.query}: {len(query.items)} patches to label"
    keys = "".join(f"<li>{swatch(row.colour)}{escape(row.name)}</li>" for row in [*query.classes, query.void])
    cards = "".join(_card(item, query, folder, starts.get(item.id)) for item in query.items)
    replaced = (f" They take the place of {len(query.replaces)} that could not be labelled." if query.replaces else "")
    start = (" Beside each stands what the network says of the patch, which the tools begin with." if starts else
             " There is no network yet: nothing is predicted.")
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)} – meal-gpu</title><style>{STYLE}</style></head>
<body><header><p class="kicker">meal-gpu query</p><h1>{escape(title)}</h1>
<p class="lead">The most wanted first.{replaced} The frame is the patch; what lies around it is there to
understand it.{start}</p><ul class="classes">{keys}</ul></header>
<main><section><div class="cards">{cards}</div></section></main>
<footer>This page holds everything it shows and loads nothing. README.txt beside it says what to do.</footer></body>
</html>
"""


def _card(item: Item, query: Query, folder: Path, start: np.ndarray | None) -> str:
    with Image.open(folder / "images" / f"{item.id}.png") as image:
        window = np.array(image)
    pictures = [framed(window, item.inside)]
    if start is not None:
        colours = np.full((256, 3), 136, np.uint8)
        colours[: len(query.classes)] = [row.colour for row in query.classes]
        painted = window.copy()
        patch = painted[item.inside]
        mixed = patch // 2 + colours[start] // 2
        painted[item.inside] = np.where((start == UNLABELLED)[..., None], patch, mixed)
        pictures.append(framed(painted, item.inside))
    shown = "".join(f'<img alt="" src="{photo(picture, _WIDEST)}">' for picture in pictures)
    score = "" if item.score is None else f", score {item.score:.4f}"
    return (f'<figure class="card" id="{item.id}"><div class="quad" style="grid-template-columns: repeat('
            f'{len(pictures)}, 1fr)">{shown}</div><figcaption><b>{item.rank}. {escape(item.image)}</b> row {item.row}, '
            f"column {item.col}{score}<br>{item.id}</figcaption></figure>")
