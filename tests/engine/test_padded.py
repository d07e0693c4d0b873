"""Images that do not fill their frames: nobody is asked for what lies beside them, and it scores nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from habits import Folder
from tiny import tiny_config

from meal_gpu.config import Config
from meal_gpu.engine.experiment import Experiment, prepare
from meal_gpu.engine.learning import learn
from meal_gpu.engine.oracle import SimulatedOracle
from meal_gpu.errors import InputError, LabelsMissingError
from meal_gpu.kernels import reference
from meal_gpu.launch import run
from meal_gpu.network.features import logits_of
from meal_gpu.records import read_rounds
from meal_gpu.stages.lessons import Lessons
from meal_gpu.stages.unlabelled import Unlabelled
from meal_gpu.timing import StageClock

SIZE = (32, 48)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Portraits and landscapes: the former fill 20 of 48 columns."""
    folder, rng = Folder(tmp_path_factory.mktemp("mixed") / "data"), np.random.default_rng(2)
    for i in range(6):
        size = (64, 40) if i % 2 else SIZE
        folder.add(f"m{i}", rng.integers(0, 256, (*size, 3), np.uint8), rng.integers(0, 3, size, np.uint8))
    return folder.root


def config(root: Path, tmp_path: Path, **changes: object) -> Config:
    return tiny_config(tmp_path, **{
        "data": {"dataset": "folder", "root": str(root), "image_size": list(SIZE), "grid": [2, 3], "val_images": None,
                 "val_masks": None, "class_names": ["road", "tree", "car"], "resize": "fit"},
        "query": {"strategy": "entropy", "rounds": 1, "n_initial_images": 2, "n_query": 6, "n_informative": 8},
        **changes})


def reference_scores(experiment: Experiment, model: torch.nn.Module, score: str) -> list[float]:
    """Float64 means over the pixels that images fill; 0 where they fill none."""
    features, grid = experiment.train.features(model), experiment.grid
    found = []
    with torch.no_grad():
        for frames, given in features.given():
            logits, _ = logits_of(model, given, features.upsampling, experiment.backend)
            maps = reference.score_map(logits, (features.frames.grid.height, features.frames.grid.width), score=score)
            for frame, pixels in zip(range(frames.start, frames.stop), maps, strict=False):
                whole = features.frames.grid.cells > 1
                for cell in range(grid.cells) if whole else [frame % grid.cells]:
                    y0, x0, y1, x1 = grid.box(cell)
                    part = pixels[y0:y1, x0:x1] if whole else pixels
                    wide = max(0, min(x1, 20 if (frame // (1 if whole else grid.cells)) % 2 else 48) - x0)
                    found.append(float(part[:, :wide].mean()) if wide else 0.0)
    return found


@pytest.mark.parametrize("context", ["image", "patch"])
@pytest.mark.parametrize("score", ["entropy", "margin", "least_confidence", "ratio"])
def test_scores_are_means_over_the_pixels_that_an_image_fills(root, tmp_path, context, score):
    """The padding, of which the network knows nothing, was a part of the mean."""
    experiment = prepare(config(root, tmp_path, **{"data.context": context, "query.score": score}))
    model = experiment.new_model(0, 0).eval()
    free = torch.ones(6 * 6, dtype=torch.bool)
    found = experiment.look(model, {"score"}, free).score
    torch.testing.assert_close(found, torch.tensor(reference_scores(experiment, model, score)), rtol=2e-5, atol=1e-6)
    assert found[6 + 1] > 0  # 4 of 16 columns
    assert found[6 + 2] == 0


@pytest.mark.parametrize("strategy", ["random", "entropy"])  # random drew from as many as there are patches
def test_nobody_is_asked_for_what_lies_beside_an_image(root, tmp_path, strategy):
    """All that may be asked for is: 6 patches of landscapes, 2 of portraits."""
    out = run(config(root, tmp_path, **{"query.strategy": strategy, "query.n_query": 8, "query.n_initial_images": 2}),
              tmp_path / "run")
    for record in read_rounds(out / "seed-0"):
        for patch in record["queried"]:
            assert int(patch["image"][1:]) % 2 == 0 or patch["col"] == 0, patch


def test_workers_score_the_same_pixels(root, tmp_path):
    local = run(config(root, tmp_path), tmp_path / "local")
    sharded = run(config(root, tmp_path, **{"query.scoring": "sharded", "query.workers": 1}), tmp_path / "sharded")
    for key in ("next_query", "stop_set"):
        assert read_rounds(sharded / "seed-0")[0][key] == read_rounds(local / "seed-0")[0][key]


def test_more_than_can_be_asked_for_is_refused_before_anything_runs(root, tmp_path):
    """36 patches were counted, of which 24 can be asked for: the run failed in its last round."""
    asked = config(root, tmp_path, **{"query.rounds": 3, "query.n_query": 6, "query.n_informative": 8})
    with pytest.raises(InputError, match=r"only 24 of the pool's 36 patches can be asked for"):
        prepare(asked)
    prepare(config(root, tmp_path, **{"query.rounds": 2})).close()


def test_tiles_go_through_a_run_and_their_file_is_named(tmp_path):
    folder, rng = Folder(tmp_path / "data"), np.random.default_rng(4)
    size = (80, 110)
    folder.add("map", rng.integers(0, 256, (*size, 3), np.uint8), rng.integers(0, 3, size, np.uint8), ".tif")
    tiled = config(folder.root, tmp_path, **{
        "data.resize": "stretch", "data.tile": [32, 48], "data.masks": None, "query.oracle": "people"})
    with pytest.raises(LabelsMissingError):
        run(tiled, tmp_path / "run")
    query = json.loads((tmp_path / "run" / "seed-0" / "to-label" / "round-00" / "query.json").read_text())
    for patch in query["items"]:
        y0, x0, y1, x1 = patch["original"]["box"]
        assert patch["original"]["file"] == "map.tif"
        assert y1 == min(y0 + 16, 80)
        assert x1 == min(x0 + 16, 110)
        assert patch["image"] == f"map_y{y0 // 32 * 32}_x{x0 // 48 * 48}"
        assert (y1 - y0) * (x1 - x0) * 2 >= 16 * 16


@pytest.mark.parametrize("context", ["image", "patch"])
@pytest.mark.parametrize("part", ["pseudo_labels", "consistency"])
def test_nothing_beside_an_image_is_learned_on(root, tmp_path, monkeypatch, context, part):
    """Plain colour was given the class that the teacher took it for, and the network trained on it."""
    experiment = prepare(config(root, tmp_path, **{
        "data.context": context, f"train.{part}": 1, "train.ema": 0.5, "train.pseudo_threshold": 0.0}))
    seen, read = [], Lessons.read

    def noted(lessons, model, batches):
        for lesson, batch in zip(read(lessons, model, batches), batches, strict=True):
            seen.append((lesson, lessons.host_ids[batch]))
            yield lesson

    monkeypatch.setattr(Lessons, "read", noted)
    pool = experiment.new_pool()
    ids = torch.tensor([0, 6, 12, 18])
    pool.reveal(ids, SimulatedOracle(experiment.stores.train.masks, experiment.grid).label(0, ids))
    drawn, beside = [], Unlabelled.beside
    monkeypatch.setattr(Unlabelled, "beside", lambda *given: drawn.append(beside(*given)) or drawn[-1])
    learn(experiment, pool, 0, 0, StageClock(torch.device("cpu")))
    filled = experiment.askable.filled
    assert torch.cat(drawn).numel()
    for (lesson, own), rest in zip(seen, drawn, strict=True):
        assert not experiment.askable.blank.view(-1)[rest].any()
        for labels, (rows, cols) in zip(lesson.labels, filled[torch.cat([own, rest])].tolist(), strict=True):
            assert (labels[rows:] == 255).all()
            assert (labels[:, cols:] == 255).all()
