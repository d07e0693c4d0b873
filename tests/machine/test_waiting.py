"""Threads sleep while they wait, unless the environment says otherwise; settled before PyTorch is there."""

import subprocess
import sys

import pytest

from meal_gpu.machine.waiting import CHOSEN_BY, wait_asleep


def test_they_sleep():
    environment = {"OMP_NUM_THREADS": "2"}
    assert wait_asleep(environment)
    assert environment == {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}


@pytest.mark.parametrize("name", CHOSEN_BY)
def test_who_has_chosen_is_left_alone(name):
    environment = {name: "1"}
    assert not wait_asleep(environment)
    assert environment == {name: "1"}


def test_it_is_settled_before_pytorch_is_loaded():
    """OpenMP reads its environment once, when it is loaded."""
    script = ("import os, sys\n"
              "import meal_gpu.cli as cli\n"
              "cli.end_well = lambda *_: print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])\n"
              "os.environ.pop('OMP_WAIT_POLICY', None)\n"
              "cli.main()")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "PASSIVE"]
