"""The baselines of each stage: what does the same work, how far it is from ours, and how far it may be.

A `Rival` is compared with ours before either is timed: in float32, where both must agree to rounding, and as ours is
timed, where bfloat16 rounds more. Where it is slow, both get a part of the stage's items.
"""

import copy
import importlib.util
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from meal_gpu.data.datasets import Sample
from meal_gpu.kernels import patch_entropy
from meal_gpu.machine.limits import usable_cores
from meal_gpu.planning.roofline import Work
from meal_gpu.stages.evaluate import Score
from meal_gpu.stages.train import patch_loss
from meal_gpu.strategies.select import PoolView, represent

from ..result import WrongResultError
from ..subjects.ground import Ground, evaluate_part, maps_of, read_all, scores_of
from ..subjects.research import Research
from .entropy import full_resolution, upsample

FEW = 4
"""Images that the slow baselines get."""
ROUNDED = 0.25
"""Bound where ours rounds to bfloat16: CamVid scores of a network after 16 steps are 9 % (rms) off float32."""


@dataclass
class Rival:
    name: str
    run: Callable[[], object]
    ours: Callable[[], object]
    error: Callable[[], float]
    """How far apart they are in float32."""
    bound: float
    checked: str
    """What ``error`` measures."""
    items: int
    rounded: Callable[[], float] | None = None
    """The same in the precision that ours is timed in, where that may differ."""

    def check(self, stage: str) -> tuple[float, str]:
        """The error, and in words what was compared. Raises `WrongResultError` where it is too large."""
        try:
            error = self.error()
        except WrongResultError as wrong:
            raise WrongResultError(f"{stage}: {wrong}") from None
        if not error <= self.bound:
            raise WrongResultError(f"{stage}: the {self.checked} between ours and '{self.name}' is {error:.3g}, more "
                                   f"than {self.bound:.3g}")
        if self.rounded is None:
            return error, f"{self.checked}, at most {self.bound:.3g}"
        rounded = self.rounded()
        if not rounded <= ROUNDED:
            raise WrongResultError(f"{stage}: as it is timed, the {self.checked} between ours and '{self.name}' is "
                                   f"{rounded:.3g}, more than {ROUNDED:.3g}")
        return error, (f"{self.checked}, at most {self.bound:.3g} in float32; as timed {rounded:.2g}, at most "
                       f"{ROUNDED:.2g}")


def _few(ground: Ground) -> range:
    return range(min(FEW, ground.n))


def decode_each_time(ground: Ground) -> Rival:
    """Decode the files on all cores for every pass, as a loader with workers does."""
    research, images = ground.research(), _few(ground)
    part = ground.part(len(images)).frames

    def decode() -> None:
        with ThreadPoolExecutor(usable_cores()) as threads:
            deque(threads.map(research.image, images), maxlen=0)

    def error() -> float:
        ours = torch.cat([pixels.clone() for _, pixels in part.scan(part.count)])
        return float((ours - ground.alike(images).frames(images)).abs().max())

    return Rival("decode each time", decode, lambda: read_all(part), error, 1e-4, "greatest difference of a pixel",
                 len(images))


def plain_head(ground: Ground, maps: tuple[Tensor, Tensor]) -> Rival:
    """ASPP and decoder as written down, float32, on maps that are there already."""
    plain, model = ground.plain().eval(), ground.model
    few = max(1, min(FEW, len(maps[0])))
    low, high = (part[:few] for part in maps)
    low32, high32 = (part[:few].float().contiguous() for part in maps)

    @torch.no_grad()
    def theirs() -> Tensor:
        return plain.head(low32, high32)

    @torch.no_grad()
    def ours(exactly: bool = False) -> Tensor:
        model.eval()
        with (ground.exact if exactly else ground).experiment.backend.autocast():
            return model.logits(*((low32, high32) if exactly else (low, high)))

    return Rival("eager fp32", theirs, ours, lambda: _relative(ours(True), theirs()), 1e-3,
                 "rms difference of the logits over their rms", few, lambda: _relative(ours(), theirs()))


def entropy_chains(ground: Ground, logits: Tensor) -> list[Rival]:
    """The eager chain, and baal's heuristic where it is installed."""
    grid = ground.frames.grid
    size, cells = (grid.height, grid.width), (grid.rows, grid.cols)
    few = logits[: max(1, min(FEW, len(logits)))]

    def ours() -> Tensor:
        return patch_entropy(few, size, cells)

    def eager() -> Tensor:
        return full_resolution(upsample(few.float(), size), cells)

    found = [Rival("eager fp32", eager, ours, lambda: _worst(ours(), eager()), 1e-3,
                   "greatest relative difference of a patch's entropy", len(few))]
    if importlib.util.find_spec("baal") is not None:
        heuristic = partial(_baal_entropy, few, size, cells)
        found.append(Rival("baal Entropy", heuristic, ours, lambda: _worst(ours(), heuristic()), 1e-3,
                           "greatest relative difference of a patch's entropy", len(few)))
    return found


def _baal_entropy(logits: Tensor, size: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    """Its heuristics take host arrays ``[n, classes, ..., iterations]`` and reduce over all but the first axis."""
    from baal.active.heuristics import Entropy

    (rows, cols), (height, width) = cells, (size[0] // cells[0], size[1] // cells[1])
    full = upsample(logits.float(), size)[:, :, : rows * height, : cols * width]
    tiles = full.unflatten(3, (cols, width)).unflatten(2, (rows, height)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    sums = Entropy(reduction="sum").get_uncertainties(tiles.softmax(1).unsqueeze(-1).cpu().numpy())
    return torch.from_numpy(np.asarray(sums)).view(len(logits), rows, cols)


def research_scores(ground: Ground) -> Rival:
    """From files to scores, as research code does it in every round."""
    research, plain, images = ground.research(), ground.plain(), _few(ground)
    part = ground.part(len(images))

    def error(of: Ground) -> float:
        return _relative(scores_of(of, of.part(len(images))), ground.alike(images).scores(plain, images))

    return Rival("research code", lambda: research.scores(plain, images), lambda: scores_of(ground, part),
                 lambda: error(ground.exact), 1e-3, "rms difference of the scores over their rms", len(images),
                 lambda: error(ground))


def research_epoch(ground: Ground, n: int, batch: int) -> Rival:
    """Training on n patches, from files, on whole images at full resolution with all else masked."""
    research, plain = ground.research(), ground.plain()
    optimiser = torch.optim.Adam([p for p in plain.parameters() if p.requires_grad], lr=ground.config.train.lr)
    ids, pupil = ground.ids[:n].tolist(), copy.deepcopy(ground.model)

    def error(of: Ground) -> float:
        """Of one batch, in eval mode, where the engine's windows and whole images must give the same loss."""
        with torch.no_grad():
            alike = ground.alike(i // ground.experiment.grid.cells for i in ids[:batch])
            theirs = float(alike.loss(ground.plain().eval(), ids[:batch]))
        return abs(window_loss(of, ground.ids[:batch], ground.labels[:batch]) / theirs - 1)

    return Rival("research code", lambda: research.epoch(plain, optimiser, ids, batch),
                 lambda: ground.learn(pupil, n), lambda: error(ground.exact), 1e-3,
                 "relative difference of a batch's loss in eval mode", n, lambda: error(ground))


@torch.no_grad()
def window_loss(ground: Ground, ids: Tensor, labels: Tensor) -> float:
    """The engine's loss of some patches, in eval mode."""
    model, features = ground.model.eval(), ground.features
    cells, backend = ground.frames.grid.cells, ground.experiment.backend
    low, high = (torch.cat(part)[ids // cells] for part in zip(*maps_of(features, model), strict=True))
    return float(patch_loss(model, low, high, features.windows, ids % cells, labels, backend))


def research_evaluation(ground: Ground) -> Rival:
    research, plain, images = ground.research(val=True), ground.plain(), range(min(FEW, ground.n_val))
    features, masks = ground.val_part(len(images))

    def score(of: Research) -> Score:
        return Score.of(of.confusion(plain, images, len(ground.experiment.class_names)))

    def error(of: Ground) -> float:
        theirs = score(ground.alike(images, val=True))
        return abs((evaluate_part(of, *of.val_part(len(images))).miou or 0.0) - (theirs.miou or 0.0))

    return Rival("research code", lambda: score(research), lambda: evaluate_part(ground, features, masks),
                 lambda: error(ground.exact), 1e-3, "difference of mIoU", len(images), lambda: error(ground))


def numpy_top(view: PoolView) -> Rival:
    """A full sort on the host."""
    assert view.score is not None
    score, free, n = view.score, view.free, view.query.n_informative

    def theirs() -> np.ndarray:
        open_ = np.flatnonzero(free.cpu().numpy())
        order: np.ndarray = open_[np.argsort(-score.cpu().numpy()[open_], kind="stable")[:n]]
        return order

    def ours() -> Tensor:
        return view.most_uncertain(n)

    return Rival("numpy argsort", theirs, ours, lambda: float((ours().cpu().numpy() != theirs()).sum()), 0.0,
                 "ids that differ", view.n_free)


def transform(ground: Ground, candidates: Tensor) -> Rival:
    """umap-learn's own way to place vectors, which a look-up replaces."""
    vectors, phi = ground.vectors[candidates], ground.phi

    def error() -> float:
        ours, theirs = phi.points[candidates], phi.place(vectors)
        return float((ours - theirs).norm(dim=1).median() / (phi.points - phi.points.mean(0)).norm(dim=1).mean())

    return Rival("UMAP transform", lambda: phi.place(vectors), lambda: phi.points[candidates], error, 0.25,
                 "median distance over the embedding's mean radius", len(candidates))


def sklearn_seeding(points: Tensor, n: int, view: PoolView) -> Rival:
    """The same seeding in scikit-learn, one trial per centre as in the paper's reference."""
    from sklearn.cluster import kmeans_plusplus

    host = points.double().cpu().numpy()

    def potential(rows: Any) -> float:
        return float(np.square(host[:, None] - host[None, np.asarray(rows)]).sum(-1).min(1).sum())

    def theirs(state: int = 0) -> np.ndarray:
        rows: np.ndarray = kmeans_plusplus(host, n, random_state=state, n_local_trials=1)[1]
        return rows

    def error() -> float:
        """Both draw at random: ours must be distinct, and about as good as the median of its draws."""
        rows = represent(points, n, view).cpu().numpy()
        if len(set(rows.tolist())) != n:
            return float("inf")
        others = float(np.median([potential(theirs(state)) for state in range(9)]))
        return abs(float(np.log(max(potential(rows), 1e-30) / max(others, 1e-30))))

    return Rival("sklearn", theirs, lambda: represent(points, n, view), error, float(np.log(2)),
                 "logarithm of the ratio of the potentials", len(points))


def layout_work(reducer: Any, vectors: Tensor) -> Work:
    """Of a UMAP fit: exact distances where umap-learn takes them, and the moves of its layout."""
    n, d = vectors.shape
    distances = 2 * n * n * d if n < 4096 else 0
    if not hasattr(reducer, "negative_sample_rate") or reducer.graph_.shape[0] != n:  # cuML: its own kernels
        return Work(flops=distances)
    weights = reducer.graph_.data
    epochs = reducer.n_epochs or (500 if n <= 10_000 else 200)
    kept = weights[weights >= weights.max() / epochs]  # umap-learn drops what would never be drawn
    samples = np.floor(epochs * kept / kept.max()).sum()
    return Work(flops=distances, updates=int(samples * (1 + reducer.negative_sample_rate)))


def file_pixels(samples: Sequence[Sample]) -> int:
    """Pixels in the files of images and masks; a mask's count a third, having one channel."""
    total = 0.0
    for sample in samples:
        for path, weight in ((sample.image, 1.0), (sample.mask, 1 / 3)):
            if path is not None:
                with Image.open(path) as file:
                    total += weight * file.width * file.height
    return round(total)


def _relative(ours: Tensor, theirs: Tensor) -> float:
    if ours.numel() != theirs.numel():
        return float("inf")
    theirs = theirs.float().reshape(ours.shape)
    return float((ours.float() - theirs).square().mean().sqrt() / theirs.square().mean().sqrt())


def _worst(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    ours, theirs = ours.double().cpu(), theirs.double().cpu()
    return float(((ours - theirs).abs() / theirs).max())
