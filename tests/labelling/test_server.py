"""Tasks to Label Studio's API and back, against a stand-in that answers as the server was seen to; see
test_label_studio_server.py for the server itself."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from annotators import label_studio

from meal_gpu.journal import read_journal

TOKEN = "0123456789abcdef0123456789abcdef01234567"


class StandIn:
    """Projects and tasks in memory."""

    def __init__(self) -> None:
        self.projects: list[dict] = []
        self.tasks: dict[int, list[dict]] = {}
        self.seen: list[tuple[str, str, str]] = []
        self.answer = None
        """(code, headers, body) in place of everything else."""

    def __call__(self, method: str, path: str, body: object, authorization: str) -> tuple[int, dict, bytes]:
        self.seen.append((method, path, authorization))
        if self.answer:
            return self.answer
        if path == "/api/token/refresh":
            return 200, {}, json.dumps({"access": "a-short-one"}).encode()
        if authorization not in (f"Token {TOKEN}", "Bearer a-short-one"):
            return 401, {}, b"{}"
        if path.startswith("/api/projects/?"):
            page = int(path.split("page=")[1].split("&")[0])  # one a page
            found = self.projects[page - 1 : page]
            more = "next" if page < len(self.projects) else None
            return 200, {}, json.dumps({"results": found, "next": more}).encode()
        if path == "/api/projects":
            self.projects.append({**body, "id": len(self.projects) + 1})
            self.tasks[len(self.projects)] = []
            return 201, {}, json.dumps(self.projects[-1]).encode()
        number, tasks = int(path.split("/")[3]), self.tasks[int(path.split("/")[3])]
        if "/import" in path:
            tasks += [{**task, "id": len(tasks) + i, "annotations": [], "drafts": []} for i, task in enumerate(body, 1)]
            return 201, {}, json.dumps({"task_count": len(body), "project": number}).encode()
        return 200, {}, json.dumps(tasks).encode()


@pytest.fixture
def server(monkeypatch):
    stand_in = StandIn()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            code, headers, content = stand_in(self.command, self.path, body, self.headers.get("Authorization", ""))
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *words: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    stand_in.url = f"http://127.0.0.1:{http.server_port}"
    monkeypatch.setenv("LABEL_STUDIO_TOKEN", TOKEN)
    yield stand_in
    http.shutdown()
    http.server_close()


def call(waiting, server, verb, *words):
    return waiting.call("labels", verb, waiting.directory, "--label-studio", server.url, *words)


def test_there_and_back(waiting, server, tmp_path):
    server.projects.append({"id": 1, "description": "somebody else's"})
    code, said = call(waiting, server, "pull")
    assert code == 2
    assert "has no project of this run. First: meal-gpu labels push" in said
    code, said = call(waiting, server, "push")
    assert (code, f"3 tasks sent to {server.url}/projects/2." in said) == (0, True)
    assert [task["data"]["meal_item"] for task in server.tasks[2]] == [item["id"] for item in waiting.items]
    code, said = call(waiting, server, "push")
    assert (code, "has all tasks that are not labelled yet" in said, len(server.projects)) == (0, True, 2)
    code, said = call(waiting, server, "pull")
    assert (code, "3 tasks have no annotation yet." in said, read_journal(waiting.seed)) == (0, True, [])
    made = json.loads(label_studio(waiting.folder, waiting.truth, tmp_path).read_text())
    for task, done in zip(server.tasks[2][:2], made, strict=False):
        task["annotations"] = done["annotations"]
    server.tasks[2][1]["annotations"][0]["was_cancelled"] = True
    code, said = call(waiting, server, "pull")
    assert (code, "1 labelled, 1 skipped" in said) == (0, True), said
    assert [line.status for line in read_journal(waiting.seed)] == ["labelled", "skipped"]
    before = waiting.files()
    code, said = call(waiting, server, "pull")
    assert (code, "nothing new; 2 as they were" in said) == (0, True)
    assert waiting.files() == before
    assert not any(TOKEN.encode() in content for content in before.values())
    # What is labelled elsewhere is not sent.
    server.tasks[2].clear()
    code, said = call(waiting, server, "push")
    assert "1 tasks sent" in said
    assert [task["data"]["meal_item"] for task in server.tasks[2]] == [waiting.items[2]["id"]]


def test_a_personal_token_is_changed_for_a_short_one(waiting, server, monkeypatch):
    monkeypatch.setenv("LABEL_STUDIO_TOKEN", "a.b.c")
    assert call(waiting, server, "push")[0] == 0
    assert server.seen[0] == ("POST", "/api/token/refresh", "")
    assert {authorization for _, _, authorization in server.seen[1:]} == {"Bearer a-short-one"}


def test_many_tasks_go_in_parts_and_in_their_order(waiting, server, monkeypatch):
    monkeypatch.setattr("meal_gpu.labelling.server.AT_ONCE_BYTES", 1)
    assert call(waiting, server, "push")[0] == 0
    assert sum("/import" in path for _, path, _ in server.seen) == 3
    assert [task["data"]["rank"] for task in server.tasks[1]] == [1, 2, 3]


def test_an_interface_that_was_changed_is_said(waiting, server):
    assert call(waiting, server, "push")[0] == 0
    server.projects[0]["label_config"] = server.projects[0]["label_config"].replace("road", "street")
    assert "labels of other names will be refused" in call(waiting, server, "push")[1]


@pytest.mark.parametrize(("answer", "message"), [
    ((401, {}, b""), "does not take the access token (HTTP 401)"),
    ((500, {}, b"it broke"), "refused (HTTP 500): it broke"),
    ((302, {"Location": "http://elsewhere.example/"}, b""), "redirects to 'http://elsewhere.example/'"),
    ((200, {}, b"<html>"), "gave no JSON"),
    ((200, {}, b"[" * 100_000), "gave no JSON"),
])
def test_what_a_server_may_say(waiting, server, answer, message):
    server.answer, before = answer, waiting.files()
    for verb in ("push", "pull"):
        code, said = call(waiting, server, verb)
        assert code == 2
        assert message in said
        assert TOKEN not in said
    assert waiting.files() == before


def test_wrong_labels_are_refused_as_a_files_are(waiting, server, tmp_path):
    assert call(waiting, server, "push")[0] == 0
    made = json.loads(label_studio(waiting.folder, lambda name: np.zeros((40, 60), np.uint8), tmp_path).read_text())
    made[0]["annotations"][0]["result"][1]["value"]["brushlabels"] = ["street"]
    server.tasks[1][0]["annotations"] = made[0]["annotations"]
    before = waiting.files()
    code, said = call(waiting, server, "pull")
    assert (code, "has the class 'street'" in said) == (2, True)
    assert waiting.files() == before


@pytest.mark.parametrize("url", ["ftp://a", "localhost:8080", "http://", "file:///etc/passwd", "http://a:b@c"])
def test_what_is_no_address(waiting, monkeypatch, url):
    monkeypatch.setenv("LABEL_STUDIO_TOKEN", TOKEN)
    code, said = waiting.call("labels", "push", waiting.directory, "--label-studio", url)
    assert (code, "Give the server's address" in said) == (2, True)


def test_nobody_there_and_no_token(waiting, monkeypatch):
    monkeypatch.setenv("LABEL_STUDIO_TOKEN", TOKEN)
    code, said = waiting.call("labels", "push", waiting.directory, "--label-studio", "http://127.0.0.1:9")
    assert (code, "cannot be reached" in said) == (2, True)
    monkeypatch.setenv("LABEL_STUDIO_TOKEN", "")
    monkeypatch.setattr("meal_gpu.labelling.server.getpass", lambda prompt: "")
    code, said = waiting.call("labels", "push", waiting.directory, "--label-studio", "http://127.0.0.1:9")
    assert (code, "There is no access token" in said) == (2, True)
