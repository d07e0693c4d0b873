"""``environment.json`` and ``pool.json``: what a run ran on and with, and what it went on with."""

import logging
import os
from pathlib import Path
from typing import Any

from ..config import Config
from ..data.order import Order
from ..errors import InputError, and_so_on
from ..machine.card import card
from ..network.factory import source
from ..records import ENVIRONMENT, read_environment, read_rounds, write_environment
from .experiment import Experiment
from .outputs import check_same_images

SPLITS_SUMS = {"threads": "threads", "cpu": "(processor)", "gpu": "(GPU)"}
"""What of ``environment.json`` decides in which order numbers are added. Equal there, equal runs are equal."""
FACTORIES = ("model.factory", "train.factory")
_log = logging.getLogger("meal_gpu")


def environment(experiment: Experiment) -> dict[str, Any]:
    """What the run ran on and with: machine, choices and their reasons, data set."""
    dataset, grid = experiment.stores.dataset, experiment.grid
    names = experiment.stores.train.names
    return {
        **card(),
        "device": experiment.backend.device.type,
        "device_reason": experiment.backend.device_reason,
        **_factories(experiment.config),
        "precision": experiment.backend.precision,
        "placement": experiment.placement.images,
        "placement_reason": experiment.placement.reason,
        "scoring": f"sharded, {len(experiment.shards.ranges)} parts" if experiment.shards else "local",
        "features_cached": bool(experiment.train.frozen and experiment.train.frozen.cache),
        "backends": {"umap": experiment.backend.umap, "kmeans": experiment.backend.kmeans,
                     "loader": experiment.backend.loader, "streaming": experiment.backend.stream},
        "dataset": {
            "name": dataset.name, "class_names": list(dataset.class_names), "palette": dataset.palette.tolist(),
            "n_images": len(names), "n_val_images": len(experiment.stores.val.names) if experiment.stores.val else 0,
            "patch": [grid.patch_height, grid.patch_width], "n_patches": len(names) * grid.cells,
            "n_given": len(dataset.given or ()),
        },
    }


def _factories(config: Config) -> dict[str, Any]:
    """Functions of somebody's that the run calls: where they stand, and the digests of these files."""
    names = {"model.factory": config.model.factory, "train.factory": config.train.factory}
    return {key: source(key, name, config.model.path) | ({"arguments": config.model.arguments} if key == "model.factory"
                                                         else {}) for key, name in names.items() if name is not None}


def note_machine(directory: Path, now: dict[str, Any]) -> None:
    """Keep the machine that a run was started on, and add the one it goes on with if that is another."""
    first = _held_environment(directory) or dict(now)
    last = first.get("resumed_on", [first])[-1]
    changed = [f"{last[key]} {what} before, {now[key]} {what} now" for key, what in SPLITS_SUMS.items()
               if key in last and key in now and last[key] != now[key]]
    for key in FACTORIES:
        if last.get(key, {}).get("sha256") != now.get(key, {}).get("sha256"):
            _log.warning("%s has changed since the run last went on: %s. The next rounds are made by what it is now.",
                         now.get(key, {}).get("file", "the module"), key)
    if changed:
        _log.warning("Going on with %s: sums are split in another way, so that the next rounds may differ in the last "
                     "bits, and in their queries, from those that the run would have had.", "; ".join(changed))
    if any(last.get(key) != value for key, value in now.items()):
        first.setdefault("resumed_on", []).append(now)
    write_environment(directory, first)


def _held_environment(directory: Path) -> dict[str, Any] | None:
    """What ``environment.json`` says; None where it says nothing, which stops no run."""
    if not os.path.lexists(directory / ENVIRONMENT):
        return None
    try:
        held = read_environment(directory)
        resumed = held.get("resumed_on", [{}])
        if isinstance(resumed, list) and resumed and all(isinstance(one, dict) for one in resumed):
            return held
        why = f"{directory / ENVIRONMENT} is not what a run writes."
    except InputError as error:
        why = str(error)
    _log.warning("%s What it said of the machine is left out: this machine takes its place.", why)
    return None


def order_of(experiment: Experiment) -> Order:
    """The pool's images, as the run has them."""
    stores = experiment.stores
    return Order.of(stores.dataset, [of_image for of_image, *_ in stores.train.checksums])


def note_pool(experiment: Experiment, directory: Path) -> None:
    """Keep the pool that a run goes on with in ``pool.json``; images whose pixels have changed since are said.

    They are decoded again under their names: no id moves, but what is seen does. Raises `InputError` where a run of
    before there were orders does not fit the images.
    """
    before, now = Order.read(directory), order_of(experiment)
    places = [directory / f"seed-{seed}" for seed in experiment.config.seeds]
    records = ((record, place) for place in places for record in read_rounds(place))  # read where they are looked at
    if before is None:
        for record, place in records:
            check_same_images(record, experiment.grid, experiment.train.names, place)
    elif names := before.others(now):
        asked = {patch["image"] for record, _ in records for patch in record["queried"] + record["next_query"]}
        labelled = [name for name in names if name in asked]
        fit = (f" Patches of {and_so_on(labelled)} were asked for: see whether their labels still fit." if labelled
               else "")
        _log.warning("%d of the pool's images have other pixels than when the run last went on: %s. Rounds so far were "
                     "made with those of before.%s", len(names), and_so_on(names), fit)
    now.write(directory)
