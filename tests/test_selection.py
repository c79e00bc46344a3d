"""Recipes and selections: the decision tree against plain Python, the same bytes on every backend, what a record says."""

import itertools
import json
import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import scored_stores as scored
import stores
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recycledb.errors import QueryError, SelectionError
from recycledb.methods.ifd import Stat
from recycledb.methods.reflection import Kind
from recycledb.schema import Texts, content_id
from recycledb.selection.diff import diff
from recycledb.selection.explain import Ratios, decide, explain
from recycledb.selection.identities import find_selection
from recycledb.selection.recipes import (
    get_recipe,
    iter_recipes,
    parse,
    parse_top,
    read_recipe,
    recipe_names,
    shipped_as,
)
from recycledb.selection.select import export, select
from recycledb.store import Store
from recycledb.store.places import replace_places
from recycledb.store.rows import StudentRow, TeacherRow

ORI, Q, A, QA = Kind.ORIGIN, Kind.REFLECT_INSTRUCTION, Kind.REFLECT_RESPONSE, Kind.REFLECT_BOTH

# -- the decision tree, written down a second time


def ratio(means: Mapping[Stat, float | None], condition: Stat, direct: Stat, metric: str) -> float | None:
    """IFD or rIFD by definition; None where a statistic is missing."""
    x, y = means.get(condition), means.get(direct)
    if x is None or y is None:
        return None
    if metric == "ppl":
        return math.exp(x) / math.exp(y)
    return x / y if y else None


class Tree:
    """What plain Python picks for a store's samples under one student."""

    def __init__(self, variants: list[Any], means: Mapping[str, Mapping[Stat, float | None]], metric: str) -> None:
        self.metric = metric
        self.means = means
        self.of_sample: dict[str, list[Any]] = {}
        for v in variants:
            if means.get(v.variant_id):  # a variant without any statistic is not seen
                self.of_sample.setdefault(v.sample_id, []).append(v)

    def ifd(self, variant: str | None) -> float:
        found = ratio(self.means.get(variant or "", {}), Stat.A_CONDITION, Stat.A_DIRECT, self.metric)
        return math.nan if found is None else found  # every comparison with NaN is false

    def rifd(self, variant: str | None) -> float:
        found = ratio(self.means.get(variant or "", {}), Stat.Q_CONDITION, Stat.Q_DIRECT, self.metric)
        return math.nan if found is None else found

    def first(self, sample: str, **wanted: Any) -> str | None:
        ids = [
            v.variant_id
            for v in self.of_sample.get(sample, [])
            if all(getattr(v, key) == value for key, value in wanted.items())
        ]
        return min(ids, default=None)

    def candidate(self, sample: str, teacher: str | None) -> tuple[str, Kind] | None:
        ori = self.first(sample, kind=ORI)
        if ori is None:
            return None
        q = self.first(sample, kind=Q, teacher=teacher)
        a = self.first(sample, kind=A, teacher=teacher)
        qa = self.first(sample, kind=QA, parent_id=q) if q else None
        if self.ifd(q) > self.ifd(ori):
            found = (qa, QA) if self.rifd(qa) < self.rifd(q) else (q, Q)
        else:
            found = (a, A) if self.rifd(a) < self.rifd(ori) else (ori, ORI)
        assert found[0] is not None
        return found[0], found[1]

    def pick(self, sample: str, teachers: list[str], keep: str) -> str | None:
        made = [t for t in teachers if self.first(sample, teacher=t, kind=Q) or self.first(sample, teacher=t, kind=A)]
        kept = []
        for teacher in made or [""]:
            found = self.candidate(sample, teacher)
            if found is None:
                continue
            variant, kind = found
            inside = self.ifd(variant) < 1 and self.rifd(variant) < 1
            if inside and (keep == "all" or kind in (A, QA)):
                kept.append((-self.ifd(variant), self.rifd(variant), teacher, variant))
        return min(kept)[3] if kept else None


# Few values, so that equal ratios are frequent; exp(a)/exp(b) is 1 where they are equal.
mean = st.sampled_from([None, 0.5, 1.0, 1.5, 1.75, 2.0])
statistics = st.one_of(
    st.fixed_dictionaries(dict.fromkeys(Stat, mean)),
    st.fixed_dictionaries({}, optional=dict.fromkeys(Stat, mean)),
    st.just({}),
)


@pytest.fixture
def forest(store: Store) -> Callable[[Mapping[str, Any]], str]:
    """A store of samples with every shape of variants; returns what scores them under a new student."""
    samples = stores.add_samples(store, [stores.texts(word) for word in range(7)])
    scored.add_teachers(store, "gpt", "other")
    scored.add_all_kinds(store, samples[:6])  # the last has no reflections
    scored.add_all_kinds(store, samples[1:3], mark="again")  # two of each kind from one teacher, as after a merge
    scored.add_all_kinds(store, samples[2:5], teacher="other")
    # An answer whose instruction is another's: it must not be taken for that of this sample's.
    scored.add_variant(store, samples[5], QA, scored.origin_of(store, samples[5]), mark="stray")
    counter = itertools.count()

    def score(means: Mapping[str, Any]) -> str:
        name = f"s{next(counter)}"
        scored.add_students(store, name)
        scored.add_losses(store, name, means)
        return name

    return score


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_selective_agrees_with_plain_python_row_for_row(
    store: Store, forest: Callable[[Mapping[str, Any]], str], data: st.DataObject
) -> None:
    variants = store.rows("SELECT variant_id, sample_id, kind, parent_id, teacher FROM variants ORDER BY variant_id")
    means = {v.variant_id: data.draw(statistics) for v in variants}
    if not any(means.values()):
        return
    student = forest(means)
    teacher = data.draw(st.sampled_from(["gpt", "other", "best"]))
    metric, keep = data.draw(st.sampled_from(["ppl", "loss"])), data.draw(st.sampled_from(["reflected", "all"]))
    select(
        store,
        get_recipe("selective"),
        {"student": student, "teacher": teacher, "metric": metric, "keep": keep},
        name="it",
    )
    tree = Tree(list(variants), means, metric)
    order = [row[0] for row in store.rows("SELECT sample_id FROM dataset_samples ORDER BY dataset, position")]
    teachers = ["gpt", "other"] if teacher == "best" else [teacher]
    expected = [pick for sample in order if (pick := tree.pick(sample, teachers, keep))]
    found = store.rows("SELECT variant_id FROM selection_items WHERE selection = 'it' ORDER BY position")
    assert [row[0] for row in found] == expected


@pytest.mark.long
def test_selective_agrees_with_plain_python_on_many_samples(store: Store) -> None:
    rng = random.Random(20261120)
    samples = stores.add_samples(store, [stores.texts(word) for word in range(300)])
    scored.add_teachers(store, "gpt", "other")
    scored.add_students(store, "7b")
    scored.add_all_kinds(store, samples[:280])
    scored.add_all_kinds(store, samples[100:150], mark="again")
    scored.add_all_kinds(store, samples[50:200], teacher="other")
    variants = store.rows("SELECT variant_id, sample_id, kind, parent_id, teacher FROM variants ORDER BY variant_id")
    grid = [None, *(0.5 + i / 16 for i in range(12))]
    means = {v.variant_id: {s: rng.choice(grid) for s in Stat if rng.random() < 0.97} for v in variants}
    scored.add_losses(store, "7b", means)
    for teachers, metric, keep in itertools.product((["gpt"], ["gpt", "other"]), ("ppl", "loss"), ("reflected", "all")):
        teacher = teachers[0] if len(teachers) == 1 else "best"
        select(store, get_recipe("selective"), {"teacher": teacher, "metric": metric, "keep": keep}, name="it")
        tree = Tree(list(variants), means, metric)
        expected = [pick for sample in samples if (pick := tree.pick(sample, teachers, keep))]
        assert scored.picked(store, "it") == expected
        assert len(expected) > 20


@given(
    found=st.dictionaries(
        st.sampled_from([ORI, Q, A, QA]),
        st.tuples(
            st.sampled_from([None, 0.5, 0.8, 1.0, 1.2]),
            st.sampled_from([None, 0.5, 0.8, 1.0, 1.2]),
        ),
    )
)
def test_the_explained_tree_is_the_published_one(found: dict[Kind, tuple[float | None, float | None]]) -> None:
    nan = math.nan
    ifd = {kind: nan if kind not in found or found[kind][0] is None else found[kind][0] for kind in (ORI, Q, A, QA)}
    rifd = {kind: nan if kind not in found or found[kind][1] is None else found[kind][1] for kind in (ORI, Q, A, QA)}
    reflected = QA if rifd[QA] < rifd[Q] else Q  # type: ignore[operator]
    answered = A if rifd[A] < rifd[ORI] else ORI  # type: ignore[operator]
    kind = reflected if ifd[Q] > ifd[ORI] else answered  # type: ignore[operator]
    decision = decide({key: Ratios(key, *value) for key, value in found.items()})
    assert decision.kind == kind
    assert decision.kept == (ifd[kind] < 1 and rifd[kind] < 1)  # type: ignore[operator]
    assert len(decision.steps) == 3


# -- the same on every backend


def filled(url: str) -> Store:
    store = Store.open(url, create=True)
    scored.two_students(store, [f"word{number}" for number in range(30)])
    return store


SELECTIONS: list[tuple[str, dict[str, Any], str]] = [
    ("selective", {"student": "7b"}, "alpaca"),
    ("selective", {"student": "7b"}, "sharegpt"),
    ("selective", {"student": "13b", "top": "40%", "keep": "all", "metric": "loss"}, "jsonl"),
    ("cherry", {"student": "13b", "kind": "reflect_response", "top": "7"}, "parquet"),
    ("superfilter", {"student": "7b"}, "alpaca"),
    ("recycled", {}, "jsonl"),
]


@pytest.mark.long
def test_the_same_selection_is_the_same_bytes_and_the_same_row_on_any_backend(tmp_path: Path) -> None:
    results = []
    for backend in ("sqlite", "duckdb"):
        path = tmp_path / f"out.{backend}"
        with filled(f"{backend}:///{tmp_path}/store.{backend}") as store:
            for recipe, wanted, format in SELECTIONS:
                done = select(store, get_recipe(recipe), wanted, output=path, format=format)
                results.append((done.as_dict() | {"file": None}, path.read_bytes()))
    assert results[: len(SELECTIONS)] == results[len(SELECTIONS) :]
    assert all(done["rows"] for done, _ in results)


def test_selecting_again_is_the_same_row(store: Store) -> None:
    scored.two_students(store)
    first = select(store, get_recipe("selective"), {"student": "7b"})
    again = select(store, get_recipe("selective"), {"student": "7b"}, name="mine")
    assert first.selection_id == again.selection_id
    assert len(store.rows("SELECT 1 FROM selection")) == 1
    assert {find_selection(store, name).identity for name in ("selective-7b", "mine")} == {first.selection_id}


# -- what is picked


def test_only_open_places_and_current_variants_are_picked(store: Store) -> None:
    samples = scored.two_students(store)
    everything = select(store, get_recipe("recycled"), {})
    with store.write() as conn:  # the second sample leaves the dataset; the teacher's parameters change
        replace_places(
            store,
            conn,
            "d",
            [p for p in stores.places([stores.texts(w) for w in ("apples", "-", "plums", "figs")]) if p.position != 1],
        )
    fewer = select(store, get_recipe("recycled"), {})
    assert (everything.rows, fewer.rows) == (4, 3)
    assert samples[1] not in {
        row[0]
        for row in store.rows(
            "SELECT sample_id FROM selection_items JOIN variants USING (variant_id) WHERE selection = 'recycled'"
        )
    }
    with store.write() as conn:
        store.insert(conn, [TeacherRow("0" * 12, "gpt", "recorded", "gpt", '{"t":1}', "2026-01-01")])
        store.ensure_name(conn, "teacher", "gpt", "0" * 12)
    assert select(store, get_recipe("recycled"), {}).rows == 0


def test_a_dataset_narrows_the_sight_and_duplicates_stand_at_their_first_place(store: Store) -> None:
    scored.two_students(store)
    stores.add_samples(store, [stores.texts("figs"), stores.texts("apples"), stores.texts("figs")], dataset="b")
    narrowed = select(store, get_recipe("cherry"), {"student": "7b", "dataset": "b", "top": "100%"})
    assert (narrowed.rows, narrowed.samples) == (2, 2)
    everything = select(store, get_recipe("recycled"), {}, name="all")
    rows = store.rows(
        "SELECT s.instruction FROM selection_items i JOIN variants v ON v.variant_id = i.variant_id "
        "JOIN samples s ON s.sample_id = v.sample_id WHERE selection = 'all' ORDER BY position"
    )
    assert [row[0] for row in rows] == [f"Explain {word}." for word in ("figs", "apples", "pears", "plums")]
    assert everything.samples == 4
    with pytest.raises(SelectionError, match="no dataset 'c'; there are: b, d"):
        select(store, get_recipe("recycled"), {"dataset": "c"})


def test_cherry_takes_the_highest_below_1_and_breaks_ties_by_place(store: Store) -> None:
    samples = stores.add_samples(store, [stores.texts(word) for word in range(8)])
    scored.add_students(store, "7b")
    values = [-0.3, -0.1, 0.0, -0.1, None, 0.2, -0.2, -0.1]
    origins = [scored.origin_of(store, sample) for sample in samples]
    scored.add_losses(store, "7b", {o: scored.ratios(value) for o, value in zip(origins, values, strict=True)})
    every = select(store, get_recipe("cherry"), {"top": "100%"}, name="every")
    assert scored.picked(store, "every") == [origins[i] for i in (1, 3, 7, 6, 0)]
    assert every.counts == {"origin": 5}
    select(store, get_recipe("cherry"), {"top": "2"}, name="two")
    assert scored.picked(store, "two") == [origins[1], origins[3]]
    select(store, get_recipe("cherry"), {"top": "49.9%"}, name="share")  # of 8 samples: 3
    assert scored.picked(store, "share") == [origins[1], origins[3], origins[7]]
    nothing = select(store, get_recipe("cherry"), {"top": "5%"}, name="nothing")
    assert nothing.rows == 0
    assert nothing.note is not None
    assert "top 5% of 8 samples" in nothing.note
    rows = store.rows("SELECT rank FROM selection_items WHERE selection = 'every' ORDER BY position")
    assert [row[0] for row in rows] == [1, 2, 3, 4, 5]


def test_cherry_takes_the_best_teacher_per_sample(store: Store) -> None:
    [sample, second] = stores.add_samples(store, [stores.texts("a"), stores.texts("b")])
    scored.add_teachers(store, "gpt", "other")
    scored.add_students(store, "7b")
    mine = scored.add_all_kinds(store, [sample])[0][A]
    theirs = scored.add_all_kinds(store, [sample], teacher="other")[0][A]
    only = scored.add_all_kinds(store, [second], teacher="other")[0][A]
    scored.add_losses(store, "7b", {mine: scored.ratios(-0.2), theirs: scored.ratios(-0.1), only: scored.ratios(0.1)})
    select(store, get_recipe("cherry"), {"kind": "reflect_response", "teacher": "best", "top": "100%"}, name="it")
    assert scored.picked(store, "it") == [theirs]
    with pytest.raises(SelectionError, match=r"several teachers .* gpt, other, or best"):
        select(store, get_recipe("cherry"), {"kind": "reflect_response"})
    with pytest.raises(SelectionError, match=r"several teachers have variants; give --teacher: gpt, other$"):
        select(store, get_recipe("recycled"), {})
    select(store, get_recipe("cherry"), {"top": "1"}, name="origins")  # an origin is nobody's


def test_superfilter_finds_its_student_by_the_template(store: Store) -> None:
    [sample] = stores.add_samples(store, [stores.texts("a")])
    scored.add_students(store, "7b", "13b")
    scored.add_students(store, "gpt2", prompt="none")
    scored.add_losses(store, "gpt2", {scored.origin_of(store, sample): scored.ratios(-0.1, None)})
    assert select(store, get_recipe("superfilter"), {"top": "100%"}).selection == "superfilter-gpt2"
    with pytest.raises(SelectionError, match="several students have scores; give --student: 13b, 7b, gpt2"):
        select(store, get_recipe("cherry"), {})


# -- what is recorded and said


def test_a_selection_is_a_row(store: Store, tmp_path: Path) -> None:
    scored.two_students(store)
    path = tmp_path / "out.json"
    done = select(store, get_recipe("selective"), {"student": "7b", "keep": "all"}, name="mine", output=path)
    [row] = store.rows("SELECT * FROM selections WHERE selection = 'mine'")
    assert json.loads(row.parameters) == {
        "student": "7b",
        "student_id": scored.student_id("7b"),
        "teacher": "gpt",
        "teacher_id": scored.teacher_id("gpt"),
        "dataset": None,
        "metric": "ppl",
        "keep": "all",
        "top": None,
    }
    assert row.sql == get_recipe("selective").sql
    assert json.loads(row.counts) == done.counts
    assert (row.rows, row.recipe, row.output_sha256) == (done.rows, "selective", done.file_sha256)
    assert row.store_revision == "sample:4 place:4 closing:0 variant:16 extraction:12 loss:128 name:7"
    written = json.loads(path.read_text())
    assert len(written) == done.rows
    assert set(written[0]) == {"instruction", "input", "output"}
    items = store.rows(
        "SELECT v.output FROM selection_items i JOIN variants v ON v.variant_id = i.variant_id ORDER BY position"
    )
    assert [row[0] for row in items] == [row["output"] for row in written]


def test_the_record_keeps_the_hash_of_the_plain_bytes(store: Store, tmp_path: Path) -> None:
    scored.two_students(store)
    plain = select(store, get_recipe("recycled"), {}, output=tmp_path / "a.json")
    packed = select(store, get_recipe("recycled"), {}, output=tmp_path / "a.json.gz")
    unwritten = select(store, get_recipe("recycled"), {})
    assert plain.output_sha256 == packed.output_sha256 == unwritten.output_sha256 == plain.file_sha256
    assert packed.file_sha256 != plain.file_sha256
    assert unwritten.file_sha256 is None


def test_names_that_moved_on_can_still_be_used(store: Store) -> None:
    scored.two_students(store)
    with store.write() as conn:
        store.insert(conn, [StudentRow("5" * 12, "7b", "m", "later", "vicuna", 2048, "float32", None, "2026-01-01")])
        store.ensure_name(conn, "student", "7b", "5" * 12)
    old = f"7b@{scored.student_id('7b')[:8]}"
    assert select(store, get_recipe("selective"), {"student": old}).rows > 0
    with pytest.raises(SelectionError, match="no scores under 7b; run `recycledb sync --student 7b`"):
        select(store, get_recipe("selective"), {"student": "7b"})


def test_nothing_is_written_where_there_is_nothing_to_select_from(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("mine")
    with pytest.raises(SelectionError, match="no student has scores yet"):
        select(store, get_recipe("cherry"), {}, output=path)
    with pytest.raises(SelectionError, match="the store has no samples"):
        select(store, get_recipe("recycled"), {}, output=path)
    assert path.read_text() == "mine"


def test_diff_says_what_only_one_took(store: Store) -> None:
    scored.two_students(store)
    select(store, get_recipe("selective"), {"student": "7b"}, name="a")
    select(store, get_recipe("cherry"), {"student": "13b", "kind": "reflect_both", "top": "2"}, name="b")
    found = diff(store, "a", "b")
    assert (found.rows_a, found.rows_b) == (4, 2)
    assert found.same + sum(found.changed.values()) + found.only_a == 4
    assert sum(found.only_a_kinds.values()) == sum(found.only_a_reasons.values()) == found.only_a == 2
    assert found.only_b == 0
    assert diff(store, "a", "a").only_a == 0
    with pytest.raises(SelectionError, match="no selection 'c' in the store; there are: a, b"):
        diff(store, "a", "c")


def test_explain_says_the_ratios_the_branch_and_the_bound(store: Store) -> None:
    samples = scored.two_students(store)
    select(store, get_recipe("selective"), {"student": "7b"}, name="mine")
    select(store, get_recipe("cherry"), {"student": "7b", "top": "1"}, name="one")
    said = explain(store, samples[1])
    assert [each["selection"] for each in said] == ["mine", "one", None]
    text = said[0]["text"]
    assert "mine (selective; student 7b, teacher gpt): picked reflect_both" in text
    assert "IFD(Q) 0.7634 > IFD(ori) 0.7334? yes" in text
    assert "rIFD(QA) 0.7408 < rIFD(Q) 0.7788? yes" in text
    assert "IFD(QA) 0.9418 < 1 and rIFD(QA) 0.7408 < 1: yes" in text
    assert "one (cherry; student 7b): picked nothing" in said[1]["text"]
    assert said[2]["student"] == "13b"
    json.dumps(said)
    stores.add_samples(store, [stores.texts("new")], dataset="n")
    [fresh] = store.rows("SELECT sample_id FROM dataset_samples WHERE dataset = 'n'")
    assert "no scores under 7b" in explain(store, fresh[0])[0]["text"]
    assert "is not in any dataset" not in said[0]["text"]
    stores.add_samples(store, [stores.texts("apples")])  # the dataset without the others
    assert "it is not in any dataset now" in explain(store, samples[1])[0]["text"]


def test_only_a_shipped_text_is_explained_by_the_shipped_tree(store: Store, tmp_path: Path) -> None:
    [_, sample, *_] = scored.two_students(store)
    own = tmp_path / "selective.sql"
    own.write_text(
        "SELECT variant_id, 'as I like it' AS reason FROM scores WHERE kind = 'origin' AND student = :student"
    )
    select(store, read_recipe(own), {"student": "7b"}, name="own")
    copied = tmp_path / "copied.sql"  # as `recipes show selective > copied.sql` writes it
    copied.write_text(get_recipe("selective").sql.rstrip() + "\n")
    select(store, read_recipe(copied), {"student": "7b", "teacher": "gpt"}, name="copied")
    said = {each["selection"]: each for each in explain(store, sample)}
    assert said["own"]["steps"] == ["reason: as I like it", "picked at position 1 of 4"]
    assert "IFD(Q) 0.7634 > IFD(ori) 0.7334? yes" in said["copied"]["text"]


def test_a_text_shipped_by_an_earlier_release_is_explained(store: Store) -> None:
    [_, sample, *_] = scored.two_students(store)
    earlier = (Path(__file__).parent / "data" / "selective-0.1.0.sql").read_text(encoding="utf-8")
    select(store, parse("selective", earlier), {"student": "7b"}, name="then")
    assert "IFD(Q) 0.7634 > IFD(ori) 0.7334? yes" in explain(store, sample)[0]["text"]
    assert {recipe.name: shipped_as(recipe.sql) for recipe in iter_recipes()} == {name: name for name in recipe_names()}


# -- recipes of one's own


def run_sql(store: Store, sql: str, given_: Mapping[str, Any] | None = None, **more: Any) -> Any:
    return select(store, parse("mine", sql), given_, **more)


def test_a_file_of_ones_own_may_rank_and_be_cut(store: Store) -> None:
    scored.two_students(store)
    sql = """
        -- a comment; with a semicolon and a :colon
        SELECT variant_id, -ifd_ppl AS rank, ifd_ppl, 'hard; so' AS reason
        FROM scores WHERE student = :student AND kind = 'origin' AND ifd_ppl < :bound;
        -- the end
    """
    done = run_sql(store, sql, {"student": "13b", "bound": "0.99", "top": "50%"})
    assert done.rows == 2
    assert set(done.means) == {"ifd_ppl"}
    ranks = [
        row[0] for row in store.rows("SELECT rank FROM selection_items WHERE selection = 'mine-13b' ORDER BY position")
    ]
    assert ranks == sorted(ranks)
    [reason] = store.rows("SELECT DISTINCT reason FROM selection_items")
    assert reason[0] == "hard; so"


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT sample_id FROM samples", "must return variant_id"),
        ("SELECT 'x' AS variant_id", "picked 'x', which is not a variant"),
        ("SELECT NULL AS variant_id", "picked None, which is not a variant"),
        ("SELECT variant_id, 'high' AS rank FROM variants", "ranks by 'high'"),
        ("SELECT variant_id, CAST('nan' AS VARCHAR) AS rank FROM variants", "ranks by 'nan', which is not a number"),
        (
            "SELECT variant_id, 1e300 * 1e300 AS rank FROM variants",
            "ranks by inf, which is not a finite number|out of range|Overflow",
        ),
        ("SELECT variant_id, '\0' AS reason FROM variants", "the SQL contains a NUL character"),
        ("DELETE FROM loss", "is not one SELECT"),
        ("SELECT variant_id FROM variants; SELECT 1", "is not one SELECT"),
        ("SELECT variant_id FROM nowhere", "nowhere"),
        ("SELECT variant_id FROM variants WHERE kind = :kind", "needs kind: give --param kind="),
        ("-- @param x colour = red: what\nSELECT 1", "has the type 'colour'"),
        ("-- @param x\nSELECT 1", "declare parameters as"),
    ],
)
def test_a_wrong_recipe_is_one_clear_error(store: Store, sql: str, message: str) -> None:
    scored.two_students(store)
    with pytest.raises((SelectionError, QueryError), match=message) as raised:
        run_sql(store, sql)
    assert "Traceback" not in str(raised.value)
    assert not store.rows("SELECT 1 FROM selection")


RANKS = {  # what is no rank, in both dialects
    "infinite": ("9e999", "'inf'::DOUBLE PRECISION", "ranks by inf, which is not a finite number"),
    "minus infinite": ("-9e999", "'-inf'::DOUBLE PRECISION", "ranks by -inf, which is not a finite number"),
    "NaN": ("9e999", "'nan'::DOUBLE PRECISION", "which is not a finite number"),  # SQLite has none
    "text": ("'0.5'", "'0.5'", "ranks by '0.5', which is not a number"),
    "text of infinity": ("'inf'", "'inf'", "ranks by 'inf', which is not a number"),
    "bytes": ("x'00'", "'a'::BLOB", "which is not a number"),
}


@pytest.mark.parametrize("name", RANKS)
def test_a_rank_is_a_finite_number(store: Store, name: str, tmp_path: Path) -> None:
    scored.two_students(store)
    sqlite, duckdb, message = RANKS[name]
    sql = sqlite if store.backend.name == "sqlite" else duckdb
    if store.backend.name == "postgresql":
        sql = sql.replace("BLOB", "BYTEA")
    (tmp_path / "out.json").write_text("before")
    with pytest.raises(SelectionError, match=message) as raised:
        run_sql(store, f"SELECT variant_id, {sql} AS rank FROM variants", output=tmp_path / "out.json")
    assert "or NULL, which sorts last" in str(raised.value) and "\n" not in str(raised.value)
    assert not store.rows("SELECT 1 FROM selection") and (tmp_path / "out.json").read_text() == "before"


def test_numbers_too_large_to_be_summed_still_have_a_mean(store: Store) -> None:
    scored.two_students(store)
    done = run_sql(store, "SELECT variant_id, CAST(1e308 AS DOUBLE PRECISION) AS large, 1 AS rank FROM variants")
    assert done.means == {"large": pytest.approx(1e308)}


def test_a_column_may_be_called_anything(store: Store) -> None:
    scored.two_students(store)
    assert run_sql(store, 'SELECT variant_id, 1 AS "a ""b""" FROM variants').rows == 16


def test_a_variant_picked_twice_is_one_pick(store: Store) -> None:
    scored.two_students(store)
    done = run_sql(
        store,
        "SELECT variant_id FROM variants WHERE kind = 'origin' UNION ALL SELECT variant_id FROM variants WHERE kind = 'origin'",
    )
    assert done.rows == 4


def test_parameters_are_bound_never_pasted(store: Store) -> None:
    scored.two_students(store)
    done = run_sql(store, "SELECT variant_id FROM variants WHERE kind = :kind", {"kind": "origin' OR '1' = '1"})
    assert done.rows == 0


def test_parameters_are_checked_against_their_types(store: Store) -> None:
    scored.two_students(store)
    recipe = get_recipe("selective")
    for given_, message in (
        ({"metric": "bits"}, "metric is 'bits'; it must be one of ppl, loss"),
        ({"colour": "red"}, "has no parameter 'colour'"),
        ({"top": "0"}, "top is '0'"),
        ({"teacher": "nobody"}, "no teacher 'nobody' in the store; there are: gpt"),
        ({"student": "nobody"}, "no student 'nobody' in the store; there are: 13b, 7b"),
    ):
        with pytest.raises(SelectionError, match=message):
            select(store, recipe, {"student": "7b", **given_})
    with pytest.raises(SelectionError, match="has no parameter top"):
        run_sql(store, "SELECT variant_id FROM variants", {"top": "3"})
    with pytest.raises(SelectionError, match="n is 'x', which is not a number"):
        run_sql(store, "-- @param n number: how many\nSELECT variant_id FROM variants LIMIT :n", {"n": "x"})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5%", (None, 5.0)),
        ("0.5 %", (None, 0.5)),
        (".5%", (None, 0.5)),
        ("100%", (None, 100.0)),
        ("12", (12, None)),
        (7, (7, None)),
    ],
)
def test_top_is_a_number_or_a_share(text: Any, value: Any) -> None:
    assert parse_top(text) == value


@pytest.mark.parametrize("text", ["0", "-1", "0%", "101%", "1.5", "many", "", "5%%", "9" * 19, "9" * 5000])
def test_top_is_nothing_else(text: str) -> None:
    with pytest.raises(SelectionError, match="give a number like 500 or a share like 5%"):
        parse_top(text)


def test_shipped_recipes_declare_themselves() -> None:
    shipped = {
        "cherry",
        "recycled",
        "selective",
        "superfilter",
        "selectit",
        "superfilter_d",
        "deita",
        "long",
        "random",
        "rds",
    }
    assert {recipe.name for recipe in iter_recipes()} == shipped | {"all_agree", "pareto"}
    for recipe in iter_recipes():
        assert 20 < len(recipe.description) < 120
        assert all(parameter.help for parameter in recipe.parameters)
        assert all(parameter.type != "any" for parameter in recipe.parameters)


# -- exports


def test_export_writes_a_kind_in_dataset_order(store: Store, tmp_path: Path) -> None:
    scored.two_students(store)
    origins = export(store, tmp_path / "o.json")
    assert [row["instruction"] for row in json.loads((tmp_path / "o.json").read_text())] == [
        f"Explain {word}." for word in ("apples", "pears", "plums", "figs")
    ]
    assert (origins.rows, origins.teacher) == (4, None)
    reflected = export(store, tmp_path / "r.jsonl", kind="reflect_both", format="jsonl")
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert {(row["kind"], row["teacher"]) for row in rows} == {("reflect_both", "gpt")}
    assert reflected.teacher == "gpt"
    with pytest.raises(SelectionError, match="no current compressed of gpt to export"):
        export(store, tmp_path / "c.json", kind="compressed")
    with pytest.raises(SelectionError, match="no kind 'x'"):
        export(store, tmp_path / "c.json", kind="x")


def test_texts_come_through_as_they_are(store: Store, tmp_path: Path) -> None:
    text = Texts('Ünïcode ∑ \u2028 "quotes" \\ and\nlines', "<script>alert(1)</script>", "emoji 🎉 and \t tabs")
    stores.add_samples(store, [text])
    export(store, tmp_path / "o.json")
    assert json.loads((tmp_path / "o.json").read_bytes()) == [text._asdict()]
    assert "∑" in (tmp_path / "o.json").read_text()


def test_ids_follow_content(store: Store) -> None:
    scored.two_students(store)
    done = select(store, get_recipe("recycled"), {})
    items = [[v, None, "rewritten in both halves"] for v in scored.picked(store, "recycled")]
    assert done.selection_id == content_id("selection", get_recipe("recycled").sql, done.parameters, items)
