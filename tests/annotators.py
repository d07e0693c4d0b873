"""Annotators who know the truth: they answer a query in the way of each tool, as that tool would write it."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from meal_gpu.labelling import brush, coco_runs, cvat_runs

Truth = Callable[[str], np.ndarray]
"""Name of an image → class indices uint8 ``[h, w]`` in the original's pixels; 255 is void, 254 not labelled."""


def items_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "query.json").read_text())["items"]


def windows(folder: Path, truth: Truth) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Items, and what the annotator would paint in their windows."""
    found = []
    for item in items_of(folder):
        y0, x0, y1, x1 = item["original"]["window"]
        found.append((item, truth(item["image"])[y0:y1, x0:x1]))
    return found


def names_of(folder: Path) -> dict[int, str]:
    query = json.loads((folder / "query.json").read_text())
    return {255: query["void"]["name"], **{i: row["name"] for i, row in enumerate(query["classes"])}}


def colours_of(folder: Path) -> np.ndarray:
    """uint8 ``[256, 3]``"""
    query = json.loads((folder / "query.json").read_text())
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(query["classes"])] = [row["colour"] for row in query["classes"]]
    colours[255] = query["void"]["colour"]
    return colours


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def label_studio(folder: Path, truth: Truth, out: Path, **about: Any) -> Path:
    """The tasks as they went out, with annotations: the frame as it was, and a brush region per class."""
    names, tasks = names_of(folder), json.loads((folder / "labelstudio" / "tasks.json").read_text())
    for number, (task, (_, painted)) in enumerate(zip(tasks, windows(folder, truth), strict=True), start=1):
        frame = task["predictions"][0]["result"][0]
        size = {key: frame[key] for key in ("original_width", "original_height", "image_rotation", "to_name")}
        regions = [{**size, "id": f"new-{index}", "from_name": "classes", "type": "brushlabels", "origin": "manual",
                    "value": {"format": "rle", "rle": brush.encode(painted == index), "brushlabels": [names[index]]}}
                   for index in np.unique(painted).tolist() if index != 254]
        task |= {"id": number, "annotations": [{
            "id": 100 + number, "completed_by": {"id": 1, "email": "ann@example.org"}, "was_cancelled": False,
            "lead_time": 30.0, "created_at": "2026-03-01T10:00:00.000000Z", "updated_at": "2026-03-01T10:01:00.000000Z",
            "result": [frame, *regions], **about}], "drafts": []}
    file = out / "project-1.json"
    file.write_text(json.dumps(tasks))
    return file


def cvat_xml(folder: Path, truth: Truth, out: Path) -> Path:
    names, images = names_of(folder), []
    for number, (item, painted) in enumerate(windows(folder, truth)):
        shapes = []
        for index in np.unique(painted).tolist():
            if index != 254:
                runs, (y0, x0, y1, x1) = cvat_runs.encode(painted == index)
                rle = ", ".join(map(str, runs))
                shapes.append(f'<mask label="{names[index]}" source="manual" occluded="0" rle="{rle}" left="{x0}" '
                              f'top="{y0}" width="{x1 - x0}" height="{y1 - y0}" z_order="0"></mask>')
        shapes.append('<box label="_patch" source="manual" occluded="0" xtl="1" ytl="1" xbr="5" ybr="5" z_order="3"/>')
        images.append(f'<image id="{number}" name="{item["id"]}.png" width="{painted.shape[1]}" '
                      f'height="{painted.shape[0]}">{"".join(shapes)}</image>')
    file = out / "annotations.xml"
    file.write_text(f'<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>{"".join(images)}'
                    "</annotations>")
    return file


def cvat_zip(folder: Path, truth: Truth, out: Path) -> Path:
    with zipfile.ZipFile(out / "cvat.zip", "w") as archive:
        archive.write(cvat_xml(folder, truth, out), "annotations.xml")
    return out / "cvat.zip"


def segmentation_masks(folder: Path, truth: Truth, out: Path) -> Path:
    """CVAT's "Segmentation mask 1.1", whose label map is in an order and in colours of its own."""
    names, draw = names_of(folder), np.random.default_rng(0)
    order = draw.permutation(sorted(names)).tolist()
    colours = np.zeros((256, 3), np.uint8)
    colours[order] = np.array([[40 * (i % 6) + 20, 60 * (i // 6 % 4) + 10, 250 - 9 * i] for i in range(len(order))])
    listed = ["# label:color_rgb:parts:actions", "background:0,0,0::",
              *(f"{names[index]}:{','.join(map(str, colours[index]))}::" for index in order)]
    with zipfile.ZipFile(out / "masks.zip", "w") as archive:
        archive.writestr("labelmap.txt", "\n".join(listed) + "\n")
        archive.writestr("ImageSets/Segmentation/default.txt", "\n".join(item["id"] for item in items_of(folder)))
        for item, painted in windows(folder, truth):
            archive.writestr(f"SegmentationClass/{item['id']}.png", png(colours[painted]))
            archive.writestr(f"SegmentationObject/{item['id']}.png", png(colours[painted][..., ::-1].copy()))
    return out / "masks.zip"


def coco(folder: Path, truth: Truth, out: Path) -> Path:
    held = json.loads((folder / "coco" / "instances.json").read_text())
    number = {category["name"]: category["id"] for category in held["categories"]}
    names, annotations = names_of(folder), []
    for image, (_, painted) in zip(held["images"], windows(folder, truth), strict=True):
        for index in np.unique(painted).tolist():
            if index != 254:
                annotations.append({
                    "id": len(annotations) + 1, "image_id": image["id"], "category_id": number[names[index]],
                    "iscrowd": 1, "bbox": [0, 0, 1, 1], "area": 1, "segmentation": coco_runs.encode(painted == index)})
    (out / "instances_default.json").write_text(json.dumps({**held, "annotations": annotations}))
    return out / "instances_default.json"


def colour_folder(folder: Path, truth: Truth, out: Path) -> Path:
    """PNG masks in the colours of the query; black is not labelled."""
    return _folder(folder, truth, out / "colours", colours_of(folder))


def index_folder(folder: Path, truth: Truth, out: Path) -> Path:
    """PNG masks with the data set's ids."""
    query = json.loads((folder / "query.json").read_text())
    ids = np.zeros(256, np.uint8)
    for index, row in [*enumerate(query["classes"]), (255, query["void"])]:
        ids[index] = row["values"][0] if row["values"] else 0
    return _folder(folder, truth, out / "indices", ids)


def index_zip(folder: Path, truth: Truth, out: Path) -> Path:
    with zipfile.ZipFile(out / "indices.zip", "w") as archive:
        for file in sorted(index_folder(folder, truth, out).iterdir()):
            archive.write(file, f"masks/{file.name}")
    return out / "indices.zip"


def _folder(folder: Path, truth: Truth, out: Path, table: np.ndarray) -> Path:
    out.mkdir()
    for item, painted in windows(folder, truth):
        (out / f"{item['id']}.png").write_bytes(png(table[painted]))
    return out


TOOLS: dict[str, Callable[..., Path]] = {
    "Label Studio": label_studio, "CVAT XML": cvat_xml, "CVAT zip": cvat_zip, "Segmentation mask": segmentation_masks,
    "COCO": coco, "colours": colour_folder, "indices": index_folder, "zip of indices": index_zip}
