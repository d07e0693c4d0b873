"""A run that begins with what another had labelled: the same patches, another training, and what is refused."""

import shutil

import pytest
from tiny import tiny_config
from typer.testing import CliRunner

from meal_gpu.cli import app
from meal_gpu.config import Config
from meal_gpu.data.datasets import open_dataset
from meal_gpu.earlier import bought, first_patches
from meal_gpu.engine.feasible import check_feasible
from meal_gpu.errors import InputError
from meal_gpu.launch import run
from meal_gpu.planning.estimate import middle
from meal_gpu.records import read_rounds
from meal_gpu.report import load_run
from meal_gpu.report.paper import reference
from meal_gpu.report.summary import summarise
from meal_gpu.report.words import setting


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Two rounds of random patches, seeds 0 and 1."""
    folder = tmp_path_factory.mktemp("first")
    return run(tiny_config(folder, **{"query.strategy": "random", "query.rounds": 1, "seeds": [0, 1]}), folder / "run")


def config_of(folder, first, **changes) -> Config:
    return tiny_config(folder, **{"query.strategy": "random", "query.rounds": 0, "seeds": [0], "train.flip": True,
                                  "query.labels_of": str(first), **changes})


def test_the_same_patches_are_trained_on_otherwise(first, tmp_path):
    there = run(config_of(tmp_path, first, seeds=[1, 0]), tmp_path / "again")
    for seed in (0, 1):
        before, [record] = read_rounds(first / f"seed-{seed}"), read_rounds(there / f"seed-{seed}")
        ids = [patch["id"] for line in before for patch in line["queried"]]
        assert [patch["id"] for patch in record["queried"]] == ids
        assert record["n_labelled"] == before[-1]["n_labelled"] == len(ids)
        assert record["labels"] == [crc for line in before for crc in line["labels"]]
        assert record["last"]["miou"] != before[-1]["last"]["miou"]
    found = load_run(there)
    said = setting(found)
    assert f"{found.first} patches, which the run run had labelled, are labelled at the start" in said
    assert "nothing more is asked for" in said
    assert "with flips" in said
    assert not found.supervised
    assert reference(found.config) is None
    assert CliRunner().invoke(app, ["report", str(there), str(first)]).exit_code == 0
    assert len({row.label for row in summarise([found, load_run(first)])}) == 2


def test_more_is_asked_for_from_there(first, tmp_path):
    there = run(config_of(tmp_path, first, **{"query.rounds": 1, "query.strategy": "entropy"}), tmp_path / "on")
    begun, asked = read_rounds(there / "seed-0")
    ids = [patch["id"] for record in (begun, asked) for patch in record["queried"]]
    assert len(set(ids)) == len(ids) == asked["n_labelled"] == begun["n_labelled"] + 4


def test_images_are_found_by_name_where_the_pool_has_another_order(first, tmp_path, monkeypatch):
    """Names are what patches are found by; ids are places in a pool."""
    patches = bought(config_of(tmp_path, first), 0)
    config = config_of(tmp_path, first, **{"data.n_images": 12})  # the same scenes, and six more
    there = run(config, tmp_path / "more")
    [record] = read_rounds(there / "seed-0")
    assert [(p["image"], p["row"], p["col"]) for p in record["queried"]] == [
        (p["image"], p["row"], p["col"]) for p in patches]


def test_what_is_planned_counts_them(first, tmp_path):
    config = config_of(tmp_path, first)
    n = len(bought(config, 0))
    assert first_patches(config, 6) == middle(config, 6) == n
    assert first_patches(config.revised("query", labels_of=None, n_initial_images=0), 6) == 6 * 6


@pytest.mark.parametrize(("changes", "message"), [
    ({"query.labels_of": "nowhere"}, "query.labels_of is 'nowhere', and that is no run"),
    ({"data.grid": [1, 2]}, "whose images are cut into 2 x 3 patches, and data.grid is 1 x 2"),
    ({"seeds": [0, 7]}, "has no finished round of seed 7. It has 0, 1"),
    ({"query.rounds": 9}, "Lower query.rounds"),
])
def test_what_cannot_be_begun_with_is_refused_before_anything_is_read(first, tmp_path, changes, message):
    config = config_of(tmp_path, first, **changes)
    with pytest.raises(InputError) as caught:
        check_feasible(config, open_dataset(config.data))
    assert message in str(caught.value)
    with pytest.raises(InputError):
        run(config, tmp_path / "refused")
    assert not list(tmp_path.glob("refused/seed-*/*"))


def test_images_that_the_pool_lacks_are_named(first, tmp_path):
    config = config_of(tmp_path, first, **{"data.n_images": 3})
    with pytest.raises(InputError, match=r"of \d images labelled that this pool lacks, first train_000[345]"):
        run(config, tmp_path / "lacking")


def test_a_run_that_people_labelled_is_exported_instead(first, tmp_path):
    copied = tmp_path / "people"
    shutil.copytree(first, copied)
    text = (copied / "config.yaml").read_text().replace("oracle: simulated", "oracle: people")
    (copied / "config.yaml").write_text("".join(line for line in text.splitlines(keepends=True)
                                                if not line.startswith("#")))
    for file in copied.glob("seed-*/rounds.jsonl"):
        file.unlink()
    with pytest.raises(InputError, match="which people labelled: make a data set of it with 'meal-gpu export"):
        bought(config_of(tmp_path, copied), 0)


@pytest.mark.parametrize(("query", "message"), [
    ({"labels_of": "x", "start": "random"}, "a run begins with one of them"),
    ({"labels_of": "x", "oracle": "people"}, "the labels are taken from the masks of the data set"),
])
def test_what_does_not_go_together_is_refused(query, message):
    with pytest.raises(InputError) as caught:
        Config.load({"query": query})
    assert message in str(caught.value)
