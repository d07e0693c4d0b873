"""What a person should see before the first label is paid for: the census, and a page of images under their masks."""

from html import escape
from pathlib import Path

import numpy as np

from ..config import Config
from ..data.census import census, check_classes, report, share
from ..data.classes import VOID
from ..data.datasets import open_dataset
from ..data.ingest import Stores, changed, ingest
from ..data.store import Store, compare
from ..errors import InputError
from ..files import write_atomic
from ..report.pictures import photo, swatch
from ..report.style import POLICY, STYLE
from ..timing import Progress, no_progress

_OVERLAYS = 20
_WIDEST = 480
"""Pixels of a picture on the page."""


def check(config: Config, out: Path, progress: Progress = no_progress) -> tuple[list[str], InputError | None]:
    """Ingest what is not in the store, count it, and write the page. Nothing is trained.

    Returns about ten lines, and what would stop a run, if anything would: the page shows that too.
    """
    dataset = open_dataset(config.data)
    news = changed(dataset, config.data)
    stores = ingest(config.data, progress, dataset)
    problem = None
    try:
        check_classes(config.data, stores)
    except InputError as error:
        problem = error
    lines = [*report(config.data, stores), *news]
    try:
        write_atomic(out, _page(config, stores, lines, problem).encode())
    except OSError as error:
        raise InputError(f"The page cannot be written to {out}: {error.strerror}. Give another --out.") from None
    return lines, problem


def _page(config: Config, stores: Stores, lines: list[str], problem: InputError | None) -> str:
    dataset = stores.dataset
    title = f"{dataset.name}: {len(stores.train.names)} images"
    stop = f'<p class="lead"><b>A run would stop here.</b> {escape(str(problem))}</p>' if problem else ""
    notes = "".join(f"<li>{escape(line)}</li>" for line in lines)
    cards = "".join(_card(stores.train, int(i), dataset.palette, dataset.train[i].mask is not None)
                    for i in _chosen(stores.train))
    keys = "".join(f"<li>{swatch(colour)}{escape(name)}</li>" for name, colour in zip(
        [*dataset.class_names, "void"], [*dataset.palette.tolist(), [136, 136, 136]], strict=True))
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)} – meal-gpu check</title><style>{STYLE}</style></head>
<body><header><p class="kicker">meal-gpu check</p><h1>{escape(title)}</h1>{stop}</header>
<main><section><h2>What is there</h2><ul class="notes">{notes}</ul></section>
<section><h2>Pixels of each class</h2>{_table(stores)}</section>
<section><h2>Images under their masks</h2><p class="note">As the store holds them, {config.data.image_size[1]} x
{config.data.image_size[0]} pixels. What does not fit here does not fit in training.</p>
<ul class="classes">{keys}</ul><div class="cards">{cards}</div></section></main>
<footer>This page holds everything it shows and loads nothing.</footer></body></html>
"""


def _table(stores: Stores) -> str:
    names = [*stores.dataset.class_names, "void"]
    columns, head = [], ["class"]
    for title, store in (("pool", stores.train), ("validation", stores.val)):
        if store is None or store.masks is None:
            continue
        found = census(store, len(names) - 1)
        pixels, images = [*found.pixels, found.void_pixels], [*found.images, found.void_images]
        columns += [[share(count, max(1, sum(pixels))) for count in pixels], [f"{count:,}" for count in images]]
        head += [title, f"{title}<small>images</small>"]
    if not columns:
        return '<p class="none">Nobody has labelled anything yet.</p>'
    rows = "".join(f'<tr><th scope="row">{escape(name)}</th>' + "".join(f"<td>{column[i]}</td>" for column in columns)
                   + "</tr>" for i, name in enumerate(names))
    titles = "".join(f'<th scope="col">{title}</th>' for title in head)
    return (f'<div class="scroll"><table class="classes"><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody>'
            "</table></div>")


def _chosen(store: Store) -> np.ndarray:
    """Numbers of images, evenly through the pool, so that equal data sets give equal pages."""
    return np.unique(np.linspace(0, len(store.names) - 1, min(_OVERLAYS, len(store.names))).round().astype(int))


def _card(store: Store, i: int, palette: np.ndarray, labelled: bool) -> str:
    compare(store.images, i, i + 1)
    pictures = [np.asarray(store.images[i])]
    if store.masks is not None and labelled:
        compare(store.masks, i, i + 1)
        colours = np.full((256, 3), 136, np.uint8)
        colours[: len(palette)] = palette
        mask = np.asarray(store.masks[i])
        shown = np.where((mask == VOID)[..., None], pictures[0] // 2 + 68, pictures[0] // 2 + colours[mask] // 2)
        pictures.append(shown.astype(np.uint8))
    images = "".join(f'<img alt="" src="{photo(picture, _WIDEST)}">' for picture in pictures)
    return (f'<figure class="card"><div class="quad" style="grid-template-columns: repeat({len(pictures)}, 1fr)">'
            f"{images}</div><figcaption><b>{escape(store.names[i])}</b></figcaption></figure>")
