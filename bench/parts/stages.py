"""The stages of a round, each as a call that can be timed alone: its work, its baselines, its place in a round."""

import copy
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count

import torch
from torch import Tensor

from meal_gpu.data.frames import Frames, HeldFrames
from meal_gpu.data.ingest import ingest
from meal_gpu.engine.oracle import SimulatedOracle
from meal_gpu.kernels import patch_entropy
from meal_gpu.network.features import Features
from meal_gpu.planning.roofline import Work
from meal_gpu.randomness import derive
from meal_gpu.stages.embed import fit
from meal_gpu.strategies.select import represent

from ..baselines import rivals
from ..baselines.rivals import Rival
from ..subjects.ground import Ground, evaluate_part, labelled_patches, maps_of, read_all, scores_of
from ..timing.measure import enough_copies, rotating


@dataclass
class Case:
    """A stage that is to be timed."""

    name: str
    items: int
    unit: str
    run: Callable[[], object]
    work: Work
    in_whole: float = 0.0
    """How many times the whole round, as `round` measures it, does this."""
    per_round: float = 0.0
    """How many times a round of the configuration does it."""
    rivals: list[Rival] = field(default_factory=list)
    note: str = ""


BESIDE = {
    "ingest": "files are checked, masks decoded, checksums taken and the store written durably as well",
    "gather": "bytes become float32 and are normalised",
    "features": "most of a MobileNet's layers are depthwise or 1 × 1: they move more than they multiply",
    "vectors": "maps are copied to float32 and resampled by two small products",
    "forward": "batch-norm, interpolation and the copies between layers are not counted",
    "patch_entropy": "interpolation, maxima and sums beside the exponentials: kernels/NOTES.md",
    "top-k": "ten operations in a row, on keys of twice a score's size",
    "UMAP fit": "the neighbour search, the graph and the spectral start are not counted",
    "seeding": "picks follow each other, each over a few hundred points: calls cost more than what they do",
    "reveal": "some patches are cut out of a mapped file one by one",
    "training step": "batch-norm, dropout, the window matrices and the copy of the best weights are not counted",
    "evaluation": "logits are upsampled to pixels and counted into the matrix",
}
"""What a stage does beside the work that its roof is made of: why it may stay below half of it."""


@torch.no_grad()
def cases(ground: Ground) -> list[Case]:
    """The stages in the order of a round."""
    found = [*_data(ground), *_network(ground), *_select(ground)]
    return found + _learn(ground)


def _data(ground: Ground) -> list[Case]:
    experiment, n, network = ground.experiment, ground.n, ground.network
    dataset = experiment.stores.dataset
    total = ground.pool + (len(experiment.stores.val.names) if experiment.stores.val else 0)
    few = replace(dataset, train=dataset.train[:n], val=())
    numbers = count()

    def ingest_new() -> None:
        store = ground.folder / f"ingest-{next(numbers)}"
        ingest(ground.config.data.model_copy(update={"store": store}), dataset=few,
               gpu=experiment.backend.device.type == "cuda")
        shutil.rmtree(store)

    grid, pixels = experiment.grid, rivals.file_pixels(few.train)
    moved = n * grid.height * grid.width * 3 * (1 + 4)  # read as bytes, written as float32
    return [
        Case("ingest", n, "images", ingest_new, Work(pixels=pixels, bytes=n * grid.height * grid.width * 4),
             in_whole=total / n, note="once per data set; images and masks"),
        Case("gather", n, "images", rotating(read_all, _elsewhere(ground.frames)), Work(bytes=moved),
             rivals=[rivals.decode_each_time(ground)],
             note="within features where these are kept, else in every pass"),
        Case("features", n, "images", lambda: _compute_features(ground), network.features(ground.frames.count),
             in_whole=(total if ground.frozen else ground.pool) / n, per_round=0 if ground.frozen else ground.pool / n,
             note="once per data set: the backbone is frozen" if ground.frozen else "in every pass"),
    ]


def _elsewhere(frames: Frames) -> list[Frames]:
    """The same frames at several places in memory; those of a mapped file are where they are."""
    if not isinstance(frames, HeldFrames) or frames.mapped is not None:
        return [frames]
    copies = enough_copies(frames.images.nbytes, frames.images.device) - 1
    return [frames, *(replace(frames, images=frames.images.clone()) for _ in range(copies))]


@torch.no_grad()
def _compute_features(ground: Ground) -> None:
    if ground.features.cache is not None:
        Features.of(ground.frames, ground.model, ground.experiment.backend, True)
    else:
        with ground.experiment.backend.autocast():
            for _ in maps_of(ground.features, ground.model):
                pass


def _network(ground: Ground) -> list[Case]:
    experiment, n, model = ground.experiment, ground.n, ground.model
    frames, backend, grid = ground.frames.count, ground.experiment.backend, ground.frames.grid
    model.eval()
    with backend.autocast():
        maps = [(low.clone(), high.clone()) for low, high in maps_of(ground.features, model)]
        logits = [model.logits(*pair) for pair in maps]

    @torch.no_grad()
    def forward() -> None:
        model.eval()
        with backend.autocast():
            for pair in maps:
                model.logits(*pair)

    def entropy(batches: list[Tensor]) -> None:
        for batch in batches:
            patch_entropy(batch, (grid.height, grid.width), (grid.rows, grid.cols))

    def vectors(batches: list[Tensor]) -> None:
        for high in batches:
            ground.features.patch_vectors(high)

    def copies(batches: list[Tensor]) -> list[list[Tensor]]:
        some = enough_copies(sum(batch.nbytes for batch in batches), backend.device)
        return [batches, *([batch.clone() for batch in batches] for _ in range(some - 1))]

    per_pool, patches = ground.pool / n, n * experiment.grid.cells
    return [
        Case("vectors", patches, "patches", rotating(vectors, copies([high for _, high in maps])),
             ground.network.vectors(frames), in_whole=per_pool, per_round=0 if ground.frozen else per_pool,
             note="F of equation 2" + ("; once per data set" if ground.frozen else "")),
        Case("forward", n, "images", forward, ground.network.forward(frames), per_pool, per_pool,
             [rivals.plain_head(ground, maps[0])]),
        Case("patch_entropy", patches, "patches", rotating(entropy, copies(logits)), ground.network.entropy(frames),
             per_pool, per_pool, rivals.entropy_chains(ground, logits[0])),
        Case("scoring", patches, "patches", lambda: scores_of(ground, ground.features),
             ground.network.forward(frames) + ground.network.entropy(frames), rivals=[rivals.research_scores(ground)],
             note="forward and patch_entropy, as a round runs them; not added again"),
    ]


def _select(ground: Ground) -> list[Case]:
    experiment, config = ground.experiment, ground.config
    device, query = experiment.backend.device, config.query
    n_patches = ground.pool * experiment.grid.cells
    score = torch.rand(n_patches, generator=torch.Generator().manual_seed(0)).to(device)
    view, each_round = ground.view(score), query.strategy == "meal_ft"
    candidates = view.most_uncertain(query.n_informative)
    few, phi = ground.vectors[candidates], ground.phi
    points = phi.points[candidates]
    fitted = few if each_round else ground.vectors
    seed, n_query = derive(config.seeds[0], 0, "umap") % 2**32, query.n_query
    asked = torch.arange(n_query)
    masks = experiment.stores.train.masks
    assert masks is not None
    oracle, d = SimulatedOracle(masks, experiment.grid), points.shape[1]

    def reveal() -> None:
        pool = experiment.new_pool()
        pool.reveal(asked, oracle.label(1, asked))

    place: Callable[[], object] = (lambda: phi.points[candidates]) if ground.frozen else (lambda: phi.place(few))
    return [
        Case("top-k", n_patches, "patches", lambda: view.most_uncertain(query.n_informative),
             Work(bytes=n_patches * 5, dispatches=10), 1, 1, [rivals.numpy_top(view)]),
        Case("UMAP fit", len(fitted), "patches", lambda: fit(fitted, config.umap, seed, experiment.backend.umap),
             rivals.layout_work(phi.reducer, fitted), 1, float(each_round),
             note="in every round: meal_ft" if each_round else "once per data set and seed, then kept"),
        *([] if each_round else [Case(
            "UMAP place", len(candidates), "patches", place, Work(bytes=len(candidates) * d * 8, dispatches=1), 1, 1,
            [rivals.transform(ground, candidates)] if ground.frozen and phi.reducer is not None else [],
            note="a look-up: vectors of a frozen backbone are constants" if ground.frozen else "a transform")]),
        Case("seeding", len(points), "patches", lambda: represent(points, n_query, view),
             Work(bytes=n_query * len(points) * (d + 3) * 8, dispatches=n_query * 15), 1, 1,
             [rivals.sklearn_seeding(points, n_query, view)] if query.selector == "seeding" else []),
        Case("reveal", n_query, "patches", reveal, Work(bytes=2 * n_query * experiment.grid.patch_pixels), 1, 1),
    ]


def _learn(ground: Ground) -> list[Case]:
    experiment, config, n_ids = ground.experiment, ground.config, len(ground.ids)
    batch = min(config.train.batch_size, n_ids)
    initial, middle = labelled_patches(ground)
    pupil = copy.deepcopy(ground.model)  # the other stages' network must stay as it is
    steps = n_ids // batch * batch
    found = [Case("training step", steps, "patches", lambda: ground.learn(pupil, n_ids),
                  ground.network.training(n_ids, batch), initial / steps, config.train.epochs * middle / steps,
                  [rivals.research_epoch(ground, batch, batch)],
                  note=f"an epoch of {n_ids // batch} steps of {batch}; a round has {middle:,} labelled patches and "
                       f"{config.train.epochs} epochs, in the middle of a run")]
    if ground.val_features is not None and ground.val_masks is not None and experiment.stores.val is not None:
        features, masks = ground.val_features, ground.val_masks
        per_split = len(experiment.stores.val.names) / ground.n_val
        found.append(Case(
            "evaluation", ground.n_val, "images", lambda: evaluate_part(ground, features, masks),
            ground.network.evaluation(features.frames.count), per_split,
            per_split * math.ceil(config.train.epochs / config.train.eval_every), [rivals.research_evaluation(ground)]))
    return found
