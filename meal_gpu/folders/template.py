"""A config as a person would have written it: few keys, and beside each what it means here."""

from typing import Any

import yaml

from .proposal import Proposal

_ORDER = ("dataset", "root", "images", "masks", "unlabelled", "val_fraction", "val_images", "val_masks", "class_names",
          "mask_values", "mask_colours", "ignore_index", "palette", "absent_classes", "exif", "bands",
          "max_megapixels", "tile", "image_size", "resize", "grid", "context", "store")
_QUERY = ("oracle", "strategy", "n_initial_images", "rounds", "n_query", "n_informative")
_MEANING = {
    "root": "what the folders below are in",
    "images": "a folder, or a pattern of files such as images/**/*.jpg",
    "masks": "8-bit PNG files of the images' names",
    "class_names": "ids 0, 1, ... in masks, in this order",
    "mask_values": "the value, or the values, of each class in masks",
    "mask_colours": "the colour, or the colours, of each class in masks",
    "ignore_index": "the value of pixels that do not count",
    "palette": "what masks with a palette hold: index or colour",
    "absent_classes": "not every class is in these masks",
    "exif": "ignore: images are not turned, as their masks were not",
    "bands": "which bands are red, green and blue, counted from 1",
    "max_megapixels": "of a file; larger ones are refused",
    "store": "decoded images",
    "strategy": "what chooses: see docs/strategies.md",
}
_COLUMN = 40


def text(made: Proposal, command: str, config: str) -> str:
    """YAML with comments."""
    lines = [f"# Written by: {_one_line(command)}", "# Every key: docs/configuration.md. What is left out has its "
             "default.", f"# Next: meal-gpu info {_one_line(config)}", ""]
    seeds = [0] if made.query["oracle"] == "people" else [0, 1, 2]
    lines += [_line("seeds", seeds, "people label one run" if len(seeds) == 1 else "repetitions", 0), "", "data:"]
    why = {**_MEANING, **made.why}
    lines += [_line(key, made.data[key], why.get(key, ""), 2) for key in _ORDER if key in made.data]
    query = {"strategy": "meal", **made.query}
    lines += ["", "query:"] + [_line(key, query[key], why.get(key, ""), 2) for key in _QUERY if key in query]
    return "\n".join(lines) + "\n"


def _one_line(words: str) -> str:
    """A comment ends where its line does."""
    return " ".join(words.splitlines())


def _line(key: str, value: Any, comment: str, indent: int) -> str:
    written = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    line = f"{' ' * indent}{key}: {written.removesuffix('...' + chr(10)).strip()}"
    return f"{line:<{_COLUMN}} # {comment}" if comment else line
