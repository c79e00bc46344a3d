"""Money: what a request counts as, the most that it can cost, and a cap over a whole store, held against what the server bills."""

import asyncio
import json
import math
import random
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from batch_server import BatchServer, answered, expired
from conftest import Cli
from sqlalchemy import event
from sync_runs import attempts, configuration, make_store, rows, run, sample, target
from teacher_server import Exchange, Fault, TeacherServer
from test_sync import money_faults, write_toml
from test_sync_kills import start_sync, wait_for

from recycledb.config import TeacherConfig, parse
from recycledb.errors import ConfigError, TeacherError
from recycledb.methods.reflection import Step
from recycledb.reflection.teachers import Question
from recycledb.reflection.teachers.chat import ChatTeacher
from recycledb.reflection.teachers.contract import Reply
from recycledb.reflection.teachers.prices import find_cost, usage_cost
from recycledb.schema import ReplyStatus, Texts
from recycledb.store import Store
from recycledb.store.places import Place, iter_places, replace_places
from recycledb.store.questions import claim, key_of, pending_questions
from recycledb.store.replies import add_replies
from recycledb.store.rows import BatchRow, ReplyRow
from recycledb.store.spending import Spending
from recycledb.store.workers import start_worker
from recycledb.sync import Plan, Sync
from recycledb.sync.budget import Budget, described
from recycledb.sync.replies import reply_row

STEPS = ["reflect_response"]
PRICES: dict[str, Any] = {"price_in": 3.0, "price_out": 12.0, "price_cached": 0.3, "params": {"max_tokens": 100}}
DEAREST = (2_500 * 3.0 + 100 * 12.0) / 1e6  # about what is set aside for one of the tests' questions


def teacher(**settings: Any) -> TeacherConfig:
    return TeacherConfig.model_validate({"name": "t", "model": "m", **PRICES, **settings})


def billed(log: Sequence[Exchange]) -> float:
    return sum(exchange.bill(3.0, 12.0) for exchange in log)


def spending(url: str, limit: float | None = None) -> Spending:
    found = Spending(limit)
    with Store.open(url) as store, store.read() as conn:
        found.measure(conn)
    return found


# --- what an answer cost --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        ({"prompt_tokens": 1000, "completion_tokens": 100}, 3000 + 1200),
        ({"prompt_tokens": 1000, "completion_tokens": 100, "prompt_tokens_details": {"cached_tokens": 400}}, 1800 + 120 + 1200),
        ({"prompt_tokens": 1000, "completion_tokens": 100, "prompt_tokens_details": {"cached_tokens": 9000}}, 3000 + 1200),
        ({"prompt_tokens": 1000, "completion_tokens": 100, "prompt_tokens_details": {"cached_tokens": -1}}, 3000 + 1200),
        ({"prompt_tokens": 1000, "completion_tokens": 100, "prompt_tokens_details": {"cached_tokens": "all"}}, 3000 + 1200),
        ({"prompt_tokens": 1000, "completion_tokens": 100, "prompt_tokens_details": 7}, 3000 + 1200),
        ({"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1500}, 3000 + 6000),
        ({"prompt_tokens": 1000, "completion_tokens": 100, "completion_tokens_details": {"reasoning_tokens": 300}}, 3000 + 4800),
        ({"prompt_tokens": 1000, "completion_tokens": 300, "completion_tokens_details": {"reasoning_tokens": 100}}, 3000 + 3600),
        ({"prompt_tokens": 0, "completion_tokens": 100}, None),
        ({"prompt_tokens": 1000, "completion_tokens": 0}, None),
        ({"prompt_tokens": -1, "completion_tokens": 100}, None),
        ({"prompt_tokens": True, "completion_tokens": 100}, None),
        ({"prompt_tokens": 2**63, "completion_tokens": 100}, None),
        ({"prompt_tokens": 10**400, "completion_tokens": 100}, None),
        ({"prompt_tokens": 1.5, "completion_tokens": 100}, None),
        ({"completion_tokens": 100}, None),
        ([], None),
        (None, None),
    ],
)  # fmt: skip
def test_a_cost_is_the_dearer_reading_of_what_is_said_or_unknown(usage: Any, cost: float | None) -> None:
    found = usage_cost(find_cost(teacher(), "http://127.0.0.1/v1"), usage)
    assert found == (None if cost is None else pytest.approx(cost / 1e6))


def test_a_price_that_is_no_number_makes_a_cost_unknown() -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 10}
    assert [usage_cost(lambda *_, wrong=wrong: wrong, usage) for wrong in (math.nan, math.inf, -1.0)] == [None] * 3
    assert usage_cost(None, usage) is None


@pytest.mark.parametrize("key", ["price_in", "price_out", "price_cached"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -0.5])
def test_prices_that_are_no_amount_are_refused(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"teachers\.t\.{key}: Input should be"):
        parse({"teachers": {"t": {"model": "m", key: value}}}, Path("recycledb.toml"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_caps_that_are_no_amount_are_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="--max-cost is"):
        Budget(teacher(), value)
    with pytest.raises(ConfigError, match=r"sync\.budget_usd: Input should be"):
        parse({"sync": {"budget_usd": value}}, Path("recycledb.toml"))


# --- the most that a question can cost ------------------------------------------------------------


def most(text: str = "x" * 1000, **settings: Any) -> float | None:
    return Budget(teacher(**settings), None).most([{"role": "user", "content": text}])


def test_what_is_set_aside_covers_all_that_can_be_billed() -> None:
    plain = most()
    assert plain == pytest.approx(((1000 + 32 + 256) * 3.0 + 100 * 12.0) / 1e6)
    assert most(price_cached=30.0) == pytest.approx(((1000 + 32 + 256) * 30.0 + 100 * 12.0) / 1e6)
    for params, answers in (({"n": 3}, 3), ({"best_of": 5}, 5), ({"n": 2, "best_of": 4}, 4)):
        assert most(params={"max_tokens": 100, **params}) == pytest.approx(plain + (answers - 1) * 100 * 12.0 / 1e6)
    tools = {"tools": [{"type": "function", "function": {"name": "f", "description": "d" * 5000}}]}
    assert most(params={"max_tokens": 100, **tools}) >= plain + 5000 * 3.0 / 1e6  # type: ignore[operator]
    predicted = {"prediction": {"type": "content", "content": "p" * 3000}}
    assert most(params={"max_tokens": 100, **predicted}) >= plain + 3000 * 12.0 / 1e6  # type: ignore[operator]
    assert most("\ufdfa" * 1000) >= 33_000 * 3.0 / 1e6  # type: ignore[operator] # one letter, 33 bytes once it is taken apart
    assert most(params={"max_completion_tokens": 700}) == pytest.approx(plain + 600 * 12.0 / 1e6)


@pytest.mark.parametrize(
    "params", [{"max_tokens": "unset"}, {"max_tokens": -1}, {"max_tokens": 0}, {"max_tokens": 10, "n": "many"}, {"max_tokens": True}]
)  # fmt: skip
def test_without_a_bound_on_answers_nothing_can_be_set_aside(params: dict[str, Any]) -> None:
    assert most(params=params) is None
    for caps in ({"limit": 1.0}, {"limit": None, "store_limit": 1.0}):
        with pytest.raises(ConfigError, match="needs a bound on answers"):
            Budget(teacher(params=params), **caps)


@pytest.mark.long
def test_a_server_that_writes_more_than_allowed_is_counted_in_full_and_more_is_set_aside(tmp_path: Path) -> None:
    url, cap = make_store(tmp_path, 30), 0.2
    with TeacherServer(decide=lambda exchange: Fault.OVERLONG) as server:
        wanted = target(server.base_url, STEPS, **PRICES, concurrency=2, max_attempts=1)
        outcome = run(url, wanted, max_cost=cap)
        cost = billed(server.log[:1])
        assert cost > DEAREST  # each reply costs more than could be known
        assert outcome.stopped and "is reached" in outcome.stopped
        assert outcome.spent_usd == pytest.approx(billed(server.log)) and billed(server.log) <= cap
        before = len(server.log)
        run(url, wanted, max_cost=0.9 * cost)  # the next run knows it from the store
        assert len(server.log) == before


HIDING = [
    *(Fault.NO_USAGE, Fault.EMPTY_NO_USAGE, Fault.REFUSAL_NO_USAGE, Fault.FILTERED_NO_USAGE, Fault.NEGATIVE_USAGE),
    *(Fault.ZERO_USAGE, Fault.CACHED_BEYOND_PROMPT, Fault.THOUGHT_APART, Fault.BILLED_FILTER, Fault.BILLED_ERROR),
]


@pytest.mark.default_cases("zero_usage", "billed_error", "thought_apart")
@pytest.mark.parametrize("fault", HIDING)
def test_a_cap_holds_where_every_reply_hides_what_it_cost(tmp_path: Path, fault: Fault) -> None:
    url, cap = make_store(tmp_path, 30), 0.5
    dear = {**PRICES, "price_in": 100.0, "price_cached": 10.0, "price_out": 1000.0}
    with TeacherServer(decide=lambda exchange: fault) as server:
        outcome = run(url, target(server.base_url, STEPS, **dear, max_attempts=1, concurrency=4), max_cost=cap)
        assert 0 < sum(exchange.bill(100.0, 1000.0) for exchange in server.log) <= cap
        assert outcome.stopped and "the budget of $0.500000 is reached (--max-cost, for this run)" in outcome.stopped


# --- what each end counts as ----------------------------------------------------------------------

STOPS = [
    *(Fault.UNAUTHORIZED, Fault.FORBIDDEN, Fault.UNKNOWN_MODEL, Fault.NO_QUOTA, Fault.UNSUPPORTED),
    Fault.NO_STOP,
    Fault.REDIRECT,
]
FREE = {Fault.RATE_LIMITED, Fault.RATE_LIMITED_AFTER, *STOPS}


@pytest.mark.long
def test_whatever_was_not_certainly_free_is_charged(tmp_path: Path) -> None:
    """Each way to end once, and what it counts as beside what the server bills."""
    ends = [fault for fault in Fault if fault not in (*STOPS, Fault.NOT_MODIFIED)]
    url = make_store(tmp_path, len(ends))
    with TeacherServer(decide=lambda exchange: ends[exchange.number], hang_s=12.0) as server:
        run(
            url, target(server.base_url, STEPS, **PRICES, max_attempts=1, timeout_s=10.0)
        )  # a busy machine is no time-out
        bills = {exchange.question: (exchange.fault, exchange.bill(3.0, 12.0)) for exchange in server.log}
    reserved = {
        row["attempt_id"]: row["reserved_usd"] for row in rows(url, "SELECT attempt_id, reserved_usd FROM attempt")
    }
    total = 0.0
    for question, [row] in attempts(url).items():
        fault, bill = bills[question]
        assert reserved[row["attempt_id"]] > 0
        counts = reserved[row["attempt_id"]] if row["cost_usd"] is None else row["cost_usd"]
        assert (counts == 0.0) is (fault in FREE), fault
        assert bill <= counts * 1.000001, fault
        total += counts
    found = spending(url)
    assert len(bills) == len(ends) and found.total_usd == pytest.approx(total)
    assert found.unknown == sum(row["cost_usd"] is None for [row] in attempts(url).values())


@pytest.mark.default_cases("unauthorized", "no_quota")
@pytest.mark.parametrize("fault", STOPS)
def test_what_is_refused_at_the_gate_costs_nothing(tmp_path: Path, fault: Fault) -> None:
    url = make_store(tmp_path, 1)
    with TeacherServer(decide=lambda exchange: fault) as server, pytest.raises(TeacherError):
        run(url, target(server.base_url, STEPS, **PRICES))
    assert rows(url, "SELECT cost_usd FROM reply") == [{"cost_usd": 0.0}]
    assert (spending(url).total_usd, spending(url).unknown) == (0.0, 0)


def test_where_no_connection_came_about_nothing_was_paid(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        asking = ChatTeacher(teacher(base_url=address, timeout_s=5.0))

        async def ask() -> Any:
            try:
                messages = [{"role": "user", "content": "hello"}]
                return await asking.ask(Question("a", Step.COMPRESS, messages, (Texts("", "", ""),)))
            finally:
                await asking.close()

        reply = asyncio.run(ask())
    assert (reply.kind, reply.cost_usd) == ("connection", 0.0)


def test_teachers_in_this_process_and_recordings_cost_nothing(tmp_path: Path) -> None:
    url = make_store(tmp_path, 3)
    (tmp_path / "replies.jsonl").write_text("")
    recorded = {"provider": "recorded", "file": str(tmp_path / "replies.jsonl"), "params": {"max_tokens": "unset"}}
    outcome = run(url, target("http://127.0.0.1:9/v1", STEPS, **recorded, budget_usd=0.0), max_cost=0.0)
    told = outcome.as_dict()
    assert (told["calls"], told["cost_unknown"], told["cost_usd"], outcome.stopped) == (3, 0, 0.0, None)
    assert spending(url).total_usd == 0.0


# --- a cap over the store -------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["sqlite", "duckdb"])
def test_a_stores_budget_is_held_over_runs(tmp_path: Path, backend: str) -> None:
    url, budget = make_store(tmp_path, 12, backend), 3 * DEAREST
    with TeacherServer(seed=1, faults={Fault.EMPTY_NO_USAGE: 0.3, Fault.BILLED_ERROR: 0.2}) as server:
        wanted = target(server.base_url, STEPS, **PRICES, max_attempts=1, concurrency=16, budget_usd=budget)
        for _ in range(2):
            outcome = run(url, wanted)
            assert billed(server.log) <= spending(url).total_usd * 1.000001 <= budget
        assert outcome.stopped is not None and not outcome.complete
        assert "[sync] budget_usd, for the whole store" in outcome.stopped and "raise budget_usd" in outcome.stopped
        with Store.open(url) as store:
            plan = Sync(store, wanted).plan().as_dict()
        found = spending(url)
        assert plan["budget_usd"] == budget and plan["budget_unknown"] == found.unknown > 0
        assert plan["budget_left_usd"] == pytest.approx(budget - found.total_usd)
        calls = len(server.log)
        again = target(server.base_url, STEPS, **PRICES, max_attempts=1, concurrency=16, budget_usd=2 * budget)
        run(url, again)
        assert len(server.log) > calls and billed(server.log) <= 2 * budget


@pytest.mark.long
def test_the_smaller_of_two_caps_holds(tmp_path: Path) -> None:
    url = make_store(tmp_path, 40)
    with TeacherServer() as server:
        wanted = target(server.base_url, STEPS, **PRICES, concurrency=4, budget_usd=4 * DEAREST)
        first = run(url, wanted, max_cost=1.5 * DEAREST)
        assert first.stopped and "(--max-cost, for this run)" in first.stopped
        assert billed(server.log) <= 1.5 * DEAREST
        second = run(url, wanted, max_cost=100.0)
        assert second.stopped and "(--max-cost" not in second.stopped
        assert DEAREST < billed(server.log) <= 4 * DEAREST


def random_store_run(folder: Path, seed: int, rounds: int) -> None:
    """Work a store off in several runs, some of them killed, two of them at once, and hold the budget after each."""
    chance = random.Random(seed)
    budget = chance.uniform(6, 20) * DEAREST
    folder.mkdir()
    url = make_store(folder, 60)
    configured = {**PRICES, "steps": STEPS, "timeout_s": 1, "max_attempts": 2, "budget_usd": budget}
    with TeacherServer(seed=seed, faults=money_faults(chance), delay_s=0.05) as server:
        for _ in range(rounds):
            options = ("--concurrency", str(chance.choice([1, 8, 32])), "--configured", json.dumps(configured))
            processes = [start_sync(url, server.base_url, *options) for _ in range(2)]
            before = len(server.log)
            if rounds == 1 or chance.random() < 0.6:
                enough = before + chance.randint(1, 10)
                wait_for(lambda: len(server.log) >= enough or all(p.poll() is not None for p in processes))  # noqa: B023
                processes[0].kill()
            for process in processes:
                finish(process)
            found = spending(url)
            assert billed(server.log) <= found.total_usd * 1.000001 and found.total_usd <= budget
        steps = configured.pop("steps")
        run(url, target(server.base_url, steps, **configured))  # type: ignore[arg-type]
        assert server.log and billed(server.log) <= spending(url).total_usd * 1.000001 <= budget * 1.000001


def finish(process: "subprocess.Popen[str]") -> None:
    _, errors = process.communicate(timeout=120)
    assert process.returncode in (0, -9), errors


@pytest.mark.long
def test_a_stores_budget_is_held_by_processes_at_once_and_over_kills(tmp_path: Path) -> None:
    random_store_run(tmp_path / "1", 1, 1)


@pytest.mark.slow
def test_many_stores_keep_their_budgets_under_faults_and_kills(tmp_path: Path) -> None:
    for seed in range(25):
        random_store_run(tmp_path / str(seed), seed, 2 + seed % 3)


def test_two_claims_at_once_do_not_pass_the_cap_together(tmp_path: Path) -> None:
    url = make_store(tmp_path, 8)
    wanted = target("http://127.0.0.1:9/v1", STEPS).wanted
    assert wanted is not None
    with Store.open(url) as one, Store.open(url) as two:
        target("http://127.0.0.1:9/v1", STEPS).register(one)
        asked = pending_questions(one, wanted, next(iter_places(one, 8)))
        caps = [Spending(0.5), Spending(0.5)]
        for store, cap in zip((one, two), caps, strict=True):
            with store.read() as conn:
                cap.measure(conn)
        workers = [start_worker(one), start_worker(two)]
        assert len(claim(one, wanted, workers[0], asked[:4], [0.1] * 4, caps[0])) == 4
        assert len(claim(two, wanted, workers[1], asked[4:], [0.1] * 4, caps[1])) == 0  # 0.5 is the cap, rounding apart
        assert caps[1].refused == {key_of(row) for row in asked[4:]}
        assert len(claim(two, wanted, workers[1], asked[4:5], [0.09], caps[1])) == 1
        assert [row.reserved_usd for row in one.rows("SELECT reserved_usd FROM attempt ORDER BY sent_at")] == [
            0.1
        ] * 4 + [0.09]


@pytest.mark.long
@pytest.mark.parametrize("backend", ["sqlite", "duckdb"])
def test_following_new_rows_comes_to_the_same_as_counting_all(tmp_path: Path, backend: str) -> None:
    url = make_store(tmp_path, 15, backend)
    faults = {Fault.NO_USAGE: 0.2, Fault.RATE_LIMITED: 0.2, Fault.SERVER_ERROR: 0.2}
    with Store.open(url) as store, TeacherServer(seed=5, faults=faults) as server:
        followed = Spending(1.0)
        with store.read() as conn:
            followed.measure(conn)
        wanted = target(server.base_url, STEPS, **PRICES, max_attempts=1)
        for limit in (4, 6, None):
            Sync(store, wanted, limit=limit).run()
            counted = Spending(1.0)
            with store.read() as conn:
                followed.follow(conn)
                counted.measure(conn)
            assert followed.unknown == counted.unknown > 0
            assert followed.recorded_usd == pytest.approx(counted.recorded_usd)
            assert followed.charged_usd == pytest.approx(counted.charged_usd)


def two_claims(store: Store) -> list[ReplyRow]:
    """Claim two questions with 0.1 set aside for each; return replies to them that cost 0.03."""
    with store.write() as conn:
        replace_places(store, conn, "d", (Place(i, sample(i)) for i in range(2)))
    asking = target("http://127.0.0.1:9/v1", STEPS)
    asking.register(store)
    assert asking.wanted is not None
    asked = pending_questions(store, asking.wanted, next(iter_places(store, 2)))[:2]
    claims = claim(store, asking.wanted, start_worker(store), asked, [0.1, 0.1])
    reply = Reply(ReplyStatus.OK, "An answer.", "stop", "made-up", cost_usd=0.03)
    return [reply_row(attempt, reply) for attempt, _ in claims]


def follow(store: Store, followed: Spending) -> float:
    """Count what is new as a claim does; return the sum."""
    with store.write() as conn:
        followed.follow(conn)
    return followed.total_usd


def test_a_reply_that_is_committed_late_costs_no_less(pg: Store, pg_url: str) -> None:
    """Replies to one budget take a lock; one of a process that knows of no budget does not, and may come after later ones were counted."""
    early, late = two_claims(pg)
    followed = Spending(1.0)
    assert follow(pg, followed) == pytest.approx(0.2)  # what is set aside
    with Store.open(pg_url) as other:
        with other.write(locked=False) as conn:
            other.insert(conn, [early])
            add_replies(pg, [late], locked=False)
            assert follow(pg, followed) == pytest.approx(0.13)
        assert follow(pg, followed) == pytest.approx(
            0.13
        )  # its number is lower than what was counted: 0.1 stays set aside
    with pg.read() as conn:
        followed.measure(conn)
    assert followed.total_usd == pytest.approx(0.06)


def test_a_reply_that_comes_while_others_are_counted_counts_once(pg: Store, pg_url: str) -> None:
    first, second = two_claims(pg)
    followed = Spending(1.0)
    assert follow(pg, followed) == pytest.approx(0.2)
    add_replies(pg, [first])
    with Store.open(pg_url) as other:

        def between(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
            if "r.rowid > " in statement:  # after the numbers of the newest rows were read
                add_replies(other, [second], locked=False)

        event.listen(pg.backend.writer, "before_cursor_execute", between)
        assert follow(pg, followed) == pytest.approx(0.13)
        event.remove(pg.backend.writer, "before_cursor_execute", between)
    assert follow(pg, followed) == pytest.approx(0.06)


@pytest.mark.long
def test_batches_that_are_out_count_until_they_are_taken(tmp_path: Path) -> None:
    url, budget = make_store(tmp_path, 30), 10.0 * DEAREST
    configured = {**PRICES, "budget_usd": budget}
    with BatchServer() as server:
        first = run(url, target(server.base_url, STEPS, mode="batch", **configured))
        assert first.stopped and "budget_usd" in first.stopped
        out = len(server.requests("batch_1"))
        assert 0 < out < 30 and first.left.in_batches == out
        for mode in ("batch", "online"):  # nothing more is asked in either mode, and no empty batch is made
            outcome = run(url, target(server.base_url, STEPS, mode=mode, **configured))
            assert outcome.stopped and "budget_usd" in outcome.stopped
        assert (len(server.batches), len(server.online), len(rows(url, "SELECT * FROM batch"))) == (1, 0, 1)
        assert spending(url).unknown == out
        server.end("batch_1", "expired", lambda lines: ([answered(line) for line in lines[:3]], [expired(lines[3])]))
        run(url, target(server.base_url, STEPS, mode="batch", **configured), limit=1)
        found = rows(url, "SELECT status, cost_usd FROM reply")
        costs = [row["cost_usd"] for row in found]
        assert sum(cost is not None and cost > 0 for cost in costs) == 3  # answered
        assert costs.count(0.0) == 1  # the service says that it did not come to it
        assert costs.count(None) == out - 4  # it does not say
        assert spending(url).total_usd <= budget


@pytest.mark.long
def test_a_batch_that_was_never_handed_over_costs_nothing(tmp_path: Path) -> None:
    url = make_store(tmp_path, 5)
    with BatchServer() as server:
        wanted = target(server.base_url, STEPS, mode="batch", **PRICES)
        wanted.register(store := Store.open(url))
        with store:
            batch = "b" * 32
            with store.write() as conn:
                store.insert(conn, [BatchRow(batch, wanted.teacher.teacher_id, "gone", "2026-01-01T00:00:00.000000Z")])  # type: ignore[union-attr]
            asked = pending_questions(store, wanted.wanted, next(iter_places(store, 5)))  # type: ignore[arg-type]
            claim(store, wanted.wanted, batch, asked, [0.5] * 5)  # type: ignore[arg-type]
        assert spending(url).total_usd == 2.5
        run(url, wanted, limit=1, batch_options={"grace_s": 0.0})
        assert [row["status"] for row in rows(url, "SELECT status FROM batches ORDER BY created_at")] == [
            "abandoned",
            "submitted",
        ]
        assert (spending(url).unknown, spending(url).total_usd < 0.5) == (1, True)


# --- stores from before ---------------------------------------------------------------------------


@pytest.mark.long
def test_what_older_requests_cost_is_told_by_their_tokens_or_taken_at_its_most(tmp_path: Path) -> None:
    url = make_store(tmp_path, 12)

    def decide(exchange: Exchange) -> Fault | None:
        return (Fault.NO_USAGE, Fault.RATE_LIMITED, None)[exchange.number % 3]

    with TeacherServer(decide=decide) as server:
        run(
            url, target(server.base_url, STEPS, max_attempts=1, params=PRICES["params"])
        )  # no prices: nothing was set aside
        assert rows(url, "SELECT count(reserved_usd) AS n FROM attempt") == [{"n": 0}]
        unknown = [exchange for exchange in server.log if exchange.fault is not Fault.RATE_LIMITED]
        counted = [exchange for exchange in unknown if exchange.fault is Fault.NONE]
        priced = target(server.base_url, STEPS, **PRICES, budget_usd=5.0)
        with Store.open(url) as store:
            plan = Sync(store, priced).plan()
        assert plan.spending is not None and plan.spending.recorded_usd == 0.0
        assert plan.spending.unknown == len(unknown)
        by_tokens, others = billed(counted), len(unknown) - len(counted)
        assert (
            by_tokens + others * 100 * 12 / 1e6 < plan.spending.charged_usd < 1.1 * by_tokens + others * 2 * DEAREST * 4
        )
        assert billed(unknown) <= plan.spending.charged_usd
        # Another model's budget cannot be kept as long as nobody says what this one's requests cost.
        other = target(server.base_url, STEPS, **{**PRICES, "model": "other"}, budget_usd=5.0)
        for act in (lambda store: Sync(store, other).plan(), lambda store: Sync(store, other).run()):
            with (
                Store.open(url) as store,
                pytest.raises(ConfigError, match=r"earlier requests to model 'made-up'.*set price_in"),
            ):
                act(store)


def test_costs_that_cannot_be_true_count_as_unknown(tmp_path: Path) -> None:
    url = make_store(tmp_path, 4)
    with TeacherServer() as server:
        run(url, target(server.base_url, STEPS, **PRICES))
    with Store.open(url) as store, store.write() as conn:
        for number, cost in enumerate((-3.0, 1e300)):
            conn.exec_driver_sql("UPDATE reply SET cost_usd = ? WHERE rowid = ?", (cost, number + 1))
    found = spending(url)
    assert found.unknown == 2 and 0 < found.recorded_usd < 2 * DEAREST and found.charged_usd > 0


def test_recorded_costs_stay_when_prices_change(tmp_path: Path) -> None:
    url = make_store(tmp_path, 4)
    with TeacherServer() as server:
        run(url, target(server.base_url, STEPS, **PRICES))
        before = spending(url)
        dearer = target(server.base_url, STEPS, **{**PRICES, "price_in": 300.0}, budget_usd=1.0)
        with Store.open(url) as store:
            plan: Plan = Sync(store, dearer).plan()
    assert plan.spending is not None and plan.spending.total_usd == before.total_usd == pytest.approx(
        billed(server.log)
    )


# --- what is said ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "unknown", "said"),
    [
        (None, 0, ""),
        (0.0, 0, ""),
        (None, 3, "cost unknown"),
        (0.0, 1, "cost unknown"),
        (1.25, 0, "$1.2500"),
        (1.25, 1, "$1.2500 + 1 request of unknown cost"),
        (1.25, 1400, "$1.2500 + 1,400 requests of unknown cost"),
    ],
)
def test_what_is_unknown_is_never_said_to_be_nothing(known: float | None, unknown: int, said: str) -> None:
    assert described(known, unknown) == said


@pytest.mark.long
def test_without_prices_no_command_says_that_it_cost_nothing(tmp_path: Path, cli: Cli) -> None:
    make_store(tmp_path, 9)
    with TeacherServer(
        decide=lambda exchange: Fault.RATE_LIMITED if exchange.nth == 1 and exchange.number < 2 else None
    ) as server:
        write_toml(tmp_path, server.base_url, max_attempts=1)
        printed = cli("sync", code=3).stdout
        assert "2 failed, cost unknown" in printed
        shown = cli("status").stdout
        cli("report", "-o", "report.html")
        page = (tmp_path / "report.html").read_text()
        for text in (printed, shown, page):
            assert "$0" not in text
        assert "spent: cost unknown" in shown
        told = json.loads(cli("status", "--json").stdout)
        assert (told["cost_unknown"], told["budget_usd"]) == (len(server.log) - 2, None)


@pytest.mark.long
def test_the_command_shows_the_budget_and_what_is_left(tmp_path: Path, cli: Cli) -> None:
    make_store(tmp_path, 30)
    with TeacherServer(decide=lambda exchange: Fault.NO_USAGE if exchange.number == 1 else None) as server:
        write_toml(tmp_path, server.base_url, price_in=3.0, price_out=12.0, concurrency=2)
        with (tmp_path / "recycledb.toml").open("a") as file:
            file.write("\n[sync]\nbudget_usd = 0.1\n")
        done = cli("sync", code=3).stdout.replace("\n", " ")
        assert "the budget of $0.100000 is reached ([sync] budget_usd, for the whole store): $0." in done
        assert "charged for 1 request of unknown cost" in done
        told = json.loads(cli("sync", "--dry-run", "--json").stdout)
        assert told["budget_usd"] == 0.1 and told["budget_unknown"] == 1
        spent = told["budget_spent_usd"] + told["budget_charged_usd"]
        assert told["budget_left_usd"] == pytest.approx(0.1 - spent) and spent >= billed(server.log)
        for command in (("sync", "--dry-run"), ("status",)):
            assert "budget of the store: $0.100000 ([sync] budget_usd): $0." in cli(*command).stdout.replace("\n", " ")
        assert json.loads(cli("status", "--json").stdout)["budget_left_usd"] == told["budget_left_usd"]
        capped = cli("sync", "--dry-run", "--max-cost", "0.0001").stdout
        assert "limit for this run: $0.000100 (--max-cost)" in capped and "the run will stop at the limit" in capped


def test_a_budget_needs_prices(tmp_path: Path, cli: Cli) -> None:
    make_store(tmp_path, 1)
    write_toml(tmp_path, "http://127.0.0.1:9/v1")
    with (tmp_path / "recycledb.toml").open("a") as file:
        file.write("\n[sync]\nbudget_usd = 0.25\n")
    told = cli("sync", "--dry-run", code=1).stderr
    assert "[sync] budget_usd needs prices: set price_in and price_out under [teachers.t]" in told
    assert configuration("http://127.0.0.1:9/v1", budget_usd=0.25).sync.budget_usd == 0.25
    cli("status")
