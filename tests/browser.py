"""A real headless Chromium for tests, spoken to through its debugging pipe: no driver, no package, no port."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
TIMEOUT_S = 60


class Browser:
    """One page of a running Chromium."""

    def __init__(self, to: int, source: int) -> None:
        self._to, self._source = to, source
        self._rest = b""
        self._count = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Run one command of Chromium's protocol; return its result."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer["error"]
                return dict(answer["result"])
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._source, 1 << 20)
            assert part, "Chromium has gone"
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(line))

    def open(
        self, path: Path, *, fragment: str = "", dark: bool = False, width: int = 1280, height: int = 1000
    ) -> None:
        """Open a file and wait until the page says that it is ready."""
        self.events.clear()
        scheme = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=path.as_uri() + fragment)
        scriptless = "location.protocol === 'file:' && document.readyState === 'complete' && !document.scripts.length"
        self.wait(f"document.documentElement?.dataset.ready === '1' || ({scriptless})")

    def evaluate(self, script: str) -> Any:
        """Return the value of a JavaScript expression; promises are awaited."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        until = time.monotonic() + TIMEOUT_S
        while not self.evaluate(condition):
            assert time.monotonic() < until, f"{condition} never came true; the page said {self.complaints()}"
            time.sleep(0.05)

    def hover(self, selector: str) -> None:
        """Move the mouse over the first element that a CSS selector finds."""
        box = self.evaluate(f"""(() => {{
            const element = document.querySelector({json.dumps(selector)});
            element.scrollIntoView({{ block: 'center' }});
            const {{ x, y, width, height }} = element.getBoundingClientRect();
            return [x + width / 2, y + height / 2];
        }})()""")
        for shift in (30, 0):
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + shift, y=box[1])

    def complaints(self) -> list[str]:
        """Return what went wrong on the page: errors thrown, and what the policy refused."""
        thrown = [
            event["params"]["exceptionDetails"].get("exception", {}).get("description", "")
            for event in self.events
            if event.get("method") == "Runtime.exceptionThrown"
        ]
        logged = [event["params"]["entry"]["text"] for event in self.events if event.get("method") == "Log.entryAdded"]
        return thrown + logged

    def requests(self) -> list[str]:
        """Return the addresses that the page asked for."""
        sent = [event for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def screenshot(self, path: Path, *, whole: bool = False) -> bytes:
        """Write what is seen, or the whole page, as PNG; return it."""
        picture = base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"])
        path.write_bytes(picture)
        return picture


def find() -> str:
    """Return the path of a Chromium; fail loudly where there is none."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    raise AssertionError(
        f"no browser: none of {', '.join(NAMES)} is on the PATH; install Debian's `chromium`, and run `make browser` again; "
        "without it the pages are not looked at"
    )


@contextmanager
def start() -> Iterator[Browser]:
    """Start Chromium with a profile of its own, and end it."""
    there, to = os.pipe()
    source, back = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [find(), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        # The protocol is spoken over descriptors 3 and 4.
        shell = ["sh", "-c", f'exec "$@" 3</dev/fd/{there} 4>/dev/fd/{back}', "sh", *command]
        process = subprocess.Popen(shell, pass_fds=(there, back), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(there)
        os.close(back)
        try:
            yield Browser(to, source)
        finally:
            process.kill()
            process.wait()
            os.close(to)
            os.close(source)
