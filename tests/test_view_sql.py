"""The SQL page: what it shows, runs, refuses, keeps and writes."""

import io
import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2 as httpx
import pyarrow.parquet as pq
import pytest
from scored_stores import picked, two_students
from templates import made
from view_pages import Served, opened, served

from recycledb.selection.query import query
from recycledb.selection.recipes import get_recipe
from recycledb.selection.select import select
from recycledb.store import Store
from recycledb.workspace import Workspace

WORDS = ("apples", "<script>alert('pears')</script>", "plums", "figs")
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


@dataclass(frozen=True)
class Site:
    """A store whose pages are served, and a client that is let in."""

    workspace: Workspace
    pages: Served
    client: httpx.Client

    @property
    def store(self) -> Store:
        return self.workspace.store

    @property
    def sql_page(self) -> Served:
        return replace(self.pages, address=self.pages.address.replace("/?", "/sql?"))

    @property
    def recipes(self) -> Path:
        return self.store.backend.path.parent / "recipes"


@contextmanager
def site_at(backend: str, path: Path) -> Iterator[Site]:
    shutil.copyfile(made(backend), path)
    with Store.open(f"{backend}:///{path}") as store:
        two_students(store, WORDS)
        workspace = Workspace(store)
        with served(workspace) as pages:
            headers = {"origin": pages.base}
            with httpx.Client(base_url=pages.base, follow_redirects=True, timeout=60, headers=headers) as client:
                assert client.get(pages.address.replace("/?", "/sql?")).status_code == 200
                yield Site(workspace, pages, client)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One for all tests, which keep to names of their own: a server takes longer to start than what is asked of it."""
    with site_at("sqlite", tmp_path_factory.mktemp("site") / "store.db") as found:
        yield found


@pytest.fixture
def client(site: Site) -> httpx.Client:
    return site.client


def send(client: httpx.Client, sql: str, action: str = "run", **fields: Any) -> str:
    """Press a button; return the part of the page that changes."""
    answer = client.post("/sql", data={"q": sql, "action": action, "part": "1", **fields})
    assert answer.status_code == 200
    return answer.text


def error_of(page: str) -> str:
    found = re.search(r'class="error" role="alert">([^<]*)<', page)
    return unescape(found[1]) if found else ""


# -- showing and running


def test_opening_an_address_shows_the_query_and_runs_nothing(site: Site, client: httpx.Client) -> None:
    text = "SELECT '</textarea><script>x</script>' AS a, :kind -- & so on"
    address = httpx.URL("/sql", params={"q": text, ":kind": "or'igin", "action": "record", "selection": "mine, by GET"})
    page = client.get(address).text
    assert text in unescape(page) and "<script>x" not in page
    assert 'name=":kind" value="or&#39;igin"' in page
    assert 'class="scroll rows-found"' not in page
    assert site.store.find_name("selection", "mine, by GET") is None
    assert client.get("/sql?from=nothing:x").status_code == 400


def test_rows_link_to_their_samples_and_cannot_become_markup(site: Site, client: httpx.Client) -> None:
    sample = site.store.rows("SELECT sample_id FROM samples ORDER BY sample_id")[0][0]
    sql = "SELECT sample_id, instruction, NULL AS missing, 1.5 AS number FROM samples ORDER BY sample_id"
    page = send(client, sql)
    assert f'href="/samples/{sample}"' in page and "4 rows" in page and '<td class="null">NULL' in page
    assert "<script>" not in page and "&lt;script&gt;alert" in page
    plan = send(client, sql, "explain")
    assert 'class="plan"' in plan and "sample" in plan.lower()


@pytest.mark.long
def test_a_table_says_that_there_are_more_rows(client: httpx.Client) -> None:
    sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :last) SELECT i FROM n"
    page = send(client, sql, **{":last": "1001"})
    assert "The first 1,000 rows; there are more" in page and page.count("<tr>") == 1_001
    page = send(client, sql, **{":last": "1000"})
    assert ">1,000 rows<" in page and page.count("<tr>") == 1_001
    page = send(client, sql, **{":last": "3000", "x": "i"})  # all of them are drawn
    assert "i of 3,000 rows" in page and sum(int(n) for n in re.findall(r": (\d+)</title>", page)) == 3_000
    page = send(client, sql.replace("SELECT i FROM", "SELECT i, -i AS j FROM"), **{":last": "100", "x": "i", "y": "j"})
    assert page.count("<circle") == 100
    long = send(client, "SELECT printf('%.*c', 5000, 'x') AS a")
    assert "4,600 more characters" in long and len(long) < 5_000


def test_parameters_have_the_types_that_recipes_give_them(client: httpx.Client) -> None:
    sql = "SELECT count(*) AS n FROM scores WHERE student = :student AND kind = :kind"
    assert error_of(send(client, sql)).startswith("give a value for :kind")
    assert "several students" in error_of(send(client, sql, **{":kind": "origin"}))
    page = send(client, sql, **{":kind": "origin", ":student": "7b", ":left": "from another query"})
    assert '<td class="n">4</td>' in page
    fields = client.post("/sql/fields", data={"q": sql, ":kind": "origin"}).text
    assert 'name=":kind" value="origin"' in fields and '<option value="13b">' in fields
    cherry = client.post("/sql/fields", data={"q": get_recipe("cherry").sql}).text
    assert "<option selected>origin</option>" in cherry and 'name=":top"' in cherry


def test_what_is_wrong_is_one_line(site: Site, client: httpx.Client) -> None:
    refused = error_of(send(client, "DELETE FROM loss"))
    assert refused.startswith("refused: a query may only read the store") and "--allow" not in refused
    assert "no such column: missing" in error_of(send(client, "SELECT missing FROM samples"))
    assert error_of(send(client, " -- only a comment")) == "the query is empty"
    assert error_of(send(client, ENDLESS, limit="0.2")) == "stopped after 0.2 s"
    assert "time limit" in error_of(send(client, "SELECT 1", limit="soon"))
    assert "@order" not in error_of(send(client, get_recipe("random").sql)) and error_of(
        send(client, get_recipe("random").sql)
    ).startswith("this recipe puts a pool in order")
    whole = client.post("/sql", data={"q": "SELECT missing FROM samples"})  # without script: the page, with the text
    assert whole.status_code == 400 and "SELECT missing FROM samples</textarea>" in whole.text
    assert client.post("/sql", content=b"q=%FF", headers={"content-type": "text/plain"}).status_code == 400
    assert site.store.rows("SELECT count(*) FROM loss")[0][0] > 0


@pytest.mark.parametrize("action", ["run", "download-csv", "download-alpaca"])
def test_a_running_query_can_be_cancelled(client: httpx.Client, action: str) -> None:
    found: list[str] = []
    sql = ENDLESS if action != "download-alpaca" else f"SELECT variant_id FROM variants WHERE ({ENDLESS}) > 0"
    thread = threading.Thread(target=lambda: found.append(error_of(send(client, sql, action, run="mine", limit="60"))))
    thread.start()
    while not client.post("/sql/cancel", data={"run": "mine"}).json()["stopped"]:
        assert thread.is_alive()
    thread.join(20)
    assert found == ["the query was cancelled"]


# -- keeping


@pytest.mark.long
def test_a_recipe_file_is_never_replaced_unasked(site: Site, client: httpx.Client) -> None:
    folder = site.recipes
    assert "recycledb select --sql recipes/mine.sql" in send(client, "SELECT 1\n", "save", recipe="mine")
    assert (folder / "mine.sql").read_text() == "SELECT 1\n"
    again = send(client, "SELECT 2", "save", recipe="mine.sql")
    assert error_of(again).startswith("recipes/mine.sql exists with another text") and str(folder) not in again
    assert (folder / "mine.sql").read_text() == "SELECT 1\n"
    assert not error_of(send(client, "SELECT 1", "save", recipe="mine"))  # the same text
    assert not error_of(send(client, "SELECT 2", "save", recipe="mine", replace="1"))
    assert (folder / "mine.sql").read_text() == "SELECT 2\n"
    before = sorted(folder.parent.rglob("*.sql"))
    for name in ("../mine", "/tmp/mine", "a/b", "", ".hidden", "a\0b", "x" * 81):
        assert "cannot be the name" in error_of(send(client, "SELECT 3", "save", recipe=name))
    assert sorted(folder.parent.rglob("*.sql")) == before
    assert "SELECT 2" in client.get("/sql?from=file:mine").text
    assert client.get("/sql?from=file:../mine").status_code == 400


def test_recipe_files_are_beside_the_configuration_of_the_store(site: Site, tmp_path: Path) -> None:
    from recycledb.config import load
    from recycledb.view.recipe_files import folder_of as chosen

    (tmp_path / "project").mkdir()
    config = tmp_path / "project" / "recycledb.toml"
    config.write_text(f'[store]\nurl = "sqlite:///{site.store.backend.path}"\n')
    assert chosen(Workspace(site.store, load(config))) == tmp_path / "project" / "recipes"
    config.write_text('[store]\nurl = "sqlite:///another.db"\n')
    assert chosen(Workspace(site.store, load(config))) == site.recipes


def test_a_selection_is_the_one_that_select_records(site: Site, client: httpx.Client) -> None:
    recipe = get_recipe("cherry")
    given = {":student": "7b", ":top": "2"}
    page = send(client, recipe.sql, "record", selection="mine", **given)
    assert "Recorded mine: 2 variants, 50.0% of the samples (origin 2)." in page
    expected = select(site.store, recipe, {"student": "7b", "top": "2"}, name="other")
    [row] = site.store.rows("SELECT selection_id, recipe FROM selections WHERE selection = 'mine'")
    assert (row.selection_id, row.recipe) == (expected.selection_id, "cherry")
    assert "the selection a name" in error_of(send(client, recipe.sql, "record", selection=" ", **given))
    assert "variant_id" in error_of(send(client, "SELECT 1 AS a", "record", selection="mine"))
    page = send(client, recipe.sql, "record", selection="mine", **{**given, ":top": "1"})
    assert "meant another selection until now" in page
    shown = client.get(f"/sql?from=selection:{row.selection_id}")  # a recorded selection to start from
    assert parse_qs(urlsplit(str(shown.url)).query)[":student"] == ["7b"] and "@param top" in shown.text


def test_a_recorded_selection_can_be_listed_at_once(client: httpx.Client) -> None:
    sql = "SELECT variant_id FROM variants WHERE kind = 'origin' ORDER BY variant_id LIMIT 3"
    link = re.search(r'href="([^"]+)"', send(client, sql, "record", selection="three & <more>"))
    assert link and "3 of 4 samples" in client.get(unescape(link[1])).text


def test_files_are_those_of_the_commands(site: Site, client: httpx.Client, tmp_path: Path) -> None:
    def download(format: str, sql: str, **fields: str) -> bytes:
        answer = client.post("/sql", data={"q": sql, "action": f"download-{format}", **fields})
        assert answer.status_code == 200, error_of(answer.text)
        assert answer.headers["content-disposition"].startswith("attachment;")
        return answer.content

    recipe = get_recipe("cherry")
    select(site.store, recipe, {"student": "7b", "top": "3"}, output=tmp_path / "cherry.json", name="downloaded")
    given = {":student": "7b", ":top": "3"}
    assert download("alpaca", recipe.sql, **given) == (tmp_path / "cherry.json").read_bytes()
    texts = "SELECT instruction, input, output FROM samples ORDER BY sample_id"
    assert len(json.loads(download("alpaca", texts))) == 4
    csv = download("csv", recipe.sql, **given).decode().splitlines()
    assert csv[0] == "variant_id,rank,reason,ifd" and [line[:32] for line in csv[1:]] == picked(
        site.store, "downloaded"
    )
    assert pq.read_table(io.BytesIO(download("parquet", recipe.sql, **given))).num_rows == 3
    wrong = client.post("/sql", data={"q": "SELECT 1 AS a", "action": "download-alpaca"})
    assert wrong.status_code == 400 and "needs variant_id" in error_of(wrong.text)
    assert client.post("/sql", data={"q": "SELECT 1", "action": "download-exe"}).status_code == 400


# -- DuckDB


@pytest.mark.long
def test_a_sandbox_and_other_connections_of_duckdb_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "store.duckdb"
    shutil.copyfile(made("duckdb"), path)
    with Store.open(f"duckdb:///{path}") as store:
        found: list[Any] = []
        reader = threading.Thread(target=lambda: found.append(store.rows("SELECT count(*) FROM sample")[0][0]))
        with store.sandbox() as sandbox:
            reader.start()
            reader.join(0.2)
            assert not found
            assert list(sandbox.execute("SELECT count(*) FROM samples")[1]) == [(0,)]
        reader.join(20)
        assert found == [0]
        with store.read():
            asking = threading.Thread(target=lambda: found.append(_count(store)))
            asking.start()
            asking.join(0.2)
            assert found == [0]
        asking.join(20)
        assert found == [0, 0]


def _count(store: Store) -> int:
    with query(store, "SELECT count(*) FROM samples", timeout_s=60) as result:
        return int(next(result.rows)[0])


@pytest.mark.long
def test_duckdb_runs_cancels_and_records_while_its_columns_are_read(tmp_path: Path) -> None:
    """DuckDB cannot have a sandbox and another connection open at once: they take turns."""
    with site_at("duckdb", tmp_path / "store.duckdb") as site:
        client = site.client
        assert ">4</td>" in send(
            client, "SELECT count(*) AS n FROM samples WHERE :kind = 'origin'", **{":kind": "origin"}
        )
        assert 'class="plan"' in send(client, "SELECT count(*) FROM samples", "explain")
        found: list[str] = []
        thread = threading.Thread(target=lambda: found.append(send(client, ENDLESS, run="duck", limit="60")))
        thread.start()
        while not client.post("/sql/cancel", data={"run": "duck"}).json()["stopped"]:
            assert thread.is_alive()
        thread.join(20)
        assert error_of(found[0]) == "the query was cancelled"
        given = {":student": "7b", ":top": "2"}
        assert "Recorded mine: 2 variants" in send(
            client, get_recipe("cherry").sql, "record", selection="mine", **given
        )
        answer = client.post("/sql", data={"q": get_recipe("cherry").sql, "action": "download-csv", **given})
        assert [line[:32] for line in answer.text.splitlines()[1:]] == picked(site.store, "mine")


# -- in a browser


@pytest.mark.browser
def test_a_query_is_written_run_drawn_and_kept(site: Site) -> None:
    with opened(site.sql_page) as page:
        editor = page.get_by_role("textbox", name="One SELECT")
        editor.fill("")
        editor.press_sequentially("SELECT variant_id, ifd_p")
        page.get_by_role("option", name="ifd_ppl").wait_for()
        editor.press("Tab")
        editor.press_sequentially(" FROM scores\nWHERE student = :student")
        assert editor.input_value() == "SELECT variant_id, ifd_ppl FROM scores\nWHERE student = :student"
        editor.press("Home")
        editor.press("Tab")
        assert editor.input_value().endswith("\n    WHERE student = :student")
        page.get_by_label(":student").fill("7b")
        editor.press("Control+Enter")
        page.get_by_text("16 rows").wait_for()
        assert parse_qs(urlsplit(page.url).query)[":student"] == ["7b"]
        page.get_by_label("Draw").first.select_option("ifd_ppl")
        page.get_by_role("img", name="ifd_ppl of 16 rows").wait_for()
        with page.expect_download() as waiting:
            page.get_by_role("button", name="CSV").click()
        assert len(Path(waiting.value.path()).read_text().splitlines()) == 17
        page.get_by_text("Keep it as").click()
        page.get_by_label("Recipe file").fill("by-hand")
        page.get_by_role("button", name="Save recipe").click()
        page.get_by_text("Saved as recipes/by-hand.sql").wait_for()
        page.get_by_label("Selection", exact=True).fill("by hand")
        page.get_by_role("button", name="Record selection").click()
        page.get_by_text("Recorded by hand: 16 variants").wait_for()
        page.reload()  # the address holds the query
        assert editor.input_value().startswith("SELECT variant_id, ifd_ppl FROM scores")
    assert (site.recipes / "by-hand.sql").read_text().startswith("SELECT variant_id")
    assert len(picked(site.store, "by hand")) == 16


@pytest.mark.browser
def test_a_query_is_cancelled_and_the_editor_left_by_keyboard(site: Site) -> None:
    with opened(site.sql_page, java_script_enabled=True) as page:
        editor = page.get_by_role("textbox", name="One SELECT")
        editor.fill(ENDLESS)
        editor.press("Control+Enter")
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("the query was cancelled").wait_for()
        page.get_by_role("button", name="CSV").click()
        page.get_by_text("the query was cancelled").wait_for(state="detached")
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("the query was cancelled").wait_for()
        editor.fill("SELECT 'a;b' AS \"x\"")
        with page.expect_download() as got:
            page.get_by_role("button", name="CSV").click()
        assert got.value.suggested_filename == "store-query.csv" and "a;b" in Path(got.value.path()).read_text()
        editor.focus()
        editor.press("Escape")
        editor.press("Tab")
        assert page.evaluate("document.activeElement.id") != "q"


@pytest.mark.browser
def test_the_page_works_without_script(site: Site) -> None:
    with opened(site.sql_page, java_script_enabled=False) as page:
        page.get_by_role("textbox", name="One SELECT").fill(
            "SELECT sample_id FROM samples WHERE instruction LIKE :like"
        )
        page.get_by_role("button", name="Explain").click()
        page.locator(".plan").wait_for()
        page.get_by_label(":like").fill("%plums%")
        page.get_by_role("button", name="Run").click()
        page.get_by_text("1 row", exact=True).wait_for()
