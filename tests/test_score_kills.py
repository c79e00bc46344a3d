"""Scoring that is killed: what was committed is kept and not computed again; what was not is all that the next run computes."""

import json
import subprocess
import time
from pathlib import Path

from conftest import RUN_COMMAND, Cli, clean_environment
from sync_runs import make_store, rows
from tiny_students import save_student

SAMPLES = 2_000
CONFIGURATION = """
[store]
url = "sqlite:///store.db"
[students.s]
model = "student"
max_length = 256
device = "cpu"
"""


def test_killed_scoring_goes_on_from_the_last_committed_statistic(tmp_path: Path, cli: Cli) -> None:
    save_student(tmp_path / "student", "llama")
    url = make_store(tmp_path, SAMPLES)
    (tmp_path / "recycledb.toml").write_text(CONFIGURATION)
    total = 4 * SAMPLES
    committed = 0
    for _ in range(2):
        process = subprocess.Popen(
            [*RUN_COMMAND, "sync", "--json"],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=clean_environment(),
        )
        deadline = time.monotonic() + 120
        while statistics(url) < committed + 300 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        process.wait()
        found = statistics(url)
        assert committed + 300 <= found < total
        committed = found
    plan = json.loads(cli("sync", "--dry-run", "--json", cwd=tmp_path).stdout)
    assert plan["statistics"] == total - committed
    assert plan["students"][0]["tokens"] > 0
    done = json.loads(cli("sync", "--json", cwd=tmp_path).stdout)
    assert (done["statistics"], done["complete"]) == (total - committed, True)
    assert statistics(url) == total


def statistics(url: str) -> int:
    return int(rows(url, "SELECT count(*) AS n FROM loss")[0]["n"])
