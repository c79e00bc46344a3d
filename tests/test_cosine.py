"""The measure `cosine` through sync, against naive loops; and what a student has computed is not computed again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from late import no_grad, torch
from stores import add_samples
from tiny_students import SAMPLES, save_encoder, save_student, transformers

from recycledb import config
from recycledb.errors import ConfigError
from recycledb.methods.ifd import forward_prompt
from recycledb.schema import Texts
from recycledb.store import Store
from recycledb.workspace import Workspace

KNOWN = [texts for texts in SAMPLES if texts.instruction and texts.output and len("".join(texts)) < 120][:4]
QUERIES = [Texts("Which city is the capital of Peru?", "", ""), Texts("Add 2 and 3.", "", "5")]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_student(tmp_path_factory.mktemp("students") / "llama", "llama")


def workspace(store: Store, folder: Path, llama: Path, measures: Mapping[str, Any]) -> Workspace:
    tables = {
        "students": {"llama": {"model": str(llama), "max_length": 500, "device": "cpu", "stats": []}},
        "measures": measures,
        "augmentations": {"ruler": {"rate": 1}},
        "sync": {"students": ["llama"]},
    }
    return Workspace(store, config.parse(tables, folder / "recycledb.toml"))


def step(store: Store, folder: Path, llama: Path, **measure: Any) -> tuple[int, int]:
    """Sync with one measure, and return how many vectors and values were added; they are those that the plan had counted."""
    space = workspace(store, folder, llama, {"near": {"method": "cosine", **measure}})
    space.sync(only="augment")
    [plan] = space.plan().measures
    before = counts(store)
    assert space.sync().complete
    added = tuple(now - then for now, then in zip(counts(store), before, strict=True))
    assert (plan.facts, plan.variants + plan.values) == added
    assert space.plan().ready == 0
    return added[0], added[1]


def counts(store: Store) -> tuple[int, int]:
    [(vectors, values)] = store.rows("SELECT (SELECT count(*) FROM embedding), (SELECT count(*) FROM value)")
    return int(vectors), int(values)


class Naive:
    """Vectors by one forward pass for each text, without padding."""

    def __init__(self, llama: Path) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(llama)

    @no_grad
    def vector(self, text: str, pooling: str) -> Any:
        ids = torch.tensor([self.tokenizer.encode(text)])
        states = self.model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0].double().numpy()
        weights = np.arange(1, len(states) + 1) if pooling == "weighted_mean" else np.ones(len(states))
        vector = weights @ states
        return vector / np.linalg.norm(vector)


@pytest.mark.long
@pytest.mark.parametrize("store_url", ["sqlite", "duckdb"], indirect=True)
def test_closeness_to_a_query_set(store_url: str, llama: Path, tmp_path: Path) -> None:
    """Queries that are not among the measured variants have vectors too; a new query brings its vector and the values of a new measure."""
    near = {"queries": "dataset:q", "pooling": "weighted_mean", "kinds": ["ruler"]}
    with Store.open(store_url) as store:
        add_samples(store, KNOWN, "d")
        add_samples(store, QUERIES[:1], "q")
        [(made,)] = store.rows("SELECT count(*) FROM variant WHERE kind = 'ruler'")
        vectors, values = step(store, tmp_path, llama, **near)
        [(made,)] = store.rows("SELECT count(*) FROM variant WHERE kind = 'ruler'")
        assert made and (vectors, values) == (made + 1, made)
        assert step(store, tmp_path, llama, **near, take="largest") == (0, made)
        add_samples(store, QUERIES, "q")
        vectors, values = step(store, tmp_path, llama, **near)
        [(now,)] = store.rows("SELECT count(*) FROM variant WHERE kind = 'ruler'")
        assert (vectors, values) == (now - made + 1, now)
        agree(store, llama, np.mean)
        assert step(store, tmp_path, llama, **near, take="largest") == (0, now)
        agree(store, llama, np.max)
        assert step(store, tmp_path, llama, **near, part="whole") == (
            0,
            now,
        )  # named, it is another measure of the same facts
        assert step(store, tmp_path, llama, **{**near, "kinds": ["origin"]}) == (len(KNOWN), len(KNOWN) + 2)


def agree(store: Store, llama: Path, take: Any) -> None:
    """Compare the current values with the naive loop."""
    naive = Naive(llama)
    whole = lambda texts: naive.vector(forward_prompt("vicuna", texts) + texts.output, "weighted_mean")  # noqa: E731
    queries = np.array([whole(query) for query in QUERIES])
    rows = store.rows(
        "SELECT v.instruction, v.input, v.output, m.value FROM measures m JOIN variants v ON v.variant_id = m.variant_id "
        "WHERE m.measure = 'near' AND m.is_current = 1 AND m.kind = 'ruler'"
    )
    assert rows
    for row in rows:
        assert row.value == pytest.approx(take(queries @ whole(Texts(*row[:3]))), abs=1e-4)


@pytest.mark.long
def test_the_cosine_with_the_origin_says_with_which(sqlite_url: str, llama: Path, tmp_path: Path) -> None:
    """Self-J's cosine of two answers: a value for each pair, from one vector for each distinct text."""
    with Store.open(sqlite_url) as store:
        add_samples(store, [*KNOWN, Texts("Say nothing", "", "")])
        vectors, values = step(store, tmp_path, llama, reference="origin")
        pairs = store.rows("""
            SELECT v.variant_id, o.variant_id AS other_id, v.output, o.output AS reference, x.value, x.status
            FROM value x JOIN variant v ON v.variant_id = x.variant_id JOIN variant o ON o.variant_id = x.other_id
            WHERE v.kind = 'ruler' AND o.kind = 'origin' AND o.sample_id = v.sample_id
        """)
        assert values == len(pairs) and vectors == len({key for row in pairs for key in row[:2]})
        naive = Naive(llama)
        for row in pairs:
            expected = naive.vector(row.output, "mean") @ naive.vector(row.reference, "mean")
            assert row.value == pytest.approx(expected, abs=1e-4)
        assert step(store, tmp_path, llama, reference="origin") == (0, 0)
        both = {name: {"method": "cosine", "reference": "origin", "pooling": name} for name in ("mean", "last")}
        space = workspace(store, tmp_path, llama, both)
        assert space.sync().complete
        compared = space.compare_measures("mean/llama", "last/llama", kind="ruler").pairs
        assert max(pair.n for pair in compared if {"mean/llama", "last/llama"} == set(pair.measures)) == len(pairs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "set either queries"),
        ({"queries": "q", "reference": "origin"}, "set either queries"),
        ({"queries": "q", "take": "median"}, 'take = "median"'),
        ({"queries": "q", "pooling": "max"}, 'pooling = "max"'),
        ({"queries": "q", "part": "half"}, 'part = "half"'),
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        config.parse({"measures": {"near": {"method": "cosine", **options}}}, tmp_path / "recycledb.toml")


def test_queries_that_are_not_there_are_told_with_what_to_type(sqlite_url: str, llama: Path, tmp_path: Path) -> None:
    with Store.open(sqlite_url) as store:
        add_samples(store, KNOWN, "arena-hard")
        space = workspace(store, tmp_path, llama, {"near": {"method": "cosine", "queries": "dataset:arena_hard"}})
        with pytest.raises(
            ConfigError, match=r"measure near: .*'arena_hard'.*arena-hard.*recycledb add FILE --dataset arena_hard"
        ):
            space.plan()


# -- what a student has computed


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder") / "bert")


@pytest.mark.long
@pytest.mark.parametrize("store_url", ["sqlite", "duckdb"], indirect=True)
def test_equal_texts_are_computed_once_though_one_is_in_the_store(
    store_url: str, llama: Path, encoder: Path, tmp_path: Path
) -> None:
    """The second dataset has other questions and the same answers: what is computed of these costs no token, and is the same."""
    (tmp_path / "judge.txt").write_text("Rate from 0 to 9: {answer}\nScore:", encoding="utf-8")
    tables = {
        "students": {
            "llama": {"model": str(llama), "prompt": "none", "max_length": 500, "device": "cpu", "stats": ["A_direct"]},
            "bert": {"model": str(encoder), "encoder": True, "max_length": 128, "device": "cpu"},
        },
        "measures": {
            "judge": {"method": "expected", "prompts": "judge.txt", "students": ["llama"]},
            "own": {"method": "embedding", "part": "answer", "students": ["llama"]},
            "apart": {"method": "embedding", "part": "answer", "students": ["bert"]},
        },
        "sync": {"students": ["llama"]},
    }
    answers = ["Paris is the capital.", "Four, since two and two make four.", "Paris is the capital."]
    with Store.open(store_url) as store:
        space = Workspace(store, config.parse(tables, tmp_path / "recycledb.toml"))
        add_samples(store, [Texts(f"First {i}", "", answer) for i, answer in enumerate(answers)], "first")
        assert space.sync().complete
        kernels = store.rows("SELECT kernel FROM embedding UNION ALL SELECT kernel FROM readout")
        assert sum(row.kernel == "known" for row in kernels) < len(kernels)
        add_samples(store, [Texts(f"Then {i}", "", answer) for i, answer in enumerate(answers)], "second")
        outcome = space.sync()
        assert outcome.complete
        assert [(each.student, each.statistics, each.tokens) for each in outcome.scored] == [
            ("llama", 9, 0),
            ("bert", 3, 0),
        ]
        for table, numbers in (
            ("loss", "loss_sum"),
            ("readout", "lp0, lp1, lp9"),
            ("embedding", "student_id, vector, norm"),
        ):
            rows = store.rows(f"SELECT DISTINCT pair_id, {numbers} FROM {table}")
            assert len(rows) == 2 * (1 + (table == "embedding")), "equal sequences, other numbers"
        assert space.plan().ready == 0
        add_samples(store, [Texts("Another", "", "Something else entirely.")], "third")
        assert all(each.tokens > 0 for each in space.sync().scored)
