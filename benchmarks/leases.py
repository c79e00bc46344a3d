"""What it costs to share work by leases: one lease taken and given back, and scoring group by group instead of all at once.

    python benchmarks/leases.py                                  # SQLite
    python benchmarks/leases.py sqlite duckdb postgresql+psycopg://db.example/scratch     # the last: an empty database

The three ways of scoring give the same rows: all samples as one bucket (one call of the engine, in dataset order), groups as one process
alone takes them, and the small groups that it takes beside others. The student is the demo's small one, and a bucket has 100 samples in
place of 500, so groups end five times as often as by default. What counts are the ratios of processor time.
"""

import argparse
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import recycledb
from recycledb.config import StudentConfig, parse
from recycledb.schema import Texts
from recycledb.store import Store
from recycledb.store.leases import Lease
from recycledb.store.places import Place, replace_places
from recycledb.sync import Sync, resolve
from recycledb.sync.presence import Presence

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


def main() -> None:
    """Measure, and print a table for each store."""
    parser = argparse.ArgumentParser()
    parser.add_argument("stores", nargs="*", default=["sqlite"], help="sqlite, duckdb, or the URL of an empty database")
    parser.add_argument("--samples", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--leases", type=int, default=300)
    options = parser.parse_args()
    ways = {"one bucket": (10**9, False), "groups, alone": (100, False), "groups, beside others": (100, True)}
    for kind in options.stores:
        best: dict[str, tuple[float, float]] = {}
        server = "://" in kind
        for turn in range(1 if server else options.rounds):  # interleaved: other work on the machine disturbs all alike
            for name, (bucket, beside) in ways.items():
                if server and name != "groups, alone":
                    continue  # a server's database is filled once
                with tempfile.TemporaryDirectory() as folder:
                    url = kind if server else f"{kind}:///{folder}/store.db"
                    found = score(url, options.samples, bucket, beside)
                    best[name] = min(best.get(name, found), found, key=lambda each: each[1])
                    if turn == 0 and name == "groups, alone":
                        with Store.open(url) as store:
                            rate = one_by_one(store, options.leases)
        print(f"{kind}: {rate:,.0f} leases a second taken and given back one by one")
        first = next(iter(best.values()))
        for name, (wall, processor) in best.items():
            print(
                f"  {name}: {wall:.1f} s, {processor:.1f} s of processor time, ratio {processor / first[1]:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
