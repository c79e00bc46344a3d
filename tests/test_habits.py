"""What users are used to: whole names in a narrow terminal, "did you mean", completion of names in their shell, `| head`."""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forks
import openai
import pytest
import scored_stores as scored
import stores
from conftest import RUN_COMMAND, Cli, CommandServer, clean_environment

from recycledb.cli import completion
from recycledb.config import StudentConfig, TeacherConfig, load
from recycledb.errors import ConfigError, RecycledbError
from recycledb.formats import OUT_FORMATS, read, write
from recycledb.inspection import look
from recycledb.selection import identities
from recycledb.selection.compare import compare
from recycledb.selection.query import FORMATS as QUERY_FORMATS
from recycledb.selection.recipes import bind, get_recipe
from recycledb.store import Store
from recycledb.suggestions import KNOWN_PARAMS, did_you_mean

TEACHER, STUDENTS = "gpt-4o-mini-2024-07-18", ("llama-2-7b-chat-merged", "llama-2-13b-chat-merged")
TOML = f"""\
[store]
url = "sqlite:///store.db"
[teachers.{TEACHER}]
provider = "recorded"
file = "none.jsonl"
[students.{STUDENTS[0]}]
model = "./none/7b"
[students.planned]
model = "./none/planned"
[sync]
students = "{STUDENTS[0]}"
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store in which names are long and numbers are large, and a configuration."""
    folder = tmp_path_factory.mktemp("habits")
    with Store.open(f"sqlite:///{folder}/store.db", create=True) as store:
        stores.fill(store, "an-instruction-dataset")
        samples = stores.add_samples(store, [stores.texts(word) for word in ("apples", "pears", "plums")], "second")
        scored.add_teachers(store, TEACHER)
        scored.add_students(store, *STUDENTS, model="meta-llama/Llama-2-7b-chat-hf")
        for number, kinds in enumerate(scored.add_all_kinds(store, samples, teacher=TEACHER)):
            for shift, student in enumerate(STUDENTS):
                step = 0.01 * number * (-1) ** shift
                found = {
                    variant: scored.ratios(-0.3 + step + 0.02 * len(kind), -0.2) for kind, variant in kinds.items()
                }
                scored.add_losses(store, student, found)
        with store.write() as conn:
            conn.exec_driver_sql(
                "UPDATE reply SET prompt_tokens = 123456789, completion_tokens = 98765432, cost_usd = 1234.5678"
            )
            conn.exec_driver_sql(
                "UPDATE name SET name = ? WHERE kind = 'teacher' AND name <> ?", (f"{TEACHER}-batch", TEACHER)
            )
    (folder / "recycledb.toml").write_text(f"\ufeff{TOML}", encoding="utf-8")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


@pytest.fixture
def store(made: Path) -> Iterator[Store]:
    """That store."""
    with Store.open(f"sqlite:///{made}/store.db") as opened:
        yield opened


# --- narrow terminals -----------------------------------------------------------------------------

XTERM = {"TERM": "xterm", "NO_COLOR": "1", "LANG": "C.UTF-8"}


def on_terminal(server: CommandServer, cwd: Path, columns: int, *arguments: str, code: str | None = None) -> str:
    left, came = server.run_on_terminal(list(arguments), cwd, clean_environment(**XTERM), columns=columns, code=code)
    assert left == 0, came.decode()
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", came.decode()).replace("\r", "\n")


@pytest.mark.long
@pytest.mark.parametrize("command", ["status", "compare", "measures", "show", "selections"])
def test_no_name_and_no_number_is_cut_in_a_narrow_terminal(
    command: str, command_server: CommandServer, made: Path, store: Store
) -> None:
    sample = store.rows("SELECT sample_id FROM sample_scores LIMIT 1")[0][0]
    more = {"compare": (*STUDENTS, "--teacher", TEACHER), "show": (sample,)}.get(command, ())
    shown = {width: on_terminal(command_server, made, width, command, *more) for width in (80, 100, 200)}
    words = {word for word in re.findall(r"[^\s/]+", shown[200]) if len(word) <= 40 and not word.startswith("─")}
    assert len(words) > 6
    for width in (80, 100):
        table = shown[width].partition("largest differences")[0]
        assert "…" not in table
        assert command == "show" or all(len(line) <= width for line in table.splitlines()), table
        lost = words - set(re.findall(r"[^\s/]+", shown[width]))
        whole = "".join(shown[width].split())  # texts, and headings at an underscore, may be wrapped
        assert not [word for word in lost if not all(part in whole for part in word.split("_"))], (lost, table)


PROGRESS = """
from recycledb.cli.progress import drawn
from recycledb.sync.progress import Progress
with drawn(False) as listen:
    asked = Progress("reflect_instruction", "{teacher}", 52002, done=11520, failed=12, in_flight=32, tokens=3456789, cost_usd=1234.5678)
    asked.started -= 600
    listen(asked)
    listen(Progress("score", "{student}", 208008, done=300, tokens=12345, utilisation=0.02))
    listen(asked)
import os
os._exit(0)  # as the command ends: see cli/__init__.py
"""


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_bars_keep_what_is_done_the_time_left_and_the_dollars(
    columns: int, command_server: CommandServer, tmp_path: Path
) -> None:
    code = PROGRESS.format(teacher=TEACHER, student=STUDENTS[0])
    frame = on_terminal(command_server, tmp_path, columns, code=code)
    lines = [line.rstrip() for line in frame.splitlines()]
    for needed in (
        f"reflect_instruction · {TEACHER}",
        f"score · {STUDENTS[0]}",
        "11,532/52,002",
        "300/208,008",
        "$1,234.5678",
    ):
        assert any(needed in line for line in lines), (needed, lines)
    assert all(
        "-:--" in line or re.search(r"\d\d:\d\d", line) for line in lines if "/52,002" in line or "/208,008" in line
    )
    assert not [line for line in lines if len(line) > columns] and "…" not in frame and "peak" not in frame
    assert ("32 in flight" in frame) == (columns == 200)  # the rest is shown where there is room


# --- did you mean ---------------------------------------------------------------------------------


def test_the_name_that_was_meant() -> None:
    assert did_you_mean("selektive", ["cherry", "selective"]) == " (did you mean 'selective'?)"
    assert did_you_mean("ifd_PPL", ["ifd_ppl"]) == " (did you mean 'ifd_ppl'?)"
    assert did_you_mean("nothing like it", ["cherry"]) == did_you_mean("x", []) == ""


KEYS = [
    ("[sync]\nbudget = 5", "sync.budget: unknown key (did you mean 'budget_usd'?)"),
    ("[teachers.gpt]\nmodle = 'x'", "teachers.gpt.modle: unknown key (did you mean 'model'?)"),
    ("[students.7b]\nmodel = 'x'\ntemplat = 'none'", "unknown key (did you mean 'template'?)"),
    ("[student.7b]\nmodel = 'x'", "student: unknown key (did you mean 'students'?)"),
    ("budget_usd = 5", "budget_usd: unknown key (it belongs in [sync])"),
    ("price_in = 5", "price_in: unknown key (it belongs in [teachers.NAME])"),
    ("[sync]\nsteps = ['reflect_instructions']", "(did you mean 'reflect_instruction'?)"),
    ("[students.7b]\nmodel = 'x'\nprompt = 'vicunna'", "(did you mean 'vicuna'?)"),
    ("[students.7b]\nmodel = 'x'\n[sync]\nstudents = ['7B']", "there is no [students.7B] (did you mean '7b'?)"),
    ("[teachers.gpt]\nmodel = 'x'\n[sync]\nteacher = 'gtp'", "there is no [teachers.gtp] (did you mean 'gpt'?)"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), KEYS)
def test_a_mistyped_key_or_value_of_the_configuration(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "recycledb.toml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(tmp_path / "recycledb.toml")


def test_a_mistyped_name_of_anything_in_the_store(store: Store, made: Path, tmp_path: Path) -> None:
    config = load(made / "recycledb.toml")
    wrong: list[tuple[str, Any]] = [
        (STUDENTS[0], lambda: identities.find_student(store, "lama-2-7b-chat-merged")),
        (TEACHER, lambda: identities.find_teacher(store, "gpt-4o-mini-2024-07-81")),
        ("second", lambda: identities.find_dataset(store, "secnd")),
        ("best-an-instruction-dataset", lambda: identities.find_selection(store, "best-an-instruction-datset")),
        ("selective", lambda: get_recipe("selectiv")),
        ("metric", lambda: bind(store, get_recipe("cherry"), {"metrics": "ppl"})),
        ("loss", lambda: bind(store, get_recipe("cherry"), {"student": STUDENTS[0], "teacher": TEACHER, "metric": "los"})),
        ("rifd_ppl", lambda: compare(store, STUDENTS, metric="rifd_pppl")),
        ("reflect_both", lambda: compare(store, STUDENTS, kind="reflect_boths")),
        ("sharegpt", lambda: write(tmp_path / "x.json", [], "share_gpt")),
        ("alpaca", lambda: read(tmp_path / "x.json", "alpacca")),
        ("planned", lambda: config.get_students(("planed",))),
    ]  # fmt: skip
    for meant, call in wrong:
        with pytest.raises(RecycledbError, match=re.escape(f"(did you mean '{meant}'?)")):
            call()


def test_one_name_is_a_list_of_one_and_a_byte_order_mark_is_fine(made: Path, tmp_path: Path) -> None:
    assert load(made / "recycledb.toml").sync.students == (STUDENTS[0],)
    path = tmp_path / "recycledb.toml"
    path.write_text('[students.7b]\nmodel = "m"\nstats = "A_direct"\n[sync]\nsteps = "score"\nstudents = "7b"\n')
    found = load(path)
    assert found.sync.steps == ("score",) and [str(each) for each in found.students["7b"].statistics] == ["A_direct"]


# --- parameters of requests -----------------------------------------------------------------------


@pytest.mark.long
def test_the_known_parameters_are_those_of_the_sdk() -> None:
    create = openai.resources.chat.completions.Completions.create
    takes = set(inspect.signature(create).parameters) - {"self", "messages", "model"}
    takes -= {"extra_headers", "extra_query", "timeout"}  # not part of a request's body; a teacher has timeout_s
    assert takes <= set(KNOWN_PARAMS["openai"]), "the SDK takes more than suggestions.py knows"


@pytest.mark.long
def test_unknown_parameters_are_warned_of(cli: Cli, folder: Path) -> None:
    params = "{ temprature = 0.5, top_k = 4, max_tokens = 9, extra_body = { own = 1 } }"
    text = f'{TOML.partition("[students")[0]}[teachers.server]\nmodel = "m"\nparams = {params}\n'
    (folder / "recycledb.toml").write_text(f'{text}[sync]\nsteps = ["compress"]\nteacher = "server"\n')
    for command in (["status"], ["sync", "--dry-run"]):
        told = cli(*command, "--json", cwd=folder).stderr
        assert told.count("\n") == 1
        assert "[teachers.server] params.temprature" in told and "did you mean 'temperature'?" in told


def test_extra_body_is_sent_as_its_contents() -> None:
    teacher = TeacherConfig(name="t", model="m", params={"extra_body": {"own": 1}, "seed": 2})
    assert teacher.sent_params == {"temperature": 0, "top_p": 1, "max_tokens": 2048, "seed": 2, "own": 1}
    assert teacher.identity["params"]["extra_body"] == {"own": 1}  # as it always was


# --- one mistake does not hide the rest ------------------------------------------------------------


@pytest.mark.long
def test_a_bad_student_and_a_bad_prompt_hide_nothing_else_of_status(cli: Cli, folder: Path) -> None:
    good = folder / "good"
    good.mkdir()
    (good / "config.json").write_text('{"model_type": "llama"}')
    (good / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (good / "tokenizer.json").write_text("{}")
    students = '[students.good]\nmodel = "./good"\n[students.gone]\nmodel = "./gone"\n'
    (folder / "recycledb.toml").write_text(f'[store]\nurl = "sqlite:///store.db"\n{students}')
    found = json.loads(cli("status", "--json", cwd=folder).stdout)
    assert [each["student"] for each in found["problems"]] == ["gone"] and "gone" in found["missing_unknown"]
    assert [each["student"] for each in found["missing"]["students"]] == ["good"]
    shown = cli("status", cwd=folder).stdout
    assert "student gone cannot be used: " in shown and re.search(r"score +good +\d", shown)

    teacher = f'[teachers.{TEACHER}]\nprovider = "recorded"\nfile = "none.jsonl"\n[prompts]\ncompress = "gone.txt"\n'
    (folder / "recycledb.toml").write_text(
        f'[store]\nurl = "sqlite:///store.db"\n{students.partition("[students.gone]")[0]}{teacher}'
    )
    with Store.open(f"sqlite:///{folder}/store.db") as opened:
        status = look(opened, load(folder / "recycledb.toml"))
    assert [each["prompt"] for each in status.facts["problems"]] == ["compress"]
    assert (
        status.plan is not None and [each.student for each in status.plan.scores] == ["good"] and not status.plan.asks
    )


# --- a closed pipe --------------------------------------------------------------------------------

PIPED = [
    ["status"],
    ["status", "--json"],
    ["compare", *STUDENTS, "--teacher", TEACHER],
    ["recipes", "show", "selective"],
    ["query", "SELECT a.* FROM samples a, samples b, samples c, samples d, samples e, samples f"],
    ["query", "SELECT a.* FROM samples a, samples b, samples c, samples d, samples e, samples f", "--format", "csv"],
    ["db", "check"],
    ["--help"],
]


@pytest.mark.long
@pytest.mark.parametrize("arguments", PIPED, ids=lambda words: " ".join(words)[:30])
def test_a_pipe_that_nobody_reads_ends_a_command_quietly(arguments: list[str], folder: Path) -> None:
    command = [*RUN_COMMAND, *arguments]
    with forks.start(command, cwd=folder, env=clean_environment(), stdout=forks.PIPE, stderr=forks.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        told = process.stderr.read()
        assert (process.wait(), told) == (
            int(arguments[0] == "db" and b"problems found" in told),
            b"",
        ) or b"problems found" in told


def test_a_sync_that_nobody_reads_does_its_work_and_keeps_its_exit_code(folder: Path) -> None:
    """Its plan is printed before its work, so the pipe is closed long before the end."""
    replies = {"step": "compress", "reads": {}, "error": "refused"}
    (folder / "none.jsonl").write_text(json.dumps(replies | {"reads": stores.texts("apples")._asdict()}) + "\n")
    text = TOML.partition("[students")[0]
    (folder / "recycledb.toml").write_text(f'{text}[sync]\nsteps = ["compress"]\n')
    with Store.open(f"sqlite:///{folder}/store.db") as store:
        stores.add_samples(store, [stores.texts("long " * 60 + "text")._replace(input="x " * 500)], "long")
    command = [*RUN_COMMAND, "sync"]
    with forks.start(command, cwd=folder, env=clean_environment(), stdout=forks.PIPE, stderr=forks.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        told = process.stderr.read().decode()
        code = process.wait()
    assert "Traceback" not in told and code == 3, (code, told)


# --- completion in shells -------------------------------------------------------------------------


def completed(server: CommandServer, cwd: Path, line: str, shell: str = "bash", **more: str) -> list[str]:
    """Return what a shell is told after Tab at the end of a line, which is all that the command prints."""
    words = line.split(" ")
    protocol = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }
    environment = clean_environment(_RECYCLEDB_COMPLETE=f"complete_{shell}", **protocol[shell], **more)
    done = forks.run([sys.executable, "-c", COMPLETE], cwd=cwd, env=environment)
    assert (done.stderr, done.returncode) == ("", 0)
    return re.findall(r'"([^"]+)"', done.stdout) if shell == "zsh" else done.stdout.split()


# The name of the program, from which the shells' variables follow.
COMPLETE = "import sys; sys.argv[0] = 'recycledb'; from recycledb.cli import main; main()"
LINES = {
    "recycledb select ": {"cherry", "recycled", "selective", "superfilter"},
    "recycledb select cherry --student llama-2-13": {STUDENTS[1]},
    "recycledb sync --student ": {STUDENTS[0], "planned"},
    "recycledb compare ": {*STUDENTS, "7b"},
    "recycledb export --teacher ": {TEACHER, f"{TEACHER}-batch"},
    "recycledb export --dataset ": {"an-instruction-dataset", "second"},
    "recycledb export --kind reflect_": {"reflect_both", "reflect_instruction", "reflect_response"},
    "recycledb export --format ": set(OUT_FORMATS),
    "recycledb query --format ": set(QUERY_FORMATS),
    "recycledb diff best": {"best-an-instruction-dataset"},
    "recycledb compare --metric rifd": {"rifd_ppl", "rifd_loss"},
    "recycledb recipes show ch": {"cherry"},
    "recycledb add --format share": {"sharegpt"},
}


@pytest.mark.parametrize("line", LINES)
def test_a_shell_is_offered_names(line: str, command_server: CommandServer, made: Path) -> None:
    assert set(completed(command_server, made, line)) >= LINES[line]
    if line.endswith("13"):
        assert completed(command_server, made, line) == [STUDENTS[1]]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_offered_the_same(shell: str, command_server: CommandServer, made: Path) -> None:
    assert {*STUDENTS} <= set(completed(command_server, made, "recycledb compare ", shell))


@pytest.mark.long
def test_without_a_store_nothing_is_offered_and_nothing_is_printed(
    command_server: CommandServer, tmp_path: Path
) -> None:
    for content in (b"", b"[students", b"\xff\xfe", b"students = 3", b'[store]\nurl = "duckdb:///x.db"'):
        (tmp_path / "recycledb.toml").write_bytes(content)
        assert completed(command_server, tmp_path, "recycledb compare ") == []
        assert completed(command_server, tmp_path, "recycledb sync --student ") == []
    (tmp_path / "damaged.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    url = "sqlite:///damaged.db"
    assert completed(command_server, tmp_path, "recycledb export --dataset ", RECYCLEDB_STORE=url) == []
    assert completed(command_server, tmp_path, f"recycledb --store {url} export --dataset ") == []
    assert not (tmp_path / "recycle.db").exists()


def test_names_that_a_terminal_would_obey_are_not_offered(command_server: CommandServer, folder: Path) -> None:
    (folder / "recycledb.toml").write_text('[students."\\u001b[31mred"]\n[students."two\\nlines"]\n[students.plain]\n')
    assert completed(command_server, folder, "recycledb sync --student ") == ["plain"]


def test_completion_is_quick(made: Path) -> None:
    """In an interpreter of its own: nothing heavy is imported."""
    code = f"{COMPLETE.replace('main()', '')}\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"
    env = clean_environment(_RECYCLEDB_COMPLETE="complete_bash", COMP_WORDS="recycledb compare ", COMP_CWORD="2")
    done = subprocess.run([sys.executable, "-c", code], cwd=made, env=env, capture_output=True, text=True, check=True)
    assert {*STUDENTS} <= set(done.stdout.split())
    heavy = {"torch", "transformers", "openai", "sqlalchemy", "numpy", "duckdb", "pyarrow"}
    assert heavy & set(done.stderr.split()) == set()


@pytest.mark.long
def test_a_real_bash_completes(made: Path) -> None:
    """The script that `--show-completion` prints, in bash itself."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    folder = made / "bin"
    folder.mkdir(exist_ok=True)
    command = folder / "recycledb"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{COMPLETE}" "$@"\n')
    command.chmod(0o755)
    script = """
        eval "$(_RECYCLEDB_COMPLETE=source_bash recycledb)"
        COMP_WORDS=(recycledb compare llama-2-7) COMP_CWORD=2
        _recycledb_completion recycledb
        printf '%s\\n' "${COMPREPLY[@]}"
        complete -p recycledb
    """
    env = clean_environment(PATH=f"{folder}{os.pathsep}{os.environ['PATH']}")
    done = subprocess.run([bash, "-c", script], cwd=made, env=env, capture_output=True, text=True, check=True)
    assert done.stderr == "" and done.stdout.splitlines()[0] == STUDENTS[0] and "_recycledb_completion" in done.stdout


def test_what_completion_repeats_for_speed_is_what_the_configuration_has() -> None:
    fields = StudentConfig.model_fields
    assert fields["prompt"].annotation.__args__ == completion.TEMPLATES  # type: ignore[union-attr]
    assert fields["dtype"].annotation.__args__ == completion.DTYPES  # type: ignore[union-attr]
