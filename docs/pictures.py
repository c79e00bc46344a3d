"""Make the picture of the README, docs/view.png: `python docs/pictures.py`. Needs Chromium (Debian: apt-get install chromium).

It runs the demo in a temporary folder, serves its pages and takes a picture of a sample's page.
"""

import shutil
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import sync_playwright

import recycledb
from recycledb.cli.commands import app
from recycledb.view.server import serve

FOLDER = Path(__file__).parent
FIRST_PICK = """
    SELECT v.sample_id FROM selection_items i JOIN variants v ON v.variant_id = i.variant_id ORDER BY i.position LIMIT 1
"""
SIZE = {"width": 1280, "height": 800}


def main() -> None:
    """Write the pictures."""
    with TemporaryDirectory() as folder:
        demo = Path(folder) / "demo"
        app(["demo", str(demo)], standalone_mode=False)
        addresses: list[str] = []
        ready, stop = threading.Event(), threading.Event()

        def started(address: str) -> None:
            addresses.append(address)
            ready.set()

        with recycledb.open(f"sqlite:///{demo}/recycle.db") as db:
            serving = threading.Thread(target=serve, args=(db,), kwargs={"port": 0, "started": started, "stop": stop})
            serving.start()
            ready.wait()
            try:
                take(
                    addresses[0],
                    db.query(FIRST_PICK).rows[0][0],
                )
            finally:
                stop.set()
                serving.join()


def take(address: str, sample: str) -> None:
    """Take a picture of the page of one sample."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        page.goto(address.replace("/?", f"/samples/{sample}?"))
        page.wait_for_selector("h2")
        page.screenshot(path=FOLDER / "view.png")
        browser.close()


if __name__ == "__main__":
    main()
