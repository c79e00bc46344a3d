"""Marks: rows are only added, the newest decides, recipes leave out what is marked drop, and the record says so."""

import json
from pathlib import Path
from typing import Any

import pytest
import stores
from conftest import Cli
from scored_stores import origin_of, picked, two_students

from recycledb.errors import SelectionError, StoreError
from recycledb.inspection import show
from recycledb.integrity import check
from recycledb.selection.explain import explain
from recycledb.selection.recipes import get_recipe, parse
from recycledb.selection.select import Selected, export, select
from recycledb.store import Store, marks
from recycledb.store.marks import Given, Target, add_marks, find_target, left_out
from recycledb.store.merge import merge

WORDS = ("apples", "pears", "plums", "figs")
TOP = "SELECT variant_id, row_number() OVER (ORDER BY variant_id) AS rank FROM variants WHERE kind = 'origin' LIMIT :top_count"


def give(store: Store, sample: str, mark: str, by: str = "ann", variant: str | None = None, note: str = "") -> None:
    add_marks(store, [Given(Target(sample, variant), mark, note, by, {"page": "command"})])


def about_marks(store: Store) -> list[str]:
    return [each for each in check(store).findings if "mark" in each]


def cherry(store: Store, **given: Any) -> Selected:
    return select(store, get_recipe("cherry"), {"student": "7b", "top": "2", **given}, name="c")


@pytest.mark.long
@pytest.mark.both_backends
def test_the_newest_mark_decides_and_nothing_is_changed(store: Store) -> None:
    [one, two, *_] = two_students(store, WORDS)
    origin = origin_of(store, one)
    give(store, one, "drop", note="cut off")
    give(store, two, "keep", variant=origin_of(store, two))
    assert left_out(store) == {
        row[0] for row in store.rows("SELECT variant_id FROM variant WHERE sample_id = :s", s=one)
    }
    give(store, one, "keep", by="bob")  # the later of two people
    assert left_out(store) == set()
    give(store, one, "none", by="bob")  # bob takes it back
    assert len(left_out(store)) == 4
    give(store, one, "none")
    give(store, one, "drop", variant=origin)
    assert left_out(store) == {origin}
    rows = store.rows(
        "SELECT mark, marked_by, is_current, note FROM marks WHERE sample_id = :s ORDER BY created_at", s=one
    )
    assert [tuple(row) for row in rows] == [
        ("drop", "ann", 0, "cut off"),
        ("keep", "bob", 0, ""),
        ("none", "bob", 0, ""),
        ("none", "ann", 0, ""),
        ("drop", "ann", 1, ""),
    ]
    assert about_marks(store) == []


def test_a_mark_is_later_than_the_one_before_it_whatever_the_clock_says(store: Store) -> None:
    [one, *_] = two_students(store, WORDS)
    with store.write() as conn:
        store.insert(conn, [stores.mark_row(one, None, created_at="2999-01-01T00:00:00.000000Z")])
    give(store, one, "drop")
    [row] = store.rows("SELECT mark, created_at FROM marks WHERE is_current = 1")
    assert tuple(row) == ("drop", "2999-01-01T00:00:00.000001Z")


def test_marks_that_make_no_sense(sqlite_url: str) -> None:
    with Store.open(sqlite_url) as store:
        [one, two, *_] = two_students(store, WORDS)
        for given, message in (
            (Given(Target(one), "dorp", "", "ann", {}), "did you mean 'drop'"),
            (Given(Target("00" * 16), "drop", "", "ann", {}), "no sample has the id"),
            (Given(Target(one, origin_of(store, two)), "drop", "", "ann", {}), "has no variant"),
            (Given(Target(one), "drop", "", "ann", {"variants": [origin_of(store, two)]}), "has no variant"),
            (Given(Target(one), "drop", "", " ", {}), "name of the person"),
            (Given(Target(one), "drop", "x" * 10_001, "ann", {}), "10,001 characters"),
        ):
            with pytest.raises(StoreError, match=message):
                add_marks(store, [Given(Target(two), "keep", "", "ann", {}), given])
        assert not marks.is_marked(store)
        assert find_target(store, one[:10]) == Target(one)
        assert find_target(store, origin_of(store, one)[:10]) == Target(one, origin_of(store, one))
        for prefix, message in (
            ("abc", "is not an id"),
            ("zzzz", "is not an id"),
            ("00000000", "no sample or variant"),
        ):
            with pytest.raises(StoreError, match=message):
                find_target(store, prefix)


@pytest.mark.long
def test_recipes_leave_out_what_is_marked_drop(store: Store) -> None:
    samples = two_students(store, WORDS)
    before = cherry(store)
    first, second = picked(store, "c")
    assert "marks" not in before.parameters and "mark:" not in before.store_revision
    give(store, samples[3], "keep")
    assert cherry(store).parameters["marks"] == "respect" and picked(store, "c") == [first, second]
    give(store, samples[0], "drop", note="wrong")
    respected = cherry(store)
    assert picked(store, "c") == [second, origin_of(store, samples[2])]  # the next in rank
    assert (respected.rows, respected.marked_drop, "mark:2" in respected.store_revision) == (2, 1, True)
    for top, rows in (("50%", 2), ("25%", 1), ("10%", 0), ("100%", 3)):
        assert cherry(store, top=top).rows == rows
    ignored = cherry(store, marks="ignore")
    assert picked(store, "c") == [first, second] and ignored.output_sha256 == before.output_sha256
    with pytest.raises(SelectionError, match=r"marks is 'ignored'.*did you mean 'ignore'"):
        cherry(store, marks="ignored")
    assert select(store, get_recipe("selective"), {"student": "7b"}).marked_drop == 1


def test_an_export_leaves_out_what_is_marked_drop(sqlite_url: str, tmp_path: Path) -> None:
    out, card = tmp_path / "x.json", tmp_path / "README.md"
    with Store.open(sqlite_url) as store:
        samples = two_students(store, WORDS)
        before = export(store, out, card=card)
        published, said = out.read_bytes(), card.read_text()
        give(store, samples[1], "keep")
        assert export(store, out).sha256 == before.sha256
        give(store, samples[0], "drop", variant=origin_of(store, samples[0]))
        left = export(store, out, card=card)
        assert (left.rows, left.marked_drop) == (3, 1) and WORDS[0] not in out.read_text()
        assert "respect" in card.read_text() and "respect" not in said
        assert export(store, out, kind="reflect_both").marked_drop == 0  # the mark is the origin's alone
        ignoring = export(store, out, marks="ignore")
        assert (ignoring.rows, ignoring.marked_drop) == (4, 0) and out.read_bytes() == published
        for sample in samples:
            give(store, sample, "drop")
        with pytest.raises(SelectionError, match="all 4 current origin are marked drop; --marks ignore exports them"):
            export(store, out)
        assert out.read_bytes() == published
        with pytest.raises(SelectionError, match=r"marks is 'none'.*respect or ignore"):
            export(store, out, marks="none")


def test_orderings_and_recipes_of_users(sqlite_url: str) -> None:
    with Store.open(sqlite_url) as store:
        samples = two_students(store, WORDS)
        select(store, get_recipe("random"), {"top": "4"}, name="r")
        first, *rest = picked(store, "r")
        give(store, next(s for s in samples if origin_of(store, s) == first), "drop")
        select(store, get_recipe("random"), {"top": "3"}, name="r")
        assert picked(store, "r") == rest
        mine = select(store, parse("mine", TOP), {"top": "4"}, name="m")  # what its top means is not known
        assert (mine.rows, mine.marked_drop) == (3, 1)
        own = parse("own", "-- @param marks text = 'x': mine\nSELECT variant_id FROM variants WHERE :marks = 'y'")
        assert select(store, own, {"marks": "y"}).marked_drop == 0
        for sample in samples:
            give(store, sample, "drop")
        nothing = cherry(store)
        assert nothing.rows == 0 and "all 4 variants" in str(nothing.note)


@pytest.mark.long
def test_explanations_say_who_left_out_what(sqlite_url: str) -> None:
    with Store.open(sqlite_url) as store:
        [one, two, *_] = two_students(store, WORDS)
        give(store, one, "drop", note="the answer\nis wrong")
        give(store, two, "keep", by="bob", variant=origin_of(store, two))
        cherry(store)
        give(store, two, "drop", by="eve")
        text = {sample: "\n".join(each["text"] for each in explain(store, sample)) for sample in (one, two)}
        assert "left out: marked drop by ann on " in text[one] and '"the answer is wrong"' in text[one]
        assert "origin marked keep by bob" in text[two] and "later: marked drop by eve" in text[two]
        assert "picked at position 0" in text[two]
        cherry(store, marks="ignore")
        assert any("marks = ignore: marked drop by ann" in each["text"] for each in explain(store, one))
        assert [row["mark"] for row in show(store, two[:8])["marks"]] == ["keep", "drop"]


@pytest.mark.long
@pytest.mark.both_backends
def test_merge_brings_the_marks_of_both(store: Store, tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path}/other.db", create=True) as other:
        [one, *_] = two_students(other, WORDS)
        give(other, one, "drop", variant=origin_of(other, one))
        merge(store, other)
        give(other, one, "keep", by="bob")
        give(store, one, "unsure", by="eve")
        assert merge(store, other).rows["mark"] == 1 and merge(store, other).rows["mark"] == 0
        merge(other, store)
        shown = [each.rows("SELECT * FROM marks ORDER BY created_at") for each in (store, other)]
        assert [tuple(row) for row in shown[0]] == [tuple(row) for row in shown[1]] and len(shown[0]) == 3
    assert about_marks(store) == []


def test_check_finds_a_changed_mark(sqlite_url: str) -> None:
    with Store.open(sqlite_url) as store:
        [one, two, *_] = two_students(store, WORDS)
        with store.write() as conn:
            store.insert(conn, [stores.mark_row(one, origin_of(store, two)), stores.mark_row(one, None, mark="good")])
            conn.exec_driver_sql("UPDATE mark SET note = 'x', digest = NULL WHERE mark = 'good'")
        found = "\n".join(check(store).findings)
    assert "1 rows of mark are about a variant of another sample" in found
    assert "has an id that does not match its content" in found and "has the unknown mark 'good'" in found


@pytest.mark.long
def test_marking_by_command(sqlite_url: str, cli: Cli) -> None:
    with Store.open(sqlite_url) as store:
        [one, *_] = two_students(store, WORDS)
        origin = origin_of(store, one)
    run = ("--store", sqlite_url)
    assert (
        f"sample {one[:12]}: marked drop by ann"
        in cli(*run, "mark", one[:9], "drop", "--by", "ann", "--note", "why").stdout
    )
    row = json.loads(cli(*run, "mark", origin, "keep", "--json").stdout)
    assert row["variant_id"] == origin and row["marked_by"] and json.loads(row["seen"]) == {"page": "command"}
    shown = cli(*run, "show", one).stdout
    assert "marked drop by ann" in shown and "origin marked keep by" in shown
    assert "did you mean" in cli(*run, "mark", one, "dropp", code=1).stderr
    told = cli(*run, "select", "cherry", "--student", "7b", "--top", "2").stdout
    assert "marked drop, left out    1" in told
    assert (
        "marked drop" not in cli(*run, "select", "cherry", "--student", "7b", "--top", "2", "--marks", "ignore").stdout
    )
