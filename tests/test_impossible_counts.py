"""A server said that a reply took 2^63 − 1 tokens, and an earlier version stored it: every command works on such a store."""

import json
from pathlib import Path
from typing import Any

import duckdb
import pysqlite3.dbapi2 as pysqlite3
import pytest
import sound_stores
from conftest import BACKENDS, Cli

from recycledb.store import Store

CONFIGURATION = """
[teachers.gpt]
provider = "openai"
model = "gpt-test"
base_url = "http://127.0.0.1:9/v1"
price_in = 1.0
price_out = 1.0
[sync]
teacher = "gpt"
steps = ["compress", "reflect_instruction", "reflect_response"]
"""
MOST = (1 << 63) - 1


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_command_works(backend: str, tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "store.db"
    url = f"{backend}:///{path}"
    sound_stores.make(url)
    library: Any = pysqlite3 if backend == "sqlite" else duckdb
    connection = library.connect(str(path))
    connection.execute(
        f"UPDATE reply SET prompt_tokens = {MOST}, completion_tokens = {MOST}, digest = NULL WHERE status = 'ok' "
        "AND text_id <> (SELECT max(text_id) FROM reply WHERE status = 'ok')"
    )
    connection.execute(f"UPDATE repeated_reply SET prompt_tokens = {MOST}, digest = NULL")
    connection.execute(
        f"UPDATE loss SET n_tokens = {MOST if backend == 'sqlite' else (1 << 31) - 1}, digest = NULL WHERE status = 'ok'"
    )
    connection.commit()
    connection.close()
    (tmp_path / "recycledb.toml").write_text(CONFIGURATION)
    (tmp_path / "d.json").write_text('[{"instruction": "x", "output": "y"}]')
    with Store.open(url) as store:
        sample = store.rows("SELECT sample_id FROM sample ORDER BY sample_id LIMIT 1")[0][0]
    at = ("--store", url)
    told = json.loads(cli(*at, "status", "--json").stdout)
    assert sum(row["prompt_tokens"] or 0 for row in told["teachers"]) == 311  # of the one count that can be one
    cli(*at, "status")
    cli(*at, "report", "-o", "report.html")
    cli(*at, "show", sample[:12])
    cli(*at, "add", "d.json")
    told = json.loads(cli(*at, "sync", "--dry-run", "--json").stdout)
    assert 0 < told["prompt_tokens"] < 10_000 and (told["completion_tokens"] or 0) < 10_000
    cli(*at, "select", "recycled")
    cli(*at, "export", "-o", "out.json")
    cli(*at, "selections")
    cli(*at, "batches")
    cli(*at, "query", "SELECT * FROM teacher_texts")
    cli("--store", f"sqlite:///{tmp_path}/other.db", "merge", url)
    cli("--store", f"sqlite:///{tmp_path}/other.db", "status")
    told = json.loads(cli(*at, "db", "check", "--json").stdout)
    assert told["sound"] and "an impossible number of tokens" in told["remarks"][0]
