"""The store's contract, on every backend: what is committed stays, what is missing is found, nobody asks twice."""

import math
import os
import random
import shutil
import sqlite3
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import duckdb
import pysqlite3.dbapi2 as pysqlite3
import pytest
import stores
from conftest import BACKENDS
from forks import PIPE, Forked, start
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from recycledb.errors import QueryError, StoreError
from recycledb.methods import scored_kinds, transforms
from recycledb.methods.ifd import Stat
from recycledb.methods.reflection import Kind, Step
from recycledb.schema import Texts, sample_id, utc_now, variant_id
from recycledb.store import Store, parse_url, pending, verify
from recycledb.store.liveness import this_host
from recycledb.store.losses import count_scores, known_pairs
from recycledb.store.measures import add_facts
from recycledb.store.places import Place, iter_places, replace_places
from recycledb.store.questions import claim, count_failed, count_questions, pending_questions
from recycledb.store.replies import count_unread, pending_readings
from recycledb.store.rows import NameRow, PromptRow, SampleRow, WorkerRow
from recycledb.store.sqlite import SQLite, driver, has_wal_reset_bug, register_functions
from recycledb.store.tables import metadata
from recycledb.store.workers import beat, end_worker, start_worker

PROCESSES = Path(__file__).with_name("store_processes.py")


@contextmanager
def process(*what: object) -> Iterator[Forked]:
    """Run something of store_processes.py; it is killed in the end, whatever happens."""
    command = [sys.executable, str(PROCESSES), *map(str, what)]
    with start(command, stdin=PIPE, stdout=PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


def heard(running: Forked) -> list[str]:
    """Return the words of the next line that a process says; empty when it is gone."""
    assert running.stdout is not None
    return running.stdout.readline().split()


def go_on(running: Forked) -> None:
    """Let a process go on."""
    assert running.stdin is not None
    running.stdin.write("\n")
    running.stdin.flush()


def alike(ours: Iterable[Any], theirs: Iterable[Any]) -> bool:
    """Say whether two rows hold the same, numbers within rounding."""
    return all(
        mine == other or (isinstance(mine, float) and mine == pytest.approx(other, rel=1e-9, abs=1e-9))
        for mine, other in zip(ours, theirs, strict=True)
    )


def counted(store: Store, table: str) -> int:
    return int(store.rows(f"SELECT count(*) FROM {table}")[0][0])


# --- opening --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("store.db", "is not a store's URL"),
        ("mysql:///x", "is not a store's URL"),
        ("sqlite://x.db", "is not a store's URL"),
        ("sqlite:///", "has no path"),
        ("duckdb:///:memory:", "has no path"),
        ("mysql://host/db", "is not a store's URL"),
    ],
)
def test_a_wrong_url_is_refused(url: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        parse_url(url)


@pytest.mark.parametrize("backend", ["sqlite", "duckdb"])
def test_open_makes_a_store_only_when_asked_to(backend: str, tmp_path: Path) -> None:
    url = f"{backend}:///{tmp_path}/x.db"
    with pytest.raises(StoreError, match="recycledb init"):
        Store.open(url)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StoreError, match="there is no folder"):
        Store.open(f"{backend}:///{tmp_path}/none/x.db", create=True)
    Store.open(url, create=True).close()
    with Store.open(url) as store:
        assert counted(store, "sample") == 0


@pytest.mark.parametrize("backend", ["sqlite", "duckdb"])
def test_a_path_may_hold_spaces_and_signs(backend: str, tmp_path: Path) -> None:
    folder = tmp_path / f"mein Ordner, 100% #1é{'?mode=ro' if backend == 'sqlite' else ''}"
    folder.mkdir()
    with Store.open(f"{backend}:///{folder}/x y.db", create=True) as store:
        stores.add_samples(store, [stores.texts(1)])
        with store.backend.sandbox() as sandbox:
            assert list(sandbox.execute("SELECT count(*) FROM samples")[1]) == [(1,)]
    assert (folder / "x y.db").is_file()


def test_a_path_that_duckdb_would_misread_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="question mark"):
        Store.open(f"duckdb:///{tmp_path}/what?/x.db", create=True)


@pytest.mark.parametrize("backend", ["sqlite", "duckdb"])
def test_no_store_is_made_in_a_database_of_something_else(backend: str, tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    other: Any = pysqlite3 if backend == "sqlite" else duckdb
    connection = other.connect(str(path))
    connection.execute("CREATE TABLE bookmark (url VARCHAR)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program's database"):
        Store.open(f"{backend}:///{path}", create=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("backend", ["sqlite", "duckdb"])
def test_a_file_that_is_no_database_is_one_line(backend: str, tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.write_text("instruction,output\n" * 1000)
    with pytest.raises(StoreError) as raised:
        Store.open(f"{backend}:///{path}", create=True)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_processes_that_make_one_store_at_once_agree(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    with process("create", url) as one, process("create", url) as two, process("create", url) as three:
        for running in (one, two, three):
            assert heard(running) == ["ready"]
        for running in (one, two, three):
            go_on(running)
        assert [heard(running) for running in (one, two, three)] == [["done", "0"]] * 3


# --- writing --------------------------------------------------------------------------------------


def test_a_transaction_is_whole_or_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError, match="power"), store.write() as conn:
        store.insert(conn, [SampleRow("a", "x", "", "y", "")])
        replace_places(store, conn, "d", stores.places([stores.texts(1)]))
        raise RuntimeError("power")
    assert [counted(store, table) for table in ("sample", "variant", "place", "dataset")] == [0] * 4
    stores.add_samples(store, [stores.texts(1)])  # and the connection is still good
    assert counted(store, "sample") == 1


def test_insert_counts_what_is_new_and_keeps_what_is_there(store: Store) -> None:
    with store.write() as conn:
        assert store.insert(conn, [SampleRow("a", "x", "", "y", "1"), SampleRow("b", "x", "", "y", "1")]) == 2
        assert store.insert(conn, [SampleRow("b", "other", "", "y", "2"), SampleRow("c", "x", "", "y", "2")]) == 1
        assert store.insert(conn, iter([SampleRow("d", "x", "", "y", ""), SampleRow("d", "x", "", "y", "")])) == 1
        assert store.insert(conn, []) == 0
        many = [SampleRow(f"{i}", "x", "", "y", "") for i in range(12_345)]
        assert store.insert(conn, many) == 12_345
        assert store.insert(conn, many[1000:2000]) == 0
    assert store.rows("SELECT instruction FROM sample WHERE sample_id = 'b'")[0][0] == "x"


def test_texts_come_back_as_they_went_in(store: Store) -> None:
    odd = [
        "",
        " ",
        "\t\n\r\n",
        "naïve ☃ 𝕏 👩‍🚀",
        "e\u0301",
        "a:b $c ? %s {x}",
        "'\"`;--",
        "\u2028\ufeff",
        "x" * 200_000,
    ]
    stores.add_samples(store, [Texts(text, text, text) for text in odd])
    found = store.rows("""
        SELECT s.instruction, s.input, s.output FROM samples s
        JOIN dataset_samples d ON d.sample_id = s.sample_id ORDER BY d.position
    """)
    assert [tuple(row) for row in found] == [(text,) * 3 for text in odd]
    assert verify.check(store).findings == []


def test_sqlite_refuses_a_row_that_points_nowhere(sqlite_url: str) -> None:
    with Store.open(sqlite_url) as store:
        with pytest.raises(StoreError, match="FOREIGN KEY"):
            add_facts(store, stores.losses("no such variant"))
        assert counted(store, "loss") == 0


@pytest.mark.long
def test_verify_finds_what_is_wrong(store: Store) -> None:
    stores.register(store)
    stores.add_samples(store, [stores.texts(1), stores.texts(2)])
    assert verify.check(store).findings == []
    with store.write() as conn:
        if store.backend.name == "sqlite":
            conn.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        conn.exec_driver_sql("UPDATE sample SET output = 'forged' WHERE substr(output, 1, 1) = '1'")
    found = verify.check(store).findings
    assert len(found) == 1 and "its digest does not match" in found[0]
    with store.write() as conn:  # as a row from before revision 0005, which has none
        if store.backend.name == "sqlite":
            conn.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        conn.exec_driver_sql("UPDATE sample SET digest = NULL")
    found = verify.check(store).findings
    assert len(found) == 1 and "does not match its content" in found[0]


@pytest.mark.long
@pytest.mark.parametrize("store_url", BACKENDS, indirect=True)  # elsewhere nobody can leave foreign keys out
def test_verify_finds_broken_references(store_url: str) -> None:
    with Store.open(store_url) as store:
        stores.register(store)
        ids = stores.add_samples(store, [stores.texts(1)])
        origin = store.rows("SELECT variant_id FROM variant WHERE sample_id = :s", s=ids[0])[0][0]
        add_facts(store, stores.losses(origin))
    path = parse_url(store_url)[1]
    other: Any = pysqlite3 if store_url.startswith("sqlite") else duckdb  # with foreign keys off, as a user's tool has
    connection = other.connect(str(path))
    connection.execute("DELETE FROM student")
    connection.commit()
    connection.close()
    with Store.open(store_url) as store:
        assert any("student" in line for line in verify.check(store).findings)


# --- datasets -------------------------------------------------------------------------------------

A, B, C = (stores.texts(word) for word in "ABC")


def replaced(store: Store, *rows: tuple[int, Texts]) -> dict[str, int]:
    with store.write() as conn:
        return replace_places(store, conn, "d", [Place(position, texts) for position, texts in rows])


def open_places(store: Store) -> list[tuple[int, str]]:
    found = store.rows("SELECT position, sample_id FROM dataset_samples WHERE dataset = 'd' ORDER BY position")
    return [(row[0], row[1]) for row in found]


def test_duplicates_are_one_sample_in_two_places(store: Store) -> None:
    assert replaced(store, (0, A), (1, B), (2, A)) == {
        "added": 2,
        "present": 1,
        "places_new": 3,
        "places_closed": 0,
        "left": 0,
    }
    assert open_places(store) == [(0, sample_id(A)), (1, sample_id(B)), (2, sample_id(A))]
    assert counted(store, "variant") == 2
    assert store.rows("SELECT kind, variant_id FROM variant WHERE sample_id = :s", s=sample_id(A))[0] == (
        "origin",
        variant_id(sample_id(A), Kind.ORIGIN, A),
    )


def test_the_same_file_again_changes_nothing(store: Store) -> None:
    replaced(store, (0, A), (1, B))
    assert replaced(store, (0, A), (1, B)) == {"added": 0, "present": 2, "places_new": 0, "places_closed": 0, "left": 0}
    assert counted(store, "place") == 2


def test_a_changed_file_closes_places_and_keeps_samples(store: Store) -> None:
    replaced(store, (0, A), (1, B), (2, A))
    assert replaced(store, (0, A), (1, C)) == {"added": 1, "present": 1, "places_new": 1, "places_closed": 2, "left": 1}
    assert open_places(store) == [(0, sample_id(A)), (1, sample_id(C))]
    assert counted(store, "sample") == 3 and counted(store, "place") == 4


def test_a_place_goes_there_and_back_again(store: Store) -> None:
    for texts in (A, B, A, B, A):
        replaced(store, (0, texts))
        assert open_places(store) == [(0, sample_id(texts))]
    assert counted(store, "place") == 5 and counted(store, "closing") == 4
    assert replaced(store)["places_closed"] == 1
    assert open_places(store) == []
    assert replaced(store, (0, A))["places_new"] == 1
    assert open_places(store) == [(0, sample_id(A))]


def test_positions_keep_their_gaps(store: Store) -> None:
    replaced(store, (3, A), (7, B))
    assert open_places(store) == [(3, sample_id(A)), (7, sample_id(B))]
    replaced(store, (3, A), (5, B), (7, B))
    assert open_places(store) == [(3, sample_id(A)), (5, sample_id(B)), (7, sample_id(B))]


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.lists(st.dictionaries(st.integers(0, 6), st.sampled_from("ABC"), max_size=7), min_size=1, max_size=5))
def test_places_follow_any_history_of_a_file(store: Store, files: list[dict[int, str]]) -> None:
    # Each example goes on from where the last one left the dataset, which is one more history.
    for file in files:
        rows = [(position, stores.texts(word)) for position, word in sorted(file.items())]
        before = dict(open_places(store))
        told = replaced(store, *rows)
        after = {position: sample_id(texts) for position, texts in rows}
        assert dict(open_places(store)) == after
        assert told["places_closed"] == sum(after.get(position) != sample for position, sample in before.items())
        assert told["places_new"] == sum(before.get(position) != sample for position, sample in after.items())
        assert told["left"] == len(set(before.values()) - set(after.values()))


@pytest.mark.long
def test_large_files_go_in_by_batches(store: Store) -> None:
    many = [stores.texts(i) for i in range(6_001)]
    ids = stores.add_samples(store, [*many, many[0]])
    assert len(ids) == 6_002 and ids[0] == ids[-1] and counted(store, "sample") == 6_001
    assert sum(len(page) for page in iter_places(store, page=1000)) == 6_002
    assert [page[0] for page in iter_places(store, page=1000)] == ids[::1000]


# --- identities -----------------------------------------------------------------------------------


def view_rows(store: Store, view: str) -> list[dict[str, Any]]:
    """Return a view's rows in an order of their own, without moments and random ids."""
    with store.read() as conn:
        found = [dict(row) for row in conn.exec_driver_sql(f"SELECT * FROM {view}").mappings()]
    for row in found:
        for name in ("created_at", "since", "attempt_id"):
            row.pop(name, None)
    return sorted(found, key=lambda row: [(row[name] is None, str(row[name])) for name in sorted(row)])


@pytest.mark.long
def test_both_backends_show_the_same(tmp_path: Path, empty_stores: dict[str, Path]) -> None:
    shown = {}
    for backend, empty in empty_stores.items():
        path = tmp_path / backend
        shutil.copyfile(empty, path)
        with Store.open(f"{backend}:///{path}") as store:
            stores.fill(store)
            shown[backend] = {view: view_rows(store, view) for view in stores.VIEWS}
            assert verify.check(store).findings == []
    for view in stores.VIEWS:
        one, other = shown["sqlite"][view], shown["duckdb"][view]
        assert one, f"{view} is empty"
        assert [list(row) for row in one] == [list(row) for row in other], view
        for left, right in zip(one, other, strict=True):
            assert alike(left.values(), right.values()), f"{view}: {left} and {right}"


def test_no_view_is_left_out(store: Store) -> None:
    catalogue = {
        "sqlite": "SELECT name FROM sqlite_master WHERE type = 'view'",
        "duckdb": "SELECT view_name FROM duckdb_views() WHERE NOT internal",
        "postgresql": "SELECT viewname FROM pg_views WHERE schemaname = current_schema()",
    }
    found = {row[0] for row in store.rows(catalogue[store.backend.name])}
    assert found == {*stores.VIEWS, *stores.EMPTY_VIEWS}


def test_scores_are_ratios_of_means(store: Store) -> None:
    stores.fill(store)
    row = store.rows("SELECT * FROM scores WHERE kind = 'origin' ORDER BY variant_id")[0]
    means = {stat: 2.0 * (1 + i / 10) / 4 for i, stat in enumerate(Stat)}
    for stat, mean in means.items():
        assert getattr(row, f"loss_{stat}") == pytest.approx(mean)
        assert getattr(row, f"ppl_{stat}") == pytest.approx(math.exp(mean))
    assert row.ifd_ppl == pytest.approx(math.exp(means[Stat.A_CONDITION]) / math.exp(means[Stat.A_DIRECT]))
    assert row.rifd_ppl == pytest.approx(math.exp(means[Stat.Q_CONDITION]) / math.exp(means[Stat.Q_DIRECT]))
    assert row.ifd_loss == pytest.approx(means[Stat.A_CONDITION] / means[Stat.A_DIRECT])
    assert row.rifd_loss == pytest.approx(means[Stat.Q_CONDITION] / means[Stat.Q_DIRECT])


def test_a_statistic_without_a_value_makes_no_ratio(store: Store) -> None:
    stores.register(store)
    stores.add_samples(store, [stores.texts(1), stores.texts(2)])
    first, second = (row[0] for row in store.rows("SELECT variant_id FROM variant ORDER BY variant_id"))
    add_facts(store, [row._replace(loss_sum=None, n_tokens=0, status="empty") for row in stores.losses(first)])
    add_facts(store, [row for row in stores.losses(second) if row.stat != Stat.A_DIRECT])
    found = {row.variant_id: row for row in store.rows("SELECT * FROM scores")}
    assert (found[first].ppl_A_direct, found[first].ifd_ppl, found[first].rifd_ppl) == (None, None, None)
    assert found[second].ifd_ppl is None and found[second].rifd_ppl is not None


def test_a_loss_too_large_for_a_perplexity_has_none_and_is_no_error(store: Store) -> None:
    stores.register(store)
    stores.add_samples(store, [stores.texts(1)])
    variant = store.rows("SELECT variant_id FROM variant")[0][0]
    add_facts(store, stores.losses(variant, value=10_000.0, tokens=1))
    row = store.rows("SELECT ppl_A_direct, loss_A_direct, ifd_ppl FROM scores")[0]
    assert tuple(row) == (None, None, None)


def test_names_move_and_what_they_meant_stays(store: Store) -> None:
    stores.register(store)
    stores.add_samples(store, [stores.texts(1)])
    origin = store.rows("SELECT variant_id FROM variant")[0][0]
    add_facts(store, stores.losses(origin))
    newer = "57d000000002"
    with store.write() as conn:
        store.insert(conn, [stores.student_row(newer, "7b", revision="def", max_length=1024)])
        store.ensure_name(conn, "student", "7b", newer)
    add_facts(store, stores.losses(origin, newer, value=3.0))
    assert {row[0] for row in store.rows("SELECT student FROM students")} == {"7b", "7b@57d00000"}
    assert store.find_name("student", "7b") == newer and store.find_name("student", "13b") is None
    sql = "SELECT student, loss_Q_direct FROM scores ORDER BY student"
    assert [tuple(row) for row in store.rows(sql)] == [("7b", 0.75), ("7b@57d00000", 0.5)]
    with store.write() as conn:
        store.ensure_name(conn, "student", "7b", stores.STUDENT)  # and back: nothing is computed again
    assert [row[1] for row in store.rows(sql)] == [0.5, 0.75]
    assert counted(store, "loss") == 8


def test_a_name_given_many_times_in_a_row_means_the_last(store: Store) -> None:
    with store.write() as conn:
        for i in range(50):
            store.ensure_name(conn, "student", "7b", f"{i:012}")
    assert store.find_name("student", "7b") == f"{49:012}"
    assert counted(store, "name") == 50


def test_a_name_moves_though_the_clock_was_set_back(store: Store) -> None:
    with store.write() as conn:
        store.insert(conn, [NameRow("student", "7b", "2999-12-31T23:59:59.999999Z", "old")])
        store.ensure_name(conn, "student", "7b", "new")
        store.ensure_name(conn, "student", "7b", "newer")
    assert store.find_name("student", "7b") == "newer"


def test_a_new_prompt_makes_old_variants_superseded(store: Store) -> None:
    stores.register(store)
    ids = stores.add_samples(store, [stores.texts("one"), stores.texts("two", with_input=True)])
    stores.answer_all(store, stores.wanted(), ids)
    sql = "SELECT kind, min(is_current), max(is_current) FROM variants GROUP BY kind ORDER BY kind"
    assert {row[0] for row in store.rows(sql)} == set(Kind)
    assert {row[1:] for row in store.rows(sql)} == {(1, 1)}
    with store.write() as conn:
        store.insert(conn, [PromptRow("newprompt", Step.COMPRESS.value, "anew", "file", utc_now())])
        store.ensure_name(conn, "prompt", Step.COMPRESS.value, "newprompt")
    found = {row[0]: (row[1], row[2]) for row in store.rows(sql)}
    # What came of the compressed text of the sample with an input is superseded along with it.
    assert found == {
        Kind.ORIGIN: (1, 1),
        Kind.COMPRESSED: (0, 0),
        Kind.REFLECT_INSTRUCTION: (0, 1),
        Kind.REFLECT_RESPONSE: (1, 1),
        Kind.REFLECT_BOTH: (0, 1),
    }


# --- pending questions ----------------------------------------------------------------------------

OUTCOMES = ("ok", "ok", "ok", "unusable", "failed", "error")
_fresh = count()


def modelled(texts: Texts, steps: tuple[Step, ...], outcomes: dict[tuple[str, str], str]) -> set[tuple[str, str]]:
    """Return the questions (step, kind read) that a sample gives rise to, by the methods' table alone."""
    asked = set()

    def made(step: Step, kind: Kind) -> bool:
        asked.add((step.value, kind.value))
        return outcomes[step, kind] == "ok"

    if Step.REFLECT_RESPONSE in steps:
        made(Step.REFLECT_RESPONSE, Kind.ORIGIN)
    source: Kind | None = Kind.ORIGIN
    if Step.COMPRESS in steps and texts.input:
        source = Kind.COMPRESSED if made(Step.COMPRESS, Kind.ORIGIN) else None
    harder = Step.REFLECT_INSTRUCTION in steps and source is not None and made(Step.REFLECT_INSTRUCTION, source)
    if Step.REFLECT_RESPONSE in steps and harder:
        made(Step.REFLECT_RESPONSE, Kind.REFLECT_INSTRUCTION)
    return asked


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    with_input=st.lists(st.booleans(), min_size=1, max_size=4),
    steps=st.sets(st.sampled_from(stores.ALL_STEPS), min_size=1),
    draw=st.data(),
)
def test_every_question_is_asked_until_answered_and_no_longer(
    store: Store, with_input: list[bool], steps: set[Step], draw: st.DataObject
) -> None:
    # Each example has samples of its own, so one store serves all of them.
    if not store.find_name("teacher", "gpt"):
        stores.register(store)
    samples = [stores.texts(next(_fresh), with_input=flag) for flag in with_input]
    ids = stores.add_samples(store, samples, dataset=f"d{next(_fresh)}")
    chosen = tuple(step for step in Step if step in steps)
    want = stores.wanted(chosen, run_started=utc_now(), max_attempts=3)
    asked: dict[tuple[str, str, str], list[str]] = {}
    while questions := pending_questions(store, want, ids):
        # A database gives rows in any order; the drawing must not hang on it.
        in_order = sorted(questions, key=lambda row: (ids.index(row.sample_id), row.step, row.kind))
        for question in draw.draw(st.permutations(in_order))[:3]:
            history = asked.setdefault((question.sample_id, question.step, question.kind), [])
            outcome = draw.draw(st.sampled_from(OUTCOMES))
            history.append(outcome)
            assert set(history[:-1]) <= {"error"} and len(history) <= want.max_attempts
            status = "ok" if outcome == "unusable" else outcome
            text_id = stores.reply(store, question, status, number=len(history))
            if status == "ok":
                stores.read(store, question, text_id, usable=outcome == "ok")
    for sample, texts in zip(ids, samples, strict=True):
        outcomes = {(Step(key[1]), Kind(key[2])): history[-1] for key, history in asked.items() if key[0] == sample}
        expected = modelled(texts, chosen, _or_fail(outcomes))
        assert {(step, kind) for key, step, kind in asked if key == sample} == expected


def _or_fail(outcomes: dict[Any, str]) -> Any:
    """Return outcomes in which a question that was never asked counts as failed, so that the model goes on to say so."""

    class WithDefault(dict[Any, str]):
        def __missing__(self, key: object) -> str:
            return "never asked"

    return WithDefault(outcomes)


def test_without_a_compress_step_the_input_is_shown_along(store: Store) -> None:
    stores.register(store)
    ids = stores.add_samples(store, [stores.texts(1, with_input=True)])
    want = stores.wanted((Step.REFLECT_INSTRUCTION,))
    (question,) = pending_questions(store, want, ids)
    assert (question.step, question.kind, question.input) == ("reflect_instruction", "origin", "About 1")


def test_errors_are_asked_again_in_the_next_run_and_failures_on_request(store: Store) -> None:
    stores.register(store)
    ids = stores.add_samples(store, [stores.texts(1), stores.texts(2)])
    want = stores.wanted((Step.REFLECT_RESPONSE,), run_started=utc_now(), max_attempts=2)
    first, second = pending_questions(store, want, ids)
    stores.reply(store, first, "failed")
    for number in (1, 2):
        stores.reply(store, second, "error", number=number)
    assert pending_questions(store, want, ids) == []
    assert count_failed(store, want) == 1
    next_run = want.started(utc_now())
    assert [row.variant_id for row in pending_questions(store, next_run, ids)] == [second.variant_id]
    retried = next_run.retrying(utc_now())
    assert {row.variant_id for row in pending_questions(store, retried, ids)} == {first.variant_id, second.variant_id}
    stores.reply(store, first, "failed", number=2)  # failed again, after the moment of the request
    assert [row.variant_id for row in pending_questions(store, retried, ids)] == [second.variant_id]


def test_questions_come_in_the_samples_order_and_only_for_open_places(store: Store) -> None:
    stores.register(store)
    ids = stores.add_samples(store, [stores.texts(i) for i in range(50)])
    want = stores.wanted((Step.REFLECT_RESPONSE,))
    assert [row.sample_id for row in pending_questions(store, want, ids[::-1])] == ids[::-1]
    assert pending_questions(store, want, []) == []
    asked, characters = count_questions(store, want)["reflect_response"]
    assert asked == 50
    texts = store.rows("SELECT sum(length(instruction) + length(input) + length(output)) FROM sample")[0][0]
    assert characters == texts
    stores.add_samples(store, [stores.texts(0)])
    assert count_questions(store, want)["reflect_response"][0] == 1
    assert [len(page) for page in iter_places(store)] == [1]


def test_another_extractor_reads_again_and_asks_nothing(store: Store) -> None:
    stores.register(store)
    ids = stores.add_samples(store, [stores.texts(1)])
    want = stores.wanted((Step.REFLECT_RESPONSE,))
    (question,) = pending_questions(store, want, ids)
    stores.read(store, question, stores.reply(store, question), usable=False)
    version = stores.EXTRACTOR + 1
    better = dict.fromkeys(Step, version)
    assert count_unread(store, stores.VERSIONS) == 0 and count_unread(store, better) == 1
    newer = pending.Wanted(want.teacher_id, want.prompts, versions=better)
    assert pending_questions(store, newer, ids) == []
    (unread,) = pending_readings(store, better)
    assert unread.step == "reflect_response" and unread.variant_id == question.variant_id
    stores.read(store, unread, unread.text_id, extractor=version)
    assert count_unread(store, better) == 0
    with store.write() as conn:
        store.ensure_name(conn, "extractor", "extractor", str(version))
    rows = store.rows("SELECT extractor, status, is_current FROM extractions ORDER BY extractor")
    assert [tuple(row) for row in rows] == [(stores.EXTRACTOR, "unusable", 0), (version, "ok", 1)]
    assert counted(store, "variants WHERE is_current = 1") == 2


# --- pending scores -------------------------------------------------------------------------------

STATS = tuple(stat.value for stat in Stat)


def test_scores_are_missing_until_each_statistic_is_there(store: Store) -> None:
    stores.register(store)
    ids = stores.add_samples(store, [stores.texts(1), stores.texts(2)])
    missing = stores.pending_scores(store, None, stores.STUDENT, STATS, ids)
    assert {(row.kind, row.present) for row in missing} == {("origin", 0)} and len(missing) == 2
    characters = sum(len(row.instruction) + len(row.input) + len(row.output) for row in missing)
    assert count_scores(store, None, [(stores.STUDENT, STATS)])[0] == (2, 8, characters)
    add_facts(store, stores.losses(missing[0].variant_id)[:3])
    assert count_scores(store, None, [(stores.STUDENT, STATS)])[0][:2] == (2, 5)
    found = {row.variant_id: row.present for row in stores.pending_scores(store, None, stores.STUDENT, STATS, ids)}
    assert found == {missing[0].variant_id: 3, missing[1].variant_id: 0}
    assert stores.present_stats(store, stores.STUDENT, list(found)) == {
        (missing[0].variant_id, stat) for stat in STATS[:3]
    }
    for row in missing:
        add_facts(store, stores.losses(row.variant_id))
    assert stores.pending_scores(store, None, stores.STUDENT, STATS, ids) == []
    assert count_scores(store, None, [(stores.STUDENT, STATS)])[0] == (0, 0, 0)
    assert count_scores(store, None, [("another", STATS)])[0][:2] == (2, 8)  # a third student adds only its own
    assert stores.pending_scores(store, None, stores.STUDENT, STATS, []) == []


@pytest.mark.long
def test_a_page_may_hold_thousands_of_samples(store: Store) -> None:
    """Several databases limit how many SELECTs one statement may join, or how many values it may bind."""
    stores.register(store)
    ids = stores.add_samples(store, [stores.texts(i) for i in range(2_000)])
    want = stores.wanted()
    assert [len(page) for page in iter_places(store, page=2_000)] == [2_000]
    for what in (None, want):
        rows = stores.pending_scores(store, what, stores.STUDENT, STATS, ids)
        assert len(rows) == 2_000
    assert stores.present_stats(store, stores.STUDENT, [row.variant_id for row in rows] * 4) == set()
    assert known_pairs(store, stores.STUDENT, [row.variant_id for row in rows]) == {}
    asked = pending_questions(store, want, ids)
    assert len(asked) == 4_000  # what became of the instruction, and of the response
    assert len(claim(store, want, start_worker(store), asked[:600])) == 600


def test_only_wanted_variants_are_scored(store: Store) -> None:
    stores.register(store)
    ids = stores.add_samples(store, [stores.texts("one"), stores.texts("two", with_input=True)])
    want = stores.wanted()
    stores.answer_all(store, want, ids)
    kinds = [row.kind for row in stores.pending_scores(store, want, stores.STUDENT, STATS, ids)]
    made = [each for each in scored_kinds() if each not in {transform.kind for transform in transforms().values()}]
    assert sorted(kinds) == sorted(made * 2)
    assert count_scores(store, want, [(stores.STUDENT, STATS)])[0][0] == 8
    other = pending.Wanted("anotherteach", want.prompts)
    assert [row.kind for row in stores.pending_scores(store, other, stores.STUDENT, STATS, ids)] == ["origin", "origin"]


def test_known_pairs_are_found_in_any_number(store: Store) -> None:
    stores.register(store)
    stores.add_samples(store, [stores.texts(i) for i in range(300)])
    for row in store.rows("SELECT variant_id FROM variant WHERE variant_id < '4'"):
        add_facts(store, stores.losses(row[0]))
    pairs = [row[0] for row in store.rows("SELECT pair_id FROM loss")]
    found = known_pairs(store, stores.STUDENT, [*pairs, *(f"unknown{i}" for i in range(2000))])
    assert set(found) == set(pairs) and {tokens for _, tokens in found.values()} == {4}
    assert known_pairs(store, stores.STUDENT, []) == {} and known_pairs(store, "another", pairs) == {}


# DuckDB has no triggers, so its views take no DELETE: there the table is named.
@pytest.mark.parametrize(
    ("store_url", "relation"), [("sqlite", "losses"), ("sqlite", "loss"), ("duckdb", "loss")], indirect=["store_url"]
)
def test_a_statistic_removed_by_hand_is_missing_again(store_url: str, relation: str) -> None:
    with Store.open(store_url) as store:
        stores.fill(store)
        want = stores.wanted()
        assert count_scores(store, want, [(stores.STUDENT, STATS)])[0] == (0, 0, 0)
        one = store.rows("SELECT variant_id FROM loss ORDER BY variant_id")[0][0]
    path = parse_url(store_url)[1]
    # As users do it: with a tool of their own, which knows none of our SQL functions.
    other: Any = pysqlite3 if store_url.startswith("sqlite") else duckdb
    connection = other.connect(str(path))
    connection.execute(f"DELETE FROM {relation} WHERE variant_id = ? AND stat = 'A_direct'", [one])
    connection.commit()
    connection.close()
    with Store.open(store_url) as store:
        assert count_scores(store, want, [(stores.STUDENT, STATS)])[0][:2] == (1, 1)


# --- claims and workers ---------------------------------------------------------------------------


def claimed_by(*running: Forked) -> list[list[tuple[str, str]]]:
    """Let processes claim at once and return what each one claimed."""
    found: list[list[tuple[str, str]]] = [[] for _ in running]

    def listen(index: int) -> None:
        while (words := heard(running[index])) and words[0] == "claimed":
            found[index].append((words[1], words[2]))

    for one in running:
        assert heard(one) == ["ready"]
    for one in running:
        go_on(one)
    threads = [threading.Thread(target=listen, args=(index,)) for index in range(len(running))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_two_processes_never_claim_the_same_question(sqlite_url: str) -> None:
    with Store.open(sqlite_url) as store:
        stores.register(store)
        stores.add_samples(store, [stores.texts(i) for i in range(150)])
    with process("claim_in_groups", sqlite_url, 5) as one, process("claim_in_groups", sqlite_url, 7) as two:
        ours, theirs = claimed_by(one, two)
        every = ours + theirs
        assert len(every) == len(set(every)) == 300  # instruction and response step of each sample
        with Store.open(sqlite_url) as store:
            assert counted(store, "attempt") == 300
            assert {row[0] for row in store.rows("SELECT status FROM teacher_texts")} == {"sent"}
    assert ours and theirs, "one process did all the work, so this run showed nothing"


def test_a_dead_worker_s_claims_are_taken_over_and_a_live_one_s_are_not(sqlite_url: str) -> None:
    with Store.open(sqlite_url) as store:
        stores.register(store)
        ids = stores.add_samples(store, [stores.texts(1), stores.texts(2)])
        want = stores.wanted()
        with process("claim_in_groups", sqlite_url, 10) as other:
            assert len(claimed_by(other)[0]) == 4
            worker = start_worker(store)
            beat(store, worker)
            assert pending_questions(store, want, ids) == []
        other.wait()
        assert pending_questions(store, want, ids) == []  # nobody has looked after the dead yet
        beat(store, worker)
        asked = pending_questions(store, want, ids)
        assert {row.attempts for row in asked} == {1}
        assert {row[0] for row in store.rows("SELECT status FROM teacher_texts")} == {"lost"}
        taken = claim(store, want, worker, asked)
        assert {attempt.number for attempt, _ in taken} == {2} and len(taken) == 4
        assert claim(store, want, worker, asked) == []
        end_worker(store, worker)  # in order, but without replies: lost too
        assert len(pending_questions(store, want, ids)) == 4


def test_a_worker_that_died_at_once_is_seen_by_the_next(store_url: str) -> None:
    with Store.open(store_url) as store:
        stores.register(store)
        ids = stores.add_samples(store, [stores.texts(1)])
    with process("vanish", store_url) as other:
        assert heard(other) == ["claimed", "2"]
        other.wait()
    with Store.open(store_url) as store:
        assert pending_questions(store, stores.wanted(), ids) == []
        start_worker(store)
        assert len(pending_questions(store, stores.wanted(), ids)) == 2


def test_a_worker_on_another_machine_lives_by_its_heartbeat(store: Store) -> None:
    stores.register(store)
    ids = stores.add_samples(store, [stores.texts(1)])
    want = stores.wanted()
    rows = [
        WorkerRow("fresh", "elsewhere", 1, "", utc_now(), utc_now()),
        WorkerRow("silent", "elsewhere", 1, "", utc_now(), "2026-01-01T00:00:00.000000Z"),
    ]
    with store.write() as conn:
        store.insert(conn, rows)
    asked = pending_questions(store, want, ids)
    claim(store, want, "fresh", asked[:1])
    claim(store, want, "silent", asked[1:])
    start_worker(store)
    assert [row.variant_id for row in pending_questions(store, want, ids)] == [row.variant_id for row in asked[1:]]


def test_a_process_id_that_is_used_again_is_not_the_worker(store: Store) -> None:
    with store.write() as conn:
        mine = WorkerRow("recycled", str(this_host()), os.getpid(), "12345", utc_now(), utc_now())
        store.insert(conn, [mine])
    start_worker(store)
    ended = {row[0]: row[1] is not None for row in store.rows("SELECT worker_id, ended_at FROM worker")}
    assert ended.pop("recycled") and list(ended.values()) == [False]


# --- SQLite: durability and locks -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "has_bug"),
    [
        ((3, 6, 23), False), ((3, 7, 0), True), ((3, 40, 1), True), ((3, 44, 5), True), ((3, 44, 6), False),
        ((3, 44, 9), False), ((3, 45, 0), True), ((3, 50, 6), True), ((3, 50, 7), False), ((3, 50, 12), False),
        ((3, 51, 0), True), ((3, 51, 2), True), ((3, 51, 3), False), ((3, 52, 0), False), ((4, 0, 0), False),
    ],
)  # fmt: skip
def test_versions_with_the_wal_reset_bug(version: tuple[int, ...], has_bug: bool) -> None:
    assert has_wal_reset_bug(version) is has_bug


def pragma(conn: Any, name: str) -> Any:
    return conn.exec_driver_sql(f"PRAGMA {name}").scalar_one()


@pytest.mark.parametrize("library", [driver, sqlite3], ids=["bundled", "interpreter's"])
def test_settings_are_really_in_force(sqlite_url: str, library: Any) -> None:
    backend = SQLite(parse_url(sqlite_url)[1], library)
    with Store(backend) as store:
        with store.write() as conn:
            wal = not has_wal_reset_bug(library.sqlite_version_info)
            assert pragma(conn, "journal_mode") == ("wal" if wal else "delete")
            assert pragma(conn, "synchronous") == (2 if wal else 3)  # FULL, EXTRA
            assert pragma(conn, "foreign_keys") == 1
        with store.read() as conn:
            assert pragma(conn, "query_only") == 1
        with pytest.raises(StoreError, match="cannot write"), store.read() as conn:
            conn.exec_driver_sql("DELETE FROM sample")


def test_the_bundled_library_is_free_of_the_bug() -> None:
    assert driver is pysqlite3 and not has_wal_reset_bug(pysqlite3.sqlite_version_info)


@pytest.mark.long
def test_the_whole_job_runs_on_the_interpreter_s_library_too(sqlite_url: str) -> None:
    with Store(SQLite(parse_url(sqlite_url)[1], sqlite3)) as store:
        stores.fill(store)
        assert verify.check(store).findings == [] and len(store.rows("SELECT * FROM scores")) == 8
        with store.backend.sandbox() as sandbox:
            assert list(sandbox.execute("SELECT count(*), median(ifd_ppl) > 1 FROM scores")[1]) == [(8, 1)]
            with pytest.raises(QueryError):
                sandbox.execute("DELETE FROM loss")


def test_readers_see_one_state_and_never_block_the_writer(store: Store) -> None:
    stores.add_samples(store, [stores.texts(1)])
    sql = "SELECT count(*) FROM sample"
    with store.read() as reader, store.read() as idle:
        assert reader.exec_driver_sql(sql).scalar_one() == 1
        stores.add_samples(store, [stores.texts(1), stores.texts(2)])  # fails where a reader holds it up
        assert reader.exec_driver_sql(sql).scalar_one() == 1
        assert idle.exec_driver_sql(sql).scalar_one() == 2
    assert counted(store, "sample") == 2


def test_a_writer_waits_for_another_process(sqlite_url: str) -> None:
    with process("hold", sqlite_url) as other, Store.open(sqlite_url) as store:
        assert heard(other) == ["holding"]
        assert counted(store, "sample") == 0  # a reader does not wait
        written = threading.Event()

        def write() -> None:
            stores.add_samples(store, [stores.texts(1)])
            written.set()

        writer = threading.Thread(target=write)
        writer.start()
        assert not written.wait(0.5)
        go_on(other)
        writer.join()
        assert written.is_set() and counted(store, "sample") == 1


WRITERS, TRANSACTIONS = 4, 150


@pytest.mark.long
def test_writing_processes_lose_no_row_and_are_never_locked_out(sqlite_url: str) -> None:
    running = [process("write", sqlite_url, writer, TRANSACTIONS) for writer in range(WRITERS)]
    with running[0] as a, running[1] as b, running[2] as c, running[3] as d:
        for writer in (a, b, c, d):
            assert heard(writer) == ["ready"]
        for writer in (a, b, c, d):
            go_on(writer)
        assert [heard(writer) for writer in (a, b, c, d)] == [["done"]] * WRITERS
    with Store.open(sqlite_url) as store:
        assert counted(store, "sample") == WRITERS * TRANSACTIONS * 4
        # Each transaction saw all that was committed before it began: counts rise by four, none twice.
        seen = sorted(int(row[0]) for row in store.rows("SELECT DISTINCT created_at FROM sample"))
        assert seen == list(range(0, WRITERS * TRANSACTIONS * 4, 4))


def killed_while_writing(url: str, writer: str, after_s: float) -> int:
    """Kill a writing process after a while; return how many of its groups it said were committed."""
    with process("write_on", url, writer) as running:
        assert heard(running) == ["0"]
        time.sleep(after_s)
        running.kill()
        assert running.stdout is not None
        return 1 + len(running.stdout.readlines())


def survives_kills(url: str, kills: int) -> int:
    """Kill writers at random moments; return the acknowledged rows, each of which was found again."""
    acknowledged = 0
    moments = random.Random(kills)
    for kill in range(kills):
        groups = killed_while_writing(url, f"w{kill}", moments.random() * 0.4)
        rows = sum(1 << (group % 7) for group in range(groups))
        with Store.open(url) as store:
            found = store.rows("SELECT sample_id FROM sample WHERE sample_id LIKE :w", w=f"w{kill}-%")
            there = {tuple(map(int, row[0].split("-")[1:])) for row in found}
            assert {(group, part) for group in range(groups) for part in range(1 << (group % 7))} <= there
            # The last group may be there without having been acknowledged, but then all of it.
            extra = {(group, part) for group, part in there if group >= groups}
            assert extra in (set(), {(groups, part) for part in range(1 << (groups % 7))})
            assert store.backend.damage() == []
        acknowledged += rows
    return acknowledged


@pytest.mark.long
def test_a_kill_loses_no_acknowledged_row(store_url: str) -> None:
    assert survives_kills(store_url, 2) > 0


@pytest.mark.slow
def test_many_kills_lose_no_acknowledged_row(store_url: str) -> None:
    print(f"\n{store_url.partition(':')[0]}: {survives_kills(store_url, 60):,} acknowledged rows, none lost")


def test_a_second_process_is_told_that_duckdb_lets_in_one(empty_stores: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"
    shutil.copyfile(empty_stores["duckdb"], path)
    with Store.open(f"duckdb:///{path}") as store:
        stores.add_samples(store, [stores.texts(1)])
        with process("look", f"duckdb:///{path}") as other:
            words = heard(other)
            assert words[0] == "refused" and "another process has" in " ".join(words) and str(path) in words
    with process("look", f"duckdb:///{path}") as other:
        assert heard(other) == ["rows", "1"]


# --- SQL functions --------------------------------------------------------------------------------

FLOATS = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 6))
FUNCTIONS = """
    SELECT median(x), quantile(x, 0.1), quantile(x, 0.5), quantile(x, 0.25), quantile(x, 0.9), quantile(x, 1.0),
        quantile(x, 0.0), stddev(x), avg(sqrt(abs(x))), avg(ln(abs(x) + 1)), avg(exp(x / 1e5)), corr(x, y)
    FROM t
"""


@pytest.mark.long
@settings(deadline=None, max_examples=60)
@given(rows=st.lists(st.tuples(st.none() | FLOATS, st.none() | FLOATS), min_size=1, max_size=40))
def test_sql_functions_mean_what_duckdb_means(rows: list[tuple[float | None, float | None]]) -> None:
    pairs = [(x, y) for x, y in rows if x is not None and y is not None]
    assume(not pairs or all(max(values) - min(values) > 1e-3 for values in zip(*pairs, strict=True)))
    ours, theirs = pysqlite3.connect(":memory:"), duckdb.connect()
    register_functions(ours)
    for connection in (ours, theirs):
        connection.execute("CREATE TABLE t (x DOUBLE, y DOUBLE)")
        connection.executemany("INSERT INTO t VALUES (?, ?)", rows)
    mine, expected = (connection.execute(FUNCTIONS).fetchone() for connection in (ours, theirs))
    ours.close()
    theirs.close()
    assert alike(mine, expected), f"{mine} and {expected}"


def test_sql_functions_of_nothing_are_null(store: Store) -> None:
    with store.sandbox() as sandbox:
        sql = "SELECT median(x), quantile(x, 0.5), stddev(x), corr(x, x) FROM (SELECT 1.0 AS x) t WHERE x > 1"
        [row] = sandbox.execute(sql)[1]
    assert tuple(row) == (None,) * 4
    assert store.rows("SELECT exp(NULL), ln(NULL), sqrt(NULL)")[0] == (None,) * 3


# --- upkeep ---------------------------------------------------------------------------------------


def test_tables_have_singular_names_and_text_keys() -> None:
    for table in metadata.sorted_tables:
        assert table.primary_key.columns, table.name
        assert not any(column.autoincrement is True for column in table.columns), table.name
