"""Reading and writing large files: rows a second and peak memory, each measured in a process of its own.

    python benchmarks/formats.py --megabytes 1024

The memory should not depend on the size. Beside it stands what a bare parser needs for the same JSON list (ijson with its C
backend, which makes no samples, and silently turns lone surrogates into question marks).
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import ijson

from recycledb.formats import read, write

FILES = {  # name: format
    "data.json": "alpaca",
    "data.jsonl": "jsonl",
    "data.jsonl.gz": "jsonl",
    "data.jsonl.zst": "jsonl",
    "data.parquet": "parquet",
}
PHRASE = 'the of a to model answer café instruction "quoted" {code}; x = [1, 2] why how list explain'
WORDS = [*PHRASE.split(), "line\n"]


def rows(megabytes: int) -> Iterator[dict[str, str]]:
    """Yield made-up samples, whose lengths spread as real ones do, until their texts come to the size."""
    chance = random.Random(1)
    left = megabytes * 1_000_000
    while left > 0:
        texts = [" ".join(chance.choices(WORDS, k=k)) for k in (12, 0, int(chance.lognormvariate(4.2, 0.8)))]
        yield dict(zip(("instruction", "input", "output"), texts, strict=True))
        left -= sum(map(len, texts))


def measure(what: str, path: Path, megabytes: int) -> dict[str, float]:
    """Do one thing and return its rows, seconds and peak memory in MiB; meant for a process that does nothing else."""
    start = time.perf_counter()
    if what == "write":
        write(path, rows(megabytes), FILES[path.name])
        count = 0
    elif what == "read":
        count = sum(row.texts is not None for row in read(path))
    else:
        with path.open("rb") as file:
            count = sum(1 for _ in ijson.items(file, "item"))
    seconds = time.perf_counter() - start
    return {"rows": count, "seconds": seconds, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    """Measure each file in turn, or, started by itself, one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "PATH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], Path(options.one[1]), options.megabytes)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in FILES:
            for what in ("write", "read", "ijson") if name == "data.json" else ("write", "read"):
                report(what, Path(folder) / name, options.megabytes)
            (Path(folder) / name).unlink()


def report(what: str, path: Path, megabytes: int) -> None:
    """Measure one thing in a new process and print a line."""
    command = [sys.executable, __file__, "--megabytes", str(megabytes), "--one", what, str(path)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    rate = f"{found['rows'] / found['seconds']:>9,.0f} rows/s" if found["rows"] else " " * 16
    size = path.stat().st_size / 1e6
    print(f"{what:6} {path.name:15} {size:8.0f} MB {found['seconds']:7.1f} s {rate} {found['peak_mib']:6.0f} MiB peak")


if __name__ == "__main__":
    main()
