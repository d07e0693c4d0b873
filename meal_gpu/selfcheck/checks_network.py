"""The network, its forms, and whole runs against their references: part of `meal_gpu.selfcheck.checks`."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from ..config import Config, ModelConfig
from ..engine.acquire import acquire
from ..engine.experiment import Experiment, prepare
from ..engine.oracle import SimulatedOracle
from ..engine.outputs import ids_of
from ..engine.rounds import initial_patches, run_seed
from ..errors import InputError
from ..machine import arithmetic
from ..machine.backend import Backend, resolve
from ..machine.transfers import Transfers
from ..network.fold import foldable
from ..network.interface import Network
from ..network.model import DeepLabV3Plus
from ..stages.pool import Pool
from ..stages.predict import predict
from ..stages.train import train_epoch
from ..timing import StageClock, peak_bytes
from . import outcome
from .outcome import Deviation, Finding, Unavailable

TOY: dict[str, Any] = {
    "seeds": [0],
    "data": {"dataset": "demo", "image_size": [64, 96], "grid": [2, 3], "n_images": 8, "n_val_images": 2},
    "model": {"backbone": "mobilenetv2_035", "weights": "none", "precision": "float32"},
    "train": {"epochs": 2, "final_epochs": 2, "batch_size": 4},
    "query": {"strategy": "meal_ft", "rounds": 2, "n_initial_images": 2, "n_query": 8, "n_informative": 16},
}
"""A run of seconds on eight drawn scenes."""


def network_cpu() -> Finding:
    """The network in this CPU's precision against float32, on the CPU."""
    dtype = resolve(Config.load({"device": "cpu"}), embeds=False).dtype
    if dtype == torch.float32:
        raise Unavailable("this processor has no native bfloat16: the network runs in float32")
    return _network(torch.device("cpu"), dtype, 0.1)


def network_cuda() -> Finding:
    """The network on CUDA, in float32 without TF32 and in its precision, against float32 on the CPU."""
    device = outcome.cuda()
    dtype = resolve(Config(), embeds=False).dtype
    with arithmetic.ieee():
        text, numbers = _network(device, torch.float32, 1e-3)
    other, more = _network(device, dtype, 0.1)
    return f"{text}; {other}", {**numbers, **{f"{outcome.name(dtype)}_{key}": value for key, value in more.items()}}


def _network(device: torch.device, dtype: torch.dtype, most: float) -> Finding:
    """Logits of random images, through batch-norms that have seen some: error relative to their spread."""
    torch.manual_seed(0)
    model = DeepLabV3Plus(19, ModelConfig(backbone="mobilenetv2_100", weights="none"))
    images = torch.randint(0, 256, (2, 128, 160, 3), generator=outcome.draw(), dtype=torch.uint8)
    with torch.no_grad():
        model.train()
        model(images)  # so that the head's batch-norms fit what they see
        model.eval()
        expected = model(images)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            found = model.to(device)(images.to(device)).float().cpu()
    error = ((found - expected).square().mean().sqrt() / expected.std()).item()
    agree = (found.argmax(1) == expected.argmax(1)).double().mean().item()
    numbers = {"relative_error": error, "same_class": agree}
    if not (error <= most and agree >= 1 - most):
        raise Deviation(f"{outcome.name(dtype)} logits are off by {error:.1e} of their spread, more than {most:g}; "
                        f"{agree:.1%} of the pixels have the same class", **numbers)
    return f"{outcome.name(dtype)} off by {error:.1e}, {agree:.1%} of the pixels of the same class", numbers


def _folded(device: torch.device) -> Finding:
    """Scores of a trained network with its batch-norms folded, against the network as it is, in float32."""
    with _toy(device.type) as experiment:
        model, _, _, plain = _trained(experiment, experiment.backend)
        folded = _scores(experiment, model, replace(experiment.backend, fold_norms=True))
        error = ((folded - plain).abs().max() / plain.std()).item()
        assert isinstance(model, DeepLabV3Plus)
        n = len(foldable(model))
    numbers = {"relative_error": error, "folded": float(n)}
    if not error <= 1e-3:
        raise Deviation(f"scores are off by {error:.1e} of their spread, more than 1e-3", **numbers)
    return f"{n} batch-norms folded; scores off by {error:.1e} of their spread", numbers


def _compiled(device: torch.device, way: str, most: float) -> Finding:
    """Scores and a first step's loss as ``model.compile`` says, against operation by operation.

    Each is one forward pass. What two steps of Adam make of it is told and not judged: Adam divides by the gradient's
    own size, and of a rounding of 1e-7 in it scores may move by a hundredth of their spread.
    """
    if device.type == "cuda":
        torch.compiler.reset()
        counters.clear()
    with _toy(device.type) as experiment:
        _, loss, scores, later = _trained(experiment, experiment.backend)
        _, loss_there, scores_there, later_there = _trained(experiment, replace(experiment.backend, compile=way))
        error = max(((scores_there - scores).abs().max() / scores.std()).item(), abs(loss_there / loss - 1))
        trained = ((later_there - later).abs().max() / later.std()).item()
    numbers = {"relative_error": error, "after_two_steps": trained,
               "not_recorded": float(counters["inductor"]["cudagraph_skips"])}
    if not error <= most:
        raise Deviation(f"losses or scores are off by {error:.1e}, more than {most:g}", **numbers)
    if device.type == "cuda" and numbers["not_recorded"]:
        raise Deviation(f"{numbers['not_recorded']:.0f} graphs were not recorded; PyTorch's warnings say why",
                        **numbers)
    how = "recorded" if device.type == "cuda" else "traced; without CUDA nothing is recorded"
    text = f"{how}; losses and scores " + (f"off by {error:.1e}" if error else "equal to the bit")
    return text + (f", by {trained:.1e} after two steps" if trained else ""), numbers


def _inductor(device: torch.device) -> Finding:
    """As `_compiled`, where there is a compiler: a machine without one has nothing to check."""
    try:
        resolve(Config.load({"device": device.type, "model": {"compile": "inductor", "weights": "none"}}), embeds=False)
    except InputError as missing:
        raise Unavailable(str(missing).partition(" Install one")[0]) from None
    return _compiled(device, "inductor", 0.1)


def _trained(experiment: Experiment, backend: Backend) -> tuple[Network, float, Tensor, Tensor]:
    """A network after two steps with dropout; its scores before, the first step's loss, its scores then, none cached.
    """
    model, device = experiment.new_model(0, 0), backend.device
    features = replace(experiment.train.features(model), backend=backend, cache=None)
    ids, grid = initial_patches(experiment, 0)[:8], experiment.grid
    labels = torch.randint(0, 2, (8, grid.patch_height, grid.patch_width), generator=outcome.draw(), dtype=torch.uint8)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], fused=True)
    batches = list(torch.arange(8).split(4))
    before = _scores(experiment, model.eval(), backend)
    with backend.repeatable():
        first, _ = (float(train_epoch(model.train(), features, ids.to(device), labels.to(device), [batch], ids,
                                      optimiser, backend)) for batch in batches)
    return model, first, before, _scores(experiment, model.eval(), backend)


def _scores(experiment: Experiment, model: Network, backend: Backend) -> Tensor:
    features = replace(experiment.train.features(model), backend=backend, cache=None)
    score = predict(model, features, {"score"}, "entropy", backend).score
    assert score is not None
    return score


def run_cpu() -> Finding:
    """A whole toy run on the CPU, twice: the same queries. By entropy, since UMAP has checks of its own."""
    first, second = (_toy_run("cpu", **{"query.strategy": "entropy", "query.rounds": 1, "train.epochs": 1})
                     for _ in range(2))
    if first != second:
        raise Deviation(f"the second run has {_overlap(first, second):.0%} of the first one's queries",
                        overlap=_overlap(first, second))
    return f"a run of {len(first) + 1} rounds, twice the same query", {"overlap": 1.0}


def run_cuda() -> Finding:
    """A toy network scored on the CPU and on CUDA: the most uncertain patches; then a whole run on each."""
    outcome.cuda()
    with _toy("cpu", **{"query.strategy": "entropy"}) as cpu, _toy("cuda", **{"query.strategy": "entropy"}) as cuda:
        torch.manual_seed(0)
        model = cpu.new_model(0, 0)
        ours, theirs = (acquire(experiment, _begun(experiment), model.to(experiment.backend.device), 0, 0,
                                StageClock(experiment.backend.device)).ids.tolist() for experiment in (cpu, cuda))
    same = _overlap([ours], [theirs])
    if same < 0.75:  # a rank may change at the margin: scores are float32 sums
        raise Deviation(f"one network on both devices: {same:.0%} of the patches asked for are the same", overlap=same)
    whole = _overlap(_toy_run("cpu"), _toy_run("cuda"))
    # Dropout draws differently on CUDA, so that the trained networks differ: told, not judged.
    return f"{same:.0%} of one network's query the same; {whole:.0%} over runs of their own", {
        "overlap": same, "overlap_of_runs": whole}


def transfers() -> Finding:
    """A query reads the device once; on CUDA, PyTorch's own count of waits and the memory are told as well."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with _toy(device.type, **{"query.strategy": "entropy"}) as experiment:
        model, pool, clock = experiment.new_model(0, 0), _begun(experiment), StageClock(device)
        acquire(experiment, pool, model, 0, 0, clock)  # compiles what is compiled at first use
        with Transfers() as counted:
            acquire(experiment, pool, model, 0, 0, clock)
    numbers = {"reads": float(sum(counted.reads.values())), "sends": float(sum(counted.sends.values())),
               "waits": float(counted.waits),
               **{f"peak_{key}_bytes": float(value) for key, value in peak_bytes(device).items()}}
    if counted.reads != {"acquire.py: tolist": 1}:
        places = ", ".join(f"{place} x{count}" for place, count in sorted(counted.reads.items()))
        raise Deviation(f"a query reads the device at: {places}; once was expected", **numbers)
    memory = ", ".join(f"{value / 1e9:.2f} GB on the {key}" for key, value in peak_bytes(device).items())
    return f"a query on {device.type} reads once; at most {memory}", numbers


CHECKS: dict[str, Callable[[], Finding]] = {
    "network cpu": network_cpu, "network cuda": network_cuda,
    "folded cpu": lambda: _folded(torch.device("cpu")), "folded cuda": lambda: _folded(outcome.cuda()),
    "graphs cpu": lambda: _compiled(torch.device("cpu"), "graphs", 0.0),
    "graphs cuda": lambda: _compiled(outcome.cuda(), "graphs", 1e-5),
    "inductor cuda": lambda: _inductor(outcome.cuda()),
    "run cpu": run_cpu, "run cuda": run_cuda, "transfers": transfers,
}


# --- what they share --------------------------------------------------------------------------------------------------


@contextmanager
def _toy(device: str, **changes: Any) -> Iterator[Experiment]:
    values = {name: dict(value) if isinstance(value, dict) else value for name, value in TOY.items()}
    with tempfile.TemporaryDirectory() as folder:
        values["data"]["store"] = folder
        for key, value in changes.items():
            section, name = key.split(".")
            values[section][name] = value
        yield prepare(Config.load({**values, "device": device}))


def _toy_run(device: str, **changes: Any) -> list[list[int]]:
    """The ids of every query of a run."""
    with _toy(device, **changes) as experiment, tempfile.TemporaryDirectory() as folder:
        queries: list[list[int]] = []
        masks = experiment.stores.train.masks
        assert masks is not None
        run_seed(experiment, 0, Path(folder), SimulatedOracle(masks, experiment.grid),
                 lambda record: queries.append(ids_of(record["next_query"]).tolist()))
    return queries[:-1]  # the last round asks for nothing


def _begun(experiment: Experiment) -> Pool:
    """The pool with the initial patches labelled as class 0."""
    pool, ids, grid = experiment.new_pool(), initial_patches(experiment, 0), experiment.grid
    pool.reveal(ids, torch.zeros(len(ids), grid.patch_height, grid.patch_width, dtype=torch.uint8))
    return pool


def _overlap(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """Share of the ids, round by round, that both have."""
    same = sum(len(set(a) & set(b)) for a, b in zip(ours, theirs, strict=True))
    return same / max(1, sum(map(len, ours)))
