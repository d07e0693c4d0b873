"""`bench data` and `bench stream` on pools so small that they take seconds: what they check, and what they report."""

import json

import numpy as np
import pytest

from meal_gpu.bench import cityscapes, data, stream
from meal_gpu.bench.measure import Effort
from meal_gpu.bench.result import Result, WrongResultError
from meal_gpu.datasets import CITYSCAPES

pytest.importorskip("nvidia.dali")
QUICK = Effort(0.0, 1, 1, 0.0)


@pytest.fixture(scope="module")
def result() -> Result:
    return data.run(QUICK, (data.Case((48, 64), 3, (2, 2)),))


def test_everything_that_is_asked_for_is_measured(result):
    names = [stage.name.removesuffix(" 48x64") for stage in result.stages]
    assert names == ["ingest PNG", "ingest JPEG", "images resident", "images streamed", "patches resident",
                     "patches streamed", "raw patches resident", "raw images streamed",
                     "raw patches streamed"]
    for name in ("ingest PNG 48x64", "ingest JPEG 48x64"):
        assert {other.name for other in result.stage(name).baselines} == {"Pillow + DataLoader", "Pillow, threads",
                                                                         "torchvision"}
    assert result.stage("patches streamed 48x64").items == 12 * data.REPEATS
    assert {other.name for other in result.stage("raw patches streamed 48x64").baselines} == {
        "copying the page cache", "decode the PNGs again"}


def test_a_decoder_that_is_fast_and_wrong_fails(monkeypatch):
    real = data._torchvision
    monkeypatch.setattr(data, "_torchvision", lambda sample: real(sample) ^ 1)
    with pytest.raises(WrongResultError, match="torchvision differs from Pillow by 1 levels"):
        data.run(QUICK, (data.Case((48, 64), 2),))


def test_a_stream_that_is_fast_and_wrong_fails(monkeypatch):
    real = data.StreamedFrames.scan
    monkeypatch.setattr(data.StreamedFrames, "scan",
                        lambda self, size: ((part, pixels + 1e-6) for part, pixels in real(self, size)))
    with pytest.raises(WrongResultError, match="streamed frames differ"):
        data.run(QUICK, (data.Case((48, 64), 2),))


def test_the_drawn_data_set_is_a_function_of_its_numbers(tmp_path):
    image, ids = cityscapes.picture(3, (64, 128))
    again, _ = cityscapes.picture(3, (64, 128))
    assert np.array_equal(image, again)
    assert not np.array_equal(image, cityscapes.picture(11, (64, 128))[0])  # the same scene, another place and noise
    assert set(np.unique(ids)) <= {0, *(number for number, _ in CITYSCAPES.values())}


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
    with pytest.raises(Exception, match="non-zero exit status"):
        stream.run(tmp_path, [2], (64, 128), 1.0, lambda text: None)
