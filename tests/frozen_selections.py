"""What the shipped recipes select in a store that was frozen, and what it lacks: `python frozen_selections.py STORE.zst…` prints it.

tests/data/selected.json was written by this file, run with the library as it was at 1af4e09 (revision 0004): later versions must select
the same bytes in the same stores, and must find the same rows missing.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import stores
import zstandard

from recycledb import methods
from recycledb.methods.ifd import Stat
from recycledb.methods.reflection import Step
from recycledb.selection.recipes import get_recipe
from recycledb.selection.select import export, select
from recycledb.store import Store, upgrade
from recycledb.store.losses import count_scores
from recycledb.store.questions import count_questions

MADE = "57d0000000f1"
RECIPES: dict[str, dict[str, Any]] = {
    "selective": {"student": "made"},
    "recycled": {},
    "cherry": {"student": "made", "top": "2"},
    "superfilter": {"student": "made", "top": "1"},
}


def score(store: Store) -> None:
    """Score every variant under a student of which the frozen stores know nothing, so that there is something to pick."""
    variants = [
        row[0] for row in store.rows("SELECT variant_id FROM variant WHERE kind <> 'compressed' ORDER BY variant_id")
    ]
    rows = []
    for place, variant in enumerate(variants):
        means = (2.5 + place % 3 / 4, 2.0 + place % 5 / 8, 2.25 + place % 7 / 8, 1.5 + place % 4 / 8)
        rows += [
            stores.loss_row(MADE, variant, stat, mean * 16, 16, pair_id=f"{variant[:23]}{i}", kernel="made")
            for i, (stat, mean) in enumerate(zip(Stat, means, strict=True))
        ]
    with store.write() as conn:
        store.insert(conn, [stores.student_row(MADE, "made", prompt="none", max_length=1024)])
        store.ensure_name(conn, "student", "made", MADE)
        store.insert(conn, rows)


def selected(store: Store, folder: Path) -> dict[str, Any]:
    """Return what is selected and exported, as rows and hashes of bytes, and how much is missing of what the store was filled for."""
    [[version]] = store.rows("SELECT max(extractor) FROM extraction")
    want = stores.wanted(versions=methods.versions() | dict.fromkeys(Step, version))  # what it was filled for
    stats = tuple(stat.value for stat in Stat)
    questions = {step: list(found) for step, found in sorted(count_questions(store, want).items())}
    lacks = {
        "questions": questions,
        "statistics": [list(row) for row in count_scores(store, want, [(stores.STUDENT, stats)])],
    }
    score(store)
    found: dict[str, Any] = {"lacks": lacks}
    for name, parameters in RECIPES.items():
        picked = select(store, get_recipe(name), parameters, output=folder / f"{name}.json")
        found[name] = [picked.rows, picked.file_sha256]
    found["export"] = export(store, folder / "all.json").sha256
    return found


def of_file(path: Path, folder: Path) -> dict[str, Any]:
    """Return what is selected in a frozen store."""
    backend = path.name.split(".")[1]
    copy = folder / f"frozen.{backend}"
    copy.write_bytes(zstandard.decompress(path.read_bytes()))
    upgrade(f"{backend}:///{copy}")
    with Store.open(f"{backend}:///{copy}") as store:
        return selected(store, folder)


if __name__ == "__main__":
    told = {}
    for name in sys.argv[1:]:
        with TemporaryDirectory() as directory:
            told[Path(name).name.removesuffix(".zst")] = of_file(Path(name), Path(directory))
    print(json.dumps(told, indent=2))
