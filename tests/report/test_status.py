"""``meal-gpu status``: what it says of runs that nobody, somebody and everybody has labelled for."""

import json
from pathlib import Path

import numpy as np
import pytest
from fake_run import small
from PIL import Image
from typer.testing import CliRunner

from meal_gpu import cli
from meal_gpu.journal import Pixels, Taken, write_journal
from meal_gpu.report.status import waiting


def said(path: Path) -> str:
    result = CliRunner().invoke(cli.app, ["status", str(path)])
    assert result.exit_code == 0, (result.output, result.exception)
    return " ".join(result.output.split())


def people(tmp_path: Path, done: int = 2, **more: object) -> Path:
    return small(tmp_path / "run", seeds=(0,), rounds=4, done={0: done},
                 overrides={"query": {"n_informative": 20, "oracle": "people"}}, **more)


def query(path: Path, round_: int, n: int, more: str = "", table: bool = False) -> Path:
    folder = path / "seed-0" / "to-label" / f"round-{round_:02d}{more}"
    (folder / "masks").mkdir(parents=True)
    items = [{"id": f"r{round_:02d}{more}-{i}", "file": f"{i}_r0_c0.png"} for i in range(n)]
    (folder / "query.json").write_text(json.dumps({"items": items} if table else items))
    return folder


def line(item: str, status: str = "labelled", seconds: float | None = 90) -> Taken:
    return Taken(item=item, round=2, query="round-02", patch=0, status=status, lead_time=seconds,
                 pixels=Pixels(prediction=8, changed=2))


def test_a_run_that_reveals_masks(tmp_path):
    text = said(small(tmp_path / "run", seeds=(0, 1), rounds=4, done={1: 2}))
    assert "seed 0: 5 of 5 rounds finished" in text
    assert "seed 1: 2 of 5 rounds finished" in text
    assert "By the curve the next round is expected to bring" in text
    assert "By the curve nothing yet" in text
    assert "labels" not in text.partition("Is more worth it?")[0].replace("the first labels included", "")
    assert text.count("Go on: meal-gpu run --resume") == 1


def test_masks_that_lie_there_and_those_that_are_missing(tmp_path):
    path = people(tmp_path)
    folder = query(path, 2, 4)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / "masks" / "1_r0_c0.png")
    text = said(path)
    assert "Round 2 asks for 4 patches: 1 labelled, 3 missing, 0 skipped." in text
    assert "A patch takes" not in text


def test_labels_that_were_taken_their_time_and_what_a_round_costs(tmp_path):
    path = people(tmp_path)
    query(path, 2, 4, table=True)
    query(path, 2, 1, "-more-1", table=True)
    write_journal(path / "seed-0", [line("r02-0", seconds=60), line("r02-1", "partial", 120), line("r02-2", "skipped"),
                                    line("r02-more-1-0", seconds=90)])
    text = said(path)
    assert "Round 2 asks for 5 patches: 3 labelled, 1 missing, 1 skipped." in text
    assert "A patch takes 1.5 minutes (mean of 3 labels)." in text
    assert "A round of 4 patches costs 6.0 min of labelling (nine in ten:" in text
    assert "3 are left." in text
    assert "People left 80% of the predicted pixels as they were." in text


def test_all_labels_are_there(tmp_path):
    path = people(tmp_path)
    query(path, 2, 2, table=True)
    write_journal(path / "seed-0", [line("r02-0", seconds=None), line("r02-1", seconds=None)])
    text = said(path)
    assert "2 labelled, 0 missing, 0 skipped" in text
    assert "All labels are there. Go on: meal-gpu run --resume" in text
    assert "the labelling tool gave no times" in text


def test_before_the_first_round(tmp_path):
    path = people(tmp_path, done=0)
    query(path, 0, 6)
    text = said(path)
    assert "seed 0: 0 of 5 rounds finished, the first labels included" in text
    assert "Round 0 asks for 6 patches: 0 labelled, 6 missing" in text


def test_a_query_that_is_not_written(tmp_path):
    assert "Its next query is not written yet" in said(people(tmp_path))


def test_other_folders_beside_the_querys_are_not_it(tmp_path):
    path = people(tmp_path)
    query(path, 2, 2)
    query(path, 2, 9, " copy")
    found = waiting(path / "seed-0", 2, [])
    assert found is not None
    assert found.asked == 2


@pytest.mark.parametrize("content", ["{", "[1]", '{"things": []}'])
def test_a_damaged_query_is_named(tmp_path, content):
    path = people(tmp_path)
    folder = query(path, 2, 2)
    (folder / "query.json").write_text(content)
    result = CliRunner().invoke(cli.app, ["status", str(path)])
    assert "query.json is damaged" in str(result.exception)


def test_no_run(tmp_path):
    result = CliRunner().invoke(cli.app, ["status", str(tmp_path)])
    assert "is not a run directory" in str(result.exception)
