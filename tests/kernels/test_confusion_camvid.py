"""An evaluation's counts on CamVid's validation images, of a trained network, against torch's chain of before."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_confusion_cpu import chain

import meal_gpu.stages.evaluate as evaluate_module
from meal_gpu.bench.subjects.ground import limited
from meal_gpu.config import Config
from meal_gpu.engine.experiment import prepare
from meal_gpu.engine.oracle import SimulatedOracle
from meal_gpu.randomness import generator
from meal_gpu.stages.evaluate import confusion
from meal_gpu.stages.train import train

pytestmark = pytest.mark.camvid


def test_an_evaluation_counts_what_torchs_chain_counts(
    camvid_root: Path, weights_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 images after 12 steps, every pixel: near ties between classes are decided as before."""
    config = Config.load({
        "device": "cpu", "data": {"dataset": "camvid", "root": str(camvid_root), "store": str(tmp_path)},
        "model": {"weights": str(weights_file), "precision": "float32", "cache_features": "never"},
        "train": {"batch_size": 8}, "query": {"strategy": "random"}, "umap": {"backend": "umap-learn"},
    })  # fmt: skip
    experiment = prepare(config, dataset=limited(config, 70))
    model, ids = experiment.new_model(0, 0), torch.arange(32)
    masks, validation, stores = experiment.stores.train.masks, experiment.val, experiment.stores
    assert masks is not None
    assert validation is not None
    assert stores.val is not None
    labels = SimulatedOracle(masks, experiment.grid).label(0, ids)
    train(model, experiment.train.features(model), ids, labels, config.train, 3, experiment.backend,
          generator(0, 0, "order"), lambda: None)  # fmt: skip
    seen, logits_of = [], evaluate_module.logits_of

    def remembered(*arguments: Any) -> Any:
        logits, high = logits_of(*arguments)
        seen.append(logits)
        return logits, high

    monkeypatch.setattr(evaluate_module, "logits_of", remembered)
    counts = confusion(model, validation.features(model), validation.masks, 11, experiment.backend)
    truth = torch.from_numpy(stores.val.masks[:].copy())
    assert len(truth) >= 20
    logits = torch.cat(seen)[: len(truth)]
    assert logits.is_contiguous(memory_format=torch.channels_last)
    expected = sum(chain(x[None], mask[None], (360, 480)) for x, mask in zip(logits, truth, strict=True))
    assert torch.equal(counts, expected)
    assert (counts.sum(0) > 0).sum() >= 4  # it says several classes
