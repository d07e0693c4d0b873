"""The stop set: drawn once, predicted as a pass over the pool would be, kept beside the rounds, no reason to stop."""

import json
import logging
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from habits import Folder
from tiny import tiny_config

from meal_gpu.config import Config
from meal_gpu.engine import stop_set
from meal_gpu.engine.experiment import Experiment, prepare
from meal_gpu.engine.rounds import initial_patches
from meal_gpu.launch import resume, run
from meal_gpu.network.features import logits_of
from meal_gpu.network.fold import for_scoring
from meal_gpu.records import read_rounds, rewrite_rounds
from meal_gpu.report import load_run
from meal_gpu.report.settling import changes


def config(tmp_path: Path, **changes: object) -> Config:
    return tiny_config(tmp_path, **{"query.strategy": "random", "train.epochs": 1, "train.final_epochs": 1, **changes})


def argmax_of_a_pass(experiment: Experiment, model: torch.nn.Module) -> np.ndarray:
    """Of the whole pool, uint8 ``[frames, h, w]``."""
    features, network = experiment.train.features(model), for_scoring(model, experiment.backend)
    with torch.no_grad():
        found = [logits_of(network, given, features.upsampling, experiment.backend)[0][: frames.stop - frames.start]
                 for frames, given in features.given()]
    return torch.cat(found).argmax(1).to(torch.uint8).numpy()


@pytest.mark.parametrize("context", ["image", "patch"])
@pytest.mark.parametrize("changes", [
    {}, {"model.cache_features": "never", "data.placement": "streamed"}, {"model.freeze_backbone": False},
    {"model.freeze_backbone": False, "data.placement": "streamed", "model.precision": "bfloat16"},
], ids=str)
def test_predictions_are_those_of_a_pass_over_the_pool(tmp_path, context, changes):
    """To the bit, however frames come: batches have one shape."""
    experiment = prepare(config(tmp_path, **{"data.context": context, "data.n_images": 11, **changes}))
    model = experiment.new_model(0, 0)
    for norm in model.modules():  # so that pixels differ
        if isinstance(norm, torch.nn.BatchNorm2d) and norm.running_mean is not None:
            norm.running_mean.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    images = [1, 4, 5, 10]
    found = stop_set.predictions(experiment, model, images)
    per = experiment.train.frames.per_image
    whole = argmax_of_a_pass(experiment, model)
    np.testing.assert_array_equal(found, whole.reshape(11, per, *whole.shape[1:])[images].reshape(found.shape))
    assert len(np.unique(found)) > 1
    assert stop_set.predictions(experiment, model, []).shape == (0, *found.shape[1:])


def test_images_are_drawn_by_the_seed_alone(tmp_path, monkeypatch):
    experiment = prepare(config(tmp_path, data={"n_images": 40, "image_size": [32, 48]}))

    def first(seed: int) -> list[dict]:
        return [{"id": patch} for patch in initial_patches(experiment, seed).tolist()]

    found = stop_set.draw(experiment, 3, first(3))
    assert len(found) == 10, "a quarter of a small pool"
    assert found == sorted(set(found)) == stop_set.draw(experiment, 3, first(3))
    assert found != stop_set.draw(experiment, 4, first(4))
    cells = experiment.grid.cells
    assert not set(found) & {patch["id"] // cells for patch in first(3)}, "these are labelled from the start"
    # An image of which a part is labelled may be one of them, one of which all is may not.
    some = [{"id": i * cells} for i in range(40)]
    assert len(stop_set.draw(experiment, 3, some)) == 10
    monkeypatch.setattr(stop_set, "SHARE", 1)
    assert len(stop_set.draw(experiment, 3, some)) == stop_set.IMAGES == 32
    most = [{"id": patch} for patch in range(38 * cells)]
    assert stop_set.draw(experiment, 3, most) == [38, 39]
    assert stop_set.draw(experiment, 3, [{"id": patch} for patch in range(40 * cells)]) == []


def test_rounds_say_which_images_they_were(tmp_path):
    assert stop_set.drawn_before([], 9) == []
    assert stop_set.drawn_before([{}, {"stop_set": {"images": [1, 8]}}, {"stop_set": {"images": [1]}}], 9) == [1, 8]
    for wrong in (None, [], 3, {"images": None}, {"images": "12"}, {"images": [9]}, {"images": [-1]},
                  {"images": [True]}, {"images": [1.0]}):
        assert stop_set.drawn_before([{"stop_set": wrong}], 9) == []


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Three rounds of random patches, which look at nothing else of the pool."""
    place = tmp_path_factory.mktemp("made")
    return run(config(place, **{"query.rounds": 3}), place / "run")


def copied(made: Path, tmp_path: Path, lines: int) -> Path:
    """As a kill leaves it after so many rounds."""
    out = tmp_path / "copy"
    shutil.copytree(made, out)
    rounds = out / "seed-0" / "rounds.jsonl"
    rounds.write_bytes(b"".join(rounds.read_bytes().splitlines(keepends=True)[:lines]))
    return out


def timeless(out: Path) -> list[dict]:
    return [{key: value for key, value in record.items() if key not in ("seconds", "peak_bytes")}
            for record in read_rounds(out / "seed-0")]


def kappas(out: Path) -> list[tuple[int, float | None]]:
    found = load_run(out)
    return [(one.round, one.kappa) for one in changes(found, found.seeds[0])]


def test_every_round_leaves_its_predictions(made):
    records = read_rounds(made / "seed-0")
    for k, record in enumerate(records):
        assert record["stop_set"]["images"] == records[0]["stop_set"]["images"]
        with np.load(stop_set.stop_set_file(made / "seed-0", k)) as held:
            assert held["images"].tolist() == record["stop_set"]["images"]
            assert zlib.crc32(held["predictions"].tobytes()) == record["stop_set"]["predictions"]
        assert record["seconds"]["stop set"] > 0
    assert len(records[0]["stop_set"]["images"]) == 4  # six, without the two that are labelled from the start
    assert [k for k, _ in kappas(made)] == [1, 2, 3]


@pytest.mark.parametrize("lines", [1, 3])
def test_a_run_that_goes_on_has_the_same_kappas(made, tmp_path, lines):
    out = copied(made, tmp_path, lines)
    resume(out)
    assert timeless(out) == timeless(made)
    assert kappas(out) == kappas(made)


def test_a_run_without_its_files_goes_on_and_lacks_those_kappas(made, tmp_path):
    out = copied(made, tmp_path, 2)
    shutil.rmtree(out / "seed-0" / "stop-set")
    resume(out)
    assert timeless(out) == timeless(made)
    assert kappas(out) == kappas(made)[2:]


def test_what_lies_in_the_place_of_a_file_stops_nothing(made, tmp_path, caplog):
    out = copied(made, tmp_path, 3)
    stop_set.stop_set_file(out / "seed-0", 3).unlink()
    stop_set.stop_set_file(out / "seed-0", 3).mkdir()
    stop_set.stop_set_file(out / "seed-0", 2).write_bytes(b"damaged")
    caplog.set_level(logging.WARNING, "meal_gpu")
    resume(out)
    assert timeless(out) == timeless(made)
    assert kappas(out) == kappas(made)[:1]
    assert "predictions-03.npz is a directory" in caplog.text


def test_a_run_of_before_begins_when_it_goes_on(made, tmp_path):
    out = copied(made, tmp_path, 2)
    records = read_rounds(out / "seed-0")
    rewrite_rounds(out / "seed-0", [{key: value for key, value in record.items() if key != "stop_set"}
                                    for record in records])
    shutil.rmtree(out / "seed-0" / "stop-set")
    resume(out)
    now = read_rounds(out / "seed-0")
    assert ["stop_set" in record for record in now] == [False, False, True, True]
    assert now[2]["stop_set"] == read_rounds(made / "seed-0")[2]["stop_set"]  # by the seed and the first labels alone
    assert kappas(out) == kappas(made)[2:]


def test_what_images_do_not_fill_is_left_out(tmp_path):
    folder, rng = Folder(tmp_path / "data"), np.random.default_rng(2)
    for i in range(6):
        size = (64, 40) if i % 2 else (32, 48)  # portraits fill 20 of 48 columns
        folder.add(f"m{i}", rng.integers(0, 256, (*size, 3), np.uint8), rng.integers(0, 3, size, np.uint8))
    for context in ("image", "patch"):
        experiment = prepare(config(tmp_path, data={
            "dataset": "folder", "root": str(folder.root), "image_size": [32, 48], "grid": [2, 3], "val_images": None,
            "val_masks": None, "class_names": ["road", "tree", "car"], "resize": "fit", "context": context}))
        model = experiment.new_model(0, 0)
        found = stop_set.predictions(experiment, model, [2, 3])
        features = experiment.train.features(model)
        maps = found.reshape(2, *((2, 3) if context == "patch" else (1, 1)), *found.shape[1:])
        maps = maps.transpose(0, 1, 3, 2, 4).reshape(2, -1, maps.shape[2] * maps.shape[4])  # patches beside each other
        wide = features.logits_size[1]
        at = np.concatenate([first + np.arange(wide) * (whole - 1) / (wide - 1) for first, whole in (
            [(0, 48)] if context == "image" else [(0, 16), (16, 16), (32, 16)])])
        assert (maps[0] < 3).all()
        np.testing.assert_array_equal(maps[1] == 255, np.tile(at > 19.5, (maps.shape[1], 1)))


def test_an_image_that_goes_is_left_out_and_comes_back(tmp_path):
    folder, rng = Folder(tmp_path / "data"), np.random.default_rng(3)
    for i in range(8):
        folder.add(f"m{i}", rng.integers(0, 256, (32, 40, 3), np.uint8), rng.integers(0, 3, (32, 40), np.uint8))
    out = run(config(tmp_path, data={
        "dataset": "folder", "root": str(folder.root), "image_size": [32, 40], "grid": [2, 2], "val_images": None,
        "val_masks": None, "class_names": ["road", "tree", "car"]}, query={"rounds": 3, "n_query": 2}),
        tmp_path / "run")
    first = read_rounds(out / "seed-0")
    images = first[0]["stop_set"]["images"]
    asked = {patch["image"] for record in first[:3] for patch in record["queried"]}
    names = json.loads((out / "pool.json").read_text())["names"]
    gone = next(i for i in images if names[i] not in asked)
    rounds = out / "seed-0" / "rounds.jsonl"
    rounds.write_bytes(b"".join(rounds.read_bytes().splitlines(keepends=True)[:2]))
    for kind in ("images", "masks"):
        (folder.root / kind / f"{names[gone]}.png").unlink()
    resume(out)
    assert [record["stop_set"]["images"] for record in read_rounds(out / "seed-0")] == [
        images, images, *[[i for i in images if i != gone]] * 2]
    found = load_run(out)
    assert [one.images for one in changes(found, found.seeds[0])] == [len(images), len(images) - 1, len(images) - 1]
