"""What it costs to share work: leases taken and given back, claims of eight processes, and scoring group by group.

    python benchmarks/leases.py                                  # SQLite
    python benchmarks/leases.py sqlite duckdb postgresql         # the last: on a server of its own, from the binaries installed here

Claims: processes claim the questions of one teacher in groups of 16, as syncs do that ask together; DuckDB lets one process in at a time,
so there one claims. The three ways of scoring give the same rows: all samples as one bucket (one call of the engine, in dataset order),
groups as one process alone takes them, and the small groups that it takes beside others. The student is the demo's small one, and a bucket
has 100 samples in place of 500, so groups end five times as often as by default. What counts are the ratios of processor time.
"""

import argparse
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from servers import Places

import recycledb
from recycledb.config import StudentConfig, parse
from recycledb.schema import Texts, sample_id
from recycledb.store import Store
from recycledb.store.leases import Lease
from recycledb.store.places import Place, replace_places
from recycledb.store.questions import claim, pending_questions
from recycledb.store.workers import start_worker
from recycledb.sync import Sync, resolve
from recycledb.sync.presence import Presence
from recycledb.sync.target import Target

Item = TypeVar("Item")

STUDENT = Path(recycledb.__file__).parent / "demo" / "students" / "small"
WORDS = [f"{first}{last}" for first in ("ba", "co", "di", "fu", "ge") for last in ("n", "re", "tion", "l", "st", "mer")]


def made_up(count: int) -> Iterator[Place]:
    """Yield samples of common words, of many lengths."""
    chance = random.Random(0)
    for i in range(count):
        words = [" ".join(chance.choices(WORDS, k=chance.randint(low, high))) for low, high in ((5, 30), (20, 120))]
        yield Place(i, Texts(f"{words[0]} {i}", "", words[1]))


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of the wall and of the processor that `work` takes."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def one_by_one(store: Store, number: int) -> float:
    """Return how many leases a second are taken and given back, each in two transactions."""
    with Presence(store, threading.Event()) as presence:
        wanted = [Lease("score", "benchmark", f"{i:04x}") for i in range(number)]
        wall, _ = timed(lambda: [presence.give(presence.take([lease])) for lease in wanted])
    return number / wall


@contextmanager
def somebody_else(store: Store, here: bool) -> Iterator[None]:
    """Let another worker be at work on the store, so that a run takes small groups; or nobody."""
    if not here:
        yield
        return
    with Presence(store, threading.Event()):
        yield


def score(url: str, samples: int, bucket_samples: int, beside: bool) -> tuple[float, float]:
    """Score a new store; return the seconds."""
    with Store.open(url, create=True) as store:
        with store.write() as conn:
            replace_places(store, conn, "made-up", made_up(samples))
        config = parse({"cluster": {"bucket_samples": bucket_samples}}, Path("recycledb.toml").resolve())
        student = StudentConfig(name="s", model=str(STUDENT), device="cpu")
        target = resolve(config, only="score", students=[student])
        with somebody_else(store, beside):
            run = Sync(store, target, cluster=config.cluster, wait=False)
            found = timed(run.run)
        assert store.rows("SELECT count(*) FROM loss")[0][0] == 4 * samples
    return found


def parts(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Return the items in groups."""
    return [items[first : first + size] for first in range(0, len(items), size)]


def asking() -> Target:
    """Return what a teacher is asked in the benchmark; nothing is sent."""
    teacher = {"provider": "openai", "model": "made-up", "base_url": "http://127.0.0.1:9/v1"}
    table = {"teachers": {"t": teacher}, "sync": {"steps": ["reflect_instruction"], "teacher": "t"}}
    return resolve(parse(table, Path("recycledb.toml").resolve()), only="reflect")


def claimer(url: str, number: int, processes: int, count: int) -> None:
    """List and claim open questions page by page, beginning at one of its own; print how many, when it began and when it last got one."""
    wanted, samples = asking().wanted, [sample_id(place.texts) for place in made_up(count)]
    assert wanted is not None
    first = number * count // processes
    with Store.open(url) as store:
        worker, claimed = start_worker(store), 0
        print("ready", flush=True)
        sys.stdin.readline()
        started = last = time.time()
        for page in parts(samples[first:] + samples[:first], 512):
            for group in parts(pending_questions(store, wanted, page), 16):
                taken = len(claim(store, wanted, worker, group))
                if taken:
                    claimed, last = claimed + taken, time.time()
        print(json.dumps([claimed, started, last]), flush=True)


def claims(places: Places, processes: int, count: int) -> float:
    """Return how many questions a second are claimed by so many processes, none of them twice."""
    with places.new() as url:
        with Store.open(url, create=True) as store:
            with store.write() as conn:
                replace_places(store, conn, "made-up", made_up(count))
            asking().register(store)
        command = [sys.executable, __file__, "--claim", url, str(processes), str(count)]
        pipe = subprocess.PIPE
        running = [
            subprocess.Popen([*command, str(number)], stdin=pipe, stdout=pipe, text=True) for number in range(processes)
        ]
        for process in running:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        found = [json.loads(process.communicate()[0]) for process in running]
    assert sum(each[0] for each in found) == count, found
    return count / (max(each[2] for each in found) - min(each[1] for each in found))


def main() -> None:
    """Measure, and print a table for each store."""
    parser = argparse.ArgumentParser()
    parser.add_argument("stores", nargs="*", default=["sqlite"], help="sqlite, duckdb, postgresql")
    parser.add_argument("--samples", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--leases", type=int, default=300)
    parser.add_argument("--questions", type=int, default=4_000)
    parser.add_argument("--claim", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.claim:
        url, processes, count, number = options.claim
        claimer(url, int(number), int(processes), int(count))
        return
    ways = {"one bucket": (10**9, False), "groups, alone": (100, False), "groups, beside others": (100, True)}
    for kind in options.stores:
        places = Places(kind)
        best: dict[str, tuple[float, float]] = {}
        for turn in range(options.rounds):  # interleaved: other work on the machine disturbs all alike
            for name, (bucket, beside) in ways.items():
                with places.new() as url:
                    found = score(url, options.samples, bucket, beside)
                    best[name] = min(best.get(name, found), found, key=lambda each: each[1])
                    if turn == 0 and name == "groups, alone":
                        with Store.open(url) as store:
                            rate = one_by_one(store, options.leases)
        claimers = 1 if kind == "duckdb" else 8
        claimed = max(claims(places, claimers, options.questions) for _ in range(options.rounds))
        places.close()
        print(f"{kind}: {claimed:,.0f} questions a second claimed by {claimers} processes")
        print(f"{kind}: {rate:,.0f} leases a second taken and given back one by one")
        first = next(iter(best.values()))
        for name, (wall, processor) in best.items():
            print(
                f"  {name}: {wall:.1f} s, {processor:.1f} s of processor time, ratio {processor / first[1]:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
