"""COCO instances: a query as patches and predictions (FiftyOne reads that too), and what comes back as run lengths.

Polygons are taken as well, by the centres of pixels. Label Studio's "brush to COCO" is refused: its outlines moved 6 %
of the pixels of street scenes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..data.classes import VOID
from ..errors import InputError
from . import coco_runs
from .answers import Answer, Answers, Book, class_masks, in_window, index_of, once, painted, untouched
from .cvat import PATCH, SKIP
from .polygons import fill
from .query import Item, Query
from .regions import Overlap, Region

TOOL = "COCO"


def write(query: Query, predictions: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Images are the windows; of each the patch is an annotation with a box, and the prediction one per class."""
    names = [*query.names, PATCH, SKIP]
    categories = [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(names, start=1)]
    images, annotations = [], list[dict[str, Any]]()
    for number, item in enumerate(query.items, start=1):
        height, width = item.window_shape
        images.append({"id": number, "file_name": f"{item.id}.png", "height": height, "width": width,
                       "meal_item": item.id, "meal_query": query.query, "meal_run": query.run, "meal_rank": item.rank,
                       "meal_score": item.score})
        patch = np.zeros((height, width), bool)
        patch[item.inside] = True
        shapes = [(len(names) - 1, patch)]
        for index, mask in class_masks(item, predictions):
            place = len(query.classes) + 1 if index == VOID else index + 1
            shapes.append((place, mask))
        for category, mask in shapes:
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": category, "iscrowd": 0,
                                **coco_runs.region(mask)})
    return {"info": {"description": f"meal-gpu {query.query}"}, "licenses": [], "categories": categories,
            "images": images, "annotations": annotations}


def is_export(held: object) -> bool:
    return isinstance(held, dict) and {"images", "annotations", "categories"} <= held.keys()


def read(held: dict[str, Any], book: Book, predictions: Mapping[str, np.ndarray], where: str,
         overlap: Overlap) -> Answers:
    """Raises `InputError`, naming image and item, for whatever is not as it went out."""
    info = held.get("info")
    if isinstance(info, dict) and "label studio" in str(info.get("contributor")).lower():
        raise InputError(f"{where} is Label Studio's COCO export, which turns brush regions into outlines or drops "
                         "them: export the project as JSON.")
    images, names, shapes = _tables(held, where)
    answers, empty = Answers(TOOL), 0
    for number, image in images.items():
        at = f"{where}: image {image.get('file_name', number)!r:.200}"
        asked = book.of_file(str(image.get("meal_item") or image.get("file_name", "")), at)
        query, item = asked
        size = image.get("height"), image.get("width")
        if size != item.window_shape:
            raise InputError(f"{at} is {size[1]} x {size[0]} pixels (width x height), and the item's image is "
                             f"{item.window_shape[1]} x {item.window_shape[0]}: it is another image, or was turned or "
                             "resized. Label the image of the query.")
        whole, regions, skipped = in_window(item, predictions.get(item.id)), list[Region](), False
        for shape in shapes.get(number, []):
            here = f"{at}, annotation {shape.get('id', '?')!r:.50}"
            name = names.get(shape.get("category_id", 0))
            skipped |= name == SKIP
            if name not in (SKIP, PATCH):
                index = index_of(name, query, here)
                mask = _mask(shape.get("segmentation"), item, here)
                regions.append(Region(index, mask, not untouched(mask, index, whole)))
        if skipped:
            answers.found.append(Answer(query, item, None))
        elif regions:
            unseen = not any(region.touched for region in regions)
            answers.found.append(painted(asked, regions, overlap, unseen=unseen))
        empty += not skipped and not regions
    once(answers.found, where)
    if empty:
        answers.notes.append(f"{empty} images have no annotations: they count as not labelled yet.")
    return answers


def _tables(held: dict[str, Any], where: str) -> tuple[dict[Any, Any], dict[Any, Any], dict[Any, list[Any]]]:
    """Images and names of categories by their ids, annotations by their image."""
    try:
        images, names = dict[Any, Any](), {entry["id"]: entry["name"] for entry in held["categories"]}
        for image in held["images"]:
            if image["id"] in images:
                raise InputError(f"{where} has two images of the id {image['id']!r:.50}. Export it again.")
            images[image["id"]] = image
        shapes: dict[Any, list[Any]] = {}
        for shape in held["annotations"]:
            if shape["image_id"] not in images:
                raise InputError(f"{where}: the annotation {shape.get('id', '?')!r:.50} is of the image "
                                 f"{shape['image_id']!r:.50}, "
                                 "which the file does not list. Export it again.")
            shapes.setdefault(shape["image_id"], []).append(shape)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where} is no COCO file ({error!r}). Export it again.") from None
    return images, names, shapes


def _mask(segmentation: object, item: Item, at: str) -> np.ndarray:
    size = item.window_shape
    try:
        if isinstance(segmentation, dict):
            return coco_runs.decode(segmentation, size)
        if isinstance(segmentation, list) and segmentation:
            found = np.zeros(size, bool)
            for corners in segmentation:
                found |= fill(np.array(corners, np.float64).reshape(-1, 2), size)
            return found
        raise InputError("it has no segmentation: boxes are no labels")
    except InputError as error:
        raise InputError(f"{at} cannot be read: {error}. Export it again, with masks as run lengths (RLE).") from None
    except (TypeError, ValueError) as error:
        raise InputError(f"{at} cannot be read ({error}). Export it again, with masks as run lengths (RLE).") from None
