"""Algorithm 1: rounds of train, evaluate, score, select, and the oracle between them.

A round is: reveal the labels that were asked for, train on all labels, evaluate, choose what to ask for next. It ends
with its line in ``rounds.jsonl``. That line holds the next query, so that going on, after a kill or when people have
labelled, is reading the lines and revealing what they say.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from ..errors import InputError
from ..files import write_atomic
from ..network.model import DeepLabV3Plus
from ..randomness import generator
from ..records import Record, append_round, drop_unfinished_line, read_rounds, update_arrays
from ..stages.evaluate import Score, evaluate
from ..stages.pool import Pool
from ..stages.predict import patch_maps
from ..stages.train import History, train
from ..timing import StageClock, peak_bytes
from .acquire import Query, acquire
from .experiment import Experiment
from .oracle import Oracle

Observer = Callable[[Record], None]
"""Called with the record of every round, those of a resumed run included."""


def run_seed(experiment: Experiment, seed: int, directory: Path, oracle: Oracle, observe: Observer) -> None:
    """Run one seed of an experiment in ``directory``, or go on with it.

    Raises
    ------
    LabelsMissingError
        The oracle's labels have not come yet; the query stands in its folder. Call again when they have.
    InputError
        Training diverged, or the network's output is not finite.
    """
    rounds, pool = experiment.config.query.rounds, experiment.new_pool()
    drop_unfinished_line(directory)
    records = read_rounds(directory)
    asked = describe(experiment, Query(initial_patches(experiment, seed), None))
    for record in records:
        check_same_images(experiment, record)
        pool.reveal(ids_of(record["queried"]), oracle.label(record["round"], ids_of(record["queried"])))
        asked = record["next_query"]
        observe(record)

    for k in range(len(records), rounds + 1):
        clock = StageClock(experiment.backend.device)
        labels = oracle.label(k, ids_of(asked))
        pool.reveal(ids_of(asked), labels)
        if gallery_file(directory, k).exists():  # not on a machine that got only the small files
            update_arrays(gallery_file(directory, k), {"truth": labels.numpy()})
        model, history = learn(experiment, pool, seed, k, clock)
        next_query: list[Record] = []
        if k < rounds:
            chosen = acquire(experiment, pool, model, seed, k, clock)
            next_query = describe(experiment, chosen)
            with clock.stage("show"):
                show(experiment, model, chosen, k, directory)
        save_model(model, directory / "model.safetensors", k)
        record = {
            "round": k, "n_labelled": len(pool.labelled_ids), "fraction": pool.fraction,
            **results(experiment, history), "queried": asked, "next_query": next_query,
            "seconds": {stage: round(value, 3) for stage, value in clock.seconds.items()},
            "peak_bytes": peak_bytes(experiment.backend.device),
        }
        append_round(directory, record)
        observe(record)
        asked = next_query


def initial_patches(experiment: Experiment, seed: int) -> Tensor:
    """D_L at the start: all patches of a few random images (0: of all images), int64."""
    n_images, cells = len(experiment.stores.train.names), experiment.grid.cells
    images = torch.randperm(n_images, generator=generator(seed, 0, "initial"))
    images = images[: experiment.config.query.n_initial_images or n_images]
    return (images[:, None] * cells + torch.arange(cells)).flatten()


def learn(experiment: Experiment, pool: Pool, seed: int, k: int,
          clock: StageClock) -> tuple[DeepLabV3Plus, History[Score]]:
    """Train f_θ on D_L, from scratch; evaluate as it goes."""
    model = experiment.new_model(seed, k)
    features, val_features = experiment.features(model), experiment.val_features(model)

    def validate() -> Score | None:
        if val_features is None or experiment.val_masks is None:
            return None
        with clock.stage("evaluate"):
            return evaluate(model, val_features, experiment.val_masks, experiment.num_classes, experiment.backend,
                            experiment.progress)

    with clock.stage("train"):
        history = train(model, features, pool.labelled_ids, pool.labels, experiment.config.train,
                        experiment.epochs(k), experiment.backend, generator(seed, k, "order"), validate,
                        experiment.progress)
    clock.seconds["train"] -= clock.seconds.get("evaluate", 0.0)  # it ran inside
    return model, history


def results(experiment: Experiment, history: History[Score]) -> Record:
    """The numbers of a training, by class name."""

    def by_name(score: Score | None) -> dict[str, float | None] | None:
        return None if score is None else dict(zip(experiment.stores.dataset.class_names, score.iou, strict=True))

    best, last = history.best, history.last
    return {
        "miou": best.miou if best else None, "iou": by_name(best), "best_epoch": history.best_epoch,
        "last": {"miou": last.miou if last else None, "iou": by_name(last)},
        "history": history.epochs,
    }


def show(experiment: Experiment, model: DeepLabV3Plus, chosen: Query, k: int, directory: Path) -> None:
    """Keep what the report draws: the embedding, and what the network says about the patches that it asks for."""
    if chosen.embedded:
        arrays = {name: value.cpu().numpy() for name, value in chosen.embedded.items()}
        update_arrays(directory / "embedding.npz", {**arrays, f"round_{k}_chosen": chosen.ids.numpy()})
    maps = patch_maps(model, experiment.features(model), chosen.ids, experiment.backend)
    places = [(patch // experiment.grid.cells, experiment.grid.box(patch % experiment.grid.cells))
              for patch in chosen.ids.tolist()]
    update_arrays(gallery_file(directory, k + 1), {
        "ids": chosen.ids.numpy(),
        "image": np.stack([experiment.stores.train.images[i, y0:y1, x0:x1] for i, (y0, x0, y1, x1) in places]),
        "prediction": maps.prediction.cpu().numpy(), "entropy": maps.entropy.half().cpu().numpy(),
    })


def describe(experiment: Experiment, chosen: Query) -> list[Record]:
    """Patches as people and tools find them: id, image, row, col, box, score."""
    ids = chosen.ids.tolist()
    scores = [None] * len(ids) if chosen.scores is None else chosen.scores.tolist()
    names = experiment.stores.train.names
    return [{"id": patch, **experiment.grid.describe(patch, names), "score": score}
            for patch, score in zip(ids, scores, strict=True)]


def check_same_images(experiment: Experiment, record: Record) -> None:
    """Raise `InputError` where a record's patches are not in the images that it names: the data set has changed."""
    names = experiment.stores.train.names
    for patch in record["queried"] + record["next_query"]:
        image, _ = experiment.grid.split(patch["id"])
        now = names[image] if image < len(names) else "nothing"
        if now != patch["image"]:
            raise InputError(f"The data set is not the one of this run: round {record['round']} names a patch of image "
                             f"{patch['image']}, and {now} is there now. Restore the images to go on, or start a new "
                             "run.")


def ids_of(patches: list[Record]) -> Tensor:
    """int64 ``[n]``"""
    return torch.tensor([patch["id"] for patch in patches], dtype=torch.int64)


def gallery_file(directory: Path, k: int) -> Path:
    """What is drawn of the patches that round k reveals."""
    return directory / "gallery" / f"round-{k:02d}.npz"


def save_model(model: DeepLabV3Plus, file: Path, k: int) -> None:
    state = {name: value.contiguous().cpu() for name, value in model.state_dict().items()}
    write_atomic(file, to_safetensors(state, {"round": str(k)}))
