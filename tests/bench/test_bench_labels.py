"""The table of what another training makes of bought labels: made of the files of runs, and the page is as written."""

import json
import shutil

from meal_gpu.bench.show import labels, recipe


def test_the_page_is_up_to_date():
    """Run `python -m meal_gpu.bench.show.labels` where this fails."""
    text = labels.PAGE.read_text()
    assert text == labels.HERE.updated(text, labels.table())


def test_a_run_is_beside_the_one_that_bought_its_labels(tmp_path):
    (tmp_path / "camvid_modern").mkdir()
    shutil.copy(labels.RESULTS / "camvid_modern" / labels.SWEEP, tmp_path / "camvid_modern")
    iou = dict.fromkeys(recipe.RARE, 0.1) | {"Sky": 0.9, "Pole": None}
    for folder, miou, fraction in (("camvid/meal_ft/seed-0", 0.5, 0.05), ("camvid_modern/meal_ft-seed-0", 0.57, 0.05),
                                   ("camvid_modern/all-seed-0", 0.6, 1)):
        (tmp_path / folder).mkdir(parents=True)
        last = {"n_labelled": 288 if fraction < 1 else 5872, "fraction": fraction, "miou": 0.9,
                "last": {"miou": miou, "iou": iou}}
        (tmp_path / folder / "rounds.jsonl").write_text(json.dumps(last) + "\n")
    text = labels.table(tmp_path)
    assert "| bought by `meal_ft` | 288 | 1,152 | 0.500 | 0.570 | +0.070 | 0.075 | 95% |" in text
    assert "| all | 5,872 | 1,468 | – | 0.600 |  | 0.075 | 100% |" in text
    assert "Not run yet: `random`." in text
