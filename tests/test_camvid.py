"""The real thing, small: CamVid with ImageNet weights, two rounds."""

import json

import numpy as np
import pytest
import torch
from camvid import thinned
from PIL import Image
from safetensors.torch import load_file

from meal_gpu.config import Config
from meal_gpu.data.frames import HeldFrames, StreamedFrames
from meal_gpu.engine.experiment import prepare
from meal_gpu.kernels import SCORES, patch_entropy, reference
from meal_gpu.launch import run
from meal_gpu.records import read_rounds
from meal_gpu.stages.predict import predict

pytestmark = pytest.mark.camvid


def test_a_tiny_camvid_run(camvid_root, weights_file, tmp_path):
    """16 + 2 x 8 patches, 2 epochs: enough to beat chance by far."""
    config = Config.load("camvid", [
        f"data.root={thinned(camvid_root, tmp_path / 'camvid')}", f"model.weights={weights_file}",
        f"data.store={tmp_path / 'store'}", "seeds=[0]", "device=cpu", "query.rounds=2", "query.n_initial_images=1",
        "query.n_query=8", "query.n_informative=40", "train.epochs=2", "train.final_epochs=2", "train.eval_every=2",
        "query.strategy=meal_ft"])
    directory = run(config, tmp_path / "run")
    records = read_rounds(directory / "seed-0")
    assert [record["n_labelled"] for record in records] == [16, 24, 32]
    assert records[-1]["iou"]["Sky"] > 0.3
    assert max(record["miou"] for record in records) > 0.1  # one class everywhere would give 0.03
    scores = [patch["score"] for record in records[1:] for patch in record["queried"]]
    assert all(0 < score < np.log(11) for score in scores)

    # The kernel on the logits of a trained network, against the float64 definition, for every score and both layouts.
    experiment = prepare(config)
    model = experiment.new_model(0, 0)
    model.load_state_dict(load_file(directory / "seed-0" / "model.safetensors"))
    features = experiment.train.features(model.eval())
    with torch.no_grad(), experiment.backend.autocast():
        logits = model.logits(*next(features.read(model, [torch.arange(2)]))).float()
    for score in SCORES:
        expected = reference.patch_entropy(logits, (360, 480), (4, 4), score=score)[0]
        for given in (logits, logits.contiguous()):
            found = patch_entropy(given, (360, 480), (4, 4), score=score).double()
            assert ((found - expected).abs() / expected.abs()).max() < 1e-5


@pytest.mark.parametrize("context", ["image", "patch"])
def test_resident_streamed_and_pillow_are_one(camvid_root, weights_file, tmp_path, context):
    """Pixels of every patch, and scores of every patch, on real images."""
    pytest.importorskip("nvidia.dali")
    from meal_gpu.data.dali import FrameReader

    overrides = [f"data.root={thinned(camvid_root, tmp_path / 'camvid')}", f"model.weights={weights_file}",
                 f"data.store={tmp_path / 'store'}", "device=cpu", f"data.context={context}",
                 "model.cache_features=never", "query.rounds=1"]
    ways = {"resident": ["data.placement=resident"], "streamed": ["data.placement=streamed"],
            "by DALI": ["data.placement=streamed", "data.loader=dali"]}
    experiments = {way: prepare(Config.load("camvid", [*overrides, *asked])) for way, asked in ways.items()}
    held, streamed = experiments["resident"].train.frames, experiments["streamed"].train.frames
    assert isinstance(held, HeldFrames)
    assert isinstance(streamed, HeldFrames)
    assert held.mapped is None
    assert streamed.mapped is experiments["streamed"].stores.train.images
    assert isinstance(experiments["by DALI"].train.frames, StreamedFrames)
    store, grid = experiments["streamed"].stores.train, held.images_grid
    tiled = FrameReader((360, 480), (4, 4), held.device, 4)
    patches = torch.cat([part.flatten(0, 1) for part in tiled.read([[row] for row in store.images])])
    for i, sample in enumerate(experiments["streamed"].stores.dataset.train):
        by_pillow = np.array(Image.open(sample.image))
        for cell in range(grid.cells):
            y0, x0, y1, x1 = grid.box(cell)
            assert np.array_equal(patches[i * grid.cells + cell], by_pillow[y0:y1, x0:x1])
    given = held.cut(slice(0, held.count))
    assert torch.equal(given if context == "patch" else given.view(-1, 4, 90, 4, 120, 3).transpose(2, 3).flatten(0, 2),
                       patches)

    model = experiments["streamed"].new_model(0, 0).eval()
    scores = [predict(model, experiment.train.features(model), {"score"}, "entropy", experiment.backend).score
              for experiment in experiments.values()]
    assert all(torch.equal(scores[0], other) for other in scores[1:])
    assert scores[0].std() > 0


def test_a_run_asks_for_the_same_patches_either_way(camvid_root, weights_file, tmp_path):
    """Finetuned, so that training reads images in random order too; at half the size, where all the same is read."""
    pytest.importorskip("nvidia.dali")
    root, queries = thinned(camvid_root, tmp_path / "camvid"), []
    for way in ("resident", "streamed"):
        config = Config.load("camvid_finetune", [
            f"data.root={root}", f"model.weights={weights_file}", f"data.store={tmp_path / 'store'}", "seeds=[0]",
            "device=cpu", "data.image_size=[180, 240]", f"data.placement={way}", "query.rounds=1",
            "query.n_initial_images=2", "query.n_query=6",
            "query.n_informative=30", "train.epochs=1", "train.final_epochs=1", "query.strategy=meal"])
        directory = run(config, tmp_path / way)
        queries.append([record["next_query"] for record in read_rounds(directory / "seed-0")])
        assert json.loads((directory / "environment.json").read_text())["placement"] == way
    assert queries[0] == queries[1]
    assert len(queries[0][0]) == 6
