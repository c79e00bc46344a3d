"""A sync that is killed, stopped, or refused by its disk: nothing committed is lost or asked again; what was on the wire is on record."""

import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import sync_runs
from conftest import RUN_COMMAND, clean_environment
from forks import PIPE, Forked, start
from sync_runs import attempts, make_store, rows, run, target
from teacher_server import Exchange, Fault, TeacherServer

IN_FLIGHT = 200
CONCURRENCY = 50  # of a command that is stopped
TESTS = Path(__file__).resolve().parent


def wait_for(condition: Callable[[], Any], seconds: float = 180.0) -> None:
    """Wait until something is true, or fail."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)


def start_sync(url: str, base_url: str, *options: str, **more: Any) -> Forked:
    """Start a sync in a process of its own."""
    command = [sys.executable, sync_runs.__file__, url, base_url, *options]
    environment = clean_environment(**more.pop("env", {}))
    return start(command, stdout=PIPE, stderr=PIPE, text=True, env=environment, **more)


def stored_texts(url: str) -> set[str]:
    return {row["text_id"] for row in rows(url, "SELECT text_id FROM reply")}


def kill_often(
    folder: Path,
    kills: int,
    samples: int,
    seed: int,
    limit: int | None = None,
    in_flight: int = IN_FLIGHT,
    backend: str = "sqlite",
) -> None:
    """Kill syncs of one store at random moments, then let one go on; check the record and print the figures."""
    url, received, chance = make_store(folder, samples, backend), folder / "received", random.Random(seed)
    unsaved, on_wire, known = [], [], set[str]()
    with TeacherServer(delay_s=0.3) as server:
        for _ in range(kills):
            calls, received_before = len(server.log), received.stat().st_size if received.exists() else 0
            process = start_sync(url, server.base_url, "--received", str(received), "--concurrency", str(in_flight))
            wait_for(
                lambda calls=calls, process=process: len(server.log) >= calls + in_flight or process.poll() is not None
            )
            assert process.poll() is None, "it was done before it could be killed: give it more samples"
            time.sleep(chance.uniform(0.0, 1.5))
            on_wire.append(server.in_flight)
            process.kill()
            process.communicate()
            wait_for(lambda: server.in_flight == 0)
            came = set(received.read_bytes()[received_before:].decode().split())
            committed = {row["attempt_id"] for row in rows(url, "SELECT attempt_id FROM reply")}
            unsaved.append(len(came - committed))
            print(f"kill {len(unsaved)}: {len(came)} replies received, {unsaved[-1]} of them not committed", flush=True)
            before, known = known, stored_texts(url)
            assert before <= known
        outcome = run(url, target(server.base_url, concurrency=in_flight), limit=limit)
        assert outcome.complete is (limit is None)
        asked = Counter(exchange.question for exchange in server.log)
    check_record(url, asked, {"ok"} if limit is None else {"ok", "lost"})
    total = rows(url, "SELECT count(*) AS n FROM teacher_texts WHERE status = 'lost'")[0]["n"]
    print(
        f"\n{kills} kills with {in_flight} in flight: {sum(on_wire) / kills:.0f} calls on the wire a kill, "
        f"{total / kills:.0f} attempts on record as lost a kill; received and not committed: "
        f"{sum(unsaved) / kills:.2f} a kill, {max(unsaved)} at most; {len(known)} replies stored, none lost, none asked again"
    )
    if kills >= 20:  # an average of a few says little: one kill in the middle of a group counts for all
        assert sum(unsaved) / kills <= 3


def check_record(url: str, asked: Counter[str], ends: Collection[str] = ("ok",)) -> None:
    """Hold the attempts on record against how often the server was asked each question."""
    tries = attempts(url)
    assert set(asked) <= set(tries)
    for question, on_record in tries.items():
        statuses = [row["status"] for row in on_record]
        assert statuses[-1] in ends
        assert set(statuses[:-1]) <= {"lost"}  # once answered, never asked again
        assert asked[question] <= len(statuses)  # each call was on record before it was sent
        assert [row["number"] for row in on_record] == list(range(1, len(statuses) + 1))


@pytest.mark.long
def test_a_kill_loses_nothing_that_was_committed_and_asks_nothing_twice(tmp_path: Path) -> None:
    kill_often(tmp_path, 1, 100, seed=1, in_flight=50)


@pytest.mark.long
def test_kills_lose_nothing_that_was_committed_and_ask_nothing_twice(tmp_path: Path) -> None:
    kill_often(tmp_path, 3, 1_000, seed=1)


@pytest.mark.slow
def test_fifty_kills_lose_nothing_that_was_committed(tmp_path: Path) -> None:
    kill_often(tmp_path, 50, 8_000, seed=2, limit=2_000)


def write_configuration(folder: Path, base_url: str, **teacher: Any) -> None:
    """Write a recycledb.toml with one teacher for the store that `make_store` makes."""
    values = {"model": "made-up", "base_url": base_url, "concurrency": CONCURRENCY, **teacher}
    lines = ["[store]", 'url = "sqlite:///store.db"', "[teachers.t]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    (folder / "recycledb.toml").write_text("\n".join(lines))


def start_command(folder: Path, *command: str) -> Forked:
    """Start a command in `folder`."""
    return start(command, cwd=folder, stdout=PIPE, stderr=PIPE, text=True, env=clean_environment())


@pytest.mark.long
@pytest.mark.default_cases("15")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_asking_and_what_is_under_way_is_committed(tmp_path: Path, number: signal.Signals) -> None:
    url = make_store(tmp_path, 150)
    with TeacherServer(delay_s=0.5) as server:
        write_configuration(tmp_path, server.base_url)
        process = start_command(tmp_path, *RUN_COMMAND, "sync")
        wait_for(lambda: len(server.log) >= 120)
        process.send_signal(number)
        assert process.stderr is not None
        said = process.stderr.readline()
        before = len(server.log)
        output, errors = process.communicate(timeout=180)
        errors = said + errors
        assert process.returncode == 3, errors
        assert len(server.log) <= before + CONCURRENCY  # of hundreds, only those on their way to the server
        statuses = Counter(row["status"] for tries in attempts(url).values() for row in tries)
        assert statuses == {"ok": len(server.log)}
        assert "stopped on request" in output
        assert "still missing: " in output
        assert "stopping: finishing in-flight requests" in errors
        assert "Traceback" not in errors


@pytest.mark.long
def test_after_a_signal_waiting_has_an_end(tmp_path: Path) -> None:
    url = make_store(tmp_path, 60)
    with TeacherServer(decide=lambda exchange: Fault.HANG if exchange.number >= 30 else Fault.NONE) as server:
        write_configuration(tmp_path, server.base_url, timeout_s=2.0)
        process = start_command(tmp_path, *RUN_COMMAND, "sync")
        wait_for(lambda: len(server.log) >= 50)
        process.terminate()
        process.communicate(timeout=180)  # else what hangs would be asked again and again
        assert process.returncode == 3
        statuses = Counter(row["status"] for tries in attempts(url).values() for row in tries)
        assert statuses["ok"] == 30
        assert set(statuses) <= {"ok", "error", "lost"}
        assert statuses.total() == len(server.log)


@pytest.mark.long
@pytest.mark.default_cases("full")
@pytest.mark.parametrize(
    ("what", "said"), [("write", "no space is left for"), ("fsync", "the disk refused to write")], ids=["full", "fsync"]
)
def test_a_disk_that_fails_ends_asking_at_once(tmp_path: Path, what: str, said: str) -> None:
    url, moment = make_store(tmp_path, 150), tmp_path / "moment"
    with TeacherServer(delay_s=0.3) as server:
        write_configuration(tmp_path, server.base_url)
        process = start_command(tmp_path, sys.executable, str(TESTS / "failing_disk.py"), what, str(moment), "sync")
        wait_for(lambda: len(server.log) >= 150)
        before = stored_texts(url)
        process.send_signal(signal.SIGUSR1)
        _, errors = process.communicate(timeout=180)
        failed_at = float(moment.read_text())
        assert process.returncode == 1
        assert errors.startswith("recycledb: ") and said in errors and errors.count("\n") == 1, errors
        assert before and before <= stored_texts(url)
        late = [exchange for exchange in server.log if exchange.arrived_at > failed_at]
        assert len(late) <= 2 * CONCURRENCY, f"{len(late)} calls after the disk failed"  # those on their way
        asked = Counter(exchange.question for exchange in server.log)
        on_record = attempts(url)
        assert all(len(on_record[question]) >= calls for question, calls in asked.items())
        run(url, target(server.base_url))
        asked = Counter(exchange.question for exchange in server.log)
    check_record(url, asked)


@pytest.mark.long
@pytest.mark.default_cases("2")
@pytest.mark.parametrize("processes", [2, 4])
def test_of_processes_that_share_a_store_one_asks(tmp_path: Path, processes: int) -> None:
    url = make_store(tmp_path, 80)
    with TeacherServer(delay_s=0.2) as server:
        started = [start_sync(url, server.base_url, "--concurrency", "30") for _ in range(processes)]
        outcomes = [json.loads(process.communicate(timeout=180)[0]) for process in started]
        assert set(server.questions.values()) == {1}
        assert sum(outcome["calls"] for outcome in outcomes) == len(server.log)
        assert [outcome["calls"] > 0 for outcome in outcomes].count(True) == 1  # else each would keep to rpm for itself
        assert all(outcome["complete"] for outcome in outcomes)  # the others waited for it
        assert run(url, target(server.base_url)).idle
    assert {row["status"] for tries in attempts(url).values() for row in tries} == {"ok"}


@pytest.mark.long
def test_a_dead_processs_questions_are_taken_over_by_one_that_is_running(tmp_path: Path) -> None:
    url = make_store(tmp_path, 50)

    def hang_first(exchange: Exchange) -> Fault | None:
        return Fault.HANG if exchange.number < 40 else None

    with TeacherServer(decide=hang_first, delay_s=0.2) as server:
        first = start_sync(url, server.base_url, "--concurrency", "40", "--configured", '{"timeout_s": 600}')
        wait_for(lambda: len(server.log) >= 40)
        second = start_sync(url, server.base_url, "--concurrency", "10")
        wait_for(lambda: rows(url, "SELECT * FROM worker WHERE doing = 'waiting for others'"))
        assert len(server.log) == 40
        first.kill()
        first.communicate()
        outcome = json.loads(second.communicate(timeout=180)[0])
        assert outcome["complete"]
        check_record(url, Counter(exchange.question for exchange in server.log))
        assert max(server.questions.values()) == 2
    lost = rows(url, "SELECT count(*) AS n FROM teacher_texts WHERE status = 'lost'")[0]["n"]
    assert lost == 40
