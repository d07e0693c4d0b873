"""``meal-gpu check`` from end to end: its numbers, its page, its exit codes."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

SIZE = (24, 32)


def data_set(root: Path, classes: int = 3) -> Path:
    """A config of four images; class c fills c + 1 columns of each mask, the rest is void. One image is there twice."""
    rng = np.random.default_rng(0)
    mask = np.full(SIZE, 255, np.uint8)
    mask[:, :6] = np.repeat(np.arange(3), [1, 2, 3])
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i in range(4):
        image = rng.integers(0, 256, (*SIZE, 3), np.uint8) if i != 3 else image  # noqa: F821 - of the turn before
        Image.fromarray(image).save(root / "images" / f"m{i}.png")
        Image.fromarray(mask).save(root / "masks" / f"m{i}.png")
    (root / "images" / "notes.txt").write_text("not an image")
    file = root / "street.yaml"
    file.write_text(yaml.safe_dump({"data": {
        "dataset": "folder", "root": str(root), "store": str(root / "store"), "image_size": list(SIZE), "grid": [2, 2],
        "val_images": None, "val_masks": None, "class_names": ["road", "tree", "car", "sky"][:classes]}}))
    return file


def check(file: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "meal_gpu.cli", "check", str(file), "--out",
                           str(file.parent / "check.html"), *more], capture_output=True, text=True, check=False)


def test_the_numbers_are_right_and_the_page_holds_them(tmp_path: Path) -> None:
    file = data_set(tmp_path / "data")
    done = check(file)
    assert done.returncode == 0, done.stderr
    assert "4 images in the pool, 0 for validation." in done.stdout
    # 1, 2 and 3 of 32 columns.
    assert "road 3.1 % in 4; tree 6.2 % in 4; car 9.4 % in 4; void 81.2 % in 4" in done.stdout
    assert "32 x 24 (4); 0 of 4 are resized to 32 x 24" in done.stdout
    assert "2 images of the pool are not the only ones with their pixels: m2 = m3." in done.stdout
    assert "1 ending in .txt" in done.stdout
    page = (file.parent / "check.html").read_text("utf-8")
    assert len(re.findall(r'<img alt="" src="data:image/webp;base64,', page)) == 8
    rows = re.findall(r'<tr><th scope="row">(\w+)</th><td>([^<]+)</td><td>([^<]+)</td></tr>', page)
    assert rows == [("road", "3.1 %", "4"), ("tree", "6.2 %", "4"), ("car", "9.4 %", "4"), ("void", "81.2 %", "4")]
    assert "A run would stop here" not in page


def test_what_would_stop_a_run_is_exit_code_2_with_a_page(tmp_path: Path) -> None:
    file = data_set(tmp_path / "data", classes=4)
    done = check(file)
    assert done.returncode == 2
    assert "4 images in the pool" in done.stdout
    assert "'sky' has no pixel" in done.stderr
    assert "Traceback" not in done.stderr
    assert "A run would stop here" in (file.parent / "check.html").read_text("utf-8")
    assert check(file, "--set", "data.absent_classes=allow").returncode == 0


def test_files_that_cannot_be_read_are_exit_code_2(tmp_path: Path) -> None:
    file = data_set(tmp_path / "data")
    (file.parent / "images" / "m1.png").write_bytes(b"")
    done = check(file)
    assert done.returncode == 2
    assert "m1.png is empty" in done.stderr
    assert not (file.parent / "check.html").exists()
    done = check(file, "--set", "data.class_names=[road]")
    assert done.returncode == 2
    assert "There is one class" in done.stderr
