"""Several processes on one store: they share scoring, one of them asks, and what one leaves the others take over."""

import json
import random
import shutil
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import forks
import pytest
from conftest import RUN_COMMAND, Cli, clean_environment
from forks import PIPE, Forked
from sync_runs import attempts, make_store, rows
from teacher_server import TeacherServer
from test_sync_kills import start_sync, wait_for
from tiny_students import save_student

from recycledb.store.liveness import this_host

SAMPLES = 100
LACKING = """
    SELECT DISTINCT substr(v.sample_id, 1, 1) AS b FROM variant v WHERE v.variant_id NOT IN (SELECT variant_id FROM loss)
"""
CONFIGURATION = """
[store]
url = "sqlite:///store.db"
[students.s]
model = "student"
max_length = {max_length}
device = "cpu"
[cluster]
lease_s = 3600
bucket_samples = 2
"""


def scoring_store(folder: Path, samples: int = SAMPLES) -> str:
    """Make a store, a student, and a configuration under which 16 buckets are shared."""
    save_student(folder / "student", "llama")
    (folder / "recycledb.toml").write_text(CONFIGURATION.format(max_length=256))
    return make_store(folder, samples)


def start_scoring(folder: Path, *options: str) -> Forked:
    """Start a sync in a process of its own."""
    command = [*RUN_COMMAND, "sync", "--json", *options]
    return forks.start(
        command, cwd=folder, stdout=PIPE, stderr=PIPE, text=True, env=clean_environment(), modules=forks.MODELS
    )


def statistics(outcome: dict[str, Any]) -> int:
    return sum(each["statistics"] for each in outcome["students"])


@pytest.mark.long
def test_scoring_is_shared_waited_for_and_taken_over(tmp_path: Path, cli: Cli) -> None:
    """The first is suspended with a part of the work, then killed; others do the rest, and each statistic is computed once."""
    url = scoring_store(tmp_path)
    held = "SELECT DISTINCT bucket FROM lease WHERE kind = 'score'"
    first = start_scoring(tmp_path)
    wait_for(lambda: rows(url, held))
    first.send_signal(signal.SIGSTOP)
    wait_for(lambda: suspended(first.pid))
    buckets, there = rows(url, held), rows(url, "SELECT count(*) AS n FROM loss")[0]["n"]
    assert 0 < len(buckets) < 16  # not all for itself

    listed = cli("workers").stdout
    assert str(first.pid) in listed and "scoring under s" in listed
    (worker,) = json.loads(cli("workers", "--json").stdout)["workers"]
    assert (worker["pid"], len(worker["leases"]), worker["host"]) == (first.pid, len(buckets), this_host().name)
    said = cli("status").stdout
    assert "1 process on 1 host at work:" in said and f"(pid {first.pid}): scoring under s" in said
    assert [each["pid"] for each in json.loads(cli("status", "--json").stdout)["workers"]] == [first.pid]

    (tmp_path / "recycledb.toml").write_text(CONFIGURATION.format(max_length=128))
    refused = cli("sync", code=1).stderr
    assert "max_length 256 there, 128 here" in refused and f"(pid {first.pid})" in refused and refused.count("\n") == 1
    (tmp_path / "recycledb.toml").write_text(CONFIGURATION.format(max_length=256))

    second = cli("sync", "--no-wait", code=3, modules=forks.MODELS).stdout
    assert f"others are at work: 1 process on 1 host, host {this_host().name} (pid {first.pid})" in second
    assert "still missing" in second
    after = rows(url, "SELECT count(*) AS n FROM loss")[0]["n"]
    lacking = rows(url, LACKING)
    assert after > there and {row["b"] for row in lacking} <= {row["bucket"] for row in buckets}

    third = start_scoring(tmp_path)
    wait_for(lambda: rows(url, "SELECT * FROM worker WHERE doing = 'waiting for others'"))
    first.kill()
    first.communicate()
    output, errors = third.communicate(timeout=120)
    assert third.returncode == 0, errors
    assert statistics(json.loads(output)) == 4 * SAMPLES - after
    assert rows(url, "SELECT count(*) AS n FROM loss")[0]["n"] == 4 * SAMPLES
    assert rows(url, "SELECT * FROM lease") == []
    assert cli("workers").stdout == "no process works on this store\n"


def suspended(pid: int) -> bool:
    """Return whether a process is suspended."""
    return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] == "T"


def suspend_outside_a_transaction(process: Forked, is_locked: Callable[[], object]) -> None:
    """Suspend a process at a moment at which it does not keep others from writing."""
    for _ in range(200):
        process.send_signal(signal.SIGSTOP)
        wait_for(lambda: suspended(process.pid))
        if not is_locked():
            return
        process.send_signal(signal.SIGCONT)
        time.sleep(random.uniform(0.0, 0.02))
    raise AssertionError("it held the lock at each moment")


def is_locked(path: Path) -> bool:
    """Return whether a process is writing to a SQLite store."""
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        connection.execute("ROLLBACK")
    return False


@pytest.mark.long
def test_four_processes_share_scoring_and_one_is_killed(tmp_path: Path) -> None:
    url = scoring_store(tmp_path, 1_500)
    shutil.copyfile(tmp_path / "store.db", tmp_path / "alone.db")
    processes = [start_scoring(tmp_path) for _ in range(4)]
    wait_for(lambda: rows(url, "SELECT count(*) AS n FROM loss")[0]["n"] > 1_500)
    mine = (
        f"SELECT count(*) AS n FROM lease l JOIN worker w ON w.worker_id = l.worker_id WHERE w.pid = {processes[0].pid}"
    )
    wait_for(lambda: rows(url, mine)[0]["n"])
    processes[0].kill()
    processes[0].communicate()
    outcomes = []
    for process in processes[1:]:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        outcomes.append(statistics(json.loads(output)))
    total = rows(url, "SELECT count(*) AS n FROM loss")[0]["n"]
    assert total == 6_000
    assert min(outcomes) > 0 and sum(outcomes) <= total  # what the killed one had committed nobody computes again
    print(f"the three that lived computed {outcomes}, the killed one committed {total - sum(outcomes)}")
    alone = cli_scores(tmp_path)
    facts = rows(url, FACTS)
    assert [without_sum(each) for each in facts] == [without_sum(each) for each in alone]
    sums = [[each["loss_sum"] or 0.0 for each in found] for found in (facts, alone)]  # too short a text has none
    assert sums[0] == pytest.approx(sums[1], rel=1e-4)  # packs differ
    assert rows(url, "SELECT * FROM lease") == []


FACTS = "SELECT variant_id, stat, loss_sum, n_tokens, status, pair_id FROM loss ORDER BY variant_id, stat"


def without_sum(fact: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fact.items() if name != "loss_sum"}


def cli_scores(folder: Path) -> list[dict[str, Any]]:
    """Return the statistics that one process alone computes for the copy of the store."""
    command = [*RUN_COMMAND, "--store", f"sqlite:///{folder}/alone.db", "sync"]
    done = forks.run(command, cwd=folder, env=clean_environment(), modules=forks.MODELS, timeout=300)
    assert done.returncode == 0, done.stderr
    return rows(f"sqlite:///{folder}/alone.db", FACTS)


# --- asking -----------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_suspended_process_that_wakes_asks_no_more(tmp_path: Path) -> None:
    """Its lease is over after three seconds and another asks; awake again it sends nothing, so that rpm holds over both."""
    url = make_store(tmp_path, 60)
    cluster = ["--cluster", json.dumps({"lease_s": 3})]
    with TeacherServer(delay_s=0.2) as server:
        first = start_sync(url, server.base_url, "--concurrency", "4", *cluster)
        wait_for(lambda: len(server.log) >= 8)
        suspend_outside_a_transaction(first, lambda: is_locked(tmp_path / "store.db"))
        wait_for(lambda: server.in_flight == 0)
        before = len(server.log)
        second = start_sync(url, server.base_url, "--concurrency", "4", *cluster)
        wait_for(lambda: len(server.log) >= before + 20)
        first.send_signal(signal.SIGCONT)
        outcomes = [json.loads(process.communicate(timeout=180)[0]) for process in (first, second)]
        assert all(outcome["complete"] for outcome in outcomes)
        assert set(server.questions.values()) == {1}
        assert outcomes[0]["calls"] <= before
    senders = rows(url, "SELECT w.pid, min(a.sent_at) AS since, max(a.sent_at) AS until FROM attempt a "
                        "JOIN worker w ON w.worker_id = a.worker_id GROUP BY w.pid ORDER BY 2")  # fmt: skip
    assert len(senders) == 2 and senders[0]["until"] < senders[1]["since"]


@pytest.mark.long
def test_three_processes_of_which_the_one_that_asks_is_killed_ask_nothing_twice(tmp_path: Path) -> None:
    ask_and_kill(tmp_path, 3, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_eight_processes_of_which_one_is_killed_ask_nothing_twice(tmp_path: Path, seed: int) -> None:
    ask_and_kill(tmp_path, 8, seed)


def ask_and_kill(folder: Path, number: int, seed: int, backend: str = "sqlite") -> None:
    """By the server's log: asked twice is at most what the killed one had in flight, and nothing stays unanswered or unread."""
    url, chance, in_flight = make_store(folder, 60, backend), random.Random(seed), 16
    with TeacherServer(delay_s=0.05) as server:
        processes = [start_sync(url, server.base_url, "--concurrency", str(in_flight)) for _ in range(number)]
        wait_for(lambda: len(server.log) >= chance.randrange(10, 120))
        (asking,) = rows(
            url, "SELECT DISTINCT w.pid FROM worker w JOIN lease l ON l.worker_id = w.worker_id WHERE l.kind = 'ask'"
        )
        victim = next(each for each in processes if each.pid == asking["pid"]) if seed % 2 else chance.choice(processes)
        victim.kill()
        victim.communicate()
        outcomes = [json.loads(each.communicate(timeout=180)[0]) for each in processes if each is not victim]
        calls = Counter(server.questions)
    assert [each["stopped"] for each in outcomes if not each["complete"]] == []
    twice = sum(number - 1 for number in calls.values())
    assert max(calls.values()) <= 2 and twice <= in_flight
    tries = attempts(url)
    assert set(calls) <= set(tries) and all(each[-1]["status"] == "ok" for each in tries.values())
    print(f"seed {seed}: {sum(calls.values())} calls for {len(tries)} questions, {twice} asked twice")
