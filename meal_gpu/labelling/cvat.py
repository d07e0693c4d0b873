"""CVAT for images 1.1: what a query becomes as XML, and what comes back, as XML or in a zip.

Entities and document types are refused (defusedxml), since the files of strangers are read. In CVAT what has a higher
z_order lies above. It does not say who painted a mask: one that is the prediction to the pixel is the prediction.
"""

from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from ..data.classes import VOID
from ..errors import InputError
from . import cvat_runs
from .answers import Answer, Answers, Asked, Book, class_masks, in_window, index_of, once, painted, untouched, utc
from .polygons import fill
from .query import Query
from .regions import Overlap, Region

TOOL = "CVAT for images 1.1"
PATCH, SKIP = "_patch", "_cannot be labelled"
"""A box that shows the patch; a tag for what cannot be labelled. No class can be called so: see `names`."""


def labels(query: Query) -> list[dict[str, Any]]:
    """The labels of a task, as CVAT's constructor takes them (Raw)."""
    rows = [(row.name, row.colour, "mask") for row in [*query.classes, query.void]]
    return [{"name": name, "color": "#{:02x}{:02x}{:02x}".format(*colour), "type": kind, "attributes": []}
            for name, colour, kind in [*rows, (PATCH, (255, 255, 255), "rectangle"), (SKIP, (64, 64, 64), "tag")]]


def write(query: Query, predictions: Mapping[str, np.ndarray]) -> bytes:
    """The annotations to begin with: frames and predictions."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    ElementTree.SubElement(task, "name").text = query.query
    listed = ElementTree.SubElement(task, "labels")
    for entry in labels(query):
        label = ElementTree.SubElement(listed, "label")
        for key in ("name", "color", "type"):
            ElementTree.SubElement(label, key).text = entry[key]
        ElementTree.SubElement(label, "attributes")
    for number, item in enumerate(query.items):
        height, width = item.window_shape
        image = ElementTree.SubElement(root, "image", id=str(number), name=f"{item.id}.png", width=str(width),
                                       height=str(height))
        rows, columns = (part.indices(side) for part, side in zip(item.inside, (height, width), strict=True))
        ElementTree.SubElement(image, "box", label=PATCH, source="manual", occluded="0", xtl=f"{columns[0]:.2f}",
                               ytl=f"{rows[0]:.2f}", xbr=f"{columns[1]:.2f}", ybr=f"{rows[1]:.2f}", z_order="-1")
        for index, mask in class_masks(item, predictions):
            runs, (y0, x0, y1, x1) = cvat_runs.encode(mask)
            name = query.void.name if index == VOID else query.classes[index].name
            ElementTree.SubElement(image, "mask", label=name, source="auto", occluded="0",
                                   rle=", ".join(map(str, runs)), left=str(x0), top=str(y0), width=str(x1 - x0),
                                   height=str(y1 - y0), z_order="0")
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def parse(content: bytes, where: str) -> ElementTree.Element:
    """Raises `InputError` for what is no XML, or has a document type or entities."""
    try:
        return fromstring(content, forbid_dtd=True)
    except DefusedXmlException:
        raise InputError(f"{where} has a document type or entities, and an export of CVAT has none: it is not read."
                         ) from None
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        raise InputError(f"{where} is no XML that can be read ({error}). Export it again.") from None


def read(root: ElementTree.Element, book: Book, predictions: Mapping[str, np.ndarray], where: str,
         overlap: Overlap) -> Answers:
    """Raises `InputError`, naming image and item, for whatever is not as it went out.

    An image without shapes was not labelled: CVAT lists every image of the task.
    """
    if root.tag != "annotations":
        raise InputError(f"{where} is XML with the root <{root.tag}>, and CVAT for images 1.1 has <annotations>. "
                         "Export as 'CVAT for images 1.1'.")
    if root.find("track") is not None:
        raise InputError(f"{where} has tracks: it is 'CVAT for video'. Export as 'CVAT for images 1.1'.")
    answers, empty = Answers(TOOL), 0
    who, when = _text(root, ".//assignee/username") or _text(root, ".//owner/username"), utc(_text(root, ".//updated"))
    for image in root.iter("image"):
        at = f"{where}: image {image.get('name', '?')!r}"
        asked = book.of_file(image.get("name", ""), at)
        answer = _answer(image, asked, predictions.get(asked[1].id), at, overlap, {"annotator": who, "updated": when})
        empty += answer is None
        answers.found += [answer] if answer is not None else []
    once(answers.found, where)
    if empty:
        answers.notes.append(f"{empty} images have no shapes: they count as not labelled yet.")
    return answers


def _answer(image: ElementTree.Element, asked: Asked, prediction: np.ndarray | None, at: str, overlap: Overlap,
            about: dict[str, str]) -> Answer | None:
    query, item = asked
    size = _int(image, "height", at), _int(image, "width", at)
    if size != item.window_shape:
        raise InputError(f"{at} is {size[1]} x {size[0]} pixels (width x height), and the item's image is "
                         f"{item.window_shape[1]} x {item.window_shape[0]}: it is another image, or was turned or "
                         "resized. Label the image of the query.")
    whole, regions = in_window(item, prediction), list[Region]()
    for number, shape in enumerate(image, start=1):
        name = shape.get("label")
        if name == SKIP:
            return Answer(query, item, None, **about)  # type: ignore[arg-type]
        if name == PATCH:
            continue
        here = f"{at}, shape {number} ({name!r})"
        index = index_of(name, query, here)
        try:
            mask = _mask(shape, size)
        except InputError as error:
            raise InputError(f"{here} cannot be read: {error}. Export it again.") from None
        except (TypeError, ValueError) as error:
            raise InputError(f"{here} cannot be read ({error}). Export it again.") from None
        regions.append(Region(index, mask, not untouched(mask, index, whole), _int(shape, "z_order", here, 0)))
    unseen = not any(region.touched for region in regions)
    return painted(asked, regions, overlap, unseen=unseen, **about) if regions else None


def _mask(shape: ElementTree.Element, size: tuple[int, int]) -> np.ndarray:
    given: dict[str, Any] = dict(shape.attrib)
    if shape.tag == "mask":
        left, top, width, height = (int(given.get(key, "")) for key in ("left", "top", "width", "height"))
        runs = [int(run) for run in given.get("rle", "").split(",")]
        return cvat_runs.decode(runs, (top, left, top + height, left + width), size)
    if shape.tag == "polygon":
        return fill(np.array([[float(part) for part in pair.split(",")] for pair in given.get("points", "").split(";")]
                             ), size)
    if shape.tag == "box":
        x0, y0, x1, y1 = (float(given.get(key, "")) for key in ("xtl", "ytl", "xbr", "ybr"))
        if float(given.get("rotation", 0)):
            raise InputError("it is turned (rotation)")
        return fill(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]), size)
    raise InputError(f"it is a {shape.tag}. Allowed: masks, polygons and boxes")


def _int(element: ElementTree.Element, key: str, at: str, default: int | None = None) -> int:
    given = element.get(key)
    try:
        return default if given is None and default is not None else int(given or "")
    except ValueError:
        raise InputError(f"{at}: its {key} is {given!r}, no whole number. Export it again.") from None


def _text(root: ElementTree.Element, path: str) -> str:
    found = root.find(path)
    return ((found.text or "") if found is not None else "").strip()[:200]
