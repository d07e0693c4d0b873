"""A real Label Studio, from its package on PyPI: tasks go there, people (by its API) answer, labels come back.

``make test-labelstudio`` installs it into build/labelstudio (1 GB) and runs this. What the server exported is kept in
``exports/``, so that it is read in every other test run too.
"""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from annotators import label_studio

from meal_gpu.journal import read_journal

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "build" / "labelstudio" / "bin" / "label-studio"
EXPORT = Path(__file__).parent / "exports" / "label-studio-1.json"
TOKEN = "0123456789abcdef0123456789abcdef01234567"
USER, PASSWORD = "owner@example.org", "Meal-gpu-1234"
LABELLED, SKIPPED, AS_PREDICTED = 0, 1, 2
"""What becomes of the three tasks."""


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    if not PROGRAM.exists():
        pytest.skip(f"{PROGRAM} is not there: make test-labelstudio installs it")
    place = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = {"COLLECT_ANALYTICS": "False", "LATEST_VERSION_CHECK": "false", "SENTRY_DSN": "", "FRONTEND_SENTRY_DSN": "",
             "HOME": str(place)}
    with (place / "log").open("wb") as log:
        server = subprocess.Popen(
            [PROGRAM, "start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(port), "--data-dir", place,
             "--username", USER, "--password", PASSWORD, "--user-token", TOKEN,
             "--enable-legacy-api-token"], env={**os.environ, **quiet}, stdout=log, stderr=log, start_new_session=True)
    try:
        found = f"http://127.0.0.1:{port}"
        while True:
            assert server.poll() is None, (place / "log").read_text()[-3000:]
            try:
                urllib.request.urlopen(f"{found}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(1)
        yield found
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def api(url: str, path: str, body: object = None, method: str | None = None) -> object:
    request = urllib.request.Request(url + path, None if body is None else json.dumps(body).encode(), {
        "Authorization": f"Token {TOKEN}", "Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read() or b"null")


def empty(url: str) -> None:
    """The runs of these tests have one name."""
    for project in api(url, "/api/projects/?page=1&page_size=100")["results"]:
        api(url, f"/api/projects/{project['id']}/", method="DELETE")


def answered(tasks: list[dict], made: list[dict]) -> list[dict]:
    """What people send for each task."""
    own = made[LABELLED]["annotations"][0]["result"]
    as_predicted = [{**region, "origin": "prediction"} for region in tasks[AS_PREDICTED]["predictions"][0]["result"]]
    skipped = tasks[SKIPPED]["predictions"][0]["result"]
    return [{"result": own, "lead_time": 12.5}, {"result": skipped, "was_cancelled": True, "lead_time": 2.0},
            {"result": as_predicted, "lead_time": 4.0}]


def check(waiting, said: str) -> None:
    assert "2 labelled, 1 skipped" in said
    lines = read_journal(waiting.seed)
    assert [line.status for line in lines] == ["labelled", "skipped", "labelled"]
    assert [line.lead_time for line in lines] == [12.5, 2.0, 4.0]
    assert all(line.annotator and line.updated for line in lines)
    assert lines[AS_PREDICTED].pixels.changed == lines[AS_PREDICTED].pixels.manual == 0
    item = waiting.items[LABELLED]
    y0, x0, y1, x1 = item["original"]["box"]
    standing = waiting.oracle()._asked(0, [{"id": one["patch"], "image": one["image"]} for one in waiting.items], None)
    found = standing.labels(lines[LABELLED], standing.book.by_id[item["id"]][1])
    np.testing.assert_array_equal(found, waiting.truth(item["image"])[y0:y1, x0:x1])


@pytest.mark.labelstudio
@pytest.mark.timeout(1200)
def test_there_and_back(waiting, url, tmp_path, monkeypatch):
    monkeypatch.setenv("LABEL_STUDIO_TOKEN", TOKEN)
    empty(url)
    code, said = waiting.call("labels", "push", waiting.directory, "--label-studio", url)
    assert (code, "3 tasks sent to" in said) == (0, True), said
    project = int(said.split("/projects/")[1].split(".")[0])
    tasks = sorted(api(url, f"/api/projects/{project}/export?exportType=JSON&download_all_tasks=true"),
                   key=lambda task: task["id"])
    sent = json.loads((waiting.folder / "labelstudio" / "tasks.json").read_text())
    assert [task["data"] for task in tasks] == [task["data"] for task in sent]
    made = json.loads(label_studio(waiting.folder, waiting.truth, tmp_path).read_text())
    for task, body in zip(tasks, answered(sent, made), strict=True):
        api(url, f"/api/tasks/{task['id']}/annotations/", body)
    code, said = waiting.call("labels", "push", waiting.directory, "--label-studio", url)
    assert (code, "has all tasks" in said) == (0, True), said
    code, said = waiting.call("labels", "pull", waiting.directory, "--label-studio", url)
    assert code == 0, said
    check(waiting, said)
    code, said = waiting.call("labels", "pull", waiting.directory, "--label-studio", url)
    assert "nothing new; 3 as they were" in said
    if os.environ.get("MEAL_GPU_KEEP_EXPORT"):
        held = api(url, f"/api/projects/{project}/export?exportType=JSON&download_all_tasks=true")
        EXPORT.parent.mkdir(exist_ok=True)
        EXPORT.write_text(json.dumps(held) + "\n")


@pytest.mark.skipif(not EXPORT.exists(), reason=f"{EXPORT.name} is not there")
def test_what_the_server_exported_is_read(waiting):
    code, said = waiting.add(EXPORT)
    assert code == 0, said
    check(waiting, said)
