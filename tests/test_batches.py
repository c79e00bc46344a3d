"""The batch service: handed over, remembered, found again, taken; nothing is asked in two places, and nothing is paid for twice."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from batch_server import BatchServer, Line, Lines, answered, exchange_of, expired, refused
from conftest import RUN_COMMAND, Cli, clean_environment
from forks import DEVNULL, Forked, start
from sync_runs import make_store, rows, run, target
from teacher_server import marked_answer

from recycledb.errors import ConfigError, TeacherError
from recycledb.sync import Outcome

STEPS = ["reflect_response"]


def sync(url: str, server: BatchServer, steps: list[str] = STEPS, mode: str = "batch", **options: Any) -> Outcome:
    return run(url, target(server.base_url, steps, mode=mode), **options)


def replies(url: str) -> list[tuple[str, int, str | None]]:
    sql = "SELECT status, attempt, error FROM teacher_texts ORDER BY attempt, status, error"
    return [(row["status"], row["attempt"], (row["error"] or "").partition(":")[0] or None) for row in rows(url, sql)]


def batches(url: str) -> list[dict[str, Any]]:
    return rows(url, "SELECT * FROM batches ORDER BY created_at")


@pytest.mark.long
@pytest.mark.parametrize("backend", ["sqlite", "duckdb"])
def test_batches_carry_every_step_of_a_sample_until_nothing_is_missing(tmp_path: Path, backend: str) -> None:
    url = make_store(tmp_path, 6, backend)
    steps = ["compress", "reflect_instruction", "reflect_response"]
    with BatchServer() as server:
        first = sync(url, server, steps)
        assert (first.batches.submitted, first.batches.requests, first.complete) == (1, 12, False)  # type: ignore[union-attr]
        assert first.left.in_batches == 12
        waiting = sync(url, server, steps)
        assert (waiting.batches.waiting, waiting.idle, len(server.batches)) == (1, True, 1)  # type: ignore[union-attr]
        for number in (1, 2, 3):
            server.end(f"batch_{number}")
            outcome = sync(url, server, steps)
        assert outcome.complete
        assert len(server.batches) == 3
        assert set(server.asked().values()) == {1}
        assert outcome.as_dict()["prompt_tokens"] == 200
    assert {status for status, _, _ in replies(url)} == {"ok"}
    assert [row["status"] for row in batches(url)] == ["taken"] * 3
    kinds = rows(url, "SELECT kind, count(*) AS n FROM variants GROUP BY kind ORDER BY kind")
    assert {row["kind"]: row["n"] for row in kinds} == {
        "origin": 6, "compressed": 2, "reflect_instruction": 6, "reflect_response": 6, "reflect_both": 6,
    }  # fmt: skip


def test_lines_are_matched_by_id_in_whatever_order_and_file_they_come(tmp_path: Path) -> None:
    url = make_store(tmp_path, 8)

    def write(requests: list[Line]) -> Lines:
        output = [answered(request) for request in requests[:5]]
        output.append(refused(requests[5], 400, "context_length_exceeded", "maximum context length"))
        errors = [refused(requests[6], 500, "server_error", "The server had an error"), {"custom_id": "not ours"}]
        return [*output, output[0], {"custom_id": None}], errors  # one line twice, and one that names nobody

    with BatchServer() as server:
        sync(url, server)
        server.end("batch_1", "completed", write, seed=4)
        outcome = sync(url, server)
        assert outcome.as_dict()["reasons"] == {"too_long": 1, "server_error": 1, "batch_completed": 1}
        assert (outcome.as_dict()["answered"], outcome.as_dict()["failed"], outcome.as_dict()["errors"]) == (5, 1, 2)
        assert outcome.batches.requests == 2  # type: ignore[union-attr] # the two errors; not what failed for good
        texts = {request["custom_id"]: answered(request) for request in server.requests("batch_1")}
        for row in rows(url, "SELECT attempt_id, text FROM teacher_texts WHERE status = 'ok'"):
            assert row["text"] == texts[row["attempt_id"]]["response"]["body"]["choices"][0]["message"]["content"]


@pytest.mark.long
@pytest.mark.parametrize("status", ["expired", "cancelled"])
def test_successes_of_an_unfinished_batch_are_kept_and_only_the_rest_is_asked_again(
    tmp_path: Path, status: str
) -> None:
    url = make_store(tmp_path, 10)
    with BatchServer() as server:
        sync(url, server)
        server.end(
            "batch_1", status, lambda requests: (list(map(answered, requests[:6])), list(map(expired, requests[6:9])))
        )
        outcome = sync(url, server)
        assert (outcome.as_dict()["answered"], outcome.batches.requests) == (6, 4)  # type: ignore[union-attr]
        assert outcome.as_dict()["reasons"] == {"batch_expired": 4} if status == "expired" else {
            "batch_expired": 3, "batch_cancelled": 1,
        }  # fmt: skip
        server.end("batch_2")
        assert sync(url, server).complete
        assert sorted(server.asked().values()) == [1] * 6 + [2] * 4


@pytest.mark.long
def test_a_batch_that_is_refused_whole_is_told_and_asked_again(tmp_path: Path) -> None:
    url = make_store(tmp_path, 3)
    with BatchServer() as server:
        sync(url, server)
        server.fail("batch_1", "Invalid JSON on line 1")
        with pytest.raises(TeacherError, match=r"refused 1 batch \(batch_1: Invalid JSON on line 1\)"):
            sync(url, server)
        assert replies(url) == [("error", 1, "batch_failed")] * 3
        sync(url, server)
        server.end("batch_2")
        assert sync(url, server).complete


@pytest.mark.long
def test_files_keep_the_services_limits_and_the_runs(tmp_path: Path) -> None:
    url = make_store(tmp_path, 10)
    with BatchServer() as server:
        sync(url, server, limit=7, batch_options={"most_requests": 3})
        assert [len(server.requests(name)) for name in server.batches] == [3, 3, 1]
        size = len(server.files["file-3"])
        outcome = sync(url, server, batch_options={"most_bytes": int(2.5 * size)})
        assert outcome.batches.submitted == 2  # type: ignore[union-attr]
        assert all(len(server.files[f"file-{number}"]) <= 2.5 * size for number in (4, 5))
        assert set(server.asked().values()) == {1}
        assert sum(server.asked().values()) == 10


@pytest.mark.long
def test_modes_do_not_ask_for_what_the_other_has_under_way(tmp_path: Path) -> None:
    url = make_store(tmp_path, 6)
    with BatchServer() as server:
        sync(url, server, limit=4)
        online = sync(url, server, mode="online")
        assert (len(server.online), online.left.in_batches, online.complete) == (2, 4, False)
        again = sync(url, server, mode="online")
        assert (again.idle, len(server.online)) == (True, 2)
        server.end("batch_1")
        taken = sync(url, server, mode="online")
        assert (taken.complete, taken.as_dict()["answered"], taken.as_dict()["calls"]) == (True, 4, 0)
        assert set(server.asked().values()) == {1}
        assert sync(url, server).idle


def odd_lines(requests: list[Line]) -> bytes:
    """Return an output of eleven lines, nine of them odd; the attempts of the last three requests have none."""
    names = [request["custom_id"] for request in requests]
    lines = [json.dumps(answered(request)) for request in requests[:7]]
    lines[1] = lines[1].replace('"usage": {', '"usage": {"more": NaN, "prompt_tokens": 9223372036854775808, "a": {')
    lines[1] = lines[1].replace('}}}, "error"', '}}}}, "error"')
    lines[2] = lines[2].replace('"model": "', '"model": "\\ud800')
    lines[3] = lines[3].replace('"object": "chat.completion"', '"object": ' + "[" * 100_000 + "]" * 100_000)
    lines[4] = lines[4][:-1]  # no JSON
    bad = [
        f'{{"custom_id": "{names[5]}", "response": {{"status_code": 400, "body": {{"error": NaN, "a": "\\ud800"}}}}}}'
    ]
    bad += ['{"custom_id": "\\ud800", "response": null}', '{"custom_id": 7}', "[]", '"' + "0" * 32 + '"']
    written = "\n".join([*lines[:5], *bad, lines[6]]).encode()
    return written.replace(b'"role": "assistant"', b'"role": "\xff"', 1)  # no newline at its end


@pytest.mark.parametrize("backend", ["sqlite", "duckdb"])
def test_a_line_that_cannot_be_read_costs_no_other(tmp_path: Path, backend: str) -> None:
    url = make_store(tmp_path, 10, backend)
    with BatchServer() as server:
        sync(url, server)
        requests = server.requests("batch_1")
        server.end_as("batch_1", odd_lines(requests))
        outcome = sync(url, server).as_dict()
        assert (outcome["answered"], outcome["failed"], outcome["errors"]) == (5, 2, 3)
        assert outcome["reasons"] == {"unreadable": 1, "bad_request": 1, "batch_completed": 3}
        assert len(server.requests("batch_2")) == 3
    stored = {row["attempt_id"]: row for row in rows(url, "SELECT * FROM teacher_texts")}
    found = [stored[request["custom_id"]] for request in requests]
    assert [row["status"] for row in found] == ["ok"] * 4 + ["failed"] * 2 + ["ok"] + ["error"] * 3
    assert (found[1]["prompt_tokens"], json.loads(found[1]["raw"])) == (None, {"prompt_tokens": 2**63})
    assert found[2]["served_model"] == "\ufffdmade-up"
    answer = marked_answer(exchange_of(requests[4]["body"]))
    assert json.dumps(answer) in found[4]["raw"]  # what was paid for is there


@pytest.mark.long
def test_a_line_larger_than_the_bound_is_not_read(tmp_path: Path) -> None:
    url = make_store(tmp_path, 3)
    with BatchServer() as server:
        sync(url, server)
        lines = [json.dumps(answered(request)) for request in server.requests("batch_1")]
        lines[1] = lines[1].replace('"object"', '"more": "' + "x" * 1_100_000 + '", "object"')
        server.end_as("batch_1", "".join(f"{line}\n" for line in lines).encode())
        outcome = run(url, target(server.base_url, STEPS, mode="batch", max_reply_mb=1)).as_dict()
        assert (outcome["answered"], outcome["reasons"]) == (2, {"too_large": 1})
        assert outcome["examples"]["too_large"] == "too_large: its line is larger than 1 MB (max_reply_mb)"


@pytest.mark.long
@pytest.mark.parametrize("told", [True, False])
def test_an_output_cut_short_is_fetched_again_and_not_paid_again(tmp_path: Path, told: bool) -> None:
    url = make_store(tmp_path, 6)
    with BatchServer() as server:
        sync(url, server)
        server.end("batch_1")
        server.cuts = [(900, told)] * 3
        first = sync(url, server)
        assert server.fetched == 3
        assert (first.batches.taken, first.batches.waiting, first.batches.submitted) == (0, 1, 0)  # type: ignore[union-attr]
        assert 0 < first.as_dict()["answered"] < 6  # what is whole is stored
        [problem] = first.batches.cut_short  # type: ignore[union-attr]
        assert (
            problem.startswith("batch batch_1: ")
            and ("broke off after" if told else "its last line breaks off") in problem
        )
        assert first.left.in_batches == 6 - first.as_dict()["answered"]
        server.cuts = [(900, told), (0, False)]
        assert sync(url, server).complete
        assert (server.fetched, len(server.batches), set(server.asked().values())) == (5, 1, {1})


@pytest.mark.long
def test_lines_that_the_service_counts_and_does_not_send_are_asked_again_after_a_day(tmp_path: Path) -> None:
    url = make_store(tmp_path, 4)
    with BatchServer() as server:
        sync(url, server)
        lines = [json.dumps(answered(request)) for request in server.requests("batch_1")]
        server.end_as("batch_1", "".join(f"{line}\n" for line in lines[:3]).encode(), completed=4)
        first = sync(url, server)
        assert first.batches.cut_short == ["batch batch_1: its files have 3 lines, and the service counts 4"]  # type: ignore[union-attr]
        assert (first.as_dict()["answered"], batches(url)[0]["status"]) == (3, "cut_short")
        assert sync(url, server).batches.requests == 0  # type: ignore[union-attr]
        server.gone = True
        assert "is not there (404)" in sync(url, server).batches.cut_short[0]  # type: ignore[union-attr]
        late = sync(url, server, batch_options={"cut_short_s": 0.0})
        assert (late.batches.taken, late.batches.requests) == (1, 1)  # type: ignore[union-attr]


def test_a_batch_service_that_redirects_is_told_and_gets_no_prompt(tmp_path: Path) -> None:
    url = make_store(tmp_path, 2)
    with BatchServer() as server, BatchServer() as elsewhere:
        server.location = f"{elsewhere.base_url.replace('http://', 'http://me:hush@')}/files?key=hush"
        with pytest.raises(
            TeacherError, match=r"it redirects \(308\) to http://\*\*\*@127.*correct base_url$"
        ) as caught:
            sync(url, server)
        assert "hush" not in str(caught.value) and "\n" not in str(caught.value)
        assert elsewhere.headers == []


@pytest.mark.long
def test_a_batch_service_behind_a_password_is_used_and_the_password_is_not_told(tmp_path: Path) -> None:
    url = make_store(tmp_path, 2)
    with BatchServer() as server:
        address = server.base_url.replace("http://", "http://me:hush-hush@")
        run(url, target(address, STEPS, mode="batch"))
        server.fail("batch_1", "Authorization: Basic bWU6aHVzaC1odXNo, hush-hush")
        with pytest.raises(TeacherError, match="refused 1 batch") as caught:
            run(url, target(address, STEPS, mode="batch"))
        assert {headers["authorization"] for headers in server.headers} == {"Basic bWU6aHVzaC1odXNo"}
    told = f"{caught.value} {batches(url)} {rows(url, 'SELECT * FROM teacher_texts')}"
    assert "***" in told and "hush-hush" not in told and "bWU6" not in told


@pytest.mark.long
@pytest.mark.parametrize("created", [True, False])
def test_a_process_killed_before_it_remembers_a_batch_pays_nothing_twice(tmp_path: Path, created: bool) -> None:
    url = make_store(tmp_path, 5)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with BatchServer(delay_created_s=5.0 if created else 0.0) as server:
        process = start_batch_sync(tmp_path, server.base_url, TMPDIR=str(temporary))
        kill_when(process, lambda: bool(server.batches) if created else bool(server.files))
        assert list(temporary.iterdir()) == []  # no prompts lie about
        server.delay_created_s = 0.0
        if not created:  # whether the kill came before the creation is chance, so make it so
            server.batches.clear()
        assert [row["status"] for row in batches(url)] == ["claimed"]
        assert [status for status, _, _ in replies(url)] == ["sent"] * 5
        found = sync(url, server)
        if created:
            assert (len(server.batches), found.batches.waiting) == (1, 1)  # type: ignore[union-attr]
            server.end("batch_1")
        else:
            assert (found.idle, found.left.in_batches) == (True, 5)  # it may yet turn up
            assert sync(url, server, batch_options={"grace_s": 0.0}).batches.requests == 5  # type: ignore[union-attr]
            server.end("batch_1")
        assert sync(url, server).complete
        assert set(server.asked().values()) == {1}
    assert [row["status"] for row in batches(url)] == (["taken"] if created else ["abandoned", "taken"])


def start_batch_sync(folder: Path, base_url: str, **environment: str) -> Forked:
    teacher = ["[teachers.t]", 'model = "made-up"', f'base_url = "{base_url}"', 'mode = "batch"']
    lines = ["[store]", 'url = "sqlite:///store.db"', *teacher, "[sync]", 'steps = ["reflect_response"]']
    (folder / "recycledb.toml").write_text("\n".join(lines))
    command = [*RUN_COMMAND, "sync"]
    return start(command, cwd=folder, stdout=DEVNULL, env=clean_environment(**environment))


def kill_when(process: Forked, condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()


@pytest.mark.long
def test_the_command_lists_batches(tmp_path: Path, cli: Cli) -> None:
    url = make_store(tmp_path, 4)
    with BatchServer() as server:
        assert "no batches" in cli("--store", url, "batches").stdout
        process = start_batch_sync(tmp_path, server.base_url)
        assert process.wait(60) == 3
        listed = json.loads(cli("batches", "--json").stdout)["batches"]
        assert [(row["status"], row["requests"], row["remote_id"]) for row in listed] == [("submitted", 4, "batch_1")]
        server.end("batch_1")
        assert "collected 1 batch" in cli("sync").stdout
        assert "taken" in cli("batches").stdout


def test_only_an_openai_compatible_teacher_has_a_batch_service(tmp_path: Path) -> None:
    url = make_store(tmp_path, 1)
    (tmp_path / "replies.jsonl").write_text("")
    wanted = target(
        "http://127.0.0.1:9/v1", STEPS, mode="batch", provider="recorded", file=str(tmp_path / "replies.jsonl")
    )
    with pytest.raises(ConfigError, match='needs provider = "openai"'):
        run(url, wanted)
