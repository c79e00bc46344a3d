"""The hostile store: a megabyte, scripts, handlers, addresses that run and control characters in every field that a user, a teacher or a
file can fill. Every page shows it, and nothing of it runs.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import httpx2 as httpx
import pytest
import stores
from templates import made
from view_pages import Served, opened, served, wait_for

from recycledb.store import Store
from recycledb.store.sqlite import driver
from recycledb.workspace import Workspace

RUN = "document.title='run'"
BAD = (
    f'</script></style></textarea></title><script>{RUN}</script><img src=x onerror="{RUN}"><svg onload={RUN}>'
    f'<a href="javascript:{RUN}">x</a>\' onfocus={RUN} autofocus " {{{{ 7*7 }}}} ${{7*7}} %s '
    "\x01\x07\x1b[31m\x7f\x85\u2028\u202e\ufeff]]>--!>"
)
MEGABYTE = 1_000_000
# Columns by table: texts, those of a megabyte, and those that are JSON.
TEXTS = {
    "dataset_import": ("source", "format"),
    "sample": ("instruction", "input"),
    "variant": ("instruction", "input"),
    "reply": ("error", "finish_reason", "served_model", "request_id"),
    "extraction": ("reason",),
    "teacher": ("name", "provider", "model"),
    "student": ("name", "model", "revision", "prompt", "dtype"),
    "prompt": ("source",),
    "measure": ("name",),
    "teacher_measure": ("name",),
    "rating": ("name",),
    "augmentation": ("name",),
    "selection": ("name", "recipe"),
    "selection_item": ("reason",),
    "ordering_item": ("reason",),
    "mark": ("marked_by",),
    "batch_event": ("detail", "remote_id"),
    "value": ("status",),
}
LONG = {
    "sample": ("output",), "variant": ("output",), "reply": ("text", "raw"), "prompt": ("text",), "selection": ("sql",), "mark": ("note",),
}  # fmt: skip
JSON = {
    "sample": ("context",),
    "place": ("extra",), "teacher": ("parameters",), "measure": ("parameters",), "selection": ("parameters", "counts"),
    "mark": ("seen",), "augmentation": ("parameters",), "derivation": ("parameters",),
}  # fmt: skip
# The rows of which these texts are so long: those of the sample that is opened.
FIRST = "(SELECT min(sample_id) FROM sample)"
OF_ONE = dict.fromkeys(LONG, f"sample_id = {FIRST}") | {
    "reply": f"variant_id IN (SELECT variant_id FROM variant WHERE sample_id = {FIRST})",
    "prompt": "prompt_id = (SELECT min(prompt_id) FROM prompt)", "selection": "TRUE", "mark": "TRUE",
}  # fmt: skip
# Nobody sees these: the current name stands before the first, and no view has the others.
UNSEEN = {"[teacher.name]", "[student.name]", "[selection.name]", "[measure.parameters]", "[augmentation.parameters]"}


def sign(table: str, column: str) -> str:
    """Return what a field is recognised by."""
    return f"[{table}.{column}]"


def spoil(path: Path) -> None:
    """Put hostile texts into every field; references stay as they are."""
    with driver.connect(str(path)) as conn:
        for table, names in [*TEXTS.items(), *LONG.items()]:
            for column in names:
                text = sign(table, column) + BAD
                conn.execute(f"UPDATE {table} SET {column} = ? || coalesce({column}, '')", (text,))
        for table, names in LONG.items():
            for column in names:
                more = " & <b>word</b> " * (MEGABYTE // 15)
                conn.execute(f"UPDATE {table} SET {column} = {column} || ? WHERE {OF_ONE[table]}", (more,))
        for table, names in JSON.items():
            for column in names:
                said = sign(table, column) + BAD
                text = json.dumps([{"role": said, "content": BAD}] if column == "context" else {said: BAD, "page": BAD})
                conn.execute(f"UPDATE {table} SET {column} = ?", (text,))
        for table in ("dataset", "place", "closing", "dataset_import"):
            conn.execute(f"UPDATE {table} SET dataset = ? || dataset", (sign("dataset", "dataset") + BAD,))
        for kind in ("teacher", "student", "selection", "measure", "rating", "augmentation"):
            conn.execute("UPDATE name SET name = ? || name WHERE kind = ?", (sign("name", kind) + BAD, kind))
    conn.close()


@dataclass(frozen=True)
class Site:
    """The pages of the hostile store."""

    pages: Served
    client: httpx.Client
    sample: str
    variant: str
    store: Store

    def paths(self) -> Iterator[str]:
        """Yield the address of every page, and of what errors it has."""
        keys = [f"ifd/{sign('name', 'student')}{BAD}7b@{kind}" for kind in ("origin", "reflect_both")]
        dataset, selection = sign("dataset", "dataset") + BAD + "d", sign("name", "selection") + BAD + "best-d"
        person = sign("mark", "marked_by") + BAD + "ann"
        yield from ("/", "/samples", "/compare", "/sql", "/review", "/review?all=1", f"/samples/{self.sample}")
        yield from (f"/samples/{self.sample}/text/{self.variant}/output", "/review/agreement", "/sql?from=selection")
        for path, asked in (
            ("/samples", {"q": BAD}), ("/samples", {"q": "word"}), ("/samples", {"has": f"dataset:{dataset}"}),
            ("/samples", {"has": f"selection:{selection}", "range": f"{keys[0]}:0..", "sort": keys[0], "show": keys[1]}),
            ("/samples", {"sort": BAD}), ("/samples", {"range": BAD}), ("/samples", {"has": BAD}), ("/samples", {"after": BAD}),
            ("/compare", {"x": keys[0], "y": f"gain:{keys[1]}", "xlow": "0", "q": ""}), ("/compare", {"x": BAD}),
            ("/compare", {"x": keys[0], "y": keys[1], "xlow": BAD}), ("/compare", {"x": keys[0], "y": keys[1], "xlow": "0"}),
            ("/sql", {"q": BAD}), ("/sql", {"from": BAD}), ("/sql", {"from": f"selection {selection}"}),
            ("/sql", {"q": "SELECT :a", ":a": BAD}),
            ("/review", {"selection": selection}), ("/review", {"sql": BAD}), ("/review/agreement", {"a": person, "b": BAD}),
            ("/samples/" + quote(BAD, safe=""), {}), ("/" + quote(BAD, safe=""), {}),
        ):  # fmt: skip
            yield f"{path}?{urlencode(asked)}" if asked else path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("hostile")
    path = folder / "re<script>cycle' onfocus=x.db"
    shutil.copyfile(made("sqlite"), path)
    with Store.open(f"sqlite:///{path}") as store:
        stores.fill(store)
        [[sample, variant]] = store.rows(
            "SELECT sample_id, variant_id FROM variants WHERE kind = 'origin' ORDER BY 1 LIMIT 1"
        )
    spoil(path)
    (folder / "recipes").mkdir()
    (folder / "recipes" / "mine.sql").write_text(
        f"-- @description [recipe.file] {BAD}\nSELECT variant_id FROM variants\n"
    )
    with (
        Store.open(f"sqlite:///{path}") as store,
        served(Workspace(store), person=f"[person]{BAD}") as pages,
        httpx.Client(base_url=pages.base, follow_redirects=True, timeout=60, headers={"origin": pages.base}) as client,
    ):
        client.get(pages.address)
        wait_for(lambda: "Reading the store" not in client.get("/").text + client.get("/samples").text)
        yield Site(pages, client, sample, variant, store)


class Reader(HTMLParser):
    """What a browser would see and run."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.wrong: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "script" and not (given.get("src") or "").startswith("/static/"):
            self.wrong.append(f"a script: {given}")
        if tag in ("img", "iframe", "object", "embed", "base", "b"):
            self.wrong.append(f"<{tag} {given}>")
        for name, value in given.items():
            address = name in ("href", "src", "action", "formaction", "data")
            if (
                name.startswith("on")
                or name in ("style", "autofocus")
                or (address and (value or "")[:1] not in "/#?" and value != "data:,")
            ):
                self.wrong.append(f"<{tag} {name}={value!r}>")
            self.text.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def run_sql(site: Site, sql: str) -> Any:
    return site.client.post("/sql", data={"q": sql, "action": "run", "part": "1"})


@pytest.mark.long
def test_every_page_shows_it_and_has_nothing_that_runs(site: Site) -> None:
    seen, wrong = [], {}
    answers = [(path, site.client.get(path)) for path in site.paths()]
    answers += [(f"SELECT * FROM {view}", run_sql(site, f"SELECT * FROM {view}")) for view in stores.VIEWS]
    answers.append(("saved", site.client.post("/sql", data={"q": BAD, "recipe": BAD, "action": "save"})))
    answers.append(
        (
            "recorded",
            site.client.post(
                "/sql", data={"q": "SELECT variant_id FROM variants", "selection": BAD, "action": "record"}
            ),
        )
    )
    answers.append(
        ("marked", site.client.post("/marks", data={"sample_id": site.sample, "mark": BAD, "page": "sample"}))
    )
    for path, answer in answers:
        if not answer.headers["content-type"].startswith("text/html"):
            assert (
                answer.headers["content-type"].startswith("text/plain")
                and answer.headers["x-content-type-options"] == "nosniff"
            )
            continue
        assert answer.status_code in (200, 400, 404), (path, answer.text)
        assert len(answer.text) < 3 * MEGABYTE
        reader = Reader(answer.text)
        seen += reader.text
        if reader.wrong:
            wrong[path[:60]] = reader.wrong[:3]
    assert not wrong, "\n".join(f"{path}: {what}" for path, what in wrong.items())
    text = "\n".join(seen)
    fields = [(table, name) for columns in (TEXTS, LONG, JSON) for table, names in columns.items() for name in names]
    assert {sign(*each) for each in fields if sign(*each) not in text} == UNSEEN
    assert all(part in text for part in (BAD, "{{ 7*7 }}", "[person]"))


@pytest.mark.browser
def test_nothing_of_it_runs_in_a_browser(site: Site) -> None:
    with opened(site.pages, expected="status of 40") as page:
        for path in site.paths():
            page.goto(site.pages.base + path)
            page.wait_for_load_state("load")
            assert page.title() != "run", path
            assert page.evaluate(
                "[...document.scripts].every((each) => each.src.startsWith(location.origin + '/static/'))"
            ), path
            assert page.locator("main img, main iframe, main b, [onerror], [onload], [autofocus]").count() == 0, path
        page.goto(f"{site.pages.base}/sql")
        for view in ("samples", "teacher_texts", "marks", "selections", "measures"):
            page.locator("#q").fill(f"SELECT * FROM {view}")
            page.locator("#q").press("Control+Enter")
            page.locator("#outcome td").first.wait_for()
            assert page.title() != "run" and page.locator("#outcome img, #outcome b, #outcome script").count() == 0
        page.goto(f"{site.pages.base}/review?all=1")
        page.keyboard.press("k")
        page.get_by_text("1 of 2 marked").wait_for()
        assert page.title() != "run"
