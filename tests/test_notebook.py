"""What the Python API's results look like in a notebook: tables that say what the command line says, and hostile texts are texts."""

from dataclasses import replace

import pytest
from scored_stores import two_students
from stores import student_row
from sync_runs import configuration
from test_report import HOSTILE, Reader

from recycledb.markup import Link, table
from recycledb.store import Store
from recycledb.sync import Outcome
from recycledb.sync.plan import AskPlan, Plan
from recycledb.sync.progress import Asked
from recycledb.workspace import Answer, Workspace

MARKUP = HOSTILE.encode("utf-8", "replace").decode().replace("\0", "")
TAGS = {"div", "table", "thead", "tbody", "tr", "th", "td", "p"}


def read(shown: object) -> str:
    """Return the text of what a notebook shows; only our own tags are in it."""
    reader = Reader(shown._repr_html_())  # type: ignore[attr-defined]
    assert {tag for tag, _ in reader.tags} <= TAGS
    assert not [each for _, each in reader.tags if set(each) - {"class", "tabindex"}]
    return reader.text


def test_an_answer() -> None:
    answer = Answer(["a", MARKUP], [(1_234_567, MARKUP), (None, "x" * 600), (0.5, b"bytes")])
    said = read(answer)
    assert "1,234,567" in said and "</script><script>" in said and "3 rows" in said and "x" * 501 not in said
    assert "the first 50 of 51 rows" in read(replace_rows(answer, 51)) and "no row" in read(replace_rows(answer, 0))


def replace_rows(answer: Answer, number: int) -> Answer:
    return Answer(answer.columns, [(1, "x")] * number)


def test_a_plan_and_an_outcome() -> None:
    ask = AskPlan("compress", MARKUP, 1_200, 30, 5_000, None, None, None)
    plan = Plan(asks=[ask], failed=3, warnings=[MARKUP])
    said = read(plan)
    assert "1,230 questions at most, cost unknown" in said and "1,200" in said and said.count("<!-- ]]>") == 2
    assert "Nothing is missing" in read(Plan())
    asked = Asked(asked=10, answered=7, failed=3, cost_usd=0.25, reasons={"refusal": 3}, examples={"refusal": MARKUP})
    outcome = Outcome(asked=[asked], stopped=MARKUP, left=plan)
    said = read(outcome)
    assert "refusal" in said and "$0.2500" in said and "1,230 questions at most" in said and "<!-- ]]>" in said
    assert "Nothing was to be done. Nothing is missing." in read(replace(outcome, asked=[], stopped=None, left=Plan()))


@pytest.mark.long
def test_results_of_a_store(sqlite_url: str) -> None:
    with Store.open(sqlite_url) as store:
        two_students(store)
        with store.write() as conn:
            store.insert(conn, [student_row("57d000000002", MARKUP)])
            store.ensure_name(conn, "student", MARKUP, "57d000000002")
        db = Workspace(store, configuration("http://127.0.0.1:9"))
        selected = db.select("selective", student="7b", name=MARKUP)
        assert f"{selected.rows} rows" in read(selected) and "</script>" in read(selected)
        compared = db.compare("7b", "13b")
        assert f"{compared.correlations[0].spearman:.3f}" in read(compared) and "13b" in read(compared)
        matrix = db.compare_measures("ifd/7b", "ifd/13b")
        assert "1.00" in read(matrix) and "ifd/13b" in read(matrix)
        status = db.look()
        said = read(status)
        assert "4 samples, 1 selections" in said and "reflect_both" in said and "</script>" in said
        assert read(status.plan) in said  # what is missing is part of the status


def test_links_of_tables_are_escaped() -> None:
    found = table(["a"], [[Link(MARKUP, '/samples?x="><b>')]])
    assert "<b>" not in found and "<script" not in found and found.count("<a ") == 1
