"""A process that is suspended and goes on later: others do its work meanwhile, and what it does after that changes nothing."""

import json
import random
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import postgres_server
import pytest
from sync_runs import attempts, disagreements, make_store, rows
from teacher_server import TeacherServer
from templates import drop
from test_hosts import Started, agreement, named, outcome
from test_sharing import suspend_outside_a_transaction, suspended
from test_sync_kills import start_sync, wait_for

pytestmark = pytest.mark.skipif(postgres_server.binaries() is None, reason="no PostgreSQL: apt-get install postgresql")

OPTIONS = ("--concurrency", "4", "--cluster", json.dumps({"lease_s": 3}))


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """The URL of a store of 60 samples."""
    made = make_store(tmp_path, 60, "postgresql")
    yield made
    drop(made)


def freeze(process: Any) -> None:
    """Suspend a process."""
    process.send_signal(signal.SIGSTOP)
    wait_for(lambda: suspended(process.pid))


def state(url: str, pid: int) -> list[str]:
    """Return the states of a process's transactions that hold the store's lock."""
    server = postgres_server.server()
    sql = """
        SELECT a.state FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
        WHERE l.locktype = 'advisory' AND l.granted AND a.application_name LIKE %s
    """
    with closing(server.connect()) as connection:
        return [row[0] for row in connection.execute(sql, [f"recycledb {pid}%"]).fetchall()]


def freeze_in_transaction(url: str, process: Any) -> None:
    """Suspend a process while it holds the store's lock, between two statements."""
    for _ in range(2_000):
        freeze(process)
        if state(url, process.pid) == ["idle in transaction"]:
            return
        process.send_signal(signal.SIGCONT)
        time.sleep(random.uniform(0.0, 0.02))
    raise AssertionError("it held the lock at no moment")


@pytest.mark.long
def test_a_process_that_waits_for_others_may_be_suspended_meanwhile(url: str) -> None:
    """Idle: others go on and finish; awake again it finds nothing to do."""
    with TeacherServer(delay_s=0.2) as server:
        first = start_sync(url, server.base_url, *OPTIONS)
        wait_for(lambda: len(server.log) >= 4)
        second = start_sync(url, server.base_url, *OPTIONS)
        wait_for(lambda: rows(url, "SELECT * FROM worker WHERE doing = 'waiting for others'"))
        freeze(second)
        assert outcome(first)["complete"]
        before = attempts(url)
        second.send_signal(signal.SIGCONT)
        told = outcome(second)
        assert told["complete"] and told["calls"] == 0
        assert attempts(url) == before and disagreements(url, server.log) == []


@pytest.mark.long
def test_a_process_that_is_suspended_while_it_awaits_replies_asks_no_more(url: str) -> None:
    """Its lease is over; another asks the rest; awake again it commits the replies that had come, each once."""
    with TeacherServer(delay_s=0.2) as server:
        first = start_sync(url, server.base_url, *OPTIONS)
        wait_for(lambda: len(server.log) >= 8)
        suspend_outside_a_transaction(first, lambda: state(url, first.pid))
        wait_for(lambda: server.in_flight == 0)
        before = len(server.log)
        second = start_sync(url, server.base_url, *OPTIONS)
        wait_for(lambda: len(server.log) >= before + 60)  # which takes three seconds more than the lease
        first.send_signal(signal.SIGCONT)
        assert outcome(second)["complete"]
        told = outcome(first)
        assert told["complete"] and told["calls"] <= before
        assert set(server.questions.values()) == {1}
        agreement(url, server.log, 0)


@pytest.mark.slow
def test_a_process_that_is_suspended_in_a_transaction_gives_the_lock_back(url: str) -> None:
    """The server ends the transaction after a minute, so that others go on; awake again the process tries its transaction again."""
    with TeacherServer(delay_s=0.2) as server:
        first = start_sync(url, server.base_url, *OPTIONS)
        wait_for(lambda: len(server.log) >= 8)
        freeze_in_transaction(url, first)
        wait_for(lambda: server.in_flight == 0)
        before = len(server.log)
        second = start_sync(url, server.base_url, *OPTIONS)
        wait_for(lambda: rows(url, "SELECT * FROM worker WHERE doing = 'waiting for others'"))
        assert len(server.log) > before + 60  # all but what the first has under way
        assert state(url, first.pid) == []
        first.send_signal(signal.SIGCONT)
        assert outcome(first)["complete"] and outcome(second)["complete"]
        assert set(server.questions.values()) == {1}
        agreement(url, server.log, 0)


@pytest.mark.slow
def test_a_process_of_another_host_that_was_taken_for_dead_goes_on(url: str) -> None:
    """The other waits for two minutes, then asks again what it had under way; awake again its replies change nothing."""
    with TeacherServer(delay_s=0.2) as server, Started() as started:
        first = started.sync(named("gpu1"), url, server.base_url, *OPTIONS)
        wait_for(lambda: len(server.log) >= 8)
        freeze(first)
        wait_for(lambda: server.in_flight == 0)
        second = started.sync(named("gpu2"), url, server.base_url, *OPTIONS)
        told = outcome(second)
        assert told["complete"]  # it has waited until the first counted as dead
        counted = "SELECT count(*) AS n FROM variants"
        before = rows(url, counted)
        first.send_signal(signal.SIGCONT)
        assert outcome(first)["complete"]
        assert rows(url, counted) == before
        # What had come for it counts as timed out, which it was.
        print("\n", agreement(url, server.log, 4, ("lost", "error")))
