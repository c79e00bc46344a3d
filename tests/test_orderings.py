"""Orderings against plain loops, embeddings by a sentence encoder, and the recipes that pick from them, on both backends."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from late import Encoder, no_grad, torch
from scored_stores import add_students, student_id
from stores import add_samples, texts
from tiny_students import save_encoder, transformers

from recycledb import methods
from recycledb.errors import SelectionError, StudentError
from recycledb.methods import Placed, Pool, Vector
from recycledb.methods.embedding import PARTS
from recycledb.methods.facility import Greedy
from recycledb.schema import LossStatus, Texts
from recycledb.scoring.requests import Request
from recycledb.selection.recipes import get_recipe, parse
from recycledb.selection.select import select
from recycledb.store import Store
from recycledb.store.rows import EmbeddingRow
from recycledb.vectors import encoded


def order(name: str, pool: Pool, **options: Any) -> list[Placed]:
    method = methods.orderings()[name]
    return list(method.order(pool, {**method.options, **options}))


def unit(rows: Any) -> Any:
    rows = np.asarray(rows, np.float64)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def random_pool(seed: int, number: int, dimensions: int = 24, twins: bool = False) -> Pool:
    chance = np.random.default_rng(seed)
    rows = chance.normal(size=(number, dimensions))
    if twins:  # pairs that stand only for each other, and equal vectors
        rows[1::2] = rows[::2][: len(rows[1::2])] + 0.01 * chance.normal(size=rows[1::2].shape)
        rows[-3:] = rows[0]
    return Pool([f"{place:04d}" for place in range(number)], {}, unit(rows))


def naive_facility(vectors: Any) -> list[int]:
    """Return the greedy order by evaluating every gain anew, in exact sums of float64 similarities."""
    rows = [[float(x) for x in row] for row in vectors]
    d = len(rows[0])
    s = [[math.exp(-math.dist(a, b) / d) for b in rows] for a in rows]
    best, taken = [0.0] * len(rows), []
    while len(taken) < len(rows):
        gains = {
            i: math.fsum(max(0.0, s[i][j] - best[j]) for j in range(len(rows)))
            for i in range(len(rows))
            if i not in taken
        }
        top = max(gains.values())
        chosen = min(i for i, gain in gains.items() if gain >= top - 1e-9 * abs(top))
        taken.append(chosen)
        best = [max(old, new) for old, new in zip(best, s[chosen], strict=True)]
    return taken


@pytest.mark.parametrize("twins", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_facility_location_is_the_greedy_order(seed: int, twins: bool) -> None:
    pool = random_pool(seed, 40, twins=twins)
    found = order("facility", pool)
    assert [each.place for each in found] == naive_facility(pool.vectors)
    gains = [each.gain for each in found if each.gain is not None]
    assert all(a >= b - 1e-9 for a, b in pairwise(gains))


def awkward(name: str) -> Any:
    """Return vectors (n, D) whose greedy order hangs on ties, copies or tiny distances."""
    chance = np.random.default_rng(5)
    clusters = np.repeat(chance.normal(size=(6, 16)), 9, axis=0) + 0.15 * chance.normal(size=(54, 16))
    return {
        "clusters": unit(clusters),
        "not of unit length": clusters.astype(np.float32),
        "copies": unit(clusters[chance.integers(0, 20, 50)]),
        "nearly copies": unit(np.repeat(clusters[:20], 3, axis=0) + 1e-6 * chance.normal(size=(60, 16))),
        "all ties": np.eye(16, dtype=np.float32),  # every two are equally far apart
        "a circle": unit([[math.cos(math.tau * i / 12), math.sin(math.tau * i / 12)] for i in range(12)]),
        "zeros among others": np.concatenate([unit(clusters[:8]), np.zeros((3, 16), np.float32), -np.zeros((2, 16), np.float32)]),
        "all equal": np.tile(unit(clusters[:1]), (7, 1)),
        "all zero": np.zeros((4, 8), np.float32),
        "one": unit(clusters[:1]),
        "two": unit(clusters[:2]),
    }[name]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["clusters", "not of unit length", "copies", "nearly copies", "all ties", "a circle", "zeros among others", "all equal",
     "all zero", "one", "two"],
)  # fmt: skip
def test_ties_and_copies_are_placed_as_by_the_definition(name: str) -> None:
    vectors = awkward(name)
    found = order("facility", Pool([str(place) for place in range(len(vectors))], {}, vectors))
    assert [each.place for each in found] == naive_facility(vectors)


@pytest.mark.parametrize(("listed", "block"), [(0, 5_000), (150 * 20, 1), (150 * 150, 10**6)])
def test_neither_kept_lists_nor_blocks_change_the_greedy_order(listed: int, block: int) -> None:
    vectors = random_pool(9, 150, 8, twins=True).vectors[:-3].astype(np.float64)
    found = [chosen for chosen, _ in Greedy(vectors, np.ones(147), listed=listed, block=block).order()]
    similar = np.exp(-np.linalg.norm(vectors[:, None] - vectors, axis=2) / 8)
    best, expected, free = np.zeros(147), [], np.ones(147, bool)
    while free.any():
        gains = np.where(free, np.maximum(similar - best, 0.0).sum(1), -1.0)
        chosen = int(np.argmax(gains >= gains.max() * (1 - 1e-9)))
        free[chosen], best = False, np.maximum(best, similar[chosen])
        expected.append(chosen)
    assert found == expected


def test_the_gains_of_an_order_sum_to_what_it_represents() -> None:
    """Also after many steps: the sum of the gains is Σ_j max_{i in S} s_ij, for every S that begins the order."""
    vectors = awkward("clusters").astype(np.float64)
    similar = np.exp(-np.linalg.norm(vectors[:, None] - vectors, axis=2) / 16)
    total, taken = 0.0, []
    for each in order("facility", Pool([str(place) for place in range(len(vectors))], {}, awkward("clusters"))):
        assert each.gain is not None
        total, taken = total + each.gain, [*taken, each.place]
        assert total == pytest.approx(similar[taken].max(0).sum(), rel=1e-12)


def test_the_filter_compares_with_kept_variants_only() -> None:
    """b is too similar to a, and c to b only: c stays. Equal scores keep the pool's order; without a score a variant is left out."""
    angles = [0.0, 0.3, 0.6, 2.0, 2.0, 1.0]
    vectors = unit([[math.cos(angle), math.sin(angle)] for angle in angles])
    pool = Pool(list("abcdef"), {"score": [3.0, 2.0, 1.0, 5.0, 5.0, None]}, vectors)
    assert [each.place for each in order("filter", pool, threshold=0.9)] == [3, 0, 2]
    assert [each.gain for each in order("filter", pool, threshold=0.9)] == [5.0, 3.0, 1.0]
    assert [each.place for each in order("filter", pool._replace(columns={}), threshold=2.0)] == list(range(6))


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.9])
def test_the_filter_of_many_blocks_is_the_walk_one_by_one(threshold: float) -> None:
    """DEITA's code drops with batches what is like a variant that was itself dropped."""
    chance = np.random.default_rng(2)
    vectors = unit(chance.normal(size=(40, 6))[chance.integers(0, 40, 900)] + 0.4 * chance.normal(size=(900, 6)))
    scores = chance.integers(0, 50, 900).astype(float).tolist()
    kept: list[int] = []
    for place in sorted(range(900), key=lambda place: -scores[place]):
        if not kept or float((vectors[kept].astype(np.float64) @ vectors[place].astype(np.float64)).max()) <= threshold:
            kept.append(place)
    pool = Pool([str(place) for place in range(900)], {"score": scores}, vectors)
    assert [each.place for each in order("filter", pool, threshold=threshold)] == kept


def test_equal_vectors_are_ties_whatever_rounding_says() -> None:
    """A cosine of 1 is not above a threshold of 1; of variants equally near to a query the first in the pool comes first."""
    vectors = np.repeat(unit(np.random.default_rng(1).normal(size=(30, 383))), 20, axis=0)
    pool = Pool([str(place) for place in range(600)], {}, vectors)
    assert len(order("filter", pool, threshold=1.0)) == 600
    assert [each.place for each in order("filter", pool, threshold=0.99)] == list(range(0, 600, 20))
    near = order("round_robin", pool._replace(queries=vectors[[0, 40]]))
    assert [each.place for each in near[:40]] == [x for i in range(20) for x in (i, 40 + i)]


def test_a_taken_variant_costs_the_query_its_turn() -> None:
    """Both queries are nearest to 0, then the first to 1 and the second to 2."""
    vectors = unit([[1, 0.1], [1, -1], [1, 1], [-1, 0]])
    pool = Pool(list("abcd"), {}, vectors, unit([[1, 0.0], [1, 0.15]]))
    assert [(each.place, each.reason) for each in order("round_robin", pool)] == [
        (0, "near query 1"), (1, "near query 1"), (2, "near query 2"), (3, "near query 1"),
    ]  # fmt: skip


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    points=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 3)), max_size=30), two=st.booleans()
)
def test_pareto_layers_are_those_of_the_definition(points: list[tuple[int, int, int]], two: bool) -> None:
    points = [(point[0], point[1], 0) if two else point for point in points]
    columns = {"x": [p[0] for p in points], "y": [p[1] for p in points]} | (
        {} if two else {"z": [p[2] for p in points]}
    )
    found = {each.place: each.gain for each in order("pareto", Pool([str(i) for i in range(len(points))], columns))}
    left, layer, expected = set(range(len(points))), 1, {}
    while left:
        front = {
            i for i in left
            if not any(points[j] != points[i] and all(a >= b for a, b in zip(points[j], points[i], strict=True)) for j in left)
        }  # fmt: skip
        expected |= dict.fromkeys(front, float(layer))
        left, layer = left - front, layer + 1
    assert found == expected


def test_the_random_order_of_two_does_not_depend_on_the_others() -> None:
    ids = [f"{i:03d}" for i in range(50)]
    whole = [ids[each.place] for each in order("random", Pool(ids, {}), seed=7)]
    some = [ids[::3][each.place] for each in order("random", Pool(ids[::3], {}), seed=7)]
    assert [key for key in whole if key in some] == some
    assert whole != [ids[each.place] for each in order("random", Pool(ids, {}), seed=8)] and sorted(whole) == ids


# -- vectors


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny sentence encoder: a BERT of random weights."""
    return save_encoder(tmp_path_factory.mktemp("encoder") / "bert")


@no_grad
def test_an_encoder_embeds_as_sentence_transformers_does(encoder_folder: Path) -> None:
    """Mean over the attention mask, then length 1; padding and neighbours change nothing; the empty text has no vector."""
    model = transformers.AutoModel.from_pretrained(encoder_folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(encoder_folder)
    samples = [Texts("Name it", "", "Paris"), Texts("a", "b", "The quick brown fox. " * 60), Texts("", "", "x")]
    mean = Vector("mean", "row", PARTS["row"])
    answer = Vector("mean", "answer", PARTS["answer"])
    with Encoder.load(str(encoder_folder), revision=None, max_length=64, device="cpu") as encoder:
        requests = [
            Request(i, each, (), vectors=(mean, answer)) for i, each in enumerate([*samples, Texts("q", "", "")])
        ]
        found = {(each.key, each.stat): each for results in encoder.score(requests) for each in results}
    assert found[3, answer.key].status is LossStatus.EMPTY
    for i, sample in enumerate(samples):
        ids = words("\n".join(sample), truncation=True, max_length=64)["input_ids"]
        states = model(torch.tensor([ids])).last_hidden_state[0]
        expected = (states.mean(0) / states.mean(0).norm()).numpy()
        result = found[i, mean.key]
        assert result.output is not None and np.allclose(result.output[:-1], expected, atol=1e-5)
        assert (result.n_tokens, result.truncated) == (len(ids), i == 1)
        assert result.output[-1] == pytest.approx(float(states.mean(0).norm()), rel=1e-5)


def test_an_encoder_has_no_losses(encoder_folder: Path) -> None:
    encoder = Encoder.load(str(encoder_folder), revision=None, max_length=64, device="cpu")
    with pytest.raises(StudentError, match="vectors only"):
        list(encoder.score([Request(0, Texts("a", "", "b"), ("A_direct",))]))
    with pytest.raises(StudentError, match="128 positions"):
        Encoder.load(str(encoder_folder), revision=None, max_length=512, device="cpu")


# -- recipes


@pytest.mark.parametrize("store_url", ["sqlite", "duckdb"], indirect=True)
def test_an_ordering_is_recorded_once_and_again_only_for_another_pool(store_url: str, tmp_path: Path) -> None:
    recipe = get_recipe("random")
    with Store.open(store_url) as store:
        add_samples(store, [texts(i) for i in range(20)])
        first = select(store, recipe, {"top": "5"}, name="a", output=tmp_path / "a.json")
        assert first.rows == 5 and store.rows("SELECT count(*) FROM orderings")[0][0] == 1
        assert select(store, recipe, {"top": "8"}, name="b").rows == 8  # 8 is the power of two above 5
        assert select(store, recipe, {"top": "9"}, name="c").rows == 9
        assert sorted(row[0] for row in store.rows("SELECT count(*) FROM ordering_items GROUP BY ordering")) == [8, 16]
        again = select(store, recipe, {"top": "5"}, name="d")
        assert again.output_sha256 == first.output_sha256
        five = picked(store, "a")
        assert picked(store, "c")[:5] == five
        add_samples(store, [texts(f"new {i}") for i in range(5)], "second")
        select(store, recipe, {"top": "25"}, name="e")
        assert [key for key in picked(store, "e") if key in picked(store, "c")] == picked(
            store, "c"
        )  # no two changed places
        assert store.rows("SELECT count(*) FROM orderings")[0][0] == 3
    assert len(json.loads((tmp_path / "a.json").read_text())) == 5


def picked(store: Store, selection: str) -> list[str]:
    sql = "SELECT variant_id FROM selection_items WHERE selection = :s ORDER BY position"
    return [row[0] for row in store.rows(sql, s=selection)]


def test_vectors_that_are_missing_are_told_with_what_to_add(sqlite_url: str) -> None:
    with Store.open(sqlite_url) as store:
        add_samples(store, [texts(i) for i in range(3)])
        add_students(store, "minilm")
        [(variant,)] = store.rows("SELECT min(variant_id) FROM variant")
        vector = EmbeddingRow(
            student_id("minilm"), "last", "row", variant, encoded([1.0]), 1.0, 1, False, "ok", None, "test"
        )
        with store.write() as conn:
            store.insert(conn, [vector])
        recipe = parse(
            "mine",
            "-- @param encoder student: whose\n-- @order facility(encoder = :encoder)\n-- @pool\nSELECT variant_id FROM variants;\n"
            "-- @pick\nSELECT variant_id, rank FROM ordering_items WHERE ordering_id = :ordering",
        )
        with pytest.raises(SelectionError, match=r'3 of 3 variants have no vector .* method = "embedding"'):
            select(store, recipe, {"encoder": "minilm"})


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("-- @order random()\nSELECT 1", "@pool"),
        ("-- @pool\nSELECT 1;\n-- @pick\nSELECT 2", "@order"),
        ("-- @order best()\n-- @pool\nSELECT 1;\n-- @pick\nSELECT 2", "no ordering 'best'"),
        ("-- @order random(size = 3)\n-- @pool\nSELECT 1;\n-- @pick\nSELECT 2", "has no 'size'"),
        ("-- @order facility()\n-- @pool\nSELECT 1;\n-- @pick\nSELECT 2", "needs encoder"),
        ("-- @order random(3)\n-- @pool\nSELECT 1;\n-- @pick\nSELECT 2", "key = value"),
    ],
)
def test_a_recipe_with_half_an_ordering_is_refused(sql: str, message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        parse("mine", sql)
