"""`bench stream` on pools so small that they take seconds: the memory of a pass does not grow with the pool."""

import json
import subprocess
from pathlib import Path

import pytest

from meal_gpu.bench.parts import stream
from meal_gpu.bench.subjects import cityscapes

pytest.importorskip("nvidia.dali")
SIZE, POOLS = (192, 288), (56, 168)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Pools of each number of images where `stream.run` looks for them, and one of 2; they share their files.

    Drawn here: `cityscapes.write`, which has a test of its own, would start a process per core for each pool.
    """
    folder = tmp_path_factory.mktemp("stream")
    whole, *parts = (folder / f"192x288-{n}" for n in (*reversed(POOLS), 2))
    for split, n in (("train", max(POOLS)), ("val", 2)):
        for i in range(n):
            cityscapes._write((whole, split, i, SIZE))
            for part in parts:
                if split == "val" or i < int(part.name.rpartition("-")[2]):
                    for file, link in zip(*(cityscapes.paths(at, split, i) for at in (whole, part)), strict=True):
                        link.parent.mkdir(parents=True, exist_ok=True)
                        link.hardlink_to(file)
    return folder


def test_a_streamed_pool_takes_no_more_memory_when_it_is_larger(root, tmp_path, monkeypatch):
    """112 more images of 0.17 MB, under a budget of 4 MB, each phase in a process of its own.

    Both pools are several batches long, since the first few raise the memory of any pool.
    """
    # Large blocks go back to the system at once: else the allocator's habits are what is seen in so short a pass.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    result = stream.run(root, POOLS, SIZE, 0.004, lambda text: None)
    added = {stage.name: stage.peak.host_added_bytes for stage in result.stages}
    assert set(added) == {"ingest 56", "score 56", "ingest 168", "score 168"}
    assert added["score 168"] - added["score 56"] < 8e6  # 19 MB, if the pool stayed in memory
    assert added["ingest 168"] - added["ingest 56"] < 8e6
    result.write(tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text())["stages"][1]["peak"]["how"] == "VmHWM"


def test_a_pool_that_fits_is_refused(root):
    with pytest.raises(RuntimeError, match="nothing would be streamed"):
        stream._phase("score", str(root / "192x288-2"), SIZE, 1.0)


def test_a_phase_that_fails_is_no_result(root):
    with pytest.raises(subprocess.CalledProcessError):
        stream.run(root, [2], SIZE, -1.0, lambda text: None)  # no budget that a configuration may have
