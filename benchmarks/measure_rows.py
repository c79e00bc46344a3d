"""What a measure's rows cost: SelectIT's readouts and values for a whole dataset, and `select selectit` beside its bare SQL.

    python benchmarks/measure_rows.py FOLDER                # 52,000 samples x 5 prompts x 2 students, SQLite and DuckDB
    python benchmarks/measure_rows.py FOLDER --samples 5200 --rounds 3

Made-up samples and log-probabilities, no model. Readouts are written by the store's own insert, values are computed from them by the same
function as in a sync. Then `select selectit` runs as users run it, by turns with hand-written SQL on the tables that writes the same
texts, each in a process of its own. Seconds are processor time; the ratios of one run count.
"""

import argparse
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import selecting
from selecting import RUN, Cost, measured
from synthetic import Prose

from recycledb.config import load
from recycledb.schema import Texts
from recycledb.store import Store
from recycledb.store.places import Place, replace_places
from recycledb.store.rows import ReadoutRow
from recycledb.sync.measures import fill_values
from recycledb.sync.target import Target, resolve

PAGE = 5_000  # variants whose readouts are committed at once
CONFIGURATION = """
[students.7b]
model = "student-7b"
stats = []
[students.13b]
model = "student-13b"
stats = []
[measures.selectit]
[sync]
students = ["7b", "13b"]
"""


def prepare(folder: Path) -> Target:
    """Write a configuration and files that stand for two students of different size; return the target."""
    from safetensors.numpy import save_file

    for name, size in (("7b", 7), ("13b", 13)):
        student = folder / f"student-{name}"
        student.mkdir(parents=True, exist_ok=True)
        (student / "config.json").write_text(f'{{"made_up": "{name}"}}')
        (student / "tokenizer.json").write_text("{}")
        save_file({"weight": np.zeros(size, np.float32)}, student / "model.safetensors")
    (folder / "recycledb.toml").write_text(CONFIGURATION)
    return resolve(load(folder / "recycledb.toml"))


def samples(count: int) -> Iterator[Place]:
    """Yield samples of about the length of Alpaca's."""
    chance = np.random.default_rng(0)
    prose = Prose(chance)
    for number in range(count):
        asked, answered = (int(np.exp(chance.normal(mean, 0.6))) + 2 for mean in (2.2, 3.4))
        yield Place(number, Texts(prose.text(asked), "", prose.text(answered)))


def readouts(target: Target, variants: list[str]) -> Iterator[ReadoutRow]:
    """Yield made-up log-probabilities of the ten digits for every prompt and student."""
    chance = np.random.default_rng(1)
    [selectit] = target.measures
    for student in selectit.students:
        for prompt in selectit.readouts:
            logits = chance.normal(0, 2, (len(variants), 10))
            logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
            for variant, each in zip(variants, logs.tolist(), strict=True):
                yield ReadoutRow(
                    student.student_id, prompt.prompt_id, variant, "", *each, 120, False, "ok", f"{variant[:24]}", "cpu"
                )


class Timer:
    """Prints processor seconds and how much the file has grown since the last line."""

    def __init__(self, store: Store) -> None:
        self.store, self.started, self.size = store, time.process_time(), 0.0

    def tell(self, what: str, rows: int) -> None:
        """Print one line of the table."""
        spent = time.process_time() - self.started
        path = self.store.backend.path
        size = sum(each.stat().st_size for each in path.parent.glob(f"{path.name}*")) / 1e6
        grown = size - self.size
        print(
            f"| {what} | {path.suffix[1:]} | {rows:,} | {spent:.1f} | {grown:.0f} | {grown / rows * 1e6:.0f} |",
            flush=True,
        )
        self.started, self.size = time.process_time(), size


def fill(url: str, folder: Path, count: int) -> None:
    """Make a store with all rows; print what each sort of rows took."""
    target = prepare(folder)
    [selectit] = target.measures
    with Store.open(url, create=True) as store:
        timer = Timer(store)
        target.register(store)
        with store.write() as conn:
            replace_places(store, conn, "made-up", samples(count))
        variants = [row[0] for row in store.rows("SELECT variant_id FROM variant ORDER BY variant_id")]
        timer.tell("samples", count)
        page: list[ReadoutRow] = []
        written = 0
        for row in readouts(target, variants):
            page.append(row)
            if len(page) == PAGE:
                written += insert(store, page)
        written += insert(store, page)
        timer.tell("readouts", written)
        values = 0
        for student in selectit.students:
            need = target.need(selectit, student)
            values += fill_values(store, selectit, need, student.config.name, threading.Event(), lambda _: None).values
        timer.tell("values", values)


def insert(store: Store, page: list[ReadoutRow]) -> int:
    """Commit a page and empty it."""
    with store.write() as conn:
        count = store.insert(conn, page)
    page.clear()
    return count


def compare(url: str, folder: Path, rounds: int) -> None:
    """Print the time of the command beside that of the bare SQL, and whether both picked the same texts."""
    ours: list[Cost] = []
    bare: list[Cost] = []
    for _ in range(rounds):
        bare.append(measured([sys.executable, selecting.__file__, "--bare", "selectit", url], folder))
        command = [*RUN, "--store", url, "select", "selectit", "--top", "20%", "-o", "picked.json"]
        ours.append(measured(command, folder))
    picked, expected = (json.loads((folder / name).read_text()) for name in ("picked.json", "bare.json"))
    same = [{key: row[key] for key in ("instruction", "input", "output")} for row in picked] == expected
    cpu = [min(each.cpu_s for each in side) for side in (ours, bare)]
    wall = [min(each.wall_s for each in side) for side in (ours, bare)]
    print(
        f"| select selectit | {url.partition(':')[0]} | {cpu[0]:.2f} | {cpu[1]:.2f} | {cpu[0] / cpu[1]:.2f} "
        f"| {wall[0] / wall[1]:.2f} | {len(picked):,}, {'the same' if same else 'DIFFERENT'} |",
        flush=True,
    )


def main() -> None:
    """Fill both stores, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--samples", type=int, default=52_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    urls = [f"{backend}:///{folder}/store.{backend}" for backend in ("sqlite", "duckdb")]
    print("| rows | file | number | CPU, s | MB | bytes a row |\n|---|---|---|---|---|---|")
    for url in urls:
        if not Path(url.partition(":///")[2]).exists():  # else of an earlier run
            fill(url, folder, given.samples)
    empty = [*RUN, "--store", urls[0], "--help"]
    start = min(measured(empty, folder).cpu_s for _ in range(given.rounds))
    print(f"\n`--help`: {start:.2f} s of CPU\n\n| command | engine | ours, CPU s | bare | ratio | wall ratio | picks |")
    print("|---|---|---|---|---|---|---|")
    for url in urls:
        compare(url, folder, given.rounds)


if __name__ == "__main__":
    main()
