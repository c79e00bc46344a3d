"""Teachers: the real SDK against a server that fails in every way, the pace that its log shows, a tiny chat model, recordings."""

import asyncio
import base64
import json
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from teacher_server import Exchange, Fault, TeacherServer

from recycledb.config import TeacherConfig
from recycledb.errors import TeacherError
from recycledb.methods.reflection import Step
from recycledb.reflection.teachers import open_teacher
from recycledb.reflection.teachers.contract import (  # fmt: skip
    RAW_MOST,
    SHORT_MOST,
    Question,
    Reply,
    Teacher,
    TeacherStop,
    failed,
)
from recycledb.reflection.teachers.pace import BREAKER, FIRST_CONTACT_S, Pace, Ticket, retry_delay
from recycledb.reflection.teachers.prices import find_cost
from recycledb.reflection.teachers.recorded import recorded_line
from recycledb.schema import ReplyStatus, Texts

READ = Texts("an instruction", "", "an answer")
OK, FAILED, ERROR = ReplyStatus.OK, ReplyStatus.FAILED, ReplyStatus.ERROR


def question(text: str, number: int = 1) -> Question:
    return Question(f"{text}-{number}", Step.COMPRESS, [{"role": "user", "content": text}], (READ,), number)


def config(server: TeacherServer, **settings: Any) -> TeacherConfig:
    return TeacherConfig(name="t", model="m", base_url=server.base_url, **settings)


async def ask_one(settings: TeacherConfig, asked: Question) -> Reply:
    teacher = open_teacher(settings)
    try:
        with await teacher.admit(teacher.estimate(asked.messages)) as ticket:
            return await teacher.ask(asked, ticket)
    finally:
        await teacher.close()


async def ask_all(teacher: Teacher, texts: Sequence[str], most: int = 8, workers: int = 64) -> list[list[Reply]]:
    """Ask as a caller does: admitted, recorded, asked, and again while it may go better; every reply of every text."""
    replies: dict[str, list[Reply]] = {text: [] for text in texts}
    waiting = iter(texts)

    async def work() -> None:
        for text in waiting:
            for number in range(1, most + 1):
                with await teacher.admit(teacher.estimate(question(text).messages)) as ticket:
                    reply = await teacher.ask(question(text, number), ticket)
                replies[text].append(reply)
                if not reply.retriable:
                    break
                await asyncio.sleep(min(0.05, retry_delay(number, reply)))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(work())
    finally:
        await teacher.close()
    return list(replies.values())


# ---------------------------------------------------------------- one request, one reply


@pytest.fixture(scope="module")
def server() -> Iterator[TeacherServer]:
    """A server that meets each question with the fault that it names."""
    named = {fault.value: fault for fault in Fault}
    with TeacherServer(decide=lambda exchange: named.get(exchange.prompt), retry_after="0.2", hang_s=5) as running:
        yield running


OUTCOMES = [
    (Fault.NONE, OK, None),
    (Fault.SLOW, OK, None),
    (Fault.RATE_LIMITED, ERROR, "rate_limited"),
    (Fault.RATE_LIMITED_AFTER, ERROR, "rate_limited"),
    (Fault.CONFLICT, ERROR, "conflict"),
    (Fault.REQUEST_TIMEOUT, ERROR, "timeout"),
    (Fault.SERVER_ERROR, ERROR, "server_error"),
    (Fault.BAD_GATEWAY, ERROR, "server_error"),
    (Fault.HANG, ERROR, "timeout"),
    (Fault.TRICKLE, ERROR, "timeout"),
    (Fault.RESET, ERROR, "connection"),
    (Fault.RESET_IN_BODY, ERROR, "connection"),
    (Fault.INVALID_JSON, ERROR, "bad_body"),
    (Fault.CUT_JSON, ERROR, "bad_body"),
    (Fault.HTML, ERROR, "bad_body"),
    (Fault.NO_CHOICES, ERROR, "bad_body"),
    (Fault.NULL_MESSAGE, ERROR, "bad_body"),
    (Fault.EMPTY, FAILED, "empty"),
    (Fault.CUT_OFF, FAILED, "cut_off"),
    (Fault.REFUSAL, FAILED, "refusal"),
    (Fault.FILTERED, FAILED, "content_filter"),
    (Fault.FILTERED_PROMPT, FAILED, "content_filter"),
    (Fault.TOO_LONG, FAILED, "too_long"),
    (Fault.BAD_REQUEST, FAILED, "bad_request"),
    (Fault.ODD_NAMES, OK, None),
    (Fault.LONG_NAMES, OK, None),
    (Fault.WRONG_TYPES, OK, None),
    (Fault.HUGE_USAGE, OK, None),
    (Fault.ENDLESS_USAGE, OK, None),
    (Fault.NAN_USAGE, OK, None),
    (Fault.DEEP, OK, None),
    (Fault.NOT_UTF8, OK, None),
    (Fault.ODD_CONTENT, FAILED, "empty"),
    (Fault.NO_USAGE, OK, None),
    (Fault.LARGE, FAILED, "too_large"),
    (Fault.ECHO, FAILED, "bad_request"),
    (Fault.ECHO_ANSWER, OK, None),
    (Fault.ECHO_PAGE, ERROR, "bad_body"),
    (Fault.ODD_CHARSET, ERROR, "server_error"),
    (Fault.CLOSED_IN_BODY, ERROR, "connection"),
]
NO_COUNTS = (Fault.CUT_JSON, Fault.RESET_IN_BODY, Fault.TRICKLE, Fault.CLOSED_IN_BODY, Fault.LARGE)


@pytest.mark.parametrize(("fault", "status", "kind"), OUTCOMES)
def test_each_ending_of_a_request_is_one_reply(
    server: TeacherServer, fault: Fault, status: ReplyStatus, kind: str | None
) -> None:
    before = len(server.log)
    late = fault in (Fault.HANG, Fault.TRICKLE)
    reply = asyncio.run(ask_one(config(server, timeout_s=0.6 if late else 20), question(fault.value)))
    assert (reply.status, reply.kind) == (status, kind)
    assert reply.retriable is (status is ERROR)
    assert len(server.log) == before + 1  # the SDK tried once
    exchange = server.log[-1]
    assert reply.duration_ms is not None
    if exchange.complete and exchange.status is not None:
        assert reply.request_id == f"req-{exchange.number}"
    if fault is Fault.DEEP:
        assert reply.text == exchange.text
    if fault in (Fault.NONE, Fault.SLOW, Fault.CUT_OFF):
        assert (reply.text, reply.served_model) == (exchange.text, "m-2026-01-01")
    if exchange.text is not None and fault not in NO_COUNTS:
        assert (reply.prompt_tokens, reply.completion_tokens) == exchange.told
    for text in (reply.text, reply.finish_reason, reply.served_model, reply.request_id, reply.error, reply.raw):
        assert text is None or (text.encode() is not None and "\0" not in text)  # a lone surrogate could not be encoded


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault.UNAUTHORIZED, "OPENAI_API_KEY was not accepted"),
        (Fault.FORBIDDEN, "may not use model 'm'"),
        (Fault.UNKNOWN_MODEL, "no model 'm' there"),
        (Fault.NO_QUOTA, "no quota or credit left"),
        (Fault.UNSUPPORTED, "does not take max_tokens"),
        (Fault.REDIRECT, r"redirects \(307\) to https://\*\*\*@elsewhere.example/v1, .* correct base_url$"),
        (Fault.NOT_MODIFIED, "it answers 304, which is no answer to a question; correct base_url"),
    ],
)
def test_what_no_other_question_would_survive_stops_the_run(server: TeacherServer, fault: Fault, says: str) -> None:
    before = len(server.log)
    with pytest.raises(TeacherStop, match=says) as caught:
        asyncio.run(ask_one(config(server), question(fault.value)))
    assert "\n" not in str(caught.value)
    assert (caught.value.reply.status, caught.value.reply.kind) == (ERROR, "stopped")  # to be asked again, once mended
    assert len(server.log) == before + 1


def test_retry_after_is_read_as_seconds_milliseconds_or_date() -> None:
    waits: dict[str, dict[str, str]] = {
        "seconds": {"retry-after": "0.2"},
        "milliseconds": {"retry-after-ms": "150", "retry-after": "9"},
        "past": {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"},
        "future": {"retry-after": "Wed, 21 Oct 2499 07:28:00 GMT"},
        "unclear": {"retry-after": "soon"},
        "none": {},
    }
    with TeacherServer(
        decide=lambda exchange: Fault.RATE_LIMITED, reply_headers=lambda exchange: waits[exchange.prompt]
    ) as running:
        found = {name: asyncio.run(ask_one(config(running), question(name))).retry_after_s for name in waits}
    assert (found.pop("future") or 0) > 1e9
    assert found == {"seconds": 0.2, "milliseconds": 0.15, "past": 0, "unclear": None, "none": None}


def test_the_request_holds_the_configured_parameters(server: TeacherServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-mine")
    asyncio.run(ask_one(config(server, api_key_env="MY_KEY"), question("plain")))
    sent = server.log[-1]
    assert sent.headers["authorization"] == "Bearer sk-mine"
    assert sent.body == {
        "model": "m",
        "messages": [{"role": "user", "content": "plain"}],
        "temperature": 0,
        "top_p": 1,
        "max_tokens": 2048,
    }
    reasoning = {"temperature": "unset", "top_p": "unset", "max_completion_tokens": 99, "reasoning_effort": "low"}
    asyncio.run(ask_one(config(server, params=reasoning), question("plain")))
    assert server.log[-1].body.keys() == {"model", "messages", "max_completion_tokens", "reasoning_effort"}


def test_cost_is_known_by_configured_prices_only(server: TeacherServer) -> None:
    reply = asyncio.run(ask_one(config(server, price_in=2.0, price_out=8.0), question("plain")))
    assert reply.prompt_tokens and reply.completion_tokens
    assert reply.cost_usd == pytest.approx((2 * reply.prompt_tokens + 8 * reply.completion_tokens) / 1e6)
    assert asyncio.run(ask_one(config(server, price_in=2.0), question("plain"))).cost_usd is None


def test_prices_are_the_configurations_then_the_tables_else_unknown() -> None:
    openai, listed = "https://api.openai.com/v1", TeacherConfig(name="t", model="gpt-4o-mini")
    own = find_cost(listed.model_copy(update={"price_in": 2.0, "price_out": 8.0, "price_cached": 0.5}), openai)
    assert own is not None
    assert own(1_000_000, 0, 250_000) == pytest.approx(1.5 + 0.125)
    known = find_cost(listed, openai)
    assert known is not None
    assert 0 < known(1000, 0, 1000) < known(1000, 0, 0) < known(0, 1000, 0)
    assert find_cost(listed, "http://127.0.0.1:8000/v1") is None
    assert find_cost(TeacherConfig(name="t", model="nobody-knows-it"), openai) is None


def test_a_text_that_no_store_holds_is_kept_but_for_those_letters() -> None:
    with TeacherServer(answer=lambda exchange: "a\0b \ud800 \U0001f600 c") as running:
        reply = asyncio.run(ask_one(config(running), question("plain")))
    assert reply.text == "a\ufffdb \ufffd \U0001f600 c"


def ask_fault(server: TeacherServer, fault: Fault, **settings: Any) -> Reply:
    return asyncio.run(ask_one(config(server, **settings), question(fault.value)))


def test_what_fits_no_column_is_left_out_and_kept_as_it_was_said(server: TeacherServer) -> None:
    huge = ask_fault(server, Fault.HUGE_USAGE, price_in=1.0, price_out=1.0)
    assert (huge.prompt_tokens, huge.completion_tokens, huge.cost_usd) == (None, None, None)
    assert json.loads(huge.raw or "") == {"prompt_tokens": 2**63, "completion_tokens": -1}
    wrong = ask_fault(server, Fault.WRONG_TYPES)
    assert (wrong.served_model, wrong.finish_reason) == (None, None)
    assert json.loads(wrong.raw or "") == {
        "served_model": ["m"], "finish_reason": {"reason": "stop"}, "prompt_tokens": True, "completion_tokens": 12.5,
    }  # fmt: skip
    endless = json.loads(ask_fault(server, Fault.ENDLESS_USAGE).raw or "")
    assert [value.partition("… ")[2] for value in endless.values()] == ["(401 digits)", "(5001 digits)"]
    assert json.loads(ask_fault(server, Fault.NAN_USAGE).raw or "") == {
        "prompt_tokens": "nan",
        "completion_tokens": "inf",
    }
    assert ask_fault(server, Fault.ODD_NAMES).finish_reason == "st\ufffdop"
    long = ask_fault(server, Fault.LONG_NAMES)
    assert (len(long.served_model or ""), json.loads(long.raw or "")["served_model"][:4]) == (SHORT_MOST, '"mmm')
    assert len(long.raw or "") <= RAW_MOST
    for fault, kept in (
        (Fault.HTML, "502 Bad Gateway"),
        (Fault.ODD_CONTENT, "42"),
    ):
        assert kept in (ask_fault(server, fault).raw or "")
    assert ask_fault(server, Fault.NONE).raw is None


def test_a_bomb_is_unpacked_no_further_than_the_bound(server: TeacherServer) -> None:
    import openai  # noqa: F401 - so that what it takes is not counted

    asyncio.run(ask_one(config(server), question("first")))
    tracemalloc.start()
    try:
        reply = asyncio.run(ask_one(config(server, max_reply_mb=8), question(Fault.BOMB.value)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (reply.status, reply.error) == (
        FAILED,
        "too_large: the reply is larger than 8 MB; max_reply_mb sets this bound",
    )
    assert peak < 40e6  # of 600 MB; twice the bound, and what the server takes
    assert ask_fault(server, Fault.LARGE, max_reply_mb=21).status is OK


KEY = "sk-proj/very+secret-0123456789"


@pytest.mark.parametrize("fault", [Fault.ECHO, Fault.ECHO_ANSWER, Fault.ECHO_PAGE])
def test_a_key_that_is_echoed_is_masked(server: TeacherServer, monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    told = repr(ask_fault(server, fault))
    assert "***" in told
    assert KEY not in told and "very+secret" not in told
    assert KEY in server.log[-1].headers["authorization"]


def test_a_short_word_as_key_changes_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "ollama")
    with TeacherServer(answer=lambda exchange: "Run it with ollama.") as running:
        assert asyncio.run(ask_one(config(running), question("plain"))).text == "Run it with ollama."


def test_a_user_and_password_in_the_address_are_sent_and_never_told(
    server: TeacherServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    address = server.base_url.replace("http://", "http://me:p%40ssw0rd@")
    token = base64.b64encode(b"me:p@ssw0rd").decode()
    for fault in (Fault.NONE, Fault.ECHO, Fault.ECHO_PAGE, Fault.UNAUTHORIZED, Fault.REDIRECT):
        settings = TeacherConfig(name="t", model="m", base_url=address)
        try:
            told = repr(asyncio.run(ask_one(settings, question(fault.value))))
        except TeacherStop as stop:
            told = f"{stop} {stop.reply}"
        assert server.log[-1].headers["authorization"] == f"Basic {token}"
        assert not {secret for secret in ("p%40ssw0rd", "p@ssw0rd", token) if secret in told}
    for bad in ("ftp://me:hush@host/v1", "http://me:hush@host:port/v1", "http://me:hush@[::1/v1"):
        with pytest.raises(TeacherError, match=r"base_url .* is not a valid URL") as caught:
            open_teacher(TeacherConfig(name="t", model="m", base_url=bad))
        assert "hush" not in str(caught.value)


def test_a_key_is_asked_for_only_where_one_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(TeacherError, match="set OPENAI_API_KEY"):
        open_teacher(TeacherConfig(name="t", model="m"))
    with pytest.raises(TeacherError, match="base_url 'localhost:8000' is not a valid URL"):
        open_teacher(TeacherConfig(name="t", model="m", base_url="localhost:8000"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-ключ")
    with pytest.raises(TeacherError, match="OPENAI_API_KEY has characters that cannot be in a key"):
        open_teacher(TeacherConfig(name="t", model="m"))


def test_no_server_is_a_reply_too() -> None:
    with TeacherServer() as running:
        settings = config(running)
    reply = asyncio.run(ask_one(settings, question("anyone there?")))
    assert (reply.status, reply.error) == (ERROR, f"connection: Connection refused ({settings.base_url})")


def test_a_cancelled_question_gives_its_place_back(server: TeacherServer) -> None:
    async def run() -> int:
        teacher = open_teacher(config(server, concurrency=1))

        async def hang() -> None:
            with await teacher.admit() as ticket:
                await teacher.ask(question(Fault.HANG.value), ticket)

        task = asyncio.create_task(hang())
        await asyncio.sleep(0.2)
        task.cancel()
        assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)
        with await asyncio.wait_for(teacher.admit(), 1) as ticket:
            reply = await teacher.ask(question("after"), ticket)
        await teacher.close()
        return reply.status is OK

    assert asyncio.run(run())


# ---------------------------------------------------------------- the pace, as the server's log shows it


def arrivals(server: TeacherServer) -> list[float]:
    return sorted(exchange.arrived_at for exchange in server.log)


@pytest.mark.long
def test_every_fault_at_once_leaves_no_question_open() -> None:
    shares: dict[Fault, float] = dict.fromkeys(
        (fault for fault, _, _ in OUTCOMES if fault not in (Fault.NONE, Fault.HANG)), 0.015
    )
    texts = [f"question {number}" for number in range(300)]
    with TeacherServer(seed=7, faults={**shares, Fault.HANG: 0.004}, retry_after="0.05", slow_s=0.05) as running:
        settings = config(running, concurrency=48, timeout_s=2, price_in=1.0, price_out=1.0)
        asked = asyncio.run(ask_all(open_teacher(settings), texts))
    replies = [reply for attempts in asked for reply in attempts]
    assert all(attempts[-1].status in (OK, FAILED) for attempts in asked)
    assert len(running.questions) == len(texts)
    assert len(running.log) == len(replies)
    assert [len(attempts) for attempts in asked] == [running.questions[key] for key in _keys(running, texts)]
    sent = Counter(exchange.text for exchange in running.log if exchange.complete and exchange.fault is Fault.NONE)
    assert sent <= Counter(reply.text for reply in replies)


def _keys(server: TeacherServer, texts: Sequence[str]) -> list[str]:
    found = {exchange.prompt: exchange.question for exchange in server.log}
    return [found[text] for text in texts]


def test_after_a_retry_after_nothing_is_sent_for_so_long() -> None:
    def decide(exchange: Exchange) -> Fault | None:
        return Fault.RATE_LIMITED_AFTER if exchange.number == 5 else Fault.NONE

    with TeacherServer(decide=decide, retry_after="0.4", delay_s=0.02) as running:
        asked = asyncio.run(ask_all(open_teacher(config(running, concurrency=4)), [f"q{n}" for n in range(40)]))
    assert all(attempts[-1].status is OK for attempts in asked)
    refused = running.log[5].sent_at
    assert refused is not None
    later = [at for at in arrivals(running) if at > refused + 0.02]
    assert later and min(later) >= refused + 0.39


@pytest.mark.default_cases("300ms", "?")
@pytest.mark.parametrize(
    ("reset", "pause"), [("300ms", 0.3), ("0m0.25s", 0.25), ("0.2", 0.2), ("0h0m0s200ms", 0.2), ("?", 0.0)]
)
def test_a_budget_that_is_used_up_is_waited_for(reset: str, pause: float) -> None:
    def headers(exchange: Exchange) -> dict[str, str]:
        left = "0" if exchange.number == 0 else "9"
        return {"x-ratelimit-remaining-requests": left, "x-ratelimit-reset-requests": reset}

    with TeacherServer(reply_headers=headers) as running:
        asyncio.run(ask_all(open_teacher(config(running, concurrency=1)), ["a", "b", "c"], workers=1))
    first, second, _ = arrivals(running)
    assert second - first >= pause


@pytest.mark.long
def test_places_fall_to_what_the_server_bears_and_stay_near_it() -> None:
    texts = [f"q{n}" for n in range(240)]
    with TeacherServer(capacity=8, delay_s=0.03) as running:
        asked = asyncio.run(ask_all(open_teacher(config(running, concurrency=64)), texts, most=20))
    assert all(attempts[-1].status is OK for attempts in asked)
    refused = [exchange.fault is Fault.RATE_LIMITED for exchange in running.log]
    settled = refused[len(refused) // 3 :]
    assert sum(settled) < 0.25 * len(settled)
    assert max(exchange.in_flight for exchange in running.log[len(refused) // 3 :]) <= 16


@pytest.mark.long
def test_requests_and_tokens_a_minute_are_kept() -> None:
    texts = [f"q{n}" for n in range(7)]
    with TeacherServer() as running:
        asyncio.run(ask_all(open_teacher(config(running, rpm=600)), texts))  # one in 100 ms
    times = arrivals(running)
    assert times[-1] - times[0] >= 0.45
    with TeacherServer(answer=lambda exchange: "word" * 400) as running:  # 400 tokens
        asyncio.run(ask_all(open_teacher(config(running, tpm=240_000, params={"max_tokens": 600})), texts))
    times = arrivals(running)
    assert times[-1] - times[0] >= 0.4  # 7 times 400 at 4,000 a second, but for the first in and the last out


@pytest.mark.long
def test_a_server_that_is_down_is_probed_and_then_given_up() -> None:
    with TeacherServer(decide=lambda exchange: Fault.SERVER_ERROR) as running:
        teacher = open_teacher(config(running, concurrency=32, wait_s=2.0))
        with pytest.raises(ExceptionGroup) as caught:
            asyncio.run(ask_all(teacher, [f"q{n}" for n in range(200)]))
    error = caught.value.exceptions[0]
    assert isinstance(error, TeacherError)
    assert "has given no answer for" in str(error) and "500" in str(error) and "\n" not in str(error)
    assert len(running.log) <= 32 + 8  # those under way, then a probe now and then


@pytest.mark.long
def test_a_server_that_comes_back_is_asked_on() -> None:
    def decide(exchange: Exchange) -> Fault:
        return Fault.RESET if 20 <= exchange.number < 38 else Fault.NONE

    with TeacherServer(decide=decide, delay_s=0.01) as running:
        teacher = open_teacher(config(running, concurrency=16, wait_s=60))
        asked = asyncio.run(ask_all(teacher, [f"q{n}" for n in range(80)], most=12, workers=16))
    assert all(attempts[-1].status is OK for attempts in asked)


def test_a_pause_longer_than_the_patience_ends_the_run() -> None:
    with TeacherServer(decide=lambda exchange: Fault.RATE_LIMITED_AFTER, retry_after="3600") as running:
        with pytest.raises(ExceptionGroup) as caught:
            asyncio.run(ask_all(open_teacher(config(running, wait_s=5)), ["a", "b"], workers=1))
        assert "asks to wait 3600 s" in str(caught.value.exceptions[0])
        assert len(running.log) == 1


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


def test_time_in_which_nobody_asked_is_no_silence() -> None:
    clock = Clock()
    pace = Pace("t", 4, wait_s=10, clock=clock)
    pace.answered()
    pace.failed(clock.at, "connection: gone")
    clock.at += 3600
    pace.failed(clock.at - 1, "connection: gone")
    asyncio.run(pace.admit())  # no error: two failures an hour apart
    clock.at += 11
    pace.failed(clock.at, "connection: gone")
    with pytest.raises(TeacherError, match="no answer"):
        asyncio.run(pace.admit())


def test_a_server_that_was_never_heard_of_is_given_up_soon() -> None:
    clock = Clock()
    pace = Pace("t", 4, wait_s=300, clock=clock)
    pace.failed(clock.at, "connection: refused")
    clock.at += FIRST_CONTACT_S + 1
    pace.failed(clock.at - 1, "connection: refused")
    with pytest.raises(TeacherError, match=r"cannot be reached .*check its base_url"):
        asyncio.run(pace.admit())


def test_there_is_no_use_in_waiting_for_a_place_at_a_server_that_asks_to_wait_too_long() -> None:
    async def run() -> None:
        pace = Pace("t", 1, wait_s=10, clock=Clock())
        await pace.admit()  # and this one takes long
        pace.pause(1e300)
        async with asyncio.timeout(10):
            await pace.admit()

    with pytest.raises(TeacherError, match="t asks to wait 1000000000 s, more than its wait_s of 10"):
        asyncio.run(run())


def test_places_are_reduced_once_for_all_that_were_under_way() -> None:
    async def run() -> None:
        clock = Clock()
        pace = Pace("t", 100, clock=clock)
        tickets = [await pace.admit() for _ in range(100)]
        clock.at += 1
        for ticket in tickets[:10]:
            pace.limited(ticket.sent_at, 0.0, "rate_limited: 429")
            ticket.close()
        assert pace.concurrency == 70
        for ticket in tickets[10:80]:
            pace.limited(ticket.sent_at, 0.0, "rate_limited: 429")
            ticket.close()
        assert pace.concurrency == 20  # as many as it did not refuse
        for ticket in tickets[80:]:
            pace.answered()
            ticket.close()
        assert pace.concurrency == 20
        for _ in range(100_000):
            pace.answered()
        assert (pace.concurrency, pace.under_way) == (100, 0)

    asyncio.run(run())


def test_the_breaker_lets_one_probe_through_at_a_time() -> None:
    clock = Clock()
    pace = Pace("t", 100, clock=clock)
    for _ in range(BREAKER):
        pace.failed(clock.at, "server_error: 500")
    assert pace.concurrency == 1
    pace.answered()
    assert pace.concurrency == 100


def test_a_ticket_closes_once() -> None:
    async def run() -> int:
        pace = Pace("t", 2)
        with await pace.admit() as ticket:
            assert isinstance(ticket, Ticket)
            ticket.close()
        return pace.under_way

    assert asyncio.run(run()) == 0


def test_waits_double_and_are_spread() -> None:
    error = failed("connection", "gone")
    for number, most in ((1, 0.5), (2, 1.0), (3, 2.0), (50, 60.0)):
        waits = {retry_delay(number, error) for _ in range(50)}
        assert most / 2 <= min(waits) <= max(waits) <= most
        assert len(waits) > 1
    assert retry_delay(9, failed("rate_limited", "429", retry_after_s=3.0)) == 3.0


def test_importing_the_teachers_loads_no_vendor_library() -> None:
    code = "import sys, recycledb.reflection.teachers; print([m for m in ('openai', 'torch', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# ---------------------------------------------------------------- recordings


def line(text: str | None = "an answer", **fields: Any) -> str:
    return json.dumps({"step": "compress", "reads": READ._asdict(), "text": text, **fields})


def recorded(path: Path, *lines: str) -> TeacherConfig:
    path.write_text("".join(f"{one}\n" for one in lines), encoding="utf-8")
    return TeacherConfig(name="r", provider="recorded", model="gpt", file=path)


def test_a_recording_answers_attempts_in_order(tmp_path: Path) -> None:
    settings = recorded(
        tmp_path / "r.jsonl",
        line(None, error="rate_limited: 429"),
        "",
        line("first", finish_reason="length"),
        line("second", prompt_tokens=3, completion_tokens=4),
    )
    replies = [asyncio.run(ask_one(settings, question("x", number))) for number in (1, 2, 3, 4)]
    assert [(r.status, r.kind, r.text) for r in replies] == [
        (ERROR, "rate_limited", None),
        (FAILED, "cut_off", "first"),
        (OK, None, "second"),
        (OK, None, "second"),
    ]
    assert (replies[2].prompt_tokens, replies[2].completion_tokens, replies[2].served_model) == (3, 4, "gpt")
    other = Question("a", Step.REFLECT_RESPONSE, [], (READ,))
    assert asyncio.run(ask_one(settings, other)).kind == "no_recorded_reply"


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("{", "not a recorded reply"),
        ("[]", "not a recorded reply"),
        ('{"step": "compress"}', "lacks 'reads'"),
        (line().replace("compress", "guess"), "'guess' is not a step"),
        (line(None), "lacks 'text'"),
        (line(7), "text is not a text"),  # type: ignore[arg-type]
        (line(prompt_tokens="7"), "prompt_tokens is not a whole number"),
        (line().replace('"an instruction"', "null"), "reads.instruction is not a text"),
        (line().replace('"instruction"', '"question"'), "question"),
    ],
)
def test_a_bad_line_is_named_before_anything_is_asked(tmp_path: Path, bad: str, says: str) -> None:
    with pytest.raises(TeacherError, match=r"r\.jsonl, line 2: not a recorded reply") as caught:
        open_teacher(recorded(tmp_path / "r.jsonl", line(), bad))
    assert says in str(caught.value)


def test_a_recording_may_hold_what_no_database_does(tmp_path: Path) -> None:
    odd = line("a\ud800\0", finish_reason="x" * 300, prompt_tokens=10**30, completion_tokens=-1, served_model="\udfff")
    broken = line("half \ud800", error="cut\ud800_off: gone")
    settings = recorded(tmp_path / "r.jsonl", odd, broken)
    first, second = (asyncio.run(ask_one(settings, question("x", number))) for number in (1, 2))
    assert (first.text, first.served_model, first.prompt_tokens) == ("a\ufffd\ufffd", "\ufffd", None)
    assert json.loads(first.raw or "")["prompt_tokens"] == 10**30
    assert (second.text, second.error) == ("half \ufffd", "cut\ufffd_off: gone")
    with pytest.raises(TeacherError, match="line 1: not a recorded reply: nested too deep"):
        open_teacher(recorded(tmp_path / "r.jsonl", line()[:-1] + ', "more": ' + "[" * 100_000 + "]" * 100_000 + "}"))


def test_a_missing_recording_is_one_line() -> None:
    with pytest.raises(TeacherError, match=r"nowhere\.jsonl cannot be read: No such file"):
        open_teacher(TeacherConfig(name="r", provider="recorded", file=Path("nowhere.jsonl")))


def test_what_was_written_answers_as_it_was(tmp_path: Path) -> None:
    replies = [
        Reply(OK, "ä\n\u2028[End]", "stop", "served", prompt_tokens=1, completion_tokens=2),
        failed("cut_off", "too long", text="half", finish_reason="length"),
        failed("connection", "gone"),
    ]
    path = tmp_path / "out.jsonl"
    reads = [Texts(str(n), "", "") for n in range(3)]
    lines = (recorded_line(Step.COMPRESS, (read,), reply) for read, reply in zip(reads, replies, strict=True))
    path.write_text("\n".join(lines) + "\n", "utf-8")
    settings = TeacherConfig(name="r", provider="recorded", file=path)
    for read, reply in zip(reads, replies, strict=True):
        again = asyncio.run(ask_one(settings, Question("a", Step.COMPRESS, [], (read,))))
        assert (again.status, again.text, again.error) == (reply.status, reply.text, reply.error)
        assert (again.finish_reason, again.prompt_tokens) == (reply.finish_reason, reply.prompt_tokens)
