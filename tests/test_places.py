"""Where a run is to go, and cannot: one sentence, before anything else happens, and never advice to go on with it."""

import os
import sys
from pathlib import Path

import pytest
from tiny import tiny_config

from meal_gpu import cli


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(tiny_config(tmp_path).dump())

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["meal-gpu", words[0], str(config), *words[1:]])
        monkeypatch.setattr(cli, "console", cli.Console(width=10_000))
        monkeypatch.setattr(cli, "errors", cli.Console(stderr=True, width=10_000))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        streams = capsys.readouterr()
        return int(ended.value.code), streams.out, streams.err

    return call


@pytest.mark.parametrize(("place", "expected"), [
    ("file", "it is a file"), ("file/below/it", "file is a file"), ("x" * 300, "File name too long"),
    ("/".join(["x" * 200] * 30), "File name too long"), ("loop", "symbolic links"), ("nowhere", "leads nowhere"),
])
def test_a_place_that_is_none(call, tmp_path, place, expected):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("gone")
    code, _, err = call("run", "--out", str(tmp_path / place))
    assert code == 2
    assert err.count("\n") == 1
    assert expected in err
    assert "Give another --out" in err
    assert "--resume" not in err
    assert not (tmp_path / "store").exists()
    assert (tmp_path / "file").read_text() == "mine"


def test_brackets_are_no_colours(call, tmp_path):
    (tmp_path / "[bold]x[").write_text("")
    code, out, err = call("run", "--out", str(tmp_path / "[bold]x["))
    assert code == 2
    assert f"→ {tmp_path}/[bold]x[" in out
    assert f"{tmp_path}/[bold]x[ cannot be written to" in err


def test_a_place_that_may_not_be_written(call, tmp_path, monkeypatch):
    """Tests may run as root, whom nothing is forbidden."""
    monkeypatch.setattr(os, "access", lambda path, mode, **how: Path(path) != tmp_path)
    code, _, err = call("run", "--out", str(tmp_path / "new"))
    assert code == 2
    assert f"{tmp_path} may not be written. Give another --out." in err
    assert "--resume" not in err
