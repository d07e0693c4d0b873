"""``meal-gpu labels``: take a file of labels into a run, or say that patches cannot be labelled."""

import hashlib
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..config import MACHINE_KEYS, Config
from ..data.datasets import open_dataset
from ..data.listing import Sample
from ..data.rules import Rules
from ..errors import InputError
from ..files import remove_leftovers
from ..journal import JOURNAL
from ..records import CONFIG, read_config, read_rounds, run_name
from ..report.people import Effort
from .agreement import agreement, shared
from .answers import Answer, Answers
from .archive import read_file
from .formats import read_answers, read_content
from .query import FOLDER
from .regions import Overlap
from .server import Server, token
from .server import push as send
from .standing import DECIDED, LABELS, Standing
from .taking import Choices, News, exclusive, take


@dataclass
class Labelled:
    """Of one run, whose labels are to come."""

    directory: Path
    config: Config
    rules: Rules
    samples: dict[str, Sample] = field(default_factory=dict)

    @classmethod
    def open(cls, directory: Path, overrides: Sequence[str] = ()) -> "Labelled":
        """Raises `InputError` where there is no run that people label."""
        for override in overrides:
            if override.partition("=")[0] not in MACHINE_KEYS:
                raise InputError(f"--set {override} would make it another run. Here these may change: "
                                 f"{', '.join(MACHINE_KEYS)}.")
        if not (directory / CONFIG).is_file():
            raise InputError(f"{directory} holds no run (no config.yaml). Give the directory of a run that people "
                             "label.")
        config = read_config(directory, list(overrides))
        if config.query.oracle != "people":
            raise InputError(f"{directory} takes its labels from the data set (query.oracle: simulated), not from "
                             "people.")
        dataset = open_dataset(config.data)
        return cls(directory, config, dataset.rules(config.data), {sample.name: sample for sample in dataset.train})

    @property
    def seed_directory(self) -> Path:
        return self.directory / f"seed-{self.config.seeds[0]}"

    def standing(self) -> Standing:
        found = Standing.read(self.seed_directory)
        if not found.queries:
            raise InputError(f"{self.seed_directory / FOLDER} holds no query: nobody was asked for labels yet. First: "
                             f"meal-gpu run --resume {shlex.quote(str(self.directory))}")
        return found


def add(directory: Path, path: Path, overlap: Overlap = "void", choices: Choices = Choices(),  # noqa: B008 - frozen
        overrides: Sequence[str] = ()) -> tuple[News, list[str]]:
    """Take all labels of a file or folder, or none; what came of it, and lines for people.

    Raises `InputError` where anything is not as it should be; then nothing was taken.
    """
    run = Labelled.open(directory, overrides)
    if not path.exists():
        read_file(path)  # says so
    with exclusive(run.seed_directory):
        standing = run.standing()
        answers = read_answers(path, standing.book, run.rules, standing.starts, overlap)
        digest = hashlib.sha256(read_file(path)).hexdigest() if path.is_file() else ""
        news = _take(run, standing, answers, path.name, digest, choices)
    return news, told(news, run)


def skip(directory: Path, items: Sequence[str], overrides: Sequence[str] = ()) -> tuple[News, list[str]]:
    """Say that items cannot be labelled: they leave the queue for good, and others are asked for. As `add`."""
    run = Labelled.open(directory, overrides)
    with exclusive(run.seed_directory):
        standing = run.standing()
        asked = [standing.book.by_file.get(item) or standing.book.of_id(item, DECIDED) for item in items]
        answers = Answers(DECIDED, [Answer(query, item, None) for query, item in asked])
        news = _take(run, standing, answers, "", "", Choices())
    return news, told(news, run)


def push(directory: Path, url: str, overrides: Sequence[str] = ()) -> list[str]:
    """Send to a Label Studio server what nobody has labelled and it does not have; lines for people."""
    run = Labelled.open(directory, overrides)
    server = Server(url, token())
    with exclusive(run.seed_directory):  # two at once would send everything twice
        number, sent, notes = send(run.standing(), server, run_name(directory), f"meal-gpu {directory.name}",
                                   run.config.query.annotators)
    return [f"{sent} tasks sent to {server.url}/projects/{number}." if sent else
            f"{server.url}/projects/{number} has all tasks that are not labelled yet.", *notes,
            f"When people have labelled: meal-gpu labels pull {shlex.quote(str(directory))} --label-studio {url}"]


def pull(directory: Path, url: str, overlap: Overlap = "void", choices: Choices = Choices(),  # noqa: B008 - frozen
         overrides: Sequence[str] = ()) -> tuple[News, list[str]]:
    """Fetch what people have made of a run's tasks on a Label Studio server, and take it as `add` takes a file."""
    run = Labelled.open(directory, overrides)
    server = Server(url, token())
    project = server.project(run_name(directory))
    if project is None:
        raise InputError(f"{server.url} has no project of this run. First: meal-gpu labels push "
                         f"{shlex.quote(str(directory))} --label-studio {url}")
    content, where = server.export(int(project["id"])), f"{server.url}/projects/{project['id']}"
    with exclusive(run.seed_directory):
        standing = run.standing()
        answers = read_content(content, where, standing.book, standing.starts, overlap)
        news = _take(run, standing, answers, where, hashlib.sha256(content).hexdigest(), choices)
    return news, told(news, run)


def _take(run: Labelled, standing: Standing, answers: Answers, source: str, digest: str, choices: Choices) -> News:
    # Of a call that was killed. Other temporary files are those of a run that goes on meanwhile.
    for folder in standing.queries:
        if (folder / LABELS).is_dir():
            remove_leftovers(folder / LABELS)
    for path in run.seed_directory.glob(f".{JOURNAL}.*.tmp"):
        path.unlink(missing_ok=True)
    trained = len(read_rounds(run.seed_directory))
    return take(standing, answers, run.samples, run.rules, trained, source, digest, choices)


def told(news: News, run: Labelled) -> list[str]:
    """What people want to know after labels were taken."""
    counts = Counter(line.status for line in news.taken)
    listed = [f"{counts[status]} {status}" for status in ("labelled", "partial", "skipped") if counts[status]]
    revised = sum(line.revision > 1 for line in news.taken)
    lines = [f"{news.tool}: {', '.join(listed) or 'nothing new'}"
             + (f", {revised} of them in place of what was there" if revised else "")
             + (f"; {news.unchanged} as they were" if news.unchanged else "") + ".", *news.notes]
    standing = run.standing()
    lines += _effort(standing)
    if shared(standing):
        agreed = agreement(standing, run.rules.class_names)
        lines.append(f"{shared(standing)} patches have labels of several people, who agree on "
                     + ", ".join(f"{name} {100 * value:.0f} %" for name, value in agreed.items())
                     + f" of the pixels that either gives a class (query.annotators: {run.config.query.annotators}).")
    return [*lines, *_next(standing, run)]


def _effort(standing: Standing) -> Iterator[str]:
    effort = Effort.of(standing.taken)
    if effort.mean is not None:
        yield f"A patch takes {effort.mean / 60:.1f} minutes (mean of {len(effort.seconds)})."
    if effort.unchanged is not None:
        yield f"{100 * effort.unchanged:.0f} % of the predicted pixels were left as they are."


def _next(standing: Standing, run: Labelled) -> Iterator[str]:
    rule, last = run.config.query.annotators, max(query.round for query in standing.queries.values())
    items = [item for query, item in standing.book if query.round == last]
    skipped = [item for item in items if standing.skipped(item, rule)]
    missing = [item for item in items if not standing.answered(item)]
    fresh = [item for item in skipped if item.id not in standing.replaced]
    yield (f"Round {last}: {len(items) - len(skipped) - len(missing)} of {len(items) - len(skipped)} patches have "
           f"labels, {len(missing)} are missing, {len(skipped)} were skipped.")
    resume = f"meal-gpu run --resume {shlex.quote(str(run.directory))}"
    if fresh:
        yield f"Next, to be asked for others in place of those skipped: {resume}"
    elif missing:
        yield f"When the others are there: {resume}"
    elif len(read_rounds(run.seed_directory)) <= last:
        yield f"Next: {resume}"
