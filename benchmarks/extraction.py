"""How many texts come back exactly from a teacher's reply: each text of an Alpaca file, in each envelope of tests/envelopes.py.

    python benchmarks/extraction.py alpaca.json             # each output as the better answer, then as the new answer of a pair
    python benchmarks/extraction.py alpaca.json --every 10 --show 5
    python benchmarks/extraction.py alpaca.json --stored 50000   # reading stored replies again, beside storing them

A text is exact if it is the row's, without white space around it. `--show` prints envelopes in which most texts are not.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import stores
from envelopes import Envelope, answer_in, every, pair_in

from recycledb.methods.reflection import Step, extract
from recycledb.reflection.teachers.contract import Reply
from recycledb.schema import ReplyStatus, Texts, random_id, utc_now
from recycledb.store import Store
from recycledb.store.places import Place, replace_places
from recycledb.store.rows import AttemptRow
from recycledb.store.workers import start_worker
from recycledb.sync.extraction import read_all
from recycledb.sync.replies import Arrived, store_replies

TWO_LINES = "One.\nTwo."
READ = Texts("An instruction that no row has.", "", "A response that no row has.")


def exact(step: Step, envelope: Envelope, row: tuple[str, str]) -> bool:
    """Return whether a row's texts come back from the reply."""
    instruction, output = row
    if step is Step.REFLECT_RESPONSE:
        found = extract(step, answer_in(envelope, output), READ).texts
        return found is not None and found.output == output
    found = extract(step, pair_in(envelope, instruction, output), READ).texts
    return found is not None and found[::2] == row


def groups(envelopes: Sequence[Envelope]) -> dict[str, list[Envelope]]:
    """Return the envelopes by what is particular about them; each is in the first group that it fits."""
    found: dict[str, list[Envelope]] = {}
    for each in envelopes:
        if each.wrap == "quoted":
            name = each.wrap
        elif "`" in each.head + each.tail:
            name = "back-ticks"
        else:
            name = "indented" if each.indent else "others"
        found.setdefault(name, []).append(each)
    return found


def read_again(rows: Sequence[tuple[str, str]], number: int) -> None:
    """Print what it costs to store replies, to read them, and to read them again under another version."""
    envelopes, size = [each for each in every() if each.indent == "   "], 256  # replies in a transaction
    with tempfile.TemporaryDirectory() as folder, Store.open(f"sqlite:///{folder}/store.db", create=True) as store:
        samples = (Texts(f"{rows[i % len(rows)][0]} ({i})", "", "An answer.") for i in range(number))
        with store.write() as conn:
            replace_places(store, conn, "d", (Place(i, sample) for i, sample in enumerate(samples)))
        stores.register(store)
        teacher, worker = stores.TEACHER, start_worker(store)
        about = [row[0] for row in store.rows("SELECT variant_id FROM variant ORDER BY variant_id")]
        now, attempts = utc_now(), []
        for i, variant in enumerate(about):
            step = Step.REFLECT_RESPONSE.value
            key = AttemptRow(
                random_id(), variant, step, teacher, stores.PROMPTS[Step(step)], 1, worker, now, None, None
            )
            text = answer_in(envelopes[i % len(envelopes)], rows[i % len(rows)][1])
            attempts.append(Arrived(key, Reply(ReplyStatus.OK, text=text, finish_reason="stop", prompt_tokens=9)))
        with store.write() as conn:
            store.insert(conn, [each.attempt for each in attempts])
        writing = timed(lambda: [store_replies(store, attempts[i : i + size]) for i in range(0, number, size)])
        first = timed(lambda: read_all(store))
        with store.write() as conn:
            conn.exec_driver_sql("UPDATE extraction SET extractor = 1")
        again = timed(lambda: read_all(store))
        print(
            f"{number:,} replies, seconds of processor time: stored in {writing:.1f}, read in {first:.1f}, again in {again:.1f}"
        )
        print(f"reading again takes {again / writing:.2f} of storing, without the requests")


def timed(work: Callable[[], object]) -> float:
    """Return the processor seconds of some work."""
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    """Print the share of exact round trips by step and wrap, and the worst envelopes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a JSON list of objects with instruction and output")
    parser.add_argument("--every", type=int, default=1, help="take one row in so many")
    parser.add_argument("--show", type=int, default=10, help="how many envelopes to print")
    parser.add_argument(
        "--stored", type=int, default=0, metavar="N", help="store N replies and time reading them again"
    )
    options = parser.parse_args()
    rows = []
    for row in json.loads(options.file.read_text(encoding="utf-8"))[:: options.every]:
        instruction, output = (row[key].replace("\r\n", "\n").strip() for key in ("instruction", "output"))
        if instruction and output:
            rows.append((instruction, output))
    if options.stored:
        read_again(rows, options.stored)
        return
    envelopes = list(every())
    print(f"{len(rows):,} rows, {len(envelopes)} envelopes")
    for step in (Step.REFLECT_RESPONSE, Step.REFLECT_INSTRUCTION):
        started = time.process_time()
        wrong = Counter({each: sum(not exact(step, each, row) for row in rows) for each in envelopes})
        trips, lost = len(rows) * len(envelopes), wrong.total()
        seconds = time.process_time() - started
        print(
            f"{step}: {trips:,} round trips, {lost:,} not exact ({lost / trips:.2%}), {seconds / trips * 1e6:.0f} µs each"
        )
        for name, group in groups(envelopes).items():
            part = sum(wrong[each] for each in group)
            print(f"    {part / (len(rows) * len(group)):7.2%}  of {name}")
        for each, number in wrong.most_common(options.show):
            if number:
                print(f"    {number / len(rows):7.2%}  {each.section('Answer', 3, TWO_LINES)!r}")


if __name__ == "__main__":
    main()
