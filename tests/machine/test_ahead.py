"""What a short run compiles before it has imported anything: the same as `warm_up` asks for, and no longer than it."""

import os
import subprocess
from contextlib import nullcontext

import pytest

from meal_gpu import cli
from meal_gpu.config import Config
from meal_gpu.engine.experiment import prepare
from meal_gpu.machine import ahead, warm_up


def test_it_compiles_what_the_demo_asks_for(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(warm_up, "_take", asked.append)
    prepare(Config.load("demo", [f"data.store={tmp_path}", "data.n_images=4", "data.n_val_images=1",
                                 "query.n_initial_images=1", "query.n_informative=16"])).close()
    assert asked == [[*ahead.PARTS]]


@pytest.mark.parametrize("ends", [False, True], ids=["well", "badly"])
def test_it_ends_with_the_run(monkeypatch, ends):
    begun = []

    def begin(*arguments, **options):
        begun.append(Popen(*arguments, **options))
        return begun[0]

    Popen = subprocess.Popen
    monkeypatch.setattr(ahead.subprocess, "Popen", begin)
    monkeypatch.setattr(ahead, "usable_cores", lambda: 2)
    try:
        with ahead.compiling_ahead():
            assert begun[0].poll() is None
            if ends:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert ends
    assert begun[0].returncode is not None
    with pytest.raises(ProcessLookupError):
        os.kill(begun[0].pid, 0)


@pytest.mark.parametrize("trouble", ["one core", "no executable", "no process"])
def test_without_it_the_run_goes_on(monkeypatch, trouble):
    if trouble == "one core":
        monkeypatch.setattr(ahead, "usable_cores", lambda: 1)
        monkeypatch.setattr(ahead.subprocess, "Popen", None)
    else:
        monkeypatch.setattr(ahead.sys, "executable", "" if trouble == "no executable" else "/nowhere/python")
    with ahead.compiling_ahead():
        pass


def test_the_demo_begins_with_it(tmp_path, monkeypatch):
    held = []
    monkeypatch.setattr(cli, "compiling_ahead", lambda: held.append(1) or nullcontext())
    monkeypatch.setattr(cli, "_run_points", lambda *_: [])
    monkeypatch.setattr("meal_gpu.report.verdict.verdict", lambda runs: None)
    cli.demo(tmp_path / "demo")
    assert held
