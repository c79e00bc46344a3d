"""How many texts come back exactly from a teacher's reply: each text of an Alpaca file, in each envelope of tests/envelopes.py.

    python benchmarks/extraction.py alpaca.json             # each output as the better answer, then as the new answer of a pair
    python benchmarks/extraction.py alpaca.json --every 10 --show 5

A text is exact if it is the row's, without white space around it. `--show` prints envelopes in which most texts are not.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from envelopes import Envelope, answer_in, every, pair_in

from recycledb.methods.reflection import Step, extract
from recycledb.schema import Texts

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


def main() -> None:
    """Print the share of exact round trips by step and wrap, and the worst envelopes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a JSON list of objects with instruction and output")
    parser.add_argument("--every", type=int, default=1, help="take one row in so many")
    parser.add_argument("--show", type=int, default=10, help="how many envelopes to print")
    options = parser.parse_args()
    rows = []
    for row in json.loads(options.file.read_text(encoding="utf-8"))[:: options.every]:
        instruction, output = (row[key].replace("\r\n", "\n").strip() for key in ("instruction", "output"))
        if instruction and output:
            rows.append((instruction, output))
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
