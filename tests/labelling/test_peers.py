"""Against datumaro, the library from which CVAT's importers come: no wrong pixel, either way.

It is large, and pins its own libraries: the extra [peers], or a virtual environment of its own in build/peers.
"""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from annotators import index_folder, names_of, windows

from meal_gpu.labelling.predictions import read
from meal_gpu.labelling.query import Item

ROOT = Path(__file__).parents[2]
OWN = ROOT / "build" / "peers" / "bin" / "python"


@pytest.fixture(scope="module")
def datumaro():
    """Call `datumaro_peer.py`."""
    here = importlib.util.find_spec("datumaro") is not None
    if not here and not OWN.exists():
        pytest.skip("no datumaro: pip install '.[peers]', or python -m venv build/peers and there pip install datumaro")

    def call(*words: object) -> None:
        done = subprocess.run([str(sys.executable if here else OWN), str(ROOT / "tests" / "datumaro_peer.py"),
                               *map(str, words)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]

    return call


def painted(waiting) -> dict[str, np.ndarray]:
    return {item["id"]: labels for item, labels in windows(waiting.folder, waiting.truth)}


@pytest.mark.parametrize("kind", ["cvat", "coco_instances", "voc_segmentation"])
def test_what_it_writes_is_taken(waiting, tmp_path, datumaro, kind):
    names, source, out = names_of(waiting.folder), painted(waiting), tmp_path / "out"
    order = [255, 1, 0, 2]  # its own
    places = {index: place for place, index in enumerate(order)}
    labels = {id_: np.vectorize(places.get)(whole).astype(np.uint8) for id_, whole in source.items()}
    np.savez(tmp_path / "in.npz", names=np.array([names[index] for index in order]), **labels)
    datumaro("write", kind, tmp_path / "in.npz", out)
    given = next(out.rglob("*.xml")) if kind == "cvat" else next(out.rglob("*.json")) if "coco" in kind else out
    code, said = waiting.add(given)
    assert code == 0, said
    assert "3 labelled" in said
    found = waiting.labels()
    assert waiting.add(index_folder(waiting.folder, waiting.truth, tmp_path))[0] == 0
    assert (waiting.labels() == found).all()


@pytest.mark.parametrize("kind", ["cvat", "coco_instances"])
def test_it_reads_what_goes_out(waiting, tmp_path, datumaro, kind):
    """The predictions."""
    folder = tmp_path / "folder"
    if kind == "cvat":
        (folder / "images").mkdir(parents=True)
        shutil.copy(waiting.folder / "cvat" / "annotations.xml", folder)
        for file in (waiting.folder / "images").iterdir():
            shutil.copy(file, folder / "images")
    else:
        (folder / "annotations").mkdir(parents=True)
        shutil.copy(waiting.folder / "coco" / "instances.json", folder / "annotations" / "instances_default.json")
        shutil.copytree(waiting.folder / "images", folder / "images" / "default")
    datumaro("read", kind, folder, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as found:
        said = found["names"].tolist()
        for item in waiting.items:
            start = read(waiting.folder, Item.model_validate(item))
            y0, x0, y1, x1 = item["original"]["box"]
            top, left, _, _ = item["original"]["window"]
            patch = found[item["id"]][y0 - top : y1 - top, x0 - left : x1 - left]
            names = np.array(said)[np.where(patch < len(said), patch, 0)]
            np.testing.assert_array_equal(names, np.array(["road", "tree", "car"])[start])
