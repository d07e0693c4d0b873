"""`model.compile`: one graph per function, none anew in the next round, and the same bits where it says so.

Without CUDA the graphs are traced and run one by one: what is shown here is that nothing breaks a graph or changes its
arithmetic, not that CUDA records it.
"""

import dataclasses
import shutil

import pytest
import torch
from tiny import CPU, TINY, noise, stir_norms, tiny_backend, tiny_config, tiny_features, tiny_model
from torch._dynamo.backends import cudagraphs
from torch._dynamo.utils import counters
from torch._inductor import cudagraph_trees

from meal_gpu.config import Config, TrainConfig
from meal_gpu.data.frames import HeldFrames
from meal_gpu.errors import InputError
from meal_gpu.grid import Grid
from meal_gpu.launch import run
from meal_gpu.machine.backend import resolve
from meal_gpu.planning.traffic import _Recorded
from meal_gpu.records import read_rounds
from meal_gpu.stages.evaluate import confusion
from meal_gpu.stages.predict import predict
from meal_gpu.stages.train import train


def a_round(seed: int, frozen: bool, backend) -> list[torch.Tensor]:
    """Score, evaluate, train with dropout, on five images in batches of two: all that comes of it."""
    model, images = tiny_model(5, seed, freeze_backbone=frozen), noise(5, 64, 96)
    stir_norms(model)
    features = tiny_features(model, images, (2, 3), cached=frozen, backend=backend)
    seen = predict(model, features, {"score", "features", "probabilities"}, "entropy", backend)
    masks = HeldFrames.of(torch.zeros(5, 64, 96, dtype=torch.uint8), Grid(2, 3, 64, 96), "image", CPU)
    # Tracing the backbone takes seconds, and its way is that of `predict`.
    counts = confusion(model, features, masks, 5, backend) if frozen else torch.zeros(0)
    torch.manual_seed(seed)
    ids = torch.tensor([0, 1, 7, 8, 20, 21, 28, 29])  # several of one image, so that few go through the backbone
    labels = torch.randint(0, 5, (8, 32, 32), dtype=torch.uint8)
    train(model, features, ids, labels, TrainConfig(batch_size=4), 2, backend, torch.Generator().manual_seed(0),
          lambda: None)
    return [seen.score, seen.features, seen.probabilities, counts, *model.state_dict().values()]


@pytest.mark.parametrize(("frozen", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_graphs_give_the_same_bits_and_are_traced_once(frozen, dtype, monkeypatch):
    """Every call must be one whole graph (``fullgraph``); another network of the same shape finds it there."""
    monkeypatch.setattr("meal_gpu.network.features.BATCH_PIXELS", 2 * 64 * 96)
    torch.compiler.reset()
    counters.clear()
    plain, graphs = tiny_backend(dtype), dataclasses.replace(tiny_backend(dtype), compile="graphs")
    for seed in (0, 1):
        expected, found = a_round(seed, frozen, plain), a_round(seed, frozen, graphs)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
        assert counters["stats"]["unique_graphs"] == (3 if frozen else 2)


@pytest.mark.parametrize("frozen", [True, False])
def test_what_a_replay_copies(frozen, monkeypatch):
    """All that a graph is given, by what PyTorch says to its recorder: no input is one that stays in its place.

    So one recording serves the networks of all rounds. The bytes are those that the budgets count without PyTorch's
    compiler. A backward pass gets what the forward one left in the graphs' memory, and the loss's gradient of 4 bytes.
    """
    graphs: list[tuple[bool, int, int, int]] = []

    def recorder(function, inputs, static, **how):
        assert how["mutated_input_idxs"] == set()  # with one it would record nothing
        copied = [value for i, value in enumerate(inputs) if i not in static]
        graphs.append((how["is_backward"], len(static), len(copied), sum(value.nbytes for value in copied)))
        return function

    monkeypatch.setattr(cudagraph_trees, "cudagraphify_impl", recorder)  # what stands on the driver
    monkeypatch.setattr(cudagraphs, "check_for_skip", lambda *graph: None)
    monkeypatch.setattr(cudagraphs, "get_device_index", lambda graph: 0)
    torch.compiler.reset()
    counted = _Recorded(**vars(dataclasses.replace(tiny_backend())))
    for backend in (dataclasses.replace(tiny_backend(), compile="graphs"), counted):
        model = tiny_model(5, freeze_backbone=frozen)
        features = tiny_features(model, noise(4, 64, 96), (2, 3), cached=frozen, backend=backend)
        predict(model, features, {"score"}, "entropy", backend)
        ids, labels = torch.tensor([0, 1, 7, 8]), torch.zeros(4, 32, 32, dtype=torch.uint8)
        train(model, features, ids, labels, TrainConfig(batch_size=4), 1, backend, torch.Generator().manual_seed(0),
              lambda: None)
    assert [(backward, static) for backward, static, _, _ in graphs[:2]] == [(False, 0)] * 2
    assert graphs[2][0]
    assert graphs[2][2:] == (1, 4)
    assert [n_bytes for _, _, _, n_bytes in graphs[:2]] == counted.copied


def test_a_run_with_graphs_asks_for_the_same_patches(tmp_path):
    queries = []
    for way in ("none", "graphs"):
        config = tiny_config(tmp_path, **{"model.compile": way, "query.strategy": "entropy", "query.rounds": 1,
                                        "train.epochs": 1, "train.final_epochs": 1})
        queries.append([record["next_query"] for record in read_rounds(run(config, tmp_path / way) / "seed-0")])
    assert queries[0] == queries[1]
    assert len(queries[0][0]) == 4


def test_what_cannot_be_had_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"model.compile is 'graph'.*Did you mean 'graphs'"):
        tiny_config(tmp_path, **{"model.compile": "graph"})
    with pytest.raises(InputError, match=r"train\.sample is 'image' and model.compile is 'graphs'"):
        tiny_config(tmp_path, **{"model.compile": "graphs", "train.sample": "image"})
    monkeypatch.setattr(shutil, "which", lambda name: None)
    wanted = Config.load({**TINY, "model": {**TINY["model"], "compile": "inductor"}})
    with pytest.raises(InputError, match=r"needs a C\+\+ compiler on cpu, and g\+\+ is not there. Install one"):
        resolve(wanted)
    graphs = Config.load({**TINY, "model": {**TINY["model"], "compile": "graphs"}})
    assert resolve(graphs).choices()["compile"] == (
        "graphs (asked for; traced, but run one by one: CUDA graphs need CUDA)")
