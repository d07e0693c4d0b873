"""The benchmark's protocol: turns, warm-up, rotation, calibration, memory, roofs."""

import itertools
import json
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from meal_gpu.bench.timing import measure, memory
from meal_gpu.bench.timing.measure import (
    Calibration,
    Effort,
    Pace,
    Timer,
    Timing,
    enough_copies,
    interleaved,
    rotating,
)
from meal_gpu.bench.timing.roofs import card, measure_roofs
from meal_gpu.planning.roofline import Roofs, Work

CPU = torch.device("cpu")


def slow(seconds: float = 0.052) -> None:
    """So long that one call is one sample, and nobody tries whether it can be faster."""
    time.sleep(seconds)


def test_every_alternative_runs_in_every_round_and_the_order_alternates():
    calls: list[str] = []
    work = {name: lambda name=name: (calls.append(name), slow()) for name in "abc"}
    timings = interleaved(work, Effort(0.0, min_rounds=3, max_rounds=9, warmup_seconds=0.0))
    assert sorted(calls) == sorted("abc" * 4)
    assert calls[3:6] == calls[6:9][::-1]
    assert all(len(timing.seconds) == 3 for timing in timings.values())


def test_warm_up_lasts_its_time_and_rounds_theirs():
    """The clock ticks a second a look: warm-up is over at the third round, measuring at the fifth."""
    ticks, calls = itertools.count(), []
    interleaved({"a": lambda: (calls.append(0), slow())}, Effort(5.0, 1, 50, warmup_seconds=3.0),
                clock=lambda: float(next(ticks)))
    assert len(calls) == 3 + 5


def test_short_calls_are_repeated_within_a_sample():
    """One sample of an append holds thousands of them, and is reported per call."""
    calls: list[int] = []
    timing = interleaved({"a": lambda: calls.append(0)}, Effort(0.0, 1, 1, 0.1))["a"]
    assert len(calls) > 100
    assert timing.best < 1e-3


def test_an_interrupted_first_call_does_not_make_samples_short():
    """The first call takes 20 ms, the others microseconds: samples still hold many."""
    calls: list[int] = []
    interleaved({"a": lambda: (calls.append(0), slow(0.02) if len(calls) == 1 else None)}, Effort(0.0, 1, 1, 0.0))
    assert len(calls) > 100


def test_ratio_is_per_round():
    """A machine twice as slow in one round does not change it."""
    fast, slower = Timing((1.0, 2.0, 1.0)), Timing((10.0, 20.0, 12.0))
    assert fast.ratio(slower) == 10
    assert fast.median == 1
    assert slower.best == 10


def test_calibration_stands_beside_every_sample(monkeypatch):
    """Timed before and after each: 2 and 4 ms of the processors, 1 and 2 ms of the memory make the units 3 and 1.5."""
    answers = itertools.cycle([Pace(0.002, 0.001), Pace(0.004, 0.002)])
    calibration = Calibration(CPU)
    pace = calibration.pace(0.01)
    assert min(pace.processors, pace.memory) > 1e-5
    monkeypatch.setattr(calibration, "pace", lambda beside: next(answers))
    monkeypatch.setattr(measure, "stood_ready", dict)  # nobody else is on the machine
    timing = interleaved({"a": slow}, Effort(0.0, 3, 3, 0.0), calibration=calibration)["a"]
    assert [seconds / 0.003 for seconds in timing.seconds] == pytest.approx(timing.calibrated)
    assert [seconds / 0.0015 for seconds in timing.seconds] == pytest.approx(timing.by_memory)
    assert timing.times(2).by_memory == pytest.approx([2 * value for value in timing.by_memory])


def test_the_memory_is_calibrated_beyond_the_caches():
    """What a pass over its windows reads and writes is the last-level cache twice over."""
    windows = Calibration(CPU).windows
    assert sum(tensor.nbytes for window in windows for tensor in window) >= 1.9 * card()["last_level_cache_bytes"]


def test_time_that_others_took_is_not_counted(monkeypatch):
    """2 of 10 ms were spent ready to run; a sleep is not, and stays."""
    waited = itertools.cycle([{"1": 0, "2": 0}, {"1": 1_000_000, "2": 2_000_000, "3": 0}])
    monkeypatch.setattr(measure, "stood_ready", lambda: next(waited))
    wall, undisturbed = Timer(CPU).undisturbed(lambda: slow(0.01))
    assert wall - undisturbed == pytest.approx(0.002)
    monkeypatch.undo()
    wall, undisturbed = Timer(CPU).undisturbed(lambda: slow(0.05))
    assert undisturbed > 0.04


def test_timer_is_per_call():
    assert 0.006 <= Timer(CPU)(slow, calls=3) < 0.1


def test_inputs_rotate():
    seen = []
    call = rotating(seen.append, [1, 2, 3])
    for _ in range(5):
        call()
    assert seen == [1, 2, 3, 1, 2]


def test_enough_copies_exceed_the_last_level_cache():
    cache = card()["last_level_cache_bytes"]
    assert cache >= 2**18
    assert enough_copies(2 * cache, CPU) == 1
    assert enough_copies(cache, CPU) == 2
    assert enough_copies(1, CPU) == 64


WATCHED = """
import json, sys, time
import torch
from meal_gpu.bench.timing import memory

if sys.argv[1] == "sampled":
    memory._reset = lambda: False
with memory.peak(torch.device("cpu")) as found:
    torch.ones(20_000_000)
    time.sleep(0.03)
    held = torch.ones(20_000_000)
    time.sleep(0.03)
    del held
print(json.dumps(vars(found)))
"""


@pytest.mark.parametrize("how", ["VmHWM", "sampled"])
def test_peak_memory(how):
    """80 MB that are gone at the end are seen, by the kernel's mark and by sampling.

    In a process of its own: one that has run other tests may give back more of theirs in the same moment.
    """
    done = subprocess.run([sys.executable, "-c", WATCHED, how], check=True, stdout=subprocess.PIPE, text=True)
    found = memory.Peak(**json.loads(done.stdout))
    assert found.how == how
    assert 70e6 < found.host_added_bytes < 250e6
    assert found.device_bytes is None


def test_the_roof_is_the_slowest_of_all_counts():
    roofs = Roofs(2, "float32", bytes=1e9, exps=1e8, flops=1e10)
    assert roofs.least(Work(bytes=10**9, exps=10**7)) == (1.0, "memory")
    assert roofs.least(Work(bytes=10**9, exps=10**9)) == (10.0, "exp")
    assert roofs.least(Work(pixels=5)) == (0.0, "")  # not measured
    assert (Work(bytes=2, flops=3) + Work(flops=4)).times(2) == Work(bytes=4, flops=14)


def test_measured_roofs_are_positive_and_plausible(tmp_path):
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.png")
    roofs = measure_roofs(CPU, torch.float32, [tmp_path / "a.png"] * 3, Effort(0.0, 1, 1, 0.0))
    assert roofs.threads == torch.get_num_threads()
    assert 1e8 < roofs.bytes < 1e13
    assert 1e7 < roofs.exps < 1e13
    assert 1e9 < roofs.flops < 1e15
    assert min(roofs.pixels, roofs.dispatches, roofs.updates) > 1e3
