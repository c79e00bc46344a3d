"""Every page for everyone: axe finds nothing serious, in both themes and on narrow and wide screens; nothing is wider than the screen."""

import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest
from scored_stores import two_students
from stores import add_samples
from test_report import HOSTILE
from view_pages import Served, opened, served, wait_for

from recycledb.schema import Texts
from recycledb.store import Store
from recycledb.workspace import Workspace

PAGES = (
    "/",
    "/samples",
    "/samples/SAMPLE",
    "/compare?x=ifd/7b@origin&y=ifd/13b@origin",
    "/sql?q=SELECT+1",
    "/review",
    "/review?all=1",
    "/nothing",
)
SCREENS = ((390, "light"), (1280, "dark"), (2560, "light"))
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, str]]:
    """A store with two students, and a sample whose every text is hostile, right-to-left or long."""
    url = f"sqlite:///{tmp_path_factory.mktemp('access')}/store.db"
    with Store.open(url, create=True) as store:
        [sample, *_] = two_students(store)
        odd = HOSTILE.encode("utf-8", "replace").decode().replace("\0", "")
        add_samples(
            store, [Texts(odd, "שלום עולם 東京", "x" * 5_000 + " $\\frac{a}{b}$\n```py\n\tprint(1)\n```")], odd[:60]
        )
        with served(Workspace(store)) as found:
            yield found, sample


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_axe_finds_nothing_serious(pages: tuple[Served, str], width: int, scheme: str) -> None:
    server, sample = pages
    axe = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
    found: list[Any] = []
    with opened(server, viewport={"width": width, "height": 900}, color_scheme=scheme, expected="404") as page:
        for path in PAGES:
            page.goto(server.base + path.replace("SAMPLE", sample))
            wait_for(lambda: "Reading the store" not in page.content())
            page.wait_for_load_state("load")
            page.evaluate(axe)
            result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
            found += [
                (
                    path,
                    each["id"],
                    each["nodes"][0]["html"][:160],
                    re.sub(r"\s+", " ", each["nodes"][0]["failureSummary"])[:200],
                )
                for each in result["violations"]
                if each["impact"] in SERIOUS
            ]
            wider = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            if wider > 1:
                found.append((path, f"{wider} pixels wider than the screen"))
            assert "owned" not in page.title()
    assert not found, "\n".join(map(str, found))
