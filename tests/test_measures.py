"""Measures through sync: what a change makes missing, and that exactly this is computed; their numbers against naive loops."""

import hashlib
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import forks
import naive
import pytest
from late import Late, torch
from stores import add_samples
from sync_runs import make_store, rows
from test_methods import install
from tiny_students import SAMPLES, save_student, transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from recycledb import config, methods
from recycledb.errors import ConfigError, StudentError
from recycledb.methods import DIGITS, expected
from recycledb.methods.expected import SCORERS
from recycledb.schema import Texts
from recycledb.store import Store
from recycledb.workspace import Workspace

MAX_LENGTH = 200
PROMPTS = ["Rate from 1 to 5 how well it answers.", "Rate the text from 1 to 5.", "From 1 to 5, how good?"]
KNOWN = [texts for texts in SAMPLES if texts.instruction and texts.output and len("".join(texts)) < 120]


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("students")
    return {name: save_student(folder / name, name) for name in ("llama", "gpt2")}


class Project:
    """A store with a configuration that changes."""

    def __init__(self, folder: Path, url: str, students: Mapping[str, Path]) -> None:
        self.folder, self.url, self.students = folder, url, students
        self.prompts, self.names, self.options = PROMPTS[:2], ["llama"], {"alpha": 0.2}

    def workspace(self, store: Store) -> Workspace:
        """Return the workspace with the configuration as it is now."""
        (self.folder / "prompts.txt").write_text("\n".join(self.prompts) + "\n", encoding="utf-8")
        tables = {
            "students": {
                name: {"model": str(path), "max_length": MAX_LENGTH, "device": "cpu", "stats": []}
                for name, path in self.students.items()
            },
            "measures": {
                "selectit": {"prompts": "prompts.txt", "students": self.names, **self.options},
                "vectors": {"method": "embedding", "part": "answer", "students": self.names},
            },
            "sync": {"students": self.names},
        }
        return Workspace(store, config.parse(tables, self.folder / "recycledb.toml"))

    def step(self, store: Store) -> tuple[int, ...]:
        """Sync, and return how many readouts, vectors and values were added; they are those that the plan had counted."""
        workspace = self.workspace(store)
        plan = workspace.plan()
        before = counts(store)
        outcome = workspace.sync()
        assert outcome.complete, outcome
        added = tuple(now - then for now, then in zip(counts(store), before, strict=True))
        assert sum(each.facts for each in plan.measures) == added[0] + added[1]
        assert sum(each.variants + each.values for each in plan.measures) == added[2]
        assert workspace.plan().as_dict()["measures"] and not any(
            (each.facts, each.values) != (0, 0) for each in workspace.plan().measures
        )
        return added


def counts(store: Store) -> tuple[int, ...]:
    return tuple(int(store.rows(f"SELECT count(*) FROM {table}")[0][0]) for table in ("readout", "embedding", "value"))


@pytest.mark.long
@pytest.mark.parametrize("store_url", ["sqlite", "duckdb"], indirect=True)
def test_a_change_computes_exactly_what_it_makes_missing(
    store_url: str, students: dict[str, Path], tmp_path: Path
) -> None:
    project, n = Project(tmp_path, store_url, students), len(KNOWN)
    with Store.open(store_url) as store:
        add_samples(store, KNOWN)
        assert project.step(store) == (2 * n, n, 2 * n)
        add_samples(store, [Texts(f"Say {i}", "", "Fine.") for i in range(3)], "more")
        assert project.step(store) == (6, 3, 6)
        n += 3
        project.prompts = PROMPTS
        assert project.step(store) == (n, 0, n)  # the new prompt's readouts; all values, of the new measure
        project.names = ["llama", "gpt2"]
        assert project.step(store) == (3 * n, n, 2 * n)
        project.options = {"alpha": 0.7}
        assert project.step(store) == (0, 0, 2 * n)
        project.options = {"alpha": 0.2}
        assert project.step(store) == (0, 0, 0)  # back to a measure that was there
        for name, path in students.items():
            agrees(store, name, path)


@pytest.mark.long
def test_a_new_version_of_a_formula_computes_values_alone(tmp_path: Path) -> None:
    """A package's measure over a statistic: the plan of version 2 has no fact, and its values stand beside those of version 1."""
    code = (
        "from recycledb.methods.ifd import A_DIRECT\nimport os\n"
        "def value(facts, options):\n    return int(os.environ['V']) * facts.losses['A_direct'][0]\n"
        "M = Method('mine', measures=(StudentMeasure('hardness', 'h', value, version=int(os.environ['V']), statistics=(A_DIRECT,)),))"
    )
    package = install(tmp_path, code)
    save_student(tmp_path / "student", "llama")
    (tmp_path / "recycledb.toml").write_text(
        '[store]\nurl = "sqlite:///store.db"\n[students.s]\nmodel = "student"\nmax_length = 200\nstats = []\n[measures.hardness]\n'
    )
    url = make_store(tmp_path, 5)
    command = f"import sys; sys.path.insert(0, {package!r}); from recycledb.cli import main; main()"
    for version, facts in ((1, 5), (2, 0)):
        for options in (["--dry-run", "--json"], ["--json"]):
            done = forks.run(
                [sys.executable, "-c", command, "sync", *options], cwd=tmp_path, modules=forks.MODELS,
                env=forks.clean_environment(V=str(version)),
            )  # fmt: skip
            if "--dry-run" in options:
                [plan] = json.loads(done.stdout)["measures"]
                assert (plan["facts"], plan["variants"] + plan["values"]) == (facts, 5)
    found = rows(
        url,
        "SELECT sum(m.value) / sum(l.loss_sum / l.n_tokens) AS version, m.is_current AS current FROM measures m "
        "JOIN loss l ON l.variant_id = m.variant_id WHERE m.measure = 'hardness' GROUP BY m.is_current ORDER BY 2",
    )
    assert found == [{"version": pytest.approx(1), "current": 0}, {"version": pytest.approx(2), "current": 1}]


def agrees(store: Store, name: str, path: Path) -> None:
    """Compare the values of a student with the naive loop."""
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    words = transformers.AutoTokenizer.from_pretrained(path)
    rows = store.rows(
        """
        SELECT v.instruction, v.input, v.output, m.value FROM measures m JOIN variants v ON v.variant_id = m.variant_id
        WHERE m.measure = 'selectit' AND m.model = :name AND m.is_current = 1 AND m.status = 'ok'
        """,
        name=name,
    )
    assert len(rows) >= len(KNOWN)
    for row in rows:
        assert row.value == pytest.approx(naive.selectit(model, words, Texts(*row[:3]), PROMPTS), abs=1e-4)


@pytest.mark.long
def test_a_reference_is_part_of_the_value(sqlite_url: str, students: dict[str, Path], tmp_path: Path) -> None:
    """With `reference = "origin"` each other variant is measured beside its origin, and both rows say which variant that was."""
    tables = {
        "students": {"llama": {"model": str(students["llama"]), "max_length": 500, "device": "cpu", "stats": []}},
        "measures": {"selfj": {"method": "expected", "reference": "origin", "kinds": ["origin", "ruler"]}},
        "augmentations": {"ruler": {"rate": 1}},
        "sync": {"students": ["llama"]},
    }
    with Store.open(sqlite_url) as store:
        add_samples(store, KNOWN[:4])
        workspace = Workspace(store, config.parse(tables, tmp_path / "recycledb.toml"))
        assert workspace.sync().complete
        made = store.rows(
            "SELECT v.variant_id, o.variant_id FROM variant v JOIN variant o ON o.sample_id = v.sample_id "
            "WHERE v.kind = 'ruler' AND o.kind = 'origin'"
        )
        assert made, "no variant but origins: nothing is compared"
        for table, column in (("readout", "reference_id"), ("value", "other_id")):
            assert sorted(store.rows(f"SELECT variant_id, {column} FROM {table}")) == sorted(made)
        assert counts(store) == (len(made), 0, len(made))
        assert [(each.facts, each.values) for each in workspace.plan().measures] == [(0, 0)]


# -- mistakes of published code that are not made


def test_a_text_that_cannot_be_rated_moves_no_other_and_gets_no_number(
    sqlite_url: str, students: dict[str, Path], tmp_path: Path
) -> None:
    """SelectIT's code then gives every later score to another sample; Self-J's code gives 0 and DEITA's 3.

    Digits are the next token's probabilities, so how the model's files say that it should generate does not matter.
    """
    folder = tmp_path / "student"
    shutil.copytree(students["llama"], folder)
    generation = {"do_sample": True, "temperature": 0.01, "top_k": 2, "suppress_tokens": list(range(20, 40))}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    judges = {"selfj": ("selfj", [0, 9]), "deita": ("deita_quality", [1, 6])}
    tables = {
        "students": {"s": {"model": str(folder), "max_length": 400, "device": "cpu", "stats": []}},
        "measures": {"selectit": {}, **{
            name: {"method": "expected", "prompts": prompt, "scale": scale} for name, (prompt, scale) in judges.items()
        }},
        "sync": {"students": ["s"]},
    }  # fmt: skip
    samples = [KNOWN[0], Texts("Too long", "", "word " * 400), KNOWN[1], Texts("Say nothing", "", "")]
    with Store.open(sqlite_url) as store:
        add_samples(store, samples)
        assert Workspace(store, config.parse(tables, tmp_path / "recycledb.toml")).sync().complete
        found = {
            (row.measure, row.position): (row.value, row.status)
            for row in store.rows(
                "SELECT m.measure, d.position, m.value, m.status FROM measures m JOIN dataset_samples d ON d.sample_id = m.sample_id"
            )
        }
    model = transformers.AutoModelForCausalLM.from_pretrained(students["llama"], dtype=torch.float32).eval()
    words = transformers.AutoTokenizer.from_pretrained(students["llama"])
    prompts = methods.measures()["selectit"].options["prompts"].text.splitlines()
    for place, texts in enumerate(samples):
        assert place != 1 or {found[name, 1] for name in ("selectit", *judges)} == {(None, "too_long")}
        if place != 1:
            rating = naive.selectit(model, words, texts, [line for line in prompts if line])
            assert found["selectit", place] == (pytest.approx(rating, abs=1e-4), "ok")
            for name, (prompt, scale) in judges.items():
                text = SCORERS[prompt].replace("{question}", "\n".join(filter(None, texts[:2])))
                rating = naive.expected(model, words, text.replace("{answer}", texts.output), scale)
                assert found[name, place] == (pytest.approx(rating, abs=1e-4), "ok")


def test_digits_are_the_tokenizers_own() -> None:
    """Alone, every digit begins with the same sign in a tokenizer like Llama-2's; one that has no digits is refused by name."""
    signs = ["<unk>", "▁", "\n", *"9876543210", *"abc"]
    for known in (signs, [sign for sign in signs if sign not in "78"]):
        inner = Tokenizer(models.BPE(vocab={sign: i for i, sign in enumerate(known)}, merges=[], unk_token="<unk>"))
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        words = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
        words.name_or_path = "org/judge"
        assert len({words.encode(digit)[0] for digit in DIGITS}) == 1
        tokeniser = Late("recycledb.scoring.tokeniser").Tokeniser(words, "none", 100)
        if known is signs:
            assert words.convert_ids_to_tokens(tokeniser.choices(DIGITS)) == list(DIGITS)
        else:
            with pytest.raises(StudentError, match=r"'org/judge' has one token for several of the choices '0', '1'"):
                tokeniser.choices(DIGITS)


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("selfj", "0b988f1d9cf7"),
        ("selfj_reference", "cbb80b02841f"),
        ("deita_complexity", "33baa27d8713"),
        ("deita_quality", "66a6a91cf21a"),
    ],
)
def test_prompts_of_trained_judges_are_those_of_their_training(name: str, digest: str) -> None:
    """To the blank: other packages drop one, or the end of Self-J's template."""
    assert hashlib.sha256(SCORERS[name].encode()).hexdigest()[:12] == digest
    asked = expected.template({"prompts": SCORERS[name], "suffix": "", "reference": "none"})
    assert asked.endswith("\n\n### Response:" if "selfj" in name else ": ")


def test_options_are_checked_where_the_configuration_is_read(tmp_path: Path) -> None:
    def parsed(**measure: Any) -> config.Config:
        return config.parse({"measures": {"m": measure}}, tmp_path / "recycledb.toml")

    with pytest.raises(ConfigError, match=r"measures.m.*scale = \[5, 1\]"):
        parsed(method="selectit", scale=[5, 1])
    with pytest.raises(ConfigError, match=r"prompts: .*nowhere.txt: No such file"):
        parsed(method="selectit", prompts="nowhere.txt")
    with pytest.raises(ConfigError, match=r"prompts: .*deita_qualty: No such file.*selfj, selfj_reference"):
        parsed(method="expected", prompts="deita_qualty")
    (tmp_path / "latin.txt").write_bytes(b"\xe9")
    with pytest.raises(ConfigError, match="not UTF-8"):
        parsed(method="expected", prompts="latin.txt")
    (tmp_path / "bom.txt").write_bytes("\ufeffRate {answer}".encode())
    given = parsed(method="expected", prompts="bom.txt").measures["m"]
    assert given.options(methods.measures()["expected"].options)["prompts"] == "Rate {answer}"
    assert (
        parsed(method="expected", prompts="deita_quality", scale=[1, 6])
        .measures["m"]
        .given["prompts"]
        .endswith("Quality: ")
    )
