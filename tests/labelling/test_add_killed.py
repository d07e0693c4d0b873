"""SIGKILL at whatever moment of `labels add`: nothing or all was taken, and the second call gives the same state."""

import os
import shutil
import signal
from collections.abc import Callable
from typing import Any

import pytest
from annotators import label_studio

from meal_gpu.journal import read_journal
from meal_gpu.labelling.adding import add

MOMENTS = 10
CALLS = ("fsync", "replace", "chmod")
"""Every file is written by these: what is in between is the same as before or after one of them."""


def state(waiting) -> tuple[dict[str, bytes], list]:
    """Files, and lines without the time at which they were taken."""
    files = {name: content for name, content in waiting.files().items() if not name.endswith("labels.jsonl")}
    return files, [line.model_copy(update={"added": ""}) for line in read_journal(waiting.seed)]


def counted(at: int, then: Callable[[], Any]) -> Callable[[], int]:
    """Let these calls of `os` be counted, and call ``then`` before number ``at``."""
    n = 0

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal n
            if n == at:
                then()
            n += 1
            return real(*args, **kwargs)
        return call

    for name in CALLS:
        setattr(os, name, wrap(getattr(os, name)))
    return lambda: n


@pytest.fixture
def unharmed():
    real = {name: getattr(os, name) for name in CALLS}
    yield
    for name, function in real.items():
        setattr(os, name, function)


@pytest.mark.usefixtures("unharmed")
def test_killed_at_ten_moments(waiting, tmp_path):
    file = label_studio(waiting.folder, waiting.truth, tmp_path)
    before = tmp_path / "before"
    shutil.copytree(waiting.directory, before)
    real = {name: getattr(os, name) for name in CALLS}
    calls = counted(-1, lambda: None)
    add(waiting.directory, file)
    whole, total = state(waiting), calls()
    assert total >= MOMENTS
    for moment in range(MOMENTS):
        for name, function in real.items():
            setattr(os, name, function)
        shutil.rmtree(waiting.directory)
        shutil.copytree(before, waiting.directory)
        child = os.fork()
        if not child:  # it ends here, one way or the other
            counted(moment * (total - 1) // (MOMENTS - 1), lambda: os.kill(os.getpid(), signal.SIGKILL))
            try:
                add(waiting.directory, file)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert len(read_journal(waiting.seed)) in (0, 3)
        add(waiting.directory, file)
        assert state(waiting) == whole, moment
