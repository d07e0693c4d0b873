"""`bench stream` on pools so small that they take seconds: the memory of a pass does not grow with the pool."""

import json
import subprocess

import pytest

from meal_gpu.bench import cityscapes, stream

pytest.importorskip("nvidia.dali")


def test_a_streamed_pool_takes_no_more_memory_when_it_is_larger(tmp_path, monkeypatch):
    """112 more images of 0.17 MB, under a budget of 4 MB, each phase in a process of its own.

    Both pools are several batches long, since the first few raise the memory of any pool.
    """
    # Large blocks go back to the system at once: else the allocator's habits are what is seen in so short a pass.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    result = stream.run(tmp_path, [112, 224], (192, 288), 0.004, lambda text: None)
    added = {stage.name: stage.peak.host_added_bytes for stage in result.stages}
    assert set(added) == {"ingest 112", "score 112", "ingest 224", "score 224"}
    assert added["score 224"] - added["score 112"] < 8e6  # 19 MB, if the pool stayed in memory
    assert added["ingest 224"] - added["ingest 112"] < 8e6
    result.write(tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text())["stages"][1]["peak"]["how"] == "VmHWM"


def test_a_pool_that_fits_is_refused(tmp_path):
    root = cityscapes.write(tmp_path, 2, 1, (64, 128))
    with pytest.raises(RuntimeError, match="nothing would be streamed"):
        stream._phase("score", str(root), (64, 128), 1.0)


def test_a_phase_that_fails_is_no_result(tmp_path):
    with pytest.raises(subprocess.CalledProcessError):
        stream.run(tmp_path, [1], (64, 128), -1.0, lambda text: None)  # no budget that a configuration may have
