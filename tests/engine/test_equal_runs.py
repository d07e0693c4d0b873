"""Equal runs are equal: two processes with as many threads give the same records, one of them interrupted.

All ways to train, score and read are gone through, in processes of their own, since threads are counted when a process
starts. That the two run at the same time, with more threads than cores, is meant: so threads come in every order.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny_config

from meal_gpu.engine.surroundings import note_machine
from meal_gpu.machine.backend import resolve
from meal_gpu.machine.card import card

TESTS = Path(__file__).resolve().parents[1]


def started(out: Path, threads: int, precision: str, interrupt: bool) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE",
                   "NUMBA_NUM_THREADS": str(threads), "PYTHONPATH": str(TESTS),
                   "MEAL_GPU_TEST_PRECISION": precision, "MEAL_GPU_TEST_INTERRUPT": str(int(interrupt))}
    environment.pop("MKL_NUM_THREADS", None)
    return subprocess.Popen([sys.executable, str(TESTS / "engine" / "equal_runs.py"), str(out)], env=environment)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("threads", [1, 2])
def test_two_runs_give_the_same_records(tmp_path, threads, precision):
    native = resolve(tiny_config(tmp_path, **{"model.precision": "auto"})).dtype
    if precision == "bfloat16" and native != torch.bfloat16:
        pytest.skip("this processor has no native bfloat16")
    outs = [tmp_path / "whole.json", tmp_path / "interrupted.json"]
    processes = [started(out, threads, precision, interrupt)
                 for out, interrupt in zip(outs, (False, True), strict=True)]
    try:
        assert [process.wait() for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    whole, interrupted = (json.loads(out.read_text()) for out in outs)
    assert whole["threads"] == interrupted["threads"] == threads
    assert len(whole["runs"]) == 12
    assert [name for name, records in whole["runs"].items() if records != interrupted["runs"][name]] == []


@pytest.mark.parametrize(("changes", "said"), [
    ({}, None), ({"memory_gb": 3.0}, None), ({"threads": 4}, "2 threads before, 4 threads now"),
    ({"cpu": "AMD EPYC"}, "Intel (processor) before, AMD EPYC (processor) now"),
])
def test_going_on_where_sums_are_split_otherwise_warns(tmp_path, caplog, changes, said):
    started_on = {"threads": 2, "cpu": "Intel", "memory_gb": 8.0, "dataset": {}}
    (tmp_path / "environment.json").write_text(json.dumps(started_on))
    now = {**started_on, **changes}
    for _ in range(2):  # the second time it is where the run was last
        note_machine(tmp_path, now)
    assert [record.levelname for record in caplog.records] == ([] if said is None else ["WARNING"])
    assert said is None or said in caplog.text
    kept = json.loads((tmp_path / "environment.json").read_text())
    assert kept.get("resumed_on", []) == ([now] if changes else [])


def test_the_environment_names_threads_and_processor():
    assert card()["threads"] == torch.get_num_threads()
    assert card()["cpu"]
