"""The report and the comparison's pictures: every number and every text is there, and hostile text does nothing.

The tests marked `browser` open the files in a real headless Chromium and fail where there is none.
"""

import base64
import gzip
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any

import pytest
from browser import Browser, start
from conftest import Cli
from stores import (
    STUDENT,
    add_samples,
    answer,
    answer_all,
    losses,
    read,
    register,
    reply,
    selection_row,
    student_row,
    texts,
    wanted,
)

from recycledb.reporting.charts import Flow, flow_chart, histogram
from recycledb.reporting.page import data_block, packed_block, page, table
from recycledb.reporting.plots import comparison_html
from recycledb.reporting.report import write_report
from recycledb.schema import Texts, content_id
from recycledb.selection.compare import compare
from recycledb.store import Store
from recycledb.store.measures import add_facts
from recycledb.store.questions import pending_questions
from recycledb.store.rows import LossRow, SelectionItemRow

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"><!-- ]]> \u2028 ' \" & \0 \ud83d"
SECOND = "57d000000002"


def fill(store: Store) -> None:
    """Make a store with something for every section of the report, names and texts hostile among it."""
    register(store)
    hostile = HOSTILE.encode("utf-8", "replace").decode().replace("\0", "")
    samples = [Texts(f"{hostile} {i}", hostile if i % 2 else "", hostile) for i in range(3)]
    samples += [texts(word) for word in ("tides", "rust", "glass")]
    with store.write() as conn:
        store.insert(conn, [student_row(SECOND, hostile, model="org/13b")])
        store.ensure_name(conn, "student", hostile, SECOND)
    ids = add_samples(store, samples, hostile)
    first, second, *_ = pending_questions(store, wanted(), ids)
    reply(store, first, "failed")
    read(store, second, reply(store, second, number=7), usable=False)
    answer(store, second)
    answer_all(store, wanted(retry_before="9"), ids)
    variants = [row[0] for row in store.rows("SELECT variant_id FROM variant ORDER BY variant_id")]
    for i, variant in enumerate(variants):
        add_facts(store, [*below_1(variant, STUDENT, 2.0 + i % 5), *below_1(variant, SECOND, 2.0 + i % 7)])
    record(store, hostile, variants[:4])


def below_1(variant: str, student: str, value: float) -> Iterator[LossRow]:
    """Yield a variant's statistics such that those with a context are smaller than those without."""
    for i, row in enumerate(losses(variant, student, value)):
        yield row._replace(loss_sum=value * (1 - i / 10))


def record(store: Store, name: str, variants: list[str]) -> None:
    """Record a selection."""
    key = content_id("selection", name)
    counts = json.dumps({"origin": len(variants)})
    with store.write() as conn:
        row = selection_row(key, name, parameters='{"top": "5%"}', rows=len(variants), counts=counts)
        store.insert(conn, [row])
        store.insert(conn, [SelectionItemRow(key, i, variant) for i, variant in enumerate(variants)])
        store.ensure_name(conn, "selection", name, key)


class Reader(HTMLParser):
    """Reads a page as a browser does: which elements there are, and the blocks of data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.blocks: dict[str, str] = {}
        self.text = ""
        self._block = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._block = dict(attrs).get("id") or "" if tag == "script" else ""

    def handle_data(self, data: str) -> None:
        if self._block:
            self.blocks[self._block] = self.blocks.get(self._block, "") + data
        else:
            self.text += data

    def packed(self, name: str) -> Any:
        """Return what a packed block holds."""
        return json.loads(gzip.decompress(base64.b64decode(self.blocks[name])))


@pytest.fixture
def written(store: Store, tmp_path: Path) -> tuple[Store, Path]:
    """A store and its report."""
    fill(store)
    path = tmp_path / "report.html"
    write_report(store, path)
    return store, path


def test_every_text_and_every_number_is_in_the_report(written: tuple[Store, Path]) -> None:
    store, path = written
    reader = Reader(path.read_text(encoding="utf-8"))
    index, block = reader.packed("index"), reader.packed("block-0")
    assert len(index) == len(block) == 6
    found = {variant["id"]: (variant["i"], variant["n"], variant["o"]) for sample in block for variant in sample["v"]}
    stored = store.rows("SELECT variant_id, instruction, input, output FROM variants WHERE is_current = 1")
    assert found == {row[0]: tuple(row[1:]) for row in stored}
    scores = {
        (row[0], row[1]): [pytest.approx(row[2], abs=1e-4), pytest.approx(row[3], abs=1e-4)]
        for row in store.rows("SELECT variant_id, student, ifd_ppl, rifd_ppl FROM scores")
    }
    students = json.loads(reader.blocks["meta"])["students"]
    for line, sample in zip(index, block, strict=True):
        assert [variant["k"] for variant in sample["v"]] == line[1]
        assert line[1][0] == 0  # the origin is first
        for variant, by_student in zip(sample["v"], line[2], strict=True):
            assert by_student == [scores[variant["id"], student] for student in students]
    for section in ("Datasets", "Variants", "Cost", "Extraction", "Students and truncation", "Selections"):
        assert section in reader.text
    assert "no_marker" in reader.text


@pytest.mark.long
def test_only_the_first_samples_where_asked(store: Store, tmp_path: Path) -> None:
    fill(store)
    path = tmp_path / "few.html"
    assert write_report(store, path, limit=2)["samples"] == 2
    reader = Reader(path.read_text(encoding="utf-8"))
    assert len(reader.packed("index")) == 2
    assert "The first 2 of 6 samples" in reader.text
    write_report(store, path, limit=0)
    assert Reader(path.read_text(encoding="utf-8")).packed("index") == []


def test_a_report_has_as_many_samples_as_fit(sqlite_url: str, tmp_path: Path) -> None:
    path = tmp_path / "fits.html"
    with Store.open(sqlite_url) as store:
        noise = Random(1)
        add_samples(store, [Texts("Read.", "", noise.randbytes(2_000).hex()) for _ in range(6)])
        whole = write_report(store, path)
        most = whole["bytes"] - 2_000
        fits = write_report(store, path, most=most)
        assert 0 < fits["samples"] < fits["of"] == whole["samples"] == 6
        assert path.stat().st_size == fits["bytes"] <= most
        reader = Reader(path.read_text(encoding="utf-8"))
        assert len(reader.packed("index")) == len(reader.packed("block-0")) == fits["samples"]
        assert f"The first {fits['samples']} of 6 samples" in reader.text and "--samples 6 includes all" in reader.text
        assert write_report(store, path, limit=6, most=most)["samples"] == 6


@pytest.mark.long
def test_an_empty_store_has_a_report(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "empty.html"
    write_report(store, path)
    reader = Reader(path.read_text(encoding="utf-8"))
    assert "no dataset" in reader.text
    assert "nothing was scored" in reader.text
    assert [each.name for each in tmp_path.glob(".*.new")] == []


@pytest.mark.long
def test_a_page_reaches_for_nothing_and_runs_only_its_own(written: tuple[Store, Path]) -> None:
    store, path = written
    comparison = compare(store, [row[0] for row in store.rows("SELECT student FROM students")], pictures=True)
    for text in (path.read_text(encoding="utf-8"), comparison_html(comparison)):
        reader = Reader(text)
        policy = next(each["content"] for tag, each in reader.tags if tag == "meta" and "content" in each) or ""
        assert policy.startswith("default-src 'none'; script-src '")
        assert "unsafe-eval" not in policy
        scripts = policy.partition("script-src")[2].partition(";")[0]
        assert "unsafe" not in scripts
        running = [each for tag, each in reader.tags if tag == "script" and "type" not in each]
        assert len(running) == scripts.count("sha256-")
        assert not [
            each for _, each in reader.tags if "src" in each or "onerror" in each or each.get("href", "#")[:1] != "#"
        ]
        assert {tag for tag, _ in reader.tags} <= {
            "html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "h3", "p", "dl", "div", "dt", "dd", "nav", "a",
            "main", "section", "table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "svg", "rect", "line", "text",
            "path", "script", "g", "circle", "label", "input", "strong",
        }  # fmt: skip


def test_blocks_cannot_be_ended_by_their_text() -> None:
    for block in (data_block("d", [HOSTILE[:-1]]), packed_block("p", [HOSTILE[:-1]])):
        assert block.count("</script>") == 1
    (value,) = json.loads(Reader(data_block("d", [HOSTILE[:-1]])).blocks["d"])
    assert value == HOSTILE[:-1]


def test_tables_escape_and_align() -> None:
    text = table(
        ["<b>", "n", "part", "when"],
        [["<i>", 1_000, "5.0\u00a0%", "2026-01-01\u00a010:00"], [None, None, "–", "2026-01-02\u00a011:00"]],
    )
    assert "&lt;i&gt;" in text
    assert "<i>" not in text
    assert '<td class="n">1,000</td>' in text
    assert '<td class="n">5.0\u00a0%</td>' in text
    assert '<td class="d">2026-01-01\u00a010:00</td>' in text
    assert "".join(page("t & t", ["body"], [])).count("t &amp; t") == 1


def test_pictures_hold_every_count() -> None:
    assert histogram([0, 3, 1], 0, 2, "origin").count("<rect") == 2
    flows = [
        Flow("samples", "<b>", 3),
        Flow("<b>", "kept", 2),
        Flow("<b>", "lost", 1),
        Flow("samples", "not scored", 1),
    ]
    text = flow_chart(flows, "<tree>")
    assert text.count("<path") == 4
    assert "<b>" not in text
    assert "<tree>" not in text
    assert flow_chart([], "") == ""


@pytest.mark.long
def test_the_command(cli: Cli, sqlite_url: str, tmp_path: Path) -> None:
    with Store.open(sqlite_url) as store:
        fill(store)
    done = json.loads(cli("--store", sqlite_url, "report", "-o", "r.html", "--samples", "3", "--json").stdout)
    assert done == {"file": "r.html", "samples": 3, "of": 6, "bytes": (tmp_path / "r.html").stat().st_size}
    assert "cannot be written" in cli("--store", sqlite_url, "report", "-o", "none/r.html", code=1).stderr


# -- in a real browser

SEARCH = """(text) => {
    const box = document.querySelector('#browser input');
    box.value = text;
    box.dispatchEvent(new Event('input'));
}"""
CHOOSE = """(i, value) => {
    const box = document.querySelectorAll('#browser select')[i];
    box.value = value;
    box.dispatchEvent(new Event('change'));
}"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with start() as browser:
        yield browser


def look(browser: Browser) -> str:
    """Return what the page says, and see that nothing went wrong on it."""
    assert browser.complaints() == []
    assert [address for address in browser.requests() if not address.startswith(("file:", "blob:", "about:"))] == []
    assert browser.evaluate("document.title") != "owned"
    return str(browser.evaluate("document.body.innerText"))


def colour(browser: Browser) -> list[int]:
    found = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    return [int(each) for each in re.findall(r"\d+", found)][:3]


@pytest.mark.browser
def test_samples_can_be_found_and_read(chromium: Browser, written: tuple[Store, Path], tmp_path: Path) -> None:
    _, path = written
    chromium.open(path)
    assert "6 of 6 samples" in look(chromium)
    rows = "document.querySelectorAll('#browser tr.row').length"
    assert chromium.evaluate(rows) == 6

    chromium.evaluate(f"({SEARCH})('about no such thing')")
    chromium.wait("document.querySelector('#browser [role=status]').textContent.startsWith('0 of')")
    chromium.evaluate(f"({SEARCH})('tides')")
    chromium.wait(f"{rows} === 1")
    chromium.evaluate("document.querySelector('#browser tr.row').click()")
    chromium.wait("document.querySelector('#browser .detail ins') !== null")
    shown = look(chromium)
    assert "reflect_both: reflect_instruction: Explain tides." in shown.replace("\n", " ")
    light, picture = colour(chromium), chromium.screenshot(tmp_path / "light.png")

    chromium.open(path, dark=True)
    assert sum(colour(chromium)) < 150
    assert sum(light) > 600
    assert chromium.screenshot(tmp_path / "dark.png") != picture


@pytest.mark.browser
def test_filters_and_all_texts(chromium: Browser, written: tuple[Store, Path]) -> None:
    _, path = written
    chromium.open(path)
    status = "document.querySelector('#browser [role=status]').textContent"
    chromium.evaluate(f"({CHOOSE})(0, '-1')")  # without compressed
    chromium.wait(f"{status}.startsWith('5 of 6')")
    chromium.evaluate(f"({CHOOSE})(0, '')")
    chromium.evaluate(f"({CHOOSE})(1, '+0')")
    chromium.wait(f"{status}.match(/^[1-4] of 6/)")
    chromium.evaluate(f"({CHOOSE})(1, '')")
    chromium.evaluate(f"({CHOOSE})(2, 'd0')")
    chromium.wait(f"{status}.startsWith('6 of 6')")
    ratios = chromium.evaluate(
        "[...document.querySelectorAll('#browser td.score:nth-child(4)')].map((cell) => Number(cell.textContent))"
    )
    assert ratios == sorted(ratios, reverse=True)
    chromium.evaluate("document.querySelector('#everywhere').click()")
    chromium.evaluate(f"({SEARCH})('GLASS is explained')")
    chromium.wait(f"{status}.startsWith('1 of 6')")
    look(chromium)


@pytest.mark.browser
def test_changes_between_texts_add_up(chromium: Browser, store: Store, tmp_path: Path) -> None:
    """Without what was deleted the new text is read, without what was inserted the old one."""
    register(store)
    olds = ["a b c d e f", "", "one two three four", "same", "x  y\n\nz", "« ünï » 数 字"]
    samples = add_samples(store, [Texts("Do.", "", old) for old in olds])
    for question in pending_questions(store, wanted(), samples):
        answer(store, question)
    path = tmp_path / "report.html"
    write_report(store, path)
    chromium.open(path)
    for sample in samples:
        chromium.open(path, fragment=f"#sample={sample}")
        got = chromium.evaluate("""(() => {
            const [left, right] = document.querySelectorAll('.pair > div');
            const last = (box) => [...box.querySelectorAll('.text')].at(-1);
            const without = (box, tag) => {
                const copy = box.cloneNode(true);
                copy.querySelectorAll(tag).forEach((node) => node.remove());
                return copy.textContent;
            };
            return [last(left).textContent, without(last(right), 'ins'), without(last(right), 'del')];
        })()""")
        sql = "SELECT output FROM variants WHERE sample_id = :s ORDER BY kind"
        old, _, new = (row[0] for row in store.rows(sql, s=sample))  # origin, reflect_instruction, reflect_response
        assert got == [old, old, new]


@pytest.mark.browser
def test_pictures_are_drawn(chromium: Browser, written: tuple[Store, Path], tmp_path: Path) -> None:
    store, _ = written
    students = [row[0] for row in store.rows("SELECT student FROM students")]
    path = tmp_path / "compare.html"
    path.write_text(comparison_html(compare(store, students, pictures=True)), encoding="utf-8")
    for dark in (False, True):
        chromium.open(path, dark=dark)
        look(chromium)
        assert chromium.evaluate("document.querySelectorAll('#scatter svg circle').length") > 10
        assert chromium.evaluate("document.querySelectorAll('#distributions svg path.line').length") >= 4
        assert chromium.evaluate("document.querySelectorAll('#overlap svg path.line').length") >= 2
        assert chromium.evaluate("document.querySelectorAll('#flows svg path').length") > 3
    shown = "[...document.querySelectorAll('#overlap path')].filter((each) => each.getClientRects().length).length"
    every = chromium.evaluate(shown)
    chromium.evaluate("document.querySelector('#overlap .legend .origin input').click()")
    assert 0 < chromium.evaluate(shown) < every
    assert chromium.evaluate(
        "[...document.querySelectorAll('circle')].every((each) => each.querySelector('title').textContent)"
    )
    assert chromium.evaluate("document.querySelectorAll('main img, main script').length") == 0
    look(chromium)


@pytest.mark.browser
def test_the_pages_can_be_read_on_a_telephone(chromium: Browser, written: tuple[Store, Path], tmp_path: Path) -> None:
    store, report = written
    students = [row[0] for row in store.rows("SELECT student FROM students")]
    plots = tmp_path / "compare.html"
    plots.write_text(comparison_html(compare(store, students, pictures=True)), encoding="utf-8")
    smallest = """Math.min(...[...document.querySelectorAll('figure svg text')].map((text) => {
        const svg = text.ownerSVGElement;
        return parseFloat(getComputedStyle(text).fontSize) * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
    }))"""
    narrowest = """Math.min(...[...document.querySelectorAll('.scroll td')]
        .filter((cell) => cell.getClientRects().length && cell.textContent.length > 30)
        .map((cell) => cell.getBoundingClientRect().width))"""
    for path in (plots, report):
        for width in (390, 1200):
            chromium.open(path, width=width)
            look(chromium)
            assert chromium.evaluate(smallest) >= 9  # pixels
            assert chromium.evaluate(narrowest) >= 150
            assert chromium.evaluate("document.documentElement.scrollWidth") <= width
            chromium.screenshot(tmp_path / f"{path.stem}-{width}.png")
