"""A labelled data set as COCO JSON: one annotation per image and class, as run lengths."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..data.classes import VOID
from ..labelling.coco_runs import encode, region


def coco(files: Mapping[str, str], mask_of: Callable[[str], np.ndarray], names: Sequence[str]) -> bytes:
    """``files``: name -> path of the image; ``mask_of``: name -> class indices uint8 ``[H, W]`` and `VOID`.

    COCO has no word for pixels that nobody has labelled: each image has the labelled ones as ``labelled``, run lengths
    too, which readers of COCO pass over.
    """
    images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
    for number, (name, file) in enumerate(files.items(), start=1):
        mask = mask_of(name)
        images.append({"id": number, "file_name": file, "height": mask.shape[0], "width": mask.shape[1],
                       "labelled": encode(mask != VOID)})
        for index in np.unique(mask[mask != VOID]).tolist():
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": index + 1,
                                **region(mask == index), "iscrowd": 0})
    categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories}).encode()
