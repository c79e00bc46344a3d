"""The worked examples of docs/methods.md, installed as the package that they are, and used: plan, sync, kill, sync, status, show, report,
merge, query."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forks
import pytest
from teacher_server import Exchange, TeacherServer
from tiny_students import save_student

from recycledb.store import Store

pytestmark = pytest.mark.long

EXAMPLE = Path(__file__).parents[1] / "examples" / "methods"
SAMPLES = 8

CONFIGURATION = """
[teachers.helper]
model = "helper"
base_url = "{base_url}"
concurrency = 2
price_in = 1.0
price_out = 2.0

[students.tiny]
model = "tiny"
max_length = 300

[measures.clearness]

[augmentations.pairs]
method = "pair"
seed = 3

[sync]
steps = ["simplify", "grade", "score"]
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the example package is installed to, as `pip install` does it."""
    folder = tmp_path_factory.mktemp("packages")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    source = folder / "source"
    source.mkdir()
    for file in EXAMPLE.rglob("*"):
        if file.suffix in (".py", ".toml"):
            target = source / file.relative_to(EXAMPLE)
            target.parent.mkdir(exist_ok=True, parents=True)
            target.write_bytes(file.read_bytes())
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", folder / "site", source], check=True)
    return folder / "site"


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    save_student(folder, "llama")
    return folder


def reply(exchange: Exchange) -> str:
    """Return what a good teacher answers to the two steps."""
    if "two grades" in exchange.prompt:
        return "8 5"
    return f"It is easy.\n[Plain Answer]\nIn plain words {exchange.question[:8]}.\n[End]"


class Desk:
    """A folder with samples and a configuration, in which commands are run with the example package installed."""

    def __init__(self, folder: Path, installed: Path, base_url: str, student: Path) -> None:
        self.folder = folder
        self.env = forks.clean_environment(PYTHONPATH=str(installed), OPENAI_API_KEY="none")
        (folder / "tiny").symlink_to(student)
        (folder / "recycledb.toml").write_text(CONFIGURATION.format(base_url=base_url))
        rows = [{"instruction": f"Name thing {i}.", "input": "", "output": f"Thing {i} it is."} for i in range(SAMPLES)]
        (folder / "samples.json").write_text(json.dumps(rows))

    def start(self, *arguments: str, modules: tuple[str, ...] = forks.COMMAND) -> forks.Forked:
        command = [sys.executable, "-c", "from recycledb.cli import main; main()", *arguments]
        return forks.start(
            command, cwd=self.folder, env=self.env, stdout=forks.PIPE, stderr=forks.PIPE, modules=modules
        )

    def run(self, *arguments: str, modules: tuple[str, ...] = forks.COMMAND, code: int = 0) -> str:
        with self.start(*arguments, modules=modules) as process:
            out, err = process.communicate(120)
            assert process.wait() == code, (err or b"").decode()
            return (out or b"").decode()

    def json(self, *arguments: str, **options: Any) -> Any:
        return json.loads(self.run(*arguments, "--json", **options))


@pytest.fixture(scope="module")
def server() -> Iterator[TeacherServer]:
    with TeacherServer(answer=reply, delay_s=0.05) as server:
        yield server


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, installed: Path, server: TeacherServer, student: Path) -> Desk:
    """The folder when a sync was killed in its midst, and the next one had done the rest."""
    desk = Desk(tmp_path_factory.mktemp("desk"), installed, server.base_url, student)
    desk.run("add", "samples.json")
    desk.plan = desk.json("sync", "--dry-run")  # type: ignore[attr-defined]
    with desk.start("sync") as process:
        deadline = time.monotonic() + 60
        while len(server.log) < 5:
            assert time.monotonic() < deadline, "it asked nothing"
            time.sleep(0.01)
        process.kill()
        process.wait()
    with Store.open(f"sqlite:///{desk.folder}/recycle.db") as store:
        desk.kept = {row[0] for row in store.rows("SELECT attempt_id FROM reply")}  # type: ignore[attr-defined]
    desk.outcome = desk.json("sync", modules=forks.MODELS)  # type: ignore[attr-defined]
    return desk


def test_everything_is_planned_with_tokens_and_dollars(desk: Desk) -> None:
    plan = desk.plan  # type: ignore[attr-defined]
    simplify, grade = plan["steps"]
    assert (simplify["step"], simplify["ready"], simplify["follow"]) == ("simplify", SAMPLES, 0)
    assert (grade["step"], grade["ready"], grade["follow"]) == ("grade", 0, SAMPLES)
    assert simplify["prompt_tokens"] > 50 * SAMPLES and plan["cost_most_usd"] > 0
    (measure,) = plan["measures"]
    assert (measure["measure"], measure["student"], measure["facts"]) == ("clearness", "tiny", SAMPLES)
    assert measure["tokens"] > 20 * SAMPLES
    (augmentation,) = plan["augmentations"]
    assert (augmentation["name"], augmentation["sources"]) == ("pairs", SAMPLES)


def test_a_killed_sync_is_continued_and_asks_nothing_again_that_was_answered(desk: Desk, server: TeacherServer) -> None:
    outcome = desk.outcome  # type: ignore[attr-defined]
    assert outcome["complete"] and outcome["ratings"] > 0
    kept = desk.kept  # type: ignore[attr-defined]
    assert kept and len(server.log) <= 2 * SAMPLES + 3  # what was on the wire at the kill may be asked again
    with Store.open(f"sqlite:///{desk.folder}/recycle.db") as store:
        assert kept <= {row[0] for row in store.rows("SELECT attempt_id FROM reply")}
        counts = dict(map(tuple, store.rows("SELECT kind, count(*) FROM variants WHERE is_current = 1 GROUP BY kind")))
        assert counts == {"origin": SAMPLES, "plain": SAMPLES, "paired": SAMPLES // 2}
        assert store.rows("SELECT count(*), avg(value) FROM ratings WHERE kind = 'plain' AND is_current = 1")[0] == (
            SAMPLES,
            5,
        )
        assert store.rows("SELECT count(*), avg(value) FROM ratings WHERE kind = 'origin' AND is_current = 1")[0] == (
            SAMPLES,
            8,
        )
        # origins, plain answers and pairs have a readout, a value and four statistics each
        scored = 2 * SAMPLES + SAMPLES // 2
        assert store.rows("SELECT count(*), count(lp0), count(lp2) FROM readouts")[0] == (scored, scored, 0)
        assert store.rows("SELECT count(*) FROM measures WHERE measure = 'clearness' AND value BETWEEN 0 AND 1")[0] == (
            scored,
        )
        assert store.rows("SELECT count(*) FROM losses")[0] == (4 * scored,)
    assert desk.json("sync")["complete"] and desk.json("sync", "--dry-run")["ready"] == 0


def test_the_readouts_are_those_of_a_naive_loop(desk: Desk) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(desk.folder / "tiny")
    tokenizer = AutoTokenizer.from_pretrained(desk.folder / "tiny")
    choices = [tokenizer(f"\n {word}")["input_ids"][-1] for word in ("Yes", "No")]
    with Store.open(f"sqlite:///{desk.folder}/recycle.db") as store:
        rows = store.rows("""
            SELECT v.instruction, v.input, o.lp0, o.lp1, m.value FROM readouts o
            JOIN variants v ON v.variant_id = o.variant_id
            JOIN measures m ON m.variant_id = o.variant_id AND m.measure = 'clearness'
        """)
    for instruction, given, yes, no, value in rows:
        prompt = f"Instruction: {instruction} {given}\nIs it clear what to do? Answer Yes or No:"
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer(prompt)["input_ids"]])).logits[0, -1].double()
        expected = torch.log_softmax(logits, 0)[choices]
        assert (yes, no) == pytest.approx(tuple(expected.tolist()), abs=1e-4)
        assert value == pytest.approx(torch.softmax(expected, 0)[0].item(), abs=1e-4)


def test_everything_is_shown(desk: Desk) -> None:
    status = desk.json("status")
    assert status["variants"] == {"origin": SAMPLES, "paired": SAMPLES // 2, "plain": SAMPLES}
    assert {row["step"] for row in status["teachers"]} == {"simplify", "grade"}
    shown = {(row["measure"], row["model"]) for row in status["measures"]}
    assert shown == {("clearness", "tiny"), ("grade", "helper")}
    assert "clearness" in desk.run("status") and "grade" in desk.run("measures")
    with Store.open(f"sqlite:///{desk.folder}/recycle.db") as store:
        sample = store.rows("SELECT v.sample_id FROM variants v WHERE v.kind = 'paired' LIMIT 1")[0][0]
    found = desk.json("show", sample)
    assert {"origin", "plain", "paired"} <= {variant["kind"] for variant in found["variants"]}
    assert {row["measure"] for row in found["measures"]} == {"clearness", "grade"}
    told = desk.run("show", sample)
    assert "grade 8" in told and "clearness" in told and "paired" in told
    desk.run("report", "-o", "report.html")
    page = (desk.folder / "report.html").read_text()
    assert "clearness" in page and "<td>grade</td>" in page and "paired" in page


def test_everything_is_kept_by_a_merge_also_where_the_package_is_not_installed(desk: Desk) -> None:
    tables = ("variant", "reply", "rating", "readout", "value", "derivation", "derivation_member", "loss")
    bare = {name: value for name, value in desk.env.items() if name != "PYTHONPATH"}
    for url, env in (("sqlite:///with.db", desk.env), ("duckdb:///without.duckdb", bare)):
        before, desk.env = desk.env, env
        with Store.open(f"{url.replace('///', f'///{desk.folder}/')}", create=True):
            pass
        (desk.folder / "recycledb.toml").rename(desk.folder / "aside.toml")
        desk.run("--store", url, "merge", f"sqlite:///{desk.folder}/recycle.db")
        desk.run("--store", url, "db", "check")
        (desk.folder / "aside.toml").rename(desk.folder / "recycledb.toml")
        desk.env = before
        with (
            Store.open(f"sqlite:///{desk.folder}/recycle.db") as source,
            Store.open(f"{url.replace('///', f'///{desk.folder}/')}") as target,
        ):
            for table in tables:
                count = f"SELECT count(*) FROM {table}"
                assert source.rows(count)[0][0] == target.rows(count)[0][0] > 0, table


def test_its_numbers_are_in_sql_and_in_the_training_set(desk: Desk) -> None:
    sql = "SELECT kind, count(value) AS n FROM measures WHERE measure = 'clearness' GROUP BY kind ORDER BY kind"
    answer = json.loads(desk.run("query", sql, "--format", "json"))
    assert answer == [
        {"kind": "origin", "n": SAMPLES},
        {"kind": "paired", "n": SAMPLES // 2},
        {"kind": "plain", "n": SAMPLES},
    ]
    desk.run("export", "--kind", "paired", "-o", "pairs.json")
    pairs = json.loads((desk.folder / "pairs.json").read_text())
    assert len(pairs) == SAMPLES // 2 and all(row["instruction"].startswith("Answer both questions.") for row in pairs)


def test_without_the_package_a_configuration_that_names_it_says_so(desk: Desk) -> None:
    desk.env, before = {**desk.env, "PYTHONPATH": ""}, desk.env
    with desk.start("sync", "--dry-run") as process:
        _, err = process.communicate(60)
        assert process.wait() == 1
    desk.env = before
    line = (err or b"").decode()
    assert line.count("\n") == 1 and "unknown measure 'clearness'" in line
