"""The live pages' server: who gets in, what each answer has, the list of samples; the tests marked `browser` use a real Chromium."""

import os
import re
import stat
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from urllib.parse import parse_qsl

import httpx2 as httpx
import numpy as np
import pytest
from scored_stores import two_students
from stores import add_samples, texts
from view_pages import TOKEN, Served, opened, served, wait_for

from recycledb.schema import Texts
from recycledb.store import Store
from recycledb.view.columns import Column, Snapshot
from recycledb.view.guard import HEADERS
from recycledb.view.kept import Kept
from recycledb.view.newest import Columns
from recycledb.view.reading import read
from recycledb.view.server import own_hosts
from recycledb.view.state import Range, State, StateError, following, matching, ordered
from recycledb.view.texts import SearchError, SearchIndex, expression
from recycledb.workspace import Workspace

WORDS = ("apples", "pears", "plums", "figs")


@pytest.fixture
def workspace(sqlite_url: str) -> Iterator[Workspace]:
    with Store.open(sqlite_url) as store:
        two_students(store, WORDS)
        yield Workspace(store)


@pytest.fixture
def pages(workspace: Workspace) -> Iterator[Served]:
    with served(workspace) as found:
        yield found


@pytest.fixture
def client(pages: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=pages.base, follow_redirects=True, timeout=20) as found:
        assert found.get(pages.address.replace("/?", "/samples?")).status_code == 200
        wait_for(lambda: "Reading the store" not in found.get("/samples").text)
        yield found


# -- who gets in


@pytest.mark.long
def test_only_the_token_opens_the_pages(pages: Served) -> None:
    with httpx.Client(base_url=pages.base, follow_redirects=True, timeout=20) as client:
        for address in ("/samples", "/static/view.js", "/?token=wrong", "/nothing"):
            assert client.get(address).status_code == 403
        answer = client.get(f"/samples?token={TOKEN}&sort=x&q=a+b")
        assert str(answer.url).endswith("/samples?sort=x&q=a+b")  # the token is not kept in the address
        [cookie] = answer.history[0].headers.get_list("set-cookie")
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie
        assert client.get("/static/view.js").status_code == 200


@pytest.mark.long
def test_a_foreign_name_of_this_machine_reaches_nothing(client: httpx.Client) -> None:
    """DNS rebinding: a page of evil.example, which resolves to 127.0.0.1, would send the name that it knows."""
    port = client.base_url.port
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}", ""):
        assert client.get("/samples", headers={"host": host}).status_code == 400
    assert client.get("/samples", headers={"host": f"localhost:{port}"}).status_code == 200


def test_only_its_own_pages_may_post(client: httpx.Client) -> None:
    own = str(client.base_url).rstrip("/")
    for origin in ({}, {"origin": "null"}, {"origin": "https://evil.example"}, {"origin": own + "1"}):
        assert client.post("/samples", headers=origin, content=b"").status_code == 403
    assert (
        client.post("/samples", headers={"origin": own}, content=b"").status_code == 405
    )  # let in; the page takes none
    assert client.post("/samples", headers={"origin": own}, content=iter([b"no length"])).status_code == 413


@pytest.mark.long
def test_every_answer_has_the_policy(client: httpx.Client) -> None:
    for address in ("/samples", "/static/page.css", "/nothing", "/samples?sort=nothing"):
        answer = client.get(address)
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert "'unsafe" not in HEADERS["content-security-policy"]


def test_names_of_the_server() -> None:
    assert own_hosts("127.0.0.1", 8321) == {"127.0.0.1:8321", "localhost:8321", "[::1]:8321"}
    assert "box:80" in own_hosts("Box", 80) and "box" in own_hosts("Box", 80)
    assert all(name.endswith(":9") for name in own_hosts("0.0.0.0", 9))


# -- the address bar


def test_an_address_is_read_and_written_alike() -> None:
    query = "has=kind%3Areflect_both&lacks=selection%3Aa+b&range=ifd%2F7b%40origin%3A0.3..&q=two+words"
    query += "&sort=-ifd%2F7b%40origin&show=x&after=1"
    state = State.parse(parse_qsl(query))
    assert state.query() == query and State.parse(parse_qsl(state.query())) == state
    assert state.ranges == (Range("ifd/7b@origin", 0.3),) and state.with_(sort="").after == ""
    for text in ("has=kind", "has=knd:x", "range=x", "range=x:a..b", "range=x:nan..1"):
        with pytest.raises(StateError, match=text.partition("=")[0]):
            State.parse(parse_qsl(text))


def test_a_property_is_wanted_then_unwanted_then_free() -> None:
    state = State()
    seen = [(state := state.toggled("kind", "origin")).query() for _ in range(3)]
    assert seen == ["has=kind%3Aorigin", "lacks=kind%3Aorigin", ""]


# -- the columns


@pytest.mark.parametrize("store_url", ["sqlite", "duckdb"], indirect=True)
@pytest.mark.both_backends
def test_columns_are_what_the_views_have(store_url: str) -> None:
    with Store.open(store_url) as store:
        ids = two_students(store, WORDS)
        snapshot = read(store)
        assert snapshot.ids == ids
        rows = store.rows("SELECT sample_id, kind, student, ifd_ppl, rifd_ppl, ppl_A_condition FROM scores")
        for sample, kind, student, *numbers in rows:
            for measure, number in zip(("ifd", "rifd", "ppl"), numbers, strict=True):
                column = snapshot.columns[f"{measure}/{student}@{kind}"]
                assert column.values[snapshot.number_of[sample]] == pytest.approx(number, nan_ok=True)
        assert snapshot.flags["kind"]["reflect_both"].all() and list(snapshot.flags["teacher"]) == ["gpt"]
        gain, one = snapshot.column("gain:ifd/7b@reflect_both"), snapshot.columns["ifd/7b@reflect_both"]
        assert gain is not None
        assert np.array_equal(gain.values, one.values - snapshot.columns["ifd/7b@origin"].values)
        gap = snapshot.column("gap:ifd/7b@origin|ifd/13b@origin")
        assert gap is not None and (gap.values >= 0).all()
        assert snapshot.column("gap:ifd/7b@origin") is None and snapshot.column("nothing") is None


@pytest.mark.parametrize("store_url", ["sqlite", "duckdb"], indirect=True)
def test_what_was_read_is_used_again_while_the_store_has_the_same_rows(store_url: str) -> None:
    def opened_anew(store: Store) -> Snapshot:
        columns = Columns(store)
        found = columns.get(20)
        assert found is not None, columns.error
        wait_for(lambda: not columns.is_reading)
        return found

    def contents(snapshot: Snapshot) -> object:
        values = {key: (each.kind, each.teacher, each.values.tolist()) for key, each in snapshot.columns.items()}
        flags = {
            group: {label: each.tolist() for label, each in labels.items()} for group, labels in snapshot.flags.items()
        }
        return snapshot.ids, repr(values), flags

    path = Path(store_url.partition(":///")[2])
    empty = path.read_bytes()
    with Store.open(store_url) as store:
        two_students(store, WORDS)
        kept = Kept(store, "columns").path
        first = opened_anew(store)
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        again = opened_anew(store)
        assert first.state is not None and again.state is None  # the second was not read from the store
        assert contents(again) == contents(first) and again.version == first.version
        add_samples(store, [texts("more")])
        more = opened_anew(store)
        assert more.state is not None and len(more.ids) == len(first.ids) + 1
        for damaged in (
            b"",
            b"PK\x03\x04 no archive",
            kept.read_bytes()[:-100],
            kept.read_bytes().replace(b"proof", b"pro0f"),
        ):
            kept.write_bytes(damaged)
            assert opened_anew(store).state is not None and opened_anew(store).state is None
    path.write_bytes(empty)
    for leftover in path.parent.glob(path.name + "?*"):
        leftover.unlink()
    with Store.open(store_url) as store:  # another store at the same place, with as many rows
        two_students(store, [*WORDS[:-1], "dates"])
        add_samples(store, [texts("more")])
        assert opened_anew(store).state is not None


def test_files_of_stores_that_nobody_opens_are_removed(sqlite_url: str, tmp_path: Path) -> None:
    old, other = tmp_path / "columns-0123.npz", tmp_path / "words-0123.db"
    for path in (old, other):
        path.touch()
        os.utime(path, (0, 0))
    with Store.open(sqlite_url) as store:
        Kept(store, "columns", tmp_path).save("state", {})
    assert not old.exists() and other.exists()


def numbered(values: list[float], **flags: list[bool]) -> Snapshot:
    column = Column("n", "n", "m", "origin", np.array(values))
    found = {group: {"yes": np.array(each)} for group, each in flags.items()}
    groups = {group: found.get(group, {}) for group in ("dataset", "kind", "teacher", "problem", "selection", "mark")}
    return Snapshot([f"s{i}" for i in range(len(values))], {"n": column}, groups, (), 0.0)


def test_samples_without_a_number_are_in_no_range_and_no_order() -> None:
    snapshot = numbered([0.5, np.nan, 0.1, 0.5], kind=[True, True, False, True])
    everything = matching(snapshot, State())
    assert list(ordered(snapshot, State(), everything)) == [0, 1, 2, 3]
    assert list(ordered(snapshot, State(sort="n"), everything)) == [2, 0, 3]
    assert list(ordered(snapshot, State(sort="-n"), everything)) == [0, 3, 2]
    found = matching(snapshot, State(has=(("kind", "yes"),), ranges=(Range("n", 0.2),)))
    assert list(np.flatnonzero(found)) == [0, 3]
    assert list(np.flatnonzero(matching(snapshot, State(lacks=(("kind", "yes"),))))) == [2]
    assert list(following(np.array([2, 0, 3]), 0, 5)) == [3] and list(following(np.array([2, 0, 3]), None, 2)) == [2, 0]
    with pytest.raises(StateError, match=r"no kind 'yess'.*yes"):
        matching(snapshot, State(has=(("kind", "yess"),)))
    with pytest.raises(StateError, match="no number 'm'"):
        ordered(snapshot, State(sort="-m"), everything)


# -- words


def test_what_a_user_types_is_looked_for() -> None:
    assert expression('rivers "of gold" -silver begin*') == '("rivers" AND "of gold" AND "begin"*) NOT "silver"'
    assert (
        expression("good-bye NEAR(a OR b)") == '("good-bye" AND "NEAR(a" AND "OR" AND "b)")'
    )  # no syntax of FTS5 gets through
    assert expression('"open') == '("open")' and expression("東京*") == '(" 東  京 "*)'
    for nothing in ("", "-silver", '""', "++ --"):
        with pytest.raises(SearchError, match="nothing to look for"):
            expression(nothing)


@pytest.mark.default_cases("sqlite")
@pytest.mark.parametrize("store_url", ["sqlite", "duckdb"], indirect=True)
def test_words_are_found_in_any_text_and_in_any_script(store_url: str, tmp_path: Path) -> None:
    with Store.open(store_url) as store:
        add_samples(
            store,
            [
                Texts("Où est Genève ?", "", "à l'ouest"),
                Texts("東京はどこですか", "", "関東"),
                Texts("x == y", "", "z"),
            ],
        )
        index, snapshot = SearchIndex(store, tmp_path / "cache"), read(store)

        def found(words: str) -> list[int]:
            assert index.update(20) and index.error is None
            return list(np.flatnonzero(index.samples_with(words, snapshot)))

        assert found("geneve") == [0] and found('"à l ouest"') == [0] and found("gen*") == [0] and found("gen") == []
        assert found("京は") == [1] and found("東は") == [] and found("関東 東京") == [1]
        assert found("x -z") == [] and found("x -w") == [2]
        assert stat.S_IMODE(index.path.stat().st_mode) == 0o600
        [new] = add_samples(store, [Texts("Geneva", "", "a lake")], "more")
        snapshot = read(store)
        assert found("geneva") == [snapshot.number_of[new]]  # and what was indexed before is not read again
        index.path.write_bytes(b"no database" * 100)
        assert index.update(20) and "built again" in (index.error or "")
        assert found("lake") == [snapshot.number_of[new]]


@pytest.mark.long
def test_another_store_at_the_same_path_is_indexed_anew(sqlite_url: str, tmp_path: Path) -> None:
    for word in ("first", "second"):
        with Store.open(sqlite_url) as store:
            add_samples(store, [Texts(f"{word} store", "", "")])
            index = SearchIndex(store, tmp_path / "cache")
            assert index.update(20)
            assert index.samples_with("store", read(store)).sum() == 1 and index.samples_with(word, read(store)).any()
        path = Path(sqlite_url.partition(":///")[2])
        if word == "first":
            path.unlink()
            Store.open(sqlite_url, create=True).close()


# -- the list


@pytest.mark.long
def test_a_form_goes_on_to_the_address(client: httpx.Client) -> None:
    query = "q=&sort_by=ifd/7b@origin&direction=down&range_key=rifd/7b@origin&low=0.1&high=&has=kind:origin"
    answer = client.get(f"/samples?{query}")
    expected = State(has=(("kind", "origin"),), ranges=(Range("rifd/7b@origin", 0.1),), sort="-ifd/7b@origin")
    assert answer.url.query.decode() == expected.query()
    assert "kind: origin" in answer.text and "rifd/7b@origin ≥ 0.1" in answer.text
    wrong = client.get("/samples?range_key=rifd/7b@origin&low=high&high=")
    assert wrong.status_code == 400 and "must be numbers" in wrong.text


@pytest.mark.long
def test_pages_follow_by_key_and_nothing_twice(sqlite_url: str) -> None:
    with Store.open(sqlite_url) as store:
        add_samples(store, [texts(f"word{i}") for i in range(120)])
        with (
            served(Workspace(store)) as pages,
            httpx.Client(base_url=pages.base, follow_redirects=True, timeout=20) as client,
        ):
            client.get(pages.address)
            wait_for(lambda: "Reading the store" not in client.get("/samples").text)
            text, seen = client.get("/samples").text, []
            for _ in range(5):
                seen += re.findall(r'data-id="(\w+)"', text)
                if not (more := re.search(r'data-more="([^"]+)"', text)):
                    break
                text = client.get(f"/samples?{unescape(more[1])}&rows=1").text
            assert len(seen) == 120 and seen == read(store).ids
            assert "1 of 120 samples" in client.get("/samples?q=word77").text


def test_texts_are_escaped(sqlite_url: str) -> None:
    with Store.open(sqlite_url) as store:
        add_samples(store, [Texts("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "'\"&")], "<b>set</b>")
        with (
            served(Workspace(store)) as pages,
            httpx.Client(base_url=pages.base, follow_redirects=True, timeout=20) as client,
        ):
            client.get(pages.address)
            wait_for(lambda: "Reading the store" not in client.get("/samples").text)
            for address in ("/samples", "/samples?has=dataset:%3Cb%3Ex", "/samples?q=%3Cscript%3E", "/%3Cscript%3E"):
                page = client.get(address).text
                assert "<script>alert" not in page and "<img src=x" not in page and "<b>" not in page


@pytest.mark.long
def test_the_list_shows_what_the_address_asks_for(client: httpx.Client) -> None:
    page = client.get("/samples?sort=-ifd/7b@origin&show=ifd/7b@origin")
    assert "4 of 4 samples" in page.text
    places = [page.text.index(f">{word}") if f">{word}" in page.text else page.text.index(word) for word in WORDS]
    assert places == sorted(places)  # apples have the highest IFD
    assert client.get("/samples?has=kind:nothing").status_code == 400
    error = client.get("/samples?sort=nothing", headers={"accept": "application/json"})
    assert error.json()["error"].startswith("no number 'nothing'")


@pytest.mark.browser
def test_the_list_in_a_browser(pages: Served) -> None:
    with opened(pages) as page:
        page.goto(pages.base + "/samples")
        page.get_by_label("Sort by").select_option("ifd/7b@origin")
        page.wait_for_url("**sort=-ifd*")
        first = page.locator("#lines tr").first
        assert WORDS[0] in first.inner_text()
        page.locator(".facets a", has_text="reflect_both").click()
        page.wait_for_url("**has=kind*")
        assert page.get_by_role("status").inner_text() == "4 of 4 samples"
        page.get_by_label("Words in any text").fill("plums")
        page.keyboard.press("Enter")
        page.wait_for_url("**q=plums*")
        assert page.get_by_role("status").first.inner_text() == "1 of 4 samples"
        page.get_by_title("Remove this condition").first.click()
        page.wait_for_function("!location.search.includes('plums')")
        page.keyboard.press("j")
        assert WORDS[0] in page.evaluate("document.activeElement.textContent")


@pytest.mark.browser
def test_a_long_list_goes_on_by_itself(sqlite_url: str) -> None:
    with Store.open(sqlite_url) as store:
        add_samples(store, [texts(f"word{i}") for i in range(230)])
        with served(Workspace(store)) as pages, opened(pages) as page:
            page.goto(pages.base + "/samples")
            page.wait_for_selector("#lines tr")
            for _ in range(20):
                page.mouse.wheel(0, 20_000)
                page.wait_for_timeout(100)
                if page.locator("#lines tr[data-id]").count() == 230:
                    break
            assert page.locator("#lines tr[data-id]").count() == 230 and page.locator("#lines tr.more").count() == 0
