"""Every backend of this machine against its reference: what `meal-gpu selfcheck` runs.

A check is a function that returns a finding and its numbers, and raises `Deviation` where a backend disagrees with its
reference, or `Unavailable` where there is nothing to check. The references are the kernels' float64 definitions,
umap-learn, the CPU, and the stored pixels; no file and no network is needed.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import embed, select
from .acquire import acquire
from .backend import resolve
from .config import Config, ModelConfig, UmapConfig
from .engine import ids_of, initial_patches, run_seed
from .experiment import Experiment, prepare
from .frames import HeldFrames, StreamedFrames
from .grid import Grid
from .kernels import SCORES, patch_entropy, reference
from .model import DeepLabV3Plus
from .oracle import SimulatedOracle
from .pool import Pool
from .timing import StageClock, peak_bytes
from .transfers import Transfers

Numbers = dict[str, float]
Finding = tuple[str, Numbers]
TINY: dict[str, Any] = {
    "seeds": [0],
    "data": {"dataset": "demo", "image_size": [64, 96], "grid": [2, 3], "n_images": 8, "n_val_images": 2},
    "model": {"backbone": "mobilenetv2_035", "weights": "none", "precision": "float32"},
    "train": {"epochs": 2, "final_epochs": 2, "batch_size": 4},
    "query": {"strategy": "meal_ft", "rounds": 2, "n_initial_images": 2, "n_query": 8, "n_informative": 16},
}
"""A run of seconds on eight drawn scenes."""


class Deviation(Exception):  # noqa: N818
    """A backend disagrees with its reference."""

    def __init__(self, text: str, **numbers: float) -> None:
        super().__init__(text)
        self.numbers = numbers


class Unavailable(Exception):  # noqa: N818
    """This machine has nothing to check; the text says what is missing."""


def _kernel(device: torch.device) -> Finding:
    """The kernel against the float64 definition: sums within 1e-5, and the same bits when repeated."""
    worst = 0.0
    for shape, size, grid in (((2, 19, 64, 128), (256, 512), (4, 4)), ((3, 11, 23, 30), (90, 120), (1, 1)),
                              ((1, 5, 48, 40), (48, 40), (3, 2))):
        for score in SCORES:
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                logits = (4 * torch.randn(shape, generator=_draw())).to(dtype)
                sums = patch_entropy(logits.to(device), size, grid, score=score)
                again = patch_entropy(logits.to(device), size, grid, score=score)
                expected, _ = reference.patch_entropy(logits, size, grid, score=score)
                error = ((sums.cpu().double() - expected).abs() / expected.abs()).max().item()
                worst = error if not error <= worst else worst  # NaN must not be overlooked
                if not worst <= 1e-5:
                    raise Deviation(f"{score} of {list(shape)} in {_name(dtype)} is off by {worst:.1e}, more than 1e-5",
                                    relative_error=worst)
                if not torch.equal(sums, again):
                    raise Deviation(f"{score} of {list(shape)} in {_name(dtype)} differs from call to call")
    return f"off by {worst:.1e} of float64 at most; repeats itself to the bit", {"relative_error": worst}


def umap_learn() -> Finding:
    """umap-learn keeps neighbours, and repeats itself."""
    vectors = _sheet(300)
    points = embed.fit(vectors, UmapConfig(), 3).points
    return _embedding(vectors, points, embed.fit(vectors, UmapConfig(), 3).points, 0.9)


def umap_cuml() -> Finding:
    """cuML's UMAP keeps neighbours as well as umap-learn's, repeats itself, and places vectors near their like."""
    vectors = _sheet(300).to(_cuda())
    fitted = embed.fit(vectors, UmapConfig(), 3, "cuml")
    if fitted.points.device != vectors.device:
        raise Deviation(f"cuML's points are on {fitted.points.device}")
    theirs = _trust(vectors, embed.fit(vectors.cpu(), UmapConfig(), 3).points)
    text, numbers = _embedding(vectors, fitted.points, embed.fit(vectors, UmapConfig(), 3, "cuml").points, theirs - .03)
    distance = torch.cdist(fitted.place(vectors[:50] + 1e-3), fitted.points)
    rank = (distance.argsort(1) == torch.arange(50, device=distance.device)[:, None]).nonzero()[:, 1].double().mean()
    if not rank < 30:
        raise Deviation(f"placed vectors are the {rank:.0f}th neighbours of their like, among 300", **numbers)
    return f"{text}; umap-learn's {theirs:.3f}", {**numbers, "umap_learn": theirs, "placed_rank": rank.item()}


def _embedding(vectors: Tensor, points: Tensor, again: Tensor, least: float) -> Finding:
    trust = _trust(vectors, points)
    if not trust >= least:
        raise Deviation(f"trustworthiness {trust:.3f}, less than {least:.3f}", trustworthiness=trust)
    if not torch.equal(points, again):
        raise Deviation("the same seed gave other points", trustworthiness=trust)
    return f"trustworthiness {trust:.3f}; the same points again", {"trustworthiness": trust}


def seeding() -> Finding:
    """k-means++ seeding: ids on the CPU, and on CUDA where there is one, against a plain definition."""
    devices = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]
    for seed in range(5):
        points = 5 * torch.randn(200, 2, generator=_draw(seed))
        uniforms = torch.rand(32, generator=_draw(seed + 100), dtype=torch.float64)
        expected = _plain_seeding(points.double().numpy(), uniforms.tolist())
        for device in devices:
            ids = select.seed_kmeans(points.to(device), 32, uniforms.to(device)).tolist()
            if ids != expected:
                same = len(set(ids) & set(expected))
                raise Deviation(f"{same} of 32 ids are those of the definition on {device.type}", same=same)
    return f"5 x 32 ids equal on {' and '.join(device.type for device in devices)}", {"devices": len(devices)}


def _kmeans(library: str, device: torch.device) -> Finding:
    """Clusters snapped to rows: one of each of eight far groups of 25 rows, and the same when repeated."""
    centres = torch.tensor([[x, y] for x in (0.0, 100, 200, 300) for y in (0.0, 100)])
    points = (centres.repeat(25, 1) + torch.randn(200, 2, generator=_draw())).to(device)
    ids, again = (select.snap_kmeans(points, 8, 1, library) for _ in range(2))
    groups = len(set((ids % 8).tolist()))
    if groups < 7 or len(set(ids.tolist())) < 8:  # Lloyd's method may miss one from an unlucky start
        raise Deviation(f"{groups} of 8 groups found", groups=groups)
    if not torch.equal(ids, again):
        raise Deviation("the same seed gave other rows")
    return f"{groups} of 8 groups found; the same rows again", {"groups": groups}


def network_cpu() -> Finding:
    """The network in this CPU's precision against float32, on the CPU."""
    dtype = resolve(Config.load({"device": "cpu"})).dtype
    if dtype == torch.float32:
        raise Unavailable("this processor has no native bfloat16: the network runs in float32")
    return _network(torch.device("cpu"), dtype, 0.1)


def network_cuda() -> Finding:
    """The network on CUDA, in float32 without TF32 and in its precision, against float32 on the CPU."""
    device = _cuda()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        text, numbers = _network(device, torch.float32, 1e-3)
    dtype = resolve(Config()).dtype
    other, more = _network(device, dtype, 0.1)
    return f"{text}; {other}", {**numbers, **{f"{_name(dtype)}_{key}": value for key, value in more.items()}}


def _network(device: torch.device, dtype: torch.dtype, most: float) -> Finding:
    """Logits of random images, through batch-norms that have seen some: error relative to their spread."""
    torch.manual_seed(0)
    model = DeepLabV3Plus(19, ModelConfig(backbone="mobilenetv2_100", weights="none"))
    images = torch.randint(0, 256, (2, 128, 160, 3), generator=_draw(), dtype=torch.uint8)
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
        raise Deviation(f"{_name(dtype)} logits are off by {error:.1e} of their spread, more than {most:g}; "
                        f"{agree:.1%} of the pixels have the same class", **numbers)
    return f"{_name(dtype)} off by {error:.1e}, {agree:.1%} of the pixels of the same class", numbers


def dali() -> Finding:
    """DALI's frames against the stored pixels, to the bit; on CUDA where there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = np.random.default_rng(0).integers(0, 256, (6, 62, 97, 3), np.uint8)  # a grid that leaves a remainder
    grid, compared = Grid(4, 4, 62, 97), 0
    for context in ("image", "patch"):
        held = HeldFrames.of(images, grid, context, torch.device("cpu"))
        streamed = StreamedFrames(grid, context, device, images)
        for (_, expected), (_, found) in zip(held.scan(16), streamed.scan(16), strict=True):
            compared += len(expected)
            if not torch.equal(found.cpu(), expected):
                wrong = (found.cpu() != expected).double().mean().item()
                raise Deviation(f"{wrong:.1%} of the values differ from the store ({context} frames, {device.type})",
                                different=wrong)
    return f"{compared} frames equal to the bit on {device.type}", {"frames": compared}


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
    _cuda()
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
               **{f"peak_{key}_bytes": float(value) for key, value in peak_bytes(device).items()}}
    if counted.reads != {"acquire.py: tolist": 1}:
        places = ", ".join(f"{place} x{count}" for place, count in sorted(counted.reads.items()))
        raise Deviation(f"a query reads the device at: {places}; once was expected", **numbers)
    memory = ", ".join(f"{value / 1e9:.2f} GB on the {key}" for key, value in peak_bytes(device).items())
    return f"a query on {device.type} reads once; at most {memory}", numbers


CHECKS: dict[str, Callable[[], Finding]] = {
    "kernel cpu": lambda: _kernel(torch.device("cpu")), "kernel cuda": lambda: _kernel(_cuda()),
    "umap-learn": umap_learn, "umap cuml": umap_cuml, "k-means++": seeding,
    "kmeans sklearn": lambda: _kmeans("sklearn", torch.device("cpu")),
    "kmeans cuml": lambda: _kmeans("cuml", _cuda()), "network cpu": network_cpu, "network cuda": network_cuda,
    "dali": dali, "run cpu": run_cpu, "run cuda": run_cuda, "transfers": transfers,
}


# --- what they share --------------------------------------------------------------------------------------------------


def _cuda() -> torch.device:
    if not torch.cuda.is_available():
        raise Unavailable("no CUDA device is usable" if torch.version.cuda else
                          f"this PyTorch, {torch.__version__}, was built without CUDA")
    return torch.device("cuda")


def _draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _sheet(n: int) -> Tensor:
    """A rolled-up sheet in 32 dimensions with a little noise, float32 ``[n, 32]``: neighbours that can be kept."""
    draw = np.random.default_rng(1)
    angle = 1.5 * np.pi * (1 + 2 * draw.random(n))
    sheet = np.stack([angle * np.cos(angle), 15 * draw.random(n), angle * np.sin(angle)], 1)
    turn = np.linalg.qr(draw.standard_normal((32, 32)))[0][:3]
    return torch.from_numpy((sheet @ turn + 0.02 * draw.standard_normal((n, 32))).astype(np.float32))


def _trust(vectors: Tensor, points: Tensor) -> float:
    from sklearn.manifold import trustworthiness

    return float(trustworthiness(vectors.cpu().numpy(), points.cpu().numpy(), n_neighbors=10))


def _plain_seeding(points: np.ndarray, uniforms: list[float]) -> list[int]:
    """Arthur & Vassilvitskii's definition: a row with probability ~ its squared distance to the nearest picked one."""
    picked: list[int] = []
    for u in uniforms:
        weight = np.ones(len(points))
        if picked:
            weight = ((points[:, None] - points[picked]) ** 2).sum(2).min(1)
        mass = weight.cumsum()
        picked.append(int(np.searchsorted(mass, u * mass[-1], side="right")))
    return picked


@contextmanager
def _toy(device: str, **changes: Any) -> Iterator[Experiment]:
    values = {name: dict(value) if isinstance(value, dict) else value for name, value in TINY.items()}
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
