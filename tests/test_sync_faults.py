"""A sync against a server that fails in every way there is: each call is on record, each item ends stored or failed for a reason."""

import re
from collections import Counter
from pathlib import Path

import pytest
from sync_runs import attempts, disagreements, make_store, rows, run, target
from teacher_server import Exchange, Fault, TeacherServer

from recycledb.errors import TeacherError

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
}


def check_run_under_faults(folder: Path, samples: int, least_calls: int) -> None:
    """Sync under the mix until nothing is missing, and hold the store against the server's log."""
    url = make_store(folder, samples)
    with TeacherServer(seed=3, faults=MIX, delay_s=0.02, retry_after="0.2") as server:
        wanted = target(server.base_url, timeout_s=1.0, max_attempts=8)
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


def test_every_call_under_faults_is_on_record_as_the_server_saw_it(tmp_path: Path) -> None:
    check_run_under_faults(tmp_path, 50, 180)


@pytest.mark.slow
def test_two_thousand_calls_under_faults_agree_with_the_servers_log(tmp_path: Path) -> None:
    check_run_under_faults(tmp_path, 560, 2_000)


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
