"""How a run's strategy is told."""

import dataclasses

import pytest
from fake_run import small

from meal_gpu.report import load_run
from meal_gpu.report.words import choosing, heading, setting


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


@pytest.mark.parametrize(("query", "said"), [
    ({"n_initial_images": 2, "rounds": 3},
     "2 random images (16 patches) are labelled at the start; each of 3 rounds asks for"),
    ({"n_initial_images": 1, "rounds": 1}, "one random image (16 patches) is labelled at the start; one round asks"),
    ({"start": "coreset"}, "16 patches, chosen by coreset, are labelled at the start; each of"),
    ({"labels_of": "runs/before", "rounds": 0},
     "16 patches, which the run before had labelled, are labelled at the start, 16.7% of all; nothing more is asked"),
])
def test_how_it_began_is_said(tmp_path, query, said):
    run = load_run(small(tmp_path / "run"))
    run = dataclasses.replace(run, config=run.config.revised("query", **query))
    found = setting(run)
    share = run.first / run.dataset.n_patches
    assert said.replace("16 patches", f"{run.first} patches").replace("16.7%", f"{share:.1%}") in found


def test_one_epoch_is_no_epochs(tmp_path):
    run = load_run(small(tmp_path / "run"))
    run = dataclasses.replace(run, config=run.config.revised("train", epochs=1))
    assert "for 1 epoch in each round" in setting(run)


def test_a_heading_names_few_strategies_and_counts_many(tmp_path):
    run = load_run(small(tmp_path / "run"))
    runs = [dataclasses.replace(run, config=run.config.revised("query", strategy=name)) for name in (
        "random", "entropy", "meal", "meal_ft", "coreset", "kmeans", "badge")]
    assert heading(runs[:3]).startswith("Random, Entropy and MEAL on ")
    assert heading(runs).startswith("7 strategies on ")
