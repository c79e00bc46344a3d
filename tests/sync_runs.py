"""Helpers for tests of sync: small stores, configurations against a loopback server, and the server's log against the store.

Run as a program it is a sync in a process of its own, to be killed:

    python tests/sync_runs.py STORE_URL BASE_URL [--received FILE] [--concurrency N] [--max-attempts N] [--configured JSON] [--cluster JSON]

`--configured` gives further arguments of `target`, `--cluster` the table of that name. `--received` appends a line for each reply at the
moment at which the client has it, by a write that survives a SIGKILL.
"""

import argparse
import hashlib
import json
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from templates import new_url

from recycledb import methods
from recycledb.config import ClusterSettings, Config, TeacherConfig, parse
from recycledb.reflection import prompts
from recycledb.reflection.teachers import Question, Reply, Teacher, open_teacher
from recycledb.reflection.teachers.pace import Ticket
from recycledb.schema import Texts
from recycledb.store import Store
from recycledb.store.places import Place, replace_places
from recycledb.sync import Outcome, Sync, Target, resolve

# What the client makes of each way in which the server can fail: the reply's status and its error's kind.
OUTCOMES: dict[str, tuple[str, str | None]] = {
    "none": ("ok", None),
    "slow": ("ok", None),
    "rate_limited": ("error", "rate_limited"),
    "rate_limited_after": ("error", "rate_limited"),
    "conflict": ("error", "conflict"),
    "request_timeout": ("error", "timeout"),
    "server_error": ("error", "server_error"),
    "bad_gateway": ("error", "server_error"),
    "hang": ("error", "timeout"),
    "trickle": ("error", "timeout"),
    "reset": ("error", "connection"),
    "reset_in_body": ("error", "connection"),
    "invalid_json": ("error", "bad_body"),
    "cut_json": ("error", "bad_body"),
    "html": ("error", "bad_body"),
    "no_choices": ("error", "bad_body"),
    "null_message": ("error", "bad_body"),
    "empty": ("failed", "empty"),
    "cut_off": ("failed", "cut_off"),
    "refusal": ("failed", "refusal"),
    "filtered": ("failed", "content_filter"),
    "filtered_prompt": ("failed", "content_filter"),
    "too_long": ("failed", "too_long"),
    "bad_request": ("failed", "bad_request"),
    "proxy": ("failed", "bad_request"),
    "odd_names": ("ok", None),
    "long_names": ("ok", None),
    "wrong_types": ("ok", None),
    "huge_usage": ("ok", None),
    "endless_usage": ("ok", None),
    "nan_usage": ("ok", None),
    "deep": ("ok", None),
    "not_utf8": ("ok", None),
    "odd_content": ("failed", "empty"),
    "no_usage": ("ok", None),
    "bomb": ("failed", "too_large"),
    "large": ("failed", "too_large"),
    "echo": ("failed", "bad_request"),
    "echo_answer": ("ok", None),
    "echo_page": ("error", "bad_body"),
    "odd_charset": ("error", "server_error"),
    "closed_in_body": ("error", "connection"),
}


def sample(number: int) -> Texts:
    """Return a sample; every third has an input."""
    about = f"thing {number} " + "of which much can be said " * (1 + number % 4)
    return Texts(f"Describe {about}", f"input {number}" if number % 3 == 2 else "", f"The answer about {about}.")


def make_store(folder: Path, samples: int, backend: str = "sqlite") -> str:
    """Make a store of so many samples; return its URL."""
    url = new_url(backend, folder / "store.db")
    with Store.open(url) as store, store.write() as conn:
        replace_places(store, conn, "made-up", (Place(i, sample(i)) for i in range(samples)))
    return url


def configuration(
    base_url: str, steps: Sequence[str] = (), *, budget_usd: float | None = None, **teacher: Any
) -> Config:
    """Return a configuration with one teacher at `base_url`, and no student."""
    steps = steps or ("compress", "reflect_instruction", "reflect_response")
    values = {"model": "made-up", "base_url": base_url, "timeout_s": 10, "concurrency": 64, **teacher}
    budget = {} if budget_usd is None else {"budget_usd": budget_usd}
    table = {"teachers": {"t": values}, "sync": {"teacher": "t", "steps": list(steps), **budget}}
    return parse(table, Path("recycledb.toml").resolve())


def target(base_url: str, steps: Sequence[str] = (), **teacher: Any) -> Target:
    """Return what a sync against `base_url` is to bring about."""
    return resolve(configuration(base_url, steps, **teacher), only="reflect")


def run(url: str, wanted: Target, **options: Any) -> Outcome:
    """Sync once."""
    with Store.open(url) as store:
        return Sync(store, wanted, **options).run()


def rows(url: str, sql: str, **values: Any) -> list[dict[str, Any]]:
    """Return the rows of a query as dictionaries."""
    with Store.open(url) as store:
        return [dict(row._mapping) for row in store.rows(sql, **values)]


def question_hash(step: str, read: Texts) -> str:
    """Return how the server names the question of `step` about `read`."""
    messages = prompts.render(prompts.load(methods.steps()[step]), (read,))
    return hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()


def attempts(url: str) -> dict[str, list[dict[str, Any]]]:
    """Return every attempt of the store with its reply, by the server's name of the question, in order."""
    found = defaultdict(list)
    sql = """
        SELECT a.attempt_id, a.step, a.number, v.instruction, v.input, v.output,
            t.status, t.error, t.text, t.request_id, t.prompt_tokens, t.completion_tokens, t.cost_usd
        FROM attempt a JOIN variant v ON v.variant_id = a.variant_id
        JOIN teacher_texts t ON t.attempt_id = a.attempt_id ORDER BY a.number
    """
    for row in rows(url, sql):
        found[question_hash(row["step"], Texts(row["instruction"], row["input"], row["output"]))].append(row)
    return dict(found)


def disagreements(url: str, log: Sequence[Any]) -> list[str]:
    """Return where the server's log and the store differ, call by call; exchanges of one question are held in order."""
    stored, served = attempts(url), defaultdict(list)
    for exchange in log:
        served[exchange.question].append(exchange)
    wrong = [f"the server saw a question that is not on record: {key}" for key in served.keys() - stored.keys()]
    for key, tries in stored.items():
        if len(tries) != len(served[key]):
            wrong.append(f"{len(tries)} attempts on record, {len(served[key])} calls seen: {tries[0]['step']} {key}")
            continue
        for row, exchange in zip(tries, served[key], strict=True):
            status, kind = OUTCOMES[str(exchange.fault)]
            found = (row["status"], row["error"].partition(":")[0] if row["error"] else None)
            if found != (status, kind):
                wrong.append(f"call {exchange.number} met {exchange.fault}, but is stored as {found}: {row['error']}")
            elif status == "ok" and (row["text"], row["completion_tokens"]) != (exchange.text, exchange.told[1]):
                wrong.append(f"call {exchange.number} is stored with another text")
    return wrong


class Noting:
    """A teacher that notes each reply of another at the moment at which the client has it."""

    def __init__(self, teacher: Teacher, path: Path) -> None:
        self.teacher, self.file = teacher, os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    @property
    def concurrency(self) -> int:
        """As the other has it."""
        return self.teacher.concurrency

    def estimate(self, messages: Any) -> int:
        """As the other has it."""
        return self.teacher.estimate(messages)

    async def admit(self, tokens: int = 0) -> Ticket:
        """As the other has it."""
        return await self.teacher.admit(tokens)

    async def ask(self, question: Question, ticket: Ticket | None = None) -> Reply:
        """Ask, and note that the reply is there."""
        reply = await self.teacher.ask(question, ticket)
        os.write(self.file, f"{question.attempt_id}\n".encode())
        return reply

    async def close(self) -> None:
        """Close both."""
        await self.teacher.close()
        os.close(self.file)


def main() -> None:
    """Sync in this process, and print the outcome."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("base_url")
    parser.add_argument("--received", type=Path)
    parser.add_argument("--concurrency", type=int, default=200)
    parser.add_argument("--max-attempts", type=int, default=5)
    parser.add_argument("--configured", type=json.loads, default={})
    parser.add_argument("--cluster", type=json.loads, default={})
    options = parser.parse_args()

    def opened(config: TeacherConfig) -> Teacher:
        teacher = open_teacher(config)
        return Noting(teacher, options.received) if options.received else teacher

    values = {"concurrency": options.concurrency, "max_attempts": options.max_attempts, **options.configured}
    wanted = target(options.base_url, **values)
    outcome = run(options.url, wanted, open_teacher=opened, cluster=ClusterSettings(**options.cluster))
    json.dump(outcome.as_dict(), sys.stdout)


if __name__ == "__main__":
    main()
