"""A PostgreSQL server that goes away, clients that are killed or get no answer, and writers in opposite orders."""

import signal
import socket
import tempfile
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

import postgres_server
import pytest
import stores
from postgres_server import Server
from stores import STUDENT, loss_row
from sync_runs import disagreements, make_store, rows, run, sample, target
from teacher_server import TeacherServer
from templates import drop
from test_sharing import ask_and_kill
from test_sync_kills import kill_often

from recycledb.errors import AwayError
from recycledb.methods.ifd import Stat
from recycledb.store import Store
from recycledb.store.places import Place, replace_places
from recycledb.store.questions import claim, pending_questions
from recycledb.store.workers import start_worker

pytestmark = pytest.mark.skipif(postgres_server.binaries() is None, reason="no PostgreSQL: apt-get install postgresql")


# --- a server that goes away ------------------------------------------------------------------------------


def test_a_connection_that_the_server_ended_is_replaced(pg: Store, pg_url: str) -> None:
    stores.add_samples(pg, [stores.texts(1)])
    server, database = postgres_server.server(), pg_url.partition("@/")[2].partition("?")[0]
    with closing(server.connect()) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()",
            [database],
        )
    with pg.write() as conn:
        pg.insert(conn, [stores.student_row(STUDENT, "7b")])
    assert pg.rows("SELECT count(*) FROM student")[0][0] == 1


@pytest.mark.long
def test_a_transaction_is_tried_again_only_while_it_is_worth_it(own_server: Server) -> None:
    url = own_server.url(own_server.create())
    with Store.open(url, create=True, wait_s=0.5) as store:
        own_server.stop(signal.SIGQUIT)
        with pytest.raises(AwayError):
            store.transact(lambda conn: store.insert(conn, [stores.student_row(STUDENT, "7b")]))
        threading.Timer(0.3, own_server.start).start()
        store.backend.wait_s = 60.0
        assert store.transact(lambda conn: store.insert(conn, [stores.student_row(STUDENT, "7b")])) == 1


def restart_often(folder: Path, server: Server, restarts: int, samples: int) -> None:
    """Crash and start the server during one sync, which must end well with every reply."""
    name = server.create()
    url = server.url(name)
    Store.open(url, create=True).close()
    with Store.open(url) as store, store.write() as conn:
        replace_places(store, conn, "made-up", (Place(i, sample(i)) for i in range(samples)))
    ended = threading.Event()

    def crash() -> None:
        for _ in range(restarts):
            if ended.wait(1.0):
                return
            server.stop(signal.SIGQUIT)
            server.start()

    with TeacherServer(delay_s=0.05) as teacher:
        thread = threading.Thread(target=crash)
        thread.start()
        outcome = run(url, target(teacher.base_url, concurrency=8))
        ended.set()
        thread.join()
        assert disagreements(url, teacher.log) == []
    assert outcome.complete
    statuses = {row["status"] for row in rows(url, "SELECT DISTINCT status FROM teacher_texts")}
    assert statuses == {"ok"}


@pytest.mark.long
def test_a_server_that_restarts_in_mid_sync_costs_no_reply(own_server: Server, tmp_path: Path) -> None:
    restart_often(tmp_path, own_server, 3, 60)


@pytest.mark.slow
def test_ten_restarts_in_one_sync_cost_no_reply(own_server: Server, tmp_path: Path) -> None:
    restart_often(tmp_path, own_server, 10, 300)


@pytest.mark.long
def test_answers_that_arrive_while_the_server_is_away_do_not_time_out(own_server: Server) -> None:
    """It is away for three times as long as a request may take; what was in flight is answered meanwhile, and is not asked again."""
    url = own_server.url(own_server.create())
    Store.open(url, create=True).close()
    with Store.open(url) as store, store.write() as conn:
        replace_places(store, conn, "made-up", (Place(i, sample(i)) for i in range(20)))
    with TeacherServer(delay_s=0.3) as teacher:

        def leave() -> None:
            while len(teacher.log) < 12:
                time.sleep(0.01)
            own_server.stop(signal.SIGQUIT)
            time.sleep(3.0)
            own_server.start()

        thread = threading.Thread(target=leave)
        thread.start()
        outcome = run(url, target(teacher.base_url, concurrency=8, timeout_s=1))
        thread.join()
        assert outcome.complete
        assert disagreements(url, teacher.log) == []
        assert set(teacher.questions.values()) == {1}


class CuttingProxy:
    """Passes bytes to a server's socket and back; once `armed`, it passes one COMMIT on and drops the connection before the answer."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.server_path = str(server.folder / ".s.PGSQL.5432")
        self.folder = folder
        self.armed = self.cut = False
        self.sockets: list[socket.socket] = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(folder / ".s.PGSQL.5432"))
        self.listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Close every connection."""
        for each in (self.listener, *self.sockets):
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                there = socket.socket(socket.AF_UNIX)
                there.connect(self.server_path)
                self.sockets += [client, there]
                for source, sink in ((client, there), (there, client)):
                    threading.Thread(target=self._pass, args=(source, sink, source is client), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, to_server: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if to_server and self.armed and b"COMMIT" in data:
                    self.armed, self.cut = False, True
                    source.shutdown(socket.SHUT_RDWR)  # the client hears no more
                sink.sendall(data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_WR if each is sink else socket.SHUT_RD)


def test_a_claim_whose_commit_was_not_acknowledged_is_known_again(pg_url: str) -> None:
    with Store.open(pg_url) as store:
        stores.register(store)
        samples = stores.add_samples(store, [stores.texts(i) for i in range(4)])
    with tempfile.TemporaryDirectory(prefix="px-") as folder:
        proxy = CuttingProxy(Path(folder), postgres_server.server())
        through = pg_url.replace(f"host={postgres_server.server().folder}", f"host={folder}")
        with Store.open(through) as store:
            wanted = stores.wanted()
            asked = pending_questions(store, wanted, samples)
            worker = start_worker(store)
            proxy.armed = True
            claims = claim(store, wanted, worker, asked)
            assert proxy.cut
            assert len(claims) == len(asked) > 0
            assert store.rows("SELECT count(*) FROM attempt")[0][0] == len(asked)
        proxy.close()


def write_opposite(url: str, rounds: int) -> None:
    """Insert the same rows by two stores at once, in opposite orders."""
    variants = [f"{i:032x}" for i in range(40)]
    errors: list[BaseException] = []
    start = threading.Barrier(2)

    def write(order: int) -> None:
        try:
            with Store.open(url) as store:
                for number in range(rounds):
                    found = [
                        loss_row(f"{number:012x}", variant, Stat.A_DIRECT, 1.0, 2, pair_id=variant)
                        for variant in variants[::order]
                    ]
                    start.wait(60)
                    for part in (found[:20], found[20:]):
                        with store.write(locked=False) as conn:
                            store.insert(conn, part)
        except BaseException as error:
            errors.append(error)
            start.abort()

    threads = [threading.Thread(target=write, args=(order,)) for order in (1, -1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert rows(url, "SELECT count(*) AS n FROM loss")[0]["n"] == rounds * len(variants)


def test_opposite_writers_do_not_stop_each_other(pg_url: str) -> None:
    write_opposite(pg_url, 20)


@pytest.mark.slow
def test_a_thousand_rounds_of_opposite_writers(pg_url: str) -> None:
    write_opposite(pg_url, 1_000)


@pytest.mark.long
def test_three_processes_of_which_the_one_that_asks_is_killed(tmp_path: Path) -> None:
    ask_and_kill(tmp_path, 3, 3, "postgresql")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_eight_processes_of_which_one_is_killed(tmp_path: Path, seed: int) -> None:
    ask_and_kill(tmp_path, 8, seed, "postgresql")


@pytest.mark.long
def test_kills_lose_nothing_that_was_committed(tmp_path: Path) -> None:
    kill_often(tmp_path, 2, 600, seed=1, in_flight=100, backend="postgresql")


@pytest.mark.slow
def test_fifty_kills_lose_nothing_that_was_committed(tmp_path: Path) -> None:
    kill_often(tmp_path, 50, 8_000, seed=2, limit=2_000, backend="postgresql")


@pytest.mark.long
def test_a_sync_on_a_server_agrees_with_the_teacher_s_log(tmp_path: Path) -> None:
    url = make_store(tmp_path, 20, "postgresql")
    with TeacherServer() as teacher:
        assert run(url, target(teacher.base_url)).complete
        assert disagreements(url, teacher.log) == []
        calls = len(teacher.log)
        assert run(url, target(teacher.base_url)).complete
        assert len(teacher.log) == calls
    drop(url)
