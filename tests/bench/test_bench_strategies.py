"""One pass for all strategies, and what each takes to choose."""

import pytest
import torch
from tiny import tiny_config

from meal_gpu.bench.parts import strategies
from meal_gpu.bench.timing.measure import Effort
from meal_gpu.stages.predict import BEYOND
from meal_gpu.strategies.select import STRATEGIES


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_chooses_on_drawn_numbers(name):
    pool = strategies.StandIn(400)
    found = pool.choose(STRATEGIES[name])
    assert len(found.unique()) == 32
    assert not pool.labelled[found].any()
    assert torch.equal(found, strategies.StandIn(400).choose(STRATEGIES[name]))


def test_what_all_need_is_in_one_pass():
    needs = strategies.single()
    assert {"score", "features", "gradient", "class_entropy", "boundary"} <= needs
    assert not needs & BEYOND.keys()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_both_passes_and_every_choice_are_timed(tmp_path):
    result = strategies.run(tiny_config(tmp_path, **{"query.n_query": 4}), Effort(0.01, 1, 1, 0.0), patches=200)
    assert result.part == "strategies"
    names = [stage.name for stage in result.stages]
    assert names[:2] == ["pass of meal", "pass for all"]
    assert {"bald, last", "ensemble of 3", "mirrored"} <= set(names)
    assert {f"{name}, 200" for name in STRATEGIES} <= set(names)
    assert result.stages[1].baselines[0].name == "meal's"
