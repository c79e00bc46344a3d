"""Published logs of pairwise reviews become judgements; judges are trained on the store's rows and come back as students."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli
from stores import add_samples, texts
from templates import new

from recycledb import config
from recycledb.errors import FormatError, SelectionError
from recycledb.store import Store
from recycledb.workspace import Workspace

# What the judge said of (a first, b first) for each question: wins, a flip, a tie, losses, and what the published script cannot read.
SAID = [
    ("9 8\nMore detailed.", "7 8.5\nThe same."),
    ("9 8\nFirst is best.", "9 8\nFirst is best."),
    ("8 8\nEqual.", "8,8\nEqual."),
    ("6 9\nWorse.", "8 8\nEqual."),
    ("8/10 9/10\nWorse.", "9, 8 \nWorse."),
    ("7 8\nWorse.", "I cannot say which is better."),
]
IMPORT = {"judge": "gpt-4", "first": "cherry", "second": "alpaca"}


def scored(review: str) -> str:
    """Return the scores that the published script finds, as it writes them: -1 for what is not exactly `a b` or `a,b`."""
    words = review.split("\n")[0].replace(",", " ").split(" ")
    try:
        one, two = map(float, words)
    except ValueError:
        return "[-1, -1]"
    return f"[{one}, {two}]"


def log(said: Sequence[tuple[str | None, str | None]] = SAID, key: str = "text", **changed: Any) -> dict[str, Any]:
    """Return a log as the published script writes it."""
    rows = []
    for i, (review, reverse) in enumerate(said):
        row = {key: f"Question {i}?", "Answer1": f"cherry says {i}", "Answer2": f"alpaca says {i}"}
        row |= {"review": review, "scores": scored(review or "")} if review is not None else {}
        row |= {"review_reverse": reverse, "scores_reverse": scored(reverse or "")} if reverse is not None else {}
        rows.append(row)
    return {"Meta_Info": {"dataset_name": "vicuna", "average_scores": "[7.7, 7.6]"}, "data": rows, **changed}


def written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content, indent=4))
    return path


def counts(store: Store) -> dict[str, int]:
    tables = ("sample", "variant", "attempt", "reply", "extraction", "rating", "name", "worker", "dataset_import", "place")
    return {table: store.rows(f"SELECT count(*) FROM {table}")[0][0] for table in tables}


@pytest.mark.both_backends
def test_a_published_log_becomes_judgements(store: Store, tmp_path: Path) -> None:
    db = Workspace(store, config.Config())
    file = written(tmp_path / "vicuna_wrap_reviews_gpt4.json", log())
    found = db.import_reviews(file, **IMPORT)
    assert (found.judging, found.files[0].dataset, found.pairs, found.answers_new, found.reviews_new) == (
        "gpt-4", "vicuna", 6, 12, 12,
    )  # fmt: skip
    assert (found.without_review, found.unreadable, found.read_otherwise) == (0, 1, 3)
    report = db.judge_report("gpt-4")
    tally = report.all
    assert (report.first, report.teacher) == ("answer/cherry", "gpt-4")
    assert (tally.wins, tally.ties, tally.losses, tally.flipped, tally.undecided) == (1, 2, 2, 1, 1)
    assert tally.score == pytest.approx((1 - 2) / 5 + 1) and set(report.datasets) == {"vicuna"}
    rows = store.rows("""
        SELECT o.instruction, t.text, t.teacher, t.cost_usd FROM teacher_texts t
        JOIN variants v ON v.variant_id = t.variant_id JOIN samples o ON o.sample_id = v.sample_id
        WHERE t.step = 'compare' AND v.output = 'alpaca says 1'
    """)
    assert [tuple(row) for row in rows] == [("Question 1?", "9 8\nFirst is best.", "gpt-4", 0.0)]
    assert db.check().findings == []
    before = counts(store)
    again = db.import_reviews(file, **IMPORT)
    assert (again.answers_new, again.reviews_new, again.reviews_present) == (0, 0, 12) and counts(store) == before
    assert db.plan().calls == 0  # a sync without a configured judging asks nothing about them
