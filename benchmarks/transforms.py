"""How many of the variants of the model-free transforms state something false, and how long they take, on any Alpaca file.

    python benchmarks/transforms.py alpaca.json                # RuleR and Mosaic-IT, two rounds
    python benchmarks/transforms.py alpaca.json --rounds 4 --tokenizer gpt2

The file becomes a store in a temporary folder, the transforms run as users run them, and every stored row is verified twice: by
`db check`, and by the checker of the tests (tests/stated_rules.py), which shares no code with the library.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from stated_rules import mosaic_wrong, ruler_wrong

from recycledb.config import parse
from recycledb.integrity import check
from recycledb.schema import Texts
from recycledb.store import Store, derivations
from recycledb.sync import Sync, resolve
from recycledb.workspace import Workspace


def false_rows(store: Store) -> Counter[str]:
    """Return the number of false rows by transform, as the tests' checker sees them."""
    found: Counter[str] = Counter()
    for row in derivations.stored(store, ["ruler", "mosaic"]):
        parameters: dict[str, Any] = json.loads(row.parameters)
        members, made = list(row.members), Texts(*row.texts)
        wrong = (
            ruler_wrong(members[0], parameters, made)
            if row.method == "ruler"
            else mosaic_wrong(members, parameters, made)
        )
        found[row.method] += wrong is not None
        if wrong is not None:
            print(f"{row.method} {row.derivation_id}: {wrong}: {row.parameters}")
    return found


def main() -> None:
    """Fill a store, run the transforms, check every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tokenizer", help="a Hugging Face id or folder; default: four characters a token")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tables: dict[str, Any] = {"augmentations": {name: {"rounds": given.rounds} for name in ("ruler", "mosaic")}}
        if given.tokenizer:
            tables["students"] = {"s": {"model": given.tokenizer}}
            tables["augmentations"]["mosaic"]["tokenizer"] = "s"
        config = parse(tables, Path(folder, "recycledb.toml"))
        with Workspace(Store.open(f"sqlite:///{folder}/store.db", create=True), config) as workspace:
            workspace.add(given.file.resolve())
            store = workspace.store
            started = time.process_time()
            outcome = Sync(store, resolve(config, only="augment")).run()
            print(f"sync: {time.process_time() - started:.1f} s of processor time")
            for made in outcome.augmented:
                print(f"{made.name}: {made.variants:,} variants from {made.sources:,}; without one: {made.reasons}")
            started = time.process_time()
            findings = check(store).findings
            print(f"db check: {len(findings)} findings, {time.process_time() - started:.1f} s")
            print(f"false rows by the second checker: {dict(false_rows(store))}")


if __name__ == "__main__":
    main()
