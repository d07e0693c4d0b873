"""How a run's strategy is told."""

import dataclasses

import pytest
from fake_run import small

from meal_gpu.report import load_run
from meal_gpu.report.words import choosing


@pytest.mark.parametrize(("query", "said"), [
    ({"strategy": "ensemble_votes", "members": 3},
     "Patches are chosen by the strategy 'ensemble_votes', from 3 networks that are trained in each round; results are "
     "those of the first."),
    ({"strategy": "bald"}, "Patches are chosen by the strategy 'bald'."),
    ({"strategy": "entropy", "score": "ratio"},
     "Each round asks for the patches of closest second class under the model of the round before."),
])
def test_what_chooses_is_said(tmp_path, query, said):
    run = load_run(small(tmp_path / "run"))
    run = dataclasses.replace(run, config=run.config.revised("query", **query))
    assert choosing(run) == said
