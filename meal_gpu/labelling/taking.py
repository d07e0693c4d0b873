"""Take answers: all of a file or none. What was taken is in the journal; the labels lie beside their query."""

from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ..data.classes import VOID
from ..data.listing import Sample
from ..data.rules import Rules
from ..errors import InputError, and_more
from ..journal import UNLABELLED, Pixels, Taken, write_journal
from ..locks import locked
from . import predictions
from .answers import Answer, Answers, Asked
from .outgoing import sha256_of
from .query import Query, class_rows, pixels_sha256
from .standing import LABELS, Standing


@dataclass(frozen=True)
class Choices:
    """What a user says of answers that can be meant in two ways."""

    void: str = "ask"
    """A mask that is void all over: ``ask`` refuses, ``skip`` takes it as "cannot be labelled", ``keep`` as it is."""
    untouched: bool = False
    """Take predictions that came back as they went out, in formats that do not say whether anybody looked at them."""


@dataclass
class News:
    """What came of a file."""

    tool: str
    taken: list[Taken] = field(default_factory=list)
    unchanged: int = 0
    notes: list[str] = field(default_factory=list)


def exclusive(seed_directory: Path) -> AbstractContextManager[None]:
    """Nobody else takes labels of this seed meanwhile."""
    return locked(seed_directory / ".labels.lock", f"is taking labels in {seed_directory}", wait_s=60)


def take(standing: Standing, answers: Answers, samples: Mapping[str, Sample], rules: Rules, trained: int,
         source: str, source_sha256: str, choices: Choices = Choices()) -> News:
    """Check answers against what was asked, and write them down. Hold `exclusive`, and have read ``standing`` in it.

    ``samples`` by their names; ``trained`` is how many rounds have been trained. Raises `InputError` where anything is
    not as it should be; then nothing is written.
    """
    news = News(answers.tool, notes=list(answers.notes))
    found = _wanted(standing, answers.found, trained, choices, news)
    for query in {id(answer.query): answer.query for answer in found}.values():
        _check_classes(query, rules, standing.folder(query))
    _check_images(found, samples)
    lines, files = list[Taken](), dict[Path, np.ndarray]()
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    for answer in found:
        line = _line(answer, standing, answers.tool, source, source_sha256, now)
        before = standing.lines.get(line.item, {}).get(line.annotator)
        if before is not None and _same(before, line):
            news.unchanged += 1
            continue
        if before is not None and line.updated and before.updated and line.updated < before.updated:
            news.notes.append(f"{line.item} is older than what was taken of it before ({before.updated}): it is left "
                              "as it is.")
            continue
        line = line.model_copy(update={"revision": 1 if before is None else before.revision + 1})
        lines.append(line)
        if answer.labels is not None:
            files[standing.seed_directory / line.labels] = answer.labels
    _say_trained(lines, trained, news)
    for path, labels in files.items():
        predictions.write(path.parent, path.name, labels)
    if lines:
        write_journal(standing.seed_directory, [*standing.taken, *lines])
    news.taken = lines
    return news


def _wanted(standing: Standing, found: list[Answer], trained: int, choices: Choices, news: News) -> list[Answer]:
    """Without those that are not to be taken, which are told."""
    kept, unseen, left, void = list[Answer](), 0, 0, list[str]()
    for answer in found:
        if answer.unseen and not choices.untouched:
            unseen += 1
            continue
        if answer.all_void and choices.void != "keep":
            void.append(answer.item.id)
            answer = Answer(answer.query, answer.item, None, answer.annotator, answer.lead_time, answer.annotation,
                            answer.updated)
        if answer.item.id in standing.replaced:
            left += answer.labels is not None
            continue
        if answer.labels is None and answer.query.round < trained:
            raise InputError(f"{answer.item.id} cannot be skipped any more: round {answer.query.round} was trained "
                             "with its labels. Label it as void, or leave it unlabelled.")
        kept.append(answer)
    if void and choices.void == "ask":
        raise InputError(f"{and_more(void, 4)} {'are' if len(void) > 1 else 'is'} void all over. If nobody can label "
                         "such a patch, give --void skip: it leaves the queue for good, and another is asked for. If "
                         "void is what it shows, give --void keep.")
    if unseen:
        news.notes.append(f"{unseen} items came back with the prediction as it went out, and {news.tool} does not say "
                          "whether anybody looked at them: they are not taken. Give --untouched if they are right.")
    if left:
        news.notes.append(f"{left} items were skipped before, and others were asked for in their place: they are not "
                          "taken.")
    outside = sum(answer.outside for answer in kept)
    if outside:
        news.notes.append(f"{outside:,} pixels were painted beside the patches: they are not taken.")
    conflicts = [answer.item.id for answer in kept if answer.conflicts]
    if conflicts:
        pixels = sum(answer.conflicts for answer in kept)
        news.notes.append(f"{pixels:,} pixels have two classes by one person and count as unlabelled, in "
                          f"{and_more(conflicts, 4)}. Correct them in the tool, or give --overlap later.")
    return kept


def _check_classes(query: Query, rules: Rules, folder: Path) -> None:
    if not query.run and not query.classes:  # of before
        return
    rows, void = class_rows(rules)
    then = {row.name: row.values for row in [*query.classes, query.void]}
    now = {row.name: row.values for row in [*rows, void]}
    if then == now and [row.name for row in query.classes] == [row.name for row in rows]:
        return
    other = next((name for name in [*then, *now] if then.get(name) != now.get(name)), "their order")
    raise InputError(f"The classes of the run have changed since {folder / 'query.json'} was written ('{other}' was "
                     f"{then.get(other)} and is {now.get(other)}): restore them, or start a new run.")


def _check_images(found: list[Answer], samples: Mapping[str, Sample]) -> None:
    """Whether people saw the images that the pool has now."""
    digests: dict[Path, str] = {}
    for answer in found:
        original, sample = answer.item.original, samples.get(answer.item.image)
        if original is None or answer.labels is None:
            continue
        try:
            if sample is None:
                raise FileNotFoundError
            if sample.image not in digests:
                digests[sample.image] = sha256_of(sample.image)
        except OSError:
            raise InputError(f"The image {answer.item.image} of {answer.item.id} is gone. Restore its file.") from None
        if digests[sample.image] != original.sha256:
            raise InputError(f"{sample.image} has changed since {answer.item.id} was asked for: its labels are of "
                             "other pixels. Restore the image, or start a new run.")


def _line(answer: Answer, standing: Standing, tool: str, source: str, source_sha256: str, now: str) -> Taken:
    query, item, labels = answer.query, answer.item, answer.labels
    about: dict[str, Any] = {"item": item.id, "round": query.round, "query": query.query, "patch": item.patch,
             "annotator": answer.annotator, "lead_time": answer.lead_time, "annotation": answer.annotation,
             "updated": answer.updated, "tool": tool, "source": source, "source_sha256": source_sha256, "added": now}
    if labels is None:
        return Taken(**{**about, "status": "skipped"})
    digest, unlabelled = pixels_sha256(labels), int((labels == UNLABELLED).sum())
    folder = standing.folder(query).relative_to(standing.seed_directory)
    return Taken(**{
        **about, "status": "partial" if unlabelled else "labelled", "pixels": _origins((query, item), labels, standing),
        "void": int((labels == VOID).sum()), "unlabelled": unlabelled, "conflicts": answer.conflicts,
        "labels": (folder / LABELS / f"{item.id}-{digest[:8]}.png").as_posix(), "labels_sha256": digest})


def _origins(asked: Asked, labels: np.ndarray, standing: Standing) -> Pixels:
    start, there = standing.starts.get(asked[1].id), labels != UNLABELLED
    if start is None or start.shape != labels.shape:
        return Pixels(manual=int(there.sum()))
    predicted = start != UNLABELLED
    both, same = int((there & predicted).sum()), int((there & predicted & (labels == start)).sum())
    return Pixels(prediction=same, changed=both - same, manual=int((there & ~predicted).sum()))


def _same(before: Taken, line: Taken) -> bool:
    return (before.status, before.labels_sha256) == (line.status, line.labels_sha256) and (
        not line.updated or line.updated <= before.updated)


def _say_trained(lines: list[Taken], trained: int, news: News) -> None:
    rounds = Counter(line.round for line in lines)
    old = sorted(round_ for round_ in rounds if round_ < trained)
    if old:
        news.notes.append(f"Rounds {', '.join(map(str, old))} have been trained with other labels: --resume refuses to "
                          "go on without --accept-changes, and rounds to come are trained with the new ones.")
