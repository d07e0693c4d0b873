"""A temperature from labelled images that were not trained on."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_config

from meal_gpu.launch import run
from meal_gpu.records import read_rounds
from meal_gpu.stages.calibrate import TEMPERATURES, fitted, held_out


@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_the_temperature_is_found_that_labels_were_drawn_with(true):
    draw = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(40_000, 4, generator=draw)
    truth = torch.multinomial((logits / true).softmax(1), 1, generator=draw).squeeze(1)
    found = fitted(logits, truth)
    assert abs(np.log(found / true)) < 0.11
    losses = [float(-(logits.double() / t).log_softmax(1)[torch.arange(len(truth)), truth].mean())
              for t in TEMPERATURES.tolist()]
    assert found == pytest.approx(float(TEMPERATURES[int(np.argmin(losses))]))


@given(st.lists(st.integers(0, 39), min_size=1, max_size=20, unique=True), st.floats(0.05, 0.5), st.integers(0, 9))
def test_whole_images_are_held_out_and_enough_is_left(ids, part, seed):
    ids = torch.tensor(ids)
    held = held_out(ids, 4, part, torch.Generator().manual_seed(seed))
    assert torch.equal(held, held_out(ids, 4, part, torch.Generator().manual_seed(seed)))
    images = ids // 4
    assert not set(images[held].tolist()) & set(images[~held].tolist())
    if held.any():
        assert (~held).sum() >= 2
        assert len(images[held].unique()) == max(1, int(part * len(images.unique())))


def test_a_run_records_the_temperature_and_repeats_itself(tmp_path):
    query = {"strategy": "badge_calibrated", "rounds": 1, "n_initial_images": 3}
    records = [read_rounds(run(tiny_config(tmp_path, query=query), tmp_path / name) / "seed-0") for name in "ab"]
    assert records[0][0]["next_query"] == records[1][0]["next_query"]
    assert 0.1 <= records[0][0]["temperature"] <= 10
    assert records[0][0]["passes"] == {"pool": 1}
    assert "temperature" not in records[0][1]
