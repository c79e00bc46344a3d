"""PostgreSQL's planner: on a store of thousands of samples every recipe and every kind of documented query ends, in good time.

The limit tells plans that read each row a few times (seconds) from those that compare every row with every other, which take minutes.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ALL_BACKENDS
from templates import drop, new_url

from recycledb.selection.compare import compare
from recycledb.selection.query import query
from recycledb.selection.recipes import get_recipe
from recycledb.selection.select import select
from recycledb.store import Store

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
SAMPLES = 10_000
LIMIT_S = 60
QUERIES = {
    "medians": "SELECT kind, student, count(*), median(ifd_ppl), quantile(ifd_ppl, 0.9) FROM scores GROUP BY kind, student",
    "two students": """
        SELECT a.variant_id, a.ifd_ppl, b.ifd_ppl AS other FROM scores a JOIN scores b ON b.variant_id = a.variant_id
        WHERE a.student = '7b' AND b.student = '13b' AND a.is_current = 1 AND a.ifd_ppl < b.ifd_ppl
    """,
    "side by side": "SELECT student, avg(q_ifd_ppl - ori_ifd_ppl), count(qa_id) FROM sample_scores GROUP BY student",
    "the rule": """
        WITH candidate AS (
            SELECT sample_id, CASE WHEN q_ifd_ppl > ori_ifd_ppl AND qa_rifd_ppl < q_rifd_ppl THEN qa_id
                WHEN q_ifd_ppl > ori_ifd_ppl THEN NULL WHEN a_rifd_ppl < ori_rifd_ppl THEN a_id END AS variant_id
            FROM sample_scores WHERE student = '7b' AND teacher = 'gpt'
        )
        SELECT v.output FROM candidate c JOIN scores s ON s.variant_id = c.variant_id JOIN variants v ON v.variant_id = c.variant_id
        JOIN sample_order o ON o.sample_id = c.sample_id WHERE s.student = '7b' AND s.ifd_ppl < 1 AND s.rifd_ppl < 1 ORDER BY o.place
    """,
    "current by kind": "SELECT kind, is_current, count(*) FROM variants GROUP BY kind, is_current",
    "measures": "SELECT measure, model, count(value), median(value) FROM measures WHERE is_current = 1 GROUP BY measure, model",
    "worst": "SELECT sample_id, ifd_ppl FROM scores WHERE student = '7b' AND is_current = 1 ORDER BY ifd_ppl DESC LIMIT 20",
    "one sample": "SELECT * FROM scores WHERE sample_id = (SELECT min(sample_id) FROM samples)",
}


@pytest.fixture(scope="module")
def full_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store on PostgreSQL with replies and the statistics of two students."""
    import synthetic

    target = synthetic.prepare(tmp_path_factory.mktemp("students"))
    url = new_url("postgresql", Path())
    with Store.open(url) as store:
        synthetic.fill(store, target, SAMPLES)
        yield store
    drop(url)


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("postgresql" not in ALL_BACKENDS, reason="no PostgreSQL is installed"),
]
STATES = ("as filled", "analyzed")  # in this order


@pytest.mark.parametrize("state", STATES)
def test_documented_queries_end(full_store: Store, state: str) -> None:
    if state == "analyzed":
        full_store.backend.analyze()
    for name, sql in QUERIES.items():
        with query(full_store, sql, timeout_s=LIMIT_S) as result:
            assert list(result.rows), name


@pytest.mark.parametrize("name", ["selective", "recycled", "cherry", "superfilter", "long", "random"])
def test_recipes_end(full_store: Store, tmp_path: Path, name: str) -> None:
    recipe = get_recipe(name)
    given = {"student": "7b"} if "student" in {each.name for each in recipe.parameters} else {}
    assert select(full_store, recipe, given, output=tmp_path / "out.json", timeout_s=LIMIT_S).counts


def test_students_are_compared(full_store: Store) -> None:
    assert compare(full_store, ["7b", "13b"], timeout_s=LIMIT_S)
