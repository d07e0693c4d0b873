"""Pictures of patches, and how large they make a page."""

import base64
import io
import math
import re

import numpy as np
from fake_run import PALETTE, html, small, write_run
from PIL import Image

from meal_gpu.report import load_run, write_report
from meal_gpu.report.pictures import HEAT, MAX_PICTURED, Allowance, heat_map, label_map, photo


def pixels(uri: str) -> np.ndarray:
    data = base64.b64decode(uri.removeprefix("data:image/webp;base64,"))
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_label_map_is_exact_and_void_is_its_own_colour():
    labels_ = np.array([[0, 1, 10], [255, 10, 0]], np.uint8).repeat(4, 0).repeat(4, 1)
    found = pixels(label_map(labels_, PALETTE))
    for value in (0, 1, 10):
        assert (found[labels_ == value] == PALETTE[value]).all()
    assert (found[labels_ == 255] < 40).all()


def test_entropy_scale_is_common_and_monotonic():
    limit = math.log(11)
    flat = [pixels(heat_map(np.full((16, 16), value, np.float16), limit)).mean((0, 1))
            for value in (0, limit / 2, limit)]
    for colour, step in zip(flat, (0, 127, 255), strict=True):
        assert np.abs(colour - HEAT[step]).max() < 12  # lossy
    lightness = [colour.sum() for colour in flat]
    assert lightness == sorted(lightness)
    holes = np.full((16, 16), np.nan, np.float16)
    assert np.abs(pixels(heat_map(holes, limit)).mean((0, 1)) - HEAT[255]).max() < 12


def test_wide_patches_are_reduced():
    assert pixels(photo(np.zeros((128, 256, 3), np.uint8))).shape == (80, 160, 3)
    assert pixels(label_map(np.zeros((128, 256), np.uint8), PALETTE)).shape == (80, 160, 3)


def test_first_seeds_get_pictures_before_others(tmp_path, monkeypatch):
    monkeypatch.setattr("meal_gpu.report.page.pictures.Allowance", lambda: Allowance(16))
    runs = [load_run(small(tmp_path / name, name, seeds=(0, 1), n_query=6)) for name in ("meal", "entropy")]
    text = html(runs, tmp_path / "r.html")
    assert len(re.findall(r'id="patch-\d-0-', text)) == 16
    assert not re.findall(r'id="patch-\d-1-', text)
    assert "4 of 6 patches shown" in text
    assert text.count("pictures of seed 1 are left out") == 2


def test_page_of_a_whole_run_stays_small(tmp_path):
    runs = [load_run(write_run(tmp_path / "run", "meal", seeds=(0,), rounds=2))]
    bare = [load_run(write_run(tmp_path / "bare", "meal", seeds=(0,), rounds=2, gallery=False))]
    size, without = (write_report(given, tmp_path / "r.html").stat().st_size for given in (runs, bare))
    assert without < 2e6
    assert (size - without) / 64 * MAX_PICTURED + without < 12e6
