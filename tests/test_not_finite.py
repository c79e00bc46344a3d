"""Losses that are no numbers: a status of their own when they are computed, and no numbers either where an earlier release stored them."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import scored_stores as scored
import stores
from late import Engine, tensors, torch
from templates import new_url
from test_sync import play
from tiny_students import SAMPLES, save_student

from recycledb.cli import run as run_command
from recycledb.cli.app import session
from recycledb.config import StudentConfig
from recycledb.methods.ifd import Stat
from recycledb.methods.reflection import Kind
from recycledb.reporting.report import write_report
from recycledb.schema import LossStatus, Texts
from recycledb.scoring.requests import Request, Result
from recycledb.selection.compare import compare
from recycledb.selection.recipes import get_recipe
from recycledb.selection.select import select
from recycledb.store import Store
from recycledb.store.losses import known_pairs
from recycledb.store.measures import add_facts
from recycledb.store.places import Place, replace_places
from recycledb.sync.facts import mostly_without_value

NAN = math.nan
WORD = "7"  # one token of the tiny tokenizer


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_student(tmp_path_factory.mktemp("students") / "llama", "llama")


def changed(student: Path, folder: Path, **factors: Any) -> Path:
    """Copy a student with some of its weights multiplied."""
    folder.mkdir()
    for file in student.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = tensors.load_file(folder / "model.safetensors")
    for name, factor in factors.items():
        key = next(key for key in weights if name in key)
        weights[key] = weights[key] * factor
    tensors.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def results(folder: Path, texts: Iterable[Texts], dtype: str = "float32") -> dict[tuple[int, Stat], Result]:
    with Engine.load(str(folder), max_length=256, device="cpu", workers=0, dtype=dtype) as engine:
        batches = list(engine.score([Request(i, each, tuple(Stat)) for i, each in enumerate(texts)]))
    return {(result.key, result.stat): result for batch in batches for result in batch}


# ---------------------------------------------------------------- as they are computed


def test_float16_that_overflows_has_a_status_and_bfloat16_has_numbers(student: Path, tmp_path: Path) -> None:
    folder = changed(student, tmp_path / "s", down_proj=5e4)
    narrow, wide = (results(folder, SAMPLES[:2], dtype) for dtype in ("float16", "bfloat16"))
    assert {result.status for result in narrow.values()} == {LossStatus.NOT_FINITE}
    assert {result.loss_sum for result in narrow.values()} == {None}
    assert {key: (r.n_tokens, r.pair_id) for key, r in narrow.items()} == {
        key: (r.n_tokens, r.pair_id) for key, r in wide.items()
    }
    assert all(result.status is LossStatus.OK and result.loss_sum for result in wide.values())


def test_a_loss_without_a_perplexity_is_none(student: Path, tmp_path: Path) -> None:
    found = results(changed(student, tmp_path / "s", lm_head=1e4), SAMPLES[:2])
    assert {result.status for result in found.values()} == {LossStatus.NOT_FINITE}


def test_a_text_that_gives_nan_spoils_no_other(student: Path, tmp_path: Path) -> None:
    texts = [Texts("Name the capital.", "", f"{word} is the capital.") for word in ("It", WORD, "Here", "There")]
    folder = changed(student, tmp_path / "s")
    tokenised = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    factor = torch.ones(400, 1)
    factor[tokenised[WORD]] = NAN
    found = results(changed(student, tmp_path / "nan", embed_tokens=factor), texts)
    whole = results(folder, texts)
    bad = {key for key, result in found.items() if result.status is LossStatus.NOT_FINITE}
    assert bad == {(1, Stat.A_DIRECT), (1, Stat.A_CONDITION), (1, Stat.Q_CONDITION)}
    for key in found.keys() - bad:
        assert found[key].loss_sum == pytest.approx(whole[key].loss_sum, rel=1e-5)


# ---------------------------------------------------------------- sync, status, show, report

Here = Callable[..., subprocess.CompletedProcess[str]]
CONFIGURATION = """
[store]
url = "{url}"
[students.half]
model = "student"
max_length = 256
dtype = "float16"
device = "cpu"
"""


@pytest.fixture
def here(tmp_path: Path, store_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """Run a command in this process, which has torch loaded already."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recycledb.toml").write_text(CONFIGURATION.format(url=store_url))

    def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["recycledb", *arguments])
        session.forget()
        ended = run_command()  # all of `main` but its leaving, which would take the tests along
        output = capsys.readouterr()
        assert ended == code, output.err
        return subprocess.CompletedProcess(arguments, code, output.out, output.err)

    return run


@pytest.mark.long
def test_every_command_tells_of_statistics_that_are_no_numbers(
    student: Path, tmp_path: Path, here: Here, store_url: str
) -> None:
    changed(student, tmp_path / "student", down_proj=5e4)
    with Store.open(store_url) as store:
        (sample, _) = stores.add_samples(store, [stores.texts("apples"), stores.texts("pears")])
    remedy = 'float16 overflows in this model: set dtype = "bfloat16"'
    line = f"8 statistics are NaN or infinite and have no value; {remedy}"
    most = f"half: 8 of 8 statistics have no value, most of them not_finite: {remedy}"
    told = here("sync", code=3).stdout
    assert "not_finite: 8 without a value" in told and told.count(most) == 1
    done = json.loads(here("sync", "--json").stdout)
    assert (done["complete"], done["statistics"], list(done["mostly_without_value"])) == (True, 0, ["half"])
    told = here("sync").stdout  # nothing is left to do, so the code is 0; the warning stays
    assert "nothing to do" in told and told.count(most) == 1
    assert f"half: {line}" in here("status").stdout.replace("\n", " ")
    (row,) = json.loads(here("status", "--json").stdout)["students"]
    assert (row["statistics"], row["without_value"], row["not_finite"]) == (8, 8, 8)
    assert "no A_condition under half: not_finite" in here("show", sample).stdout
    here("report", "-o", "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    found = re.search(r"<th[^>]*>not finite</th>", page)
    assert found, "no column of it in the report"
    assert "nothing was picked" in here("select", "cherry", "--student", "half", "--top", "50%").stderr


def test_the_likely_reason_follows_the_commonest_status() -> None:
    config = StudentConfig(name="7b", model="m", dtype="float16")
    assert mostly_without_value(config, {"ok": 5, "too_short": 5, "empty": 90}) is None
    told = mostly_without_value(config, {"ok": 2, "too_short": 386, "not_finite": 3})
    assert told and "389 of 391" in told and "most of them too_short" in told and "tokenizer is not the one" in told
    told = mostly_without_value(config, {"ok": 2, "too_long": 4, "too_short": 1})
    assert told and "5 of 7" in told and f"too_long: max_length = {config.max_length} is reached" in told


# ---------------------------------------------------------------- as earlier releases stored them

ODD = (NAN, math.inf, -math.inf, 1e6)  # the last has no perplexity


def filled(store: Store, odd: Sequence[float | None]) -> list[dict[Kind, str]]:
    """Write a scored store in which every second variant of each kind has one of `odd` for a statistic."""
    samples = stores.add_samples(store, [stores.texts(word) for word in "abcdefgh"])
    scored.add_teachers(store, "gpt")
    scored.add_students(store, "7b", "13b")
    made = scored.add_all_kinds(store, samples)
    for student in ("7b", "13b"):
        means: dict[str, dict[Stat, float | None]] = {}
        for number, kinds in enumerate(made):
            for nth, variant in enumerate(kinds.values()):
                means[variant] = dict(scored.ratios(-0.3 + 0.01 * number - 0.02 * nth, -0.2 - 0.03 * nth))
                if (number + nth) % 2:
                    means[variant][list(Stat)[(number // 2 + nth) % 4]] = odd[(number + nth // 2) % len(odd)]
        scored.add_losses(store, student, means)
    return made


def seen(store: Store, folder: Path) -> dict[str, Any]:
    """Return what the commands give of a store."""
    found: dict[str, Any] = {}
    for recipe in ("selective", "cherry", "superfilter"):
        for metric in ("ppl", "loss"):
            selected = select(
                store, get_recipe(recipe), {"student": "7b", "metric": metric, "top": "75%"}, name=f"{recipe}-{metric}"
            )
            found[recipe, metric] = (selected.rows, scored.picked(store, selected.selection))
    compared = compare(store, ["7b", "13b"]).as_dict()
    found["compare"] = json.dumps(compared, allow_nan=False, default=str)
    found["report"] = write_report(store, folder / "page.html")["samples"]
    for unit in ("ifd_ppl", "rifd_ppl", "ifd_loss", "rifd_loss", "ppl_Q_direct", "loss_A_condition"):
        sql = f"SELECT count({unit}), round(avg({unit}), 9), round(max({unit}), 9), round(min({unit}), 9) FROM scores"
        found[unit] = tuple(store.rows(sql)[0])
    return found


@pytest.mark.long
def test_a_stored_sum_that_is_no_number_is_as_a_missing_one(store: Store, tmp_path: Path) -> None:
    filled(store, ODD)
    with Store.open(new_url(store.backend.name, tmp_path / "other")) as without:
        filled(without, [None])
        assert seen(store, tmp_path) == seen(without, tmp_path)
    statuses = {row[0]: row[1] for row in store.rows("SELECT status, count(loss_sum) FROM losses GROUP BY status")}
    assert statuses == {"ok": 224, "not_finite": 0}


@pytest.mark.long
def test_a_stored_sum_that_is_no_number_breaks_no_command(here: Here, store_url: str) -> None:
    with Store.open(store_url) as store:
        made = filled(store, ODD)
        sql = "SELECT sample_id FROM variant WHERE variant_id = :v"
        samples = [store.rows(sql, v=kinds[Kind.ORIGIN])[0][0] for kinds in made[:4]]
    for sample in samples:
        losses = json.loads(here("show", sample, "--json").stdout)["losses"]
        assert {row["loss_sum"] for row in losses if row["status"] != "ok"} == {None}
    assert "not_finite" in here("show", samples[0]).stdout
    raw = json.loads(here("query", "SELECT loss_sum FROM loss ORDER BY 1", "--format", "json").stdout)
    assert len(raw) == 256
    rows = {row["student"]: row for row in json.loads(here("status", "--json").stdout)["students"]}
    assert (rows["7b"]["without_value"], rows["7b"]["not_finite"]) == (16, 16)


def test_a_stored_sum_that_is_no_number_is_not_taken_for_known(store: Store) -> None:
    (sample,) = stores.add_samples(store, [stores.texts("apples")])
    scored.add_students(store, "7b")
    variant, key = scored.origin_of(store, sample), scored.student_id("7b")
    values = (NAN, math.inf, 1e6, 3.5)
    given = enumerate(zip(Stat, values, strict=True))
    rows = [stores.loss_row(key, variant, stat, value, 2, pair_id=f"p{i}") for i, (stat, value) in given]
    add_facts(store, rows)
    assert known_pairs(store, key, [f"p{i}" for i in range(4)]) == {"p3": (3.5, 2)}


def test_statistics_may_still_be_removed_by_hand_through_the_view(sqlite_url: str) -> None:
    with Store.open(sqlite_url) as store:
        filled(store, [math.inf])
        with store.write() as conn:
            conn.exec_driver_sql("DELETE FROM losses WHERE status = 'not_finite'")
        assert store.rows("SELECT count(*) FROM loss")[0][0] == 224


def test_a_lazy_run_takes_no_such_score_for_a_win(store: Store) -> None:
    asked = [None, *ODD]
    with store.write() as conn:
        places = [Place(i, Texts(f"Describe thing {i}.", "", "It is described.")) for i in range(len(asked))]
        replace_places(store, conn, "d", places)
    play(store, {number: ("ok", "ok", "ok", 1.0, odd) for number, odd in enumerate(asked)})
    sql = "SELECT v.kind FROM attempt a JOIN variant v ON v.variant_id = a.variant_id WHERE a.step = 'reflect_response'"
    assert [row[0] for row in store.rows(sql)] == ["origin"] * len(asked)
