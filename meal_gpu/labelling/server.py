"""A Label Studio server over its API: send the tasks of a run, and fetch what people have made of them.

All rounds of a run go into one project, which is known by the run's name in its description. The token is asked for or
stands in the environment, goes to the given server alone (redirections are not followed), and is written nowhere.
"""

import json
import logging
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from getpass import getpass
from pathlib import Path
from typing import Any

from ..errors import InputError, first_line
from ..files import parse_json, read_own
from .archive import MOST_BYTES
from .labelstudio import label_config
from .query import Query
from .standing import Rule, Standing

VARIABLE = "LABEL_STUDIO_TOKEN"
AT_ONCE_BYTES = 2**25
"""Of tasks in one call; their images are inside."""
_SECONDS = 120
_LOCAL = ("localhost", "127.0.0.1", "::1")
_log = logging.getLogger("meal_gpu")


class _Stay(urllib.request.HTTPRedirectHandler):
    """A redirection would carry the token elsewhere."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


class Server:
    """A Label Studio server, spoken to as the owner of a token."""

    def __init__(self, url: str, token: str) -> None:
        """Raises `InputError` for a URL that is none, and for a server that does not take the token."""
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise InputError(f"--label-studio is {url!r}. Give the server's address, such as http://localhost:8080.")
        if parts.scheme == "http" and parts.hostname not in _LOCAL:
            _log.warning("%s is not encrypted: whoever listens on the way reads the token.", url)
        self.url, self._open = url.rstrip("/"), urllib.request.build_opener(_Stay).open
        self._authorization = f"Token {token}"
        if token.count(".") == 2:  # a personal access token, which is changed for one of a few minutes
            self._authorization = ""
            self._authorization = f"Bearer {self._call('/api/token/refresh', {'refresh': token})['access']}"

    def project(self, run: str) -> dict[str, Any] | None:
        """The project of a run; None where there is none yet."""
        page = 1
        while True:
            held = self._call(f"/api/projects/?page={page}&page_size=100")
            found = [one for one in held.get("results", ()) if mark(run) in str(one.get("description"))]
            if len(found) > 1:
                raise InputError(f"{self.url} has {len(found)} projects of this run: "
                                 f"{', '.join(str(one.get('id')) for one in found)}. Delete all but one.")
            if found or not held.get("next"):
                return dict(found[0]) if found else None
            page += 1

    def create(self, run: str, title: str, config: str) -> dict[str, Any]:
        return dict(self._call("/api/projects", {"title": title[:50], "description": mark(run),
                                                 "label_config": config}))

    def send(self, project: int, tasks: Sequence[dict[str, Any]]) -> None:
        """In parts: a server takes 250 MB at once by default."""
        part, size = list[dict[str, Any]](), 0
        for task in tasks:
            length = len(json.dumps(task))
            if part and size + length > AT_ONCE_BYTES:
                self._import(project, part)
                part, size = [], 0
            part.append(task)
            size += length
        if part:
            self._import(project, part)

    def _import(self, project: int, tasks: list[dict[str, Any]]) -> None:
        self._call(f"/api/projects/{project}/import?return_task_ids=true", tasks)

    def export(self, project: int) -> bytes:
        """All tasks, those without an annotation too."""
        return self._bytes(f"/api/projects/{project}/export?exportType=JSON&download_all_tasks=true")

    def _call(self, path: str, body: object = None) -> Any:
        try:
            return parse_json(self._bytes(path, body))
        except ValueError as error:
            raise InputError(f"{self.url}{path} gave no JSON ({error}): is that a Label Studio server?") from None

    def _bytes(self, path: str, body: object = None) -> bytes:
        headers = {"Authorization": self._authorization} if self._authorization else {}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json", **headers})
        try:
            with self._open(request, timeout=_SECONDS) as answer:
                content = bytes(answer.read(MOST_BYTES + 1))
        except urllib.error.HTTPError as error:
            raise InputError(_refused(self.url, path, error)) from None
        except (OSError, ValueError) as error:  # also http.client's, which are ValueErrors or OSErrors
            raise InputError(f"{self.url} cannot be reached ({first_line(error)}). Is the server running?") from None
        if len(content) > MOST_BYTES:
            raise InputError(f"{self.url}{path} gave more than {MOST_BYTES:,} bytes: export the project in parts, and "
                             "give the files to meal-gpu labels add.")
        return content


def mark(run: str) -> str:
    """In the description of a project."""
    return f"meal-gpu run {run}"


def token() -> str:
    """From the environment, or asked for. Raises `InputError` where neither gives one."""
    given = os.environ.get(VARIABLE, "").strip()
    try:
        given = given or getpass("Label Studio's access token (Account & Settings): ").strip()
    except (EOFError, OSError):
        given = ""
    if not given or not given.isascii() or not given.isprintable():
        raise InputError(f"There is no access token for Label Studio. Put it into the environment as {VARIABLE}.")
    return given


def push(standing: Standing, server: Server, run: str, title: str, rule: Rule) -> tuple[int, int, list[str]]:
    """Send the tasks that nobody has labelled and the server does not have; its project, how many, and what to know."""
    notes, project = list[str](), server.project(run)
    query = next(iter(standing.queries.values()))
    if not run or not query.run:
        raise InputError("This run was begun before its queries had names, which join labels to patches: give what the "
                         "tool exported to meal-gpu labels add.")
    if project is None:
        project = server.create(run, title, label_config(query))
    elif _labels(project.get("label_config")) != _labels(label_config(query)):
        notes.append("The project's labelling interface was changed: labels of other names will be refused.")
    number = int(project["id"])
    there = {task["data"].get("meal_item") for task in _tasks(server.export(number), server.url)}
    new = [task for folder, one in standing.queries.items() for task in _open_tasks(folder, one, standing, rule)
           if task["data"]["meal_item"] not in there]
    if new:
        server.send(number, new)
    return number, len(new), notes


def _open_tasks(folder: Path, query: Query, standing: Standing, rule: Rule) -> list[dict[str, Any]]:
    wanted = {item.id for item in query.items if not standing.answered(item) and not standing.skipped(item, rule)}
    file = folder / "labelstudio" / "tasks.json"
    if not wanted:
        return []
    try:
        tasks = parse_json(read_own(file, MOST_BYTES))
        return [task for task in tasks if task["data"]["meal_item"] in wanted]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} cannot be read ({first_line(error)}). Remove {folder / 'query.json'}: --resume "
                         "writes the query again.") from None


def _tasks(content: bytes, url: str) -> list[dict[str, Any]]:
    try:
        held = parse_json(content)
        if isinstance(held, list) and all(isinstance(task["data"], dict) for task in held):
            return held
    except (ValueError, KeyError, TypeError):
        pass
    raise InputError(f"{url} gave no export that can be read: is that a Label Studio server?")


def _labels(config: object) -> set[str]:
    """Names of labels in a labelling interface, told apart well enough to say that they differ."""
    return {part.split('"')[0] for part in str(config).split('<Label value="')[1:]}


def _refused(url: str, path: str, error: urllib.error.HTTPError) -> str:
    if error.code in (401, 403):
        return (f"{url} does not take the access token (HTTP {error.code}). Take it from Account & Settings; a legacy "
                "token must be enabled in the organisation.")
    if 300 <= error.code < 400:
        return (f"{url} redirects to {error.headers.get('Location', 'elsewhere')!r:.200}, where the token is not sent: "
                "give that address as --label-studio if it is right.")
    try:
        said = error.read(2000).decode("utf-8", "replace").strip()
    except OSError:
        said = ""
    return f"{url}{path} refused (HTTP {error.code}): {said[:300] or error.reason}. Look into the server's log."
