"""A pool that changes between rounds: it grows under whatever names, and loses what nobody asked for."""

import json
from pathlib import Path

import numpy as np
import pytest
from habits import Folder
from PIL import Image
from tiny import tiny_config

from meal_gpu.config import Config
from meal_gpu.data.ingest import ingest
from meal_gpu.errors import InputError, LabelsMissingError
from meal_gpu.launch import resume, run
from meal_gpu.records import read_rounds
from meal_gpu.report import load_run

SIZE = (32, 40)
RNG = np.random.default_rng(3)


def add(folder: Folder, *names: str) -> Folder:
    for name in names:
        folder.add(name, RNG.integers(0, 256, (*SIZE, 3), np.uint8), RNG.integers(0, 3, SIZE, np.uint8))
    return folder


def drop(folder: Folder, *names: str) -> None:
    for name in names:
        for kind in ("images", "masks"):
            (folder.root / kind / f"{name}.png").unlink()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return add(Folder(tmp_path / "data"), *(f"m{i}" for i in range(5)))


def config(folder: Folder, people: bool = True, **query: object) -> Config:
    return tiny_config(folder.root.parent, data={
        "dataset": "folder", "root": str(folder.root), "image_size": list(SIZE), "grid": [2, 2], "val_images": None,
        "val_masks": None, "class_names": ["road", "tree", "car"], **({"masks": None} if people else {})}, query={
        "strategy": "entropy", "rounds": 2, "n_initial_images": 2, "n_query": 3, "n_informative": 8,
        "oracle": "people" if people else "simulated", **query})


def answer(out: Path, number: int) -> list[dict]:
    """People label a query."""
    place = out / "seed-0" / "to-label" / f"round-{number:02d}"
    query = json.loads((place / "query.json").read_text())["items"]
    for patch in query:
        Image.fromarray(RNG.integers(0, 3, (16, 20), np.uint8)).save(place / "masks" / patch["file"])
    return query


def go_on(out: Path) -> None:
    with pytest.raises(LabelsMissingError):
        resume(out)


def unasked(folder: Folder, *queries: list[dict]) -> list[str]:
    asked = {patch["image"] for query in queries for patch in query}
    return [path.stem for path in sorted((folder.root / "images").iterdir()) if path.stem not in asked]


def test_files_come_and_go_between_rounds(folder, tmp_path, caplog):
    """An image whose name sorts first made the run refuse to go on: ids were places in the order of names."""
    caplog.set_level("INFO", "meal_gpu")
    out = tmp_path / "run"
    with pytest.raises(LabelsMissingError):
        run(config(folder), out)
    # Before anybody has labelled: the first query stays what it is.
    add(folder, "a0", "z0")
    first = answer(out, 0)
    gone = unasked(folder, first)[1]
    assert gone.startswith("m")
    drop(folder, gone)
    go_on(out)
    assert "Since the run last went on: 2 images are new: a0, z0." in caplog.text
    assert f"1 image is gone: {gone}." in caplog.text
    names = json.loads((out / "pool.json").read_text())["names"]
    assert names == [*(f"m{i}" for i in range(5)), "a0", "z0"]
    second = answer(out, 1)
    for patch in [*first, *second]:
        assert names[patch["patch"] // 4] == patch["image"]
        assert patch["image"] != gone
    # The pixels that people see are those of the file that is named.
    for patch in second:
        y0, x0, y1, x1 = patch["original"]["window"]
        shown = np.array(Image.open(out / "seed-0" / "to-label" / "round-01" / "images" / f"{patch['id']}.png"))
        pixels = np.array(Image.open(folder.root / "images" / f"{patch['image']}.png"))
        np.testing.assert_array_equal(shown, pixels[y0:y1, x0:x1])
    # Again, and the one that was gone comes back.
    add(folder, "b0", gone)
    go_on(out)
    third = answer(out, 2)
    assert json.loads((out / "pool.json").read_text())["names"] == [*names, "b0"]
    resume(out)
    records = read_rounds(out / "seed-0")
    assert [[patch["id"] for patch in record["queried"]] for record in records] == [
        [patch["patch"] for patch in query] for query in (first, second, third)]
    assert load_run(out).dataset.n_patches == 4 * 8
    assert (out / "report.html").is_file()


def test_a_labelled_image_that_goes_is_refused_by_name(folder, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(LabelsMissingError):
        run(config(folder), out)
    first = answer(out, 0)
    image = folder.root / "images" / f"{first[0]['image']}.png"
    content = image.read_bytes()
    drop(folder, first[0]["image"])
    with pytest.raises(InputError, match=rf"{first[0]['image']} is gone, and seed 0 begins with it"):
        resume(out)
    add(folder, first[0]["image"])
    with pytest.raises(InputError, match=rf"{first[0]['image']}.png has changed since r00-0001-.* was asked for"):
        resume(out)
    image.write_bytes(content)
    go_on(out)
    (asked, *_) = [patch["image"] for patch in answer(out, 1) if patch["image"] not in {p["image"] for p in first}]
    drop(folder, asked)
    with pytest.raises(InputError, match=rf"{asked} is gone, and round 1 of seed 0 asks for a patch of it"):
        resume(out)


def test_new_files_alone_are_decoded(folder, tmp_path, caplog):
    """And a new run has the order of names, whatever a run before it has seen."""
    caplog.set_level("INFO", "meal_gpu")
    out = tmp_path / "run"
    with pytest.raises(LabelsMissingError):
        run(config(folder), out)
    answer(out, 0)
    add(folder, "a0")
    caplog.clear()
    go_on(out)
    assert "Taken over from the previous store: 5 unchanged images." in caplog.text
    caplog.clear()
    add(folder, "a1")
    go_on(out)
    assert "Taken over from the previous store: 6 unchanged images." in caplog.text
    assert ingest(config(folder).data).train.names == ("a0", "a1", *(f"m{i}" for i in range(5)))


def test_a_pool_that_lost_its_store_and_a_file_goes_on(folder, tmp_path):
    import shutil

    out = tmp_path / "run"
    with pytest.raises(LabelsMissingError):
        run(config(folder), out)
    first = answer(out, 0)
    gone = unasked(folder, first)[0]
    drop(folder, gone)
    shutil.rmtree(config(folder).data.store)
    go_on(out)
    assert all(patch["image"] != gone for patch in answer(out, 1))


def test_a_run_with_masks_grows_too(folder, tmp_path):
    """One of meal's planes, too: an embedding of fewer patches is drawn with what there was."""
    out = tmp_path / "run"
    whole = run(config(folder, people=False, rounds=1), out)
    lines = (whole / "seed-0" / "rounds.jsonl").read_bytes().splitlines(keepends=True)
    (whole / "seed-0" / "rounds.jsonl").write_bytes(lines[0])
    add(folder, "a0")
    resume(out)
    records = read_rounds(out / "seed-0")
    assert records[0]["next_query"] == records[1]["queried"] == json.loads(lines[1])["queried"]


def test_check_says_what_has_changed(folder, tmp_path):
    from meal_gpu.engine.check import check

    out, asked = tmp_path / "check.html", config(folder, people=False)
    check(asked, out)
    add(folder, "a0", "m1")
    drop(folder, "m2")
    lines, _ = check(asked, out)
    said = [line.removeprefix("Since the store was built: ") for line in lines if "Since the store" in line]
    assert said == ["1 image is new: a0.", "1 image is gone: m2.", "1 image has other files: m1."]
    assert not [line for line in check(asked, out)[0] if "Since" in line]


def test_other_pixels_under_a_known_name_are_said(folder, tmp_path, caplog):
    """The store follows the file, and the run went on without a word."""
    caplog.set_level("INFO", "meal_gpu")
    out = tmp_path / "run"
    with pytest.raises(LabelsMissingError):
        run(config(folder, n_query=1), out)
    first = answer(out, 0)
    go_on(out)
    [second] = json.loads((out / "seed-0" / "to-label" / "round-01" / "query.json").read_text())["items"]
    asked, other = first[0]["image"], unasked(folder, first, [second])[0]
    assert "other pixels" not in caplog.text
    add(folder, other)
    go_on(out)
    assert f"1 of the pool's images have other pixels than when the run last went on: {other}." in caplog.text
    assert "asked for" not in caplog.text
    caplog.clear()
    add(folder, asked, other)
    go_on(out)
    assert f"Patches of {asked} were asked for: see whether their labels still fit." in caplog.text
    caplog.clear()
    go_on(out)
    assert "other pixels" not in caplog.text, "it is said once"
