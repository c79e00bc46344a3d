"""Querying a SQLite store while another process writes it: no query fails, waits, or is older than the last commit."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import clean_environment
from forks import PIPE, Forked
from forks import start as start_process

from recycledb.schema import Texts, sample_id, utc_now
from recycledb.store import Store
from recycledb.store.rows import SampleRow

ROWS = 5_000
EVERY_S = 0.1
COUNT = "SELECT count(*) FROM samples"


def write(url: str) -> None:
    """Write samples, each in a transaction of its own; tell each when it is committed."""
    with Store.open(url) as store:
        print("ready", flush=True)
        sys.stdin.readline()
        started = time.perf_counter()
        for i in range(ROWS):
            texts = Texts(f"instruction {i}", "", "output " * 30)
            with store.write() as conn:
                store.insert(conn, [SampleRow(sample_id(texts), *texts, utc_now())])
            if i % 50 == 49:
                print(i + 1, flush=True)
        print(f"took {time.perf_counter() - started}", flush=True)


@contextmanager
def writer(url: str, log: Path) -> Iterator[Forked]:
    """Start a process that writes once it is told to; what it tells is read from `log`."""
    with log.open("w") as out:
        command = [sys.executable, __file__, url]
        process = start_process(command, stdin=PIPE, stdout=out, text=True, env=clean_environment())
        try:
            while "ready" not in log.read_text():
                assert process.poll() is None
                time.sleep(0.02)
            yield process
        finally:
            process.kill()
            process.communicate()


def told(log: Path) -> int:
    """Return how many rows the writer has said are committed."""
    numbers = [line for line in log.read_text().splitlines()[1:] if line.isdigit()]
    return int(numbers[-1]) if numbers else 0


def took(log: Path) -> float:
    return float(log.read_text().rpartition("took ")[2])


def start(process: Forked) -> None:
    assert process.stdin
    process.stdin.write("go\n")
    process.stdin.flush()


@pytest.mark.slow
def test_queries_during_a_long_write_see_every_commit_and_wait_for_nothing(sqlite_url: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    waits, counts = [], []
    with writer(sqlite_url, log) as process, Store.open(sqlite_url) as store:
        start(process)
        while process.poll() is None:
            committed, asked = told(log), time.perf_counter()
            if len(counts) % 2:
                seen = store.rows(COUNT)[0][0]
            else:  # as `recycledb query` asks
                with store.backend.sandbox() as sandbox:
                    seen = next(iter(sandbox.execute(COUNT)[1]))[0]
            waits.append(time.perf_counter() - asked)
            counts.append(seen)
            assert seen >= committed, "older than the last commit"
            time.sleep(EVERY_S)
        assert process.returncode == 0
        assert store.rows(COUNT)[0][0] == ROWS
    assert counts == sorted(counts)
    assert len([count for count in counts if 0 < count < ROWS]) >= 5
    print(f"{len(waits)} queries, longest {max(waits):.3f} s, the writer took {took(log):.2f} s")


def test_a_long_read_does_not_hold_up_a_writer(sqlite_url: str) -> None:
    with Store.open(sqlite_url) as store, Store.open(sqlite_url) as other:
        with store.backend.sandbox() as sandbox:
            numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 10) SELECT i FROM n"
            _, rows = sandbox.execute(f"{numbers}, (SELECT count(*) FROM sample)")
            assert next(iter(rows))[0] == 1
            with other.write() as conn:  # fails where the reader holds it up
                other.insert(conn, [SampleRow("s", "i", "", "o", utc_now())])
            assert len(list(rows)) == 9
        assert store.rows(COUNT)[0][0] == 1


if __name__ == "__main__":
    write(sys.argv[1])
