"""A sync against a server that fails in every way there is: each call is on record, each item ends stored or failed for a reason."""

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli
from sync_runs import attempts, disagreements, make_store, rows, run, target
from teacher_server import Exchange, Fault, TeacherServer

from recycledb.config import TeacherConfig
from recycledb.errors import StoreError, TeacherError
from recycledb.reflection.teachers import Question, Reply, Teacher, open_teacher
from recycledb.reflection.teachers.pace import Ticket
from recycledb.schema import ReplyStatus
from recycledb.store import Store
from recycledb.store.questions import count_under_way
from recycledb.store.sqlite import driver  # a second SQLite library in one process would see no locks
from recycledb.store.workers import end_worker, start_worker
from recycledb.sync.attempts import TeacherRun
from recycledb.sync.extraction import read_all

# About one call in three fails, as on a bad day.
MIX = {
    Fault.RATE_LIMITED: 0.02,
    Fault.RATE_LIMITED_AFTER: 0.02,
    Fault.SERVER_ERROR: 0.04,
    Fault.BAD_GATEWAY: 0.03,
    Fault.HANG: 0.01,
    Fault.TRICKLE: 0.01,
    Fault.RESET: 0.02,
    Fault.RESET_IN_BODY: 0.02,
    Fault.INVALID_JSON: 0.02,
    Fault.CUT_JSON: 0.02,
    Fault.HTML: 0.01,
    Fault.NO_CHOICES: 0.01,
    Fault.EMPTY: 0.02,
    Fault.CUT_OFF: 0.02,
    Fault.REFUSAL: 0.02,
    Fault.FILTERED: 0.01,
    Fault.TOO_LONG: 0.02,
    Fault.SLOW: 0.05,
    Fault.ODD_NAMES: 0.01,
    Fault.WRONG_TYPES: 0.01,
    Fault.HUGE_USAGE: 0.01,
    Fault.ENDLESS_USAGE: 0.01,
    Fault.NAN_USAGE: 0.01,
    Fault.DEEP: 0.005,
    Fault.NOT_UTF8: 0.01,
    Fault.ODD_CONTENT: 0.01,
    Fault.NO_USAGE: 0.01,
    Fault.ECHO_ANSWER: 0.01,
    Fault.ODD_CHARSET: 0.01,
    Fault.CLOSED_IN_BODY: 0.01,
}


def check_run_under_faults(folder: Path, samples: int, least_calls: int) -> None:
    """Sync under the mix until nothing is missing, and hold the store against the server's log."""
    url = make_store(folder, samples)
    with TeacherServer(seed=3, faults=MIX, delay_s=0.02, retry_after="0.2") as server:
        wanted = target(server.base_url, timeout_s=3.0, max_attempts=8)
        outcome = run(url, wanted)
        assert len(server.log) >= least_calls
        assert outcome.stopped is None
        assert outcome.left.ready == 0
        assert disagreements(url, server.log) == []
        assert outcome.as_dict()["calls"] == len(server.log)
    ends = Counter(
        (tries[-1]["status"], (tries[-1]["error"] or "").partition(":")[0]) for tries in attempts(url).values()
    )
    assert {status for status, _ in ends} == {"ok", "failed"}
    assert all(kind for status, kind in ends if status == "failed")
    assert outcome.left.failed == sum(count for (status, _), count in ends.items() if status == "failed")
    print(f"{outcome.as_dict()['calls']} calls: {dict(ends)}, {outcome.as_dict()['reasons']}")


@pytest.mark.long
def test_every_call_under_faults_is_on_record_as_the_server_saw_it(tmp_path: Path) -> None:
    check_run_under_faults(tmp_path, 25, 80)


@pytest.mark.long
def test_hundreds_of_calls_under_faults_are_on_record_as_the_server_saw_them(tmp_path: Path) -> None:
    check_run_under_faults(tmp_path, 150, 500)


@pytest.mark.slow
def test_two_thousand_calls_under_faults_agree_with_the_servers_log(tmp_path: Path) -> None:
    check_run_under_faults(tmp_path, 560, 2_000)


@pytest.mark.long
def test_a_question_is_asked_no_more_often_than_its_limit_and_again_by_the_next_run(tmp_path: Path) -> None:
    url = make_store(tmp_path, 3)
    steps = ["reflect_response"]

    def fail_one(exchange: Exchange) -> Fault:
        return Fault.SERVER_ERROR if "thing 1" in exchange.prompt else Fault.NONE

    with TeacherServer(decide=fail_one) as server:
        outcome = run(url, target(server.base_url, steps, max_attempts=2))
        assert Counter(server.questions.values()) == {1: 2, 2: 1}
        assert (outcome.as_dict()["errors"], outcome.as_dict()["answered"]) == (1, 2)
        assert not outcome.complete
        assert outcome.left.calls == 1
        run(url, target(server.base_url, steps, max_attempts=2))
        assert Counter(server.questions.values()) == {1: 2, 4: 1}
        server.decide = None
        assert run(url, target(server.base_url, steps, max_attempts=2)).complete
    found = rows(url, "SELECT attempt, status FROM teacher_texts WHERE attempt > 1 ORDER BY attempt")
    assert [(row["attempt"], row["status"]) for row in found] == [(2, "error"), (3, "error"), (4, "error"), (5, "ok")]


def test_what_failed_for_good_is_asked_again_only_on_request(tmp_path: Path) -> None:
    url = make_store(tmp_path, 4)
    with TeacherServer(decide=lambda exchange: Fault.REFUSAL) as server:
        wanted = target(server.base_url, ["reflect_response"])
        first = run(url, wanted)
        assert (first.left.failed, first.complete, first.as_dict()["reasons"]) == (4, False, {"refusal": 4})
        again = run(url, wanted)
        assert (len(server.log), again.idle, again.complete) == (4, True, False)
        refused = run(url, wanted, retry_failed=True)
        assert (len(server.log), refused.left.failed) == (8, 4)
        server.decide = None
        assert run(url, wanted, retry_failed=True).complete
        assert run(url, wanted, retry_failed=True).idle
        assert disagreements(url, server.log[-4:]) != []  # the store has the earlier tries too
        assert len(server.log) == 12


@pytest.mark.long
@pytest.mark.default_cases("unauthorized")
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault.UNAUTHORIZED, "was not accepted"),
        (Fault.FORBIDDEN, "may not use model"),
        (Fault.UNKNOWN_MODEL, "no model 'made-up'"),
        (Fault.NO_QUOTA, "no quota or credit left"),
        (Fault.UNSUPPORTED, "max_tokens"),
    ],
)
def test_a_failure_of_the_account_stops_the_run_and_loses_nothing(tmp_path: Path, fault: Fault, said: str) -> None:
    url = make_store(tmp_path, 60)
    with TeacherServer(decide=lambda exchange: fault if exchange.number >= 20 else None, delay_s=0.01) as server:
        wanted = target(server.base_url, ["reflect_response"], concurrency=8)
        with pytest.raises(TeacherError, match=re.escape(said)):
            run(url, wanted)
        assert 20 < len(server.log) <= 40
        stored = [row for tries in attempts(url).values() for row in tries]
        assert len(stored) == len(server.log)
        assert Counter(row["status"] for row in stored)["ok"] == 20
        server.decide = None
        assert run(url, wanted).complete
        assert sum(1 for exchange in server.log if exchange.status == 200) == 60


@pytest.mark.long
def test_a_server_that_stays_down_ends_the_run_with_one_clear_line(tmp_path: Path) -> None:
    url = make_store(tmp_path, 40)
    with TeacherServer(decide=lambda exchange: Fault.SERVER_ERROR if exchange.number >= 10 else None) as server:
        wanted = target(server.base_url, ["reflect_response"], wait_s=2, concurrency=4)
        with pytest.raises(
            TeacherError, match=r"teacher 't' has given no answer for \d+ s \(last: server_error"
        ) as caught:
            run(url, wanted)
        assert "\n" not in str(caught.value)
        assert len(server.log) < 60
        assert Counter(row["status"] for tries in attempts(url).values() for row in tries)["ok"] == 10
        server.decide = None
        assert run(url, wanted).complete


# --- one odd reply costs no other -----------------------------------------------------------------

ODD = [
    Fault.ODD_NAMES, Fault.LONG_NAMES, Fault.WRONG_TYPES, Fault.HUGE_USAGE, Fault.ENDLESS_USAGE, Fault.NAN_USAGE, Fault.DEEP,
    Fault.NOT_UTF8, Fault.ODD_CONTENT, Fault.LARGE, Fault.ECHO, Fault.ECHO_ANSWER,
]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("backend", ["sqlite", "duckdb"])
def test_odd_replies_are_stored_beside_the_others_and_asked_once(
    tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789abcdef-secret")
    url = make_store(tmp_path, 40, backend)

    def decide(exchange: Exchange) -> Fault:
        return ODD[exchange.number // 3] if exchange.number % 3 == 1 and exchange.number < 36 else Fault.NONE

    with TeacherServer(decide=decide) as server:
        outcome = run(url, target(server.base_url, ["reflect_response"], price_in=1.0, price_out=1.0))
        assert (outcome.stopped, len(server.log)) == (None, 40)
        assert disagreements(url, server.log) == []
        assert outcome.as_dict()["reasons"] == {"empty": 1, "too_large": 1, "bad_request": 1}
        assert run(url, target(server.base_url, ["reflect_response"])).idle
    stored = rows(url, "SELECT * FROM teacher_texts")
    assert len([row for row in stored if row["raw"]]) == 6
    assert "sk-0123" not in repr(stored) + repr(outcome.as_dict())
    assert "***" in repr(stored)


class Odd:
    """A teacher of somebody else's: it makes what comes back from ours into what `make` says."""

    def __init__(self, teacher: Teacher, make: Callable[[Question, Reply], Reply]) -> None:
        self.teacher, self.make = teacher, make

    @property
    def concurrency(self) -> int:
        return self.teacher.concurrency

    def estimate(self, messages: Any) -> int:
        return self.teacher.estimate(messages)

    async def admit(self, tokens: int = 0) -> Ticket:
        return await self.teacher.admit(tokens)

    async def ask(self, question: Question, ticket: Ticket | None = None) -> Reply:
        return self.make(question, await self.teacher.ask(question, ticket))

    async def close(self) -> None:
        await self.teacher.close()


@pytest.mark.long
@pytest.mark.default_cases("sqlite")
@pytest.mark.parametrize("backend", ["sqlite", "duckdb"])
def test_a_reply_that_no_store_takes_ends_as_failed_with_its_text_and_its_price(tmp_path: Path, backend: str) -> None:
    url = make_store(tmp_path, 30, backend)
    made = {
        "thing 3 ": Reply(ReplyStatus.OK, "odd \ud800", prompt_tokens=7, completion_tokens=2**70, cost_usd=0.25),
        "thing 4 ": Reply(ReplyStatus.OK, "good", duration_ms=2**80, cost_usd=0.5),
        "thing 5 ": Reply(ReplyStatus.OK, "good", request_id="\udfff", raw=["no text"]),  # type: ignore[arg-type]
    }

    def make(question: Question, reply: Reply) -> Reply:
        return next((odd for name, odd in made.items() if name in question.shown[0].instruction), reply)

    with TeacherServer() as server:
        wanted = target(server.base_url, ["reflect_response"])
        outcome = run(url, wanted, open_teacher=lambda config: Odd(open_teacher(config), make)).as_dict()
        assert (outcome["answered"], outcome["reasons"], outcome["stopped"]) == (27, {"unstorable": 3}, None)
        assert outcome["examples"]["unstorable"].startswith("unstorable: ")
        assert run(url, wanted).idle  # no claim is left, and nothing is paid for again
    found = rows(url, "SELECT * FROM teacher_texts WHERE status <> 'ok' ORDER BY cost_usd")
    stored = [(row["text"], row["prompt_tokens"], row["completion_tokens"], row["cost_usd"]) for row in found]
    assert sorted(stored, key=repr) == [
        ("good", None, None, 0.5),
        ("good", None, None, None),
        ("odd \ufffd", 7, None, 0.25),
    ]
    assert {row["error"].partition(":")[0] for row in found} == {"unstorable"}


@pytest.mark.long
def test_a_defect_of_ours_at_one_reply_is_that_replys_and_at_all_ends_the_run(tmp_path: Path) -> None:
    url = make_store(tmp_path, 60)

    def fail_one(question: Question, reply: Reply) -> Reply:
        return {}["gone"] if "thing 3 " in question.shown[0].instruction else reply  # type: ignore[no-any-return]

    def fail(question: Question, reply: Reply) -> Reply:
        raise RecursionError("too deep")

    with TeacherServer(delay_s=0.02) as server:
        wanted = target(server.base_url, ["reflect_response"], concurrency=4)

        def broken(make: Callable[[Question, Reply], Reply]) -> Callable[[TeacherConfig], Teacher]:
            return lambda config: Odd(open_teacher(config), make)

        outcome = run(url, wanted, open_teacher=broken(fail_one), limit=30).as_dict()
        assert (outcome["answered"], outcome["examples"]) == (29, {"defect": "defect: KeyError: 'gone'"})
        with pytest.raises(RecursionError, match="too deep"):
            run(url, wanted, open_teacher=broken(fail))
        assert len(server.log) < 60
    counts = Counter(row["status"] for row in rows(url, "SELECT status FROM teacher_texts"))
    assert counts == {"ok": 29, "failed": len(server.log) - 29}


@pytest.mark.long
def test_an_extractor_that_fails_at_one_text_leaves_a_reason(tmp_path: Path) -> None:
    url = make_store(tmp_path, 3)
    with TeacherServer() as server:
        run(url, target(server.base_url, ["reflect_response"]))
    with Store.open(url) as store:
        with store.write() as conn:
            conn.exec_driver_sql("DELETE FROM extraction")
            conn.exec_driver_sql(
                "UPDATE variant SET kind = 'odd' WHERE variant_id = (SELECT variant_id FROM reply ORDER BY text_id LIMIT 1)"
            )
        found = read_all(store)
        reasons = [row[0] for row in store.rows("SELECT reason FROM extraction ORDER BY text_id")]
    assert (found.read, found.unusable) == (3, 1) and reasons[1:] == [None, None]
    assert reasons[0].startswith("defect: KeyError: ") and "odd" in reasons[0]


@pytest.mark.long
def test_a_claim_that_was_never_sent_ends_and_costs_nothing(tmp_path: Path) -> None:
    """The store is locked while a claim is written, and the run is cancelled meanwhile."""
    url = make_store(tmp_path, 5)
    with TeacherServer() as server, Store.open(url) as store:
        wanted = target(server.base_url, ["reflect_response"])
        wanted.register(store)
        worker = start_worker(store)
        asyncio.run(cancelled_while_claiming(store, wanted, worker, tmp_path / "store.db"))
        assert server.log == []
        found = store.rows("SELECT status, error, cost_usd FROM teacher_texts")
        assert {(row.status, row.error.partition(":")[0], row.cost_usd) for row in found} == {
            ("error", "not_sent", 0.0)
        }
        assert count_under_way(store, wanted.wanted) == (0, 0)  # type: ignore[arg-type]
        end_worker(store, worker)
        assert run(url, wanted).complete
        assert set(server.questions.values()) == {1}


async def cancelled_while_claiming(store: Store, wanted: Any, worker: str, path: Path) -> None:
    other = driver.connect(str(path), isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    teacher = open_teacher(wanted.teacher)
    asking = TeacherRun(store, teacher, wanted, worker, wanted=wanted.wanted, listener=lambda progress: None, totals={})
    running = asyncio.create_task(asking.run())
    await asyncio.sleep(0.5)
    running.cancel()
    threading.Timer(0.3, other.rollback).start()
    with pytest.raises(asyncio.CancelledError):
        await running
    await teacher.close()
    other.close()


@pytest.mark.long
def test_a_store_that_takes_no_reply_ends_the_run_as_a_full_disk_does(tmp_path: Path) -> None:
    url = make_store(tmp_path, 5)
    with Store.open(url) as store, store.write() as conn:
        conn.exec_driver_sql("CREATE TRIGGER no BEFORE INSERT ON reply BEGIN SELECT RAISE(ABORT, 'not today'); END")
    with TeacherServer() as server:
        with pytest.raises(StoreError, match="not today"):
            run(url, target(server.base_url, ["reflect_response"]))
        with Store.open(url) as store, store.write() as conn:
            conn.exec_driver_sql("DROP TRIGGER no")
        assert run(url, target(server.base_url, ["reflect_response"])).complete


@pytest.mark.long
def test_a_small_run_says_why_nothing_came_back(tmp_path: Path, cli: Cli) -> None:
    make_store(tmp_path, 2)
    with TeacherServer() as server:
        address = server.base_url
    lines = ["[teachers.t]", 'model = "m"', f'base_url = "{address}"', "max_attempts = 1"]
    (tmp_path / "recycledb.toml").write_text("\n".join([*lines, "[sync]", 'steps = ["reflect_response"]']))
    told = cli("--store", f"sqlite:///{tmp_path}/store.db", "sync", code=3).stdout
    assert f"connection: 2, for example: Connection refused ({address})" in " ".join(told.split())


def test_a_redirect_ends_the_run_with_one_line_and_sends_nothing_on(tmp_path: Path) -> None:
    url = make_store(tmp_path, 40)
    with TeacherServer() as elsewhere, TeacherServer(decide=lambda exchange: Fault.REDIRECT) as server:
        server.location = f"{elsewhere.base_url}/chat/completions"
        with pytest.raises(TeacherError, match=f"redirects \\(307\\) to {elsewhere.base_url}, .*correct base_url$"):
            run(url, target(server.base_url, ["reflect_response"], concurrency=4))
        assert (elsewhere.log, len(server.log) < 40) == ([], True)
