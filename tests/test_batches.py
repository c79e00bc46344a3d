"""The batch service: handed over, remembered, found again, taken; nothing is asked in two places, and nothing is paid for twice."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from batch_server import BatchServer, Line, Lines, answered, expired, refused
from conftest import RUN_COMMAND, Cli, clean_environment
from sync_runs import make_store, rows, run, target

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


@pytest.mark.parametrize("created", [True, False])
def test_a_process_killed_before_it_remembers_a_batch_pays_nothing_twice(tmp_path: Path, created: bool) -> None:
    url = make_store(tmp_path, 5)
    with BatchServer(delay_created_s=5.0 if created else 0.0) as server:
        process = start_batch_sync(tmp_path, server.base_url)
        kill_when(process, lambda: bool(server.batches) if created else bool(server.files))
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


def start_batch_sync(folder: Path, base_url: str) -> "subprocess.Popen[str]":
    teacher = ["[teachers.t]", 'model = "made-up"', f'base_url = "{base_url}"', 'mode = "batch"']
    lines = ["[store]", 'url = "sqlite:///store.db"', *teacher, "[sync]", 'steps = ["reflect_response"]']
    (folder / "recycledb.toml").write_text("\n".join(lines))
    command = [*RUN_COMMAND, "sync"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, env=clean_environment(), text=True)


def kill_when(process: "subprocess.Popen[str]", condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()


def test_the_command_lists_batches(tmp_path: Path, cli: Cli) -> None:
    url = make_store(tmp_path, 4)
    with BatchServer() as server:
        assert "no batches" in cli("--store", url, "batches").stdout
        process = start_batch_sync(tmp_path, server.base_url)
        assert process.wait(60) == 3
        listed = json.loads(cli("batches", "--json").stdout)["batches"]
        assert [(row["status"], row["requests"], row["remote_id"]) for row in listed] == [("submitted", 4, "batch_1")]
        server.end("batch_1")
        assert "took 1 batch" in cli("sync").stdout
        assert "taken" in cli("batches").stdout


def test_only_an_openai_compatible_teacher_has_a_batch_service(tmp_path: Path) -> None:
    url = make_store(tmp_path, 1)
    (tmp_path / "replies.jsonl").write_text("")
    wanted = target(
        "http://127.0.0.1:9/v1", STEPS, mode="batch", provider="recorded", file=str(tmp_path / "replies.jsonl")
    )
    with pytest.raises(ConfigError, match='needs provider = "openai"'):
        run(url, wanted)
