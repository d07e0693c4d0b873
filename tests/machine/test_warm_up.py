"""What is compiled while other work goes on: what a run will call, whatever happens to one part of it."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from meal_gpu.machine import ahead
from meal_gpu.machine import warm_up as module
from meal_gpu.machine.warm_up import PARTS, warm_up


class Part:
    """A part that says when it is asked for; ``there`` in numba's cache or not."""

    def __init__(self, name: str, asked: list[str], there: bool = True) -> None:
        self.name, self.asked, self.there, self.elsewhere = name, asked, there, None

    def __call__(self) -> None:
        self.asked.append(self.name)

    def missing(self) -> bool:
        return not self.there


@pytest.fixture
def asked(monkeypatch):
    names: list[str] = []
    for name in PARTS:
        monkeypatch.setitem(PARTS, name, Part(name, names))
    return names


@pytest.mark.parametrize(("device", "scores", "embeds", "placing", "expected"), [
    ("cpu", True, True, False, ["runs", "normalise", "confusion", "entropy", "umap"]),
    ("cpu", True, True, True, ["runs", "normalise", "confusion", "entropy", "placing"]),
    ("cpu", False, False, False, ["runs", "normalise", "confusion"]),
    ("cuda", True, False, False, []),
    ("cuda", True, True, True, ["placing"]),
])
def test_what_a_run_calls_in_the_order_of_need(asked, device, scores, embeds, placing, expected):
    """Numba compiles one thing at a time: reading the first images waited for the kernel of scores."""
    warm_up(torch.device(device), scores, embeds, placing).join()
    assert asked == expected


def test_what_fails_keeps_nothing_else_from_being_ready(asked, monkeypatch):
    """Whoever needs it says what is wrong, in the main thread."""

    class Broken(Part):
        def __call__(self) -> None:
            raise OSError("no space left")

    monkeypatch.setitem(PARTS, "confusion", Broken("confusion", asked))
    warm_up(torch.device("cpu"), scores=True, embeds=True, placing=False).join()
    assert asked == ["runs", "normalise", "entropy", "umap"]


@pytest.mark.parametrize("name", ["confusion", "umap"])
def test_whoever_cannot_say_whether_it_is_there_stops_nothing(asked, monkeypatch, name):
    """Importing umap-learn fails while a process ends, and a traceback of the thread was the last that people saw."""

    class Broken(Part):
        def missing(self) -> bool:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    raised = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    monkeypatch.setitem(PARTS, name, Broken(name, asked))
    warm_up(torch.device("cpu"), scores=True, embeds=True, placing=False).join()
    assert not raised
    assert asked == ["runs", "normalise", "confusion", "entropy", "umap"]


@pytest.mark.parametrize("missing", ["confusion", "entropy", "umap"])
def test_what_has_to_be_compiled_is_given_to_a_process(asked, monkeypatch, missing):
    """From the first of it on, in order; what is needed at once is not waited for."""
    given = []
    PARTS[missing].there = False
    elsewhere = module._elsewhere
    monkeypatch.setattr(module, "_elsewhere", lambda names: (given.extend(names), elsewhere([]))[1])
    warm_up(torch.device("cpu"), scores=True, embeds=True, placing=False).join()
    order = ["runs", "normalise", "confusion", "entropy", "umap"]
    assert given == order[order.index(missing) :]
    assert asked == order[: order.index(missing)]


def test_a_part_that_is_needed_at_once_starts_no_process(asked, monkeypatch):
    PARTS["runs"].there = PARTS["normalise"].there = False
    monkeypatch.setattr(subprocess, "Popen", None)
    warm_up(torch.device("cpu"), scores=True, embeds=True, placing=False).join()
    assert asked == ["runs", "normalise", "confusion", "entropy", "umap"]


@pytest.mark.parametrize("trouble", ["one core", "no executable", "no process", "it dies", "it fails"])
def test_without_another_process_everything_is_compiled_here(asked, monkeypatch, trouble):
    PARTS["confusion"].there = False
    if trouble == "one core":
        monkeypatch.setattr(ahead, "usable_cores", lambda: 1)
    elif trouble == "no executable":
        monkeypatch.setattr(sys, "executable", "")
    elif trouble == "no process":
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
    elif trouble == "it dies":
        monkeypatch.setattr(sys, "executable", "/bin/true")
    else:
        monkeypatch.setitem(PARTS, "unknown", PARTS.pop("umap"))  # the process knows no such part
        monkeypatch.setattr(module, "COMPILED", {})
    if trouble in ("one core", "no executable"):
        monkeypatch.setattr(subprocess, "Popen", None)
    if trouble == "it fails":
        thread = threading.Thread(target=module._take, args=(["confusion", "unknown"],))
        thread.start()
        thread.join()
        assert asked == ["confusion", "umap"]
    else:
        warm_up(torch.device("cpu"), scores=True, embeds=False, placing=False).join()
        assert asked == ["runs", "normalise", "confusion", "entropy"]
    assert all(part.elsewhere is None or part.elsewhere.is_set() for part in PARTS.values())


COMPILES = """
import sys, threading
from numba.core import event
from meal_gpu.machine import warm_up
if __name__ == "__main__":
    here = []
    class Here(event.Listener):
        def on_start(self, happened): here.append(str(happened.data["dispatcher"]))
        def on_end(self, happened): pass
    event.register("numba:compile", Here())
    warm_up.AT_ONCE = ()
    part = warm_up.PARTS["normalise"]
    assert part.missing()
    thread = threading.Thread(target=warm_up._take, args=(["normalise"],))
    thread.start()
    while part.elsewhere is None:
        pass
    if sys.argv[1:] == ["end"]:
        sys.exit(7)
    part()  # it waits
    thread.join()
    assert not part.missing()
    assert not any("_normalise" in name for name in here), here
    print("compiled elsewhere")
"""


def test_another_process_compiles_and_this_one_loads(tmp_path):
    """A kernel of this project in a cache of its own: whoever needs it waits, and compiles nothing."""
    done = subprocess.run([sys.executable, "-c", COMPILES], env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
                          capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, "compiled elsewhere\n"), done.stderr


def test_a_process_that_ends_does_not_wait_for_what_is_compiled(tmp_path):
    done = subprocess.run([sys.executable, "-c", COMPILES, "end"], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}, check=False)
    assert done.returncode == 7, done.stderr
    assert not list(tmp_path.rglob("*normalise*.nbc")), "it was compiled to its end"


def test_the_other_process_ends_with_whoever_started_it(tmp_path):
    """Killed, so that nobody could tell it."""
    code = ("import subprocess, sys\n"
            "other = subprocess.Popen([sys.executable, '-c', 'from meal_gpu.machine import warm_up;"
            "warm_up.PARTS[\"x\"] = lambda: __import__(\"time\").sleep(600); print(flush=True);"
            "warm_up.compile_parts([\"x\"])'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
            "other.stdout.readline()\n"
            "print(other.pid, flush=True)\n"
            "other.wait()")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as first:
        pid = int(first.stdout.readline())
        first.send_signal(signal.SIGKILL)
    for _ in range(600):
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.1)
    pytest.fail("it goes on alone")


def test_of_two_that_start_at_once_one_compiles(tmp_path):
    """Each starts a process for it, and would spend half a minute on the same."""
    code = ("import sys; from meal_gpu.machine import warm_up; print(flush=True); sys.stdin.readline();"
            "warm_up.compile_parts(['normalise']); stats = warm_up.PARTS['normalise']().stats;"
            "print(sum(stats.cache_misses.values()), sum(stats.cache_hits.values()), flush=True)")
    both = [subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                             env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}) for _ in range(2)]
    try:
        for process in both:
            assert process.stdout.readline() == "\n"
        for process in both:
            process.stdin.write("\n")
            process.stdin.flush()
        said = [[process.stdout.readline() for _ in range(2)] for process in both]
    finally:
        for process in both:
            process.kill()
            process.communicate()
    assert sorted(lines[-1] for lines in said) == ["0 1\n", "1 0\n"]
