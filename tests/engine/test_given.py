"""Runs that begin with labels which were there: round 0 is theirs, people are asked for the rest."""

import json
from pathlib import Path

import numpy as np
import pytest
from habits import Folder
from PIL import Image
from tiny import tiny_config

from meal_gpu.config import Config
from meal_gpu.errors import InputError, LabelsMissingError
from meal_gpu.launch import resume, run
from meal_gpu.preflight import preflight
from meal_gpu.records import read_rounds
from meal_gpu.report import load_run
from meal_gpu.report.words import setting

SIZE = (32, 40)
RNG = np.random.default_rng(7)


def mask(*void_cells: int) -> np.ndarray:
    """Labels of a 2 x 2 grid, but for the cells that nobody has looked at."""
    found = RNG.integers(0, 3, SIZE).astype(np.uint8)
    for cell in void_cells:
        row, col = divmod(cell, 2)
        found[row * 16 : row * 16 + 16, col * 20 : col * 20 + 20] = 255
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path / "data")
    for i in range(6):
        folder.add(f"m{i}", RNG.integers(0, 256, (*SIZE, 3), np.uint8), mask(1, 2) if i == 1 else mask())
        if i > 2:
            (folder.root / "masks" / f"m{i}.png").unlink()
    return folder


def config(folder: Folder, data: dict | None = None, **query: object) -> Config:
    return tiny_config(folder.root.parent, data={
        "dataset": "folder", "root": str(folder.root), "image_size": list(SIZE), "grid": [2, 2], "val_images": None,
        "val_masks": None, "class_names": ["road", "tree", "car"], "unlabelled": "ask", **(data or {})}, query={
        "strategy": "entropy", "rounds": 2, "n_query": 3, "n_informative": 8, "oracle": "people", **query})


def ask(what: object, *arguments: object) -> None:
    with pytest.raises(LabelsMissingError):
        what(*arguments)  # type: ignore[operator]


def answer(out: Path, number: int) -> None:
    place = out / "seed-0" / "to-label" / f"round-{number:02d}"
    for patch in json.loads((place / "query.json").read_text())["items"]:
        Image.fromarray(mask()[:16, :20]).save(place / "masks" / patch["file"])


def records(out: Path) -> list[dict]:
    return read_rounds(out / "seed-0")


def test_masks_are_round_0_and_people_are_asked_for_the_rest(folder, tmp_path):
    out = tmp_path / "run"
    ask(run, config(folder), out)
    [first] = records(out)
    # Image m1 lies second: of its patches 4 ... 7 the cells 1 and 2 hold no label.
    assert [patch["id"] for patch in first["queried"]] == [0, 1, 2, 3, 4, 7, 8, 9, 10, 11]
    assert not (out / "seed-0" / "to-label" / "round-00").exists()
    assert (out / "seed-0" / "to-label" / "round-01" / "query.json").exists()
    assert not {patch["id"] for patch in first["next_query"]} & {patch["id"] for patch in first["queried"]}
    for number in (1, 2):
        answer(out, number)
        if number == 1:
            ask(resume, out)
    resume(out)
    assert [record["n_labelled"] for record in records(out)] == [10, 13, 16]
    assert records(out)[0] == first
    assert "10 patches of 3 images had labels before the run began" in setting(load_run(out))


def test_masks_that_come_later_change_nothing(folder, tmp_path):
    """The run began with three images: a fourth mask in the folder is no label of round 0, and moves nobody."""
    out = tmp_path / "run"
    ask(run, config(folder), out)
    before = records(out)
    Image.fromarray(mask()).save(folder.root / "masks" / "m5.png")
    ask(resume, out)
    answer(out, 1)
    ask(resume, out)
    assert records(out)[:1] == before


def test_a_mask_that_is_corrected_is_noticed(folder, tmp_path):
    out = tmp_path / "run"
    ask(run, config(folder), out)
    Image.fromarray(mask()).save(folder.root / "masks" / "m0.png")
    with pytest.raises(InputError, match=r"The labels of 4 of the 10 patches that round 0 was trained on"):
        resume(out)


def test_a_mask_that_is_gone_is_missed(folder, tmp_path):
    out = tmp_path / "run"
    ask(run, config(folder), out)
    (folder.root / "masks" / "m0.png").unlink()
    with pytest.raises(InputError, match=r"The mask of m0 is gone, and it is what this run begins with"):
        resume(out)


def test_a_run_that_began_with_nothing_stays_that(folder, tmp_path):
    """Its first round is the people's, whatever masks have come into the folder since."""
    out = tmp_path / "run"
    for file in (folder.root / "masks").iterdir():
        file.unlink()
    ask(run, config(folder, n_initial_images=2), out)
    answer(out, 0)
    Image.fromarray(mask()).save(folder.root / "masks" / "m0.png")
    ask(resume, out)
    assert len(records(out)[0]["queried"]) == 8
    ask(resume, out)


def test_validation_stays_what_it_was(folder, tmp_path):
    out, file = tmp_path / "run", tmp_path / "run" / "pool.json"
    ask(run, config(folder, {"val_fraction": 0.4}), out)
    [held] = json.loads(file.read_text())["val"]
    assert records(out)[0]["miou"] is not None
    for i in (3, 4, 5):
        Image.fromarray(mask()).save(folder.root / "masks" / f"m{i}.png")
    ask(resume, out)
    assert json.loads(file.read_text())["val"] == [held]
    assert len(json.loads(file.read_text())["names"]) == 5
    (folder.root / "masks" / f"{held}.png").unlink()
    with pytest.raises(InputError, match=f"The image {held} or its mask is gone, and this run is validated on it"):
        resume(out)


def test_what_cannot_be(folder, tmp_path):
    with pytest.raises(InputError, match=r"data.unlabelled is 'ask' and query.oracle is 'simulated': nobody is asked"):
        config(folder, oracle="simulated")
    with pytest.raises(InputError, match=r"3 images are labelled already\. Lower query.rounds"):
        run(config(folder, rounds=8), tmp_path / "run")
    with pytest.raises(InputError, match=r"and 10 of the pool's 24 patches are labelled already"):
        run(config(folder, rounds=5), tmp_path / "run")
    for file in (folder.root / "masks").iterdir():
        Image.fromarray(np.full(SIZE, 255, np.uint8)).save(file)
    with pytest.raises(InputError, match=r"hold nothing but void, so that there is nothing to begin with"):
        run(config(folder, {"absent_classes": "allow"}), tmp_path / "run")


def test_info_counts_them(folder):
    found = preflight(config(folder))
    assert not found.wrong
    assert "on 15 patches" in "\n".join(f"{value}" for table in found.tables for value in table.values())


def test_all_masks_and_a_simulated_oracle_are_as_ever(folder, tmp_path):
    """With every mask there, the keys that people need change no bit of a simulated run but the images held out."""
    for i in range(3, 6):
        Image.fromarray(mask()).save(folder.root / "masks" / f"m{i}.png")
    found = []
    for name, data in (("before", {"unlabelled": "stop"}), ("again", {"unlabelled": "stop", "val_fraction": 0.0})):
        run(config(folder, data, oracle="simulated", n_initial_images=2), tmp_path / name)
        found.append([(one["queried"], one["labels"], one["history"]) for one in records(tmp_path / name)])
    assert found[0] == found[1]
