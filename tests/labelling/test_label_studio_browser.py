"""A real Label Studio in a real browser: a prediction is changed with the brush, one is skipped, one submitted.

Part of ``make test-labelstudio``; needs Chromium.
"""

import shutil

import numpy as np
import pytest
from browser import Page, open_page
from test_label_studio_server import PASSWORD, TOKEN, USER, api, empty, url  # noqa: F401 - a fixture

from meal_gpu.journal import read_journal

pytestmark = [pytest.mark.labelstudio, pytest.mark.timeout(1800)]
STORE = "window.Htx?.annotationStore?.selected"


def button(words: str) -> str:
    return f"[...document.querySelectorAll('button')].find(e => e.innerText.trim() === '{words}' && !e.disabled)"


def log_in(page: Page, url: str) -> None:  # noqa: F811
    page.go(f"{url}/user/login/")
    page.wait("document.querySelector('input[name=email]')")
    page.value(f"document.querySelector('input[name=email]').value = '{USER}'; "
               f"document.querySelector('input[name=password]').value = '{PASSWORD}'; "
               "document.querySelector('form').submit(); 1")
    page.wait("!location.pathname.startsWith('/user/login') && document.readyState === 'complete'")


def opened(page: Page, item: str) -> None:
    """Wait until the task of an item is there, with its picture."""
    page.wait(f"window.Htx?.task?.data?.includes('{item}') && {STORE} && "
              "document.querySelector('.konvajs-content canvas')")


def paint(page: Page, name: str) -> None:
    """A stroke of a class's brush to and fro, above the middle of the picture: it is to fill some pixels whole."""
    page.click(f"[...document.querySelectorAll('.lsf-label')].find(e => e.innerText.startsWith('{name}'))")
    x, y, width, height = page.wait(
        "(() => {const r = document.querySelector('.konvajs-content').getBoundingClientRect();"
        " return r.width > 50 ? [r.x, r.y, r.width, r.height] : null})()")
    page.drag([(x + width * at, y + height * down) for number, down in enumerate(np.linspace(0.3, 0.45, 12))
               for at in ((0.5, 0.65) if number % 2 else (0.65, 0.5))])


def test_what_people_do_in_a_browser_comes_back(waiting, url, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("LABEL_STUDIO_TOKEN", TOKEN)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium")
    empty(url)
    code, said = waiting.call("labels", "push", waiting.directory, "--label-studio", url)
    assert code == 0, said
    project = int(said.split("/projects/")[1].split(".")[0])
    first, second, third = (item["id"] for item in waiting.items)
    with open_page(chromium, tmp_path / "profile") as page:
        log_in(page, url)
        page.go(f"{url}/projects/{project}/data?labeling=1")
        opened(page, first)
        paint(page, "car")
        page.press(button("Submit"))
        opened(page, second)
        page.press(button("Skip"))
        opened(page, third)
        page.press(button("Submit"))
        page.wait("/no more tasks/i.test(document.body.innerText)")
    held = api(url, f"/api/projects/{project}/export?exportType=JSON&download_all_tasks=true")
    assert [len(task["annotations"]) for task in sorted(held, key=lambda task: task["id"])] == [1, 1, 1]
    code, said = waiting.call("labels", "pull", waiting.directory, "--label-studio", url)
    assert code == 0, said
    changed, skipped, kept = read_journal(waiting.seed)
    assert [line.item for line in (changed, skipped, kept)] == [first, second, third]
    assert [line.status for line in (changed, skipped, kept)] == ["labelled", "skipped", "labelled"]
    assert changed.pixels.manual + changed.pixels.changed > 0
    assert changed.lead_time is not None
    assert kept.pixels.manual == kept.pixels.changed == 0
    standing = waiting.oracle()._asked(0, [{"id": one["patch"], "image": one["image"]} for one in waiting.items], None)
    for line, painted in ((changed, True), (kept, False)):
        _, item = standing.book.by_id[line.item]
        labels, started = standing.labels(line, item), standing.starts[item.id]
        differs = labels != started
        assert bool(differs.any()) is painted
        assert (labels[differs] == 2).all(), "only the stroke is another, and it is of the class that was painted"
