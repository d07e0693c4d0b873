"""The real thing, small: CamVid with ImageNet weights, two rounds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from meal_gpu.config import Config
from meal_gpu.experiment import prepare
from meal_gpu.kernels import SCORES, patch_entropy, reference
from meal_gpu.launch import run
from meal_gpu.records import read_rounds

pytestmark = pytest.mark.camvid


def thinned(root: Path, to: Path) -> Path:
    """Every eighth image of CamVid, by links: the run stays real and takes seconds."""
    for folder in ("train", "trainannot", "val", "valannot"):
        (to / folder).mkdir(parents=True)
        for file in sorted((root / folder).iterdir())[::8]:
            (to / folder / file.name).symlink_to(file)
    return to


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
    features = experiment.features(model.eval())
    with torch.no_grad(), experiment.backend.autocast():
        logits = model.logits(*next(features.read(model, [torch.arange(6)]))).float()
    for score in SCORES:
        expected = reference.patch_entropy(logits, (360, 480), (4, 4), score=score)[0]
        for given in (logits, logits.contiguous()):
            found = patch_entropy(given, (360, 480), (4, 4), score=score).double()
            assert ((found - expected).abs() / expected.abs()).max() < 1e-5
