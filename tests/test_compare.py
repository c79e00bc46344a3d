"""Comparisons: correlations against brute force, and every number against what plain Python counts."""

import json
import math
import random
import re
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scored_stores as scored
import stores
from hypothesis import given
from hypothesis import strategies as st

from recycledb.errors import SelectionError
from recycledb.methods.ifd import Stat
from recycledb.methods.reflection import Kind, Step
from recycledb.reporting.charts import Flow, flow_chart
from recycledb.reporting.plots import comparison_html
from recycledb.schema import utc_now
from recycledb.selection.agreement import inversions, kendall, overlaps, pearson, ranks
from recycledb.selection.compare import WORDS_CHARACTERS, compare, first_words
from recycledb.selection.explain import explain
from recycledb.selection.picks import NODES
from recycledb.selection.recipes import get_recipe
from recycledb.selection.select import export, select
from recycledb.selection.sides import scores_once
from recycledb.store import Store
from recycledb.store.rows import TeacherRow

values = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=40)


def arrays(pairs: list[tuple[int, int]]) -> tuple["np.ndarray", "np.ndarray"]:
    return np.array([a for a, _ in pairs], dtype=float), np.array([b for _, b in pairs], dtype=float)


@given(values)
def test_kendall_is_tau_b_counted_pair_by_pair(pairs: list[tuple[int, int]]) -> None:
    x, y = arrays(pairs)
    both = list(combinations(pairs, 2))
    signs = [((a > c) - (a < c)) * ((b > d) - (b < d)) for (a, b), (c, d) in both]
    free_x, free_y = sum(a != c for (a, _), (c, _) in both), sum(b != d for (_, b), (_, d) in both)
    found = kendall(x, y)
    if not free_x or not free_y:
        assert found is None
    else:
        assert found == pytest.approx(sum(signs) / math.sqrt(free_x * free_y))


@given(st.lists(st.integers(0, 20), min_size=1, max_size=70))
def test_inversions_are_pairs_in_the_wrong_order(numbers: list[int]) -> None:
    expected = sum(a > b for a, b in combinations(numbers, 2))
    assert inversions(np.array(numbers, dtype=np.int64)) == expected


@given(values)
def test_pearson_and_ranks_by_their_definitions(pairs: list[tuple[int, int]]) -> None:
    x, y = arrays(pairs)
    expected = [1 + sum(b < a for b in x) + (sum(b == a for b in x) - 1) / 2 for a in x]
    assert ranks(x).tolist() == expected
    if len(set(x)) > 1 and len(set(y)) > 1:
        assert pearson(x, y) == pytest.approx(float(np.corrcoef(x, y)[0, 1]))
    else:
        assert pearson(x, y) is None


def test_kendall_of_many_values_is_quick_and_right() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=50_000)
    assert kendall(x, x) == pytest.approx(1)
    assert kendall(x, -x) == pytest.approx(-1)
    assert abs(kendall(x, rng.normal(size=50_000)) or 1) < 0.02


@pytest.mark.long
def test_numbers_are_those_that_plain_python_counts(store: Store) -> None:
    rng = random.Random(3)
    samples = stores.add_samples(store, [stores.texts(word) for word in range(40)])
    scored.add_teachers(store, "gpt")
    scored.add_students(store, "7b", "13b")
    kinds = scored.add_all_kinds(store, samples)
    ifd: dict[str, dict[str, float | None]] = {"7b": {}, "13b": {}}
    for student, found in ifd.items():
        for each in kinds:
            for variant in each.values():
                found[variant] = None if rng.random() < 0.1 else rng.uniform(-0.5, 0.2)
        scored.add_losses(
            store, student, {v: scored.ratios(value, rng.uniform(-0.5, 0.1)) for v, value in found.items()}
        )
    found = compare(store, ["7b", "13b"], top="25%")
    for summary in found.summaries:
        column = [math.exp(x) for each in kinds if (x := ifd[summary.side][each[Kind(summary.kind)]]) is not None]
        assert (summary.n, summary.missing) == (len(column), 40 - len(column))
        assert summary.mean == pytest.approx(np.mean(column))
        assert summary.median == pytest.approx(np.median(column))
        assert summary.stddev == pytest.approx(np.std(column, ddof=1))
        assert summary.below_1 == sum(value < 1 for value in column)
    assert [c.kind for c in found.correlations] == [*found.kinds, "all"]
    for overlap in found.top_overlaps:
        both = [
            each[Kind(overlap.kind)] for each in kinds if all(ifd[s][each[Kind(overlap.kind)]] is not None for s in ifd)
        ]
        k = len(both) // 4
        tops = [set(sorted((v for v in both if ifd[s][v] < 0), key=lambda v: -ifd[s][v])[:k]) for s in ifd]  # type: ignore[operator]
        assert (overlap.k, overlap.shared) == (k, len(tops[0] & tops[1]))
    [confusion] = found.confusions
    assert sum(map(sum, confusion.counts)) <= 40
    flows = [flow for flow in found.flows if flow.side == "7b"]
    assert sum(flow.count for flow in flows if flow.source == "samples") == 40
    for node in {flow.target for flow in flows} & {flow.source for flow in flows}:
        assert sum(f.count for f in flows if f.target == node) == sum(f.count for f in flows if f.source == node)
    widest = found.disagreements[0]
    assert np.ptp(widest.percentiles) == max(np.ptp(each.percentiles) for each in found.disagreements)
    assert " → " in widest.words[0]
    json.dumps(found.as_dict(), allow_nan=False)


def test_the_confusion_counts_what_selective_picks(store: Store) -> None:
    scored.two_students(store)
    [confusion] = compare(store, ["7b", "13b"]).confusions
    assert sum(map(sum, confusion.counts)) == 4
    at = confusion.labels.index
    assert confusion.counts[at("reflect_both")][at("reflect_both")] == 2
    assert confusion.agreement == sum(confusion.counts[i][i] for i in range(5)) / 4


@pytest.mark.long
def test_the_same_on_both_backends(tmp_path: "object") -> None:
    found = []
    for backend in ("sqlite", "duckdb"):
        with Store.open(f"{backend}:///{tmp_path}/s.{backend}", create=True) as store:
            scored.two_students(store, [f"word{i}" for i in range(20)])
            found.append(compare(store, ["13b", "7b"], metric="rifd_loss", pictures=True))
    assert found[0] == found[1]
    assert all(each.table is not None and len(each.table.samples) == 80 for each in found)
    assert set(found[0].words) == {variant for each in found[0].disagreements for variant in each.variant_ids}


def test_one_kind_one_dataset_and_three_students(store: Store) -> None:
    scored.two_students(store)
    scored.add_students(store, "gpt2", prompt="none")
    origins = [row[0] for row in store.rows("SELECT variant_id FROM variants WHERE kind = 'origin'")]
    scored.add_losses(store, "gpt2", {v: scored.ratios(-0.01 * i, None) for i, v in enumerate(origins)})
    stores.add_samples(store, [stores.texts("figs")], dataset="b")
    found = compare(store, ["7b", "13b", "gpt2"], kind="origin", dataset="b", metric="ppl_A_condition")
    assert found.samples == 1
    assert [(s.side, s.n) for s in found.summaries] == [("7b", 1), ("13b", 1), ("gpt2", 1)]
    assert len(found.correlations) == 3
    assert found.confusions == []
    assert found.correlations[0].spearman is None


def test_what_cannot_be_compared_is_said(store: Store) -> None:
    scored.two_students(store)
    for students, more, message in (
        (["7b"], {}, "two or more different students"),
        (["7b", "7b"], {}, "two or more different students to compare; there are: 13b, 7b"),
        (["7b", "70b"], {}, "no student '70b'"),
        (["7b", "13b"], {"metric": "bits"}, "no metric 'bits'; there are ifd_ppl"),
        (["7b", "13b"], {"kind": "compressed"}, "no scored kind 'compressed'"),
        (["7b", "13b"], {"top": "all"}, "top is 'all'"),
        (["7b", "13b"], {"dataset": "x"}, "no dataset 'x'"),
        (["7b", "13b"], {"teachers": ["x"]}, "no teacher 'x'"),
        (["7b"], {"teachers": ["gpt"], "prompts": ["current"]}, "--teacher or --prompt several times"),
        (["7b"], {"prompts": ["zzzz", "current"]}, "'zzzz': no such prompt in the store; there are: compress "),
        (["7b", "13b"], {"teachers": ["best", "gpt"]}, "best chooses among all teachers"),
    ):
        with pytest.raises(SelectionError, match=message):
            compare(store, students, **more)  # type: ignore[arg-type]


def other_variants(store: Store, samples: list[str], shift: float, **made: Any) -> list[dict[Kind, str]]:
    """Give each sample every kind once more, a little harder for both students."""
    kinds = scored.add_all_kinds(store, samples, **made)
    for student in ("7b", "13b"):
        means = {
            variant: scored.ratios(-0.3 + shift + number * 0.01, -0.25)
            for number, each in enumerate(kinds)
            for kind, variant in each.items()
            if kind is not Kind.ORIGIN
        }
        scored.add_losses(store, student, means)
    return kinds


@pytest.mark.long
def test_teachers_are_compared_by_what_they_made_of_the_same_samples(store: Store) -> None:
    samples = scored.two_students(store)
    scored.add_teachers(store, "claude")
    other_variants(store, samples[:3], 0.02, teacher="claude")
    found = compare(store, ["7b"], teachers=["gpt", "claude"], pictures=True)
    assert (found.labels, found.subject, found.students) == (("gpt", "claude"), "teachers", ("7b",))
    assert found.kinds == ("reflect_instruction", "reflect_response", "reflect_both")
    assert {(s.side, s.n, s.missing) for s in found.summaries} == {("gpt", 4, 0), ("claude", 3, 1)}
    assert [c.n for c in found.correlations] == [3, 3, 3, 9]
    assert all(len(each.variant_ids) == len(each.words) == 2 for each in found.disagreements)
    assert found.table is not None
    assert {len(found.table.variants_of(i)) for i in range(len(found.table.samples))} == {1, 2}
    assert sum(map(sum, found.confusions[0].counts)) == 4
    both = compare(store, ["7b", "13b"], teachers=["gpt", "claude"])
    assert both.labels == ("7b · gpt", "7b · claude", "13b · gpt", "13b · claude")
    assert (both.subject, len(both.confusions)) == ("sides", 6)
    assert "origin" in both.kinds
    json.dumps(both.as_dict(), allow_nan=False)
    with pytest.raises(SelectionError, match="origins have no teacher"):
        compare(store, ["7b"], teachers=["gpt", "claude"], kind="origin")


@pytest.mark.long
def test_an_older_prompt_is_seen_as_if_it_were_in_use(store: Store, tmp_path: Path) -> None:
    samples = scored.two_students(store)
    before = select(store, get_recipe("selective"), {"student": "7b"})
    before_file = tmp_path / "before.json"
    export(store, before_file, kind="reflect_both")
    in_use = scored.use_prompts(store, reflect_instruction="feedbeef0001")
    old = stores.PROMPTS[Step.REFLECT_INSTRUCTION][:8]
    newer = other_variants(store, samples, 0.2, prompts=in_use)
    # what followed from the old instructions is not current any more, and what follows from none of them is there twice
    assert {
        row[0] for row in store.rows("SELECT variant_id FROM variants WHERE kind = 'reflect_both' AND is_current = 1")
    } == {each[Kind.REFLECT_BOTH] for each in newer}
    again = select(store, get_recipe("selective"), {"student": "7b", "prompt": old})
    assert (again.rows, again.output_sha256) == (before.rows, before.output_sha256)
    assert again.selection == f"selective-7b-{old}"
    assert again.parameters["prompt"] == stores.PROMPTS[Step.REFLECT_INSTRUCTION]
    select(store, get_recipe("selective"), {"student": "7b"}, name="now")
    assert scored.picked(store, "now") != scored.picked(store, again.selection)
    export(store, tmp_path / "again.json", kind="reflect_both", prompt=old)
    assert (tmp_path / "again.json").read_bytes() == before_file.read_bytes()

    found = compare(store, ["7b"], prompts=["current", old], kind="reflect_instruction")
    assert (found.labels, found.subject) == (("current", old), "prompts")
    assert [s.n for s in found.summaries] == [4, 4]
    assert found.summaries[0].mean > found.summaries[1].mean  # type: ignore[operator]
    steps = {each["selection"]: each["text"] for each in explain(store, samples[0])}
    assert steps["now"] != steps[again.selection]


@pytest.mark.long
def test_a_teacher_under_older_parameters_can_be_named(store: Store) -> None:
    samples = scored.two_students(store)
    with store.write() as conn:
        store.insert(conn, [TeacherRow("0123456789ab", "gpt", "recorded", "gpt", '{"changed":1}', utc_now())])
        store.ensure_name(conn, "teacher", "gpt", "0123456789ab")
    older = f"gpt@{scored.teacher_id('gpt')[:8]}"
    assert select(store, get_recipe("selective"), {"student": "7b"}).rows == 0
    selected = select(store, get_recipe("selective"), {"student": "7b", "teacher": older})
    assert selected.rows > 0
    [text] = [each["text"] for each in explain(store, samples[0]) if each["selection"] == selected.selection]
    assert "missing" not in text


def test_the_overlap_by_chance_holds_for_lists_that_end_where_ifd_below_1_does() -> None:
    """Against the mean over many rankings that have nothing to do with each other."""
    rng = np.random.default_rng(3)
    n, below = 60, (20, 45)
    shares = (0.1, 0.25, 0.5, 1.0)
    sums = np.zeros(len(shares))
    for _ in range(400):
        both = tuple(
            rng.permutation(np.concatenate([rng.uniform(0.1, 0.99, m), rng.uniform(1.01, 2, n - m)])) for m in below
        )
        found = overlaps(("a", "b"), "origin", (both[0], both[1]), "ifd_ppl", shares)
        sums += [each.overlap or 0.0 for each in found]
    assert [each.chance for each in found] == pytest.approx(sums / 400, abs=0.03)
    assert found[-1].k == 45 and found[-1].chance == pytest.approx(20 / 60)  # not 100%, nor 75%
    assert found[0].chance == pytest.approx(0.1)


@pytest.mark.long
def test_a_side_without_values_is_named_and_cut_texts_end_in_an_ellipsis(tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path}/s.db", create=True) as store:
        scored.two_students(store, ["word " * 100 + "end", "pears"])
        scored.add_students(store, "empty")
        found = compare(store, ["7b", "empty"], pictures=True)
        whole = compare(store, ["7b", "13b"], pictures=True)
        texts = partial(first_words, store)
        variants = [row[0] for row in store.rows("SELECT variant_id FROM variant")]
        words, picture = set(texts(variants).values()), comparison_html(whole, texts)
    assert found.without_values == ["empty"] and whole.without_values == []
    page = comparison_html(found)
    assert "empty has no value of ifd_ppl" in page and page.count("no variant has a value on all sides") == 2
    scatter = picture.partition('<section id="scatter"')[2].partition("</section>")[0]
    assert scatter.count("<circle") == len(variants) and scatter.count("pears") >= 1  # each point has its text
    assert {each for each in words if each.endswith("…")} == {each for each in words if "word word" in each}
    assert all(len(each) <= WORDS_CHARACTERS for each in words) and any("pears" in each for each in words)


def test_both_decision_trees_have_their_nodes_in_one_order() -> None:
    first = flow_chart([Flow("samples", "otherwise", 9), Flow("samples", "ifd(Q) > ifd(ori)", 1)], "", NODES)
    second = flow_chart([Flow("samples", "ifd(Q) > ifd(ori)", 9), Flow("samples", "otherwise", 1)], "", NODES)
    for text in (first, second):
        assert text.index("<text") < text.index(">ifd(Q) &gt; ifd(ori)</text>") < text.index(">otherwise</text>")
        heights = [float(y) for y in re.findall(r'class="node [^"]*" x="[1-9][\d.]*" y="([\d.]+)"', text)]
        assert heights == sorted(heights) and len(heights) == 2


@pytest.mark.long
@pytest.mark.both_backends
def test_the_scores_computed_once_are_those_of_the_view(store: Store) -> None:
    """`compare` gives the recipe a `sample_scores` of its own: the same columns and rows as the view has for a student."""
    samples = stores.add_samples(store, [stores.texts(word) for word in range(12)])
    scored.add_teachers(store, "gpt", "other")
    scored.add_students(store, "7b", "13b")
    scored.add_all_kinds(store, samples[:9])
    scored.add_all_kinds(store, samples[3:6], mark="again")
    scored.add_all_kinds(store, samples[2:10], teacher="other")
    rng = random.Random(4)
    ids = [row[0] for row in store.rows("SELECT variant_id FROM variants ORDER BY variant_id")]
    for student in ("7b", "13b"):
        means = {
            key: {stat: rng.random() + 0.1 for stat in Stat if rng.random() < 0.9} for key in ids if rng.random() < 0.9
        }
        scored.add_losses(store, student, means)
    for student in ("7b", "13b"):
        found = []
        for head in ("", f"WITH {scores_once('ppl_Q_direct')} "):
            with store.sandbox() as sandbox:
                sql = f"{head}SELECT * FROM sample_scores WHERE student = :student"
                columns, rows = sandbox.execute(sql, {"student": student})
                found.append((columns, sorted(map(repr, rows))))
        assert found[0] == found[1]
        assert len(found[0][1]) == 2 * len(samples)
