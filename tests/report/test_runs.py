"""Run directories that are not one, are not finished, or are damaged."""

import re
from pathlib import Path

import numpy as np
import pytest
from fake_run import small

from meal_gpu.errors import InputError
from meal_gpu.report import load_run, write_report


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_run(path)
    return str(caught.value)


def test_not_a_run_directory(tmp_path):
    assert "no such directory" in refused(tmp_path / "nothing")
    message = refused(tmp_path)
    assert "not a run directory" in message
    assert all(name in message for name in ("config.yaml", "environment.json", "rounds.jsonl"))


def test_nothing_finished(tmp_path):
    message = refused(small(tmp_path / "run", seeds=(0,), done={0: 0}))
    assert "no finished round yet" in message
    assert "--resume" in message


@pytest.mark.parametrize(("name", "content", "expected"), [
    ("environment.json", b"{", "damaged"),
    ("environment.json", b"\xff\xfe", "damaged"),
    ("environment.json", b'{"dataset": {}}', "dataset.name: field required"),
    ("environment.json", None, "cannot be read: No such file"),
    ("config.yaml", b"query: {strateggy: meal}", "Did you mean 'strategy'?"),
    ("config.yaml", b"\xff\xfe\x00", "config.yaml"),
    ("seed-0/rounds.jsonl", b'{"round": 0}\n', "line 1 is damaged: n_labelled: field required"),
    ("seed-0/rounds.jsonl", b"garbage\n{}\n", "line 1 is damaged"),
    ("seed-0/rounds.jsonl", b'{"round": 1, "n_labelled": 1, "fraction": 0.1}\n', "line 1 is round 1; round 0 belongs"),
    ("seed-0/rounds.jsonl",
     b'{"round": 0, "n_labelled": 1, "fraction": 0.1, "queried": [{"id": 320, "image": "", "row": 0, "col": 0}]}\n',
     "names patch 320"),
])
def test_damaged_files_are_named(tmp_path, name, content, expected):
    path = small(tmp_path / "run", seeds=(0,))
    if content is None:
        (path / name).unlink()
    else:
        (path / name).write_bytes(content)
    message = refused(path)
    assert name in message
    assert expected in message


@pytest.mark.parametrize("name", ["embedding.npz", "gallery/round-01.npz"])
def test_damaged_archives_are_named(tmp_path, name):
    path = small(tmp_path / "run", seeds=(0,))
    archive = path / "seed-0" / name
    whole = archive.read_bytes()
    archive.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(InputError, match=re.escape(str(archive))):
        write_report([load_run(path)], tmp_path / "r.html")
    np.savez(archive, points=np.zeros((3, 2)))  # of another run
    with pytest.raises(InputError, match=re.escape(str(archive))):
        write_report([load_run(path)], tmp_path / "r.html")
    assert not list(tmp_path.glob("*.html"))


def test_report_that_cannot_be_written(tmp_path):
    run = load_run(small(tmp_path / "run", seeds=(0,), gallery=False))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written to .*file.r\.html: File exists"):
        write_report([run], tmp_path / "file" / "r.html")


def test_report_makes_its_directory(tmp_path):
    run = load_run(small(tmp_path / "run", seeds=(0,), gallery=False))
    assert write_report([run], tmp_path / "new" / "r.html").is_file()


def test_report_replaces_the_old_one_and_leaves_nothing_else(tmp_path):
    run = load_run(small(tmp_path / "run", seeds=(0,), gallery=False))
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.html").write_text("old")
    assert write_report([run], out) == out / "report.html"
    assert [entry.name for entry in out.iterdir()] == ["report.html"]
    assert (out / "report.html").read_text().startswith("<!DOCTYPE html>")
