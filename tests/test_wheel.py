"""The wheel holds every module and data file of the packages: a new folder has to be named in pyproject.toml."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INSIDE = {"meal_gpu": "meal_gpu", **{name: f"meal_gpu/{name}" for name in ("kernels", "configs", "bench")}}


def test_it_holds_every_file(tmp_path):
    """Built from a copy: a build folder left by another would be packed as well."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout, whose files could be listed")
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", *INSIDE], cwd=ROOT,
                            capture_output=True, text=True, check=True).stdout.splitlines()
    files = [file for file in listed
             if not file.startswith("bench/results/") and not file.endswith(".md") and (ROOT / file).exists()]
    for file in (*files, "pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    build = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
    built = subprocess.run([sys.executable, "-c", build, tmp_path / "dist"], cwd=tmp_path, capture_output=True,
                           text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("meal_gpu/")}
    wanted = {file.replace(folder, INSIDE[folder], 1) for file in files for folder in [file.partition("/")[0]]}
    assert wanted - held == set(), "name their folders in pyproject.toml: packages, or package-data"
    assert held - wanted == set()
    assert {"meal_gpu/py.typed", "meal_gpu/kernels/entropy.cu", "meal_gpu/configs/camvid.yaml",
            "meal_gpu/configs/demo.safetensors"} <= held
