"""Rows out: extra fields, preference pairs, hold-out splits, mixes, stdout, and what LLaMA-Factory is given."""

import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import scored_stores as scored
import stores
from conftest import Cli
from templates import made

from recycledb.errors import FormatError, SelectionError
from recycledb.formats.writers import EXTRA, write
from recycledb.integrity import check
from recycledb.schema import Texts
from recycledb.selection.duplicates import find_duplicates
from recycledb.selection.explain import explain
from recycledb.selection.mix import draw, mix
from recycledb.selection.recipes import get_recipe, parse
from recycledb.selection.select import export, select
from recycledb.selection.split import is_held_out
from recycledb.store import Store
from recycledb.store.places import Place, replace_places

WORDS = tuple(f"word{i}" for i in range(20))


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Store]:
    """A small scored store."""
    shutil.copyfile(made("sqlite"), tmp_path / "store.db")
    with Store.open(f"sqlite:///{tmp_path}/store.db") as opened:
        scored.two_students(opened, WORDS)
        yield opened


def read(path: Path) -> Any:
    return json.loads(path.read_text())


# -- extra fields


def test_extra_fields_come_out_again_in_every_format(store: Store, tmp_path: Path) -> None:
    texts = [stores.texts("a"), stores.texts("b")]
    extras = [stores.extra(id=7, tags=["x", "y"], kind="old"), stores.extra()]
    with store.write() as conn:
        places = [Place(i, text, extra) for i, (text, extra) in enumerate(zip(texts, extras, strict=True))]
        replace_places(store, conn, "d", places)
        replace_places(store, conn, "e", [Place(0, texts[0], stores.extra(id=8))])
    export(store, tmp_path / "a.json", with_extra=True)
    first, second = read(tmp_path / "a.json")
    assert first == {**texts[0]._asdict(), "id": 7, "tags": ["x", "y"], "kind": "old"}
    assert second == texts[1]._asdict()
    export(store, tmp_path / "e.json", with_extra=True, dataset="e")
    assert read(tmp_path / "e.json") == [{**texts[0]._asdict(), "id": 8}]
    export(store, tmp_path / "s.json", format="sharegpt", with_extra=True)
    assert [row.get("tags") for row in read(tmp_path / "s.json")] == [["x", "y"], None]
    every = parse("every", "SELECT variant_id FROM variants")
    done = select(store, every, output=tmp_path / "j.jsonl", format="jsonl", with_extra=True)
    row = json.loads((tmp_path / "j.jsonl").read_text().splitlines()[0])
    assert (row["kind"], row["extra_kind"], row["id"]) == ("origin", "old", 7)  # the format's own column keeps its name
    assert select(store, every).selection_id != done.selection_id
    select(store, every, output=tmp_path / "p.parquet", format="parquet", with_extra=True)
    import pyarrow.parquet as pq

    assert pq.read_table(tmp_path / "p.parquet")["tags"].to_pylist() == ['["x", "y"]', None]


def test_a_clash_that_no_prefix_solves_is_refused(tmp_path: Path) -> None:
    row = {**stores.texts("a")._asdict(), EXTRA: {"input": 1, "extra_input": 2}}
    with pytest.raises(FormatError, match="'input' and 'extra_input' are both taken"):
        write(tmp_path / "a.json", [row], "alpaca")
    assert not (tmp_path / "a.json").exists()


# -- preference pairs


@pytest.mark.long
def test_pairs_are_what_the_trainers_load(sqlite: Store, tmp_path: Path) -> None:
    import datasets

    loaded = {}
    for format in ("dpo", "dpo-text", "dpo-llamafactory"):
        file = tmp_path / f"{format}.json"
        done = select(sqlite, get_recipe("selective"), {"student": "7b", "keep": "all"}, output=file, format=format)
        kinds = done.counts
        assert done.unpaired == kinds.get("origin", 0)
        loaded[format] = datasets.load_dataset("json", data_files=str(file), cache_dir=str(tmp_path / "c"))["train"]
        assert len(loaded[format]) == done.rows - done.unpaired
    variants = {(v.instruction, v.output): v for v in sqlite.rows("SELECT * FROM variants")}
    for talk, text, ranking in zip(*loaded.values(), strict=True):
        chosen = variants[text["prompt"], text["chosen"]]
        origin = sqlite.rows("SELECT output FROM samples WHERE sample_id = :s", s=chosen.sample_id)[0][0]
        assert text["rejected"] == origin
        assert talk["prompt"] == [{"role": "user", "content": text["prompt"]}]
        assert [talk[side] for side in ("chosen", "rejected")] == [
            [{"role": "assistant", "content": text[side]}] for side in ("chosen", "rejected")
        ]
        assert ranking == {
            **{"instruction": chosen.instruction, "input": "", "chosen": chosen.output, "rejected": origin},
            **{"system": "", "history": []},
        }
    with pytest.raises(SelectionError, match="give --kind"):
        export(sqlite, tmp_path / "o.json", format="dpo")
    assert export(sqlite, tmp_path / "o.json", format="dpo", kind="reflect_response").rows == len(WORDS)


def test_a_context_stands_before_the_question_of_a_pair(sqlite: Store, tmp_path: Path) -> None:
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello")]
    context = json.dumps([{"role": role, "content": content} for role, content in turns])
    with sqlite.write() as conn:  # as `add` stores a conversation
        conn.exec_driver_sql("UPDATE sample SET context = ?", (context,))
    export(sqlite, tmp_path / "a.json", format="dpo", kind="reflect_both")
    assert [message["role"] for message in read(tmp_path / "a.json")[0]["prompt"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    export(sqlite, tmp_path / "b.json", format="dpo-llamafactory", kind="reflect_both")
    row = read(tmp_path / "b.json")[0]
    assert (row["system"], row["history"]) == ("Be brief.", [["Hi", "Hello"]])


# -- hold-out


@pytest.mark.long
def test_a_hold_out_split_does_not_move_when_samples_are_added(sqlite: Store, tmp_path: Path) -> None:
    def split(seed: int = 0) -> list[set[str]]:
        done = export(sqlite, tmp_path / "x.jsonl", format="jsonl", kind="origin", holdout="30%", seed=seed)
        assert done.held_out is not None and done.held_out.file == str(tmp_path / "x.holdout.jsonl")
        files = [tmp_path / "x.jsonl", tmp_path / "x.holdout.jsonl"]
        found = [{json.loads(line)["sample_id"] for line in file.read_text().splitlines()} for file in files]
        assert [len(each) for each in found] == [done.rows, done.held_out.rows]
        return found

    train, held = split()
    assert train and held and not train & held and len(train | held) == len(WORDS)
    stores.add_samples(sqlite, [stores.texts(f"more {i}") for i in range(30)], dataset="before-d")
    more_train, more_held = split()
    assert train < more_train and held < more_held
    assert split(seed=1) != [more_train, more_held]
    assert all(is_held_out(sample, 30, 0) and is_held_out(sample, 60, 0) for sample in held)
    both = parse("both", "SELECT variant_id FROM variants WHERE kind IN ('reflect_both', 'origin')")
    done = select(sqlite, both, output=tmp_path / "y.jsonl.gz", format="jsonl", holdout="30%", name="split")
    assert done.held_out is not None and done.held_out.file == str(tmp_path / "y.holdout.jsonl.gz")
    assert (done.held_out.samples, done.held_out.rows) == (len(more_held), len(more_held) + len(held))
    assert done.parameters["holdout"] == "30%"
    side = {
        sample: next(e["steps"] for e in explain(sqlite, sample) if e["selection"] == "split")
        for sample in [*train, *held]
    }
    assert all("holdout = 30%, seed 0: held out" in side[sample] for sample in held)
    assert all("holdout = 30%, seed 0: not held out" in side[sample] for sample in train)


@pytest.mark.long
def test_near_duplicates_across_a_split_are_counted(sqlite: Store, tmp_path: Path) -> None:
    rng = random.Random(0)
    words = " ".join(str(rng.random()) for _ in range(20))
    stores.add_samples(sqlite, [Texts(words, "", f"{i}") for i in range(40)])
    find_duplicates(sqlite)
    done = export(sqlite, tmp_path / "x.json", holdout="20%")
    assert done.held_out is not None and done.held_out.near_duplicates == done.rows > 0
    every = parse("every", "SELECT variant_id FROM variants WHERE kind = 'origin' AND is_current = 1")
    dropped = select(sqlite, every, {"near_duplicates": "drop"}, output=tmp_path / "y.json", holdout="20%")
    assert dropped.held_out is not None and dropped.held_out.near_duplicates == 0


@pytest.mark.parametrize("wrong", ["5", "0%", "100%", "x"])
def test_a_hold_out_is_a_share(sqlite: Store, tmp_path: Path, wrong: str) -> None:
    with pytest.raises(SelectionError, match="give a share above 0% and below 100%"):
        export(sqlite, tmp_path / "x.json", holdout=wrong)
    assert not (tmp_path / "x.json").exists()


# -- mixes


@pytest.mark.long
def test_a_mix_draws_exactly_whatever_the_order(sqlite: Store, tmp_path: Path) -> None:
    select(sqlite, get_recipe("recycled"), name="r")
    select(sqlite, get_recipe("cherry"), {"student": "7b", "top": "10"}, name="c")
    one = mix(sqlite, {"r": "60%", "c": "40%"}, rows=15, seed=3, output=tmp_path / "m.json")
    other = mix(sqlite, {"c": "40%", "r": "60%"}, rows=15, seed=3)
    assert (one.selection_id, one.rows, one.counts) == (other.selection_id, 15, {"origin": 6, "reflect_both": 9})
    assert len(read(tmp_path / "m.json")) == 15
    reasons = Counter(row[0] for row in sqlite.rows("SELECT reason FROM selection_items WHERE selection = 'mix'"))
    assert reasons == {"drawn from r": 9, "drawn from c": 6}
    assert mix(sqlite, {"r": "60%", "c": "40%"}, rows=15, seed=4).selection_id != one.selection_id
    assert mix(sqlite, {"r": "50%", "c": "50%"}, name="most").rows == 20  # all 10 of c, and as many of r
    sample = sqlite.rows(
        "SELECT sample_id FROM selection_items JOIN variants USING (variant_id) WHERE selection = 'most'"
    )[0][0]
    [said] = [each for each in explain(sqlite, sample) if each["selection"] == "most"]
    assert any(step.startswith("reason: drawn from ") for step in said["steps"])
    assert [each for each in check(sqlite).findings if "selection" in each] == []


def test_the_draw_of_a_larger_mix_has_nothing_to_do_with_the_order_of_the_pool() -> None:
    rng = random.Random(1)
    pool = {f"v{i}": frozenset(rng.sample("abc", rng.randint(1, 3))) for i in range(300)}
    quotas = {"a": 70, "b": 20, "c": 40}
    found = draw(pool, quotas, 0)
    assert Counter(found.values()) == quotas and all(part in pool[v] for v, part in found.items())
    turned = dict(reversed(pool.items()))
    assert draw(turned, dict(reversed(quotas.items())), 0) == found
    tight = {"1": frozenset("ab"), "2": frozenset("a"), "3": frozenset("bc"), "4": frozenset("c")}
    for seed in range(20):  # only one way: 1 must be b's, and 3 too
        assert draw(tight, {"a": 1, "b": 2, "c": 1}, seed) == {"1": "b", "2": "a", "3": "b", "4": "c"}


@pytest.mark.default_cases("parts0", "parts3")
@pytest.mark.parametrize(
    ("parts", "rows", "told"),
    [
        ({"r": "60%", "c": "30%"}, None, "add up to 90%: make them 100%"),
        ({"r": "60", "c": "40%"}, None, "give each selection a share such as r=60%"),
        ({"r": "100%"}, None, "give two to 8 selections"),
        ({"r": "50%", "c": "50%"}, 30, "c has 10 rows, of which 15 would be drawn: give --rows 20 or fewer"),
        ({"r": "50%", "same": "50%"}, 2, "are the same selection"),
        ({"r": "50%", "copy": "50%"}, 30, "copy and r have 20 rows together, of which 30 would be drawn"),
        ({"r": "50%", "none": "50%"}, 2, "none"),
    ],
)
def test_a_mix_that_cannot_be_says_why(sqlite: Store, parts: dict[str, str], rows: int | None, told: str) -> None:
    select(sqlite, get_recipe("recycled"), name="r")
    select(sqlite, get_recipe("recycled"), name="same")
    select(sqlite, parse("copy", "SELECT variant_id FROM variants WHERE kind = 'reflect_both'"), name="copy")
    select(sqlite, get_recipe("cherry"), {"student": "7b", "top": "10"}, name="c")
    with pytest.raises(SelectionError, match=told):
        mix(sqlite, parts, rows=rows)


# -- stdout


@pytest.mark.long
def test_a_dash_is_stdout(sqlite: Store, cli: Cli, tmp_path: Path) -> None:
    store = ("--store", f"sqlite:///{tmp_path}/store.db")
    export(sqlite, tmp_path / "file.json", kind="reflect_both")
    expected = (tmp_path / "file.json").read_text()
    for name in ("-", "/dev/stdout"):
        done = cli(*store, "export", "--kind", "reflect_both", "-o", name)
        assert done.stdout == expected
        assert "wrote 20 reflect_both to /dev/stdout" in done.stderr
    picked = cli(*store, "select", "recycled", "-o", "-")
    assert picked.stdout == expected and "recycled: 20 of 20 samples" in picked.stderr
    assert cli(*store, "query", "SELECT 1 AS n", "--format", "csv", "-o", "-").stdout == "n\n1\n"
    wrong = cli(*store, "export", "-o", "-", "--json", code=2)
    assert "both write to stdout" in wrong.stderr and wrong.stdout == ""
    assert not (tmp_path / "-").exists()


# -- LLaMA-Factory


@pytest.fixture
def factory(tmp_path: Path) -> Path:
    """LLaMA-Factory's data folder with a dataset of its own."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "dataset_info.json").write_text('{"identity": {"file_name": "identity.json"}}')
    return folder


def test_an_entry_of_somebody_else_is_not_replaced(sqlite: Store, factory: Path) -> None:
    before = (factory / "dataset_info.json").read_text()
    with pytest.raises(SelectionError, match=r"already has a dataset 'identity' \(identity.json\)"):
        select(sqlite, get_recipe("recycled"), name="identity", llama_factory=factory)
    assert (factory / "dataset_info.json").read_text() == before and len(list(factory.iterdir())) == 1
    for format in ("alpaca", "alpaca", "sharegpt", "dpo-llamafactory"):  # but one's own is, in whatever format
        select(sqlite, get_recipe("recycled"), name="mine", llama_factory=factory, format=format)
    entries = read(factory / "dataset_info.json")
    assert entries["identity"] == {"file_name": "identity.json"}
    assert entries["mine"]["ranking"] is True
    assert {*entries["mine"]["columns"].values()} == set(read(factory / "mine.json")[0])


@pytest.mark.parametrize(
    ("file", "format", "told"),
    [
        ("x.json.gz", "alpaca", "must end in .json or .jsonl"),
        ("x", "jsonl", "must end in .json or .jsonl"),
        ("x.parquet", "alpaca", "must end in .json or .jsonl"),
        ("x.json", "parquet", "must end in .parquet"),
        ("x.json", "dpo", "give --format dpo-llamafactory"),
    ],
)
def test_what_the_loader_refuses_is_not_registered(
    sqlite: Store, factory: Path, tmp_path: Path, file: str, format: str, told: str
) -> None:
    with pytest.raises(SelectionError, match=told):
        export(sqlite, tmp_path / file, kind="reflect_both", format=format, llama_factory=factory)
    assert not (tmp_path / file).exists() and "x" not in read(factory / "dataset_info.json")


def test_nothing_picked_is_not_registered(sqlite: Store, factory: Path) -> None:
    done = select(sqlite, parse("none", "SELECT variant_id FROM variants WHERE 1 = 0"), llama_factory=factory)
    assert (done.rows, done.beside) == (0, ()) and "none" not in read(factory / "dataset_info.json")


def test_the_training_file_works_from_any_folder(sqlite: Store, factory: Path, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    scored.add_students(sqlite, "short", model="student")
    with sqlite.write() as conn:
        conn.exec_driver_sql("UPDATE student SET max_length = 777 WHERE name = 'short'")
    origin = scored.origin_of(sqlite, sqlite.rows("SELECT sample_id FROM samples")[0][0])
    scored.add_losses(sqlite, "short", {origin: scored.ratios(-0.5)})
    store = ("--store", f"sqlite:///{tmp_path}/store.db")
    words = ("--student", "short", "--top", "100%", "--llama-factory", "data", "--name", "my own")
    told = cli(*store, "select", "cherry", *words, "--holdout", "1%").stderr
    assert "train with: llamafactory-cli train data/my_own.yaml" in told
    text = (factory / "my_own.yaml").read_text()
    assert "cutoff_len: 777\n" in text
    assert f'dataset_dir: "{factory}"' in text and f'model_name_or_path: "{tmp_path / "student"}"' in text
    assert f"# Run it with: llamafactory-cli train {factory}/my_own.yaml" in text
