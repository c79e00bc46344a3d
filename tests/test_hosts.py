"""Several hosts on one PostgreSQL store: other host names, process ids and clocks, by namespaces and a shifted clock on this machine."""

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self

import postgres_server
import pytest
import sync_runs
from conftest import clean_environment
from postgres_server import Server
from sync_runs import attempts, make_store, rows, sample
from teacher_server import Exchange, TeacherServer
from templates import drop
from test_liveness import can, namespace
from test_sync_kills import wait_for

from recycledb.schema import utc_now
from recycledb.store import HEARTBEAT_TIMEOUT_S, Store
from recycledb.store.liveness import CLOCKS_DIFFER_S, Host
from recycledb.store.living import living
from recycledb.store.places import Place, replace_places
from recycledb.store.rows import WorkerRow

needs_server = pytest.mark.skipif(
    postgres_server.binaries() is None, reason="no PostgreSQL: apt-get install postgresql"
)

Command = Sequence[str]
TESTS = Path(__file__).resolve().parent
LEASE = json.dumps({"lease_s": 3})
ASKING = "SELECT w.worker_id, w.pid, w.host, w.ended_at FROM worker w JOIN lease l ON l.worker_id = w.worker_id WHERE l.kind = 'ask'"


def named(host: str) -> Command:
    """Return the command that runs another on a host of this name, or skip the test."""
    if not can("unshare", "--uts"):
        pytest.skip("no host name of its own can be set here (unshare needs root)")
    return ["unshare", "--uts", "sh", "-c", f'hostname {host} && exec "$@"', "sh"]


def shifted(seconds: int) -> Command:
    """Return the command that runs Python with a clock that is off, or skip the test.

    What time.sleep calls fails under libfaketime 0.9.10.
    """
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not libraries:
        pytest.skip("no libfaketime: apt-get install faketime")
    settings = [f"LD_PRELOAD={libraries[0]}", f"FAKETIME={seconds:+d}", "FAKETIME_DONT_FAKE_MONOTONIC=1"]
    code = (
        "import runpy, select, sys, time; time.sleep = lambda s: select.select([], [], [], s); "
        "sys.argv.pop(0); sys.path[0] = sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return ["env", *settings, sys.executable, "-c", code, str(TESTS)]


class Started:
    """Syncs in processes of their own, which end with the test."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[str]] = []

    def sync(self, within: Command, url: str, base_url: str, *options: str) -> "subprocess.Popen[str]":
        """Start a sync by the command `within`."""
        python = [] if sys.executable in within else [sys.executable]
        command = [*within, *python, sync_runs.__file__, url, base_url, *options]
        started = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environment()
        )
        self.processes.append(started)
        return started

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self.processes:
            if each.poll() is None:
                each.send_signal(signal.SIGCONT)
                each.kill()
            each.communicate()


@pytest.fixture
def started() -> Iterator[Started]:
    """Nothing started yet."""
    with Started() as found:
        yield found


def outcome(process: Any) -> dict[str, Any]:
    """Return what a sync printed at its end, which is a good one."""
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return dict(json.loads(output))


def agreement(url: str, log: Sequence[Exchange], most_twice: int, others: Sequence[str] = ("lost",)) -> str:
    """Hold the teacher's log against the store, after processes were killed or suspended; return the figures.

    Every call is on record, and every question has an answer, with a text that the server gave; `others` are the ends that its other
    attempts may have.
    """
    calls, tries = Counter(exchange.question for exchange in log), attempts(url)
    texts = {(exchange.question, exchange.text) for exchange in log}
    assert set(calls) <= set(tries)
    for question, on_record in tries.items():
        statuses = [row["status"] for row in on_record]
        assert calls[question] <= len(statuses), question
        assert statuses[-1] == "ok" and set(statuses) <= {"ok", *others}, statuses
        assert all((question, row["text"]) in texts for row in on_record if row["status"] == "ok")
    twice = sum(number - 1 for number in calls.values())
    assert max(calls.values()) <= 2 and twice <= most_twice
    lost = sum(row["status"] == "lost" for on_record in tries.values() for row in on_record)
    assert rows(url, "SELECT * FROM lease") == []
    return f"{len(log)} calls for {len(tries)} questions, {twice} asked twice, {lost} attempts lost, 0 unanswered"


# --- who is alive -------------------------------------------------------------------------------------


@pytest.mark.default_cases("sqlite", "postgresql")
def test_a_heartbeat_s_age_counts_at_once_where_all_hosts_have_one_clock(store: Store) -> None:
    """A store in a file has the clock of each host, which may be minutes off: there a heartbeat must be seen to stand still."""
    with store.read() as conn:
        now = datetime.fromisoformat(store.backend.now(conn))
    for silent_s in (0.0, HEARTBEAT_TIMEOUT_S - 30, HEARTBEAT_TIMEOUT_S + 30, CLOCKS_DIFFER_S + 30):
        beat = (now - timedelta(seconds=silent_s)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        key = f"{round(silent_s):032d}"
        with store.write() as conn:
            store.insert(conn, [WorkerRow(key, str(Host("gpu2", "boot", "pid:[1]")), 7, "1", utc_now(), beat)])
    with store.read() as conn:
        alive = {int(each.worker_id) for each in living(store.backend, store.watch, conn)}
    assert store.backend.one_clock is store.backend.is_server
    assert alive == ({0, 90} if store.backend.is_server else {0, 90, 150})


# --- two processes, of which the first asks ---------------------------------------------------------------


def heartbeats(url: str) -> set[str]:
    return {row["heartbeat_at"] for row in rows(url, "SELECT heartbeat_at FROM worker")}


def share(url: str, started: Started, first: Command, second: Command) -> None:
    """Sync from two places: while the first asks, the second takes nothing from it and ends nothing."""
    with TeacherServer(delay_s=2.0) as teacher:
        options = ("--concurrency", "4", "--cluster", LEASE)
        asking = started.sync(first, url, teacher.base_url, *options)
        wait_for(lambda: len(teacher.log) >= 4)
        (before,) = rows(url, ASKING)
        other = started.sync(second, url, teacher.base_url, *options)
        wait_for(lambda: rows(url, "SELECT * FROM worker WHERE doing = 'waiting for others'"))
        beats = heartbeats(url)
        wait_for(lambda: beats.update(heartbeats(url)) or len(beats) >= 8)  # each has renewed what it has
        assert rows(url, ASKING) == [before] and before["ended_at"] is None
        teacher.delay_s = 0.05
        outcomes = [outcome(asking), outcome(other)]
        assert [each["calls"] > 0 for each in outcomes] == [True, False]
        assert all(each["complete"] for each in outcomes)
        assert set(teacher.questions.values()) == {1}
        assert sync_runs.disagreements(url, teacher.log) == []


@pytest.mark.long
@needs_server
@pytest.mark.parametrize(
    ("seconds", "first_is_off"),
    [
        pytest.param(-600, True, id="behind-asking"),  # by its clock its lease would be over
        pytest.param(600, False, id="ahead-waiting"),  # by its clock the other's would be
        pytest.param(600, True, id="ahead-asking", marks=pytest.mark.slow),
        pytest.param(-600, False, id="behind-waiting", marks=pytest.mark.slow),
    ],
)
def test_a_clock_that_is_ten_minutes_off_ends_and_takes_nothing(
    tmp_path: Path, started: Started, seconds: int, first_is_off: bool
) -> None:
    off, right = [*named("gpu1"), *shifted(seconds)], named("gpu2")
    (tmp_path / "clock.py").write_text("import time; print(time.time())")
    skewed = subprocess.run([*off, str(tmp_path / "clock.py")], capture_output=True, text=True, check=True)
    assert abs(float(skewed.stdout) - time.time() - seconds) < 60
    url = make_store(tmp_path, 30, "postgresql")
    share(url, started, *((off, right) if first_is_off else (right, off)))
    drop(url)


@pytest.mark.long
@needs_server
@pytest.mark.parametrize("first_is_within", [True, False], ids=["asking", "waiting"])
def test_a_container_with_this_host_s_name_is_not_taken_for_dead(
    tmp_path: Path, started: Started, first_is_within: bool
) -> None:
    """Its process ids are others here: 1 is the container's sync, and this machine's init."""
    within = namespace()
    url = make_store(tmp_path, 30, "postgresql")
    share(url, started, *((within, ()) if first_is_within else ((), within)))
    assert len(rows(url, "SELECT DISTINCT host FROM worker")) == 2
    drop(url)


# --- many processes, of which one is killed, and a server that crashes ------------------------------------


def kill_one_and_crash(server: Server, started: Started, number: int, samples: int, seed: int) -> None:
    """Sync by so many processes under two host names; one of them is killed, and the server with it crashes and starts again."""
    url, chance, in_flight = server.url(server.create()), random.Random(seed), 16
    with Store.open(url, create=True) as store, store.write() as conn:
        replace_places(store, conn, "made-up", (Place(i, sample(i)) for i in range(samples)))
    with TeacherServer(delay_s=0.2) as teacher:
        hosts = [named("gpu1"), named("gpu2")]
        for i in range(number):
            started.sync(hosts[i % 2], url, teacher.base_url, "--concurrency", str(in_flight))
        wait_for(lambda: len(teacher.log) >= chance.randrange(samples // 2, samples))
        (asking,) = rows(url, ASKING)
        (victim,) = [each for each in started.processes if each.pid == asking["pid"]]
        victim.kill()
        victim.communicate()
        calls = len(teacher.log)
        wait_for(lambda: len(teacher.log) >= calls + in_flight)  # another asks
        server.stop(signal.SIGQUIT)
        server.start()
        outcomes = [outcome(each) for each in started.processes if each is not victim]
        assert all(each["complete"] for each in outcomes)
        told = agreement(url, teacher.log, in_flight)
    hosts_seen = {Host.parse(row["host"]).name for row in rows(url, "SELECT DISTINCT host FROM worker")}
    assert hosts_seen == {"gpu1", "gpu2"}
    print(f"\n{number} processes under two host names, one killed, the server crashed once: {told}")


@pytest.mark.long
@needs_server
def test_processes_of_two_hosts_agree_with_the_teacher_s_log_after_a_kill_and_a_crash(
    own_server: Server, started: Started
) -> None:
    kill_one_and_crash(own_server, started, 4, 40, seed=1)


@pytest.mark.slow
@needs_server
@pytest.mark.parametrize("seed", range(3))
def test_eight_processes_of_two_hosts_agree_with_the_teacher_s_log_after_a_kill_and_a_crash(
    own_server: Server, started: Started, seed: int
) -> None:
    kill_one_and_crash(own_server, started, 8, 400, seed)
