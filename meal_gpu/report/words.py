"""What was run, in sentences."""

from collections.abc import Sequence
from pathlib import Path

from ..config import TrainConfig
from .runs import Run

DATA_SETS = {"camvid": "CamVid", "cityscapes": "Cityscapes", "demo": "demo scenes"}
SCORES = {"entropy": "highest entropy", "least_confidence": "least confidence", "margin": "smallest margin",
          "ratio": "closest second class"}
MOST_NAMES = 6
"""Of strategies in a heading."""


def data_set(run: Run) -> str:
    """The name of the data set for people; a folder is called by its directory."""
    name, root = run.config.data.dataset, run.config.data.root
    return root.name if name == "folder" and root else DATA_SETS.get(name, name)


def heading(runs: Sequence[Run]) -> str:
    """``Random, Entropy and MEAL on CamVid``; of more than fill a line, how many."""
    titles = dict.fromkeys(run.title for run in runs)
    what = f"{len(titles)} strategies" if len(titles) > MOST_NAMES else _list(list(titles))
    return f"{what} on {_list([data_set(run) for run in runs])}"


def _list(names: Sequence[str]) -> str:
    unique = list(dict.fromkeys(names))
    return unique[0] if len(unique) == 1 else f"{', '.join(unique[:-1])} and {unique[-1]}"


def setting(run: Run) -> str:
    """Data, budget and training, without the strategy: runs with the same sentence may be compared."""
    data, model, train, query = run.config.data, run.config.model, run.config.train, run.config.query
    grid = data.tiling()
    pool = (f"{run.dataset.n_images:,} images of {data.image_size[0]} × {data.image_size[1]} pixels, cut into "
            f"{grid.rows} × {grid.cols} patches of {grid.patch_height} × {grid.patch_width}: {run.dataset.n_patches:,} "
            "patches.")
    if run.supervised:
        budget = "All of them are labelled."
        training = f"trained for {_epochs(train.final_epochs)}"
    else:
        last = min(run.first + query.rounds * query.n_query, run.dataset.n_patches)
        share = f"{last / run.dataset.n_patches:.1%}"
        if query.rounds:
            each = f"each of {query.rounds} rounds" if query.rounds > 1 else "one round"
            budget = f"{_begun(run)}; {each} asks for {query.n_query} more, up to {last:,} ({share})."
            training = (f"trained from scratch for {_epochs(train.epochs)} in each round and {train.final_epochs} in "
                        "the last")
        else:
            budget = f"{_begun(run)}, {share} of all; nothing more is asked for."
            training = f"trained from scratch for {_epochs(train.final_epochs)}"
    training += recipe(train)
    frozen = "frozen" if model.freeze_backbone else "finetuned"
    sees = "the whole image around a patch" if data.context == "image" else "a patch alone"
    checked = (f" and evaluated on {run.dataset.n_val_images:,} images" if run.dataset.n_val_images
               else "; there are no validation images")
    network = f"A DeepLabV3+ that sees {sees}, with a {frozen} {model.backbone} backbone,"
    if model.factory is not None:
        network = f"The network {model.factory} (features {frozen}), which sees {sees},"
    if run.config.train.factory is not None:
        training = f"trained by {run.config.train.factory}"
    return f"{pool} {budget} {network} is {training}{checked}."


def _epochs(n: int) -> str:
    return f"{n} epoch{'s' * (n > 1)}"


def _begun(run: Run) -> str:
    """What was labelled before the first training."""
    query, given = run.config.query, run.dataset.n_given
    if given:
        return f"{run.first} patches of {given} image{'s' * (given > 1)} had labels before the run began"
    if query.labels_of is not None:
        name = Path(query.labels_of).name
        return f"{run.first} patches, which the run {name} had labelled, are labelled at the start"
    if query.start != "images":
        return f"{run.first} patches, chosen by {query.start}, are labelled at the start"
    n = query.n_initial_images
    what = f"{n} random images" if n > 1 else "one random image"
    return f"{what} ({run.first} patches) {'are' if n > 1 else 'is'} labelled at the start"


def recipe(train: TrainConfig) -> str:
    """What a training has that the paper's has not, to follow a sentence; nothing, where it has none of it."""
    parts = [f"at least {train.min_steps:,} steps"] if train.min_steps else []
    parts += [f"AdamW (weight decay {train.weight_decay:g})"] if train.optimizer == "adamw" else []
    parts += [f"a {train.schedule} schedule"] if train.schedule != "step" else []
    parts += [f"a moving mean of the weights ({train.ema:g})"] if train.ema else []
    if train.pseudo_labels:
        parts.append(f"pseudo-labels on {train.pseudo_labels} more patches beside each (from a probability of "
                     f"{train.pseudo_threshold:g})")
    if train.consistency:
        parts.append(f"consistency with the images in a mirror, also on an unlabelled patch beside each "
                     f"({train.consistency:g})")
    parts += ["flips"] if train.flip else []
    parts += [f"zooms up to {train.scale:g}"] if train.scale > 1 else []
    parts += [f"other colours ({train.colour:g})"] if train.colour else []
    parts += [f"ClassMix on {train.classmix:.0%}"] if train.classmix else []
    return f" with {_list(parts)}" if parts else ""


def choosing(run: Run) -> str:
    """How the strategy chooses."""
    query = run.config.query
    if run.supervised:
        return "The baseline: every patch is labelled, nothing is chosen."
    highest = SCORES[query.score]
    if query.strategy == "random":
        return "Patches are drawn at random."
    if query.strategy == "entropy":
        return f"Each round asks for the patches of {highest} under the model of the round before."
    if query.strategy in ("meal", "meal_ft"):
        method = "k-means++ seeding" if query.selector == "seeding" else "k-means clustering"
        where = "of the whole pool" if query.strategy == "meal" else "fitted to these candidates"
        return (f"Each round takes the {query.n_informative} patches of {highest} and asks for those that {method} "
                f"picks in a UMAP embedding {where}.")
    chosen = f"Patches are chosen by the strategy '{query.strategy}'"
    if query.strategy.startswith("ensemble"):
        return (f"{chosen}, from {query.members} networks that are trained in each round; results are those of the "
                "first.")
    return f"{chosen}."
