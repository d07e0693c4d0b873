"""A headless Chromium that is told what to do over its debugging protocol; by tornado, which Dask brings."""

import itertools
import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tornado.ioloop import IOLoop
from tornado.websocket import WebSocketClientConnection, websocket_connect

PATIENCE_S = 180.0


class Page:
    """One tab. What is waited for and does not come raises `TimeoutError`."""

    def __init__(self, loop: IOLoop, socket: WebSocketClientConnection) -> None:
        self.loop, self.socket, self.numbers = loop, socket, itertools.count(1)

    def do(self, method: str, **about: Any) -> dict[str, Any]:
        number = next(self.numbers)
        self.loop.run_sync(lambda: self.socket.write_message(json.dumps(
            {"id": number, "method": method, "params": about})))
        while True:
            text = self.loop.run_sync(self.socket.read_message, timeout=PATIENCE_S)
            said = json.loads(text)
            if said.get("id") == number:
                if "error" in said:
                    raise RuntimeError(f"{method}: {said['error']}")
                return said["result"]

    def value(self, script: str) -> Any:
        """Of a JavaScript expression."""
        found = self.do("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait(self, script: str) -> Any:
        """Until the expression is true; its value."""
        began = time.monotonic()
        while not (found := self.value(f"(found => found instanceof Node || found)({script})")):
            if time.monotonic() - began > PATIENCE_S:
                raise TimeoutError(f"{script} did not come: {self.value('document.body.innerText')[:2000]}")
            time.sleep(0.3)
        return found

    def go(self, url: str) -> None:
        self.do("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def drag(self, points: list[tuple[float, float]]) -> None:
        """Press at the first point, move over the others, let go."""
        (x, y), *more = points
        self.do("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.do("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, button="left", buttons=1, clickCount=1)
        for x, y in more:
            self.do("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, button="left", buttons=1)
            time.sleep(0.03)
        self.do("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, button="left", buttons=0, clickCount=1)

    def click(self, script: str) -> None:
        """On the middle of the element that the expression finds."""
        x, y = self.wait("(() => {const e = " + script + "; if (!e) return null; e.scrollIntoView({block: 'nearest'}); "
                         "const r = e.getBoundingClientRect(); "
                         "return r.width ? [r.x + r.width / 2, r.y + r.height / 2] : null})()")
        self.drag([(x, y)])

    def press(self, script: str) -> None:
        """The button that the expression finds, wherever it stands and whatever covers it."""
        self.wait("(() => {const e = " + script + "; if (!e) return false; e.click(); return true})()")

    def shot(self, file: Path) -> None:
        import base64

        file.write_bytes(base64.b64decode(self.do("Page.captureScreenshot")["data"]))


@contextmanager
def open_page(chromium: str, folder: Path) -> Iterator[Page]:
    process = subprocess.Popen(
        [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000", "--no-first-run",
         "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    loop = IOLoop(make_current=False)
    try:
        port, began = folder / "DevToolsActivePort", time.monotonic()
        while not port.exists() or "\n" not in port.read_text():
            assert process.poll() is None, "Chromium has ended"
            assert time.monotonic() - began < PATIENCE_S
            time.sleep(0.2)
        at = f"http://127.0.0.1:{port.read_text().splitlines()[0]}"
        with urllib.request.urlopen(f"{at}/json") as answer:
            target = next(one for one in json.loads(answer.read()) if one["type"] == "page")
        socket = loop.run_sync(lambda: websocket_connect(target["webSocketDebuggerUrl"], max_message_size=2**28))
        page = Page(loop, socket)
        page.do("Page.enable")
        yield page
    finally:
        process.kill()
        process.wait()
        loop.close()
