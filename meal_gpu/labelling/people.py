"""People as an oracle: a folder of patches goes out per round, labels come back, by ``masks`` or by ``labels add``."""

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.classes import VOID
from ..data.listing import Sample
from ..data.rules import Rules
from ..data.tiles import find
from ..errors import InputError, LabelsMissingError
from ..files import own_directory
from ..grid import Grid
from ..journal import UNLABELLED, latest, read_journal
from ..records import More, Record, read_rounds, run_name
from . import dropped
from .classfile import check_table
from .outgoing import lay_out, write_folder
from .places import place
from .predictions import of_round
from .query import FOLDER, Item
from .shares import Shares
from .standing import Rule, Standing, majority
from .taking import Choices, exclusive, take

_log = logging.getLogger("meal_gpu")


class PeopleOracle:
    """A folder per round: ``query.json`` and what tools import go out, labels come in.

    ``to-label/round-03/`` is answered by files in its ``masks``, named as the query's images are, or by ``meal-gpu
    labels add``. What people skip is replaced: others are asked for in ``to-label/round-03-more-1/``.
    """

    def __init__(self, directory: Path, samples: Sequence[Sample], grid: Grid, rules: Rules,
                 annotators: Rule = "latest") -> None:
        self.directory, self.samples, self.grid, self.rules, self.rule = directory, samples, grid, rules, annotators
        self._shares = Shares(rules)

    def ask(self, round_: int, patches: list[Record], more: More) -> tuple[list[Record], list[int]]:
        """The patches that a round reveals, of those that it asks for and of others in place of those that are
        skipped; and what was skipped. The query is written where it is not there yet."""
        standing = self._take_dropped(self._asked(round_, patches, patches))
        asked = [item for query in standing.queries.values() for item in query.items]
        skipped = [item for item in asked if standing.skipped(item, self.rule)]
        wanted = len(patches) - (len(asked) - len(skipped))
        if wanted > 0:
            new = more(wanted, [item.patch for item in asked], [item.patch for item in skipped])
            if new:
                told = set(standing.replaced)
                self._write(round_, new, standing, [item.id for item in skipped if item.id not in told])
                standing = Standing.read(self.directory, round_)
        kept = [item for query in standing.queries.values() for item in query.items
                if not standing.skipped(item, self.rule)]
        if not kept:
            raise InputError(f"All patches that round {round_} asked for were skipped, and there are no others: there "
                             "is nothing to go on with. Label some of them, or start a run with more images.")
        by_id = {patch["id"]: patch for patch in patches}
        revealed = [by_id.get(item.patch) or self._record(item) for item in kept]
        return revealed, [item.patch for item in skipped]

    def label(self, round_: int, ids: Tensor) -> Tensor:
        """As `engine.oracle.Oracle.label`, of what `ask` gave, or of a round that is finished."""
        wanted = [{"id": patch, **self._find(patch)} for patch in ids.tolist()]
        standing = self._take_dropped(self._asked(round_, wanted, None))
        items = {item.patch: (folder, item) for folder, query in standing.queries.items() for item in query.items}
        kept = [items[patch] for patch in ids.tolist()]
        missing = [(folder, item) for folder, item in kept if not standing.answered(item)]
        if missing:
            raise self._waiting(standing, missing, len(kept))
        at_once = np.stack([self._labels(standing, item) for _, item in kept])
        if (at_once == UNLABELLED).all() or not len(at_once):
            raise InputError(f"Nobody has labelled a pixel of round {round_}: all that came is unlabelled. Label at "
                             "least some, or skip what cannot be labelled.")
        self._shares.tell(round_, at_once, next(iter(standing.queries)))
        return torch.from_numpy(np.where(at_once == UNLABELLED, VOID, at_once).astype(np.uint8))

    # --- the folders of a round ---------------------------------------------------------------------------------------

    def _asked(self, round_: int, patches: list[Record], first: list[Record] | None) -> Standing:
        """The round's queries; written where there are none. Raises `InputError` where they ask for other patches.

        ``first`` are all patches that the round asked for to begin with; None where only those are known that count.
        """
        standing = Standing.read(self.directory, round_)
        main = self.directory / FOLDER / f"round-{round_:02d}"
        if main not in standing.queries:
            self._write(round_, patches, standing, [])
            return Standing.read(self.directory, round_)
        there = {item.patch: item for query in standing.queries.values() for item in query.items}
        wanted = {patch["id"] for patch in patches}
        same = all(patch["id"] in there and self._same(there[patch["id"]], patch) for patch in patches)
        if first is not None:
            same = same and {item.patch for item in standing.queries[main].items} == wanted
        else:
            same = same and all(patch in wanted or standing.skipped(item, self.rule) for patch, item in there.items())
        if not same:
            raise InputError(f"{main / 'query.json'} asks for other patches than round {round_} of this run: "
                             "another run wrote it, or the images of the data set have changed since. Restore "
                             "those images, or move the folder away to be asked again.")
        return standing

    def _write(self, round_: int, patches: list[Record], standing: Standing, replaces: list[str]) -> None:
        number = sum("-more-" in folder.name for folder in standing.queries) + 1
        first = 1 + sum(len(query.items) for query in standing.queries.values())
        name = f"round-{round_:02d}" if first == 1 else f"round-{round_:02d}-more-{number}"
        scores = self._scores() | {patch["id"]: patch.get("score") for patch in patches if patch.get("score")}
        described = [{**patch, "score": scores.get(patch["id"])} for patch in patches]
        run_directory = self.directory.parent
        query, places, starts = lay_out(
            name, round_, run_name(run_directory), described, file_names([self._find(p["id"]) for p in patches]),
            self.samples, self.grid, self.rules, of_round(self.directory, round_), first, replaces)
        write_folder(self.directory / FOLDER / name, query, places, starts, self.rules, run_directory)

    def _scores(self) -> dict[int, float]:
        records = read_rounds(self.directory)
        return {patch["id"]: patch["score"] for patch in (records[-1]["next_query"] if records else ())
                if isinstance(patch.get("score"), float)}

    def _same(self, item: Item, patch: Mapping[str, Any]) -> bool:
        there = self._find(item.patch)
        return (item.image == there["image"] == patch["image"] and list(item.box) == list(there["box"]))

    def _find(self, patch: int) -> Record:
        return find(patch, self.grid, self.samples)

    def _record(self, item: Item) -> Record:
        """A patch as a line of ``rounds.jsonl`` describes it."""
        return {"id": item.patch, **self._find(item.patch), "score": item.score}

    # --- what came back -----------------------------------------------------------------------------------------------

    def _take_dropped(self, standing: Standing) -> Standing:
        """Take new masks of the ``masks`` folders. Where there are none, nothing is written."""
        for folder in standing.queries:
            own_directory(folder / dropped.FOLDER)
            check_table(folder, self.rules)
        if not any(dropped.read(standing, folder, query, self.rules) for folder, query in standing.queries.items()):
            return standing
        trained = len(read_rounds(self.directory))
        samples = {sample.name: sample for sample in self.samples}
        with exclusive(self.directory):
            standing = Standing(self.directory, standing.queries, read_journal(self.directory))
            for folder, query in standing.queries.items():
                for answers, source, digest in dropped.read(standing, folder, query, self.rules):
                    news = take(standing, answers, samples, self.rules, trained, source, digest, Choices(void="keep"))
                    standing = Standing(self.directory, standing.queries, [*standing.taken, *news.taken])
                    if answers.found[0].all_void:
                        _log.warning("%s is void all over. If the patch cannot be labelled, say so, and another is "
                                     "asked for: meal-gpu labels skip %s %s", source, self.directory.parent,
                                     answers.found[0].item.id)
        return standing

    def _labels(self, standing: Standing, item: Item) -> np.ndarray:
        """uint8 ``[patch_height, patch_width]``: what counts, with what is unlabelled."""
        lines = [line for line in standing.lines[item.id].values() if line.status != "skipped"]
        if self.rule == "latest" or len(lines) == 1:
            return self._fitted(standing.labels(latest(lines), item), item)
        return majority([self._fitted(standing.labels(line, item), item) for line in lines])

    def _fitted(self, labels: np.ndarray, item: Item) -> np.ndarray:
        """Labels at the original size as those of the patch, at the pixels at which masks of a data set are sampled."""
        if labels.shape != item.shape or item.original is None:
            return labels
        image, cell = self.grid.split(item.patch)
        at = place(self.samples[image], cell, self.grid, self.rules)
        if at.box != item.original.box:
            raise InputError(f"{item.image} has changed since {item.id} was asked for: its patch lay at "
                             f"{list(item.original.box)} and lies at {list(at.box)}. Restore the image.")
        return at.to_patch(labels)

    def _waiting(self, standing: Standing, missing: list[tuple[Path, Item]], wanted: int) -> LabelsMissingError:
        folder = missing[0][0]
        beside = dropped.unexpected(folder, standing.queries[folder], [item for where, item in missing
                                                                       if where == folder])
        return LabelsMissingError(folder / dropped.FOLDER, len(missing), wanted, beside)


def file_names(patches: Sequence[Record]) -> list[str]:
    """One per patch: its image's name, row and column; with a digest of the name where it is too long or not alone."""
    plain = [Path(str(patch["image"])).as_posix().replace("/", "_") for patch in patches]
    ends = [f"_r{patch['row']}_c{patch['col']}.png" for patch in patches]
    images = {(stem, str(patch["image"])) for stem, patch in zip(plain, patches, strict=True)}
    twice = Counter(stem for stem, _ in images)
    files = []
    for stem, end, patch in zip(plain, ends, patches, strict=True):
        if len(stem.encode()) > 200 or twice[stem] > 1:
            digest = hashlib.blake2b(str(patch["image"]).encode(), digest_size=4).hexdigest()
            stem = f"{stem.encode()[:190].decode(errors='ignore')}_{digest}"
        files.append(stem + end)
    return files
