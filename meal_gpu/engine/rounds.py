"""Algorithm 1: rounds of train, evaluate, score, select, and the oracle between them.

A round is: reveal the labels that were asked for, train on all labels, evaluate, choose what to ask for next. It ends
with its line in ``rounds.jsonl``. That line holds the next query, so that going on, after a kill or when people have
labelled, is reading the lines and revealing what they say.
"""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ..network.interface import Network
from ..randomness import generator
from ..records import Record, append_round, drop_unfinished_line, read_rounds, rewrite_rounds
from ..stages.evaluate import Score, evaluate
from ..stages.pool import Pool
from ..stages.predict import patch_maps
from ..stages.train import History, train
from ..timing import StageClock
from . import outputs
from .acquire import Query, acquire
from .experiment import Experiment
from .oracle import Oracle
from .outputs import ids_of
from .own_training import train_by

Observer = Callable[[Record], None]
"""Called with the record of every round, those of a resumed run included."""


def run_seed(experiment: Experiment, seed: int, directory: Path, oracle: Oracle, observe: Observer,
             accept: bool = False) -> None:
    """Run one seed of an experiment in ``directory``, or go on with it.

    Parameters
    ----------
    accept
        Take labels that have changed since a round was trained on them, instead of refusing to go on.

    Raises
    ------
    LabelsMissingError
        The oracle's labels have not come yet; the query stands in its folder. Call again when they have.
    InputError
        Training diverged, or the network's output is not finite. The rounds, the images or the labels are not those
        that the run has seen.
    """
    rounds, pool = experiment.config.query.rounds, experiment.new_pool()
    samples = experiment.stores.dataset.train
    drop_unfinished_line(directory)
    records = read_rounds(directory)
    asked = outputs.describe(Query(initial_patches(experiment, seed), None), pool.grid, samples)
    changed = False
    for record in records:
        outputs.check_same_images(record, pool.grid, pool.names, directory)
        for what in ("queried", "next_query"):
            experiment.askable.check_there(
                [patch["image"] for patch in record[what]],
                f"round {record['round'] + (what != 'queried')} of seed {seed} asks for a patch of it")
        labels = oracle.label(record["round"], ids_of(record["queried"]))
        changed |= outputs.check_same_labels(record, labels, len(experiment.class_names), directory, accept)
        outputs.check_new(record, pool, directory)
        pool.reveal(ids_of(record["queried"]), labels)
        asked = record["next_query"]
        observe(record)
    if changed:
        rewrite_rounds(directory, records)

    for k in range(len(records), rounds + 1):
        clock = StageClock(experiment.backend.device)
        labels = oracle.label(k, ids_of(asked))
        outputs.check_classes(labels, len(experiment.class_names), asked)
        pool.reveal(ids_of(asked), labels)
        outputs.keep_truth(labels, k, directory)
        model, history = learn(experiment, pool, seed, k, clock)
        next_query: list[Record] = []
        if k < rounds:
            chosen = acquire(experiment, pool, model, seed, k, clock)
            next_query = outputs.describe(chosen, pool.grid, samples)
            with clock.stage("show"):
                show(experiment, model, chosen, k, directory)
        outputs.keep_model(model, k, directory)
        record = outputs.line(k, pool, history, experiment.class_names, asked, labels, next_query, clock)
        if next_query and experiment.embeddings.near is not None:
            record["near_duplicates"] = experiment.embeddings.near.as_record()
        append_round(directory, record)
        observe(record)
        asked = next_query


def initial_patches(experiment: Experiment, seed: int) -> Tensor:
    """D_L at the start: all patches of a few random images (0: of all images), int64."""
    return experiment.askable.initial(seed)


def learn(experiment: Experiment, pool: Pool, seed: int, k: int,
          clock: StageClock) -> tuple[Network, History[Score]]:
    """Train f_θ on D_L, from scratch; evaluate as it goes."""
    model, val = experiment.new_model(seed, k), experiment.val
    features, val_features = experiment.train.features(model), val.features(model) if val else None

    def validate() -> Score | None:
        if val is None or val_features is None:
            return None
        with clock.stage("evaluate"):
            return evaluate(model, val_features, val.masks, len(experiment.class_names), experiment.backend,
                            experiment.progress)

    with clock.stage("train"):
        if experiment.config.train.factory is not None:
            history = train_by(experiment, model, pool, seed, k, validate)
        else:
            history = train(model, features, pool.labelled_ids, pool.labels, experiment.config.train,
                            experiment.epochs(k), experiment.backend, generator(seed, k, "order"), validate,
                            experiment.progress)
    clock.seconds["train"] -= clock.seconds.get("evaluate", 0.0)  # it ran inside
    return model, history


def show(experiment: Experiment, model: Network, chosen: Query, k: int, directory: Path) -> None:
    """Keep what the report draws: the embedding, and what the network says about the patches that it asks for."""
    outputs.keep_embedding(chosen, k, directory)
    maps = patch_maps(model, experiment.train.features(model), chosen.ids, experiment.backend)
    outputs.keep_pictures(chosen, maps, experiment.stores.train.images, experiment.grid, k + 1, directory)
