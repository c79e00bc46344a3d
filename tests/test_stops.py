"""Every wait of a sync has an end, and a stop is seen in each of them; what has arrived by then is kept."""

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import TypeVar

import pytest
from batch_server import BatchServer
from conftest import RUN_COMMAND, clean_environment
from sync_runs import attempts, make_store, rows, run, target
from teacher_server import Exchange, Fault, TeacherServer
from test_sync_kills import start_command, wait_for, write_configuration

from recycledb.config import parse
from recycledb.errors import TeacherError
from recycledb.reflection.teachers.calls import Stopped, call, pause
from recycledb.store import Store
from recycledb.sync import Progress, Stop, resolve

T = TypeVar("T")
STEPS = ["reflect_response"]
SOON_S = 60.0  # far less than what these runs waited for


def soon(function: Callable[[], T]) -> T:
    """Return what a function returns, or raise what it raises; fail where it does not end."""
    result: list[T] = []
    error: list[BaseException] = []

    def work() -> None:
        try:
            result.append(function())
        except BaseException as raised:
            error.append(raised)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(SOON_S)
    assert not thread.is_alive(), "it waits on"
    if error:
        raise error[0]
    return result[0]


def statuses(url: str) -> Counter[str]:
    return Counter(row["status"] for tries in attempts(url).values() for row in tries)


# --- what a server asks for -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["seconds", "date"])
def test_a_longer_pause_than_the_patience_ends_the_run_also_at_its_last_questions(tmp_path: Path, kind: str) -> None:
    url = make_store(tmp_path, 8)
    retry_after = "100000" if kind == "seconds" else formatdate(time.time() + 100_000, usegmt=True)

    def refuse_last(exchange: Exchange) -> Fault | None:
        return Fault.RATE_LIMITED_AFTER if exchange.number >= 5 else None

    with TeacherServer(decide=refuse_last, retry_after=retry_after) as server:
        with pytest.raises(TeacherError, match=r"asks to wait (100000|99999|9999\d) s, more than its wait_s of 300"):
            soon(lambda: run(url, target(server.base_url, STEPS, concurrency=8)))
        assert len(server.log) == 8
    assert statuses(url) == {"ok": 5, "error": 3}


@pytest.mark.long
def test_a_pause_within_the_patience_is_kept_and_the_question_asked_again(tmp_path: Path) -> None:
    url = make_store(tmp_path, 2)

    def refuse_first(exchange: Exchange) -> Fault | None:
        return Fault.RATE_LIMITED_AFTER if exchange.number < 2 else None

    with TeacherServer(decide=refuse_first, retry_after="1") as server:
        assert soon(lambda: run(url, target(server.base_url, STEPS))).complete
        first, last = server.log[0], server.log[2]
        assert last.arrived_at - first.arrived_at >= 1
        assert len(server.log) == 4


@pytest.mark.parametrize("fault", [Fault.UNAUTHORIZED, Fault.NO_QUOTA])
def test_who_must_stop_waits_for_no_pause(tmp_path: Path, fault: Fault) -> None:
    url = make_store(tmp_path, 4)
    met = {0: Fault.RATE_LIMITED_AFTER, 1: Fault.RATE_LIMITED_AFTER, 2: fault}

    def decide(exchange: Exchange) -> Fault | None:
        if exchange.number == 2:
            time.sleep(0.2)  # so that the others wait by then
        return met.get(exchange.number)

    said = pytest.raises(TeacherError, match=r"was not accepted|no quota or credit left")
    with TeacherServer(decide=decide, retry_after="250") as server, said:
        soon(lambda: run(url, target(server.base_url, STEPS, concurrency=4)))


# --- signals ----------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.default_cases("1")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_run_that_waits_for_a_servers_pause(tmp_path: Path, number: signal.Signals) -> None:
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("the tests were started by nohup, and so ignore this signal")
    url = make_store(tmp_path, 12)
    with TeacherServer(
        decide=lambda exchange: Fault.RATE_LIMITED_AFTER if exchange.number >= 8 else None, retry_after="250"
    ) as server:
        write_configuration(tmp_path, server.base_url)
        with (tmp_path / "recycledb.toml").open("a") as file:
            file.write('\n[sync]\nsteps = ["reflect_response"]\n')  # so that what waits is all that is left
        process = start_command(tmp_path, *RUN_COMMAND, "sync")
        wait_for(lambda: statuses(url)["error"] == 4)
        time.sleep(0.3)
        process.send_signal(number)
        output, errors = process.communicate(timeout=SOON_S)
        assert process.returncode == 3, errors
        assert "stopped on request" in output and "still missing: " in output
        assert "Traceback" not in errors
        assert statuses(url).total() == len(server.log)


@pytest.mark.long
def test_a_second_signal_ends_at_once_and_commits_what_has_arrived(tmp_path: Path) -> None:
    url = make_store(tmp_path, 60)
    with TeacherServer(
        decide=lambda exchange: Fault.HANG if exchange.number >= 40 else None, hang_s=600, delay_s=0.2
    ) as server:
        write_configuration(tmp_path, server.base_url)
        process = start_command(tmp_path, *RUN_COMMAND, "sync")
        wait_for(lambda: len(server.log) >= 85)
        process.terminate()
        assert process.stderr is not None and "stopping" in process.stderr.readline()
        process.terminate()
        _, errors = process.communicate(timeout=SOON_S / 2)  # a minute is what it would wait for those that hang
        assert process.returncode == 130, errors
        assert "stopped; what was committed is kept" in errors and "Traceback" not in errors
        found = statuses(url)
        assert found == {"ok": sum(exchange.complete for exchange in server.log), "lost": found["lost"]}
        assert found["ok"] == 40
        assert rows(url, "SELECT count(*) AS n FROM worker WHERE ended_at IS NULL") == [{"n": 0}]


@pytest.mark.slow
def test_what_is_not_waited_for_any_longer_is_told(tmp_path: Path) -> None:
    url = make_store(tmp_path, 10)
    with TeacherServer(decide=lambda exchange: Fault.HANG if exchange.number >= 7 else None, hang_s=600) as server:
        write_configuration(tmp_path, server.base_url)
        process = start_command(tmp_path, *RUN_COMMAND, "sync", "--only", "reflect")
        wait_for(lambda: statuses(url)["ok"] >= 7)
        process.terminate()
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 3
        under_way = len(server.log) - statuses(url)["ok"]
        assert f"stopped on request; gave up on {under_way} requests that had no answer after 60 s" in output


_ON_TERMINAL = """
import fcntl, signal, termios
signal.signal(signal.SIGHUP, signal.SIG_DFL)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from recycledb.cli import main
main()
"""


@pytest.mark.long
def test_a_closed_terminal_loses_no_reply(tmp_path: Path) -> None:
    url = make_store(tmp_path, 80)
    with TeacherServer(delay_s=0.5) as server:
        write_configuration(tmp_path, server.base_url, concurrency=20)
        ours, theirs = pty.openpty()
        command = [sys.executable, "-c", _ON_TERMINAL, "sync"]
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=clean_environment(TERM="xterm"),
            start_new_session=True,
        )
        os.close(theirs)
        drawn = threading.Thread(target=drain, args=(ours, server), daemon=True)
        drawn.start()
        wait_for(lambda: len(server.log) >= 30)
        drawn.join(SOON_S)
        os.close(ours)  # the terminal is gone: SIGHUP, and EIO for whoever writes
        assert process.wait(SOON_S) == 3
        assert statuses(url) == {"ok": len(server.log)}


def drain(terminal: int, server: TeacherServer) -> None:
    """Read what is drawn until the server has been asked often enough."""
    os.set_blocking(terminal, False)
    while len(server.log) < 30:
        try:
            os.read(terminal, 65_536)
        except BlockingIOError:
            time.sleep(0.01)


@pytest.mark.long
def test_a_run_goes_on_when_nobody_reads_its_progress(tmp_path: Path) -> None:
    url = make_store(tmp_path, 30)
    with TeacherServer(delay_s=0.3) as server:
        write_configuration(tmp_path, server.base_url, concurrency=8)
        process = start_command(tmp_path, *RUN_COMMAND, "sync", "--only", "reflect", "--json")
        assert process.stderr is not None and process.stdout is not None
        wait_for(lambda: len(server.log) >= 8)
        process.stderr.close()
        outcome = json.loads(process.stdout.read())
        assert process.wait(SOON_S) == 0
        assert outcome["complete"] and outcome["answered"] == len(server.log) == statuses(url)["ok"]
        process.stdout.close()


@pytest.mark.long
def test_a_command_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    make_store(tmp_path, 30)
    ignoring = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); from recycledb.cli import main; main()"
    with TeacherServer(delay_s=0.3) as server:
        write_configuration(tmp_path, server.base_url, concurrency=8)
        process = start_command(tmp_path, sys.executable, "-c", ignoring, "sync", "--only", "reflect")
        wait_for(lambda: len(server.log) >= 8)
        process.send_signal(signal.SIGHUP)
        assert process.wait(SOON_S) == 0
        process.communicate()


# --- before and after asking ------------------------------------------------------------------------


def test_a_stop_while_it_is_planned_begins_nothing(tmp_path: Path) -> None:
    url = make_store(tmp_path, 3)
    stop = Stop()
    stop.asked = 1
    with TeacherServer() as server:
        outcome = run(url, target(server.base_url, STEPS), stop=stop)
        assert (outcome.stopped, outcome.complete, outcome.left.calls) == ("stopped on request", False, 3)
        assert server.log == []
    assert rows(url, "SELECT * FROM worker") == []


@pytest.mark.long
@pytest.mark.parametrize("path", [r"/v1/batches/\w+", r"/v1/files/.*/content", "/v1/batches"])
def test_a_stop_is_seen_while_a_batch_service_says_nothing(tmp_path: Path, path: str) -> None:
    url = make_store(tmp_path, 3)
    stop = Stop()
    with BatchServer() as server:
        wanted = target(server.base_url, STEPS, mode="batch", timeout_s=600)
        run(url, wanted)
        server.end("batch_1")
        if path == "/v1/batches":  # one whose creation was not heard of is looked for in the list
            with Store.open(url) as store, store.write() as conn:
                conn.exec_driver_sql("DELETE FROM batch_event")
        server.hang, server.got = path, []
        threading.Thread(target=lambda: (wait_for(lambda: server.got), setattr(stop, "asked", 1)), daemon=True).start()
        outcome = soon(lambda: run(url, wanted, stop=stop))
        assert (outcome.stopped, outcome.left.in_batches) == ("stopped on request", 3)
        server.hang = None
        assert run(url, wanted).complete
        assert set(server.asked().values()) == {1}


@pytest.mark.long
def test_a_batch_service_that_asks_to_wait_is_waited_for_within_the_patience(tmp_path: Path) -> None:
    url = make_store(tmp_path, 3)
    stop = Stop()
    with BatchServer() as server:
        wanted = target(server.base_url, STEPS, mode="batch")
        run(url, wanted)
        server.end("batch_1")
        server.busy, server.got = (r"/v1/batches/\w+", "100000"), []
        with pytest.raises(TeacherError, match="asks to wait 100000 s, more than its wait_s of 300") as caught:
            soon(lambda: run(url, wanted))
        assert "\n" not in str(caught.value) and len(server.got) == 1
        server.busy = (r"/v1/batches/\w+", "100")
        threading.Thread(
            target=lambda: (wait_for(lambda: len(server.got) > 1), setattr(stop, "asked", 1)), daemon=True
        ).start()
        assert soon(lambda: run(url, wanted, stop=stop)).stopped == "stopped on request"
        server.busy = (r"/v1/batches/\w+", "0.1")
        threading.Thread(target=lambda: (wait_for(lambda: len(server.got) > 3), free(server)), daemon=True).start()
        assert soon(lambda: run(url, wanted)).complete


def free(server: BatchServer) -> None:
    server.busy = None


def test_a_call_hands_on_its_result_and_its_error_and_a_stop_leaves_it_alone() -> None:
    stop, ended = Stop(), threading.Event()
    assert call(lambda: 5, stop) == 5
    with pytest.raises(ZeroDivisionError):
        call(lambda: 1 // 0, stop)
    threading.Timer(0.1, lambda: setattr(stop, "asked", 1)).start()
    with pytest.raises(Stopped):
        call(lambda: ended.wait(SOON_S), stop)
    assert call(lambda: 6, stop, grace_s=SOON_S) == 6  # what must be done is, although a stop came before
    for wait in (lambda: call(lambda: 7, stop), lambda: pause(SOON_S, stop)):
        with pytest.raises(Stopped):
            wait()
    ended.set()


@pytest.mark.long
def test_scoring_that_is_stopped_commits_what_was_computed_and_no_more(tmp_path: Path) -> None:
    from tiny_students import save_student

    save_student(tmp_path / "student", "llama")
    url = make_store(tmp_path, 300)
    student = {"model": str(tmp_path / "student"), "max_length": 256, "device": "cpu"}
    wanted = resolve(parse({"students": {"s": student}}, tmp_path / "recycledb.toml"), only="score")
    stop = Stop()

    def listen(progress: Progress) -> None:
        stop.asked = int(progress.done > 0)

    outcome = run(url, wanted, stop=stop, listener=listen)
    stored = rows(url, "SELECT count(*) AS n FROM loss")[0]["n"]
    assert (outcome.stopped, outcome.as_dict()["statistics"]) == ("stopped on request", stored)
    assert 0 < stored < 1_200
    assert run(url, wanted).as_dict()["statistics"] == 1_200 - stored
