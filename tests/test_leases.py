"""Leases: nothing is held twice or forgotten; names and schemas stay as they are under a process that works."""

import json
import os
import sqlite3
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sound_stores
import stores
import zstandard
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import create_engine
from sqlalchemy.pool import StaticPool
from sync_runs import make_store, target
from teacher_server import TeacherServer

from recycledb import methods
from recycledb.errors import SchemaError, StoreError
from recycledb.schema import utc_now
from recycledb.store import HEARTBEAT_TIMEOUT_S, Store, leases, upgrade
from recycledb.store.leases import ASK, SCORE, Lease
from recycledb.store.liveness import Host, process_start, this_host
from recycledb.store.measures import Need
from recycledb.store.migrate import migrate
from recycledb.store.pending import Scope
from recycledb.store.questions import claim, pending_questions
from recycledb.store.rows import WorkerRow
from recycledb.store.spending import spent_at_the_same_time
from recycledb.store.workers import end_worker, start_worker
from recycledb.sync import Stop, Sync
from recycledb.sync.presence import Presence
from recycledb.sync.sharing import Groups, Sharing, digits

LEASE_S = 30.0
BUCKETS = [Lease(SCORE, "s", name) for name in "0123"]
WORKERS = ["a", "b", "c"]
FROZEN = Path(__file__).with_name("data") / "store-0008.sqlite.zst"


# --- who holds what ---------------------------------------------------------------------------------


class Leasing(RuleBasedStateMachine):
    """Workers that take, renew, give back and die, against a clock of ours; beside it what they should hold."""

    engine: Any = None

    @initialize()
    def begin(self) -> None:
        """Start with no lease."""
        if Leasing.engine is None:
            Leasing.engine = create_engine("sqlite://", poolclass=StaticPool)
            with Leasing.engine.begin() as conn:
                migrate(conn)
        with Leasing.engine.begin() as conn:
            conn.exec_driver_sql("DELETE FROM lease")
        self.clock = datetime(2026, 1, 1, tzinfo=UTC)
        self.holders: dict[Lease, tuple[str, datetime]] = {}

    @property
    def now(self) -> str:
        """The clock's time as the store writes it."""
        return self.clock.strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    @property
    def end(self) -> datetime:
        """When a lease that is taken or renewed now will be over."""
        return self.clock + timedelta(seconds=LEASE_S)

    @rule(worker=st.sampled_from(WORKERS), wanted=st.sets(st.sampled_from(BUCKETS)))
    def take(self, worker: str, wanted: set[Lease]) -> None:
        """Take what is free, or one's own already, as where the first answer was lost."""
        free = {
            lease
            for lease in wanted
            if lease not in self.holders or self.holders[lease][1] < self.clock or self.holders[lease][0] == worker
        }
        with Leasing.engine.begin() as conn:
            assert leases.take(conn, worker, list(wanted), self.now, LEASE_S) == sorted(free)
        self.holders |= dict.fromkeys(free, (worker, self.end))

    @rule(worker=st.sampled_from(WORKERS))
    def renew(self, worker: str) -> None:
        """Renew what a worker holds: what others took in the meantime stays theirs."""
        with Leasing.engine.begin() as conn:
            leases.renew(conn, worker, self.now, LEASE_S)
        self.holders = {k: (who, self.end if who == worker else end) for k, (who, end) in self.holders.items()}

    @rule(worker=st.sampled_from(WORKERS), given=st.sets(st.sampled_from(BUCKETS)))
    def give(self, worker: str, given: set[Lease]) -> None:
        """Give back: only what is one's own."""
        with Leasing.engine.begin() as conn:
            leases.give(conn, worker, list(given))
        self.holders = {k: (who, end) for k, (who, end) in self.holders.items() if not (who == worker and k in given)}

    @rule(worker=st.sampled_from(WORKERS))
    def die(self, worker: str) -> None:
        """Be found dead."""
        with Leasing.engine.begin() as conn:
            leases.give_all(conn, worker)
        self.holders = {k: (who, end) for k, (who, end) in self.holders.items() if who != worker}

    @rule(seconds=st.sampled_from([0.0, 0.000001, 10.0, 29.999999, 30.0, 30.000001, 100.0]))
    def later(self, seconds: float) -> None:
        """Let time pass."""
        self.clock += timedelta(seconds=seconds)

    @invariant()
    def one_holder_each(self) -> None:
        """Compare what is stored with who should hold what."""
        with Leasing.engine.begin() as conn:
            held = {each.lease: each.worker_id for each in leases.held(conn, self.now)}
            over = {each.lease for each in leases.expired(conn, self.now)}
            free = {(lease, w) for lease in BUCKETS for w in WORKERS if leases.is_free(conn, lease, w, self.now)}
        assert held == {lease: who for lease, (who, end) in self.holders.items() if end >= self.clock}
        assert over == {lease for lease, (_, end) in self.holders.items() if end < self.clock}
        assert free == {(lease, w) for lease in BUCKETS for w in WORKERS if held.get(lease, w) == w}

    def teardown(self) -> None:
        """Whatever happened, all buckets can be taken once nobody renews."""
        if Leasing.engine is not None and hasattr(self, "clock"):
            self.clock += timedelta(seconds=LEASE_S + 1)
            with Leasing.engine.begin() as conn:
                assert leases.take(conn, "last", BUCKETS, self.now, LEASE_S) == BUCKETS


TestLeasing = Leasing.TestCase
TestLeasing.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)


@pytest.mark.both_backends
def test_a_lease_is_one_worker_s_until_it_ends_or_is_found_dead(store: Store) -> None:
    first, second = start_worker(store), start_worker(store)
    with store.write() as conn:
        assert leases.take(conn, first, BUCKETS[:2], store.backend.now(conn)) == BUCKETS[:2]
    with store.write() as conn:
        assert leases.take(conn, second, BUCKETS, store.backend.now(conn)) == BUCKETS[2:]
    end_worker(store, first)
    with store.write() as conn:
        assert leases.take(conn, second, BUCKETS[:2], store.backend.now(conn)) == BUCKETS[:2]
    end_worker(store, second)
    assert store.rows("SELECT * FROM lease") == []


def test_a_worker_that_is_dead_leaves_its_leases_at_once(store: Store) -> None:
    with store.write() as conn:
        dead = WorkerRow("0" * 32, str(this_host()), 2**22 + 1, "77", utc_now(), utc_now())
        store.insert(conn, [dead])
        leases.take(conn, dead.worker_id, BUCKETS, utc_now())
    stop = threading.Event()
    with Presence(store, stop) as presence:
        assert presence.take(BUCKETS) == BUCKETS
        assert presence.others() == []


def test_who_may_ask_a_teacher_is_checked_with_each_claim(store: Store) -> None:
    """A process that was suspended goes on claiming: the other that asks now keeps to the teacher's limits alone."""
    stores.register(store)
    want, samples = stores.wanted(), stores.add_samples(store, [stores.texts(i) for i in range(4)])
    asked = pending_questions(store, want, samples)
    slept, asking = start_worker(store), start_worker(store)
    with store.write() as conn:
        leases.take(conn, asking, [Lease(ASK, want.teacher_id)], store.backend.now(conn))
    assert claim(store, want, slept, asked) == []
    assert len(claim(store, want, asking, asked)) == len(asked)


def test_what_others_spend_at_the_same_time_counts(store: Store) -> None:
    stores.register(store)
    want, samples = stores.wanted(), stores.add_samples(store, [stores.texts(i) for i in range(4)])
    asked = pending_questions(store, want, samples)[:3]
    first, second = start_worker(store), start_worker(store)
    claim(store, want, first, asked, [1.0, 2.0, 4.0])
    with store.read() as conn:
        assert spent_at_the_same_time(conn, second) == 7.0
        assert spent_at_the_same_time(conn, first) == 0.0
    end_worker(store, first)
    third = start_worker(store)
    with store.read() as conn:
        assert spent_at_the_same_time(conn, second) == 7.0
        assert spent_at_the_same_time(conn, third) == 0.0  # the first had ended


def test_buckets_hold_about_so_many_samples() -> None:
    assert [digits(n, 500) for n in (0, 500, 1_900, 2_100, 52_000, 1_000_000, 50_000_000)] == [0, 0, 0, 1, 2, 3, 4]


# --- names, versions, schemas -----------------------------------------------------------------------


def test_what_a_sync_names_is_what_it_stands_on(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    with Store.open(url, create=True) as store:
        wanted = sound_stores.target()
        worker = start_worker(store)
        wanted.register(store, worker=worker)
        stands_on = json.loads(store.rows("SELECT names FROM worker")[0][0])
        assert stands_on == {
            f"{kind}/{name}": key for kind, name, key in store.rows("SELECT kind, name, id FROM current_names")
        }
        assert {name.partition("/")[0] for name in stands_on} >= {"teacher", "prompt", "student", "extractor"}


def test_a_name_that_another_process_works_with_does_not_move(tmp_path: Path) -> None:
    url = make_store(tmp_path, 2)
    with TeacherServer() as server, Store.open(url) as store:
        warm, cold = (target(server.base_url, params={"temperature": t}) for t in (1, 0))
        other = start_worker(store)
        warm.register(store, worker=other)
        before = store.rows("SELECT * FROM name ORDER BY since")
        with pytest.raises(StoreError) as error:
            Sync(store, cold).run()
        said = str(error.value)
        assert "teacher 't' is another one for the sync on host" in said and "(pid " in said and "\n" not in said
        assert "params.temperature 1 there, 0 here" in said and "recycledb workers" in said
        assert store.rows("SELECT * FROM name ORDER BY since") == before and server.log == []
        assert Sync(store, warm).run().complete  # the same on both is no quarrel
        end_worker(store, other)
        assert Sync(store, cold).run().complete


def test_a_reader_s_version_is_never_set_back(tmp_path: Path) -> None:
    url = make_store(tmp_path, 1)
    name, version = next(iter(methods.version_names().items()))
    with TeacherServer() as server, Store.open(url) as store:
        with store.write() as conn:
            store.ensure_name(conn, "extractor", name, str(version + 1))
        with pytest.raises(
            StoreError, match=f"version {version + 1} of its reader in this store, and version {version}"
        ):
            Sync(store, target(server.base_url)).run()
        assert store.find_name("extractor", name) == str(version + 1)


def frozen(folder: Path, **worker: Any) -> str:
    """Return the URL of a store of schema 0008 with a worker on record."""
    path = folder / "store.db"
    path.write_bytes(zstandard.ZstdDecompressor().decompress(FROZEN.read_bytes(), max_output_size=1 << 28))
    values = {"worker_id": "1" * 32, "host": str(this_host()), "pid": 1, "process_started": "", **worker}
    values = {"started_at": utc_now(), "heartbeat_at": utc_now(), **values}
    with closing(sqlite3.connect(path)) as conn, conn:
        names = ", ".join(values)
        conn.execute(f"INSERT INTO worker ({names}) VALUES ({', '.join('?' * len(values))})", list(values.values()))
    return f"sqlite:///{path}"


def test_no_schema_is_changed_under_a_process_that_works(tmp_path: Path) -> None:
    """One that runs on this host; its pid is ours."""
    url = frozen(tmp_path, pid=os.getpid(), process_started=process_start("self"))
    for force in (False, True):
        with pytest.raises(SchemaError) as error:
            upgrade(url, force=force)
        said = str(error.value)
        assert (
            f"1 process on 1 host at work on {tmp_path}/store.db: host {this_host().name} (pid {os.getpid()})" in said
        )
        assert "\n" not in said and "db upgrade" in said
    assert [path.name for path in tmp_path.glob("store.db*")] == ["store.db"]  # not even a copy
    with closing(sqlite3.connect(tmp_path / "store.db")) as conn, conn:
        conn.execute("UPDATE worker SET ended_at = '2026'")
    assert upgrade(url) is not None


def test_a_process_that_fell_silent_on_another_host_is_overruled_by_force(tmp_path: Path) -> None:
    silent = datetime.now(UTC) - timedelta(seconds=HEARTBEAT_TIMEOUT_S + 5)
    elsewhere = Host("gpu2", "boot", "pid:[1]")
    url = frozen(tmp_path, host=str(elsewhere), pid=4711, heartbeat_at=silent.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
    with pytest.raises(SchemaError, match=r"host gpu2 \(pid 4711\).*use --force two minutes later"):
        upgrade(url)
    assert upgrade(url, force=True) is not None


def test_a_run_whose_store_is_upgraded_stops_in_order(tmp_path: Path) -> None:
    url = make_store(tmp_path, 1)
    with Store.open(url) as store:
        stop = threading.Event()
        with Presence(store, stop, lease_s=0.3) as presence:
            with store.write() as conn:
                conn.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
            assert stop.wait(60)
            assert "upgraded the store to schema 9999" in presence.outdated


# --- which samples a run takes ----------------------------------------------------------------------


def test_a_run_takes_what_nobody_holds_and_notes_the_rest(store: Store) -> None:
    """Alone many buckets at a time; beside others few; and what they hold is not its own."""
    stores.register(store)
    samples = stores.add_samples(store, [stores.texts(i) for i in range(100)])
    need = Need(Scope(None, ("origin",)), stores.STUDENT, ("A_direct",))
    stop = threading.Event()
    with Presence(store, stop) as presence:
        sharing = Sharing(presence, bucket_samples=2, wait=False)
        groups = list(Groups(sharing, stores.STUDENT, [need]))
        names = sorted({sample[0] for sample in samples})
        assert sorted(name for group in groups for name in group) == names and not sharing.in_the_way
        assert store.rows("SELECT * FROM lease") == []
        with Presence(store, stop) as other:
            theirs = other.take([Lease(SCORE, stores.STUDENT, name) for name in names[:3]])
            shared, busy = Groups(sharing, stores.STUDENT, [need]), []
            for group in shared:
                busy.append(group)
                assert {each.lease.bucket for each in presence.held_by_others()} == set(names[:3])
            assert sorted(name for group in busy for name in group) == names[3:]
            assert len(busy) > len(groups)
            assert sharing.blocked == set(theirs)
            assert shared.elsewhere == sum(sample[0] in names[:3] for sample in samples)
            assert not sharing.wait(lambda: False) and "others are at work: 1 process on 1 host" in (
                sharing.reason or ""
            )
            few = Groups(sharing, stores.STUDENT, [need])
            assert [few.has(name) for name in (names[0], names[3])] == [False, True]
            few.give()
        assert Sharing(presence).wait(lambda: False)  # they are gone


def test_one_process_at_a_time_asks_or_makes_variants(store: Store) -> None:
    stop = threading.Event()
    with Presence(store, stop) as one, Presence(store, stop) as two:
        first, second = Sharing(one), Sharing(two)
        with first.only_here(Lease(ASK, "t")) as mine:
            assert mine
            with second.only_here(Lease(ASK, "t"), Lease(ASK, "--max-cost")) as theirs:
                assert not theirs
            assert second.blocked == {Lease(ASK, "t")}
            assert [each.lease for each in two.held_by_others()] == [Lease(ASK, "t")]  # nothing half taken is kept
        with second.only_here(Lease(ASK, "t")) as theirs:
            assert theirs


def test_who_only_scores_waits_for_replies_that_another_process_awaits(tmp_path: Path) -> None:
    """Nothing is missing at the moment, and yet it is not done: the one that asks has replies to read."""
    url = make_store(tmp_path, 2)
    with TeacherServer() as server, Store.open(url) as store:
        wanted = target(server.base_url)
        assert Sync(store, wanted).run().complete
        stop = Stop()
        with Presence(store, threading.Event()) as asking:
            asking.take([Lease(ASK, wanted.teacher_id)])
            assert Sync(store, wanted, wait=False).run().complete
            run = Sync(store, wanted, stop=stop)
            thread = threading.Thread(target=run.run)
            thread.start()
            while not store.rows("SELECT * FROM worker WHERE doing = 'waiting for others'"):
                assert thread.is_alive()
        thread.join(60)
        assert not thread.is_alive() and run.outcome.complete
