"""`meal-gpu query`: the choice of `meal_gpu.query`, shown and written, round after round."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from meal_gpu import cli


@pytest.fixture
def ask(make_camvid, tmp_path):
    """``ask(*arguments)`` -> the result, on four images and their predictions."""
    root, draw = make_camvid(), np.random.default_rng(0)
    (tmp_path / "predictions").mkdir()
    for file in (root / "train").iterdir():
        np.save(tmp_path / "predictions" / f"{file.stem}.npy", draw.normal(size=(11, 6, 8)))
    settings = [f"data.root={root}", "data.image_size=[24, 32]", "data.grid=[2, 2]", "query.n_query=3",
                "query.strategy=entropy", "device=cpu"]

    def ask(*arguments):
        return CliRunner().invoke(cli.app, ["query", "camvid", "--predictions", str(tmp_path / "predictions"),
                                            *(word for one in settings for word in ("--set", one)),
                                            *map(str, arguments)])

    return ask


def test_rounds_ask_for_what_is_left(ask, tmp_path):
    seen: set[tuple] = set()
    files = []
    for k in range(3):
        result = ask("--out", tmp_path / str(k), *(word for file in files for word in ("--labelled", file)))
        assert result.exit_code == 0, result.output
        files.append(tmp_path / str(k) / "query.json")
        content = json.loads(files[-1].read_text())
        new = {(patch["image"], patch["row"], patch["col"]) for patch in content["patches"]}
        assert len(new) == 3
        assert not new & seen
        assert content["round"] == k
        assert content["labelled"] == 3 * k
        seen |= new
        assert all(image in result.output for image, _, _ in new)


def test_nothing_is_written_without_out(ask, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert ask().exit_code == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_bad_input_is_told(ask, tmp_path):
    (tmp_path / "x.json").write_text("{}")
    for arguments, said in ((["--labelled", tmp_path / "x.json"], "which is no query.json"),
                            (["--labelled", tmp_path / "none.json"], "cannot be read"),
                            (["--set", "query.strategy=meal"], "holds no 'features'"),
                            (["--probabilities"], "outputs is 'probabilities', and those of"),
                            (["--predictions", tmp_path / "none"], "which is no directory")):
        error = ask(*arguments).exception
        assert said in str(error)


def test_another_grid_is_refused(ask, tmp_path):
    ask("--out", tmp_path / "0")
    error = ask("--labelled", tmp_path / "0" / "query.json", "--set", "data.grid=[3, 4]").exception
    assert "is of images [24, 32] under a grid [2, 2]" in str(error)
