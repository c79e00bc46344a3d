"""What other processes do to a store in tests: `python store_processes.py WHAT URL …`, told by lines, telling in lines."""

import os
import sys
from collections.abc import Callable, Sequence

import stores

from recycledb.errors import StoreError
from recycledb.store import Store
from recycledb.store.questions import claim, pending_questions
from recycledb.store.rows import SampleRow
from recycledb.store.workers import start_worker


def tell(*words: object) -> None:
    """Say something to the test."""
    print(*words, flush=True)


def wait() -> None:
    """Wait until the test says to go on, or is gone."""
    sys.stdin.readline()


def sample_ids(store: Store) -> list[str]:
    return [row[0] for row in store.rows("SELECT sample_id FROM dataset_samples ORDER BY position")]


def claim_in_groups(url: str, size: str) -> None:
    """Claim pending questions in groups, like a sync does, until none is left; tell each."""
    with Store.open(url) as store:
        want, samples = stores.wanted(), sample_ids(store)
        worker = start_worker(store)
        tell("ready")
        wait()
        while asked := pending_questions(store, want, samples):
            for attempt, _ in claim(store, want, worker, asked[: int(size)]):
                tell("claimed", attempt.variant_id, attempt.step, attempt.number, attempt.attempt_id)
        tell("done")
        wait()


def write(url: str, writer: str, transactions: str) -> None:
    """Read, then write four samples, in each of many transactions; tell when ready and when done."""
    with Store.open(url) as store:
        tell("ready")
        wait()
        for i in range(int(transactions)):
            with store.write() as conn:
                before = conn.exec_driver_sql("SELECT count(*) FROM sample").scalar_one()
                rows = [SampleRow(f"{writer}-{i}-{part}", "x", "", "y", str(before)) for part in range(4)]
                assert store.insert(conn, rows) == 4
        tell("done")


def write_on(url: str, writer: str) -> None:
    """Write samples until killed, in groups of 1 to 64; tell the number of each group once it is committed."""
    with Store.open(url) as store:
        for group in range(1_000_000):
            size = 1 << (group % 7)
            with store.write() as conn:
                store.insert(
                    conn, [SampleRow(f"{writer}-{group}-{part}", "x" * 500, "", "y", "") for part in range(size)]
                )
            tell(group)


def create(url: str) -> None:
    """Open a store that may not be there yet, when told to."""
    tell("ready")
    wait()
    with Store.open(url, create=True) as store:
        tell("done", len(store.rows("SELECT * FROM sample")))


def look(url: str) -> None:
    """Open a store and tell what there is, or why not."""
    try:
        with Store.open(url) as store:
            tell("rows", store.rows("SELECT count(*) FROM sample")[0][0])
    except StoreError as error:
        tell("refused", error)


def hold(url: str) -> None:
    """Keep the write lock until told to let go."""
    with Store.open(url) as store, store.write():
        tell("holding")
        wait()


def vanish(url: str) -> None:
    """Claim everything, then die without a word, like a process that is killed."""
    with Store.open(url) as store:
        want = stores.wanted()
        claimed = claim(store, want, start_worker(store), pending_questions(store, want, sample_ids(store)))
        tell("claimed", len(claimed))
        os._exit(9)


DEEDS: Sequence[Callable[..., None]] = (claim_in_groups, write, write_on, create, look, hold, vanish)

if __name__ == "__main__":
    {deed.__name__: deed for deed in DEEDS}[sys.argv[1]](*sys.argv[2:])
