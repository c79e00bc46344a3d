"""Scoring that is killed: what was committed is kept and not computed again; in the end the rows are those of an undisturbed run."""

import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import forks
import pytest
from conftest import RUN_COMMAND, clean_environment
from forks import DEVNULL
from sync_runs import make_store
from tiny_students import save_encoder, save_student

from recycledb import config
from recycledb.store import Store
from recycledb.vectors import decoded
from recycledb.workspace import Workspace

CONFIGURATION = """
[store]
url = "{url}"
[students.s]
model = "student"
max_length = 256
device = "cpu"
[students.e]
model = "encoder"
encoder = true
max_length = 64
device = "cpu"
[measures.selectit]
prompts = "prompts.txt"
[measures.weighted]
method = "embedding"
pooling = "weighted_mean"
part = "answer"
[measures.whole]
method = "embedding"
[measures.row]
method = "embedding"
part = "row"
students = ["e"]
[sync]
students = ["s"]
"""
FACTS = {"loss": 4, "readout": 2, "embedding": 3}  # of each sample
COUNTS = " + ".join(f"(SELECT count(*) FROM {table})" for table in FACTS)
VALUES = 4
KEYS = {
    "loss": "student_id, variant_id, stat",
    "readout": "student_id, variant_id, prompt_id, reference_id",
    "embedding": "student_id, variant_id, pooling, part",
    "value": "measure_id, model_id, variant_id, other_id",
}


@pytest.mark.long
def test_killed_scoring_ends_with_the_rows_of_an_undisturbed_run(tmp_path: Path) -> None:
    score_and_kill(tmp_path, "sqlite", samples=50, kills=1)


@pytest.mark.long
@pytest.mark.parametrize("backend", ["sqlite", "duckdb"])
def test_scoring_that_is_killed_twice_does_too(tmp_path: Path, backend: str) -> None:
    score_and_kill(tmp_path, backend, samples=160, kills=2)


@pytest.mark.slow
def test_scoring_that_is_killed_often_does_too(tmp_path: Path) -> None:
    score_and_kill(tmp_path, "sqlite", samples=3_000, kills=6)


def score_and_kill(tmp_path: Path, backend: str, samples: int, kills: int) -> None:
    """Kill scoring that is under way; compare what the next run computes with what was committed, and the rows with another store's."""
    save_student(tmp_path / "student", "llama")
    save_encoder(tmp_path / "encoder")
    (tmp_path / "prompts.txt").write_text("Rate from 1 to 5 how well it answers.\nFrom 1 to 5, how good?\n")
    url = make_store(tmp_path, samples, backend)
    (tmp_path / "recycledb.toml").write_text(CONFIGURATION.format(url=url))
    shutil.copyfile(tmp_path / "store.db", tmp_path / "undisturbed.db")
    total = samples * sum(FACTS.values())
    committed = 0
    for _ in range(kills):
        process = forks.start(
            [*RUN_COMMAND, "sync"], cwd=tmp_path, stdout=DEVNULL, stderr=DEVNULL, env=clean_environment(),
            modules=forks.MODELS,
        )  # fmt: skip
        wait_for_facts(url, tmp_path, committed + total // (kills + 2), process)
        process.kill()
        process.wait()
        found = sum(facts(url).values())
        assert committed < found < total
        committed = found
    stored = facts(url)
    plan, _ = synced(tmp_path, url)
    assert sum(each.statistics for each in plan.scores) == 4 * samples - stored["loss"]
    assert sum(each.facts for each in plan.measures) == total - committed - (4 * samples - stored["loss"])
    undisturbed = url.replace("store.db", "undisturbed.db")
    synced(tmp_path, undisturbed)
    assert facts(url) == {table: number * samples for table, number in FACTS.items()}
    for table, key in KEYS.items():
        assert_same_rows(table_rows(url, table, key), table_rows(undisturbed, table, key))
    assert len(table_rows(url, "value", KEYS["value"])) == VALUES * samples


def synced(folder: Path, url: str) -> tuple[Any, Any]:
    """Sync a store in this process; return the plan that there was before, and the outcome."""
    with Store.open(url) as store:
        workspace = Workspace(store, config.load(folder / "recycledb.toml"))
        plan, outcome = workspace.plan(), workspace.sync()
        assert outcome.complete
        return plan, outcome


def wait_for_facts(url: str, folder: Path, wanted: int, process: forks.Forked) -> None:
    """Wait until about so many facts are committed; DuckDB lets nobody look, but its log grows with each commit."""
    log, deadline = folder / "store.db.wal", time.monotonic() + 300
    with closing(sqlite3.connect(f"file:{folder}/store.db?mode=ro", uri=True)) as looking:
        while True:
            if url.startswith("sqlite"):
                reached = looking.execute(f"SELECT {COUNTS}").fetchone()[0] >= wanted
            else:
                reached = log.exists() and log.stat().st_size > 60_000
            if reached:
                return
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)


def facts(url: str) -> dict[str, int]:
    with Store.open(url) as store:
        return {table: int(store.rows(f"SELECT count(*) FROM {table}")[0][0]) for table in FACTS}


def table_rows(url: str, table: str, key: str) -> list[dict[str, Any]]:
    with Store.open(url) as store:
        return [dict(row._mapping) for row in store.rows(f"SELECT * FROM {table} ORDER BY {key}")]


def assert_same_rows(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Compare rows: everything is equal but for the last digits of numbers, which depend on what was computed beside them."""
    assert len(found) == len(expected)
    for row, other in zip(found, expected, strict=True):
        for each in (row, other):
            each.pop("digest", None)  # of these digits
            if each.get("vector") is not None:
                each["vector"] = decoded(each["vector"]).tolist()
        assert row.keys() == other.keys()
        for column, value in row.items():
            assert value == (pytest.approx(other[column], abs=1e-4) if _digits(value) else other[column]), column


def _digits(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, list) and bool(value))
