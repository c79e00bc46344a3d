"""The recipes over measures, against plain Python, on both backends; and measures side by side."""

import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scored_stores as scored
import stores
from stores import add_samples, texts

from recycledb.errors import SelectionError
from recycledb.reporting.matrix import matrix_html
from recycledb.selection.matrix import RANDOM, compare_measures
from recycledb.selection.recipes import get_recipe
from recycledb.selection.select import select
from recycledb.store import Store
from recycledb.store.rows import EmbeddingRow, MeasureRow, ValueRow
from recycledb.sync.measures import measure_id_of
from recycledb.vectors import encoded

N = 12


def fill(store: Store) -> list[str]:
    """Write samples with two measures under two students of different size, lengths, and vectors; return the origins in order."""
    samples = add_samples(store, [texts(i) for i in range(N)])
    origins = [scored.origin_of(store, sample) for sample in samples]
    with store.write() as conn:
        for name, size in (("small", 1), ("large", 3)):
            row = stores.student_row(scored.student_id(name), name)._replace(parameters=size)
            store.insert(conn, [row])
            store.ensure_name(conn, "student", name, row.student_id)
        for name in ("selectit", "quality"):
            measure = measure_id_of(name, name, 1, "{}")
            store.insert(conn, [MeasureRow(measure, name, name, 1, "{}", "2026-01-01T00:00:00.000000Z")])
            store.ensure_name(conn, "measure", name, measure)
            for student, (place, origin) in itertools.product(("small", "large"), enumerate(origins)):
                number = value(name, student, place)
                status = "too_long" if number is None else "ok"
                store.insert(conn, [ValueRow(measure, scored.student_id(student), origin, "", number, status)])
        for place, origin in enumerate(origins):
            angle = place % 4 + 0.02 * place
            store.insert(conn, [
                stores.loss_row(scored.student_id("small"), origin, "A_direct", 9.0, tokens(place)),
                EmbeddingRow(scored.student_id("large"), "last", "whole", origin, encoded([math.cos(angle), math.sin(angle)]),
                             1.0, 5, False, "ok", None, "test"),
            ])  # fmt: skip
    return origins


def value(measure: str, student: str, place: int) -> float | None:
    if (measure, student, place) == ("selectit", "large", 3):
        return None  # too long for one student
    return ((place * 7 + len(measure) + 5 * len(student)) % N) / 3


def tokens(place: int) -> int:
    return 10 + (place * 5) % 7


@pytest.fixture(params=["sqlite", "duckdb"])
def filled(
    request: pytest.FixtureRequest, empty_stores: dict[str, Path], tmp_path: Path
) -> Iterator[tuple[Store, list[str]]]:
    path = tmp_path / "store.db"
    shutil.copyfile(empty_stores[request.param], path)
    with Store.open(f"{request.param}:///{path}") as store:
        yield store, fill(store)


def picked(store: Store, recipe: str, **given: str) -> list[str]:
    select(store, get_recipe(recipe), given, name="s")
    return [
        row[0] for row in store.rows("SELECT variant_id FROM selection_items WHERE selection = 's' ORDER BY position")
    ]


def ranked(origins: Sequence[str], key: Callable[[int], float]) -> list[str]:
    return [origins[i] for i in sorted(range(N), key=lambda i: (-key(i), i))]


@pytest.mark.long
def test_recipes_pick_what_they_say(filled: tuple[Store, list[str]]) -> None:
    store, origins = filled
    weighted = {
        i: (value("selectit", "small", i) + 3 * value("selectit", "large", i)) / 4  # type: ignore[operator]
        for i in range(N) if i != 3
    }  # fmt: skip
    expected = [origins[i] for i in sorted(weighted, key=lambda i: (-weighted[i], i))]
    assert picked(store, "selectit", top="100%") == expected
    assert picked(store, "selectit", top="25%") == expected[:3]
    assert picked(store, "long", student="small", top="4") == ranked(origins, tokens)[:4]
    first, second = ("selectit", "small"), ("quality", "large")
    points = [(value(*first, i), value(*second, i)) for i in range(N)]
    front = [
        i for i in range(N)
        if not any(q != points[i] and q[0] >= points[i][0] and q[1] >= points[i][1] for q in points)  # type: ignore[operator]
    ]  # fmt: skip
    chosen = picked(store, "pareto", first="selectit/small", second="quality/large")
    assert chosen == [origins[i] for i in sorted(front, key=lambda i: (-points[i][0], i))]  # type: ignore[operator]
    assert len(picked(store, "pareto", first="selectit/small", second="quality/large", top="9")) == 9


@pytest.mark.long
def test_all_agree_is_the_upper_half_of_each(filled: tuple[Store, list[str]]) -> None:
    store, origins = filled
    heights = []
    for measure, student in (("selectit", "small"), ("quality", "large")):
        column = [value(measure, student, i) for i in range(N)]
        heights.append([sum(other < each for other in column) / (N - 1) for each in column])  # type: ignore[operator]
    worst = {i: min(each[i] for each in heights) for i in range(N)}
    expected = [origins[i] for i in sorted(worst, key=lambda i: (-worst[i], i)) if worst[i] >= 0.5]
    assert picked(store, "all_agree", wanted="selectit/small, quality/large") == expected and expected


@pytest.mark.long
def test_deita_leaves_out_what_is_too_similar(filled: tuple[Store, list[str]]) -> None:
    store, origins = filled
    product = {}
    for i in range(N):
        means = [
            np.mean([v for s in ("small", "large") if (v := value(m, s, i)) is not None])
            for m in ("selectit", "quality")
        ]
        product[i] = float(means[0] * means[1])
    angles = [i % 4 + 0.02 * i for i in range(N)]
    kept: list[int] = []
    for i in sorted(product, key=lambda i: (-product[i], i)):
        if all(math.cos(angles[i] - angles[j]) <= 0.9 for j in kept):
            kept.append(i)
    found = picked(store, "deita", complexity="selectit", quality="quality", encoder="large", top="100")
    assert found == [origins[i] for i in kept] and 1 < len(kept) < N


def naive_facility(vectors: np.ndarray[Any, Any]) -> list[int]:
    """Return the greedy order, every gain computed anew; equal ones in the order of the vectors."""
    similar = np.exp(-np.linalg.norm(vectors[:, None] - vectors[None], axis=2) / vectors.shape[1])
    chosen: list[int] = []
    while len(chosen) < len(vectors):
        best = similar[chosen].max(0) if chosen else np.zeros(len(vectors))
        gains = [-1.0 if i in chosen else np.maximum(similar[i] - best, 0).sum() for i in range(len(vectors))]
        chosen.append(next(i for i, gain in enumerate(gains) if gain >= max(gains) - 1e-9 * abs(max(gains))))
    return chosen


def test_superfilter_d_takes_from_the_hardest_those_that_stand_for_most(sqlite_url: str) -> None:
    """The pool is a share of these samples; without an IFD (0 in the published code) or with one of 1 none is in it; all can be taken."""
    chance = np.random.default_rng(5)
    vectors = chance.normal(size=(20, 6))
    vectors[13] = vectors[4]  # of the two that stand for each other, the harder one comes first
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    direct = [3.0 - 0.05 * ((7 * i) % 20) for i in range(20)]  # A_condition is 2.5: the IFD rises as this falls
    with Store.open(sqlite_url) as store:
        origins = [scored.origin_of(store, sample) for sample in add_samples(store, [texts(i) for i in range(20)])]
        scored.add_students(store, "small", "encoder")
        small, encoder = (scored.student_id(name) for name in ("small", "encoder"))
        with store.write() as conn:
            for i, origin in enumerate(origins):
                whole = encoded(vectors[i].tolist())
                alone = (None, "too_short") if i == 2 else (10 * direct[i], "ok")
                store.insert(conn, [
                    stores.loss_row(small, origin, "A_direct", alone[0], 10, status=alone[1]),
                    stores.loss_row(small, origin, "A_condition", 25.0, 10),
                    EmbeddingRow(encoder, "mean", "row", origin, whole, 1.0, 5, False, "ok", None, "test"),
                ])  # fmt: skip
        given = {"student": "small", "encoder": "encoder"}
        for share, size in (("35%", 7), ("100%", 20)):
            below = [i for i in range(20) if i != 2 and 2.5 - direct[i] < 0]
            pool = sorted(below, key=lambda i: (direct[i], i))[:size]
            assert 7 <= len(pool) < 20
            expected = [origins[pool[i]] for i in naive_facility(vectors[pool])]
            assert picked(store, "superfilter_d", **given, pool=share, top="15%") == expected[:3]
            assert picked(store, "superfilter_d", **given, pool=share, top="100%") == expected
        [(few,)] = store.rows("SELECT count(*) FROM orderings WHERE method = 'facility'")
        assert few >= 2


@pytest.mark.long
def test_of_equal_ratings_the_earlier_sample_is_picked(sqlite_url: str) -> None:
    """SelectIT's published code takes the later one."""
    with Store.open(sqlite_url) as store:
        fill(store)
        measure = measure_id_of("even", "selectit", 1, "{}")
        origins = [row[0] for row in store.rows(
            "SELECT v.variant_id FROM variants v JOIN dataset_samples d ON d.sample_id = v.sample_id ORDER BY d.position"
        )]  # fmt: skip
        with store.write() as conn:
            store.insert(conn, [MeasureRow(measure, "even", "selectit", 1, "{}", "2026-01-01T00:00:00.000000Z")])
            store.ensure_name(conn, "measure", "even", measure)
            for i, origin in enumerate(origins):
                store.insert(conn, [ValueRow(measure, scored.student_id("small"), origin, "", float(i % 2), "ok")])
        assert picked(store, "selectit", measure="even", top="8") == [*origins[1::2], *origins[0:4:2]]


@pytest.mark.long
def test_measures_side_by_side(filled: tuple[Store, list[str]]) -> None:
    store, _ = filled
    found = compare_measures(store, ["selectit/small", "quality/large", "selectit/large"], top="25%", pictures=True)
    assert found.measures == ("selectit/small", "quality/large", "selectit/large", "length/small", RANDOM)
    assert found.baselines == ("length/small", RANDOM)
    pair = next(each for each in found.pairs if each.measures == ("selectit/small", "quality/large"))
    x, y = ([value(*name, i) for i in range(N)] for name in (("selectit", "small"), ("quality", "large")))
    order = [np.argsort(np.argsort(np.array(each, float))) for each in (x, y)]
    assert pair.n == N and pair.k == 3 and pair.chance == pytest.approx(0.25)
    assert pair.spearman == pytest.approx(float(np.corrcoef(*order)[0, 1]), abs=0.05)  # ties apart
    assert (
        next(each for each in found.pairs if "selectit/large" in each.measures).n == N - 1
    )  # a missing value is no number
    page = matrix_html(found)
    assert page.count("<figure>") == 10 and "a measure that does not beat them" in page
    assert json.dumps(found.as_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["selectit/smal", "quality/large"], "did you mean selectit/small"),
        (["selectit/small"], "at least two"),
        (["selectit/small", "selectit/small"], "at least two"),
    ],
)
def test_measures_that_there_are_not_are_told(sqlite_url: str, names: list[str], message: str) -> None:
    with Store.open(sqlite_url) as store:
        fill(store)
        with pytest.raises(SelectionError, match=message):
            compare_measures(store, names)
