"""The real thing, small: CamVid with ImageNet weights, two rounds."""

import numpy as np
import pytest

from meal_gpu.config import Config
from meal_gpu.launch import run
from meal_gpu.records import read_rounds

pytestmark = pytest.mark.camvid


def test_a_tiny_camvid_run(camvid_root, weights_file, tmp_path):
    """16 + 2 x 8 patches, 2 epochs: enough to beat chance by far, and to be the same twice in what it asks for."""
    config = Config.load("camvid", [
        f"data.root={camvid_root}", f"model.weights={weights_file}", f"data.store={tmp_path}", "seeds=[0]",
        "device=cpu", "query.rounds=2", "query.n_initial_images=1", "query.n_query=8", "query.n_informative=40",
        "train.epochs=2", "train.final_epochs=2", "train.eval_every=2", "query.strategy=meal_ft"])
    records = read_rounds(run(config, tmp_path / "run") / "seed-0")
    assert [record["n_labelled"] for record in records] == [16, 24, 32]
    assert records[-1]["iou"]["Sky" if "Sky" in records[-1]["iou"] else "sky"] > 0.5
    assert max(record["miou"] for record in records) > 0.12
    scores = [patch["score"] for record in records[1:] for patch in record["queried"]]
    assert all(0 < score < np.log(11) for score in scores)
