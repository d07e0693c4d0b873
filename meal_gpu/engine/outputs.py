"""What a round leaves in its seed's directory: its line of ``rounds.jsonl``, the network, and what the report draws."""

import logging
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from ..data.classes import VOID
from ..data.listing import Sample
from ..data.store import compare
from ..data.tiles import find
from ..errors import InputError
from ..files import own_directory, read_arrays, write_atomic
from ..grid import Grid
from ..network.interface import Network
from ..records import ARRAYS_BYTES, GALLERY, ROUNDS, Record, accepting, update_arrays
from ..stages.evaluate import Score
from ..stages.pool import Pool
from ..stages.predict import PatchMaps
from ..stages.train import History
from ..timing import StageClock, peak_bytes
from .acquire import Query

_log = logging.getLogger("meal_gpu")


def line(k: int, pool: Pool, history: History[Score], class_names: Sequence[str], queried: list[Record],
         labels: Tensor, next_query: list[Record], clock: StageClock) -> Record:
    """The line of round k: what it revealed, what came of it, and what is asked for next."""
    return {
        "round": k, "n_labelled": len(pool.labelled_ids), "fraction": pool.fraction,
        **results(history, class_names), "queried": queried, "labels": sums_of(labels),
        "pixels": pixels_of(labels, class_names),
        "next_query": next_query,
        "seconds": {stage: round(value, 3) for stage, value in clock.seconds.items()},
        "peak_bytes": peak_bytes(clock.device),
    }


def results(history: History[Score], class_names: Sequence[str]) -> Record:
    """The numbers of a training, by class name."""

    def by_name(score: Score | None) -> dict[str, float | None] | None:
        return None if score is None else dict(zip(class_names, score.iou, strict=True))

    best, last = history.best, history.last
    return {
        "miou": best.miou if best else None, "iou": by_name(best), "best_epoch": history.best_epoch,
        "last": {"miou": last.miou if last else None, "iou": by_name(last)},
        "history": history.epochs,
    }


def describe(chosen: Query, grid: Grid, samples: Sequence[Sample]) -> list[Record]:
    """Patches as people and tools find them: id, image, row, col, box, score; of tiles also where in which file."""
    return chosen.records(lambda patch: find(patch, grid, samples))


def ids_of(patches: list[Record]) -> Tensor:
    """int64 ``[n]``"""
    return torch.tensor([patch["id"] for patch in patches], dtype=torch.int64)


def sums_of(labels: Tensor) -> list[int]:
    """CRC-32 of each patch's labels, uint8 ``[n, patch_height, patch_width]``."""
    return [zlib.crc32(patch.tobytes()) for patch in labels.cpu().numpy()]


def pixels_of(labels: Tensor, class_names: Sequence[str]) -> dict[str, int]:
    """How many pixels of each class a round has bought; void is none."""
    counts = torch.bincount(labels.flatten().long().cpu(), minlength=256)
    return dict(zip(class_names, counts.tolist(), strict=False))


def check_same_labels(record: Record, labels: Tensor, n_classes: int, directory: Path, accept: bool) -> bool:
    """Raise `InputError` where labels are not those that a round was trained on; with ``accept`` say so, and put them
    into the record. Returns whether they were others."""
    check_classes(labels, n_classes, record["queried"])
    then, now = record.get("labels"), sums_of(labels)
    if then is None or then == now:  # not kept by runs of before
        return False
    others = [patch for patch, old, new in zip(record["queried"], then, now, strict=False) if old != new]
    named = ", ".join(f"{patch['image']} row {patch['row']} column {patch['col']}" for patch in others[:5])
    told = f"{len(others) or 'some'} of the {len(now)} patches that round {record['round']} was trained on ({named})"
    if not accept:
        raise InputError(f"The labels of {told} have changed since. Restore the masks, start a new run, or go on with "
                         f"the labels as they are, beside results that were made with others: "
                         f"{accepting(directory.parent)}")
    _log.warning("The labels of %s have changed since. They are taken as they are; results of the rounds so far were "
                 "made with others.", told)
    record["labels"] = now
    return True


def check_classes(labels: Tensor, n_classes: int, patches: list[Record]) -> None:
    """Raise `InputError` for a label that is no class and not void."""
    wrong = (labels >= n_classes) & (labels != VOID)
    if bool(wrong.any()):
        patch = patches[int(wrong.flatten(1).any(1).nonzero()[0])]
        raise InputError(f"The mask of {patch['image']} holds the value {int(labels[wrong][0])} in row {patch['row']}, "
                         f"column {patch['col']}: classes are 0 to {n_classes - 1}, void is {VOID}. Correct the mask; "
                         "the store of decoded masks is made anew where its directory is removed.")


def check_new(record: Record, pool: Pool, directory: Path) -> None:
    """Raise `InputError` where a record reveals what is labelled already, or a patch twice."""
    ids = ids_of(record["queried"]).to(pool.device)
    if len(ids.unique()) != len(ids) or not bool(pool.free[ids].all()):
        raise InputError(f"{directory / ROUNDS}: round {record['round']} reveals patches that were labelled before. "
                         "Restore the file, or delete its lines from that round's on: --resume repeats them.")


def check_same_images(record: Record, grid: Grid, names: Sequence[str], directory: Path) -> None:
    """Raise `InputError` where a record's patches are not in the images that it names: the data set has changed."""
    for patch in record["queried"] + record["next_query"]:
        wrong = grid.check(patch)
        if wrong is not None:
            raise InputError(f"{directory / ROUNDS}: round {record['round']}: {wrong}. Restore the file, or delete its "
                             "lines from that round's on: --resume repeats them.")
        image, _ = grid.split(patch["id"])
        now = names[image] if 0 <= image < len(names) else "nothing"
        if now != patch["image"]:
            raise InputError(f"The data set is not the one of this run: round {record['round']} names a patch of image "
                             f"{patch['image']}, and {now} is there now. Restore the images to go on, or start a new "
                             "run.")


def keep_embedding(chosen: Query, k: int, directory: Path) -> None:
    """Where round k found its query in the plane of the pool; nothing where it did not embed."""
    if chosen.embedded:
        arrays = {name: value.cpu().numpy() for name, value in chosen.embedded.items()}
        update_arrays(directory / "embedding.npz", {**arrays, f"round_{k}_chosen": chosen.ids.numpy()})


def keep_pictures(chosen: Query, maps: PatchMaps, images: np.ndarray, grid: Grid, k: int, directory: Path) -> None:
    """Patches that round k will reveal, out of ``images`` uint8 ``[n, H, W, 3]``, and what the network says of them."""
    own_directory(directory / "gallery")
    update_arrays(gallery_file(directory, k), _pictures(chosen, maps, images, grid))


def add_pictures(chosen: Query, maps: PatchMaps, images: np.ndarray, grid: Grid, k: int, directory: Path) -> None:
    """The same of patches that round k asks for in place of others, beside those that are there."""
    held, new = _gallery(directory, k), _pictures(chosen, maps, images, grid)
    if held is not None and held.keys() >= new.keys():
        new = {name: np.concatenate([held[name], array]) for name, array in new.items()}
        update_arrays(gallery_file(directory, k), new)


def _pictures(chosen: Query, maps: PatchMaps, images: np.ndarray, grid: Grid) -> dict[str, np.ndarray]:
    for i in sorted({patch // grid.cells for patch in chosen.ids.tolist()}):
        compare(images, i, i + 1)
    places = [(patch // grid.cells, grid.box(patch % grid.cells)) for patch in chosen.ids.tolist()]
    return {
        "ids": chosen.ids.numpy(),
        "image": np.stack([images[i, y0:y1, x0:x1] for i, (y0, x0, y1, x1) in places]),
        "prediction": maps.prediction.cpu().numpy(), "entropy": maps.entropy.half().cpu().numpy(),
    }


def keep_truth(ids: Tensor, labels: Tensor, k: int, directory: Path) -> None:
    """The labels that round k revealed, of patches int64 ``[n]``, beside their pictures."""
    if not gallery_file(directory, k).exists():  # on a machine that got only the small files
        return
    held = _gallery(directory, k)
    if held is not None and not np.array_equal(held["ids"], ids.numpy()):  # some were skipped, and others asked for
        place = {patch: i for i, patch in enumerate(held["ids"].tolist())}
        if not all(patch in place for patch in ids.tolist()):
            return
        rows = [place[patch] for patch in ids.tolist()]
        held = {name: array[rows] for name, array in held.items()}
        update_arrays(gallery_file(directory, k), held)
    update_arrays(gallery_file(directory, k), {"truth": labels.numpy()})


def _gallery(directory: Path, k: int) -> dict[str, np.ndarray] | None:
    """What is drawn of a round; None where it is not there, or cannot be read."""
    try:
        return read_arrays(gallery_file(directory, k), ARRAYS_BYTES)
    except (FileNotFoundError, InputError):
        return None


def gallery_file(directory: Path, k: int) -> Path:
    """What is drawn of the patches that round k reveals."""
    return directory / GALLERY.format(k)


def keep_model(model: Network, k: int, directory: Path) -> None:
    """The network of round k, in place of the one before."""
    write_atomic(directory / "model.safetensors", to_safetensors(dict(model.written()), {"round": str(k)}))
