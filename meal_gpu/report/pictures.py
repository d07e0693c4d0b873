"""The gallery of queried patches: small pictures inside the page, and the colour keys to read them with."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from bokeh.palettes import Magma256
from PIL import Image

from ..records import GALLERY
from .runs import Patch, Run, Seed
from .summary import score_text

MAX_PICTURED = 1024
"""Patches of one page that get pictures: about 8 KB each, so that a page stays below 12 MB."""
MAX_WIDTH = 160
"""Width in pixels of a picture; wider patches are reduced."""
VOID = (24, 24, 27)

# Magma is perceptually uniform: equal steps of entropy are equal steps for the eye, on every patch alike.
HEAT = np.array([[int(colour[i:i + 2], 16) for i in (1, 3, 5)] for colour in Magma256], np.uint8)


@dataclass
class Allowance:
    """How many more patches of the page may get pictures. The first seeds of all runs come first."""

    left: int = MAX_PICTURED

    def share(self, rounds: int) -> int:
        """Patches for each of ``rounds`` rounds, or 0 where too few are left to be of use."""
        each = self.left // max(rounds, 1)
        return each if each >= 4 else 0


def _size(height: int, width: int, widest: int = MAX_WIDTH) -> tuple[int, int]:
    scale = min(1.0, widest / width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _uri(image: Image.Image, lossless: bool) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=lossless, quality=70, method=3)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def photo(image: np.ndarray, widest: int = MAX_WIDTH) -> str:
    """Data URI of an image, uint8 ``[h, w, 3]``, reduced to ``widest`` pixels."""
    small = Image.fromarray(image).resize(_size(image.shape[0], image.shape[1], widest), Image.Resampling.LANCZOS)
    return _uri(small, lossless=False)


def heat_map(entropy: np.ndarray, limit: float) -> str:
    """Data URI of an entropy map, float ``[h, w]``, on the colour scale 0 … ``limit``."""
    # Pillow knows no float16. A pixel without a finite entropy is drawn as the least certain one.
    clean = np.nan_to_num(entropy.astype(np.float32), nan=limit, posinf=limit) / limit
    small = Image.fromarray(clean).resize(_size(*entropy.shape), Image.Resampling.BOX)
    steps = np.clip(np.asarray(small) * 255, 0, 255).astype(np.uint8)
    return _uri(Image.fromarray(HEAT[steps]), lossless=False)


def label_map(labels: np.ndarray, palette: Sequence[tuple[int, int, int]]) -> str:
    """Data URI of class ids, uint8 ``[h, w]``, in palette colours; ids without a colour are drawn as void."""
    colours = np.full((256, 3), VOID, np.uint8)
    colours[:len(palette)] = np.array(palette, np.uint8).reshape(-1, 3)[:256]
    small = Image.fromarray(labels).resize(_size(*labels.shape), Image.Resampling.NEAREST)
    return _uri(Image.fromarray(colours[np.asarray(small)]), lossless=True)


def picture_id(run: int, seed: Seed, patch: int) -> str:
    """The element id of a patch's photo; the embedding's tooltips fetch it from there."""
    return f"patch-{run}-{seed.seed}-{patch}"


def _card(arrays: dict[str, np.ndarray], index: int, patch: Patch | None, run: Run, element: str) -> str:
    truth, prediction = arrays["truth"][index], arrays["prediction"][index]
    entropy = arrays["entropy"][index].astype(np.float32)
    known = truth < run.n_classes
    facts = [f"mean entropy {float(entropy.mean()):.2f}"]
    if known.any():
        facts.append(f"{float((prediction == truth)[known].mean()):.0%} predicted right")
    where = f"patch {int(arrays['ids'][index])}"
    if patch:
        where = f"{patch.image}, row {patch.row}, column {patch.col}"
        if patch.score is not None:
            facts.insert(0, f"score {score_text(patch.score)}")
    width, height = _size(*truth.shape)
    pictures = [
        (photo(arrays["image"][index]), f' id="{element}"', "image"),
        (heat_map(entropy, math.log(max(run.n_classes, 2))), "", "entropy"),
        (label_map(prediction, run.dataset.palette), ' class="px"', "prediction"),
        (label_map(truth, run.dataset.palette), ' class="px"', "truth"),
    ]
    images = "".join(f'<img src="{uri}"{extra} alt="{alt}" title="{alt}" width="{width}" height="{height}" '
                     'loading="lazy" decoding="async">' for uri, extra, alt in pictures)
    return (f'<figure class="card"><div class="quad">{images}</div>'
            f'<figcaption><b>{escape(where)}</b><br>{" · ".join(facts)}</figcaption></figure>')


def _round(run: Run, seed: Seed, number: int, element: int, most: int) -> tuple[str, int] | None:
    """One round, collapsed unless it is the last, and how many patches it shows; None where it has no pictures."""
    queried = [patch.id for patch in seed.rounds[number].queried]
    arrays = seed.arrays(GALLERY.format(number), len(queried) * run.config.data.tiling().patch_pixels * 16
                         + 2**20, lambda found: _misfit(found, queried))
    if arrays is None:
        return None
    total = len(arrays["ids"])
    shown = min(total, most)
    patches = {patch.id: patch for patch in seed.rounds[number].queried}
    cards = "".join(
        _card(arrays, index, patches.get(int(arrays["ids"][index])), run,
              picture_id(element, seed, int(arrays["ids"][index])))
        for index in range(shown))
    count = f"{total} patches" if shown == total else f"{shown} of {total} patches shown"
    before = seed.rounds[number - 1].miou
    asker = f"asked for by the model of round {number - 1}" + (f" (mIoU {before:.3f})" if before is not None else "")
    # The last round stands open: a reader should see pictures without looking for them.
    opened = " open" if number == len(seed.rounds) - 1 else ""
    return (f'<details class="round"{opened}><summary><b>Round {number}</b> {count}, {asker}</summary>'
            f'<div class="cards">{cards}</div></details>'), shown


def _misfit(arrays: dict[str, np.ndarray], queried: Sequence[int]) -> str:
    """What is wrong with the pictures of these patches; empty where nothing is."""
    missing = _PICTURES.keys() - arrays.keys()
    if missing:
        return f"it lacks {', '.join(sorted(missing))}"
    if arrays["ids"].tolist() != list(queried):
        return "its patches are not those of the round"
    shape = arrays["prediction"].shape
    for name, kinds in _PICTURES.items():
        wanted = shape[:1] if name == "ids" else (*shape, 3) if name == "image" else shape
        if arrays[name].dtype.kind not in kinds or arrays[name].shape != wanted or len(shape) != 3 or 0 in shape:
            return f"{name} is {arrays[name].dtype} {list(arrays[name].shape)}"
        if kinds == "u" and arrays[name].dtype != np.uint8:
            return f"{name} is {arrays[name].dtype}"
    return ""


_PICTURES = {"ids": "iu", "image": "u", "prediction": "u", "entropy": "f", "truth": "u"}
"""The arrays of a gallery, and the kinds of their numbers."""


def gallery(run: Run, seed: Seed, element: int, allowance: Allowance, most: int) -> str:
    """Every round of a seed, ``most`` patches of each; what is used is taken from the allowance."""
    rounds = []
    for number in range(1, len(seed.rounds)):
        found = _round(run, seed, number, element, most) if most else None
        if found:
            rounds.append(found[0])
            allowance.left -= found[1]
    return "".join(rounds)


def keys(run: Run) -> str:
    """What the colours of entropy maps and label maps mean."""
    limit = math.log(max(run.n_classes, 2))
    stops = ", ".join(Magma256[step] for step in range(0, 256, 15))
    classes = "".join(f"<li>{swatch(colour)}{escape(name)}</li>" for name, colour in
                      zip([*run.dataset.class_names, "void"], [*colours_of(run), VOID], strict=True))
    return ('<p class="note">Each strip: the image, its entropy, the prediction of the model that asked, the truth.</p>'
            f'<div class="keys"><div class="scale"><span>entropy</span> <span>0</span>'
            f'<i style="background:linear-gradient(90deg, {stops})"></i>'
            f"<span>log {run.n_classes} = {limit:.2f} nats</span></div><ul class=\"classes\">{classes}</ul></div>")


def colours_of(run: Run) -> list[tuple[int, int, int]]:
    """One colour per class, grey where the palette is too short."""
    grey = (136, 136, 136)
    return [*run.dataset.palette, *[grey] * run.n_classes][:run.n_classes]


def swatch(colour: Sequence[int] | str) -> str:
    value = colour if isinstance(colour, str) else f"rgb({','.join(map(str, colour))})"
    return f'<i class="swatch" style="background:{value}"></i>'
