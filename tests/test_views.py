"""The views that lie between the tables and a recipe: what is current to any depth, a sample's scores side by side, its place."""

import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
import scored_stores as scored
import stores

from recycledb.methods.ifd import Stat
from recycledb.methods.reflection import Kind, Step
from recycledb.schema import Texts, content_id, utc_now
from recycledb.selection.recipes import get_recipe
from recycledb.selection.select import select
from recycledb.store import Store
from recycledb.store.rows import ExtractionRow, PromptRow, TeacherRow

README = Path(__file__).parents[1] / "README.md"
PREFIXES = {"ori": Kind.ORIGIN, "q": Kind.REFLECT_INSTRUCTION, "a": Kind.REFLECT_RESPONSE, "qa": Kind.REFLECT_BOTH}
RATIOS = ("ifd_ppl", "rifd_ppl", "ifd_loss", "rifd_loss")


# -- what is current


def generations(store: Store, name: str, count: int, *, changed: int | None = None, **other: str) -> list[str]:
    """Write a sample and `count` generations above it, each by the same teacher and prompt but the one that is `changed`; return all."""
    [sample] = stores.add_samples(store, [stores.texts(name)], dataset=name)
    now = utc_now()
    chain = [scored.origin_of(store, sample)]
    for number in range(count):
        own = {
            "teacher": scored.teacher_id("gpt"),
            "prompt": stores.PROMPTS[Step.REFLECT_INSTRUCTION],
            "version": str(scored.EXTRACTOR),
        } | (other if number == changed else {})
        made = Texts(f"generation {number}", "", "")
        text_id = content_id("reply", chain[-1])
        teacher, prompt = own["teacher"], own["prompt"]
        row = stores.made_row(
            sample, Kind.REFLECT_INSTRUCTION, chain[-1], text_id, made, teacher=teacher, prompt=prompt
        )
        asked = stores.reply_row(text_id, chain[-1], Step.REFLECT_INSTRUCTION, prompt, teacher_id=teacher)
        with store.write() as conn:
            store.insert(conn, [row, asked])
            store.insert(conn, [ExtractionRow(text_id, int(own["version"]), row.variant_id, None, now)])
        chain.append(row.variant_id)
    return chain


def current(store: Store, chains: list[list[str]]) -> list[list[int]]:
    """Return `is_current` of each; `current_variants` and a question about one variant say the same."""
    found = {row[0]: row[1] for row in store.rows("SELECT variant_id, is_current FROM variants")}
    lean = {row[0] for row in store.rows("SELECT variant_id FROM current_variants")}
    assert lean == {variant for variant, is_current in found.items() if is_current}
    for variant in (chain[-1] for chain in chains):
        assert store.rows("SELECT is_current FROM variants WHERE variant_id = :v", v=variant)[0][0] == found[variant]
    return [[found[variant] for variant in chain] for chain in chains]


def old_names(store: Store) -> dict[str, str]:
    """Write a teacher and a prompt that carry no name, and return them."""
    now = utc_now()
    with store.write() as conn:
        store.insert(conn, [TeacherRow("0" * 12, "gpt", "recorded", "gpt", '{"t":1}', now)])
        store.insert(conn, [PromptRow("1" * 12, "reflect_instruction", "an older one", "built in", now)])
    return {"teacher": "0" * 12, "prompt": "1" * 12, "version": "7"}


def test_a_variant_is_current_where_all_that_it_was_made_of_is(store: Store) -> None:
    """Nothing above what is no longer in use is current, however far below that lies."""
    scored.add_teachers(store, "gpt")
    old = old_names(store)
    chains, expected = [], []
    for count in (1, 3, 4, 5, 8):
        chains.append(generations(store, f"all of {count}", count))
        expected.append([1] * (count + 1))
    for what, value in old.items():
        for changed in range(5):
            chains.append(generations(store, f"{what} of {changed}", 5, changed=changed, **{what: value}))
            expected.append([1] * (changed + 1) + [0] * (5 - changed))
    assert current(store, chains) == expected


def test_a_step_may_have_an_extractor_of_its_own(store: Store) -> None:
    """The version that is named for the step decides there, and the one named `extractor` everywhere else."""
    [sample] = stores.add_samples(store, [stores.texts("apples")])
    scored.add_teachers(store, "gpt")
    [kinds] = scored.add_all_kinds(store, [sample])
    names = list(kinds.values())  # the origin, Q, A, QA

    def judged() -> dict[str, int]:
        sql = "SELECT v.kind, e.is_current FROM extractions e JOIN variant v ON v.variant_id = e.variant_id"
        return {row[0]: row[1] for row in store.rows(sql)}

    assert current(store, [names]) == [[1, 1, 1, 1]] and set(judged().values()) == {1}
    with store.write() as conn:
        store.ensure_name(conn, "extractor", "reflect_response", "9")
    assert current(store, [names]) == [[1, 1, 0, 0]]
    assert judged() == {"reflect_instruction": 1, "reflect_response": 0, "reflect_both": 0}
    with store.write() as conn:
        store.ensure_name(conn, "extractor", "extractor", "9")
        store.ensure_name(conn, "extractor", "reflect_response", str(scored.EXTRACTOR))
    assert current(store, [names]) == [[1, 0, 1, 0]]
    with store.write() as conn:
        store.ensure_name(conn, "extractor", "reflect_instruction", str(scored.EXTRACTOR))
    assert current(store, [names]) == [[1, 1, 1, 1]]


# -- a sample's scores side by side


def side_by_side(store: Store) -> dict[tuple[str, str | None, str], dict[str, Any]]:
    """Put the rows of `scores` side by side in plain Python, for every sample, teacher in use and student."""
    columns = ", ".join(RATIOS)
    sql = f"SELECT sample_id, variant_id, parent_id, kind, teacher, student, {columns} FROM scores WHERE is_current = 1"
    rows = sorted(store.rows(sql), key=lambda row: row.variant_id)
    teachers = [
        row[0]
        for row in store.rows(
            "SELECT teacher FROM teachers WHERE teacher_id IN (SELECT id FROM current_names WHERE kind = 'teacher')"
        )
    ]
    found: dict[tuple[str, str | None, str], dict[str, Any]] = {}
    for sample in (row[0] for row in store.rows("SELECT sample_id FROM sample")):
        for student in (row[0] for row in store.rows("SELECT student FROM students")):
            of = [row for row in rows if row.sample_id == sample and row.student == student]
            for teacher in teachers or [None]:
                line = dict.fromkeys(PREFIXES)
                for prefix, kind in PREFIXES.items():
                    fitting = [
                        row for row in of if row.kind == kind and (kind == Kind.ORIGIN or row.teacher == teacher)
                    ]
                    if kind == Kind.REFLECT_BOTH:
                        fitting = [
                            row
                            for row in of
                            if row.kind == kind and line["q"] and row.parent_id == line["q"].variant_id
                        ]
                    line[prefix] = fitting[0] if fitting else None
                found[sample, teacher, student] = {
                    f"{prefix}_{name}": getattr(row, "variant_id" if name == "id" else name) if row else None
                    for prefix, row in line.items()
                    for name in ("id", *RATIOS)
                }
    return found


def shown(store: Store, where: str = "1 = 1", **values: str) -> dict[tuple[str, str | None, str], dict[str, Any]]:
    """Return the rows of the view, having made sure that each is there once."""
    rows = store.rows(f"SELECT * FROM sample_scores WHERE {where}", **values)
    found = {}
    for row in rows:
        line = dict(row._mapping)
        found[line.pop("sample_id"), line.pop("teacher"), line.pop("student")] = line
    assert len(found) == len(rows)
    return found


ODD = (None, math.nan, math.inf, -math.inf, 1e6, -5.0)


@pytest.mark.long
@pytest.mark.default_cases("sqlite-0", "duckdb-0")
@pytest.mark.parametrize("seed", range(3))
def test_scores_stand_side_by_side_as_plain_python_puts_them(store: Store, seed: int) -> None:
    """Two teachers, kinds that are missing or there twice, statistics that are missing, NULL, no numbers or 0, a part not scored at all."""
    rng = random.Random(seed)
    samples = stores.add_samples(store, [stores.texts(word) for word in range(24)])
    scored.add_teachers(store, "gpt", "other")
    scored.add_students(store, "7b", "13b", "unused")
    scored.add_all_kinds(store, samples[:18])
    scored.add_all_kinds(store, samples[4:10], mark="again")
    scored.add_all_kinds(store, samples[8:20], teacher="other")
    scored.add_variant(store, samples[20], Kind.REFLECT_RESPONSE, scored.origin_of(store, samples[20]))
    scored.add_variant(store, samples[21], Kind.REFLECT_BOTH, scored.origin_of(store, samples[21]))
    compressed = scored.add_variant(store, samples[22], Kind.COMPRESSED, scored.origin_of(store, samples[22]))
    scored.add_variant(store, samples[22], Kind.REFLECT_INSTRUCTION, compressed)
    variants = [row[0] for row in store.rows("SELECT variant_id FROM variant ORDER BY variant_id")]
    for student in ("7b", "13b"):
        means = {
            variant: {
                stat: rng.choice(ODD) if rng.random() < 0.1 else rng.choice([0.0, rng.uniform(0.1, 9)])
                for stat in Stat
                if rng.random() < 0.95
            }
            for variant in variants
            if rng.random() < 0.8
        }
        scored.add_losses(store, student, means)
    expected = side_by_side(store)
    assert shown(store) == expected and len(expected) == 24 * 2 * 3
    of_one = {key: line for key, line in expected.items() if key[0] == samples[9]}
    assert shown(store, "sample_id = :s", s=samples[9]) == of_one
    of_student = {key: line for key, line in expected.items() if key[1:] == ("other", "13b")}
    assert shown(store, "student = '13b' AND teacher = 'other'") == of_student
    values = [value for line in expected.values() for value in line.values()]
    assert None in values and all(math.isfinite(value) for value in values if isinstance(value, float))
    with store.write() as conn:  # from now on the name means another teacher, who has made nothing
        store.insert(conn, [TeacherRow("0" * 12, "other", "recorded", "other", '{"t":1}', utc_now())])
        store.ensure_name(conn, "teacher", "other", "0" * 12)
    assert shown(store) == side_by_side(store) != expected


def test_where_no_teacher_is_in_use_the_origins_are_there(store: Store) -> None:
    samples = stores.add_samples(store, [stores.texts(word) for word in range(3)])
    scored.add_students(store, "7b")
    origins = [scored.origin_of(store, sample) for sample in samples]
    scored.add_losses(store, "7b", {origin: scored.ratios(-0.2, -0.1) for origin in origins})
    found = shown(store)
    assert found == side_by_side(store)
    assert {key[:2]: line["ori_id"] for key, line in found.items()} == {
        (sample, None): origin for sample, origin in zip(samples, origins, strict=True)
    }


# -- places


def test_a_sample_s_order_is_that_of_its_open_places(store: Store) -> None:
    a, b, c = (stores.texts(word) for word in "abc")
    stores.add_samples(store, [a, b, a], dataset="second")
    stores.add_samples(store, [c, b], dataset="first")
    stores.add_samples(store, [c, a], dataset="first")  # closes the place of b
    rows = store.rows("SELECT s.instruction, o.dataset, o.position, o.place FROM sample_order o JOIN sample s "
                      "ON s.sample_id = o.sample_id ORDER BY o.place")  # fmt: skip
    assert [(row[0][8], *row[1:]) for row in rows] == [
        ("c", "first", 0, 1), ("a", "first", 1, 2), ("a", "second", 0, 3), ("b", "second", 1, 4), ("a", "second", 2, 5)
    ]  # fmt: skip


# -- the recipe and the README


def test_the_recipe_is_short() -> None:
    lines = [
        line for line in get_recipe("selective").sql.splitlines() if line.strip() and not line.strip().startswith("--")
    ]
    assert len(lines) <= 40


def test_the_rule_in_the_readme_takes_what_selective_takes(store: Store) -> None:
    """It fits in a terminal, and gives the same texts in the same order."""
    [rule] = re.findall(r"```sql\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert max(map(len, rule.splitlines())) <= 80 and len(rule.splitlines()) <= 16
    scored.two_students(store, [f"word{number}" for number in range(30)])
    selected = select(store, get_recipe("selective"), {"student": "7b", "teacher": "gpt"}, name="it")
    sql = "SELECT v.instruction, v.input, v.output FROM selection_items i JOIN variants v USING (variant_id) ORDER BY i.position"
    picked = [tuple(row) for row in store.rows(sql)]
    with store.sandbox() as sandbox:
        assert [tuple(row) for row in sandbox.execute(rule)[1]] == picked
    assert len(picked) == selected.rows > 10
