"""A script that starts workers without keeping them from running it: one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from meal_gpu import InputError
from meal_gpu.sharding import cluster
try:
    with cluster.local(1, 1):
        print("started", flush=True)
except InputError as error:
    sys.exit(f"error {error}")
"""


def run(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(text)
    return subprocess.run([sys.executable, str(folder / "script.py")], capture_output=True, text=True, check=False)


def test_no_guard(tmp_path):
    ran = run(tmp_path, SCRIPT)
    assert ran.returncode == 1
    [line] = ran.stderr.splitlines()
    assert line.startswith(f"error {tmp_path / 'script.py'} starts worker processes, each of which imports it")
    assert line.endswith('put what it does under  if __name__ == "__main__":')
    assert ran.stdout == ""


@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "a guard around something else"])
def test_a_guard(tmp_path, guarded):
    inside = "\n    ".join(SCRIPT.splitlines())
    ran = run(tmp_path, f'if __name__ == "__main__":\n    {inside}' if guarded else f"# __name__\n{SCRIPT}")
    assert (ran.returncode, ran.stdout) == ((0, "started\n") if guarded else (1, "")), ran.stderr
    if not guarded:
        assert "Traceback" not in ran.stderr
        assert 'under  if __name__ == "__main__":' in ran.stderr
        assert len(ran.stderr.splitlines()) <= 3
