"""The command line as a user meets it: what it prints, what it refuses and how, its exit codes."""

import io
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny import tiny_config

from meal_gpu import cli, endings


@pytest.fixture
def meal_gpu(monkeypatch, capsys):
    """``meal_gpu("run", "demo")`` -> (exit code, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["meal-gpu", *map(str, arguments)])
        monkeypatch.setattr(cli, "console", cli.Console(file=None, width=100))
        monkeypatch.setattr(cli, "errors", cli.Console(stderr=True, width=100))
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return call


@pytest.fixture
def tiny_file(tmp_path):
    """``tiny_file(**changes)`` -> a config file."""

    def write(**changes: object) -> Path:
        file = tmp_path / "tiny.yaml"
        file.write_text(tiny_config(tmp_path, **changes).dump())
        return file

    return write


def test_a_run_and_its_report(meal_gpu, tiny_file, tmp_path):
    config = tiny_file()
    code, out, err = meal_gpu("run", config, "--out", tmp_path / "run")
    assert code == 0, err
    assert "seed 0" in out
    assert str(tmp_path / "run" / "report.html") in out
    code, out, _ = meal_gpu("report", tmp_path / "run", "--out", tmp_path / "page.html")
    assert code == 0
    assert (tmp_path / "page.html").is_file()
    code, out, _ = meal_gpu("run", "--resume", tmp_path / "run")
    assert code == 0

    code, _, err = meal_gpu("run", config, "--out", tmp_path / "run")
    assert code == 2
    assert "already holds a run" in err
    assert "--resume" in err


def test_ingest_then_verify(meal_gpu, tiny_file):
    config = tiny_file()
    code, out, _ = meal_gpu("ingest", config)
    assert code == 0
    assert "images" in out
    code, out, _ = meal_gpu("ingest", config, "--verify")
    assert code == 0
    assert "verified" in out


def test_info(meal_gpu, tiny_file):
    code, out, _ = meal_gpu("info", tiny_file())
    assert code == 0
    for word in ("device", "cpu (asked for)", "precision", "umap", "torch"):
        assert word in out


DEMO = ["data.image_size=[64,96]", "data.n_images=6", "data.n_val_images=2", "query.rounds=1", "query.n_query=4",
        "query.n_informative=8", "train.epochs=1", "train.final_epochs=1", "seeds=[0]"]


def test_the_demo_says_who_won(meal_gpu, tmp_path):
    """Both strategies in one report; called again, it does what is missing, and says the same."""
    settings = [word for key in (*DEMO, f"data.store={tmp_path / 'store'}") for word in ("--set", key)]
    call = ["demo", "--out", tmp_path / "out", *settings]
    code, out, err = meal_gpu(*call)
    assert code == 0, err
    assert "random (1 of 2)" in out
    assert "meal (2 of 2)" in out
    (won,) = re.findall(r"(?:\w+ (?:won against|ended ahead of) \w+:|Random and MEAL end).*", " ".join(out.split()))
    assert "may be noise" in won
    assert "<title>Random and MEAL on demo scenes" in (tmp_path / "out" / "report.html").read_text()
    (tmp_path / "out" / "meal" / "seed-0" / "rounds.jsonl").unlink()
    code, out, _ = meal_gpu(*call)
    assert code == 0
    assert "meal (1 of 1)" in out
    assert won in " ".join(out.split())


BAD_CALLS = [
    # what is given                                      what the message must say
    (["run"], "Give a CONFIG to start a run, or --resume DIR"),
    (["run", "camvd"], "Did you mean 'camvid'?"),
    (["run", "demo", "--set", "train.epoch=3"], "Did you mean 'epochs'?"),
    (["run", "demo", "--set", "train.epochs=many"], "valid integer"),
    (["run", "demo", "--set", "train.epochs"], "give key=value"),
    (["run", "demo", "--set", "query.strategy=mael"], "Did you mean 'meal'?"),
    (["run", "demo", "--set", "device=cuda"], "Use device: cpu or auto"),
    (["run", "demo", "--set", "umap.backend=cuml"], "umap.backend is 'cuml'"),
    (["run", "demo", "--set", "query.n_informative=8"], "at least as many as the query"),
    (["run", "demo", "--set", "query.rounds=60"], "patches. Lower query.rounds"),
    (["run", "demo", "--set", "query.n_initial_images=99"], "the pool has 48 images"),
    (["run", "demo", "--set", "data.grid=[100,4]"], "does not fit images"),
    (["run", "demo", "--set", "model.backbone=mobilenet2_100"], "Did you mean"),
    (["run", "demo", "--set", "model.weights=/nowhere.safetensors"], "there is no such file"),
    (["run", "demo", "--set", "query.oracle=people", "--set", "seeds=[0,1]"], "Give one seed"),
    (["run", "camvid", "--set", "data.root=/nowhere"], "/nowhere"),
    (["run", "--resume", "/nowhere"], "holds no run"),
    (["run", "table1_camvid"], "is a sweep (it has 'axes'), not the config of one run: meal-gpu sweep table1_camvid"),
    (["sweep"], "Give a CONFIG to start a sweep, or --resume DIR"),
    (["sweep", "camvid"], "is the config of one run (meal-gpu run camvid), not a sweep"),
    (["sweep", "table1_camvd"], "Did you mean 'table1_camvid'?"),
    (["sweep", "table1_camvid", "--set", "train.epoch=3"], "point frozen-random-seed-0: Unknown key 'train.epoch'"),
    (["sweep", "table1_camvid", "--set", "data.root=/nowhere"], "Point frozen-random-seed-0"),
    (["sweep", "--resume", "/nowhere"], "holds no sweep"),
    (["sweep", "--resume", "/nowhere", "--only", "x"], "without --out, --set and --only"),
    (["report", "/nowhere"], "/nowhere"),
    (["ingest", "camvid", "--set", "data.root=/nowhere"], "/nowhere"),
]


@pytest.mark.parametrize(("call", "message"), BAD_CALLS, ids=lambda value: " ".join(value) if value is list else None)
def test_bad_calls_get_one_message_and_exit_code_2(meal_gpu, tmp_path, call, message):
    store = ["--set", f"data.store={tmp_path}"] if call[0] == "run" and "--resume" not in call and len(call) > 1 else []
    code, out, err = meal_gpu(*call, *store)
    assert code == 2
    assert message in " ".join(err.split())
    assert "Traceback" not in out + err


def test_bad_data_is_refused_before_training(meal_gpu, tiny_file, make_folder):
    root = make_folder(n=4, size=(64, 96))
    (root / "masks" / "img2.png").unlink()
    code, _, err = meal_gpu("run", tiny_file(**{"data.dataset": "folder", "data.root": str(root),
                                                "data.class_names": ["a", "b", "c"]}))
    assert code == 2
    assert "img2" in err


def test_people_are_told_where_the_query_is(meal_gpu, tiny_file, make_folder, tmp_path):
    root = make_folder(n=6, size=(64, 96))
    config = tiny_file(**{"data.dataset": "folder", "data.root": str(root), "data.class_names": ["a", "b", "c"],
                          "data.masks": None, "query.oracle": "people"})
    code, out, _ = meal_gpu("run", config, "--out", tmp_path / "run")
    assert code == 3
    folder = tmp_path / "run" / "seed-0" / "to-label" / "round-00"
    assert str(folder / "masks") in out
    assert f"meal-gpu run --resume {tmp_path / 'run'}" in out
    first, *others = json.loads((folder / "query.json").read_text())["items"]
    Image.fromarray(np.full((5, 5), 1, np.uint8)).save(folder / "masks" / first["file"])
    for patch in others:
        y0, x0, y1, x1 = patch["box"]
        Image.fromarray(np.zeros((y1 - y0, x1 - x0), np.uint8)).save(folder / "masks" / patch["file"])
    code, _, err = meal_gpu("run", "--resume", tmp_path / "run")
    assert code == 2
    assert first["file"] in err
    assert "they must be equal" in err


def test_no_space_left_keeps_the_run(meal_gpu, tiny_file, tmp_path):
    """A limit on the size of files stops the network from being saved; without it the run goes on as if nothing was."""
    config, out = tiny_file(**{"query.rounds": 1, "query.strategy": "entropy"}), tmp_path / "run"
    program = ("import resource, sys; from meal_gpu.cli import main; "
               "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20)); main()")
    stopped = subprocess.run([sys.executable, "-c", program, "run", str(config), "--out", str(out)],
                             capture_output=True, text=True, check=False)
    assert stopped.returncode == 2, stopped.stderr
    assert f"meal-gpu run --resume {out}" in " ".join(stopped.stderr.split())
    assert "Traceback" not in stopped.stderr
    # Where no terminal is, a message is one line, however long its path.
    assert [line[-3:] for line in stopped.stderr.splitlines() if line.startswith("Built the store")] == 2 * [" s."]
    assert not list(out.rglob(".*.safetensors.*"))
    code, _, err = meal_gpu("run", "--resume", out)
    assert code == 0, err
    assert len((out / "seed-0" / "rounds.jsonl").read_text().splitlines()) == 2


def test_interrupting_says_how_to_go_on(meal_gpu, monkeypatch, tiny_file, tmp_path):
    def interrupted(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("meal_gpu.stages.train._batches", interrupted)
    code, _, err = meal_gpu("run", tiny_file(), "--out", tmp_path / "run")
    assert code == 130
    assert "--resume" in err


def test_shipped_configs_hold_the_papers_settings(tmp_path):
    from meal_gpu.config import Config

    budgets = {"camvid": 288, "camvid_finetune": 288, "cityscapes": 480, "cityscapes_large_init": 470}
    for name, budget in budgets.items():
        config = Config.load(name)
        query, train = config.query, config.train
        assert query.n_initial_images * 16 + query.rounds * query.n_query == budget
        assert (train.epochs, train.final_epochs, train.batch_size, train.lr) == (25, 32, 8, 0.001)
        assert query.n_informative == 200
        assert yaml.safe_load(config.dump())["umap"]["n_components"] == 2


def test_a_warning_stands_out_on_a_terminal():
    """Bold and red where colours are shown; other lines are plain."""
    stream = io.StringIO()
    handler = endings.Lines(console=cli.Console(file=stream, force_terminal=True, width=100), show_time=False,
                        show_path=False, show_level=False)
    for level, shown in ((logging.INFO, False), (logging.WARNING, True)):
        stream.truncate(0)
        handler.emit(logging.LogRecord("meal_gpu", level, "", 0, "the %s", ("line",), None))
        assert "the line" in stream.getvalue()
        assert ("\x1b[1;31m" in stream.getvalue()) == shown
