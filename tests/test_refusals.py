"""A server that refuses everything alike ends the run, and no question fails for good by it; what a sync exits with."""

import json
from pathlib import Path

import pytest
from batch_server import BatchServer, Line, Lines, refused
from conftest import Cli
from sync_runs import make_store, rows, run, target
from teacher_server import Exchange, Fault, TeacherServer

from recycledb.errors import TeacherError
from recycledb.store import Store
from recycledb.sync import Sync

STEPS = ["reflect_response"]
RIGHT = "right"


def unless_right(exchange: Exchange) -> Fault | None:
    return None if exchange.headers.get("authorization") == f"Bearer {RIGHT}" else Fault.PROXY


def states(url: str) -> dict[str, int]:
    found = rows(url, "SELECT status, count(*) AS n FROM teacher_texts GROUP BY status")
    return {row["status"]: row["n"] for row in found}


@pytest.mark.long
def test_identical_refusals_from_the_first_end_the_run_and_all_are_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make_store(tmp_path, 60)
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    with TeacherServer(decide=unless_right) as server:
        wanted = target(server.base_url, STEPS, concurrency=4)
        with pytest.raises(
            TeacherError, match=r"refused each of the first 20 .*team not allowed to access model 'made-up'"
        ):
            run(url, wanted)
        assert 20 <= len(server.log) < 30
        assert states(url) == {"error": len(server.log)}
        monkeypatch.setenv("OPENAI_API_KEY", RIGHT)
        outcome = run(url, wanted)
        assert (outcome.complete, outcome.asked[0].asked) == (True, 60)


@pytest.mark.long
def test_a_refusal_is_about_its_question_where_others_are_answered(tmp_path: Path) -> None:
    url = make_store(tmp_path, 60)
    first: set[str] = set()

    def half_refused(exchange: Exchange) -> Fault | None:  # the first 10, then each other
        if len(first) < 10 or exchange.number % 2:
            first.add(exchange.question)
            return Fault.PROXY
        return None

    with TeacherServer(decide=half_refused) as server:
        outcome = run(url, target(server.base_url, STEPS, concurrency=2))
    assert outcome.asked[0].failed == len(first) >= 30
    assert states(url) == {"ok": 60 - len(first), "failed": len(first)}
    commonest = outcome.as_dict()["commonest_error"]
    assert commonest["count"] == len(first) and "team not allowed" in commonest["error"]


@pytest.mark.long
def test_few_refusals_fail_where_all_was_asked_and_wait_where_the_run_was_stopped(tmp_path: Path) -> None:
    url = make_store(tmp_path, 8)
    with TeacherServer(faults={Fault.PROXY: 1.0}) as server:
        run(url, target(server.base_url, STEPS), limit=5)
        assert states(url) == {"error": 5}
        outcome = run(url, target(server.base_url, STEPS))
    assert states(url) == {"error": 5, "failed": 8} and outcome.left.state == "failed"


@pytest.mark.long
def test_a_batch_whose_questions_were_all_refused_alike_is_asked_again(tmp_path: Path) -> None:
    url = make_store(tmp_path, 25)

    def write(requests: list[Line]) -> Lines:
        return [], [refused(each, 400, "400", f"unknown model, request {each['custom_id']}") for each in requests]

    with BatchServer() as server:
        wanted = target(server.base_url, STEPS, mode="batch")
        run(url, wanted)
        server.end("batch_1", "completed", write)
        with pytest.raises(TeacherError, match=r"refused each of the first 20 .*unknown model"):
            run(url, wanted)
        assert states(url) == {"error": 25} and len(server.batches) == 1
        run(url, wanted)
        server.end("batch_2")
        assert run(url, wanted).complete


@pytest.mark.long
def test_a_named_key_that_is_not_set_ends_the_run_before_any_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make_store(tmp_path, 2)
    monkeypatch.delenv("MY_KEY", raising=False)
    with TeacherServer() as server:
        wanted = target(server.base_url, STEPS, api_key_env="MY_KEY")
        with Store.open(url) as store:
            assert ["MY_KEY, which is not set" in text for text in Sync(store, wanted).plan().warnings] == [True]
        for mode in ("online", "batch"):
            with pytest.raises(TeacherError, match="api_key_env names MY_KEY, which is not set"):
                run(url, target(server.base_url, STEPS, api_key_env="MY_KEY", mode=mode))
        assert server.log == [] and rows(url, "SELECT * FROM attempt") == []
        monkeypatch.setenv("MY_KEY", "key")
        assert run(url, wanted).complete


# --- exit codes -----------------------------------------------------------------------------------


@pytest.mark.long
def test_exit_codes_tell_running_again_from_nothing_more_can_be_done(tmp_path: Path, cli: Cli) -> None:
    make_store(tmp_path, 4)
    fault = [Fault.SERVER_ERROR]
    with TeacherServer(decide=lambda exchange: fault[0] if exchange.number % 4 == 0 else None) as server:
        text = f"""
            [store]
            url = "sqlite:///store.db"
            [teachers.t]
            model = "made-up"
            base_url = "{server.base_url}"
            max_attempts = 1
            concurrency = 1
            [sync]
            steps = ["reflect_response"]
        """
        (tmp_path / "recycledb.toml").write_text(text)
        shown = cli("sync", code=3).stdout  # an error of the server: running again can fill it
        assert "server_error: 1, for example: 500: The server had an error" in " ".join(shown.split())
        assert "still missing: 1 calls" in shown and shown.strip().endswith("to continue: recycledb sync")
        fault[0] = Fault.REFUSAL
        shown = cli("sync", code=3).stdout  # the question fails for good in this run
        assert (
            "1 questions failed permanently; nothing more can be done without a retry: recycledb sync --retry-failed"
            in shown
        )
        shown = cli("sync", code=4).stdout  # a run that finds only that
        assert "recycledb sync --retry-failed" in shown and "still missing" not in shown
        found = json.loads(cli("sync", "--json", code=4).stdout)
        assert (found["state"], found["pending"], found["failed_permanently"], found["complete"]) == (
            "failed",
            0,
            1,
            False,
        )
        found = json.loads(cli("status", "--json").stdout)
        assert (found["state"], found["pending"], found["failed_permanently"]) == ("failed", 0, 1)
        assert len(server.log) == 5
        cli("sync", "--retry-failed")
        found = json.loads(cli("status", "--json").stdout)
        assert (found["state"], found["pending"], found["failed_permanently"]) == ("complete", 0, 0)


@pytest.mark.long
def test_a_wrong_key_is_one_line_with_the_server_s_sentence(tmp_path: Path, cli: Cli) -> None:
    make_store(tmp_path, 30)
    with TeacherServer(faults={Fault.PROXY: 1.0}) as server:
        teacher = f'[teachers.t]\nmodel = "made-up"\nbase_url = "{server.base_url}"\napi_key_env = "MY_KEY"'
        (tmp_path / "recycledb.toml").write_text(f'{teacher}\n[sync]\nsteps = ["reflect_response"]')
        store = ("--store", "sqlite:///store.db")
        shown = " ".join(cli(*store, "sync", "--dry-run").stdout.split())
        assert "warning: teacher 't': api_key_env names MY_KEY, which is not set" in shown
        assert "MY_KEY" in cli(*store, "sync", code=1).stderr
        said = cli(*store, "sync", code=1, env={"MY_KEY": "wrong"}).stderr
        assert "team not allowed to access model 'made-up'" in said and "Traceback" not in said
        assert json.loads(cli(*store, "status", "--json").stdout)["pending"] == 30
