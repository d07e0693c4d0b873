"""A terminal, a log or a pipe that has not every character: other ones are shown, never a traceback."""

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_run import write_run
from PIL import Image
from tiny import tiny_config

from meal_gpu import cli
from meal_gpu.terminals import show_everything


def written(text: str, encoding: str) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    show_everything(stream)
    stream.write(text)
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize(("text", "encoding", "shown"), [
    ("a → b · 3 × 4 …", "ascii", "a -> b * 3 x 4 ..."),
    ("a → b · 3 × 4 …", "latin-1", "a -> b · 3 × 4 ..."),
    ("a → b · 3 × 4 …", "utf-8", "a → b · 3 × 4 …"),
    ("münchen 東京", "ascii", "m\\xfcnchen \\u6771\\u4eac"),
    ("münchen 東京", "latin-1", "münchen \\u6771\\u4eac"),
    (os.fsdecode(b"caf\xe9.png"), "utf-8", "caf\\xe9.png"),
    (os.fsdecode(b"caf\xe9.png"), "ascii", "caf\\xe9.png"),
    ("lone \ud800", "utf-8", "lone \\ud800"),
])
def test_what_is_shown(text, encoding, shown):
    assert written(text, encoding) == shown


@pytest.fixture
def somewhere(tmp_path) -> Path:
    """A data set, a config and a run, all with names that ASCII does not have."""
    root = tmp_path / "straßen 東京"
    for i in range(4):
        for folder, value in (("images", 3), ("masks", None)):
            pixels = np.full((64, 96, 3), 40 * i, np.uint8) if value else np.full((64, 96), i % 2, np.uint8)
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / folder / f"bild_ä{i}.png")
    config = tiny_config(tmp_path, **{
        "data.dataset": "folder", "data.root": str(root), "data.class_names": ["Straße", "空"], "data.val_images": None,
        "data.val_masks": None, "query.rounds": 1, "query.strategy": "random"})
    (tmp_path / "größe.yaml").write_text(config.dump(), "utf-8")
    (tmp_path / "falsch_é.yaml").write_text("trainé: 1", "utf-8")
    write_run(tmp_path / "läufe")
    return tmp_path


def commands(folder: Path) -> list[tuple[int, list[str]]]:
    """(exit code, arguments)"""
    config = str(folder / "größe.yaml")
    return [
        (0, ["--version"]), (0, ["--help"]), (0, ["run", "--help"]), (0, ["bench", "--help"]),
        (0, ["info"]), (0, ["info", config]), (0, ["ingest", config]),
        (0, ["check", config, "--out", str(folder / "prüfung.html")]),
        (0, ["report", str(folder / "läufe"), "--out", str(folder / "bericht_ü.html")]),
        (2, ["run", config, "--out", str(folder / "läufe")]),  # prints what it starts, then that a run is there
        (2, ["sweep", "table1_camvid", "--set", "data.root=/nirgendwo/ä", "--out", str(folder / "ü")]),
        (2, ["run", "--resume", str(folder / "fehlt → hier")]), (2, ["run", str(folder / "falsch_é.yaml")]),
        (2, ["run", config, "--set", "train.lr=→"]), (2, ["report", os.fsdecode(b"/caf\xe9")]),
        (2, ["bench", "compare", str(folder / "ä.json"), str(folder / "ö.json")]),
    ]


def test_every_command(somewhere, monkeypatch):
    for code, arguments in commands(somewhere):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2)]
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        monkeypatch.setattr(sys, "argv", ["meal-gpu", *arguments])
        found = 0
        try:
            cli.main()
        except SystemExit as stop:
            found = int(stop.code or 0)
        for stream in streams:
            stream.flush()
        text = "".join(stream.buffer.getvalue().decode("ascii") for stream in streams)
        logging.getLogger().handlers.clear()
        assert found == code, (arguments, text)
        assert text.strip(), arguments


@pytest.mark.parametrize(("environment", "out", "shown"), [
    ({"PYTHONIOENCODING": "ascii"}, "läufe", "already holds a run"),
    # Names of files are ASCII too, which neither C nor C.UTF-8 does to Python by itself.
    ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "neu", "LC_ALL=C.UTF-8"),
], ids=["PYTHONIOENCODING", "LC_ALL"])
def test_a_process_whose_output_goes_to_a_file(somewhere, environment, out, shown):
    with (somewhere / "log.txt").open("wb") as log:
        ran = subprocess.run([sys.executable, "-m", "meal_gpu.cli", "run", str(somewhere / "größe.yaml"), "--out",
                              str(somewhere / out)], stdout=log, stderr=log, check=False,
                             env={**os.environ, **environment})
    text = (somewhere / "log.txt").read_bytes().decode("ascii")
    assert ran.returncode == 2, text
    assert "Traceback" not in text
    assert shown in text
    assert " -> " in text
