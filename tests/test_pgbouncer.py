"""A store behind pgbouncer in transaction mode: nothing is kept on a connection from one transaction to the next."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import postgres_server
import pytest
import scored_stores as scored
import stores
from bouncer import PROGRAM, Bouncer
from conftest import Cli
from sync_runs import disagreements, make_store, rows, run, target
from teacher_server import TeacherServer
from templates import drop, new_url
from test_server_upgrades import OLD, migrate_to

from recycledb.errors import QueryError
from recycledb.selection.query import query
from recycledb.store import Meaning, Store, leases, upgrade, verify
from recycledb.store.leases import Lease
from recycledb.store.questions import claim, pending_questions
from recycledb.store.workers import beat, listed, start_worker

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(postgres_server.binaries() is None, reason="no PostgreSQL: apt-get install postgresql"),
    pytest.mark.skipif(PROGRAM is None, reason="no pgbouncer: apt-get install pgbouncer"),
]


@pytest.fixture(scope="module")
def bouncer() -> Iterator[Bouncer]:
    """A pgbouncer before the test server."""
    with Bouncer(postgres_server.server()) as found:
        yield found


@pytest.fixture
def url(tmp_path: Path, bouncer: Bouncer) -> Iterator[str]:
    """The URL of an empty store."""
    made = new_url("postgresql", tmp_path)
    yield bouncer.through(made)
    drop(made)


def test_a_store_is_created_upgraded_and_checked(bouncer: Bouncer) -> None:
    server = postgres_server.server()
    new, old = server.create(), server.create()
    Store.open(bouncer.through(server.url(new)), create=True).close()
    migrate_to(server.url(old), OLD)
    upgrade(bouncer.through(server.url(old)))
    for name in (new, old):
        with Store.open(bouncer.through(server.url(name))) as store:
            assert verify.check(store).findings == []
        drop(server.url(name))


def test_claims_and_leases_are_had_once(url: str) -> None:
    with Store.open(url) as store:
        stores.register(store)
        samples = stores.add_samples(store, [stores.texts(i) for i in range(40)])
    claimed: list[tuple[str, str]] = []
    taken: list[Lease] = []

    def work() -> None:
        with Store.open(url) as store:
            worker = start_worker(store)
            asked = pending_questions(store, stores.wanted(), samples)
            for i in range(0, len(asked), 8):
                claimed.extend(
                    (row.variant_id, row.step) for _, row in claim(store, stores.wanted(), worker, asked[i : i + 8])
                )
            beat(store, worker)
            wanted = [Lease("score", "s", f"{i:x}") for i in range(16)]
            taken.extend(
                store.transact(lambda conn: leases.take(conn, worker, wanted, store.backend.now(conn)), locked=False)
            )
            assert {each["pid"] for each in listed(store)} and worker in {each["worker_id"] for each in listed(store)}

    threads = [threading.Thread(target=work) for _ in range(4)]  # more than the server's connections
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(claimed) == len(set(claimed)) > 40 and len(taken) == len(set(taken)) == 16


def test_queries_stream_stop_and_see_older_names(url: str, cli: Cli) -> None:
    with Store.open(url) as store:
        scored.two_students(store)
        with query(store, "SELECT n FROM generate_series(1, 5000) AS n") as found:
            assert [row[0] for row in found.rows] == list(range(1, 5_001))
        with pytest.raises(QueryError, match="time"), query(store, "SELECT pg_sleep(60)", timeout_s=0.3) as found:
            list(found.rows)
        for sql in ("DELETE FROM loss", r"SELECT E'\''; COMMIT; BEGIN; DELETE FROM loss; COMMIT; BEGIN; --'"):
            with pytest.raises(QueryError), query(store, sql) as found:
                list(found.rows)
        assert store.rows("SELECT count(*) FROM loss")[0][0] > 0
        [(students,)] = store.rows("SELECT count(*) FROM students")
    for _ in range(3):
        said = cli("--store", url, "query", "SELECT count(*) AS n FROM students", "--format", "json").stdout
        assert json.loads(said) == [{"n": students}]


def test_older_names_are_seen_within_one_transaction(url: str) -> None:
    """By temporary views, which are on one connection of the server and must be on no other's."""
    with Store.open(url) as store:
        scored.two_students(store)
        [(key,)] = store.rows("SELECT id FROM current_names WHERE kind = 'student' LIMIT 1")
        ended = threading.Event()

        def use() -> None:  # so that connections change hands
            with Store.open(url) as other:
                while not ended.is_set():
                    other.rows("SELECT count(*) FROM loss")

        threads = [threading.Thread(target=use) for _ in range(4)]
        for each in threads:
            each.start()
        seen = []
        for i in range(30):
            with store.sandbox(as_if=[Meaning("student", "another", key)] if i % 2 else ()) as sandbox:
                seen += list(sandbox.execute("SELECT count(*) FROM current_names WHERE name = 'another'")[1])
        ended.set()
        for each in threads:
            each.join()
        assert seen == [(0,), (1,)] * 15


def test_a_sync_agrees_with_the_teacher_s_log(tmp_path: Path, bouncer: Bouncer) -> None:
    made = make_store(tmp_path, 20, "postgresql")
    url = bouncer.through(made)
    with TeacherServer() as teacher:
        assert run(url, target(teacher.base_url)).complete
        assert disagreements(url, teacher.log) == []
        assert run(url, target(teacher.base_url)).idle
    assert rows(url, "SELECT * FROM lease") == []
    drop(made)
