"""All at once: a server with every trick, answers that hide what they cost, and processes that are killed or told to stop at random."""

import json
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import RUN_COMMAND
from sync_runs import OUTCOMES, attempts, make_store, rows, run, target
from teacher_server import Exchange, Fault, TeacherServer
from test_sync_kills import start_command, start_sync, wait_for, write_configuration

# What the client makes of the ways in which a server hides what it bills; the rest is in OUTCOMES.
MONEY = {
    Fault.EMPTY_NO_USAGE: "failed",
    Fault.REFUSAL_NO_USAGE: "failed",
    Fault.FILTERED_NO_USAGE: "failed",
    Fault.NEGATIVE_USAGE: "ok",
    Fault.ZERO_USAGE: "ok",
    Fault.CACHED_BEYOND_PROMPT: "ok",
    Fault.THOUGHT_APART: "ok",
    Fault.BILLED_HANG: "error",
    Fault.BILLED_RESET: "error",
    Fault.BILLED_ERROR: "error",
    Fault.BILLED_FILTER: "failed",
}
EXPECTED = {
    **{name: status for name, (status, _) in OUTCOMES.items()},
    **{fault.value: end for fault, end in MONEY.items()},
}
RARE = {
    Fault.HANG,
    Fault.TRICKLE,
    Fault.BILLED_HANG,
    Fault.BOMB,
    Fault.LARGE,
    Fault.DEEP,
}  # slow ones, for the test's sake
SHARES = {
    fault: 0.002 if fault in RARE else 0.008 for fault in Fault if fault.value in EXPECTED and fault is not Fault.NONE
}
TEACHER = {"timeout_s": 2.0, "max_attempts": 8, "price_in": 1.0, "price_out": 4.0}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGKILL, signal.SIGHUP)


_UNANSWERED = "SELECT attempt_id FROM attempt WHERE attempt_id NOT IN (SELECT attempt_id FROM reply)"


def missing(url: str, log: Sequence[Exchange]) -> list[Exchange]:
    """Return the exchanges that gave a complete answer whose text is not in the store."""
    stored = {row["request_id"]: row["text"] for tries in attempts(url).values() for row in tries if row["request_id"]}
    paid = [exchange for exchange in log if exchange.complete and EXPECTED[str(exchange.fault)] == "ok"]
    return [exchange for exchange in paid if stored.get(f"req-{exchange.number}") != exchange.text]


def contradictions(url: str, log: Sequence[Exchange]) -> list[str]:
    """Return where a stored reply says something else than the server did, and calls that are not on record."""
    by_number = {f"req-{exchange.number}": exchange for exchange in log}
    on_record = attempts(url)
    wrong = [f"not on record: {question}" for question in {exchange.question for exchange in log} - set(on_record)]
    for question, calls in Counter(exchange.question for exchange in log).items():
        if calls > len(on_record.get(question, ())):
            wrong.append(f"{calls} calls of {question}, but {len(on_record[question])} attempts on record")
    for question, tries in on_record.items():
        for row in tries:
            exchange = by_number.get(row["request_id"])
            if exchange is None:
                continue
            if (exchange.question, EXPECTED[str(exchange.fault)]) != (question, row["status"]):
                wrong.append(
                    f"call {exchange.number} met {exchange.fault}, but is stored as {row['status']}: {row['error']}"
                )
        if sum(row["status"] == "ok" for row in tries) > 1:
            wrong.append(f"asked again after it was answered: {question}")
    return wrong


def attack(folder: Path, samples: int, blows: int, in_flight: int, seed: int) -> None:
    """Sync one store while everything goes wrong, blow by blow; then let it end, and hold the store against the server's log."""
    url, received, chance = make_store(folder, samples), folder / "received", random.Random(seed)
    received.touch()
    unsaved, on_wire, cut = (
        [],
        [],
        set[str](),
    )  # the last: attempts under way at a kill, whose replies no client can save
    with TeacherServer(seed=seed, faults=SHARES, delay_s=0.2, retry_after="0.2") as server:
        write_configuration(folder, server.base_url, **TEACHER, concurrency=in_flight)
        for number in range(blows):
            blow, calls, before = SIGNALS[number % len(SIGNALS)], len(server.log), received.stat().st_size
            if blow is signal.SIGKILL:
                options = ("--received", str(received), "--concurrency", str(in_flight), "--max-attempts", "8")
                process = start_sync(url, server.base_url, *options, "--configured", json.dumps(TEACHER))
            else:
                process = start_command(folder, *RUN_COMMAND, "sync")
            wait_for(
                lambda calls=calls, process=process: len(server.log) >= calls + in_flight or process.poll() is not None
            )
            assert process.poll() is None, "it was done before it could be stopped: give it more samples"
            time.sleep(chance.uniform(0.0, 1.5))
            on_wire.append(server.in_flight)
            process.send_signal(blow)
            _, errors = process.communicate(timeout=60)
            wait_for(lambda: server.in_flight == 0)
            if blow is signal.SIGKILL:
                came = set(received.read_bytes()[before:].decode().split())
                unanswered = {row["attempt_id"] for row in rows(url, _UNANSWERED)}
                unsaved.append(len(came & unanswered))
                cut |= unanswered
            else:  # a stop in order: what is under way is waited for, and committed
                assert (process.returncode, "Traceback" in errors) == (3, False), errors
        for _ in range(3):  # until only what failed for good is left
            outcome = run(url, target(server.base_url, concurrency=in_flight, **TEACHER))
            if outcome.left.ready == 0:
                break
        log = list(server.log)
    assert outcome.left.ready == 0 and outcome.stopped is None, outcome.as_dict()
    assert contradictions(url, log) == []
    lost = missing(url, log)
    # Besides, a busy machine may read an answer too late; then the attempt is on record as one that timed out.
    late = {row["attempt_id"] for tries in attempts(url).values() for row in tries if "timeout" in (row["error"] or "")}
    excused = {q for q, tries in attempts(url).items() if (cut | late) & {row["attempt_id"] for row in tries}}
    assert [e.number for e in lost if e.question not in excused] == []
    assert len(lost) <= len(cut | late)
    check_money(url, log)
    faults = Counter(str(e.fault) for e in log if e.fault is not Fault.NONE)
    print(
        f"\n{len(log)} calls of {len({e.question for e in log})} questions, {blows} blows ({len(unsaved)} kills) with "
        f"{in_flight} in flight ({sum(on_wire) / blows:.0f} on the wire each): {sum(e.complete for e in log)} answered in full, "
        f"{faults.total()} of the calls with one of {len(faults)} faults; {len(lost)} texts lost on the wire by kills, no other; "
        f"received and not committed: {sum(unsaved) / len(unsaved):.2f} a kill, {max(unsaved)} at most"
    )
    if len(unsaved) >= 10:  # an average of a few says little
        assert sum(unsaved) / len(unsaved) <= 3


def check_money(url: str, log: Sequence[Exchange]) -> None:
    """What is charged, known costs and what was set aside for unknown ones, is never less than what the server bills."""
    sql = """
        SELECT sum(coalesce(r.cost_usd, a.reserved_usd)) AS charged, sum(r.cost_usd) AS known
        FROM attempt a LEFT JOIN reply r ON r.attempt_id = a.attempt_id
    """
    [found] = rows(url, sql)
    billed = sum(exchange.bill(TEACHER["price_in"], TEACHER["price_out"]) for exchange in log)
    assert found["charged"] >= billed - 1e-9, (found, billed)


@pytest.mark.long
def test_an_attack_loses_and_hides_nothing(tmp_path: Path) -> None:
    attack(tmp_path, samples=60, blows=1, in_flight=30, seed=5)


@pytest.mark.long
def test_a_longer_attack_loses_and_hides_nothing(tmp_path: Path) -> None:
    attack(tmp_path, samples=300, blows=4, in_flight=60, seed=5)


@pytest.mark.slow
def test_five_thousand_questions_under_attack_agree_with_the_servers_log(tmp_path: Path) -> None:
    attack(tmp_path, samples=1_800, blows=20, in_flight=100, seed=6)
