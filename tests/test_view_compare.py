"""The compare page: what is drawn, and that a region means the same samples as a list, as SQL and as a selection."""

import re
import shutil
from collections.abc import Iterator
from functools import partial
from html import unescape
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import httpx2 as httpx
import numpy as np
import pytest
import scored_stores as scored
import stores
from templates import made
from view_pages import Served, opened, served, wait_for

from recycledb.errors import SelectionError
from recycledb.methods.reflection import Kind, Step
from recycledb.reporting.charts import Axis
from recycledb.reporting.density import axis_over, bars, density
from recycledb.reporting.plots import comparison_html
from recycledb.schema import utc_now
from recycledb.selection.agreement import ranks
from recycledb.selection.compare import compare as compare_students
from recycledb.selection.compare import first_words
from recycledb.selection.query import query
from recycledb.selection.recipes import parse
from recycledb.selection.select import select
from recycledb.store import Store
from recycledb.store.rows import ExtractionRow
from recycledb.view.columns import Column, Snapshot
from recycledb.view.reading import read
from recycledb.view.region import Region, region_sql
from recycledb.view.state import Range, State, matching
from recycledb.workspace import Workspace

NAMES = [f"sample {i}" for i in range(12)]
X, Y = "ifd/7b'@origin", "ifd/13b@reflect_both"


def filled(store: Store) -> list[str]:
    """Write samples that lack a number here and there, with several teachers, several variants of a kind, and equal numbers."""
    samples = stores.add_samples(store, [stores.texts(name) for name in NAMES], dataset="it's one")
    stores.add_samples(store, [stores.texts(name) for name in NAMES[:5]], dataset="two")
    scored.add_teachers(store, "gpt", "o'neil")
    scored.add_students(store, "7b'", "13b")
    means: dict[str, dict[str, scored.Means]] = {"7b'": {}, "13b": {}}
    for teacher, mark, part in (("gpt", "", samples), ("gpt", "again", samples[::3]), ("o'neil", "", samples[::2])):
        for number, kinds in enumerate(scored.add_all_kinds(store, part, teacher=teacher, mark=mark)):
            for student, shift in (("7b'", 0.0), ("13b", 0.1)):
                value = None if number % 4 == 3 and student == "13b" else -0.05 * (number // 2) - shift
                means[student] |= {variant: scored.ratios(value, 0.1 * number) for variant in kinds.values()}
                if number % 5 == 4:
                    del means[student][kinds[Kind.ORIGIN]]
    for student, found in means.items():
        scored.add_losses(store, student, found)
    picks = [scored.origin_of(store, each) for each in samples[3:10]]
    with store.write() as conn:  # replies of no use, and a question without a reply
        for sample, step, reason in (
            (samples[0], "reflect_response", "no_marker: it's 'odd'"), (samples[4], "reflect_response", "no_marker"),
            (samples[6], "reflect_response", "no_markers"), (samples[5], "compress", None),
        ):  # fmt: skip
            origin, text_id = scored.origin_of(store, sample), f"text of {sample} {step}"
            prompt, more = stores.PROMPTS[Step(step)], {"teacher_id": scored.teacher_id("gpt")}
            status = "ok" if reason else "failed"
            store.insert(conn, [stores.reply_row(text_id, origin, step, prompt, status=status, **more)])
            if reason:
                store.insert(conn, [ExtractionRow(text_id, scored.EXTRACTOR, None, reason, utc_now())])
    listed = ", ".join(f"'{each}'" for each in picks)
    recipe = parse("seven's", f"SELECT variant_id FROM variants WHERE variant_id IN ({listed})")
    select(store, recipe, {}, name="seven's")
    return samples


def store_at(backend: str, folder: Path) -> Store:
    path = folder / f"store.{backend}"
    shutil.copyfile(made(backend), path)
    return Store.open(f"{backend}:///{path}")


def asked(store: Store, sql: str) -> list[str]:
    with query(store, sql) as result:
        at = result.columns.index("sample_id")
        return sorted(row[at] for row in result.rows)


# -- a region is the same samples in every form


def regions(snapshot: Snapshot) -> Iterator[tuple[State, Region]]:
    """Yield regions whose borders are on samples, between them, open, and empty; with conditions of every sort."""
    both = f"{Y} by gpt"
    x, y = snapshot.columns[X].values, snapshot.columns[both].values
    known = np.sort(x[~np.isnan(x) & ~np.isnan(y)])
    low, high = float(known[1]), float(known[-2])
    inside = Region(Range(X, low, high), Range(both))
    yield State(), inside
    yield State(), Region(Range(X, float(np.nextafter(low, 9)), float(np.nextafter(high, -9))), Range(both))
    yield State(), Region(Range(X, low), Range(both, -np.inf, float(np.nanmedian(y))))
    yield State(), Region(Range(X, 5.0, 6.0), Range(both))
    for condition in (
        State(has=(("dataset", "two"), ("dataset", "it's one"))),
        State(has=(("dataset", "two"),), lacks=(("selection", "seven's"),)),
        State(has=(("teacher", "o'neil"), ("kind", "reflect_both"))),
        State(ranges=(Range("rifd/7b'@origin", 0.0), Range(f"gain:{both}"))),
        State(has=(("problem", "reflect_response: no_marker"), ("problem", "compress: failed"))),
        State(lacks=(("problem", "reflect_response: no_marker"),)),
    ):
        yield condition, Region(Range(X), Range(both, float(np.nanmin(y))))
    for key in (f"gain:{both}", f"gap:{X}|ifd/13b@origin", "length/13b@origin", f"{Y} by o'neil"):
        values = snapshot.column(key)
        assert values is not None
        yield State(), Region(Range(X), Range(key, float(np.nanmedian(values.values))))


@pytest.mark.long
@pytest.mark.parametrize("backend", ["sqlite", "duckdb"])
def test_list_sql_and_selection_of_a_region_agree(backend: str, tmp_path: Path) -> None:
    with store_at(backend, tmp_path) as store:
        filled(store)
        snapshot = read(store)
        sizes = []
        for state, region in regions(snapshot):
            members = region.members(snapshot, matching(snapshot, state))
            ids = sorted(snapshot.ids[number] for number in members)
            address = region.narrowed(state).query()  # as the link to the list has it
            again = matching(snapshot, State.parse(parse_qsl(address)))
            assert sorted(snapshot.ids[number] for number in np.flatnonzero(again)) == ids
            sql = region_sql(snapshot, state, region, members)
            assert asked(store, sql) == ids
            sizes.append(len(ids))
        _, first = next(regions(snapshot))
        x = snapshot.columns[X].values[snapshot.columns[f"{Y} by gpt"].values > 0]
        on_border = int(np.isin(x, (first.x.low, first.x.high)).sum())
        assert sizes[0] == sizes[1] + on_border and on_border >= 2
        assert sizes[3] == 0 and all(sizes[:3] + sizes[4:]), sizes
        for pick in ("x", "y", "origin"):
            select(store, parse("region", region_sql(snapshot, state, region, members, pick)), {}, name=f"of {pick}")
            rows = store.rows(
                "SELECT v.sample_id, v.kind FROM selection_items i JOIN variants v ON v.variant_id = i.variant_id WHERE i.selection = :s",
                s=f"of {pick}",
            )
            assert sorted(row[0] for row in rows) == ids
            assert {row[1] for row in rows} == {"reflect_both" if pick == "y" else "origin"}


def test_words_are_written_as_ids_while_they_are_few(tmp_path: Path) -> None:
    with store_at("sqlite", tmp_path) as store:
        filled(store)
        snapshot, region = read(store), Region(Range(X), Range(f"{Y} by gpt"))
        found = asked(store, region_sql(snapshot, State(words="anything"), region, np.arange(3)))
        assert set(found) <= set(snapshot.ids[:3]) and found
        with pytest.raises(SelectionError, match="5,001 ids are too many"):
            region_sql(snapshot, State(words="anything"), region, np.zeros(5_001, np.int64))


def test_ranks_of_some_samples_are_those_of_their_numbers() -> None:
    """Ranks among any of the samples, from one sorting of all: as if only these had been ranked."""
    rng = np.random.default_rng(1)
    values = rng.integers(0, 9, 200).astype(float)  # many ties
    values[rng.random(200) < 0.2] = np.nan
    values[:3] = (-0.0, 0.0, np.inf)
    column = Column("k", "m", "x", "origin", values)
    for share in (0.0, 0.02, 0.5, 1.0):
        among = column.known & (rng.random(200) < share)
        assert column.ranks(among).tolist() == ranks(values[among]).tolist()


# -- drawing


@pytest.mark.long
def test_the_frozen_page_has_the_picture_of_the_live_one(tmp_path: Path) -> None:
    """`compare --plot` is a snapshot: the same points, axes and numbers, by the same functions."""
    with store_at("sqlite", tmp_path) as store:
        scored.two_students(store, NAMES)
        frozen = comparison_html(compare_students(store, ["7b", "13b"], pictures=True), partial(first_words, store))
        with served(Workspace(store)) as pages, httpx.Client(base_url=pages.base, follow_redirects=True) as client:
            client.get(pages.address)
            wait_for(lambda: "Reading the store" not in client.get("/compare").text)
            live = client.get("/compare", params={"x": "ifd/7b@origin", "y": "ifd/13b@origin"}).text
    svg = re.compile(r'<svg class="chart".*?</svg>', re.S)
    drawn = svg.search(frozen.partition('<figure class="origin">')[2])
    there = svg.search(live)
    assert drawn and there
    for part in (r'cx="([^"]*)" cy="([^"]*)"', r'<text x="[^>]*>([-.0-9]+)</text>', r"<path[^>]*>"):
        assert sorted(re.findall(part, drawn[0])) == sorted(re.findall(part, there[0])) != []
    said = re.compile(
        r"have both numbers · rank correlation \(Spearman\) <strong>[^<]*</strong> · linear \(Pearson\) [-.\d]+"
    )
    assert said.findall(live)[0] in said.findall(frozen)


def test_an_axis_has_round_ticks_over_nearly_all_numbers() -> None:
    axis = axis_over("n", np.array([0.31, 0.97, np.nan, np.inf]))
    assert (axis.low, axis.high) == (pytest.approx(0.3), pytest.approx(1.05)) and axis.form == ".2f"
    assert axis_over("n", np.linspace(0, 1, 5_000)).high == pytest.approx(1.0)
    outlier = axis_over("n", np.append(np.linspace(0, 1, 5_000), 1e6))
    assert outlier.high < 2
    for values in ([], [np.nan], [3.0], [0.0, 0.0], [-1e300, 1e300], [1.7e308, -1.7e308], [5e-324, 1e-320]):
        found = axis_over("n", np.array(values))
        assert found.low < found.high


def test_many_points_are_cells_and_few_are_points() -> None:
    axis = Axis("a <b>", 0.0, 1.0)
    few = density(axis, axis, (np.array([0.5, np.nan]), np.array([2.0, 0.1])), ["<x>", "y"].__getitem__, "few")
    assert few.count("<circle") == 1 and 'data-id="&lt;x&gt;"' in few and "a &lt;b&gt;" in few
    generator = np.random.default_rng(1)
    xs, ys = np.append(generator.normal(0.5, 0.05, 20_000), 0.99), np.append(generator.normal(0.5, 0.05, 20_000), 0.01)
    many = density(axis, axis, (xs, ys), str, "many")
    cells = [int(n.replace(",", "")) for n in re.findall(r"<title>([\d,]+)</title>", many)]
    points = many.count("<circle")
    assert sum(cells) + points == 20_001 and 0 < points < 1_500 and 'data-id="20000"' in many and len(many) < 400_000
    assert sum(int(n) for n in re.findall(r": (\d+)</title>", bars(axis, np.array([0.1, 0.1, 7.0, np.nan]), "x"))) == 3


# -- the page


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    with store_at("sqlite", tmp_path_factory.mktemp("compare")) as store:
        filled(store)
        yield Workspace(store)


@pytest.fixture(scope="module")
def pages(workspace: Workspace) -> Iterator[Served]:
    with served(workspace) as found:
        yield Served(found.address.replace("/?", "/compare?"), found.base, found.stop)


@pytest.fixture(scope="module")
def client(pages: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=pages.base, follow_redirects=True, timeout=60, headers={"origin": pages.base}) as found:
        found.get(pages.address)
        wait_for(lambda: "Reading the store" not in found.get("/compare").text)
        yield found


@pytest.mark.long
def test_the_page_shows_its_region_in_three_forms(client: httpx.Client, workspace: Workspace) -> None:
    pairs = [("x", X), ("y", f"{Y} by gpt"), ("xlow", "0.5"), ("yhigh", "1,5"), ("has", "dataset:it's one")]
    page = client.get(f"/compare?{urlencode(pairs)}").text
    count = int(re.search(r"(\d+) samples in the region", page)[1])  # type: ignore[index]
    sql = unescape(re.search(r'id="sql">(.*?)</pre>', page, re.S)[1])  # type: ignore[index]
    assert len(asked(workspace.store, sql)) == count > 0
    listed = re.search(r'href="(/samples\?[^"]*)">All of them', page)
    assert listed and f"{count} of 12 samples" in client.get(unescape(listed[1])).text
    opened_sql = re.search(r'href="(/sql\?[^"]*)">Open it', page)
    assert opened_sql and sql.strip() in unescape(client.get(unescape(opened_sql[1])).text)
    answer = client.post("/compare", data={"address": urlencode(pairs), "pick": "y", "selection": "the region"})
    assert f"Recorded the region: {count} variants" in answer.text
    assert len(scored.picked(workspace.store, "the region")) == count
    unnamed = client.post("/compare", data={"address": urlencode(pairs), "pick": "y", "selection": ""})
    assert unnamed.status_code == 400 and "give the selection a name" in unnamed.text


def test_wrong_addresses_are_explained(client: httpx.Client) -> None:
    assert (
        "rank correlation" in client.get("/compare").text and "samples in the region" not in client.get("/compare").text
    )
    for query_, words in (("x=nothing", "no number"), ("xlow=far", "is not a number"), ("has=kind:nothing", "no kind")):
        answer = client.get(f"/compare?{query_}")
        assert answer.status_code == 400 and words in unescape(answer.text)


@pytest.mark.long
def test_a_store_without_scores_says_so(tmp_path: Path) -> None:
    with store_at("sqlite", tmp_path) as store, served(Workspace(store)) as found:
        answer = httpx.get(found.address.replace("/?", "/compare?"), follow_redirects=False)
        cookie = answer.headers["set-cookie"].partition(";")[0]
        with httpx.Client(base_url=found.base, headers={"cookie": cookie}, timeout=60) as asking:
            wait_for(lambda: "Reading the store" not in asking.get("/compare").text)
            assert "recycledb sync" in asking.get("/compare").text


@pytest.mark.browser
def test_a_region_is_drawn_and_recorded(pages: Served, workspace: Workspace) -> None:
    with opened(pages) as page:
        box = page.locator("#picture svg").bounding_box()
        across, up = (lambda share: box["x"] + box["width"] * share), (lambda share: box["y"] + box["height"] * share)
        page.mouse.move(across(0.2), up(0.05))
        page.mouse.down()
        page.mouse.move(across(0.6), up(0.4), steps=3)
        page.mouse.move(across(0.99), up(0.99), steps=3)  # the corner: both are open there
        page.mouse.up()
        page.get_by_role("heading", name="samples in the region").wait_for()
        bounds = dict(parse_qsl(page.url.partition("?")[2]))
        assert "xlow" in bounds and "xhigh" not in bounds and "ylow" not in bounds
        page.get_by_label("to", exact=False).nth(1).wait_for()
        page.locator("input[name=xlow]").fill("0")
        page.locator("input[name=yhigh]").fill("")
        page.get_by_role("button", name="Take out").click()
        page.wait_for_url("**xlow=0")
        words = page.get_by_role("heading", name="samples in the region").inner_text()
        page.get_by_label("Selection", exact=True).fill("drawn")
        page.get_by_role("button", name="Record selection").click()
        page.get_by_text("Recorded drawn").wait_for()
        assert f"{len(scored.picked(workspace.store, 'drawn'))} samples" in words
        page.get_by_role("link", name="All of them in the list").click()
        page.wait_for_url("**/samples?**range=**")
