"""Train a round's network, and keep what the report draws of what it then asks for."""

import logging
from pathlib import Path

from ..config import Config
from ..network.interface import Network
from ..randomness import generator, of_member
from ..stages.evaluate import Score, evaluate
from ..stages.members import further
from ..stages.pool import Pool
from ..stages.predict import patch_maps
from ..stages.train import History, train
from ..timing import StageClock
from . import outputs
from .acquire import Query
from .experiment import Experiment
from .own_training import train_by

_log = logging.getLogger("meal_gpu")


def tell(config: Config) -> None:
    """Say what of a run's training takes longer than one would think."""
    seen_anew = config.train.changes_images or config.train.consistency > 0
    if seen_anew and config.train.factory is None and config.model.freeze_backbone:
        _log.info("Training changes images (train.flip, scale, colour, classmix or consistency): each patch of a batch "
                  "goes through the frozen backbone in every step. Scoring and evaluation use features that are "
                  "computed once.")


def learn(experiment: Experiment, pool: Pool, seed: int, k: int,
          clock: StageClock, member: int = 0) -> tuple[Network, History[Score]]:
    """Train f_θ on D_L, from scratch; evaluate as it goes. Other members of an ensemble draw otherwise, and are trained
    on the same."""
    model, val = experiment.new_model(seed, k, member), experiment.val
    features, val_features = experiment.train.features(model), val.features(model) if val else None

    def validate() -> Score | None:
        if val is None or val_features is None:
            return None
        with clock.stage("evaluate"):
            return evaluate(model, val_features, val.masks, len(experiment.class_names), experiment.backend,
                            experiment.progress)

    held = experiment.held_out(pool, seed, k)
    ids, labels = pool.labelled_ids, pool.labels
    if held is not None:
        ids, labels = ids[~held], labels[~held]
    evaluated = clock.seconds.get("evaluate", 0.0)
    with clock.stage("train"):
        if experiment.config.train.factory is not None:
            history = train_by(experiment, model, ids, labels, seed, k, validate, member)
        else:
            history = train(model, features, ids, labels, experiment.config.train,
                            experiment.epochs(k), experiment.backend,
                            generator(seed, k, of_member("order", member)), validate, experiment.progress,
                            experiment.askable.filled)
    clock.seconds["train"] -= clock.seconds.get("evaluate", 0.0) - evaluated  # it ran inside
    return model, history


def learn_members(experiment: Experiment, pool: Pool, seed: int, k: int, clock: StageClock) -> list[Network]:
    """The other members of round k's ensemble, beside the network of `learn`; none where the strategy asks for none.

    Nothing of them is kept on disk: whoever goes on trains them again, and equal trainings are equal.
    """
    others = further(experiment.strategy.needs, experiment.config.query.members)
    return [learn(experiment, pool, seed, k, clock, member)[0] for member in range(1, others + 1)]


def show(experiment: Experiment, model: Network, chosen: Query, k: int, directory: Path) -> None:
    """Keep what the report draws: the embedding, and what the network says about the patches that it asks for."""
    outputs.keep_embedding(chosen, k, directory)
    maps = patch_maps(model, experiment.train.features(model), chosen.ids, experiment.backend)
    outputs.keep_pictures(chosen, maps, experiment.stores.train.images, experiment.grid, k + 1, directory)
