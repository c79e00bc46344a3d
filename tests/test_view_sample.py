"""The page of one sample, marks by its buttons, and the review queue; the tests marked `browser` use a real Chromium."""

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from subprocess import PIPE
from urllib.parse import urlencode

import httpx2 as httpx
import pytest
import stores
from conftest import RUN_COMMAND
from forks import clean_environment
from scored_stores import origin_of, two_students
from view_pages import Served, opened, served, wait_for

from recycledb.schema import Texts
from recycledb.selection.agreement_of_marks import agreement
from recycledb.selection.explain import decisions
from recycledb.selection.recipes import get_recipe
from recycledb.selection.select import select
from recycledb.store import Store
from recycledb.store.marks import Given, Target, add_marks
from recycledb.view.diff import MOST_PAIRS, diff
from recycledb.view.marks import own_address
from recycledb.view.reading import read
from recycledb.view.review import Queue, from_selection, from_sql, resume
from recycledb.view.sample import page_values, score_table
from recycledb.workspace import Workspace

WORDS = ("apples", "pears", "plums", "figs")
HOSTILE = "</div><script>document.title='run'</script><img src=x onerror=\"document.title='run'\">\x07 \u202e {{ 7*7 }}"


@pytest.fixture
def workspace(sqlite_url: str) -> Iterator[Workspace]:
    with Store.open(sqlite_url) as store:
        two_students(store, WORDS)
        select(store, get_recipe("selective"), {"student": "7b"}, name="picked")
        yield Workspace(store)


@pytest.fixture
def samples(workspace: Workspace) -> list[str]:
    return [row[0] for row in workspace.store.rows("SELECT sample_id FROM dataset_samples ORDER BY position")]


@pytest.fixture
def pages(workspace: Workspace) -> Iterator[Served]:
    with served(workspace, person="ann", path="/samples") as found:
        yield found


@pytest.fixture
def client(pages: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=pages.base, follow_redirects=True, timeout=20, headers={"origin": pages.base}) as found:
        assert found.get(pages.address).status_code == 200
        wait_for(lambda: "Reading the store" not in found.get("/samples").text)
        yield found


def marks_in(workspace: Workspace) -> list[tuple[str, str | None, str, str, str]]:
    sql = "SELECT sample_id, variant_id, mark, note, marked_by FROM marks ORDER BY created_at"
    return [tuple(row) for row in workspace.store.rows(sql)]


def give(store: Store, by: str, *pairs: tuple[str, str]) -> None:
    add_marks(store, [Given(Target(sample), mark, "", by, {"page": "review"}) for sample, mark in pairs])


# -- diffs


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("", "", []),
        ("a b c", "a b c", [("same", "a b c")]),
        ("", "new", [("ins", "new")]),
        ("one two three four", "one two three five", [("same", "one two three "), ("del", "four"), ("ins", "five")]),
        ("x a b c y", "z a b c q", [("del", "x "), ("ins", "z "), ("same", "a b c "), ("del", "y"), ("ins", "q")]),
        (
            "p q r. s",
            "t q u. s",
            [("del", "p q r"), ("ins", "t q u"), ("same", ". s")],
        ),  # one equal word is no sameness
        ("日本語 テキスト", "日本語 文", [("same", "日本語 "), ("del", "テキスト"), ("ins", "文")]),
    ],
)
def test_a_diff_by_words(before: str, after: str, expected: list[tuple[str, str]]) -> None:
    assert diff(before, after) == expected


@pytest.mark.parametrize("unit", ["word ", "a line of text\n", "x", "\n", "a b "])
def test_a_megabyte_is_compared_quickly_and_nothing_is_lost(unit: str) -> None:
    count = 1_200_000 // len(unit)
    before, after = unit * count, "first " + unit * (count // 2) + "middle " + unit * (count // 3) + "last"
    found = diff(before, after)
    assert "".join(text for kind, text in found if kind != "del") == after
    assert "".join(text for kind, text in found if kind != "ins") == before
    assert count > MOST_PAIRS


# -- the page


def test_the_page_shows_what_the_store_knows_of_a_sample(
    client: httpx.Client, workspace: Workspace, samples: list[str]
) -> None:
    store, sample = workspace.store, samples[1]
    give(store, "bob", (sample, "unsure"))
    query = urlencode({"sort": "-ifd/7b@origin"})
    page = client.get(f"/samples/{origin_of(store, sample)[:12]}?{query}")  # an id of a variant, shortened
    assert str(page.url).endswith(f"/samples/{sample}?{query}")
    text = page.text
    for kind in ("origin", "reflect_instruction", "reflect_response", "reflect_both"):
        assert f'<span class="chip {kind}">{kind}</span>' in text
    assert text.count('class="spark') == 4 * 2 * 4  # measures, students, kinds
    assert text.count('class="tree"') == 2 and "Student 13b, teacher gpt" in text
    assert "selective; student 7b, teacher gpt" in text and "marked unsure by bob" in text
    assert "3 requests, 3 prompt and 3 completion tokens, $0.000000" in text
    assert "2 of 4" in text
    neighbours = re.findall(r'rel="(prev|next)" href="([^"]+)"', text)
    assert neighbours == [("prev", f"/samples/{samples[0]}?{query}"), ("next", f"/samples/{samples[2]}?{query}")]
    assert f'href="/samples/{samples[0]}?{query}"' in client.get(f"/samples?{query}").text  # the list carries its state
    narrow = urlencode({"range": "ifd/7b@origin:5.."})
    assert "not in this list of 0" in client.get(f"/samples/{sample}?{narrow}").text
    assert client.get("/samples/ffffffff").status_code == 404 and client.get("/samples/x").status_code == 404


def test_the_trees_decide_as_the_recipe(workspace: Workspace, samples: list[str]) -> None:
    store = workspace.store
    kept = {
        row[0]: row[1]
        for row in store.rows(
            "SELECT v.sample_id, v.kind FROM selection_items i JOIN variants v ON v.variant_id = i.variant_id"
        )
    }
    for sample in samples:
        rows = [dict(row._mapping) for row in store.rows("SELECT * FROM scores WHERE sample_id = :s", s=sample)]
        by_student = {each.student: each.decision for each in decisions(rows)}
        decided = by_student["7b"]
        assert (
            decided.kind.value if decided.kept and decided.kind.value.endswith(("response", "both")) else None
        ) == kept.get(sample)
        assert set(by_student) == {"7b", "13b"}


@pytest.mark.long
@pytest.mark.both_backends
def test_every_backend_has_the_page_and_queues(store: Store) -> None:
    sample, other, *_ = two_students(store, WORDS)
    select(store, get_recipe("cherry"), {"student": "7b", "top": "2"}, name="c")
    give(store, "ann", (sample, "keep"), (other, "drop"))
    with store.together():
        values = page_values(store, "ann", sample)
    assert next(each.kind for each in values["shown"]) == "origin" and len(values["shown"]) == 4
    assert values["own"] == "keep" and len(values["trees"]) == 2 and "picked origin" in values["selections"][0]["head"]
    table = score_table(read(store), sample)
    cell = {(measure, model): cells for measure, model, cells in table["rows"]}["IFD", "7b"]["origin"]
    assert cell.percent == 75.0  # apples have the highest of four
    assert read(store).flags["mark"]["drop"].sum() == 1
    assert len(from_sql(store, "SELECT variant_id FROM variants WHERE kind = 'origin'")) == 4
    assert len(from_selection(store, "c", "").items) == 2


@pytest.mark.browser
def test_hostile_texts_are_shown_and_run_nothing(sqlite_url: str) -> None:
    long = "word & <b> " * 20_000
    with Store.open(sqlite_url) as store:
        [sample] = stores.add_samples(store, [Texts(HOSTILE, HOSTILE, long)], dataset="<i>d</i>")
        add_marks(store, [Given(Target(sample), "keep", HOSTILE, "<b>eve", {"page": "command"})])
        with (
            served(Workspace(store), person='"><script>', path="/samples") as pages,
            opened(pages, expected="404 (Not Found)") as page,
        ):  # no icon beside plain text
            page.goto(f"{pages.base}/samples/{sample}")
            page.wait_for_selector("article.origin")
            assert page.title().startswith("Sample ")
            assert HOSTILE[:60] in page.locator("article .text").first.inner_text()
            assert page.locator("script").count() == 2 and page.locator("main img, main b, main i").count() == 0
            page.get_by_role("link", name="all 220,000 characters").click()
            assert page.locator("body").inner_text().startswith("word & <b> word")


# -- marks


@pytest.mark.long
def test_buttons_mark_a_sample_or_a_variant(client: httpx.Client, workspace: Workspace, samples: list[str]) -> None:
    sample, origin = samples[0], origin_of(workspace.store, samples[0])
    form = {
        "sample_id": sample,
        "mark": "drop",
        "note": " cut off ",
        "page": "sample",
        "variants": origin,
        "back": f"/samples/{sample}",
    }
    page = client.post("/marks", data=form)
    assert (
        str(page.url).endswith(f"/samples/{sample}")
        and 'value="none" class="mark-drop" aria-pressed="true"' in page.text
    )
    row = client.post(
        "/marks", json={"sample_id": sample, "variant_id": origin, "mark": "keep", "page": "review"}
    ).json()
    assert json.loads(row["seen"]) == {"page": "review", "variants": []} and row["marked_by"] == "ann"
    assert marks_in(workspace) == [(sample, None, "drop", "cut off", "ann"), (sample, origin, "keep", "", "ann")]
    [seen] = workspace.store.rows("SELECT seen FROM marks WHERE mark = 'drop'")[0]
    assert json.loads(seen) == {"page": "sample", "variants": [origin]}
    wrong = ({"mark": "good"}, {"sample_id": "00"}, {"variants": "00"}, {"page": "x"}, {"colour": "red"}, {"note": 1})
    for change in wrong:
        answer = client.post("/marks", json={**form, **change}, headers={"accept": "application/json"})
        assert answer.status_code == 400 and answer.json()["error"]
    assert client.post("/marks", content=b"{", headers={"content-type": "application/json"}).status_code == 400
    assert client.get("/marks").status_code == 405 and len(marks_in(workspace)) == 2
    assert client.post("/marks", data=form, headers={"origin": "http://evil.example"}).status_code == 403


def test_a_form_leads_back_to_own_pages_only() -> None:
    assert own_address("/samples/ab?q=x") == "/samples/ab?q=x"
    for address in ("//evil.example", "/\\evil.example", "https://evil.example", "", "/x\r\nset-cookie: a"):
        assert own_address(address) == "/"


# -- the review queue


@pytest.mark.long
def test_a_queue_of_a_query_a_selection_or_a_list(
    client: httpx.Client, workspace: Workspace, samples: list[str]
) -> None:
    sql = {
        "sql": "SELECT variant_id, sample_id FROM variants WHERE kind = 'reflect_both' UNION ALL SELECT NULL, min(sample_id) FROM samples"
    }
    assert "1 of 5" in client.get(f"/review?{urlencode(sql)}").text
    assert "Review of selection picked" in client.get("/review?selection=picked").text
    page = client.get("/review?has=kind:origin&sort=ifd/7b@origin")
    assert f'data-sample="{samples[3]}"' in page.text and "0 of 4 marked by ann" in page.text
    assert f'data-sample="{samples[2]}"' in client.get("/review/item?has=kind:origin&sort=ifd/7b@origin&at=1").text
    start = client.get("/review").text
    assert '<a href="/review?selection=picked">' in start and "<textarea" in start
    for query, error in (
        ({"sql": "SELECT 1 AS one"}, "it must return sample_id or variant_id"),
        ({"sql": "SELECT 'nobody' AS sample_id"}, "no sample or variant &#39;nobody&#39;"),
        ({"sql": "DELETE FROM mark"}, "read"),
        ({"sql": "SELECT sample_id FROM samples LIMIT 0"}, "nothing to review"),
        ({"selection": "none"}, "no selection"),
        ({"all": "1", "at": "-1"}, "a number from 0"),
    ):
        answer = client.get(f"/review?{urlencode(query)}")
        assert answer.status_code == 400 and error in answer.text, query
    assert client.get("/review/item?all=1&at=4").status_code == 400


@pytest.mark.long
def test_a_queue_stays_while_its_marks_change_what_it_asks_for(client: httpx.Client, samples: list[str]) -> None:
    sql = "SELECT sample_id FROM samples WHERE sample_id NOT IN (SELECT sample_id FROM marks) ORDER BY created_at, sample_id"
    address = f"/review?{urlencode({'sql': sql})}"
    first = re.search(r'data-sample="(\w+)"', client.get(address).text)
    assert first is not None
    client.post("/marks", json={"sample_id": first[1], "mark": "keep", "page": "review"})
    assert "2 of 4" in client.get(f"{address}&at=1").text
    assert "1 of 3" in client.get(address).text  # opened again


def test_a_queue_is_resumed_where_the_person_stopped() -> None:
    items = [Target(f"s{i}") for i in range(5)]
    queue = Queue(items, "", "")
    assert resume(queue, {}) == 0
    assert resume(queue, {items[0]: "keep", items[2]: "drop"}) == 3  # the second was passed over
    assert resume(queue, {items[0]: "keep", items[4]: "drop"}) == 1
    assert resume(queue, {Target("other"): "keep"}) == 0
    assert resume(queue, dict.fromkeys(items, "keep")) == 4


def test_agreement_of_two_people() -> None:
    marks = {
        "ann": {Target(str(i)): mark for i, mark in enumerate(["keep"] * 25 + ["drop"] * 25)},
        "bob": {
            Target(str(i)): mark
            for i, mark in enumerate(["keep"] * 20 + ["drop"] * 5 + ["keep"] * 10 + ["drop"] * 15 + ["unsure"])
        },
    }
    found = agreement("ann", "bob", marks)
    assert (found.both, found.raw, len(found.disagreements)) == (50, 0.7, 15)
    assert found.kappa == pytest.approx(0.4)  # the textbook's example
    assert agreement("ann", "ann", marks).kappa == 1.0
    one = {"a": {Target("x"): "keep"}, "b": {Target("x"): "keep"}}
    assert agreement("a", "b", one).kappa is None and agreement("a", "eve", one).raw is None


@pytest.mark.long
def test_agreement_on_a_page(client: httpx.Client, workspace: Workspace, samples: list[str]) -> None:
    assert "nobody has" in client.get("/review/agreement").text
    give(workspace.store, "ann", *((sample, "keep") for sample in samples))
    assert "ann is the only one" in client.get("/review/agreement").text
    give(workspace.store, "bob", (samples[0], "keep"), (samples[1], "drop"))
    page = client.get("/review/agreement?a=ann&b=bob").text
    assert (
        "50.0 %" in page
        and f'<a href="/samples/{samples[1]}"' in page
        and f'<a href="/samples/{samples[0]}"' not in page
    )
    of_one = client.get("/review/agreement?" + urlencode({"sql": f"SELECT '{samples[0]}' AS sample_id"})).text
    assert "100.0 %" in of_one and '<input type="hidden" name="sql"' in of_one


@pytest.mark.browser
def test_a_review_by_keyboard_alone(pages: Served, workspace: Workspace, samples: list[str]) -> None:
    with opened(pages) as page:
        page.goto(f"{pages.base}/review?all=1")
        place = page.locator("#item")
        for number, key in enumerate("kdu"):
            page.wait_for_selector(f'#item[data-at="{number}"]')
            page.keyboard.press(key)
        page.wait_for_selector('#item[data-at="3"]')
        assert "3 of 4 marked by ann" in page.locator("#done").inner_text()
        page.keyboard.press("z")
        page.wait_for_selector('#item[data-at="2"]')
        page.keyboard.press("n")
        page.keyboard.type("kd: too short")
        page.keyboard.press("Enter")
        page.keyboard.press("d")
        page.wait_for_selector('#item[data-at="3"]')
        page.keyboard.press("ArrowLeft")
        page.wait_for_selector('#item[data-at="2"]')
        assert place.get_by_role("button", name="drop").get_attribute("aria-pressed") == "true"
        wait_for(lambda: len(marks_in(workspace)) == 5)
        page.goto(f"{pages.base}/review?all=1")  # goes on where it stopped
        assert place.get_attribute("data-at") == "3"
    assert [row[2:4] for row in marks_in(workspace)] == [
        ("keep", ""),
        ("drop", ""),
        ("unsure", ""),
        ("none", ""),
        ("drop", "kd: too short"),
    ]
    assert [row[0] for row in marks_in(workspace)] == [samples[0], samples[1], *[samples[2]] * 3]


@pytest.mark.browser
def test_a_mark_that_is_not_stored_comes_back(pages: Served, workspace: Workspace) -> None:
    with opened(pages, expected="400 (Bad Request)") as page:
        page.goto(f"{pages.base}/review?all=1")
        page.locator("#item").evaluate("node => { node.dataset.seen = 'no-such-variant'; }")
        page.keyboard.press("k")
        page.get_by_text("The mark of item 1 is not stored").wait_for()
        page.wait_for_selector('#item[data-at="0"]')
    assert marks_in(workspace) == []


@pytest.mark.browser
def test_the_page_of_a_sample_by_keyboard_and_buttons(pages: Served, workspace: Workspace, samples: list[str]) -> None:
    with opened(pages) as page:
        page.goto(f"{pages.base}/samples?sort=-ifd/7b@origin")
        page.locator("#lines a").nth(1).click()
        page.wait_for_url(f"**/{samples[1]}?*")
        page.keyboard.press("j")
        page.wait_for_url(f"**/{samples[2]}?*")
        page.keyboard.press("ArrowLeft")
        page.wait_for_url(f"**/{samples[1]}?*")
        form = page.get_by_role("form", name="Mark reflect_both")
        form.get_by_role("textbox").fill("jk: good")
        form.get_by_role("button", name="keep").click()
        page.get_by_text("reflect_both marked").or_(page.get_by_text("marked keep by ann: jk: good")).first.wait_for()
        assert page.locator("article.reflect_both ins").count() > 0
        page.get_by_label("mark changes from the origin").uncheck()
        assert page.locator("article.reflect_both del").first.is_hidden()
    assert [row[2:] for row in marks_in(workspace)] == [("keep", "jk: good", "ann")]


@pytest.mark.long
def test_the_command_opens_a_queue(sqlite_url: str) -> None:
    with Store.open(sqlite_url) as store:
        two_students(store, WORDS)
    queue = ["--queue", "SELECT sample_id FROM samples", "--as", "eve"]
    command = [*RUN_COMMAND, "--store", sqlite_url, "view", "--no-open", "--port", "0", *queue]
    with subprocess.Popen(command, stderr=PIPE, text=True, env=clean_environment()) as process:
        assert process.stderr is not None
        address = process.stderr.readline().split()[-1]
        page = httpx.get(address, follow_redirects=True, timeout=60)
        process.send_signal(signal.SIGINT)
    assert "/review?sql=SELECT+sample_id" in str(page.url) and "0 of 4 marked by eve" in page.text
