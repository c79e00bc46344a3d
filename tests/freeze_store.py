"""Keep a store of the present schema revision for good: `python tests/freeze_store.py`, once for each new revision.

It writes tests/data/store-REVISION.sqlite.zst and .duckdb.zst, with a row in every table. Later versions of the library are
tested by upgrading these files and then using them, so a file is never made again once its revision is released. Then
`python tests/frozen_selections.py tests/data/store-*.zst > tests/data/selected.json` adds what is selected in it, and changes nothing else.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import stores
import zstandard

from recycledb.store import Store, batches, leases
from recycledb.store.leases import Lease
from recycledb.store.migrate import HEAD
from recycledb.store.workers import end_worker, start_worker

FOLDER = Path(__file__).with_name("data")


def freeze(backend: str) -> Path:
    """Make a store, fill it, and write its file compressed; refuse to replace one that is there."""
    target = FOLDER / f"store-{HEAD}.{backend}.zst"
    if target.exists():
        raise SystemExit(f"{target} is there already; a released revision is never made again")
    with TemporaryDirectory() as folder:
        path = Path(folder, "store.db")
        with Store.open(f"{backend}:///{path}", create=True) as store:
            stores.fill(store)
            worker = start_worker(store)
            batches.note(store, batches.start(store, stores.TEACHER, worker), "submitted", "batch_1", "2 requests")
            end_worker(store, worker)
            with store.write() as conn:  # as a process leaves it that is killed
                leases.take(conn, worker, [Lease("score", stores.STUDENT)], store.backend.now(conn))
            stores.add_samples(store, [stores.texts("d one"), stores.texts("d three")])  # closes a place
        target.write_bytes(zstandard.ZstdCompressor(level=19).compress(path.read_bytes()))
    return target


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for backend in sys.argv[1:] or ("sqlite", "duckdb"):
        made = freeze(backend)
        print(f"{made}: {made.stat().st_size:,} bytes")
