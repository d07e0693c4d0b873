"""Sweeps on real workers: what they come to, what is refused, and what happens when workers or the scheduler die."""

import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dask.config
import distributed
import pytest
import torch
import yaml
from rich.console import Console
from tiny import tiny_config

from meal_gpu.config import Config
from meal_gpu.errors import InputError
from meal_gpu.launch import run, run_or_resume
from meal_gpu.report import load_sweep
from meal_gpu.sharding import cluster
from meal_gpu.sweep.jobs import Job, run_jobs
from meal_gpu.sweep.live_table import Board
from meal_gpu.sweep.runner import sweep
from meal_gpu.sweepfile import Point, load_points

DASK = [sys.executable, "-m", "dask"]


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=120)


@pytest.fixture
def watch(monkeypatch):
    """``watch(function)``: it is called with every event of the runs, before the board hears of it."""

    def install(function):
        heard = Board.notice

        def notice(board, event):
            function(event)
            heard(board, event)

        monkeypatch.setattr(Board, "notice", notice)

    return install


def queries(run: Path) -> dict[str, list[str]]:
    """Of each seed the lines of its rounds, without what differs between two runs of the same: times,
    memory, and the checksum, which is chained to the run's name."""
    found = {}
    for file in sorted(run.glob("seed-*/rounds.jsonl")):
        records = [json.loads(line) for line in file.read_text().splitlines()]
        found[file.parent.name] = [json.dumps({key: value for key, value in record.items()
                                               if key not in ("seconds", "peak_bytes", "check")}) for record in records]
    return found


def process_in(run: Path) -> int:
    return int((run / ".lock").read_text().split()[1])


def tiny_camvid(camvid_root: Path, root: Path) -> Path:
    """Six training and two validation images of the real CamVid, from all over it."""
    for split, count in (("train", 6), ("val", 2)):
        names = sorted(path.name for path in (camvid_root / split).iterdir())
        for kind in (split, f"{split}annot"):
            (root / kind).mkdir(parents=True)
            for name in names[::len(names) // count][:count]:
                (root / kind / name).symlink_to(camvid_root / kind / name)
    return root


def test_under_fire_it_equals_the_runs_done_one_by_one(camvid_root, tmp_path, console, watch, one_thread):
    """Two strategies x two seeds on two workers. One worker is killed in the middle of training, one in the middle of
    scoring, one is stopped so that it hangs with its run's lock held; the runs are those of this process alone."""
    root = tiny_camvid(camvid_root, tmp_path / "camvid")
    base = tiny_config(tmp_path, **{"data.dataset": "camvid", "data.root": str(root), "data.image_size": [72, 96]})
    (tmp_path / "base.yaml").write_text(base.dump())
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"base": "base.yaml",
                                    "axes": {"query.strategy": ["random", "entropy"], "seeds": [0, 1]}}))
    out, once = tmp_path / "out", {}
    rounds = dict.fromkeys(("random-seed-0", "random-seed-1", "entropy-seed-0", "entropy-seed-1"), 0)
    moments = [("random-seed-0", 1, "train", signal.SIGKILL), ("random-seed-1", 1, "train", signal.SIGSTOP),
               ("entropy-seed-1", 1, "score", signal.SIGKILL)]

    def shoot(event):
        name = event["point"]
        rounds[name] = max(rounds[name], event.get("round", -1) + 1)
        for moment in moments:
            if moment not in once and moment[:2] == (name, rounds[name]) and event.get("stage") == moment[2]:
                once[moment] = (out / name / f"seed-{name[-1]}" / "rounds.jsonl").read_bytes()
                os.kill(process_in(out / name), moment[3])

    watch(shoot)
    # One death is Dask's to mend, every further one ours. Silence of 5 s, the least that Dask allows, is a hang.
    with dask.config.set({"distributed.scheduler.allowed-failures": 1, "distributed.scheduler.worker-ttl": "5s"}):
        sweep(load_points(file), out, console, workers=2)
    assert len(once) == 3, f"not all three were hit: {[*once]}"

    for point in load_points(file):
        run(point.config, tmp_path / "lone" / point.name)
    for name in rounds:
        assert queries(out / name) == queries(tmp_path / "lone" / name)
        assert len(queries(out / name)[f"seed-{name[-1]}"]) == 3
    for (name, *_), lines in once.items():
        kept = (out / name / f"seed-{name[-1]}" / "rounds.jsonl").read_bytes()
        assert lines
        assert kept.startswith(lines), "a finished round was done again"
    said = console.file.getvalue()
    assert said.count("starts again: its worker was lost") >= 3
    merged = load_sweep(out)
    assert [(run.config.query.strategy, [seed.seed for seed in run.seeds]) for run in merged] == [
        ("random", [0, 1]), ("entropy", [0, 1])]
    assert (out / "report.html").is_file()

    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.parent != out and path.is_file()}
    sweep(load_points(file), out, console, workers=2)
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}, "nothing is done twice"


def test_a_lost_scheduler_stops_it_and_the_next_call_goes_on(tmp_path, console, watch):
    """The scheduler and the worker run by themselves, as on a cluster."""
    point = Point("one", tiny_config(tmp_path, **{"query.strategy": "random"}))
    out = tmp_path / "out"
    scheduler = subprocess.Popen([*DASK, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
                                  "--scheduler-file", tmp_path / "scheduler.json"], stderr=subprocess.DEVNULL)
    worker = subprocess.Popen([*DASK, "worker", "--scheduler-file", tmp_path / "scheduler.json", "--nthreads", "1",
                               "--no-dashboard", "--death-timeout", "30"], stderr=subprocess.DEVNULL)
    try:
        while not (tmp_path / "scheduler.json").exists():
            time.sleep(0.1)
        address = json.loads((tmp_path / "scheduler.json").read_text())["address"]
        watch(lambda event: scheduler.kill() if event.get("round") == 0 else None)
        with pytest.raises(InputError, match=r"connection to the scheduler tcp://.* is lost. All finished rounds are "):
            sweep([point], out, console, scheduler=address)
        begun = (out / "one" / "seed-0" / "rounds.jsonl").read_bytes()
        assert begun
        sweep([point], out, console, workers=1)  # the old worker may still be at it: its lock is waited for
    finally:
        for process in (scheduler, worker):
            process.kill()
            process.wait()
    lines = (out / "one" / "seed-0" / "rounds.jsonl").read_bytes()
    assert lines.startswith(begun)
    assert [json.loads(line)["round"] for line in lines.splitlines()] == [0, 1, 2]


def test_failures_do_not_stop_the_others(tmp_path, console, watch, monkeypatch):
    """One run's weights are missing, which only its worker finds out; one kills every worker that it gets."""
    monkeypatch.setattr(cluster, "LIVES", 2)
    config = tiny_config(tmp_path, **{"query.strategy": "random", "query.rounds": 0})
    broken = tiny_config(tmp_path, **{"query.strategy": "random", "model.weights": "/nowhere.safetensors"})
    points = [Point("broken", broken), Point("deadly", config), Point("good", config)]
    out = tmp_path / "out"

    def shoot(event):
        if event["point"] == "deadly" and event.get("stage") == "train":
            os.kill(process_in(out / "deadly"), signal.SIGKILL)

    watch(shoot)
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}), pytest.raises(InputError) as caught:
        sweep(points, out, console, workers=1)
    message = str(caught.value)
    assert "2 of 3 runs failed, the others are finished" in message
    assert "broken: model.weights is '/nowhere.safetensors'" in message
    assert "deadly: its worker died 2 times without finishing a round" in message
    assert [run.path.name for run in load_sweep(out)] == ["good"]
    assert (out / "report.html").is_file()


def test_a_job_that_fails_before_its_run_begins_keeps_the_reason(tmp_path):
    with distributed.Client(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as client:
        job = Job("odd", str(tmp_path / "odd"), "[no YAML")
        [(name, failure)] = run_jobs(client, [job], lambda event: None)
    assert name == "odd"
    assert "ParserError" in failure
    assert "ParserError" in (tmp_path / "odd" / "error.txt").read_text()


REFUSED = [
    ({"query.strategy": "mael"}, "Did you mean 'meal'?"),
    ({"query.rounds": 40}, "Lower query.rounds"),
    ({"query.oracle": "people", "data.masks": None}, "a sweep cannot wait for labels"),
    ({"data.dataset": "camvid", "data.root": "/nowhere"}, "/nowhere"),
    ({"device": "cuda"}, "device is 'cuda'"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_bad_points_are_found_before_anything_starts(tmp_path, console, changes, message):
    if "cuda" in message and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    points = [Point("good", tiny_config(tmp_path)), Point("bad", tiny_config(tmp_path, **changes))]
    with pytest.raises(InputError) as caught:
        sweep(points, tmp_path / "out", console, workers=1)
    assert str(caught.value).startswith("Point bad: ")
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_another_run_of_that_name_is_not_touched(tmp_path, console):
    config = tiny_config(tmp_path, **{"query.strategy": "random", "query.rounds": 0})
    run_or_resume(config, tmp_path / "out" / "one")
    other = config.model_copy(update={"seeds": [5]})
    with pytest.raises(InputError, match=r"Point one: .* holds a run with seeds: \[0\], and \[5\] is asked for now"):
        sweep([Point("one", other)], tmp_path / "out", console, workers=1)
    moved = config.model_copy(update={"device": "auto"})  # what belongs to the machine may change
    assert sweep([Point("one", moved)], tmp_path / "out", console, workers=1).is_file()


def test_where_workers_come_from(tmp_path, console, monkeypatch):
    points, out = [Point("one", tiny_config(tmp_path))], tmp_path / "out"
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="--cuda: no CUDA device is usable here"):
            sweep(points, out, console, cuda=True)
    with pytest.raises(InputError, match="give one of them"):
        sweep(points, out, console, workers=2, cuda=True)
    assert not out.exists()
    monkeypatch.setattr(cluster, "CONNECT_S", 0.5)
    with pytest.raises(InputError, match=r"No Dask scheduler answers at tcp://127.0.0.1:9 .* dask scheduler"):
        sweep(points, out, console, scheduler="tcp://127.0.0.1:9")
    with (distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, protocol="tcp",
                                   dashboard_address=None) as wide,
          pytest.raises(InputError, match="runs 2 tasks at once, and a run needs its process to itself")):
        sweep(points, out, console, scheduler=wide.scheduler_address)


def test_a_directory_is_waited_for_and_names_who_holds_it(tmp_path):
    config = tiny_config(tmp_path, **{"query.strategy": "random", "query.rounds": 0})
    with (tmp_path / ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.write("process 123 on there")
        stream.flush()
        start = time.monotonic()
        with pytest.raises(InputError, match=r"Another process is running in .* \(process 123 on there\)"):
            run_or_resume(config, tmp_path, wait_s=0.5)
        assert time.monotonic() - start >= 0.5


def test_a_run_starts_in_what_a_kill_left(tmp_path):
    config, run = tiny_config(tmp_path, **{"query.strategy": "random", "query.rounds": 0}), tmp_path / "run"
    run.mkdir()
    for name in ("environment.json", ".config.yaml.abc"):
        (run / name).write_text("{")
    run_or_resume(config, run)
    assert Config.load(run / "config.yaml") == config
    assert json.loads((run / "environment.json").read_text())["device"] == "cpu"
    assert len(queries(run)["seed-0"]) == 1


EVENTS = [
    {"point": "a", "worker": "w", "started": True},
    {"point": "a", "worker": "w", "stage": "train", "done": 3, "total": 4},
    {"point": "a", "worker": "w", "seed": 0, "round": 0, "miou": 0.25, "n_labelled": 12},
]


def test_the_board_without_a_terminal_prints_lines(console):
    with Board(console, [("a", 1, 2), ("b", 1, 2)], "mine") as board:
        for event in [*EVENTS, EVENTS[0], EVENTS[2]]:
            board.notice(event)
        board.end("a", None)
        board.notice(EVENTS[1])  # told before the end, heard after it
        board.end("b", "no data")
    assert console.file.getvalue().splitlines() == [
        "a: starts (w)", "a: seed 0, round 0, 12 patches, mIoU 0.250", "a: starts again: its worker was lost (w)",
        "a: done", "b: failed"]


def test_the_board_on_a_terminal_shows_all_runs_that_fit():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, height=12)
    board = Board(console, [(f"run-{i}", 1, 2) for i in range(20)] + [("a", 1, 2)], "mine")
    for event in EVENTS:
        board.notice(event)
    board.end("run-3", None)
    console.print(board.render())
    text = stream.getvalue()
    assert "1 running · 19 waiting · 1 done" in text
    assert "0.250" in text
    assert "1/2" in text
    assert text.index("a ") < text.index("run-0")
    assert "… and 14 more" in text
