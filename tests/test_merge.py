"""Merging: every row travels once, parents first, from any backend to any other, whatever is written meanwhile."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from conftest import BACKENDS, Cli
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import (
    STUDENT,
    TEACHER,
    add_samples,
    answer,
    answer_all,
    derive,
    import_row,
    losses,
    made_row,
    read,
    register,
    reply,
    reply_row,
    selection_row,
    student_row,
    texts,
    wanted,
)

from recycledb.errors import ConfigError, SchemaError, StoreError
from recycledb.inspection import status
from recycledb.methods.reflection import Step
from recycledb.schema import Texts, content_id, utc_now
from recycledb.store import Store, batches, migrate, verify
from recycledb.store.merge import TABLES, merge, open_source
from recycledb.store.questions import claim, count_under_way, pending_questions
from recycledb.store.rows import (
    AttemptRow,
    BatchEventRow,
    BatchRow,
    NameRow,
    PromptRow,
    SelectionItemRow,
)
from recycledb.store.sqlite import SQLite
from recycledb.store.tables import metadata
from recycledb.store.workers import end_worker, start_worker

PAIRS = [(source, target) for source in BACKENDS for target in BACKENDS]

# Rows that point at something that is not there, as a reader of the target would meet them.
ORPHANS = """
    SELECT 'place' FROM place WHERE sample_id NOT IN (SELECT sample_id FROM sample)
    UNION ALL SELECT 'origin' FROM place p WHERE NOT EXISTS (
        SELECT 1 FROM variant v WHERE v.sample_id = p.sample_id AND v.kind = 'origin')
    UNION ALL SELECT 'turn' FROM (SELECT position FROM dataset_samples GROUP BY dataset, position HAVING count(*) > 1) twice
    UNION ALL SELECT 'variant' FROM variant WHERE sample_id NOT IN (SELECT sample_id FROM sample)
    UNION ALL SELECT 'parent' FROM variant WHERE parent_id IS NOT NULL AND parent_id NOT IN (SELECT variant_id FROM variant)
    UNION ALL SELECT 'text' FROM variant WHERE text_id IS NOT NULL AND text_id NOT IN (SELECT text_id FROM reply)
    UNION ALL SELECT 'attempt' FROM attempt WHERE variant_id NOT IN (SELECT variant_id FROM variant)
    UNION ALL SELECT 'reply' FROM reply WHERE variant_id NOT IN (SELECT variant_id FROM variant)
    UNION ALL SELECT 'reply teacher' FROM reply WHERE teacher_id NOT IN (SELECT teacher_id FROM teacher)
    UNION ALL SELECT 'extraction' FROM extraction WHERE text_id NOT IN (SELECT text_id FROM reply)
    UNION ALL SELECT 'extraction variant' FROM extraction
        WHERE variant_id IS NOT NULL AND variant_id NOT IN (SELECT variant_id FROM variant)
    UNION ALL SELECT 'loss' FROM loss WHERE variant_id NOT IN (SELECT variant_id FROM variant)
    UNION ALL SELECT 'loss student' FROM loss WHERE student_id NOT IN (SELECT student_id FROM student)
    UNION ALL SELECT 'derived' FROM variant WHERE derivation_id IS NOT NULL AND derivation_id NOT IN (SELECT derivation_id FROM derivation)
    UNION ALL SELECT 'member' FROM derivation_member WHERE variant_id NOT IN (SELECT variant_id FROM variant)
    UNION ALL SELECT 'rating' FROM rating WHERE text_id NOT IN (SELECT text_id FROM reply)
    UNION ALL SELECT 'readout' FROM readout WHERE variant_id NOT IN (SELECT variant_id FROM variant)
    UNION ALL SELECT 'value' FROM value WHERE measure_id NOT IN (SELECT measure_id FROM measure)
    UNION ALL SELECT 'item' FROM selection_item WHERE variant_id NOT IN (SELECT variant_id FROM variant)
    UNION ALL SELECT 'items' FROM selection s WHERE s.rows <> (
        SELECT count(*) FROM selection_item i WHERE i.selection_id = s.selection_id)
"""


def rows(store: Store, table: str) -> set[tuple[Any, ...]]:
    columns = ", ".join(column.name for column in metadata.tables[table].columns)
    return {tuple(row) for row in store.rows(f"SELECT {columns} FROM {table}")}


def contents(store: Store) -> dict[str, set[tuple[Any, ...]]]:
    """Everything that travels."""
    found = {table: rows(store, table) for table in TABLES}
    return {**found, "batch": {row for row in found["batch"] if row[0] != "claimed only"}}


def keys(store: Store, table: str) -> set[tuple[Any, ...]]:
    columns = ", ".join(column.name for column in metadata.tables[table].primary_key.columns)
    return {tuple(row) for row in store.rows(f"SELECT {columns} FROM {table}")}


def payments(store: Store) -> set[tuple[Any, ...]]:
    """Return what was paid for, told by attempts, which are each store's own; each is there once."""
    sql = "SELECT text_id, attempt_id, cost_usd, request_id FROM teacher_texts WHERE status NOT IN ('sent', 'lost')"
    found = [tuple(row) for row in store.rows(sql)]
    assert len(found) == len({row[1] for row in found})
    return set(found)


def select_all(store: Store, name: str) -> None:
    """Record a selection of every variant."""
    variants = [row[0] for row in store.rows("SELECT variant_id FROM variant ORDER BY variant_id")]
    key = content_id("selection", name, variants)
    with store.write() as conn:
        store.insert(conn, [selection_row(key, name, rows=len(variants))])
        store.insert(conn, [SelectionItemRow(key, i, variant) for i, variant in enumerate(variants)])
        store.ensure_name(conn, "selection", name, key)


def score(store: Store, student: str = STUDENT) -> None:
    """Give every variant that lacks them its losses under a student."""
    sql = "SELECT variant_id FROM variant WHERE variant_id NOT IN (SELECT variant_id FROM loss WHERE student_id = :s)"
    variants = [row[0] for row in store.rows(sql, s=student)]
    with store.write() as conn:
        store.insert(conn, (row for variant in variants for row in losses(variant, student)))


def fill(store: Store, words: Sequence[object], dataset: str = "d") -> None:
    """Do a whole job: samples, every step's answers, losses, a selection."""
    register(store)
    samples = add_samples(store, [texts(word, with_input=i % 2 == 0) for i, word in enumerate(words)], dataset)
    with store.write() as conn:
        store.insert(conn, [import_row(dataset, len(samples), import_id="1")])
        store.insert(conn, [BatchRow(key, TEACHER, "worker", utc_now()) for key in ("b1", "claimed only")])
        store.insert(conn, [BatchEventRow("b1", f"2026-01-01T0{i}", "submitted", "remote") for i in (1, 2)])
    questions = pending_questions(store, wanted(), samples)
    claim(store, wanted(), start_worker(store), questions[:3])
    end_worker(store, store.rows("SELECT worker_id FROM worker")[0][0])
    answer_all(store, wanted(), samples)
    reply(store, questions[0])  # the same answer to another attempt
    with store.write() as conn:
        derive(store, conn, samples[:2], dataset)
    score(store)
    select_all(store, "best")


class Desk:
    """Opens copies of empty stores, and closes them all."""

    def __init__(self, folder: Path, empty: dict[str, Path], stack: ExitStack) -> None:
        self.folder, self.empty, self.stack, self.count = folder, empty, stack, 0

    def store(self, backend: str = "sqlite") -> Store:
        self.count += 1
        path = self.folder / f"{self.count}.{backend}"
        shutil.copyfile(self.empty[backend], path)
        return self.stack.enter_context(Store.open(f"{backend}:///{path}"))


@pytest.fixture
def desk(tmp_path: Path, empty_stores: dict[str, Path]) -> Iterator[Desk]:
    with ExitStack() as stack:
        yield Desk(tmp_path, empty_stores, stack)


@pytest.mark.default_cases("sqlite-duckdb")
@pytest.mark.parametrize(("source_backend", "target_backend"), PAIRS)
def test_everything_travels_once(desk: Desk, source_backend: str, target_backend: str) -> None:
    source, target = desk.store(source_backend), desk.store(target_backend)
    fill(source, range(6))
    add_samples(source, [texts(word) for word in (0, 1, "changed", 3)])  # closes places, opens one anew
    whole = contents(source)

    merged = merge(target, source)

    assert contents(target) == whole
    assert merged.rows == {table: len(found) for table, found in whole.items()}
    assert all(merged.rows.values()), merged.rows  # no table went untested
    assert not target.rows(ORPHANS)
    assert not any(merge(target, source).rows.values())
    assert target.rows("SELECT count(*) FROM worker")[0][0] == 0


@pytest.mark.default_cases("sqlite-sqlite")
@pytest.mark.parametrize(("source_backend", "target_backend"), PAIRS)
def test_later_merges_bring_what_is_new(desk: Desk, source_backend: str, target_backend: str) -> None:
    source, target = desk.store(source_backend), desk.store(target_backend)
    fill(source, range(4))
    merge(target, source)
    before = contents(source)
    add_samples(source, [texts(word) for word in ("x", "y")], "second")
    answer_all(source, wanted(), [row[0] for row in source.rows("SELECT sample_id FROM dataset_samples")])
    with source.write() as conn:
        source.insert(conn, [student_row("57d000000002", "13b")])
        source.ensure_name(conn, "student", "13b", "57d000000002")
    score(source)
    score(source, "57d000000002")
    select_all(source, "second")

    merged = merge(target, source)

    after = contents(source)
    assert contents(target) == after
    assert merged.rows == {table: len(after[table] - before[table]) for table in TABLES}


@pytest.mark.long
def test_a_removed_statistic_comes_back(desk: Desk) -> None:
    source, target = desk.store(), desk.store("duckdb")
    fill(source, range(3))
    merge(target, source)
    with target.write() as conn:
        conn.exec_driver_sql("DELETE FROM loss WHERE stat = 'Q_direct'")
    gone = rows(source, "loss") - rows(target, "loss")
    assert merge(target, source).rows["loss"] == len(gone) > 0
    assert rows(target, "loss") == rows(source, "loss")


@pytest.mark.long
def test_every_moment_of_a_merge_is_sound_and_any_stop_is_made_good(desk: Desk) -> None:
    source = desk.store()
    fill(source, range(2))
    moments = 0
    while True:  # stop at the first new batch, then at the second, …, until a merge is through
        target = desk.store()
        watcher = desk.stack.enter_context(closing(Store(SQLite(target.backend.path))))
        seen = 0

        def tell(table: str, new: int, watcher: Store = watcher, stop: int = moments) -> None:
            nonlocal seen
            assert not watcher.rows(ORPHANS), f"before {table} was committed"
            seen += 1
            if seen > stop:
                raise KeyboardInterrupt

        try:
            merge(target, source, tell)
        except KeyboardInterrupt:
            assert not watcher.rows(ORPHANS)
            merge(target, source)
            assert contents(target) == contents(source)
        else:
            break
        moments += 1
    assert moments > 15
    assert contents(target) == contents(source)


@pytest.mark.long
@pytest.mark.default_cases("wal")
@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_the_source_may_be_written_meanwhile(desk: Desk, tmp_path: Path, journal: str) -> None:
    backend = SQLite(tmp_path / "live.db")
    backend.journal = journal
    migrate.upgrade(backend)
    source = desk.stack.enter_context(Store(backend))
    fill(source, range(4))
    before, target = contents(source), desk.store()
    written = 0

    def write(table: str, new: int) -> None:
        nonlocal written
        written += 1
        sample = add_samples(source, [texts(f"later {written}")], f"later {written}")[0]
        (question, *_) = pending_questions(source, wanted(), [sample])
        answer(source, question)
        score(source)

    merge(target, source, write)

    assert written > 10
    assert contents(target) == before  # one moment's state, though rows came before every table
    merge(target, source)
    assert contents(target) == contents(source)
    assert not list(tmp_path.glob(".merge-*"))


# -- datasets


def state(store: Store) -> set[tuple[Any, ...]]:
    return {tuple(row) for row in store.rows("SELECT dataset, position, sample_id FROM dataset_samples")}


def add_versions(store: Store, *versions: str) -> None:
    """Make dataset `d` one file after another; every letter is a sample."""
    for version in versions:
        add_samples(store, [texts(letter) for letter in version])


@pytest.mark.default_cases("source1-", "source5-", "source8-")
@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (["ab"], ["ab", "ac"], "ac"),  # the target is newer: nothing changes
        (["ab", "ac"], ["ab"], "ac"),  # the source is
        (["ab", "abc"], ["ab"], "abc"),
        (["ab", "a"], ["ab"], "a"),
        (["ab"], ["ab", ""], ""),
        (["ab", "", "ab"], ["ab"], "ab"),
        (["ab", "ac", "ad"], ["ab", "ad"], "ad"),  # other ways to the same end
        (["ab", "b"], ["ab", "", "b"], "b"),
        (["a"], [], "a"),
    ],
)
def test_a_dataset_ends_in_the_newer_state(desk: Desk, source: list[str], target: list[str], expected: str) -> None:
    there, here = desk.store(), desk.store("duckdb")
    add_versions(there, *source)
    add_versions(here, *target)
    merge(here, there)
    assert state(here) == {("d", i, content_id("sample", *texts(letter))) for i, letter in enumerate(expected)}


@pytest.mark.long
@pytest.mark.parametrize(
    ("source", "target", "why"),
    [
        (["ab"], ["ac"], "position 1 has sample"),
        (["ab", "ac"], ["ab", "ad"], "position 1 has sample"),
        (["ab", "xb"], ["ab", "ay"], "position 0 is newer in the source .* but position 1 is newer here"),
        (["ab", "a"], ["ab", "abc"], "position 1 is newer in the source .* but position 2 is newer here"),
        (["ab", ""], ["xb", "xy"], "position 0 has sample .* here, nothing there"),
    ],
)
def test_datasets_that_went_different_ways_are_refused(
    desk: Desk, source: list[str], target: list[str], why: str
) -> None:
    there, here = desk.store("duckdb"), desk.store()
    add_versions(there, *source)
    add_samples(there, [texts("of another dataset")], "c")
    add_versions(here, *target)
    before = contents(here)

    with pytest.raises(StoreError, match=f"nothing was merged: dataset 'd' .*{why}.*recycledb add"):
        merge(here, there)
    assert contents(here) == before

    for store in (here, there):  # what the message says to do
        add_versions(store, "xyz")
    merge(here, there)
    merge(there, here)
    assert state(here) == state(there)


# -- names, attempts, refusals


def test_names_keep_their_meaning(desk: Desk) -> None:
    source, target = desk.store(), desk.store()
    for store, student in ((source, "57d00000000a"), (target, "57d00000000b")):
        register(store)
        with store.write() as conn:
            store.insert(conn, [student_row(student, "mine")])
            store.ensure_name(conn, "student", "mine", student)
    with source.write() as conn:
        source.insert(conn, [NameRow("student", "only there", f"2026-01-0{i}", f"id{i}") for i in (1, 2)])
    before = rows(target, "name")

    merged = merge(target, source)

    assert [clash._asdict() for clash in merged.clashes] == [
        {"kind": "student", "name": "mine", "here": "57d00000000b", "there": "57d00000000a"}
    ]
    assert before <= rows(target, "name")
    assert target.find_name("student", "mine") == "57d00000000b"
    assert target.find_name("student", "only there") == "id2"
    assert merged.rows["name"] == 2
    names = {row[0] for row in target.rows("SELECT student FROM students")}
    assert {"mine", "mine@57d00000"} <= names


def test_an_attempt_without_a_reply_counts_as_lost(desk: Desk) -> None:
    source, target = desk.store(), desk.store()
    register(source)
    (sample,) = add_samples(source, [texts("a")])
    worker = start_worker(source)
    questions = pending_questions(source, wanted(), [sample])
    claim(source, wanted(), worker, questions)

    merge(target, source)

    assert {row[0] for row in source.rows("SELECT status FROM teacher_texts")} == {"sent"}
    assert {row[0] for row in target.rows("SELECT status FROM teacher_texts")} == {"lost"}
    assert len(pending_questions(target, wanted(), [sample])) == len(questions)  # here they may be asked again


# -- equal answers


def asked(store: Store, *letters: str) -> list[tuple[str, Any]]:
    """Claim the first questions about some samples by a process that lives; return (attempt, question)."""
    register(store)
    samples = add_samples(store, [texts(letter) for letter in letters])
    want = wanted([Step.REFLECT_RESPONSE])
    found = pending_questions(store, want, samples)
    return [(attempt.attempt_id, row) for attempt, row in claim(store, want, start_worker(store), found)]


def paid(store: Store, *letters: str) -> None:
    """Ask about some samples, and get the answers that any other store gets."""
    for attempt, question in asked(store, *letters):
        read(store, question, reply(store, question, attempt_id=attempt))


def spent(store: Store) -> tuple[float, set[str]]:
    """Return what everything cost, and what became of the requests."""
    cost = store.rows("SELECT sum(cost_usd) FROM teacher_texts")[0][0]
    return cost, {row[0] for row in store.rows("SELECT status FROM teacher_texts")}


@pytest.mark.long
@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_equal_answers_are_one_text_and_two_payments(desk: Desk, first: str, second: str) -> None:
    one, two = desk.store(first), desk.store(second)
    paid(one, "a", "b")
    paid(two, "a", "b", "c")
    both = payments(one) | payments(two)

    assert merge(one, two).rows["repeated_reply"] == 2
    assert merge(two, one).rows["repeated_reply"] == 2

    for store in (one, two):
        assert payments(store) == both
        assert spent(store) == (5 * 0.25, {"ok"})
        assert len(rows(store, "reply")) == len(rows(store, "extraction")) == 3
        assert store.rows("SELECT count(*) FROM variants WHERE kind = 'reflect_response'")[0][0] == 3
        assert count_under_way(store, wanted()) == (0, 0)
        found = status(store, ConfigError("none"))
        assert found["cost_usd"] == 5 * 0.25
        assert [(row["attempts"], row["unanswered"]) for row in found["teachers"]] == [(5, 0)]
        assert not store.rows(ORPHANS)
    assert not any(merge(one, two).rows.values())
    assert not any(merge(two, one).rows.values())


@pytest.mark.long
def test_payments_of_three_stores_meet_by_any_way(desk: Desk) -> None:
    one, two, three = desk.store(), desk.store("duckdb"), desk.store()
    for store in (one, two, three):
        paid(store, "a")
    everything = payments(one) | payments(two) | payments(three)
    for target, source in ((two, one), (three, two), (one, three), (two, three), (three, one)):
        merge(target, source)
    for store in (one, two, three):
        assert payments(store) == everything
        assert spent(store) == (0.75, {"ok"})
    for target, source in ((one, two), (two, one), (three, two), (one, three)):
        assert not any(merge(target, source).rows.values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_equal_answer_that_comes_after_the_merge_is_kept_too(desk: Desk, backend: str) -> None:
    here, there = desk.store(backend), desk.store()
    paid(there, "a")
    [(attempt, question)] = asked(here, "a")
    merge(here, there)
    want = wanted([Step.REFLECT_RESPONSE])
    assert count_under_way(here, want) == (0, 1)
    assert spent(here) == (0.25, {"ok", "sent"})

    for _ in range(2):  # saying it again, as a batch that is taken twice does, changes nothing
        reply(here, question, attempt_id=attempt)

    assert count_under_way(here, want) == (0, 0)
    assert spent(here) == (0.5, {"ok"})
    assert merge(there, here).rows["repeated_reply"] == 1
    assert payments(there) == payments(here)


@pytest.mark.long
def test_an_attempt_that_was_lost_is_answered_by_a_later_merge(desk: Desk) -> None:
    source, target = desk.store(), desk.store("duckdb")
    [(attempt, question)] = asked(source, "a")
    merge(target, source)
    want = wanted([Step.REFLECT_RESPONSE])
    samples = [row[0] for row in target.rows("SELECT sample_id FROM samples")]
    assert {row[0] for row in target.rows("SELECT status FROM teacher_texts")} == {"lost"}
    assert len(pending_questions(target, want, samples)) == 1

    read(source, question, reply(source, question, attempt_id=attempt))
    merge(target, source)

    assert spent(target) == (0.25, {"ok"})
    assert not pending_questions(target, want, samples)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_whose_answers_were_there_already_is_answered(desk: Desk, backend: str) -> None:
    here, there = desk.store(backend), desk.store()
    want = wanted([Step.REFLECT_RESPONSE])
    for store in (here, there):
        register(store)
        samples = add_samples(store, [texts("a"), texts("b")])
        batch = batches.start(store, TEACHER, "a process")
        claimed = claim(store, want, batch, pending_questions(store, want, samples))
        batches.note(store, batch, "submitted", "remote")
        if store is there:
            for (attempt, question), result in zip(claimed, ("ok", "error"), strict=True):
                reply(store, question, result, attempt_id=attempt.attempt_id)
    merge(here, there)
    batch = _own(here, there)
    assert len(next(batches.iter_unanswered(here, batch))) == 2

    attempts = batches.waiting(here, batch, [row[0] for row in here.rows("SELECT attempt_id FROM attempt")])
    questions = {row.variant_id: row for _, row in claimed}
    results = {row[0]: row[1] for row in there.rows("SELECT variant_id, status FROM reply")}
    for attempt, row in attempts.items():
        reply(here, questions[row.variant_id], results[row.variant_id], attempt_id=attempt)

    assert list(batches.iter_unanswered(here, batch)) == []
    assert {(row["requests"], row["answered"], row["failed"]) for row in batches.listed(here)} == {(2, 1, 1)}
    assert count_under_way(here, want) == (0, 0)


def _own(here: Store, there: Store) -> str:
    """Return the batch that only the first store handed over."""
    [batch] = {row[0] for row in here.rows("SELECT batch_id FROM batch")} - {
        row[0] for row in there.rows("SELECT batch_id FROM batch")
    }
    return str(batch)


def test_a_store_is_not_merged_into_itself(desk: Desk) -> None:
    source = desk.store()
    with pytest.raises(StoreError, match="into itself"):
        merge(source, source)


def test_an_old_source_is_named(tmp_path: Path, desk: Desk) -> None:
    source = desk.store()
    with source.write() as conn:
        conn.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
    url = f"sqlite:///{source.backend.path}"
    with pytest.raises(SchemaError, match=f"the source: .*`recycledb --store {url} db upgrade`"):
        open_source(url)


# -- both ways, whatever happened before

Operation = tuple[str, Any]
_OPERATIONS = st.one_of(
    st.tuples(st.just("add"), st.tuples(st.sampled_from("de"), st.lists(st.sampled_from("abcd"), max_size=4))),
    st.tuples(st.just("answer"), st.integers(1, 3)),
    st.tuples(st.just("score"), st.sampled_from(["57d000000001", "57d000000002"])),
    st.tuples(st.just("select"), st.sampled_from(["one", "two"])),
    st.tuples(st.just("merge"), st.none()),
)


def operate(store: Store, other: Store, operation: Operation) -> None:
    """Do one of the things that change a store."""
    match operation:
        case "add", (dataset, letters):
            add_samples(store, [texts(letter, with_input=letter in "ab") for letter in letters], dataset)
        case "answer", count:
            samples = [
                row[0] for row in store.rows("SELECT DISTINCT sample_id FROM dataset_samples ORDER BY sample_id")
            ]
            for question in pending_questions(store, wanted(), samples)[:count]:
                answer(store, question)
        case "score", student:
            with store.write() as conn:
                store.insert(conn, [student_row(student, "s")])
            score(store, student)
        case "select", name:
            select_all(store, name)
        case "merge", _:
            merge_or_refuse(store, other)


def merge_or_refuse(target: Store, source: Store) -> bool:
    """Merge; where that is refused, see that nothing changed. Return whether it was done."""
    before = contents(target)
    try:
        merge(target, source)
    except StoreError as error:
        assert "has diverged between" in str(error)
        assert contents(target) == before
        return False
    after = contents(target)
    assert all(before[table] <= after[table] for table in TABLES)
    assert not target.rows(ORPHANS)
    return True


@pytest.mark.long
@settings(deadline=None, max_examples=15)
@given(
    backends=st.sampled_from(PAIRS),
    operations=st.lists(st.tuples(st.booleans(), _OPERATIONS), max_size=12),
)
def test_both_ways_give_equal_stores(
    empty_stores: dict[str, Path], backends: tuple[str, str], operations: list[tuple[bool, Operation]]
) -> None:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        desk = Desk(Path(folder), empty_stores, stack)
        stores = [desk.store(backend) for backend in backends]
        for store in stores:
            register(store)
        for first, operation in operations:
            a, b = stores if first else reversed(stores)
            operate(a, b, operation)
        one, two = stores
        if not merge_or_refuse(one, two):
            return
        assert merge_or_refuse(two, one)
        assert state(one) == state(two)
        for table in TABLES:
            # A history or a meaning of one's own stays one's own, and so does which of two equal answers came first.
            if table not in ("place", "closing", "name", "repeated_reply"):
                assert keys(one, table) == keys(two, table), table
        assert payments(one) == payments(two)
        assert {row[:2] for row in keys(one, "name")} == {row[:2] for row in keys(two, "name")}
        assert not any(merge(one, two).rows.values())


@pytest.mark.long
def test_the_command(cli: Cli, desk: Desk, tmp_path: Path) -> None:
    source = desk.store()
    fill(source, range(3))
    url = f"sqlite:///{source.backend.path}"
    target = f"duckdb:///{tmp_path / 'lens.duckdb'}"

    assert "loss" in cli("--store", target, "merge", url).stdout
    again = json.loads(cli("--store", target, "merge", url, "--json").stdout)
    assert again == {"rows": dict.fromkeys(TABLES, 0), "name_clashes": []}
    cli("--store", f"sqlite:///{tmp_path / 'new.db'}", "merge", f"sqlite:///{tmp_path / 'none.db'}", code=1)
    assert not (tmp_path / "new.db").exists()
    with Store.open(target) as lens:
        assert contents(lens) == contents(source)


@pytest.mark.long
def test_steps_that_nobody_here_knows_travel_in_the_order_in_which_they_read_each_other(desk: Desk) -> None:
    """Whatever the names of kinds and steps, and whether or not the method that made them is installed."""
    source, target = desk.store(), desk.store()
    register(source)
    (sample,) = add_samples(source, [texts(1)])
    [(above,)] = source.rows("SELECT variant_id FROM variant")
    with source.write() as conn:
        for depth, step in enumerate(("zeta", "alpha", "mu", "beta")):
            prompt, text_id = f"{depth}" * 12, content_id("reply", step)
            source.insert(conn, [PromptRow(prompt, step, "…", "theirs", utc_now())])
            attempt = content_id("attempt", step)
            source.insert(conn, [AttemptRow(attempt, above, step, TEACHER, prompt, 1, "worker", sent_at=utc_now())])
            source.insert(conn, [reply_row(text_id, above, step, prompt, attempt_id=attempt, text="text")])
            made = made_row(sample, f"kind of {step}", above, text_id, Texts(step, "", "made"), prompt=prompt)
            source.insert(conn, [made])
            above = made.variant_id
    merge(target, source)
    assert contents(target) == contents(source)
    assert verify.check(target).findings == []
