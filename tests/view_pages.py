"""The live pages for tests: served in this process, asked over HTTP or opened in a real headless Chromium by Playwright."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from recycledb.view.server import serve
from recycledb.workspace import Workspace

TOKEN = "a-token-of-the-tests"


@dataclass
class Served:
    """A running server."""

    address: str  # with the token
    base: str  # http://127.0.0.1:PORT
    stop: Callable[[], None]


@contextmanager
def served(workspace: Workspace, **options: Any) -> Iterator[Served]:
    """Serve the pages of a store at a free port, in a thread; options as in `serve`."""
    addresses: list[str] = []
    ready, stop = threading.Event(), threading.Event()

    def started(address: str) -> None:
        addresses.append(address)
        ready.set()

    thread = threading.Thread(
        target=serve,
        args=(workspace,),
        kwargs={"port": 0, "token": TOKEN, "started": started, "stop": stop, **options},
        daemon=True,
    )
    thread.start()
    try:
        assert ready.wait(30), "the server has not started"
        yield Served(addresses[0], "/".join(addresses[0].split("/")[:3]), stop.set)
    finally:
        stop.set()
        thread.join(10)
        assert not thread.is_alive(), "the server has not ended"


def chromium() -> str:
    """Return the path of the installed Chromium."""
    found = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None
    )
    assert found, "no Chromium on the PATH: apt-get install chromium"
    return found


@contextmanager
def opened(served_at: Served, path: str = "/", *, expected: str | None = None, **options: Any) -> Iterator[Any]:
    """Open the pages in a Chromium; yield Playwright's page, which fails the test for an error of a script or a refused resource.

    `expected` is a part of the console's errors that the test provokes.
    """
    from playwright.sync_api import sync_playwright

    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options}).new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
        page.goto(served_at.address.replace("/?", f"{path}?"))
        try:
            yield page
        finally:
            browser.close()
    complaints = [each for each in complaints if expected is None or expected not in each]
    assert not complaints, complaints


def wait_for(condition: Any, seconds: float = 20.0) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not come true"
        time.sleep(0.02)
