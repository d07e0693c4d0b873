"""A run and a real Label Studio, to the end: labels come back, the network is trained, the next round goes into the
same project. Part of ``make test-labelstudio``."""

import json
from pathlib import Path

import numpy as np
import pytest
from annotators import label_studio
from PIL import Image
from test_label_studio_server import TOKEN, api, empty, url  # noqa: F401 - a fixture
from tiny import tiny_config
from typer.testing import CliRunner

from meal_gpu import cli
from meal_gpu.journal import read_journal
from meal_gpu.records import read_rounds

pytestmark = [pytest.mark.labelstudio, pytest.mark.timeout(1800)]
SIZE = (120, 160)


def call(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, list(map(str, words)), catch_exceptions=False)
    return result.exit_code, result.output


def exported(url: str, project: int) -> list[dict]:  # noqa: F811
    return api(url, f"/api/projects/{project}/export?exportType=JSON&download_all_tasks=true")


def submit(url: str, project: int, folder: Path, truth: dict[str, np.ndarray], tmp_path: Path) -> None:  # noqa: F811
    """Somebody paints the truth in all tasks of a round."""
    number = {task["data"]["meal_item"]: task["id"] for task in exported(url, project)}
    for task in json.loads(label_studio(folder, truth.__getitem__, tmp_path).read_text()):
        regions = [{key: value for key, value in region.items() if key != "origin"}
                   for region in task["annotations"][0]["result"]]
        api(url, f"/api/tasks/{number[task['data']['meal_item']]}/annotations/", {"result": regions, "lead_time": 12.5})


def test_two_rounds_in_one_project(url, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("LABEL_STUDIO_TOKEN", TOKEN)
    empty(url)
    (tmp_path / "images").mkdir()
    draw, truth, out = np.random.default_rng(0), {}, tmp_path / "run"
    for i in range(5):
        truth[f"i{i}"] = draw.integers(0, 3, (6, 8)).astype(np.uint8).repeat(20, 0).repeat(20, 1)
        colours = np.array([[90, 90, 90], [40, 160, 60], [60, 60, 200]])[truth[f"i{i}"]]
        noisy = np.clip(colours + draw.normal(0, 25, (*SIZE, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(tmp_path / "images" / f"i{i}.png")
    config = tiny_config(tmp_path, data={
        "dataset": "folder", "root": str(tmp_path), "masks": None, "val_images": None, "val_masks": None,
        "class_names": ["road", "tree", "car"], "image_size": [60, 80], "grid": [2, 2]}, query={
        "strategy": "entropy", "rounds": 1, "n_initial_images": 1, "n_query": 4, "n_informative": 8,
        "oracle": "people"})
    (tmp_path / "tiny.yaml").write_text(config.dump())
    assert call("run", tmp_path / "tiny.yaml", "--out", out)[0] == 3
    for round_ in range(2):
        code, said = call("labels", "push", out, "--label-studio", url)
        assert code == 0, said
        assert "4 tasks sent to" in said
        project = int(said.split("/projects/")[1].split(".")[0])
        assert len(exported(url, project)) == 4 * (round_ + 1), "another project"
        submit(url, project, out / "seed-0" / "to-label" / f"round-{round_:02d}", truth, tmp_path)
        code, said = call("labels", "pull", out, "--label-studio", url)
        assert code == 0, said
        assert "4 labelled" in said
        assert call("run", "--resume", out)[0] == (3, 0)[round_]
    last = max(task["id"] for task in exported(url, project))
    [made] = api(url, f"/api/tasks/{last}/")["predictions"]
    assert any(region["type"] == "brushlabels" for region in made["result"]), "round 1 begins with a prediction"
    assert len(read_rounds(out / "seed-0")) == 2
    assert [line.status for line in read_journal(out / "seed-0")] == ["labelled"] * 8
