"""README, CONTRIBUTING and docs/: their commands run, their links lead somewhere, their figures of size hold.

A block that is fenced as ``sh`` is executed, line by line, in a directory with drawn data, and with the settings of
`TINY` beside those that the block gives; a command that several blocks show runs once. ``sh no-test: REASON`` is not
run: its calls are parsed, and it is counted. ``python`` blocks are executed too.
"""

import glob
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from PIL import Image
from typer.testing import CliRunner

import meal_gpu
from meal_gpu import cli
from meal_gpu.config import Config
from meal_gpu.configfile import parse_override
from meal_gpu.configs import document
from meal_gpu.data.scenes import write_scene
from meal_gpu.strategies import select
from meal_gpu.sweepfile import load_points

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = 24
"""Blocks that nothing executes. A new one needs a reason, and this number."""

TINY = {"device": "cpu", "data.image_size": [64, 96], "data.grid": [2, 3], "model.backbone": "mobilenetv2_035",
        "model.weights": "none", "train.epochs": 1, "train.final_epochs": 1, "train.eval_every": 1, "query.rounds": 1,
        "query.n_query": 4, "query.n_informative": 8, "query.strategy": "entropy", "data.loader": "torchvision"}


@dataclass(frozen=True)
class Block:
    page: Path
    language: str
    note: str
    """What stands after the language."""
    text: str

    @property
    def commands(self) -> list[str]:
        return [line for line in re.sub(r"\\\n\s*", "", self.text).splitlines() if line.strip()]

    @property
    def calls(self) -> list[list[str]]:
        """Arguments of every call of meal-gpu."""
        words = [shlex.split(line, comments=True) for line in self.commands]
        return [call[1:] for call in words if call[:1] == ["meal-gpu"]]

    def __str__(self) -> str:
        return f"{self.page.name}: {self.commands[0][:60]}"


BLOCKS = [Block(page, *found) for page in PAGES
          for found in re.findall(r"^```(\w*) ?([^\n]*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)]
SHELL = [block for block in BLOCKS if block.language == "sh"]
RUN = [block for block in SHELL if not block.note]
PYTHON = [block for block in BLOCKS if block.language == "python"]


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what the pages take for granted: data sets, one's own images, the files that they show."""
    place = tmp_path_factory.mktemp("docs")
    draw = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for i in range(count):
            for folder, size in ((split, (64, 96, 3)), (f"{split}annot", (64, 96))):
                write(place / "data" / "camvid" / folder / f"{i}.png", draw.integers(0, 11, size))
    for name in ("mine", "street"):
        for i in range(4):
            write(place / name / "images" / f"{i}.png", draw.integers(0, 256, (64, 96, 3)))
    for i in range(8):  # of a team that has labelled six of its images, and has more since
        write_scene(i, 0, (64, 96), place / "town" / "images" / f"{i}.png", place / "town" / "masks" / f"{i}.png")
        if i > 5:
            (place / "town" / "masks" / f"{i}.png").unlink()
    for i in range(2):
        write(place / "town" / "new" / f"{i}.png", draw.integers(0, 256, (100, 130, 3)))
    for block in BLOCKS:
        if block.language == "yaml" and (name := re.match(r"# (\w+\.yaml)\n", block.text)):
            (place / name[1]).write_text(here(block.text, place))
    for i in range(4):
        (place / "predictions").mkdir(exist_ok=True)
        np.save(place / "predictions" / f"{i}.npy", draw.normal(size=(11, 16, 24)).astype(np.float16))
    for folder in ("bench", "docs"):
        (place / folder).mkdir()
    (place / "bench" / "results").symlink_to(ROOT / "bench" / "results")
    return place


def write(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(file)


def here(text: str, place: Path) -> str:
    return text.replace("/data/", f"{place}/data/")


def tiny(place: Path) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in {**TINY, "data.store": str(place / "store")}.items()]


@pytest.fixture(scope="module")
def shell(place: Path) -> Callable[[str], None]:
    """Runs a line of a page; what ran already, on this page or on another, is not run again."""
    done: set[str] = set()

    def run(line: str) -> None:
        call = shlex.split(line, comments=True)
        if not call or shlex.join(call) in done:
            return
        if call[:3] == ["python", "-m", "meal_gpu.configs.document"]:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", call[2:])
                document.main()
            done.add(shlex.join(call))
            return
        assert call[0] == "meal-gpu", f"nobody knows how to try '{line}': mark its block ```sh no-test: REASON"
        words = [here(word, place) for word in call[1:]]
        arguments = [found for word in words for found in (sorted(glob.glob(word)) if "*" in word else [word])]
        if arguments[:2] == ["labels", "add"]:
            label(Path(arguments[2]), Path(arguments[3]))
        if "--resume" in arguments:
            label(Path(arguments[arguments.index("--resume") + 1]))
        elif arguments[0] in ("run", "ingest", "info", "bench", "demo", "query"):
            own = Path(arguments[1]).suffix == ".yaml" and "factory:" in Path(arguments[1]).read_text()
            arguments += [word for setting in tiny(place) for word in ("--set", setting)
                          if setting.split("=")[0] not in given(arguments)
                          and not (own and setting.startswith(("model.backbone", "query.strategy")))]
        result = CliRunner().invoke(cli.app, arguments)
        waiting = 3 if arguments[0] == "run" else 0  # for people
        assert result.exit_code in (0, waiting), f"{line}\n{result.output}\n{result.exception}"
        done.add(shlex.join(call))

    return run


def given(arguments: list[str]) -> set[str]:
    """The keys that a call sets."""
    return {arguments[i + 1].split("=")[0] for i, word in enumerate(arguments) if word == "--set"}


def label(run: Path, folder: Path | None = None) -> None:
    """Be the people: a mask for every patch that a run asks for, in the query's folder or in one of their own."""
    for query in run.glob("seed-*/to-label/*/query.json"):
        for patch in json.loads(query.read_text())["items"]:
            y0, x0, y1, x1 = patch["original"]["window"]
            mask = np.arange((y1 - y0) * (x1 - x0)).reshape(y1 - y0, -1) % 3
            write((folder or query.parent / "masks") / f"{patch['id']}.png", mask)


@pytest.mark.parametrize("block", RUN, ids=str)
def test_a_shown_command_runs(block, shell, place, monkeypatch):
    monkeypatch.chdir(place)
    for shown in RUN[:RUN.index(block) + 1]:  # what a block builds on, the README or its own page has made
        if shown.page in (block.page, PAGES[0]):
            for line in shown.commands:
                shell(line)


@pytest.mark.usefixtures("off_the_path")
@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_shown_python_runs(block, shell, place, monkeypatch):
    monkeypatch.chdir(place)
    for line in (line for shown in RUN if shown.page == PAGES[0] for line in shown.commands):
        shell(line)
    load = Config.load
    monkeypatch.setattr(Config, "load", lambda source, overrides=None: load(
        source, [*(here(one, place) for one in overrides or []), *tiny(place)]))
    monkeypatch.setattr(select, "STRATEGIES", dict(select.STRATEGIES))
    exec(compile(block.text, str(block), "exec"), {})


def test_what_is_not_run_says_why_and_is_counted():
    notes = {block: block.note for block in SHELL if block.note}
    assert all(re.fullmatch(r"no-test: .{5,}", note) for note in notes.values()), notes.values()
    listed = "\n".join(f"{block}: {note}" for block, note in notes.items())
    assert len(notes) == NOT_RUN, f"{len(notes)} blocks are not run:\n{listed}"


@pytest.mark.parametrize("block", [block for block in SHELL if block.note and block.calls], ids=str)
def test_what_is_not_run_can_be_parsed(block):
    for call in block.calls:
        parse(call)


def parse(arguments: list[str]) -> None:
    """As the command line does, down to the names of the keys that are set."""
    context = typer.Context(typer.main.get_command(cli.app))
    while hasattr(context.command, "commands"):
        with context.command.make_context("meal-gpu", list(arguments), parent=context, resilient_parsing=True) as group:
            name, child, arguments = group.command.resolve_command(group, [*group._protected_args, *group.args])
            context = typer.Context(child, info_name=name, parent=context)
    with context.command.make_context("meal-gpu", arguments) as inner:
        for one in inner.params.get("set_") or []:
            key, _ = parse_override(one)
            fields = Config.model_fields
            for part in key.split("."):
                assert part in fields, f"there is no key '{key}'"
                fields = getattr(fields[part].annotation, "model_fields", {})


def test_options_in_the_text_exist():
    """`meal-gpu run --resume DIR` between the words: the command has such an option."""
    commands = typer.main.get_command(cli.app).commands
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for span in re.findall(r"`meal-gpu ([a-z][^`]*)`", text):
            name, *words = span.split()
            assert name in commands, f"{page.name}: meal-gpu {span}"
            command = commands[name]
            if hasattr(command, "commands"):  # `meal-gpu bench CONFIG` is a round of it
                command = command.commands.get(words[0] if words else "", command.commands.get("round", command))
            known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
            assert {word for word in words if word.startswith("--")} <= known, f"{page.name}: meal-gpu {span}"


def test_every_public_name_is_on_its_page():
    shown = set(re.findall(r"`meal_gpu\.(\w+)`", (ROOT / "docs" / "python.md").read_text()))
    assert shown == set(meal_gpu.__all__)


def test_shown_configs_are_configs(place, monkeypatch):
    monkeypatch.chdir(place)
    files = sorted(place.glob("*.yaml"))
    assert files
    for file in files:
        if "axes" in yaml.safe_load(file.read_text()):
            assert load_points(file)
        else:
            Config.load(file)


# --- pages ------------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


def links() -> Iterator[tuple[Path, str]]:
    for page in [*PAGES, ROOT / "bench" / "results" / "README.md"]:
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        yield from ((page, target) for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target)


def test_links_lead_somewhere():
    for page, target in links():
        file, _, anchor = target.partition("#")
        aim = (page.parent / file).resolve() if file else page
        assert aim.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(aim), f"{page.name}: {target}; it has {sorted(anchors(aim))}"


def test_every_page_is_linked():
    seen = {(page.parent / target.partition("#")[0]).resolve() for page, target in links()}
    assert {page for page in PAGES if page.name != "README.md"} <= seen


def test_files_that_are_named_exist():
    for page in [*PAGES, ROOT / "kernels" / "NOTES.md"]:
        for name in re.findall(r"`((?:meal_gpu|kernels|bench|configs|tests|docs)/[\w./-]*)`", page.read_text()):
            assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_the_readme_is_read_to_its_end():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 180
    pictures = [ROOT / "docs" / name for name in re.findall(r"!\[[^]]+\]\(docs/([^)]+)\)",
                                                            (ROOT / "README.md").read_text())]
    assert pictures
    assert sum(picture.stat().st_size for picture in pictures) < 200_000
    for picture in pictures:
        with Image.open(picture) as image:
            assert image.format == "PNG"
            assert 600 <= image.width <= 2000


def test_the_readmes_figures_are_those_of_the_results():
    readme = " ".join((ROOT / "README.md").read_text().split())
    rounds = {name: meal_gpu.load_run(ROOT / "bench" / "results" / "camvid" / name).seeds[0].rounds[-1]
              for name in ("random", "entropy", "meal", "meal_ft")}
    last = [f"{rounds[name].last.miou:.3f}" for name in ("meal", "meal_ft", "entropy", "random")]
    assert "mIoU is {} with MEAL, {} with MEAL-FT, {} with entropy, {} with random".format(*last) in readme
    assert "with {:.3f} to MEAL's {:.3f}".format(rounds["entropy"].miou, rounds["meal"].miou) in readme
    page = (ROOT / "docs" / "benchmarks.md").read_text()  # its tables are made of the results, as another test holds
    camvid = page[page.index("bench round: camvid"):page.index("bench round: cityscapes")]
    whole, scored, step = re.search(r"A round on CamVid takes (\S+) s .* are (\S+) times, a training step (\S+) times",
                                    readme).groups()
    assert f"reveal): {whole} s." in camvid
    assert f"research code {scored} (" in camvid
    assert re.search(rf"\| training step .* research code {step}\.\d \(", camvid)
    whole, scored = re.search(r"With AVX2 alone, .* a round takes (\S+) s, and these are (\S+) and", readme).groups()
    assert f"reveal): {whole} s." in camvid
    assert f"research code {scored} (" in camvid


def test_the_page_of_keys_is_up_to_date():
    assert (ROOT / "docs" / "configuration.md").read_text() == document.page(), f"run {document.COMMAND}"


def test_every_key_says_what_it_means():
    empty = [line for line in document.page().splitlines() if line.startswith("| `") and line.endswith("|  |")]
    assert not empty, "give them a docstring in meal_gpu/config.py, dataconfig.py, modelconfig.py or trainconfig.py"
