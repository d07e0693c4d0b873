"""Workers are forked from a process that has imported everything and touched nothing."""

import json
import subprocess
import sys

import pytest

from meal_gpu.sharding import cluster, forking

linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes are spawned")


def found_there() -> tuple[list[str], int]:
    """In a worker, before anything is asked of it."""
    import torch

    return [name for name in forking.IMPORTED if name in sys.modules], torch.get_num_threads()


@linux
def test_a_worker_has_imported_what_it_needs():
    with cluster.local(1, 1) as client:
        [(imported, threads)] = client.run(found_there).values()
    assert imported == forking.IMPORTED
    assert threads == 1


@linux
def test_libraries_that_were_imported_for_other_threads_are_imported_again(monkeypatch):
    monkeypatch.setattr(forking, "_begun", 2)
    assert forking.method(1) == "spawn"
    with cluster.local(1, 1) as client:
        [(imported, threads)] = client.run(found_there).values()
    assert threads == 1
    assert imported != forking.IMPORTED  # the sweep has not been asked for


def test_elsewhere_they_are_spawned(monkeypatch):
    monkeypatch.setattr(forking, "_begun", None)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert forking.method(1) == "spawn"
    assert forking._begun is None


UNTOUCHED = """
import importlib, json, sys, threading
import torch
def touched(*_): raise AssertionError("the device was asked for")
for name in ("_cuda_getDeviceCount", "_cuda_init", "_cuda_getDevice"):
    setattr(torch._C, name, touched)
torch.cuda._lazy_init = touched
for name in sys.argv[1:]:
    importlib.import_module(name)
import numba.cuda
with open("/proc/self/task/%d/children" % threading.get_native_id()) as children:
    begun = children.read()
print(json.dumps([threading.active_count(), numba.cuda.cudadrv.driver.driver.pid, begun]))
"""


@linux
def test_what_is_imported_touches_no_device_and_starts_no_thread():
    """A process that is forked after that may not use CUDA; threads are not forked, and locks they hold stay locked."""
    ran = subprocess.run([sys.executable, "-c", UNTOUCHED, *forking.IMPORTED], capture_output=True, text=True,
                         check=False)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1]) == [1, None, ""]


@linux
def test_what_lies_in_the_current_directory_is_not_imported(tmp_path):
    (tmp_path / "timm.py").write_text("raise SystemExit('not this one')")
    script = tmp_path / "elsewhere" / "script.py"
    script.parent.mkdir()
    script.write_text("from meal_gpu.sharding import cluster\n"
                      "def here():\n    import sys\n    return sys.modules['timm'].__file__\n"
                      "if __name__ == '__main__':\n"
                      "    with cluster.local(1, 1) as client:\n        print(*client.run(here).values())\n")
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip().endswith("timm/__init__.py")
