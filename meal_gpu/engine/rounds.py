"""Algorithm 1: rounds of train, evaluate, score, select, and the oracle between them.

A round is: reveal the labels that were asked for, train on all labels, evaluate, choose what to ask for next. It ends
with its line in ``rounds.jsonl``. That line holds the next query, so that going on, after a kill or when people have
labelled, is reading the lines and revealing what they say.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..records import Record, append_round, drop_unfinished_line, read_rounds, rewrite_rounds
from ..stages.pool import Pool
from ..timing import StageClock
from . import outputs, stop_set
from .acquire import Query, acquire
from .beginning import begin, bought_before
from .experiment import Experiment
from .learning import learn, learn_members, show
from .oracle import Oracle
from .outputs import ids_of
from .replacing import Replacing

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
    asked: list[Record] = []
    if not records:
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
        withhold(pool, record.get("skipped", []))
        asked = record["next_query"]
        observe(record)
    if changed:
        rewrite_rounds(directory, records)
    watched = stop_set.drawn_before(records, len(pool.names))
    first = records[0]["queried"] if records else []

    for k in range(len(records), rounds + 1):
        clock = StageClock(experiment.backend.device)
        asked, skipped = oracle.ask(k, asked, Replacing(experiment, pool, seed, k, directory))
        labels = oracle.label(k, ids_of(asked))
        outputs.check_classes(labels, len(experiment.class_names), asked)
        pool.reveal(ids_of(asked), labels)
        withhold(pool, skipped)
        outputs.keep_truth(ids_of(asked), labels, k, directory)
        model, history = learn(experiment, pool, seed, k, clock)
        next_query: list[Record] = []
        looked: Record = {}
        if k < rounds:
            chosen = acquire(experiment, pool, model, seed, k, clock, learn_members(experiment, pool, seed, k, clock))
            next_query, looked = outputs.describe(chosen, pool.grid, samples), chosen.looked
            with clock.stage("show"):
                show(experiment, model, chosen, k, directory)
        if rounds:  # one round alone is compared with nothing
            with clock.stage("stop set"):
                first = first or asked
                watched = watched or stop_set.draw(experiment, seed, first)
                if watched:
                    looked["stop_set"] = stop_set.keep(experiment, model, watched, k, directory)
        outputs.keep_model(model, k, directory)
        record = outputs.line(k, pool, history, experiment.class_names, asked, labels, next_query, clock) | looked
        if next_query and experiment.embeddings.near is not None:
            record["near_duplicates"] = experiment.embeddings.near.as_record()
        if skipped:
            record["skipped"] = skipped
        append_round(directory, record)
        observe(record)
        asked = next_query


def withhold(pool: Pool, skipped: list[int]) -> None:
    if skipped:
        pool.withhold(torch.tensor(skipped))


def initial_patches(experiment: Experiment, seed: int) -> Tensor:
    """D_L at the start, int64: what was labelled before, where anything was; else all patches of a few random images
    (0: of all images), or what ``query.start`` or ``query.labels_of`` says."""
    query = experiment.config.query
    if query.labels_of is not None:
        return bought_before(experiment, seed)
    if query.start == "images" or query.n_initial_images == 0 or experiment.askable.given is not None:
        return experiment.askable.initial(query, seed)
    return begin(experiment, seed)
