"""A process whose user has no name and no home, and may not write where the packages are: as containers run it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_run import write_run
from tiny import tiny_config

USER = 12345
READS = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")
"""Reading is allowed, wherever this interpreter and these tests lie; writing is not."""


def as_somebody(folder: Path, arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    if os.getuid() or shutil.which("setpriv") is None:
        pytest.skip("only root can be somebody else, by setpriv")
    (folder / "tmp").mkdir(exist_ok=True)
    for path in (folder, folder / "tmp"):
        os.chown(path, USER, USER)
    command = ["setpriv", "--reuid", str(USER), "--regid", str(USER), "--clear-groups", *READS, sys.executable,
               *arguments]
    kept = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS") if name in os.environ}
    return subprocess.run(command, cwd=folder, env={**kept, "TMPDIR": str(folder / "tmp"), **environment}, text=True,
                          capture_output=True, check=False)


def test_a_user_without_a_home(tmp_path):
    """Scenes drawn and decoded, and a report: what compiles nothing, for that takes minutes in a new cache."""
    (tmp_path / "tiny.yaml").write_text(tiny_config(tmp_path, **{"data.store": None}).dump())
    write_run(tmp_path / "run")
    for command in (["ingest", "tiny.yaml"], ["report", "run", "--out", "tmp/report.html"]):
        ran = as_somebody(tmp_path, ["-m", "meal_gpu.cli", *command])
        assert ran.returncode == 0, ran.stderr
        assert "Traceback" not in ran.stderr
        home = tmp_path / "tmp" / f"meal-gpu-{USER}" / "home"
        told = [line for line in ran.stderr.splitlines() if "names another" in line]
        assert told == [f"There is no home directory: {home} is taken for one. HOME names another."]
    assert list((home / ".cache" / "meal-gpu").glob("demo-train-*/manifest.json"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "tiny.yaml", "tmp"], "nothing named ~ is made"


def test_a_home_that_cannot_be_written(tmp_path):
    program = ("import logging, sys; logging.basicConfig(format='%(message)s'); from meal_gpu.kernels import jit; "
               "from meal_gpu.paths import user_cache; import numba; "
               "print(jit.settle_cache(), user_cache(), numba.config.CACHE_DIR)")
    ran = as_somebody(tmp_path, ["-c", program], HOME="/")
    folder = tmp_path / "tmp" / f"meal-gpu-{USER}"
    assert ran.stdout.split() == [str(folder / "numba"), str(folder / "cache"), str(folder / "numba")], ran.stderr
    assert ran.stderr.splitlines() == [
        f"Compiled code is kept in {folder / 'numba'}: /.cache/numba cannot be written. NUMBA_CACHE_DIR names another "
        "place.",
        f"Decoded images and weights are kept in {folder / 'cache'}: / cannot be written. XDG_CACHE_HOME names another "
        "place."]


def test_nowhere_to_keep_anything(tmp_path):
    program = ("import logging; logging.basicConfig(format='%(message)s'); from meal_gpu.kernels import jit; "
               "print(jit.Kernel(lambda x: x + 1, 'int64(int64)')()(1), jit.settle_cache())")
    ran = as_somebody(tmp_path, ["-c", f"import tempfile; tempfile.tempdir = '/proc'; {program}"], HOME="/")
    assert ran.stdout.split() == ["2", "None"], ran.stderr
    assert "Compiled code cannot be kept (/.cache/numba cannot be written)" in ran.stderr


def test_somebody_elses_folder_is_not_loaded_from(tmp_path):
    """What lies in a cache is run as code."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / f"meal-gpu-{USER}").mkdir(mode=0o755)
    ran = as_somebody(tmp_path, ["-c", "from meal_gpu.kernels import jit; print(jit.settle_cache())"], HOME="/")
    assert ran.stdout.split() == ["None"], ran.stderr
