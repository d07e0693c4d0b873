"""Freed memory is used again. In processes of their own: the setting cannot be taken back."""

import subprocess
import sys

import pytest

from meal_gpu.machine import heap

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc alone has such a setting")

FAULTS = """
import resource, sys
import torch
from meal_gpu.machine import heap

if sys.argv[1] == "kept":
    assert heap.keep_freed({})

def work():
    for _ in range(10):
        torch.ones(20_000_000)  # 80 MB, 19,532 pages

work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

GIVEN_BACK = """
import torch
from meal_gpu.machine import heap
from meal_gpu.bench.timing.memory import resident

heap.keep_freed({})
tensors = [torch.ones(20_000_000), torch.ones(1000)]
del tensors[0]
before = resident("VmRSS")
heap.give_back()
print(before - resident("VmRSS"))
"""


def said(script: str, *arguments: str) -> int:
    done = subprocess.run([sys.executable, "-c", script, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout)


def test_freed_memory_is_used_again():
    """Ten tensors one after the other are given the same pages; by default each faults on all of its own."""
    assert said(FAULTS, "kept") < said(FAULTS, "default") / 4


def test_memory_can_be_given_back():
    """The 80 MB below a tensor that lives on."""
    assert said(GIVEN_BACK) > 70e6


@pytest.mark.parametrize("environment", [{"MALLOC_MMAP_MAX_": "65536"}, {"MALLOC_TRIM_THRESHOLD_": "1"},
                                         {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=65536"}])
def test_whoever_has_chosen_is_left_alone(environment):
    assert not heap.keep_freed(environment)
