"""What a run begins with before there is a network, where that is no whole images: patches by a strategy that needs
none (``query.start``), or those that another run bought (``query.labels_of``)."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..config import QueryConfig
from ..earlier import bought
from ..errors import InputError
from ..randomness import derive, generator
from ..strategies.select import STRATEGIES, PoolView, Strategy, find_strategy

if TYPE_CHECKING:
    from .experiment import Experiment


def check_start(query: QueryConfig) -> Strategy | None:
    """What ``query.start`` names; None for whole images. Raises `InputError` where that needs a trained network."""
    if query.start == "images":
        return None
    strategy = find_strategy(query.start, "query.start")
    if not strategy.needs <= {"features"}:
        fit = [name for name, other in STRATEGIES.items() if other.needs <= {"features"}]
        missing = ", ".join(sorted(strategy.needs - {"features"}))
        raise InputError(f"query.start is '{query.start}', which looks at a trained network ({missing}), and at the "
                         f"start there is none. Allowed: images, {', '.join(fit)}.")
    return strategy


def begin(experiment: "Experiment", seed: int) -> Tensor:
    """As many patches as ``query.n_initial_images`` have, by the features of the pretrained backbone, int64.

    Of the images that the pool began with: more may have come since.
    """
    query, askable = experiment.config.query, experiment.askable
    strategy = check_start(query)
    assert strategy is not None
    cells, device = experiment.grid.cells, experiment.backend.device
    names, dataset = experiment.train.names, experiment.stores.dataset
    ids = torch.arange(len(names) * cells, device=device)
    free = ids < (dataset.first or len(names)) * cells
    if askable.blank is not None:
        free &= ~askable.blank.view(-1).to(device)
    n_free = int(free.sum())
    draw = generator(seed, 0, "start")
    view = PoolView(
        image=ids // cells, cell=ids % cells, free=free, n_free=n_free, labelled=torch.zeros_like(free), query=query,
        uniforms=lambda n: torch.rand(n, generator=draw, dtype=torch.float64).to(device),
        features=(lambda: experiment.embeddings.vectors) if "features" in strategy.needs else None,
        of=lambda name, of: experiment.embeddings.vectors if of is None else experiment.embeddings.vectors[of],
        seed=derive(seed, 0, "start") % 2**31, kmeans=experiment.backend.kmeans, rounds=query.rounds)
    chosen = strategy.choose(view, min(query.n_initial_images * cells, n_free)).cpu()
    askable.check_there([names[i // cells] for i in chosen.tolist()], f"seed {seed} begins with a patch of it")
    return chosen


def bought_before(experiment: "Experiment", seed: int) -> Tensor:
    """What the run ``query.labels_of`` had labelled under this seed, int64: by its images' names, which must be here.

    Raises `InputError` where one is not, or has no pixels in this run's form of it.
    """
    grid, place = experiment.grid, {name: i for i, name in enumerate(experiment.train.names)}
    patches = bought(experiment.config, seed)
    missing = [patch["image"] for patch in patches if patch["image"] not in place]
    if missing:
        raise InputError(f"query.labels_of names {experiment.config.query.labels_of}, whose seed {seed} had patches of "
                         f"{len(set(missing))} images labelled that this pool lacks, first {missing[0]}. Use its data.")
    chosen = torch.tensor([place[patch["image"]] * grid.cells + patch["row"] * grid.cols + patch["col"]
                           for patch in patches])
    askable = experiment.askable
    askable.check_there([patch["image"] for patch in patches], f"seed {seed} begins with a patch of it")
    empty = 0 if askable.blank is None else int(askable.blank.view(-1)[chosen].sum())
    if empty:
        raise InputError(f"query.labels_of names {experiment.config.query.labels_of}, and {empty} of its patches "
                         "lie beside their images here. Use its data.image_size.")
    return chosen
