"""Every file that a run, a store, a cache or a sweep leaves behind, damaged in every way, and what is made of it then.

Either the result is that of the undamaged one, or there is one sentence that names the file, and exit code 2. Never a
traceback, never another result without a word.
"""

import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from tiny import tiny_config

from meal_gpu import cli, launch
from meal_gpu.config import Config, UmapConfig
from meal_gpu.engine.experiment import prepare
from meal_gpu.engine.rounds import run_seed
from meal_gpu.errors import InputError
from meal_gpu.files import Seal
from meal_gpu.records import accept_changes, append_round, read_rounds, rewrite_rounds
from meal_gpu.report import load_runs, write_report
from meal_gpu.report.figures import Figures
from meal_gpu.stages import embed
from meal_gpu.strategies.select import find_strategy
from meal_gpu.sweepfile import FILE, Point, dump_points

ROUNDS = 2


@pytest.fixture(scope="module", autouse=True)
def one_fit() -> Iterator[None]:
    """Instead of UMAP and its minutes of compiling a plane through the vectors: as good for what is tested here."""

    def fit(features: torch.Tensor, settings: UmapConfig, seed: int, library: str = "") -> embed.Embedding:
        turn = torch.rand(features.shape[1], settings.n_components, generator=torch.Generator().manual_seed(seed))
        return embed.Embedding(features @ turn)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed, "fit", fit)
        patch.setattr("meal_gpu.engine.experiment.warm_up", lambda *args, **kwargs: None)
        patch.setattr(Figures, "add", lambda self, canvas: "figure")  # seconds, of which nothing here depends
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs of MEAL, of one seed each, which are a sweep, and the store and the cache that they share."""
    place = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        points = [Point(f"seed-{seed}", config(seed)) for seed in (3, 4)]
        for point in points:
            launch.run(point.config, place / "sweep" / point.name)
    (place / "sweep" / FILE).write_text(dump_points(points))
    write_report(load_runs([place / "sweep"]), place / "sweep" / "report.html")
    assert sorted(files_of(place)) == sorted(FILES)
    return place


def config(seed: int) -> Config:
    return tiny_config(Path(), seeds=[seed], data={"n_images": 4, "n_val_images": 1, "image_size": [32, 48]}, train={
        "epochs": 1, "final_epochs": 1}, query={"rounds": ROUNDS, "n_query": 2, "n_informative": 4})


RUN = ["config.yaml", "environment.json", "pool.json", "report.html", "rounds.jsonl", "embedding.npz",
       "model.safetensors", "round-01.npz", "round-02.npz", *(f"predictions-0{k}.npz" for k in range(ROUNDS + 1))]
FILES = [*(f"run {name}" for name in RUN), "sweep sweep.yaml", "sweep report.html",
         *(f"{split} {name}" for split in ("train", "val") for name in ("images.u8", "masks.u8", "manifest.json")),
         "cache embedding"]


def files_of(place: Path, run: str = "seed-3") -> dict[str, Path]:
    """By a name, every file of a run, its store, its cache and its sweep; locks are tested with who holds them."""
    found = {f"run {file.name}": file for file in (place / "sweep" / run).rglob("*") if file.is_file()}
    found |= {f"sweep {file.name}": file for file in (place / "sweep").iterdir() if file.is_file()}
    for file in (place / "store").glob("embeddings/*"):
        found["cache embedding"] = file
    for split in ("train", "val"):
        found |= {f"{split} {file.name}": file for file in (place / "store").glob(f"demo-{split}-*/*")}
    return {name: file for name, file in found.items() if not name.endswith(".lock")}


DAMAGE: dict[str, Callable[[Path, Path], object]] = {
    "emptied": lambda file, other: file.write_bytes(b""),
    "truncated": lambda file, other: os.truncate(file, file.stat().st_size * 2 // 3),
    "one byte flipped": lambda file, other: flip(file),
    "a directory": lambda file, other: (file.unlink(), file.mkdir()),
    "a link": lambda file, other: (file.rename(file.parent / "moved"), file.symlink_to(file.parent / "moved")),
    "another type": lambda file, other: file.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256))),
    "another run's": lambda file, other: shutil.copyfile(other, file),
    "gone": lambda file, other: file.unlink(),
}


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.fixture
def copied(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of its own; configs name the store by a path from there."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def called(monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str]:
    """Exit code and what is told on the side of errors, as `meal-gpu` gives them."""
    shown = io.StringIO()
    monkeypatch.setattr(cli, "errors", cli.Console(file=shown, width=10_000))
    monkeypatch.setattr(cli, "console", cli.Console(file=io.StringIO()))
    monkeypatch.setattr(sys, "argv", ["meal-gpu", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0), shown.getvalue()


def told(place: Path, run: str = "seed-3") -> list[dict]:
    """The rounds as they stand, without times and memory."""
    lines = (place / "sweep" / run / run / "rounds.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in ("seconds", "peak_bytes", "check")}
            for line in lines]


def drop_last_round(place: Path) -> None:
    """So that going on has something to do, which reads images, masks and the embedding."""
    file = place / "sweep" / "seed-3" / "seed-3" / "rounds.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))


def check_message(code: int, text: str, file: Path) -> None:
    assert code == 2, text
    assert text.startswith("error "), text
    assert text.count("\n") == 1, text
    assert file.name in text or file.parent.name in text, text
    assert "Traceback" not in text


COMMANDS = {
    "run --resume": lambda: ["run", "--resume", "sweep/seed-3"],
    "report": lambda: ["report", "sweep/seed-3", "--out", "new.html"],
    "report of the sweep": lambda: ["report", "sweep", "--out", "new.html"],
    "ingest": lambda: ["ingest", "sweep/seed-3/config.yaml", "--verify"],
}
READS = {"run --resume": ("run", "train", "val", "cache"), "report": ("run",), "report of the sweep": ("sweep",),
         "ingest": ("train", "val")}
FEW = ("truncated", "a directory", "a link")
"""Of files that going on does not read."""


def damages(command: str, name: str) -> list[str]:
    kind, _, file = name.partition(" ")
    if command == "run --resume" and (file in ("report.html", "model.safetensors", "round-01.npz")
                                      or file.startswith("predictions")):
        return list(FEW)
    if file in ("predictions-00.npz", "predictions-02.npz"):
        return ["truncated"]
    if kind == "val" or (kind == "train" and file == "masks.u8"):
        return ["one byte flipped", "another run's"]
    return list(DAMAGE)


CASES = [(command, name, damage) for command, kinds in READS.items() for name in FILES if name.split()[0] in kinds
         for damage in damages(command, name)]


@pytest.mark.parametrize(("command", "name", "damage"), CASES)
def test_damage_is_told_or_does_not_matter(copied, monkeypatch, caplog, command, name, damage):
    whole, file = told(copied), files_of(copied)[name]
    other = files_of(copied, "seed-4")[name]
    if name.startswith("sweep"):
        other = copied / "other"
        other.write_text(dump_points([Point("elsewhere", config(4))]))
    if name.startswith(("train", "val")):  # another store's: of the other split
        other = files_of(copied)[name.replace("train", "xx").replace("val", "train").replace("xx", "val")]
    elif name == "cache embedding":  # of the other seed
        other = max((copied / "store" / "embeddings").iterdir(), key=lambda one: one != file)
    if command == "run --resume":
        drop_last_round(copied)
        monkeypatch.setattr(launch, "write_report", lambda runs, out: out)  # which has cases of its own
    DAMAGE[damage](file, other)
    code, text = called(monkeypatch, *COMMANDS[command]())
    if code == 0:
        assert text == ""
        assert (name, damage) != ("run config.yaml", "another run's"), "found only after long work, or not at all"
        if command == "run --resume":
            assert told(copied) == whole
        elif command == "ingest" and file.exists():
            assert load_runs([copied / "sweep" / "seed-3"])
    else:
        check_message(code, text, file)


def test_the_cases_are_all_there():
    assert len(FILES) == 21
    assert len(CASES) > 150


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_sweep_goes_on_or_says_why(copied, monkeypatch, damage):
    """Both of its runs are finished, so that no worker is started."""
    file = copied / "sweep" / FILE
    other = copied / "other.yaml"
    other.write_text(dump_points([Point("seed-3", config(4))]))
    DAMAGE[damage](file, other)
    code, text = called(monkeypatch, "sweep", "--resume", "sweep")
    if code:
        check_message(code, text, copied / "sweep" / "seed-3" if damage == "another run's" else file)


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "..", "", ".", "-x", 3, "a\nb"])
def test_points_lead_nowhere_else(copied, monkeypatch, name):
    text = yaml.safe_dump({"points": {name: config(3).model_dump(mode="json")}})
    for sealed in (text.encode(), Seal.of(text, "0" * 16).written(text)):
        (copied / "sweep" / FILE).write_bytes(sealed)
        for words in (["sweep", "--resume", "sweep"], ["report", "sweep"]):
            code, shown = called(monkeypatch, *words)
            check_message(code, shown, copied / "sweep" / FILE)
            assert "has a point called" in shown


# --- edited by hand ---------------------------------------------------------------------------------------------------


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(("name", "old", "new"), [
    ("config.yaml", "epochs: 1", "epochs: 2"), ("config.yaml", "# sealed", "# "),
    ("seed-3/rounds.jsonl", '"miou": 0.', '"miou": 0.9'), ("seed-3/rounds.jsonl", '"n_labelled": 1', '"n_labelled": 2'),
])
def test_what_was_edited_is_said_and_may_be_accepted(copied, monkeypatch, capsys, name, old, new):
    file = copied / "sweep" / "seed-3" / name
    edit(file, old, new)
    for words in (["run", "--resume", "sweep/seed-3"], ["report", "sweep/seed-3"], ["report", "sweep"],
                  ["sweep", "--resume", "sweep"]):
        code, text = called(monkeypatch, *words)
        check_message(code, text, file)
        assert "meal-gpu run --resume" in text
        assert "--accept-changes" in text
    code, text = called(monkeypatch, "run", "--resume", "sweep/seed-3", "--accept-changes")
    assert (code, text) == (0, "")
    assert f"{name} was edited since it was written" in capsys.readouterr().err
    assert "edited by hand" in (copied / "sweep" / "seed-3" / "report.html").read_text()
    if not new.startswith("#"):
        assert new in file.read_text()
    assert called(monkeypatch, "run", "--resume", "sweep/seed-3") == (0, "")


def test_accepting_without_changes_changes_nothing(copied, monkeypatch):
    before = {file: file.read_bytes() for file in files_of(copied).values() if file.name.endswith(("yaml", "jsonl"))}
    assert called(monkeypatch, "run", "--resume", "sweep/seed-3", "--accept-changes") == (0, "")
    assert before == {file: file.read_bytes() for file in before}
    code, text = called(monkeypatch, "run", "demo", "--accept-changes")
    assert code == 2
    assert "goes with --resume" in text


@pytest.mark.parametrize("name", ["seed-3", "seed-3/gallery", "seed-3/stop-set"])
def test_nothing_is_written_through_a_link(copied, monkeypatch, name):
    place, there = copied / "sweep" / "seed-3" / name, copied / "there"
    (copied / "sweep" / "seed-3" / "seed-3" / "rounds.jsonl").write_bytes(b"")
    shutil.rmtree(place)
    there.mkdir()
    place.symlink_to(there)
    code, text = called(monkeypatch, "run", "--resume", "sweep/seed-3")
    check_message(code, text, place)
    assert "is a symbolic link" in text
    assert not list(there.iterdir())


def test_leftovers_of_a_kill_are_removed(copied, monkeypatch):
    run = copied / "sweep" / "seed-3"
    left = [run / ".config.yaml.abcd_123.tmp", run / "seed-3" / "gallery" / ".round-01.npz.00000000.tmp"]
    mine = run / ".notes.md"
    for file in (*left, mine):
        file.write_text("x")
    assert called(monkeypatch, "run", "--resume", "sweep/seed-3") == (0, "")
    assert [file.exists() for file in (*left, mine)] == [False, False, True]


def test_runs_of_before_are_read(caplog, tmp_path, monkeypatch):
    """No checksum tells of their changes, which is said; what contradicts itself is refused all the same."""
    caplog.set_level("INFO", "meal_gpu")
    old = Path(__file__).resolve().parents[1] / "bench" / "results" / "camvid"
    runs = load_runs(sorted(old.iterdir()))
    assert [len(run.seeds[0].rounds) for run in runs] == [9] * 4
    assert sum("was begun before runs were sealed" in record.message for record in caplog.records) == 4
    copy = shutil.copytree(old / "meal", tmp_path / "meal")
    assert accept_changes(copy) == []
    rounds = copy / "seed-0" / "rounds.jsonl"
    whole = rounds.read_text()
    edit(rounds, '"row": 2', '"row": 3')
    check_message(*called(monkeypatch, "report", str(copy)), rounds)
    rounds.write_text(whole)
    append_round(rounds.parent, {"round": 9, "n_labelled": 1, "fraction": 0.1})  # from now on lines are chained
    assert len(read_rounds(rounds.parent)) == 10
    edit(rounds, '"miou": 0.2', '"miou": 0.9')
    with pytest.raises(InputError, match="damaged in line 10"):
        read_rounds(rounds.parent)


# --- labels -----------------------------------------------------------------------------------------------------------


class Changing:
    """An oracle whose masks may be drawn again."""

    shift = 0

    def ask(self, round_: int, patches: list, more: object) -> tuple[list, list]:
        return patches, []

    def label(self, round_: int, ids: torch.Tensor) -> torch.Tensor:
        grid = config(3).data.tiling()
        labels = (ids % 3).to(torch.uint8).view(-1, 1, 1).repeat(1, grid.patch_height, grid.patch_width)
        labels[0, 0, 0] = self.shift
        return labels


def test_labels_that_changed_are_said_and_may_be_accepted(made, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(made)
    experiment, oracle, seen = prepare(config(3)), Changing(), []
    experiment.strategy = find_strategy("random")

    def stop(record: dict) -> None:
        seen.append(record["round"])
        if len(seen) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_seed(experiment, 3, tmp_path, oracle, stop)
    oracle.shift = 1
    with pytest.raises(InputError, match=r"The labels of 1 of the \d+ patches that round 0 was trained on .*row 0 "
                                         r"column 0.*have changed since.*--accept-changes"):
        run_seed(experiment, 3, tmp_path, oracle, stop)
    run_seed(experiment, 3, tmp_path, oracle, stop, accept=True)
    assert "have changed since. They are taken as they are" in caplog.text
    run_seed(experiment, 3, tmp_path, oracle, stop)  # accepted once
    assert seen == [0, *[0, 1, 2] * 2]
    oracle.shift = 77
    with pytest.raises(InputError, match=r"holds the value 77 in row 0, column 0: classes are 0 to \d+, void is 255"):
        run_seed(experiment, 3, tmp_path, oracle, stop, accept=True)
    rounds = read_rounds(tmp_path)
    rounds[1]["queried"] = rounds[0]["queried"]
    rounds[1]["labels"] = rounds[0]["labels"]
    oracle.shift = 1
    rewrite_rounds(tmp_path, rounds)
    with pytest.raises(InputError, match=r"round 1 reveals patches that were labelled before"):
        run_seed(experiment, 3, tmp_path, oracle, stop)
    experiment.close()
