"""docs/notebook.ipynb: it runs as it stands, what it shows is small, and it was committed with its outputs."""

import json
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[1] / "docs" / "notebook.ipynb"


def test_the_notebook_runs(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    book = nbformat.read(FILE, 4)
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    pictures = [output for cell in book.cells for output in cell.get("outputs", [])
                if "image/png" in output.get("data", {})]
    assert len(pictures) == 2
    asked = book.cells[-1].outputs[0]["data"]["text/plain"]
    assert asked.count("('") == 6  # another six patches


def test_it_is_committed_with_small_outputs():
    assert FILE.stat().st_size < 200_000
    cells = [cell for cell in json.loads(FILE.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not any(output["output_type"] in ("error", "stream") for output in outputs)
    assert str(Path.home()) not in FILE.read_text()
