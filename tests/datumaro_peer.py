"""Run by a Python that has datumaro: `read FORMAT FOLDER OUT.npz`, or `write FORMAT IN.npz FOLDER`.

An archive holds label maps uint8 under the names of images, 254 where nothing is, and ``names`` of the classes.
"""

import sys

import numpy as np
from datumaro.components.annotation import AnnotationType, LabelCategories, Mask, MaskCategories
from datumaro.components.dataset import Dataset
from datumaro.components.dataset_base import DatasetItem
from datumaro.components.media import Image

NOTHING = 254


def read(kind: str, folder: str, out: str) -> None:
    dataset = Dataset.import_from(folder, kind)
    names = [label.name for label in dataset.categories()[AnnotationType.label].items]
    held = {}
    for item in dataset:
        found = None
        for annotation in sorted((one for one in item.annotations if one.type == AnnotationType.mask),
                                 key=lambda one: one.z_order):
            if names[annotation.label].startswith("_"):  # the frame
                continue
            mask = np.asarray(annotation.image).astype(bool)
            found = np.full(mask.shape, NOTHING, np.uint8) if found is None else found
            found[mask] = annotation.label
        if found is not None:
            held[item.id] = found
    np.savez(out, names=np.array(names), **held)


def write(kind: str, source: str, folder: str) -> None:
    with np.load(source) as held:
        names = held["names"].tolist()
        labels = {name: held[name] for name in held.files if name != "names"}
    items = []
    for name, whole in labels.items():
        masks = [Mask(whole == index, label=int(index), id=i + 1, group=i + 1, z_order=0)
                 for i, index in enumerate(np.unique(whole)) if index != NOTHING]
        pixels = np.zeros((*whole.shape, 3), np.uint8)
        items.append(DatasetItem(id=name, annotations=masks, media=Image.from_numpy(data=pixels, ext=".png")))
    colours = {i: (40 * i + 30, 250 - 50 * i, 90) for i in range(len(names))}  # it invents none for VOC
    dataset = Dataset.from_iterable(items, categories={
        AnnotationType.label: LabelCategories.from_iterable(names), AnnotationType.mask: MaskCategories(colours)})
    dataset.export(folder, kind, save_media=True, **({"label_map": "source"} if "voc" in kind else {}))


if __name__ == "__main__":
    {"read": read, "write": write}[sys.argv[1]](*sys.argv[2:])
