"""Which workers live: nobody is asked twice because a live process looks dead, and nobody waits for ever for a dead one."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import stores
from batch_server import BatchServer
from sync_runs import make_store, rows
from test_batches import start_batch_sync, sync

from recycledb.schema import utc_now
from recycledb.store import Store, batches
from recycledb.store.liveness import (
    CLOCKS_DIFFER_S,
    HEARTBEAT_S,
    HEARTBEAT_TIMEOUT_S,
    LOOK_COUNTS_S,
    Host,
    Silence,
    Watch,
    find_process,
    is_alive,
    this_host,
)
from recycledb.store.questions import claim, pending_questions
from recycledb.store.workers import beat, end_worker, start_worker

PROCESSES = Path(__file__).with_name("store_processes.py")
HERE = Host("node", "boot-1", "pid:[1],time:[1]")
CONTAINER = HERE._replace(namespaces="pid:[2],time:[1]")
REBOOTED = HERE._replace(boot_id="boot-0")
OLD_ROW = Host("node")
FRESH, SILENT = Silence(5.0), Silence(HEARTBEAT_TIMEOUT_S + 1)
LONG_SILENT = Silence(CLOCKS_DIFFER_S + 1)
GONE, HIDDEN = None, ""


@pytest.mark.parametrize(
    ("host", "started", "found", "silence", "alive"),
    [
        pytest.param(HERE, "77", "77", LONG_SILENT, True, id="it runs: a slow heart is no death"),
        pytest.param(HERE, "77", GONE, FRESH, False, id="no such process"),
        pytest.param(HERE, "77", "99", FRESH, False, id="its id is another's now"),
        pytest.param(HERE, "77", HIDDEN, FRESH, True, id="hidepid, beating"),
        pytest.param(HERE, "77", HIDDEN, SILENT, False, id="hidepid, silent"),
        pytest.param(HERE, "", "99", FRESH, True, id="its start is not on record"),
        pytest.param(CONTAINER, "77", GONE, FRESH, True, id="a container with our host name"),
        pytest.param(CONTAINER, "77", "99", SILENT, False, id="a container, silent: its clock is ours"),
        pytest.param(REBOOTED, "77", GONE, SILENT, True, id="another boot: clocks may differ"),
        pytest.param(REBOOTED, "77", "77", LONG_SILENT, False, id="another boot, long silent"),
        pytest.param(OLD_ROW, "77", GONE, FRESH, True, id="a row of an earlier release"),
        pytest.param(OLD_ROW, "77", "77", LONG_SILENT, False, id="a row of an earlier release, long silent"),
        pytest.param(REBOOTED, "77", GONE, Silence(-86_400.0), True, id="its clock is a day ahead"),
        pytest.param(REBOOTED, "77", GONE, Silence(-86_400.0, HEARTBEAT_TIMEOUT_S), False, id="ahead, and unchanged"),
        pytest.param(REBOOTED, "77", GONE, Silence(9e9, HEARTBEAT_TIMEOUT_S - 1), True, id="seen to change lately"),
    ],
)
def test_only_what_is_known_to_be_dead_is(
    host: Host, started: str, found: str | None, silence: Silence, alive: bool
) -> None:
    assert is_alive(host, started, HERE, found, silence) is alive


def test_a_host_that_does_not_say_who_it_is_goes_by_heartbeats() -> None:
    nobody = Host("node")
    assert is_alive(nobody, "77", nobody, GONE, FRESH)
    assert not is_alive(nobody, "77", nobody, "77", LONG_SILENT)


def test_a_host_is_read_as_it_was_written() -> None:
    for host in (HERE, OLD_ROW, this_host()):
        assert Host.parse(str(host)) == host
    assert str(OLD_ROW) == "node"
    if sys.platform == "linux":
        assert this_host().known


def test_a_heartbeat_is_judged_by_how_long_it_does_not_change_while_we_look() -> None:
    watch, beat = Watch(), utc_now()
    assert watch.silence("w", beat, 0.0).unchanged_s is None
    assert watch.silence("w", beat, 20.0).unchanged_s == 20.0
    slept = watch.silence("w", beat, 36_020.0)  # we were stopped, the other perhaps too
    assert slept.unchanged_s == 20.0 + LOOK_COUNTS_S < HEARTBEAT_TIMEOUT_S
    later = (datetime.now(UTC) - timedelta(hours=10)).isoformat()
    assert watch.silence("w", later, 36_040.0).unchanged_s == 0.0  # it beats, by a clock ten hours behind ours
    for look in range(1, 7):
        silence = watch.silence("w", later, 36_040.0 + HEARTBEAT_S * look)
    assert silence.unchanged_s == HEARTBEAT_TIMEOUT_S
    assert watch.silence("w", "not a moment", 0.0).age_s == 0.0


def test_a_process_is_found_by_its_start_and_a_dead_one_is_not_found_before_it_is_reaped() -> None:
    started = find_process(os.getpid())
    assert started and started.isdigit()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert find_process(child.pid)
    child.kill()
    deadline = time.monotonic() + 20
    while find_process(child.pid) is not None:
        assert time.monotonic() < deadline, "it looks alive although it was killed"
        time.sleep(0.01)
    child.communicate()
    assert find_process(child.pid) is None
    assert find_process(2**70) == ""


# --- those who were taken for dead and live ---------------------------------------------------------


def test_who_was_taken_for_dead_and_goes_on_claims_as_one_that_lives(store: Store) -> None:
    stores.register(store)
    ids = stores.add_samples(store, [stores.texts(i) for i in range(4)])
    want = stores.wanted()
    asked = pending_questions(store, want, ids)
    stopped, other = start_worker(store), start_worker(store)
    claim(store, want, stopped, asked[:2])
    end_worker(store, stopped)  # as whoever hears no heartbeat does
    assert len(claim(store, want, other, asked[:1])) == 1
    claimed = claim(store, want, stopped, asked[:4])  # it goes on, and knows of nothing
    assert [row for _, row in claimed] == asked[2:4]  # nor of what it has under way itself
    assert claim(store, want, other, asked[:4]) == []
    end_worker(store, stopped)
    beat(store, stopped)
    assert claim(store, want, other, asked[:4]) == []


def test_a_batch_is_given_up_by_others_or_handed_over_by_its_process_but_not_both(store: Store) -> None:
    stores.register(store)
    worker = start_worker(store)
    first, second = batches.start(store, stores.TEACHER, worker), batches.start(store, stores.TEACHER, worker)
    assert not batches.give_up(store, first, "its process died")  # it lives
    end_worker(store, worker)
    assert batches.give_up(store, first, "its process died")
    assert not batches.keep(store, first, worker)
    end_worker(store, worker)
    assert batches.keep(store, second, worker)
    assert not batches.give_up(store, second, "its process died")


@pytest.mark.long
def test_a_process_that_slept_while_its_batch_was_given_up_does_not_hand_it_over(tmp_path: Path) -> None:
    url = make_store(tmp_path, 5)
    with BatchServer(delay_uploaded_s=1.0) as server:
        process = start_batch_sync(tmp_path, server.base_url)
        deadline = time.monotonic() + 60
        while not server.files:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGSTOP)
        with Store.open(url) as store:
            end_worker(store, store.rows("SELECT worker_id FROM worker")[0][0])  # as another container would by now
        server.delay_uploaded_s = 0.0
        assert sync(url, server, batch_options={"grace_s": 0.0}).batches.requests == 5  # type: ignore[union-attr]
        process.send_signal(signal.SIGCONT)
        assert process.wait(60) == 3
        assert list(server.batches) == ["batch_1"]
        assert set(server.asked().values()) == {1}


# --- real namespaces --------------------------------------------------------------------------------

OWN_PIDS = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


def can(*command: str) -> bool:
    """Say whether a command can be run here."""
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run([*command, "true"], capture_output=True, check=False, timeout=30).returncode == 0


def namespace() -> Sequence[str]:
    """Return the command that runs another among process ids of its own, or skip the test."""
    for command in (OWN_PIDS, (*OWN_PIDS, "--user", "--map-root-user")):
        if can(*command):
            return command
    pytest.skip("no PID namespace can be made here (unshare needs root or user namespaces)")


@contextmanager
def claiming(url: str, size: int, *within: str) -> Iterator["subprocess.Popen[str]"]:
    """Run a process that claims when it is told to, and lives until the end of the block."""
    command = [*within, sys.executable, str(PROCESSES), "claim_in_groups", url, str(size)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


def line(running: "subprocess.Popen[str]") -> list[str]:
    assert running.stdout is not None
    return running.stdout.readline().split()


def claims(running: "subprocess.Popen[str]") -> list[tuple[str, str]]:
    """Let a process that is ready claim until nothing is open, and return what it claimed."""
    assert running.stdin is not None
    running.stdin.write("\n")
    running.stdin.flush()
    found = []
    while (words := line(running)) and words[0] == "claimed":
        found.append((words[1], words[2]))
    assert words == ["done"]
    return found


@pytest.mark.long
@pytest.mark.default_cases("its own")
@pytest.mark.parametrize("proc", ["its own", "the host's"])
def test_processes_of_two_containers_with_one_host_name_ask_nothing_twice(sqlite_url: str, proc: str) -> None:
    within = [word for word in namespace() if proc == "its own" or word != "--mount-proc"]
    with Store.open(sqlite_url) as store:
        stores.register(store)
        samples = [stores.texts(i) for i in range(20)]
        stores.add_samples(store, samples)
    with claiming(sqlite_url, 7, *within) as one:
        assert line(one) == ["ready"]
        ours = claims(one)
        with Store.open(sqlite_url) as store:
            stores.add_samples(store, [*samples, *(stores.texts(i) for i in range(20, 40))])
        with claiming(sqlite_url, 7, *within) as two, claiming(sqlite_url, 7) as outside:
            assert (line(two), line(outside)) == (["ready"], ["ready"])
            with Store.open(sqlite_url) as store:
                hosts = [row[0] for row in store.rows("SELECT host FROM worker WHERE ended_at IS NULL")]
                assert len(set(hosts)) == 3 and len({Host.parse(host).name for host in hosts}) == 1
            every = [*ours, *claims(two), *claims(outside)]
    assert len(every) == len(set(every)) == 80
    assert rows(sqlite_url, "SELECT max(number) AS n FROM attempt")[0]["n"] == 1


_HIDE = 'mount -t proc -o hidepid=2 proc /proc && exec "$@"'


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can hide processes from another user")
def test_a_process_that_is_hidden_from_us_lives_by_its_heartbeat(tmp_path: Path) -> None:
    hidden = [*namespace(), "--mount", "sh", "-c", _HIDE, "sh"]
    if not can(*hidden):
        pytest.skip("no /proc can be mounted here with hidepid=2")
    script = """
import os, subprocess, sys
from recycledb.store.liveness import find_process, is_alive, this_host, Silence
live, here = subprocess.Popen(["sleep", "60"]), this_host()
shown = find_process(live.pid)
os.setgid(65534)
os.setuid(65534)
found = find_process(live.pid)
print(repr(found), is_alive(here, shown, here, found, Silence(1.0)))
"""
    done = subprocess.run([*hidden, sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["''", "True"], done.stderr
