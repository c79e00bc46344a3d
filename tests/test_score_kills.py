"""Scoring that is killed: what was committed is kept and not computed again; what was not is all that the next run computes."""

import json
import time
from pathlib import Path

import forks
import pytest
from conftest import RUN_COMMAND, Cli, clean_environment
from forks import DEVNULL
from sync_runs import make_store, rows
from tiny_students import save_student

CONFIGURATION = """
[store]
url = "sqlite:///store.db"
[students.s]
model = "student"
max_length = 256
device = "cpu"
"""


def test_killed_scoring_goes_on_from_the_last_committed_statistic(tmp_path: Path, cli: Cli) -> None:
    score_and_kill(tmp_path, cli, samples=200, kills=1)


@pytest.mark.long
def test_killed_scoring_of_more_samples_goes_on_too(tmp_path: Path, cli: Cli) -> None:
    score_and_kill(tmp_path, cli, samples=600, kills=2)


@pytest.mark.slow
def test_scoring_that_is_killed_often_goes_on_from_the_last_committed_statistic(tmp_path: Path, cli: Cli) -> None:
    score_and_kill(tmp_path, cli, samples=6_000, kills=6)


def score_and_kill(tmp_path: Path, cli: Cli, samples: int, kills: int) -> None:
    """Kill scoring that is under way; hold what the next runs compute against what was committed."""
    save_student(tmp_path / "student", "llama")
    url = make_store(tmp_path, samples)
    (tmp_path / "recycledb.toml").write_text(CONFIGURATION)
    total = 4 * samples
    committed = 0
    for _ in range(kills):
        command = [*RUN_COMMAND, "sync", "--json"]
        process = forks.start(
            command, cwd=tmp_path, stdout=DEVNULL, stderr=DEVNULL, env=clean_environment(), modules=forks.MODELS
        )
        deadline = time.monotonic() + 300
        while statistics(url) < committed + 300:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.wait()
        found = statistics(url)
        assert committed + 300 <= found < total
        committed = found
    plan = json.loads(cli("sync", "--dry-run", "--json", modules=forks.MODELS).stdout)
    assert plan["statistics"] == total - committed
    assert plan["students"][0]["tokens"] > 0
    done = json.loads(cli("sync", "--json", modules=forks.MODELS).stdout)
    assert (done["statistics"], done["complete"]) == (total - committed, True)
    assert statistics(url) == total


def statistics(url: str) -> int:
    return int(rows(url, "SELECT count(*) AS n FROM loss")[0]["n"])
