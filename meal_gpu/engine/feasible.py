"""Whether a data set has what a run asks of it: enough patches, and labels or somebody who gives them."""

from collections.abc import Sequence

from ..config import Config
from ..data.datasets import Dataset
from ..earlier import first_patches
from ..errors import InputError


def check_feasible(config: Config, dataset: Dataset) -> None:
    """Raise `InputError` for a run that asks for more patches, or for other labels, than the data set has."""
    check_budget(config, len(dataset.train), dataset.given)
    _check_oracle(config, dataset)


def check_budget(config: Config, n_images: int, given: Sequence[str] | None = None) -> None:
    """Raise `InputError` where the pool has fewer patches than the run asks for.

    ``given``: the images whose labels it begins with, where it does.
    """
    query, cells = config.query, config.data.tiling().cells
    if given is not None:  # patches of these that hold no label may be asked for: `Askable.check_budget` counts them
        wanted = query.rounds * query.n_query
        if wanted > n_images * cells - len(given):
            raise InputError(
                f"The run asks for {query.rounds} rounds of {query.n_query}, {wanted} patches in all, and of the "
                f"{n_images} images x {cells} patches of the pool, {len(given)} images are labelled already. Lower "
                "query.rounds or query.n_query, or use a finer data.grid.")
        return
    if query.n_initial_images > n_images and query.labels_of is None:
        raise InputError(f"query.n_initial_images is {query.n_initial_images}, and the pool has {n_images} images.")
    initial = first_patches(config, n_images)
    wanted = initial + query.rounds * query.n_query
    if wanted > n_images * cells:
        raise InputError(
            f"The run asks for {initial} initial patches and {query.rounds} rounds of {query.n_query}, {wanted} in "
            f"all, but the pool has {n_images} images x {cells} = {n_images * cells} patches. Lower query.rounds, "
            "query.n_query or query.n_initial_images, or use a finer data.grid.")


def _check_oracle(config: Config, dataset: Dataset) -> None:
    people = config.query.oracle == "people"
    if people and len(config.seeds) > 1:
        raise InputError(f"query.oracle is 'people' and seeds are {config.seeds}: people label one run. Give one seed.")
    if not people and not dataset.labelled:
        raise InputError("The pool has no masks to simulate an oracle with. Give data.masks, or use query.oracle: "
                         "people.")
