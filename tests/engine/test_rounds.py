"""Algorithm 1 on tiny runs: reproducible, resumable, blind to hidden labels, the same for every kind of experiment."""

import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import tiny_config

from meal_gpu.config import Config
from meal_gpu.engine.experiment import prepare
from meal_gpu.engine.oracle import SimulatedOracle
from meal_gpu.engine.rounds import initial_patches, run_seed
from meal_gpu.errors import InputError, LabelsMissingError
from meal_gpu.launch import resume, run
from meal_gpu.records import read_rounds
from meal_gpu.strategies import select


def timeless(directory: Path, seed: int = 0) -> list[dict]:
    """The records without what differs from run to run: times and memory."""
    return [{key: value for key, value in record.items() if key not in ("seconds", "peak_bytes")}
            for record in read_rounds(directory / f"seed-{seed}")]


def queries(directory: Path, seed: int = 0) -> list[list[int]]:
    return [[patch["id"] for patch in record["queried"]] for record in read_rounds(directory / f"seed-{seed}")]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    return tiny_config(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory) -> Path:
    """A finished meal run, never interrupted."""
    return run(config, tmp_path_factory.mktemp("runs") / "finished")


def test_the_directory_holds_what_is_promised(config, finished):
    seed = finished / "seed-0"
    assert Config.load(finished / "config.yaml") == config
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["dataset"]["n_patches"] == config.data.n_images * config.data.tiling().cells
    assert (finished / "report.html").stat().st_size > 100_000
    assert load_file(seed / "model.safetensors")["decoder.classify.bias"].shape == (
        len(environment["dataset"]["class_names"]),)

    records = read_rounds(seed)
    rounds, query = config.query.rounds, config.query.n_query
    initial = config.query.n_initial_images * config.data.tiling().cells
    assert [record["round"] for record in records] == list(range(rounds + 1))
    assert [record["n_labelled"] for record in records] == [initial + k * query for k in range(rounds + 1)]
    for before, after in itertools.pairwise(records):
        assert before["next_query"] == after["queried"]
    assert records[-1]["next_query"] == []
    seen = [patch["id"] for record in records for patch in record["queried"]]
    assert len(set(seen)) == len(seen)
    for record in records:
        assert set(record["iou"]) == set(environment["dataset"]["class_names"])
        present = [value for value in record["iou"].values() if value is not None]
        assert record["miou"] == pytest.approx(np.mean(present))
        assert record["miou"] == max(entry["miou"] for entry in record["history"])
        assert record["last"]["miou"] == record["history"][-1]["miou"]
        assert all(value >= 0 for value in record["seconds"].values())
    first = records[1]["queried"][0]
    y0, x0, y1, x1 = first["box"]
    grid = config.data.tiling()
    assert (y0, x0) == (first["row"] * grid.patch_height, first["col"] * grid.patch_width)
    assert (y1 - y0, x1 - x0) == (grid.patch_height, grid.patch_width)
    assert 0 <= first["score"] <= np.log(len(record["iou"]))

    with np.load(seed / "embedding.npz") as embedding:
        assert embedding["points"].shape == (environment["dataset"]["n_patches"], 2)
        chosen, candidates = embedding["round_0_chosen"], embedding["round_0_candidates"]
        assert set(chosen) <= set(candidates)
        assert chosen.tolist() == [patch["id"] for patch in records[0]["next_query"]]
        np.testing.assert_array_equal(embedding["round_0_points"], embedding["points"][candidates])
    with np.load(seed / "gallery" / "round-01.npz") as gallery:
        assert gallery["ids"].tolist() == queries(finished)[1]
        assert gallery["truth"].shape == gallery["prediction"].shape == gallery["entropy"].shape
        # The score that chose a patch is the mean of the entropy map that is shown for it.
        np.testing.assert_allclose(gallery["entropy"].astype(float).mean((1, 2)),
                                   [patch["score"] for patch in records[1]["queried"]], rtol=2e-3)


def test_the_same_seed_gives_the_same_run(config, finished, tmp_path):
    again = run(config, tmp_path / "again")
    assert timeless(again) == timeless(finished)


def test_seeds_differ_and_do_not_depend_on_each_other(config, finished, tmp_path):
    both = run(config.model_copy(update={"seeds": [1, 0]}), tmp_path / "both")
    assert timeless(both, 0) == timeless(finished)
    assert queries(both, 1) != queries(both, 0)


@pytest.mark.parametrize("rounds_done", [0, 1, 2, 3])
def test_resuming_after_any_round_gives_the_same_run(finished, tmp_path, rounds_done):
    """The small files of a run and a part of its lines are enough, as on another machine."""
    copy = tmp_path / "copy"
    (copy / "seed-0").mkdir(parents=True)
    for name in ("config.yaml", "environment.json"):
        shutil.copy(finished / name, copy / name)
    lines = (finished / "seed-0" / "rounds.jsonl").read_bytes().splitlines(keepends=True)
    # A kill in the middle of writing a line leaves a part of it.
    half = lines[rounds_done][:-40] if rounds_done < len(lines) else b""
    (copy / "seed-0" / "rounds.jsonl").write_bytes(b"".join(lines[:rounds_done]) + half)
    resume(copy)
    assert timeless(copy) == timeless(finished)
    assert (copy / "report.html").is_file()


def test_resuming_on_another_data_set_is_refused(finished, make_folder, tmp_path):
    """Patches are recorded by number and by image: where the two disagree, labels would go to the wrong pixels."""
    root = make_folder(n=6, n_val=2, size=(64, 96))
    config = tiny_config(tmp_path, **{"data.dataset": "folder", "data.root": str(root),
                                      "data.class_names": ["a", "b", "c"], "query.rounds": 1})
    directory = run(config, tmp_path / "run")
    (directory / "pool.json").unlink()  # as of runs of before; with it, see test_changed_pool.py
    for kind in ("images", "masks"):
        shutil.copy(root / kind / "img0.png", root / kind / "aaa.png")
    with pytest.raises(InputError, match=r"round 0 .* img\d.*, and .* there now.*Restore"):
        resume(directory)


def test_a_finished_run_stays_as_it_is(finished):
    before = (finished / "seed-0" / "rounds.jsonl").read_bytes()
    resume(finished)
    assert (finished / "seed-0" / "rounds.jsonl").read_bytes() == before


@pytest.mark.parametrize(("strategy", "changes"), [
    ("random", {}),
    ("entropy", {"query.score": "margin"}),
    ("meal_ft", {"query.selector": "kmeans"}),
    ("meal", {"data.context": "patch"}),
    ("meal", {"data.context": "patch", "model.cache_features": "never", "data.placement": "resident"}),
    ("meal", {"model.freeze_backbone": False}),
    ("meal_ft", {"model.freeze_backbone": False, "train.sample": "image"}),
], ids=str)
def test_every_kind_of_experiment(tmp_path, strategy, changes):
    directory = run(tiny_config(tmp_path, **{"query.strategy": strategy, "query.rounds": 1}, **changes),
                    tmp_path / "run")
    asked = queries(directory)
    assert len(set(asked[0]) | set(asked[1])) == len(asked[0]) + len(asked[1])
    scored = [patch["score"] is not None for patch in read_rounds(directory / "seed-0")[1]["queried"]]
    assert all(scored) == any(scored) == (strategy != "random")


def test_caching_features_and_placing_images_change_nothing(tmp_path):
    """What is cached are the numbers that would be computed again, in float32 bit by bit."""
    found = []
    for i, changes in enumerate([{"model.cache_features": "always"},
                                 {"model.cache_features": "never", "data.placement": "resident"},
                                 {"model.cache_features": "never", "data.placement": "streamed"}]):
        config = tiny_config(tmp_path, **{"query.rounds": 1}, **changes)
        found.append(queries(run(config, tmp_path / str(i))))
    assert found[0] == found[1] == found[2]


def test_a_fully_supervised_run(tmp_path):
    config = tiny_config(tmp_path, **{"query.rounds": 0, "query.n_initial_images": 0, "train.sample": "image",
                                      "train.batch_size": 2, "train.lr_decay": 0.1, "train.lr_decay_every": 1})
    directory = run(config, tmp_path / "run")
    (record,) = read_rounds(directory / "seed-0")
    assert record["fraction"] == 1.0
    assert record["next_query"] == []
    assert "stop_set" not in record  # one round is compared with nothing
    assert not (directory / "seed-0" / "stop-set").exists()


def test_hidden_labels_do_not_matter(make_folder, tmp_path):
    """Scrambling every label that is not revealed changes nothing that is asked for: no ground truth leaks."""
    found = []
    root = make_folder(n=6, n_val=2, size=(64, 96))
    for name in ("as they are", "scrambled"):
        config = tiny_config(tmp_path, **{
            "data.dataset": "folder", "data.root": str(root), "data.class_names": ["a", "b", "c"],
            "data.store": str(tmp_path / name), "query.rounds": 1, "query.n_initial_images": 2})
        experiment = prepare(config)
        shown = {experiment.stores.train.names[patch // experiment.grid.cells]
                 for patch in initial_patches(experiment, 0).tolist()}
        found.append(timeless(run(config, tmp_path / "run" / name))[0]["next_query"])
        for mask in (root / "masks").iterdir():
            if mask.stem not in shown:
                Image.fromarray(np.full((64, 96), 255, np.uint8)).save(mask)
    assert found[0] == found[1]


def test_adding_a_strategy_takes_a_function_and_a_line(tmp_path, monkeypatch):
    """What docs/strategies.md shows, run as it stands there."""
    page = (Path(__file__).parents[2] / "docs" / "strategies.md").read_text()
    (shown,) = re.findall(r"```python\n([^`]*STRATEGIES\[[^`]*)```", page)
    monkeypatch.setattr(select, "STRATEGIES", dict(select.STRATEGIES))
    exec(shown, {})
    config = tiny_config(tmp_path, **{"query.strategy": "one_per_image", "query.rounds": 1})
    directory = run(config, tmp_path / "run")
    cells = config.data.tiling().cells
    asked = read_rounds(directory / "seed-0")[1]["queried"]
    images = [patch["id"] // cells for patch in asked]
    assert len(set(images)) == len(images) == 4  # 4 of the 4 images that are not labelled
    scores = [patch["score"] for patch in asked]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("returned", ["too few", "twice", "labelled"])
def test_a_strategy_that_breaks_its_promise_is_named(tmp_path, monkeypatch, returned):
    def broken(view, n):
        free = view.free.nonzero().squeeze(1)
        return {"too few": free[: n - 1], "twice": free[[0] * n],
                "labelled": torch.cat([view.labelled.nonzero().squeeze(1)[:1], free[: n - 1]])}[returned]

    monkeypatch.setitem(select.STRATEGIES, "broken", select.Strategy(broken))
    with pytest.raises(ValueError, match="strategy 'broken' must return"):
        run(tiny_config(tmp_path, **{"query.strategy": "broken", "query.rounds": 1}), tmp_path / "run")


def test_output_that_is_not_finite_names_round_and_image(tmp_path):
    experiment = prepare(tiny_config(tmp_path, **{"query.strategy": "entropy"}))
    poisoned = next(i for i in range(len(experiment.stores.train.names))
                    if i * experiment.grid.cells not in initial_patches(experiment, 0))
    experiment.train.frozen.cache[1][poisoned] = torch.nan
    (tmp_path / "seed-0").mkdir()
    oracle = SimulatedOracle(experiment.stores.train.masks, experiment.grid)
    name = experiment.stores.train.names[poisoned]
    with pytest.raises(InputError, match=f"Round 0: .* image {name} is not finite"):
        run_seed(experiment, 0, tmp_path / "seed-0", oracle, lambda record: None)


def test_people_label(make_folder, tmp_path):
    """The query goes out as images, the run stops, masks come in, the run goes on; here a copy of the truth."""
    root = make_folder(n=6, n_val=2, size=(64, 96))
    people = {"data.dataset": "folder", "data.root": str(root), "data.class_names": ["a", "b", "c"],
              "query.rounds": 2, "query.n_query": 3}
    simulated = run(tiny_config(tmp_path, **people), tmp_path / "simulated")
    config = tiny_config(tmp_path, **people, **{"query.oracle": "people", "data.masks": None})
    directory = tmp_path / "people"
    for k in range(3):
        with pytest.raises(LabelsMissingError) as waiting:
            resume(directory) if k else run(config, directory)
        folder = directory / "seed-0" / "to-label" / f"round-{k:02d}"
        asked = json.loads((folder / "query.json").read_text())["items"]
        assert waiting.value.directory == folder / "masks"
        assert waiting.value.missing == len(asked)
        assert [patch["patch"] for patch in asked] == queries(simulated)[k]
        for patch in asked:
            y0, x0, y1, x1 = patch["box"]
            top, left, bottom, right = patch["original"]["window"]
            image = np.array(Image.open(folder / "images" / f"{patch['id']}.png"))
            np.testing.assert_array_equal(
                image, np.array(Image.open(root / "images" / f"{patch['image']}.png"))[top:bottom, left:right])
            mask = np.array(Image.open(root / "masks" / f"{patch['image']}.png"))[y0:y1, x0:x1]
            Image.fromarray(mask).save(folder / "masks" / patch["file"])
    resume(directory)
    assert timeless(directory) == timeless(simulated)


def test_two_processes_cannot_share_a_run(finished):
    import fcntl

    with (finished / ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="Another process is running"):
            resume(finished)


def test_resuming_may_change_the_machine_and_nothing_else(finished, tmp_path):
    with pytest.raises(InputError, match=r"train\.lr=1 would make it another run"):
        resume(finished, ["train.lr=1"])
    resume(finished, [f"data.store={tmp_path}"])  # decodes again, there
    assert any(tmp_path.iterdir())
