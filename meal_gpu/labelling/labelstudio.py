"""Label Studio: the labelling interface and the tasks that a query becomes, and its JSON export.

Only the JSON export holds what people painted: its COCO and YOLO exports drop brush regions or turn them into outlines.
The server checks nothing of what it keeps, so everything is checked here.
"""

import base64
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from . import brush
from .answers import Answer, Answers, Asked, Book, class_masks, index_of, once, painted, utc
from .polygons import fill
from .query import Item, Query
from .regions import Overlap, Region

TOOL = "Label Studio JSON"
CLASSES, FRAME, VERDICT, IMAGE = "classes", "frame", "verdict", "image"
PATCH = "patch"
SKIP = "cannot be labelled"
_WRONG = ("export the project as JSON: Label Studio's other exports lose brush regions, or turn them into outlines")


# --- out --------------------------------------------------------------------------------------------------------------


def label_config(query: Query) -> str:
    """The labelling interface: one brush per class and void, a frame that shows the patch, and a verdict."""
    labels = "\n".join(f'    <Label value="{escape(row.name)}" background="#{_hex(row.colour)}"/>'
                       for row in [*query.classes, query.void])
    return f"""<View>
  <Image name="{IMAGE}" value="$image" zoom="true" zoomControl="true" smoothing="false" rotateControl="false"/>
  <BrushLabels name="{CLASSES}" toName="{IMAGE}" opacity="0.5">
{labels}
  </BrushLabels>
  <RectangleLabels name="{FRAME}" toName="{IMAGE}" fillOpacity="0" strokeWidth="2">
    <Label value="{PATCH}" background="#e6b800"/>
  </RectangleLabels>
  <Choices name="{VERDICT}" toName="{IMAGE}" choice="single">
    <Choice value="{SKIP}"/>
  </Choices>
</View>
"""


def tasks(query: Query, folder: Path, predictions: Mapping[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """One per item, in the order of their ranks, with its image inside and its prediction to begin with.

    ``folder`` holds ``images/<id>.png``; predictions are uint8, of the patch in the original's pixels, per item.
    """
    for item in query.items:
        content = (folder / "images" / f"{item.id}.png").read_bytes()
        yield {
            "data": {"image": f"data:image/png;base64,{base64.b64encode(content).decode()}", "meal_run": query.run,
                     "meal_query": query.query, "meal_item": item.id, "rank": item.rank, "source": item.image},
            "predictions": [{"model_version": f"meal-gpu {query.query}", "result": result(query, item, predictions)}],
        }


def result(query: Query, item: Item, predictions: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """The regions that a task begins with: the frame, and the prediction's classes."""
    height, width = item.window_shape
    rows, columns = (part.indices(length) for part, length in zip(item.inside, (height, width), strict=True))
    about = {"to_name": IMAGE, "original_width": width, "original_height": height, "image_rotation": 0}
    frame = {"x": 100 * columns[0] / width, "y": 100 * rows[0] / height,
             "width": 100 * (columns[1] - columns[0]) / width, "height": 100 * (rows[1] - rows[0]) / height,
             "rotation": 0, "rectanglelabels": [PATCH]}
    found: list[dict[str, Any]] = [{**about, "id": f"{item.id}-frame", "from_name": FRAME, "type": "rectanglelabels",
                                    "readonly": True, "locked": True, "value": frame}]
    for index, mask in class_masks(item, predictions):
        name = query.classes[index].name if index < len(query.classes) else query.void.name
        found.append({**about, "id": f"{item.id}-{index}", "from_name": CLASSES, "type": "brushlabels",
                      "value": {"format": "rle", "rle": brush.encode(mask), "brushlabels": [name]}})
    return found


def _hex(colour: tuple[int, int, int]) -> str:
    return "".join(f"{part:02x}" for part in colour)


# --- back -------------------------------------------------------------------------------------------------------------


def is_export(held: object) -> bool:
    """Whether JSON is an export of Label Studio, or what it calls JSON-MIN; see `read`."""
    return isinstance(held, list) and (not held or (isinstance(held[0], dict)
                                                    and bool({"annotations", "data", "annotation_id", "image"}
                                                             & held[0].keys())))


def read(held: list[Any], book: Book, where: str, overlap: Overlap) -> Answers:
    """Raises `InputError`, naming task and item, for whatever is not as it went out."""
    answers, drafts, empty, thin = Answers(TOOL), 0, 0, list[str]()
    for task in held:
        if not isinstance(task, dict) or not isinstance(task.get("data"), dict) or "annotations" not in task:
            raise InputError(f"{where} is no JSON export with annotations (JSON-MIN, perhaps): {_WRONG}.")
        at = f"{where}: task {task.get('id', '?')!r:.50}"
        data = task["data"]
        if "meal_item" not in data:
            raise InputError(f"{at} has no meal_item in its data: it was not imported from a query of meal-gpu. Delete "
                             "the task, or import tasks.json of the query.")
        asked = book.of_id(data["meal_item"], at)
        given = data.get("meal_run", asked[0].run)
        if given != asked[0].run:
            raise InputError(f"{at} is of the run {given!r}, and this one is {asked[0].run!r}: give the labels to the "
                             "run that asked for them.")
        made = task["annotations"]
        if not isinstance(made, list) or not all(isinstance(one, dict) for one in made):
            raise InputError(f"{at}: its annotations are no list of objects. Export the project again.")
        drafts += not made and bool(task.get("drafts"))
        empty += not made and not task.get("drafts")
        answers.found += _newest([_answer(one, asked, f"{at}, item {asked[1].id}", overlap, thin) for one in made])
    once(answers.found, where)
    if thin:
        answers.notes.append(f"{len(thin)} brush strokes cover no pixel by more than half, and count as nothing "
                             f"({thin[0]}): zoom in, or take a larger brush.")
    if drafts:
        answers.notes.append(f"{drafts} tasks have a draft and nothing submitted: drafts are not labels. Submit them.")
    if empty:
        answers.notes.append(f"{empty} tasks have no annotation yet.")
    return answers


def _newest(answers: list[Answer]) -> list[Answer]:
    """Of the annotations of one task the newest of each annotator."""
    found: dict[str, Answer] = {}
    for answer in answers:
        before = found.get(answer.annotator)
        if before is None or answer.updated >= before.updated:
            found[answer.annotator] = answer
    return list(found.values())


def _answer(made: dict[str, Any], asked: Asked, at: str, overlap: Overlap, thin: list[str]) -> Answer:
    """``thin`` gets where regions are that somebody painted and that have no pixel."""
    by = made.get("completed_by")
    who = by.get("email") or by.get("id") if isinstance(by, dict) else by
    lead = made.get("lead_time")
    about: dict[str, Any] = {
        "annotator": "" if who is None else str(who)[:200],
        "lead_time": float(lead) if isinstance(lead, int | float) and 0 <= lead < 1e9 else None,
        "annotation": str(made.get("unique_id") or made.get("id") or "")[:200],
        "updated": utc(made.get("updated_at") or made.get("created_at")),
    }
    regions, skipped = [], bool(made.get("was_cancelled"))  # then it holds the prediction, which nobody approved
    given = made.get("result")
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise InputError(f"{at}: its result is no list of regions. Export the project again.")
    for number, one in enumerate(given if not skipped else (), start=1):
        if one.get("type") == "choices":
            skipped |= SKIP in _labels(one, "choices")
        elif one.get("from_name") != FRAME:
            regions.append(_region(one, asked, f"{at}, region {number}"))
            if regions[-1].touched and not regions[-1].mask.any():
                thin.append(f"{at}, region {number}")
    if skipped:
        return Answer(*asked, None, **about)
    return painted(asked, regions, overlap, **about)


def _region(one: dict[str, Any], asked: Asked, at: str) -> Region:
    query, item = asked
    kind, value = one.get("type"), one.get("value")
    if kind not in ("brushlabels", "polygonlabels", "rectanglelabels") or not isinstance(value, dict):
        raise InputError(f"{at} is a region of type {kind!r}. Allowed: brushes, polygons and rectangles with a class.")
    names = _labels(one, kind)
    if len(names) != 1:
        raise InputError(f"{at} has {len(names)} classes, and a region has one. Give it one in the tool.")
    index = index_of(names[0], query, at)
    height, width = item.window_shape
    size = one.get("original_height"), one.get("original_width")
    if size != (height, width):
        raise InputError(f"{at} is of an image of {size[1]} x {size[0]} pixels (width x height), and the item's is "
                         f"{width} x {height}: another image was put there, or it was turned or resized. Label the "
                         "image of the query.")
    if one.get("image_rotation", 0) or value.get("rotation", 0):
        raise InputError(f"{at} is turned (rotation). Turn it back in the tool, and export again.")
    try:
        if kind == "brushlabels":
            if value.get("format") != "rle":
                raise InputError(f"its format is {value.get('format')!r}, not rle")
            mask = brush.decode(value.get("rle", ()), (height, width))
        else:
            corners = value.get("points") if kind == "polygonlabels" else _corners(value)
            mask = fill(_numbers(corners) * (width / 100, height / 100), (height, width))
    except InputError as error:
        raise InputError(f"{at} ('{names[0]}') cannot be read: {error}. Export the project again as JSON.") from None
    return Region(index, mask, one.get("origin") != "prediction")


def _corners(value: dict[str, Any]) -> list[list[Any]]:
    x, y, width, height = _numbers([value.get(key) for key in ("x", "y", "width", "height")])
    return [[x, y], [x + width, y], [x + width, y + height], [x, y + height]]


def _numbers(given: Any) -> np.ndarray:
    try:
        return np.array(given, np.float64)
    except (TypeError, ValueError):
        raise InputError("its corners are no numbers") from None


def _labels(one: dict[str, Any], kind: str) -> list[Any]:
    value = one.get("value")
    found = value.get(kind) if isinstance(value, dict) else None
    return found if isinstance(found, list) else []
