"""What reaches a terminal: every command over a store whose every text is hostile, on a real pseudo-terminal.

Hostile texts hold escape sequences (the window's title, the clipboard, the screen cleared), C1 controls, marks that turn the direction of
text, rich's markup and emoji codes, newlines that would forge a line, and are long.
"""

import ast
import json
import os
import re
import shutil
import threading
import unicodedata
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import scored_stores as scored
import stores
from conftest import CommandServer, clean_environment
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import COMMANDS

from recycledb.schema import Texts, canonical_json, random_id, utc_now
from recycledb.store import Store
from recycledb.store.rows import BatchEventRow, BatchRow, DatasetImportRow, SelectionItemRow, SelectionRow
from recycledb.terminal import json_visible, visible, visible_line

ROOT = Path(__file__).parents[1]
ATTACK = (
    "[/bold][red]\x1b]0;owned\x07\x1b[2J\x1b]52;c;cm0=\x07\x9b31m\x90\u202eevil\u2066\x7f\b\r\u2028\U000e0041:fire:"
)
LONG = "long" * 200
SEEN = ("owned", "n[/b", "o[/b")  # of the attack, where it is shown; a narrow column has less of it
FORGED = "\nrecycledb: all is well"
NAME = f"n{ATTACK}{FORGED}"  # as names of teachers, students, datasets and selections are
OTHER = f"o{ATTACK}{FORGED}"
TEXT = f"{ATTACK}\nsecond line\n{LONG}"
MEANT = re.compile(f"{re.escape(FORGED)}(?: answers|\"|'|,)")  # within a text, or CSV, which has lines
FOLDER = ATTACK.replace("/", "")  # as a folder is named


def obeyed(text: str) -> set[str]:
    """Return the characters of a text that a terminal would obey or hide, by Unicode's own classes; a newline is meant."""
    joiners = "\u200c\u200d"
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in "\n" + joiners}


# --- the functions --------------------------------------------------------------------------------


def test_what_is_shown_of_what_a_terminal_obeys() -> None:
    assert (
        visible("a\x1b[31m\t\n\r\x9b\u202e\ud800\U000e0041") == r"a\x1b[31m" + "\t\n" + r"\r\x9b\u202e\ud800\U000e0041"
    )
    assert visible_line("a\tb\nc") == r"a\tb\nc"
    kept = "é 漢 🙂 👩\u200d🔬 नमस्ते مرحبا e\u0301"
    assert visible(kept) == visible_line(kept) == json_visible(kept) == kept


# A pair of surrogates is one character to whoever parses JSON, so only halves can be told apart from what was there.
any_text = st.text(st.characters()) | st.text(
    st.sampled_from('\x00\x1b\x7f\x9b\u202e\u2028\ufeff\U000e0041\ud800"\\\n\ta')
)


@settings(max_examples=200, deadline=None)
@given(text=any_text)
def test_nothing_obeyed_is_left_and_json_is_the_same_value(text: str) -> None:
    assert obeyed(visible_line(text)) <= set("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2") | {
        c for c in text if ord(c) > 0xFFFF and not 0xE0000 <= ord(c) < 0xE0080
    }  # format characters of scripts, which are drawn
    assert json.loads(json_visible(json.dumps(text, ensure_ascii=False))) == text


# --- a hostile store ------------------------------------------------------------------------------


def fill(store: Store) -> None:
    """Fill a store of which every text that a user, a teacher, a file or a server gives is hostile."""
    samples = stores.add_samples(store, [Texts(f"{i}{TEXT}", TEXT, TEXT) for i in range(4)], NAME)
    scored.add_teachers(store, NAME)
    scored.add_students(store, NAME, OTHER, model=NAME)
    means: dict[str, dict[str, scored.Means]] = {NAME: {}, OTHER: {}}
    for number, kinds in enumerate(scored.add_all_kinds(store, samples, teacher=NAME)):
        for student, scores in means.items():
            shift = 0.01 * number if student == NAME else -0.1 * (number % 2)
            for kind, variant in kinds.items():
                scores[variant] = scored.ratios(-0.3 + shift + 0.01 * len(kind), -0.2)
    for student, found in means.items():
        scored.add_losses(store, student, found)
    now, origin = utc_now(), scored.origin_of(store, samples[0])
    parameters = canonical_json({NAME: NAME, "student": NAME, "top": NAME})
    with store.write() as conn:
        store.insert(conn, [DatasetImportRow(random_id(), NAME, NAME, NAME, "00", 4, 1, 0, now)])
        for key, name in (("aa" * 6, NAME), ("bb" * 6, OTHER)):
            row = SelectionRow(key, name, NAME, NAME, parameters, NAME, 1, canonical_json({NAME: 1}), NAME, now)
            store.insert(conn, [row])
            store.insert(conn, [SelectionItemRow(key, 0, origin if name == NAME else variant, 0.5, NAME)])
            store.ensure_name(conn, "selection", name, key)
        store.insert(conn, [BatchRow(NAME, scored.teacher_id(NAME), NAME, now)])
        store.insert(conn, [BatchEventRow(NAME, now, "failed", NAME, TEXT)])
        extra = canonical_json({NAME: NAME})
        failed = stores.reply_row(
            "ab" * 16,
            origin,
            "compress",
            stores.PROMPTS[next(iter(stores.PROMPTS))],
            teacher_id=scored.teacher_id(NAME),
            status="error",
            text=None,
            finish_reason=NAME,
            served_model=NAME,
            request_id=NAME,
            error=f"{NAME}: {TEXT}",
            raw=TEXT,
        )
        store.insert(conn, [failed])
        conn.exec_driver_sql("UPDATE place SET extra = ?", (extra,))
        conn.exec_driver_sql("UPDATE reply SET finish_reason = ?, served_model = ?", (NAME, NAME))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a hostile name that holds a hostile store, a configuration that names hostile teachers, and files."""
    folder = tmp_path_factory.mktemp("hostile") / FOLDER
    folder.mkdir()
    with Store.open(f"sqlite:///{folder}/store.db", create=True) as store:
        fill(store)
    with Store.open(f"sqlite:///{folder}/there.db", create=True) as store:
        scored.add_teachers(store, NAME)
        with store.write() as conn:
            store.insert(conn, [SelectionRow("cc" * 6, NAME, NAME, NAME, "{}", NAME, 1, "{}", NAME, utc_now())])
            store.ensure_name(conn, "selection", NAME, "cc" * 6)
    rows: list[Any] = [
        {"instruction": "a", "output": "b", ATTACK: 1},
        {"instruction": "a\0", "output": "b"},
        {"instruction": "a", "output": "b", NAME: "\ud800"},
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "recipe.sql").write_text(f"SELECT variant_id, 1.0 AS rank, {quoted(NAME)} AS reason FROM variant")
    (folder / "scores.jsonl").write_text('{"loss": [1, 1, 1, 1], "ppl": [2, 2, 2, 2]}\n' * 4)
    (folder / "answers.json").write_text(json.dumps([{"output": f"{i}{TEXT}"} for i in range(4)]))
    (folder / "values.json").write_text(json.dumps([{"value": i / 4} for i in range(4)]))
    reads = Texts(f"1{TEXT}", TEXT, TEXT)._asdict()
    (folder / "replies.jsonl").write_text(
        json.dumps({"step": "compress", "reads": reads, "error": f"refused: {NAME}"}) + "\n"
    )
    (folder / "full").mkdir()
    (folder / "full" / "recycledb.toml").write_text(f"# {NAME!r}")
    (folder / "recycledb.toml").write_text(configuration('provider = "recorded"\nfile = "replies.jsonl"'))
    return folder


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def configuration(teacher: str) -> str:
    name = json.dumps(NAME).replace("\x7f", "\\u007f").replace("\\udb40\\udc41", "\\U000e0041")
    return f'[store]\nurl = "sqlite:///store.db"\n[teachers.{name}]\n{teacher}\n[sync]\nteacher = {name}\nsteps = ["compress"]\n'


TERMINAL = {"TERM": "dumb", "NO_COLOR": "1", "LANG": "C.UTF-8", "PYTHONWARNINGS": "default"}
Case = tuple[int, list[str]]
SQL = f'SELECT {quoted(TEXT)} AS "{NAME}", instruction FROM samples'
# By command: exit codes and arguments, with what a command of that name does most and what goes wrong with it.
CASES: dict[str, list[Case]] = {
    "demo": [(1, ["full"]), (1, ["rows.json/x"])],
    "init": [(0, [f"new {FOLDER}"]), (1, [""])],
    "add": [(0, ["rows.json", "--dataset", f"added {NAME}"]), (1, [f"none {ATTACK}"]), (1, ["recipe.sql"])],
    "sync": [(0, ["--dry-run"]), (1, ["--teacher", ATTACK]), (1, ["--student", ATTACK]), (3, [])],
    "status": [(0, [])],
    "batches": [(0, [])],
    "measures": [(0, [])],
    "show": [(0, ["SAMPLE"]), (1, [ATTACK])],
    "query": [(0, [SQL]), *((0, [SQL, "--format", each]) for each in ("json", "jsonl", "csv")), (1, [f"SELECT {ATTACK}"])],
    "select": [
        (0, ["cherry", "--student", NAME, "--top", "2", "--name", NAME, "-o", f"{FOLDER}.json", "--card", f"{FOLDER}.md"]),
        (0, ["--sql", "recipe.sql", "--name", OTHER]),
        (1, ["cherry", "--student", ATTACK]),
        (1, [ATTACK]),
        (1, ["cherry", "--param", ATTACK]),
    ],
    "selections": [(0, [])],
    "diff": [(0, [NAME, OTHER]), (1, [ATTACK, OTHER])],
    "compare": [(0, [NAME, OTHER, "--top", "2"]), (1, [NAME, ATTACK])],
    "export": [(0, ["--teacher", NAME, "-o", f"out {FOLDER}.json"]), (1, ["--kind", ATTACK, "-o", "x.json"])],
    "import-scores": [
        (0, ["scores.jsonl", "--dataset", NAME, "--kind", "origin", "--student", f"paper {NAME}"]),
        (1, ["scores.jsonl", "--dataset", ATTACK, "--kind", "origin", "--student", ATTACK]),
    ],
    "duplicates": [(0, ["--dataset", NAME])],
    "mix": [(0, [f"{NAME}=50%", f"{OTHER}=50%", "--name", f"mixed {NAME}"]), (1, [f"{ATTACK}=50%"])],
    "dataset list": [(0, [])],
    "dataset remove": [(0, [NAME]), (1, [ATTACK])],
    "add-answers": [
        (0, ["answers.json", "--author", NAME.replace("/", ""), "--dataset", NAME]),
        (1, [ATTACK, "--author", "a", "--dataset", "d"]),
    ],
    "import-values": [
        (0, ["values.json", "--measure", f"m{NAME}", "--model", f"paper {NAME}", "--dataset", NAME]),
        (1, ["values.json", "--measure", "m", "--model", "m", "--dataset", ATTACK]),
    ],
    "judge report": [(1, [ATTACK])],
    "judge data": [(1, ["--rating", ATTACK, "-o", "judge"])],
    "judge import": [(1, [f"none {ATTACK}.json", "--judge", "j", "--first", "a", "--second", "b"])],
    "mark": [(0, ["SAMPLE", "drop", "--note", ATTACK, "--by", NAME]), (1, [ATTACK, "keep"])],
    "view": [(1, ["--no-open", "--host", ATTACK])],
    "recipes": [(0, [])],
    "recipes show": [(0, ["cherry"]), (1, [ATTACK])],
    "report": [(0, ["-o", f"{FOLDER}.html"]), (1, ["-o", f"none {ATTACK}/x.html"])],
    "merge": [(0, ["sqlite:///there.db"]), (1, [f"sqlite:///none {ATTACK}.db"])],
    "workers": [(0, [])],
    "db backup": [(0, [f"{FOLDER}.bak"]), (1, [f"none {ATTACK}/x.bak"])],
    "db grant": [(1, [ATTACK])],
    "db upgrade": [(0, [])],
    "db current": [(0, [])],
    "db check": [(1, [])],
}  # fmt: skip
QUIET = {
    "demo",
    "recipes",
    "recipes show",
    "db upgrade",
    "duplicates",
    "db check",
    "export",
    "select",
    "workers",
}  # where nothing hostile need be shown
WITH_JSON = [
    name
    for name in COMMANDS
    if "--json" in [flag for one in COMMANDS[name].params for flag in one.opts]
    and CASES.get(name, [(0, [])])[0][0] != 1
    and name != "workers"  # no process works on the store
]
RUNS = [(name, index) for name in [*COMMANDS, "recipes"] for index in range(max(1, len(CASES.get(name, []))))]


@pytest.fixture
def folder(hostile: Path, tmp_path: Path) -> Path:
    """A copy of the hostile folder."""
    return Path(shutil.copytree(hostile, tmp_path / FOLDER))


def sample_of(folder: Path) -> str:
    with Store.open(f"sqlite:///{folder}/store.db") as store:
        found: str = store.rows(
            "SELECT sample_id FROM variant WHERE variant_id IN (SELECT variant_id FROM selection_item)"
        )[0][0]
    return found


def run(server: CommandServer, folder: Path, arguments: list[str], **environment: str) -> tuple[int, str]:
    """Run the command on a terminal; return its exit code and all that came, which is UTF-8 and no traceback."""
    code, came = server.run_on_terminal(arguments, folder, clean_environment(**{**TERMINAL, **environment}))
    told = came.decode()
    assert "Traceback" not in told, told[-3000:]
    return code, told


def require_harmless(told: str) -> None:
    """Fail where a terminal would obey anything of it, or where a text began a line of its own that it was not to begin."""
    assert obeyed(told) == set(), (sorted(map(repr, obeyed(told))), told[-2000:])
    assert f"{ATTACK[-6:]}{FORGED}" not in visible(MEANT.sub("", told)), "a name forged a line"


@pytest.mark.long
@pytest.mark.parametrize(("name", "index"), RUNS, ids=str)
def test_no_command_hands_a_text_to_the_terminal_raw(
    name: str, index: int, command_server: CommandServer, folder: Path
) -> None:
    assert name in CASES, f"{name} has no case here: add one"
    wanted, arguments = CASES[name][index]
    words = [sample_of(folder) if word == "SAMPLE" else word for word in arguments]
    code, told = run(command_server, folder, [*name.split(), *words])
    require_harmless(told)
    assert code == wanted or name == "db check", told
    assert wanted == 1 or name in QUIET or any(word in told for word in SEEN), told
    if wanted == 1 and name != "db check":
        assert told.splitlines()[-1].startswith("recycledb: ")


@pytest.mark.default_cases("add", "show", "status", "mix")
@pytest.mark.parametrize("name", WITH_JSON)
def test_json_is_harmless_on_a_terminal_and_holds_the_very_texts(
    name: str, command_server: CommandServer, folder: Path
) -> None:
    wanted, arguments = CASES[name][0]
    words = [sample_of(folder) if word == "SAMPLE" else word for word in arguments]
    code, told = run(command_server, folder, [*name.split(), *words, "--json"])
    require_harmless(told)
    assert code == wanted, told
    found = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    assert found and (name == "merge" or any(ATTACK in text or FOLDER in text for text in strings(found)))


def strings(value: Any) -> Iterator[str]:
    """Yield every text in a JSON value, names too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


@pytest.mark.long
def test_what_is_written_to_a_file_or_a_pipe_is_exact(command_server: CommandServer, folder: Path) -> None:
    for format in ("json", "jsonl", "csv"):
        piped = command_server.run(["query", SQL, "--format", format], folder, clean_environment())
        run(command_server, folder, ["query", SQL, "--format", format, "-o", "out"])
        assert (folder / "out").read_bytes() == piped.stdout.encode()
        assert "\u202e" in piped.stdout and ("\x1b" in piped.stdout) == (
            format == "csv"
        )  # which has no way to write it else
    _, shown = run(command_server, folder, ["query", SQL, "--format", "json"])
    assert json.loads(shown) == json.loads(
        command_server.run(["query", SQL, "--format", "json"], folder, clean_environment()).stdout
    )


SEQUENCES = re.compile(
    r"\x1b\[(?:[\d;]*m|\?25[lh]|\d*[A-GK]|2K)|\r"
)  # colours, the cursor shown and moved, a line cleared


@pytest.mark.long
@pytest.mark.parametrize("name", ["status", "show", "compare", "sync", "selections", "add"])
def test_with_colours_only_what_draws_them_is_added(name: str, command_server: CommandServer, folder: Path) -> None:
    code, arguments = CASES[name][-1 if name == "sync" else 0]
    words = [sample_of(folder) if word == "SAMPLE" else word for word in arguments]
    environment = {name: value for name, value in TERMINAL.items() if name != "NO_COLOR"} | {"TERM": "xterm-256color"}
    came = command_server.run_on_terminal([name, *words], folder, clean_environment(**environment))
    told = came[1].decode()
    assert came[0] == code and "\x1b[" in told
    require_harmless(SEQUENCES.sub("", told))


# --- errors, usage, servers, warnings -------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [[ATTACK], [f"--{ATTACK}"], ["sync", f"--x{ATTACK}"], ["sync", "--limit", ATTACK], ["sync", "--only", ATTACK],
     ["show", "a", ATTACK], ["add", "x", "--format", ATTACK], ["db", ATTACK], ["selections", NAME]],
    ids=lambda value: value[0][:9].strip(ATTACK),
)  # fmt: skip
def test_wrong_usage_is_shown_harmless(arguments: list[str], command_server: CommandServer, tmp_path: Path) -> None:
    code, told = run(command_server, tmp_path, arguments)
    require_harmless(told)
    assert code == 2 and "Usage" in told and "Error" in told


def test_arguments_that_are_no_text(command_server: CommandServer, tmp_path: Path) -> None:
    code, told = run(command_server, tmp_path, ["add", os.fsdecode(b"caf\xe9.json")])
    require_harmless(told)
    assert code == 2 and r"caf\udce9.json" in told and "not UTF-8" in told


def test_a_traceback_is_harmless_too(command_server: CommandServer, tmp_path: Path) -> None:
    _, came = command_server.run_on_terminal(["--debug", "show", ATTACK], tmp_path, clean_environment(**TERMINAL))
    told = came.decode()
    require_harmless(told)
    assert "Traceback (most recent call last)" in told
    url = f"sqlite:///{ATTACK}.db"
    code, told = run(command_server, tmp_path, ["status"], RECYCLEDB_STORE=url)
    require_harmless(told)
    assert code == 1 and told.count("\n") == 1


class Hostile(BaseHTTPRequestHandler):
    """A server whose every word is hostile."""

    def do_POST(self) -> None:
        """Refuse the key."""
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"error": {"message": NAME, "type": NAME, "code": NAME}}).encode()
        self.send_response(401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.mark.long
def test_what_a_server_says_is_shown_harmless(command_server: CommandServer, folder: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), Hostile) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        base_url = f"http://127.0.0.1:{server.server_port}/v1"
        (folder / "recycledb.toml").write_text(configuration(f'model = "m"\nbase_url = "{base_url}"'))
        code, told = run(command_server, folder, ["sync"], OPENAI_API_KEY="sk-x")
        server.shutdown()
        thread.join()
    require_harmless(told)
    assert code == 1 and "owned" in told.splitlines()[-1]


# --- one way to print -----------------------------------------------------------------------------


def test_the_commands_print_one_way_only() -> None:
    """A console, a table or a `print` of one's own would know markup, and would show a terminal what it obeys."""
    for path in (ROOT / "cli").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and path.name != "printing.py":
                assert not {"Console", "Table", "echo", "secho"} & {a.name for a in node.names} or node.module == (
                    "recycledb.cli.printing"
                ), (path.name, node.lineno)
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "typer.echo",
                "typer.secho",
                "sys.stderr.write",
            ):
                assert path.name == "printing.py", (path.name, node.lineno)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print" and path.name != "printing.py":
                what = ast.unparse(node.args[0])
                allowed = isinstance(node.args[0], ast.Constant) or what.startswith(
                    ("written(progress)", "json_visible(", "version(", "get_recipe(")
                )
                assert allowed, (path.name, node.lineno, what)


def test_no_style_stands_within_a_text() -> None:
    """Markup is off, so that it would be printed as it stands; in the help of commands it is Typer's."""
    for path in (ROOT / "cli").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith((".print", ".text", ".rule", ".add_row")):
                assert not re.search(r"\[/?(bold|dim|red|green|yellow)", ast.unparse(node)), (path.name, node.lineno)


def test_the_cases_name_no_command_that_is_gone() -> None:
    assert set(CASES) == set(COMMANDS) | {"recipes"}
