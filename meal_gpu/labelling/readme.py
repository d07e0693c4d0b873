"""``README.txt`` of a query's folder: what to do with it in each tool."""

import shlex
from pathlib import Path

from .cvat import SKIP as TAG
from .labelstudio import SKIP
from .query import Query


def readme(query: Query, folder: Path, run_directory: Path) -> str:
    run = shlex.quote(str(run_directory))
    classes = "\n".join(f"  {row.name}: {', '.join(map(str, row.values)) or '-'}; colour {list(row.colour)}"
                        for row in [*query.classes, query.void])
    title = f"{query.query}: {len(query.items)} patches to label, the most wanted first"
    return f"""{title}
{"=" * len(title)}

Look through them: query.html. Each image in images/ shows a patch and half a patch around it; the patch is what is to
be labelled (framed/ and query.html show where it is), what is painted beside it is not taken. Images have the pixels of
your originals. predictions/ holds what the network says so far: a start to correct, or to leave aside.

Classes, and the ids that they have in masks:
{classes}
'{query.void.name}' is what belongs to no class. What you leave unlabelled is ignored in training: part of a patch is
better than nothing.

Label Studio
  1. A new project; Settings, Labeling Interface, Code: paste labelstudio/label_config.xml
  2. Import labelstudio/tasks.json (images are inside)
  3. "Label All Tasks". Where a patch cannot be labelled choose "{SKIP}", or press Skip
  4. Export as JSON (no other export keeps every pixel):   meal-gpu labels add {run} EXPORT.json

CVAT
  1. A new task; Raw labels: paste cvat/labels.json; images: cvat/images.zip
  2. Upload annotations, "CVAT 1.1": cvat/annotations.xml
  3. Where a patch cannot be labelled set the tag "{TAG}". Paint over masks with "Remove underlying pixels"
  4. Export as "CVAT for images 1.1" (or "Segmentation mask 1.1"):   meal-gpu labels add {run} EXPORT.zip

FiftyOne: Dataset.from_dir(dataset_type=COCODetectionDataset, data_path="images", labels_path="coco/instances.json")

Any other tool
  Write a mask for each image, with the ids or the colours above, under the same name into masks/ (8-bit PNG, of the
  size of the image): meal-gpu run --resume takes them from there. From another folder:
  meal-gpu labels add {run} FOLDER

A patch that cannot be labelled:   meal-gpu labels skip {run} {query.items[0].id if query.items else 'ITEM'}
Then go on:                        meal-gpu run --resume {run}
"""
