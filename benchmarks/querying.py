"""What it costs a sync to be asked while it runs: a query every 100 ms, on the store that it is writing.

    python benchmarks/querying.py                       # 5,000 replies, with and without queries, by turns
    python benchmarks/querying.py --sql "SELECT step, count(*), sum(cost_usd) FROM teacher_texts GROUP BY step"

The teacher is a loopback server in its own process; the sync is the command as users run it, with --json; the queries are
those of `recycledb.open(...).query`, in this process. None may fail, and none may be older than the last commit of which the sync has
told before the query began. What counts is the ratio of the sync's times.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from teacher import fill, server

import recycledb

RUN = [sys.executable, "-c", "from recycledb.cli import main; main()"]
COUNT = "SELECT count(*) FROM teacher_texts WHERE status = 'ok'"
CONFIGURATION = """
[store]
url = "sqlite:///recycle.db"
[teachers.t]
provider = "openai"
model = "made-up"
base_url = "{base_url}"
concurrency = {in_flight}
[sync]
steps = ["reflect_instruction", "reflect_response"]
teacher = "t"
"""


@dataclass
class Told:
    """What a running sync says on stderr: how many replies are committed, by step."""

    done: dict[str, int] = field(default_factory=dict)

    def listen(self, stream: IO[str]) -> None:
        """Read event lines until the sync ends."""
        for line in stream:
            if line.startswith("{"):
                event = json.loads(line)
                self.done[event["step"]] = event["done"]

    @property
    def committed(self) -> int:
        """Replies that were committed when the last event was printed."""
        return sum(self.done.values())


def sync(base_url: str, options: argparse.Namespace, *, asked: bool) -> tuple[float, list[float]]:
    """Run a sync over a fresh store; return its seconds, and those of each query that was asked meanwhile."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fill(f"sqlite:///{folder}/recycle.db", options.rows // 3)
        (folder / "recycledb.toml").write_text(CONFIGURATION.format(base_url=base_url, in_flight=options.in_flight))
        started, told, waits = time.perf_counter(), Told(), []
        with subprocess.Popen(
            [*RUN, "sync", "--json"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            listener = threading.Thread(target=told.listen, args=(process.stderr,))
            listener.start()
            if asked:
                waits = ask(folder, process, told, options)
            process.wait()
            seconds = time.perf_counter() - started
            listener.join()
        if process.returncode:
            raise SystemExit(f"the sync ended with {process.returncode}")
    return seconds, waits


def ask(folder: Path, process: "subprocess.Popen[str]", told: Told, options: argparse.Namespace) -> list[float]:
    """Ask again and again until the sync ends; return how long each answer took."""
    waits: list[float] = []
    with recycledb.open(f"sqlite:///{folder}/recycle.db") as db:
        while process.poll() is None:
            committed, began = told.committed, time.perf_counter()
            rows = db.query(options.sql).rows
            waits.append(time.perf_counter() - began)
            if options.sql == COUNT and rows[0][0] < committed:
                raise SystemExit(f"{rows[0][0]} rows seen, but {committed} were committed before")
            time.sleep(max(0.0, options.every - waits[-1]))
    return waits


def main() -> None:
    """Measure by turns, and print both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_001, help="replies that the sync asks for; a multiple of three")
    parser.add_argument("--in-flight", type=int, default=128)
    parser.add_argument("--delay", type=float, default=0.5, help="seconds after which the server answers")
    parser.add_argument("--every", type=float, default=0.1, help="seconds from query to query")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sql", default=COUNT)
    options = parser.parse_args()
    times: dict[bool, list[float]] = {False: [], True: []}
    waits: list[float] = []
    with server(options.delay) as base_url:
        for number in range(options.rounds):
            for asked in (False, True) if number % 2 else (True, False):
                seconds, answers = sync(base_url, options, asked=asked)
                times[asked].append(seconds)
                waits += answers
                print(f"  round {number + 1}: {'asked' if asked else 'alone':<5} {seconds:6.2f} s", flush=True)
    alone, beside = statistics.median(times[False]), statistics.median(times[True])
    print(
        f"{len(waits)} queries, none failed, none older than the last commit; median {1000 * statistics.median(waits):.1f} ms, "
        f"longest {1000 * max(waits):.1f} ms\nsync of {options.rows:,} replies: alone {alone:.2f} s, asked {beside:.2f} s, "
        f"ratio {beside / alone:.3f}"
    )


if __name__ == "__main__":
    main()
