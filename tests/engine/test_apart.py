"""``query.min_distance``: patches that look alike are not asked for twice, whatever the strategy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from habits import Folder
from tiny import tiny_config

from meal_gpu.config import Config, QueryConfig
from meal_gpu.engine.apart import choose_apart
from meal_gpu.launch import run
from meal_gpu.records import read_rounds
from meal_gpu.report import load_run
from meal_gpu.stages.near import Nearness
from meal_gpu.strategies.select import STRATEGIES, PoolView, Strategy

SIZE = (32, 40)


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> Path:
    """Twelve equal frames of four patches, and six others."""
    folder = Folder(tmp_path_factory.mktemp("frames") / "data")
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (*SIZE, 3), np.uint8)
    mask = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE).astype(np.uint8) % 3
    for i in range(12):
        folder.add(f"equal{i:02d}", image, mask)
    for i in range(6):
        folder.add(f"other{i}", rng.integers(0, 256, (*SIZE, 3), np.uint8), mask)
    return folder.root


def config(frames: Path, **query: object) -> Config:
    return tiny_config(frames, data={
        "dataset": "folder", "root": str(frames), "image_size": list(SIZE), "grid": [2, 2], "val_images": None,
        "val_masks": None, "class_names": ["road", "tree", "car"], "n_images": 24}, query={
        "strategy": "entropy", "rounds": 1, "n_initial_images": 1, "n_query": 4, "n_informative": 40, **query})


def asked(directory: Path) -> list[tuple[str, int]]:
    """Which pictures a query asks for: all equal frames are one."""
    (record, *_) = read_rounds(directory / "seed-0")
    return [(patch["image"].rstrip("0123456789") if "equal" in patch["image"] else patch["image"],
             2 * patch["row"] + patch["col"]) for patch in record["next_query"]]


@pytest.mark.parametrize("strategy", ["random", "entropy", "meal"])
def test_of_twelve_equal_frames_four_different_patches_are_asked_for(frames, tmp_path, strategy):
    """Without it all four patches were equal, or equal to labelled ones."""
    out = run(config(frames, strategy=strategy, min_distance=0.05), tmp_path / "run")
    query = asked(out)
    assert len(set(query)) == 4
    labelled = {(patch["image"][:5], patch["id"] % 4) for patch in read_rounds(out / "seed-0")[0]["queried"]}
    assert not labelled & set(query)


def test_without_it_equal_patches_are_asked_for(frames, tmp_path):
    """What was seen."""
    assert len(set(asked(run(config(frames, strategy="random", n_query=12), tmp_path / "run")))) < 12


def test_the_pools_near_duplicates_are_counted(frames, tmp_path, caplog):
    caplog.set_level("INFO", "meal_gpu")
    out = run(config(frames, strategy="meal", selector="kmeans"), tmp_path / "run")
    line = "48 of 72 patches have a near-duplicate in the pool"
    assert line in caplog.text
    assert read_rounds(out / "seed-0")[0]["near_duplicates"] == {"found": 48, "of": 72, "distance": 0.2}
    assert load_run(out).seeds[0].rounds[0].near_duplicates.found == 48
    assert line in (out / "report.html").read_text()


def test_workers_keep_them_out_too(frames, tmp_path):
    local = run(config(frames, min_distance=0.05), tmp_path / "local")
    sharded = run(config(frames, min_distance=0.05, scoring="sharded", workers=1), tmp_path / "sharded")
    assert asked(sharded) == asked(local)


def view(free: torch.Tensor, score: torch.Tensor) -> PoolView:
    ids = torch.arange(len(free))
    return PoolView(image=ids, cell=ids * 0, free=free, n_free=int(free.sum()), labelled=~free, query=QueryConfig(),
                    uniforms=lambda n: torch.rand(n, dtype=torch.float64), score=score)


def test_what_there_is_of_different_patches_comes_first(caplog):
    """Then those near labelled ones, then what is left: a run goes on, and says so."""
    points = torch.tensor([0, 0.01, 0.02, 5, 5.01, 10])[:, None]
    free = torch.tensor([False, True, True, True, True, True])
    score = torch.tensor([9.0, 8, 7, 6, 5, 4])
    near, labelled = Nearness.of(points), torch.tensor([0])

    def choose(n: int) -> list[int]:
        return choose_apart(STRATEGIES["entropy"], view(free, score), n, near, labelled, 0.1).tolist()

    assert choose(2) == [3, 5]
    assert not caplog.text
    assert choose(3) == [3, 5, 1]
    assert "1 of the 3 patches asked for are near labelled ones" in caplog.text
    assert choose(5) == [3, 5, 1, 2, 4]
    assert "2 of the 5 patches asked for are near others of this query" in caplog.text


def test_a_strategy_that_names_what_is_not_free_is_refused():
    free = torch.ones(6, dtype=torch.bool)
    wrong = Strategy(lambda view, n: torch.zeros(n, dtype=torch.int64))
    with pytest.raises(ValueError, match="3 distinct free"):
        choose_apart(wrong, view(free, torch.zeros(6)), 3, Nearness.of(torch.randn(6, 2)),
                     torch.zeros(0, dtype=torch.int64), 0.1)
